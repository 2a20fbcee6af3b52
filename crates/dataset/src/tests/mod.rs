//! The tools together, on small sets that are made on the fly.
#![allow(clippy::unwrap_used)]

mod picture;
mod show;
mod stats;
mod write;

use std::path::Path;

use ::image::{DynamicImage, ImageFormat, Rgb, RgbImage};

use crate::*;

/// Members of a shard: name and bytes.
type Members = Vec<(String, Vec<u8>)>;

/// A picture with structure at every scale, another one for every seed.
fn picture(seed: u32, width: u32, height: u32) -> RgbImage {
    let phase = |n: u32| {
        f64::from(seed.wrapping_mul(2_654_435_761).wrapping_add(n * 40_503) % 6283) / 1000.0
    };
    let wave = |at: f64, n: u32| (at * f64::from(1 + (seed + n) % 4) * 3.1 + phase(n)).sin();
    RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (f64::from(x) / f64::from(width), f64::from(y) / f64::from(height));
        let level = |n: u32| 127.0 + 60.0 * wave(x, n) + 60.0 * wave(x + y, n + 3) * wave(y, n + 1);
        Rgb([level(0) as u8, level(0) as u8, level(5) as u8])
    })
}

fn encode(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    DynamicImage::from(image.clone()).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn png(image: &RgbImage) -> Vec<u8> {
    encode(image, ImageFormat::Png)
}

fn sample(key: &str, extension: &str, image: Vec<u8>, caption: &str) -> Members {
    vec![(format!("{key}.{extension}"), image), (format!("{key}.txt"), caption.into())]
}

fn shard(path: &Path, members: &Members) -> String {
    let mut tar = tar::Builder::new(std::fs::File::create(path).unwrap());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        tar.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    tar.finish().unwrap();
    path.display().to_string()
}

fn words(shards: impl IntoIterator<Item = String>) -> Words {
    Words { shards: shards.into_iter().collect(), ..Words::default() }
}

fn open(shards: impl IntoIterator<Item = String>) -> Input {
    Input::open(&words(shards), Path::new("/"), &Meter::default()).unwrap()
}

/// Shards of good samples, of different sizes, with a caption that names them.
fn good(folder: &Path, shards: u32, per_shard: u32) -> Vec<String> {
    let one = |number: u32| {
        let members = (0..per_shard).flat_map(|place| {
            let seed = number * per_shard + place;
            let image = png(&picture(seed, 20 + seed % 30, 16 + seed % 7));
            sample(&format!("s{place:03}"), "png", image, &format!("caption {seed}"))
        });
        shard(&folder.join(format!("in-{number}.tar")), &members.collect())
    };
    (0..shards).map(one).collect()
}

/// All samples of shards that were written.
fn read_all(
    shards: impl IntoIterator<Item = String>,
    json: Option<&str>,
) -> Vec<ringmaster_data::RawSample> {
    let words = Words { json_text_key: json.map(str::to_owned), ..words(shards) };
    let input = Input::open(&words, Path::new("/"), &Meter::default()).unwrap();
    (0..input.samples()).map(|index| input.source.read(index).unwrap()).collect()
}

#[test]
fn words_that_are_wrong_are_told_as_such() {
    let error = words(["~/a.tar".to_owned()]).data(Path::new("/base")).unwrap_err().to_string();
    assert!(error.contains("shards") && error.contains("without ~"), "{error}");
    assert!(!error.contains("spec."), "{error}");
    let no_key = Words { image_key: Some(" ; ".into()), ..words(["a.tar".to_owned()]) };
    let error = no_key.data(Path::new("/base")).unwrap_err().to_string();
    assert!(error.contains("--image-key"), "{error}");
}

#[test]
fn a_meter_counts_and_its_cancel_ends_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let input = open(good(folder.path(), 2, 9));
    let meter = Meter::default();
    verify::verify(&input, &meter).unwrap();
    let reading = meter.read();
    assert_eq!((reading.done, reading.total, reading.bad), (18, 18, 0));
    assert!(reading.bytes > 0);
    meter.cancel();
    let error = verify::verify(&input, &meter).unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error}");
}
