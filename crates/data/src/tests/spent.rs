//! What a loader says of its readers' time tells a slow store, slow decoding and slow computation apart, as the training
//! loop measures them.

use std::time::{Duration, Instant};

use libjpeg_turbo_rs::{PixelFormat, Subsampling, compress};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{GetOptions, GetResult, ObjectStore as _, Result};
use tokio::sync::Mutex;

use super::answers::{Answers, register};
use super::*;

/// Share of the time from which on the log says that steps wait for data.
const COUNTS: f64 = 0.1;
/// How long the slow store takes for an answer, and a slow step for its computation.
const LONG: Duration = Duration::from_millis(12);

/// Answers one request at a time, each after [`LONG`].
#[derive(Debug, Default)]
struct Slow(Mutex<()>);

#[async_trait::async_trait]
impl Answers for Slow {
    async fn get(&self, objects: &InMemory, at: &Path, how: GetOptions) -> Result<GetResult> {
        let _one_at_a_time = self.0.lock().await;
        // Nobody waits for this to be over but the answer: it is what is measured.
        tokio::time::sleep(LONG).await;
        objects.get_opts(at, how).await
    }
}

/// Shares of the time of some steps.
#[derive(Debug)]
struct Measured {
    /// In which steps waited for data.
    data: f64,
    /// Of the readers' time: in which they waited for the store.
    store: f64,
}

/// Steps through a loader; each step computes for so long.
fn measured(options: LoaderOptions, computing: Duration) -> Measured {
    let last_step = options.last_step;
    let mut loader = Loader::start(options).unwrap();
    // The first waits for the threads, too.
    loader.next().unwrap();
    loader.take_spent();
    let (began, mut waited) = (Instant::now(), Duration::ZERO);
    for _ in 1..last_step {
        let asked = Instant::now();
        loader.next().unwrap();
        waited += asked.elapsed();
        compute(computing);
    }
    let data = waited.as_secs_f64() / began.elapsed().as_secs_f64();
    let spent = loader.take_spent();
    Measured { data, store: spent.store / (spent.store + spent.decode) }
}

/// Keeps this thread busy, as a step does.
fn compute(time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// Returns a loader of one reader over two shards of 60 samples.
fn options(urls: Vec<String>) -> LoaderOptions {
    let dataset = dataset(urls, 12).unwrap();
    LoaderOptions { last_step: 10, readers: 1, ..loader_options(&dataset, 12) }
}

/// Puts files into a slow store of this name.
fn slow(name: &str, files: &[String]) -> Vec<String> {
    let number = |(number, file)| (format!("{number}.tar"), std::fs::read(file).unwrap());
    register(name, files.iter().enumerate().map(number), Slow::default());
    (0..files.len()).map(|number| format!("memory://{name}/{number}.tar")).collect()
}

#[test]
fn steps_that_wait_for_a_slow_store_are_told_from_those_that_wait_for_decoding() {
    let folder = tempfile::tempdir().unwrap();
    let files = write_shards(folder.path(), 2, 60, keep);
    let found = measured(options(slow("slow", &files)), Duration::ZERO);
    assert!(found.data > 5.0 * COUNTS && found.store > 0.7, "{found:?}");
    // One by one as well, where the order's blocks do not fit into memory.
    let few = LoaderOptions { memory: 0, last_step: 4, ..options(slow("slower", &files)) };
    let found = measured(few, Duration::ZERO);
    assert!(found.data > 5.0 * COUNTS && found.store > 0.7, "{found:?}");
}

#[test]
fn steps_that_wait_for_large_pictures_wait_for_decoding() {
    let folder = tempfile::tempdir().unwrap();
    let pixels: Vec<u8> = (0..900_u32 * 700 * 3).map(|at| (at / 7 * 13 % 251) as u8).collect();
    let jpeg = compress(&pixels, 900, 700, PixelFormat::Rgb, 90, Subsampling::S420).unwrap();
    let large = |_, _, extension: &str, text: Vec<u8>| {
        Some(if extension == "png" { jpeg.clone() } else { text })
    };
    let found = measured(options(write_shards(folder.path(), 2, 60, large)), Duration::ZERO);
    assert!(found.data > 5.0 * COUNTS && found.store < 0.3, "{found:?}");
}

#[test]
fn steps_that_compute_for_long_wait_for_no_data() {
    let folder = tempfile::tempdir().unwrap();
    let small = options(write_shards(folder.path(), 2, 60, keep));
    let found = measured(small, 4 * LONG);
    assert!(found.data < COUNTS, "{found:?}");
}
