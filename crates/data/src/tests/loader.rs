//! From an order to batches.

use libjpeg_turbo_rs::{PixelFormat, Subsampling, compress};

use super::*;
use crate::corrupt::{self, Corrupt, SampleKey};

fn samples(batches: &[Batch]) -> Vec<SampleKey> {
    batches.iter().flat_map(|batch| batch.samples.clone()).collect()
}

#[test]
fn batches_are_the_same_for_any_number_of_readers_any_split_of_rows_and_any_restart() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = dataset(write_shards(folder.path(), 5, 30, keep), 24).unwrap();
    assert_eq!(dataset.len(), 150);
    let part = |rows: Range<u64>, steps: Range<u64>, readers| {
        let (first_step, last_step) = (steps.start, steps.end);
        let first_sample = first_step * 24;
        let plain = loader_options(&dataset, 24);
        load(LoaderOptions { rows, first_step, first_sample, last_step, readers, ..plain }).unwrap()
    };
    let whole = part(0..24, 0..14, 1);
    assert_eq!(whole, part(0..24, 0..14, 3));
    assert_eq!(whole[5..], part(0..24, 5..14, 2));
    let (first, second) = (part(0..9, 0..14, 2), part(9..24, 0..14, 1));
    for ((whole, first), second) in whole.iter().zip(first).zip(second) {
        assert_eq!(*whole.images, [&first.images[..], &second.images[..]].concat());
        assert_eq!(whole.tokens, [first.tokens, second.tokens].concat());
        assert_eq!(whole.samples, [first.samples, second.samples].concat());
    }
}

/// Epochs follow without a gap, and a batch twice as large goes on where smaller ones ended.
#[test]
fn a_change_of_the_batch_in_the_middle_repeats_no_sample_and_misses_none() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = dataset(write_shards(folder.path(), 5, 32, keep), 16).unwrap();
    let run = |global_batch, first_sample: u64, steps| {
        let plain = loader_options(&dataset, global_batch);
        let batches = load(LoaderOptions { first_sample, last_step: steps, ..plain }).unwrap();
        let images: Vec<u8> =
            batches.iter().flat_map(|batch| batch.images.iter().copied()).collect();
        (samples(&batches), images)
    };
    let (mut seen, mut images) = run(8, 0, 6);
    let (more, later) = run(16, 48, 7);
    seen.extend(more);
    images.extend(later);
    let mut sorted: Vec<u64> = seen.iter().map(|sample| sample.index).collect();
    sorted.sort_unstable();
    assert!(sorted.into_iter().eq(0..160), "an epoch, each sample once");
    // Every sample is augmented as it is without the change.
    let (plain_samples, plain_images) = run(8, 0, 20);
    let values = Preprocess::clip(SIDE).values();
    let pixels = |samples: &[SampleKey], images: &[u8], wanted: SampleKey| {
        let row = samples.iter().position(|sample| *sample == wanted).unwrap();
        images[row * values..(row + 1) * values].to_vec()
    };
    for sample in plain_samples.iter().copied() {
        assert_eq!(
            pixels(&seen, &images, sample),
            pixels(&plain_samples, &plain_images, sample),
            "{sample:?}"
        );
    }
}

#[test]
fn a_mixture_gives_every_batch_its_rows_of_each_source() {
    let folder = tempfile::tempdir().unwrap();
    let source = |name: &str, shards, weight| {
        let place = folder.path().join(name);
        std::fs::create_dir_all(&place).unwrap();
        let data = write_shards(&place, shards, 30, keep);
        spec::Source { name: name.to_owned(), data, weight: Some(weight), upsample: None }
    };
    let sources = vec![source("a", 4, 3.0), source("b", 1, 1.0)];
    let dataset = Arc::new(Dataset::open(&data(sources), 24).unwrap());
    let batches = load(LoaderOptions { last_step: 10, ..loader_options(&dataset, 24) }).unwrap();
    for batch in &batches {
        let of = |source| batch.samples.iter().filter(|sample| sample.source == source).count();
        assert_eq!((of(0), of(1)), (18, 6));
    }
    let small: Vec<u64> =
        samples(&batches).iter().filter(|s| s.source == 1).map(|s| s.index).collect();
    for epoch in small.chunks(30) {
        let mut sorted = epoch.to_vec();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..30), "each of its samples once an epoch of its own");
    }
}

#[test]
fn a_factor_says_how_often_a_source_is_seen_while_another_is_seen_once() {
    let folder = tempfile::tempdir().unwrap();
    let source = |name: &str, shards, upsample| {
        let place = folder.path().join(name);
        std::fs::create_dir_all(&place).unwrap();
        let data = write_shards(&place, shards, 30, keep);
        spec::Source { name: name.to_owned(), data, weight: None, upsample }
    };
    let sources = vec![source("a", 4, None), source("b", 1, Some(2.0))];
    let dataset = Dataset::open(&data(sources), 24).unwrap();
    let shares = dataset.order().shares();
    assert_eq!((shares.before(0, 180), shares.before(1, 180)), (120, 60));
}

#[test]
fn corrupt_samples_are_replaced_counted_and_replayed_and_nothing_else_changes() {
    let folder = tempfile::tempdir().unwrap();
    let (clean, bad) = (folder.path().join("clean"), folder.path().join("bad"));
    std::fs::create_dir_all(&clean).unwrap();
    std::fs::create_dir_all(&bad).unwrap();
    let clean = dataset(write_shards(&clean, 5, 30, keep), 24).unwrap();
    let damage = |shard, sample, extension: &str, bytes: Vec<u8>| match (shard, sample) {
        (1, 4) if extension == "png" => Some(bytes[..bytes.len() / 2].to_vec()),
        (3, 9) if extension == "txt" => None,
        _ => Some(bytes),
    };
    let bad = dataset(write_shards(&bad, 5, 30, damage), 24).unwrap();
    let options = |dataset| LoaderOptions { last_step: 6, ..loader_options(dataset, 24) };
    let (expected, actual) = (load(options(&clean)).unwrap(), load(options(&bad)).unwrap());
    let mut ledger = Ledger::default();
    for batch in &actual {
        ledger.merge(batch.replaced, &batch.corrupt);
    }
    assert!((1..=2).contains(&ledger.replaced()), "{ledger:?}");
    let (before, after) = (samples(&expected), samples(&actual));
    let changed: Vec<_> = before.iter().zip(&after).filter(|(b, a)| b != a).collect();
    assert_eq!(changed.len() as u64, ledger.replaced());
    assert!(changed.iter().all(|(before, after)| {
        ledger.reason(**before).is_some() && ledger.reason(**after).is_none()
    }));
    // What was recorded holds even after the shard was repaired.
    let replayed = load(LoaderOptions { ledger, readers: 1, ..options(&clean) }).unwrap();
    for (actual, replayed) in actual.iter().zip(&replayed) {
        assert_eq!(actual.samples, replayed.samples);
        assert_eq!(actual.images, replayed.images);
        assert_eq!(actual.replaced, replayed.replaced);
        assert!(replayed.corrupt.is_empty(), "nothing new was found");
    }
}

#[test]
fn too_many_corrupt_samples_end_the_loader_with_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let damage = |_, sample: usize, extension: &str, bytes: Vec<u8>| match extension {
        "png" if sample.is_multiple_of(3) => Some(bytes[..20].to_vec()),
        _ => Some(bytes),
    };
    let dataset = dataset(write_shards(folder.path(), 5, 30, damage), 24).unwrap();
    let error = load(LoaderOptions { last_step: 6, ..loader_options(&dataset, 24) }).unwrap_err();
    assert!(matches!(&error, Error::TooManyCorrupt { limit: 7, .. }), "{error}");
    assert!(error.to_string().contains(".tar/s00"), "{error}");
}

#[test]
fn a_loader_says_so_instead_of_waiting_when_nothing_more_will_come() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = dataset(write_shards(folder.path(), 2, 20, keep), 8).unwrap();
    let mut loader = Loader::start(loader_options(&dataset, 8)).unwrap();
    for step in 0..4 {
        assert_eq!(loader.next().unwrap().step, step);
    }
    for _ in 0..2 {
        assert!(matches!(loader.next(), Err(Error::Reader { .. })));
    }
}

#[test]
fn batches_before_a_failure_are_handed_out_and_calls_after_it_fail_too() {
    let folder = tempfile::tempdir().unwrap();
    let urls = write_shards(folder.path(), 2, 20, keep);
    let whole = dataset(urls.clone(), 4).unwrap();
    // Damage the first sample of the fourth batch; none is accepted.
    let visits = whole.order().visits(12, 4, 0..4, &Windows::default());
    let victim = whole.order().sample(visits[0]).index as usize;
    let damage = |shard: usize, sample: usize, extension: &str, bytes: Vec<u8>| {
        let hit = shard * 20 + sample == victim && extension == "png";
        Some(if hit { bytes[..30].to_vec() } else { bytes })
    };
    write_shards(folder.path(), 2, 20, damage);
    let dataset = dataset(urls, 4).unwrap();
    let plain = loader_options(&dataset, 4);
    let mut loader =
        Loader::start(LoaderOptions { readers: 1, max_corrupt: 0.0, ..plain }).unwrap();
    for step in 0..3 {
        assert_eq!(loader.next().unwrap().step, step);
    }
    assert!(matches!(loader.next(), Err(Error::TooManyCorrupt { count: 1, limit: 0, .. })));
    assert!(matches!(loader.next(), Err(Error::Reader { .. })));
}

#[test]
fn a_shard_lost_behind_a_broken_header_is_replaced_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let urls = write_shards(folder.path(), 3, 40, keep);
    let sizes = serde_json::json!({"00.tar": 40, "01.tar": 40, "02.tar": 40}).to_string();
    std::fs::write(folder.path().join("sizes.json"), sizes).unwrap();
    // Damage the checksum of the header of sample 30 of the second shard: ten are lost.
    let mut bytes = std::fs::read(&urls[1]).unwrap();
    let name = b"s0030.png\0";
    let header = bytes.windows(name.len()).position(|window| window == name).unwrap();
    bytes[header + 150] ^= 1;
    std::fs::write(&urls[1], bytes).unwrap();
    let dataset = dataset(urls, 12).unwrap();
    let plain = loader_options(&dataset, 12);
    let batches = load(LoaderOptions { max_corrupt: 0.2, last_step: 10, ..plain }).unwrap();
    let lost = 70..80;
    assert!(samples(&batches).iter().all(|sample| !lost.contains(&sample.index)));
    let mut ledger = Ledger::default();
    for batch in &batches {
        ledger.merge(batch.replaced, &batch.corrupt);
    }
    // An epoch has 120 places, so each lost sample had one.
    assert_eq!((ledger.replaced(), ledger.len()), (10, 10));
    let reason = ledger.reason(SampleKey { source: 0, index: 70 }).unwrap();
    assert!(reason.contains("01.tar") && reason.contains("checksum"), "{reason}");
}

#[test]
#[expect(clippy::print_stderr, reason = "the rate it prints is what the test is for")]
fn one_reader_prepares_small_images_at_a_rate_it_prints() {
    let folder = tempfile::tempdir().unwrap();
    let drawing = RgbImage::from_fn(64, 64, |x, y| {
        let (dx, dy) = (x as i32 - 32, y as i32 - 32);
        let inside = dx * dx + dy * dy < 700;
        Rgb(if inside { [250 - (y * 2) as u8, 180, 20 + (x * 3) as u8] } else { [255; 3] })
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    drawing.write_to(&mut bytes, ImageFormat::Png).unwrap();
    let damage = |_, _, extension: &str, text: Vec<u8>| {
        Some(if extension == "png" { bytes.get_ref().clone() } else { text })
    };
    let dataset = dataset(write_shards(folder.path(), 4, 512, damage), 256).unwrap();
    let mut aug = augmentation();
    aug.color_jitter_prob = 1.0;
    aug.affine = Some(ringmaster_manifest::spec::Affine {
        degrees: 10.0,
        zoom: [0.8, 1.2],
        translate: 0.08,
    });
    let last_step = 12;
    let preprocess = Preprocess::clip(64);
    let plain = loader_options(&dataset, 256);
    let options = LoaderOptions { preprocess, aug, readers: 1, last_step, ..plain };
    let mut loader = Loader::start(options).unwrap();
    loader.next().unwrap();
    let start = std::time::Instant::now();
    let samples: usize = (1..last_step).map(|_| loader.next().unwrap().samples.len()).sum();
    let rate = samples as f64 / start.elapsed().as_secs_f64();
    eprintln!("one reader: {rate:.0} samples/s (64 x 64 png, affine and colour jitter)");
    assert_eq!(samples, 11 * 256);
}

/// 80 × 64 pixels for inputs of 8: with the switch a quarter of it is decoded, which has 16 rows.
#[test]
fn large_jpegs_are_decoded_at_part_of_their_size_where_the_job_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let pixels: Vec<u8> = (0..80 * 64 * 3).map(|at| (at / 7 * 13 % 251) as u8).collect();
    let jpeg = compress(&pixels, 80, 64, PixelFormat::Rgb, 90, Subsampling::S420).unwrap();
    let in_shard = |_, _, extension: &str, text: Vec<u8>| {
        Some(if extension == "png" { jpeg.clone() } else { text })
    };
    let dataset = dataset(write_shards(folder.path(), 2, 24, in_shard), 12).unwrap();
    let aug = AugCfg { color_jitter_prob: 0.0, gray_scale_prob: 0.0, ..augmentation() };
    let read = |jpeg_scaled_decode| {
        let plain = LoaderOptions { aug: aug.clone(), ..loader_options(&dataset, 12) };
        load(LoaderOptions { jpeg_scaled_decode, ..plain }).unwrap()
    };
    for (whole, part) in read(false).iter().zip(&read(true)) {
        assert_eq!(whole.samples, part.samples);
        let pairs = whole.images.iter().zip(part.images.iter());
        let sum: u64 = pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        let mean = sum as f64 / whole.images.len() as f64;
        assert!(mean > 0.0 && mean < 13.0, "{mean}");
    }
}

#[test]
fn the_limit_of_corrupt_samples_is_over_all_ranks() {
    let found = |index: u64| Corrupt {
        sample: SampleKey { source: 0, index },
        reason: format!("sample {index}"),
    };
    let all: Vec<Corrupt> = [1, 2, 3, 2].into_iter().map(found).collect();
    assert_eq!(
        (corrupt::limit(1000, 0.003), corrupt::limit(10, 0.01), corrupt::limit(10, 0.0)),
        (3, 1, 0)
    );
    let mut ledger = Ledger::default();
    ledger.merge(4, &all);
    assert!(corrupt::check(&ledger, 3).is_ok(), "one sample counts once");
    let error = corrupt::check(&ledger, 2).unwrap_err().to_string();
    assert!(error.contains("3 corrupt samples, more than the 2"), "{error}");
    assert!(error.contains("sample 1; sample 2; sample 3"), "{error}");
}

#[test]
fn other_shards_lengths_seeds_or_shares_are_another_fingerprint_and_other_places_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, per_shard| {
        let place = folder.path().join(name);
        std::fs::create_dir_all(&place).unwrap();
        write_shards(&place, 2, per_shard, keep)
    };
    let (one, copy, longer) = (write("one", 12), write("copy", 12), write("longer", 13));
    let fingerprint = |urls: &[String], change: &dyn Fn(&mut spec::Data)| {
        let mut data = data(vec![spec::Source::train(urls.to_vec())]);
        change(&mut data);
        Dataset::open(&data, 8).unwrap().fingerprint().to_owned()
    };
    let plain = fingerprint(&one, &|_| {});
    assert_eq!(plain, fingerprint(&copy, &|data| data.readers = Some(7)));
    type Change<'a> = &'a dyn Fn(&mut spec::Data);
    let changes: [(&[String], Change<'_>); 6] = [
        (&longer, &|_| {}),
        (&one[..1], &|_| {}),
        (&one, &|data| data.seed = 6),
        (&one, &|data| data.lanes = 4),
        (&one, &|data| data.block_samples = 5),
        (&one, &|data| data.pool_samples = 65),
    ];
    for (urls, change) in changes {
        assert_ne!(plain, fingerprint(urls, change));
    }
}

/// A sample was two requests; on a store that answers in 30 ms a reader got no further than 30 of them a second.
#[test]
fn a_loader_reads_each_block_once_however_its_samples_are_shuffled() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = dataset(write_shards(folder.path(), 8, 50, keep), 20).unwrap();
    // Blocks of four, and none spans two shards.
    let blocks = 8 * 50_u64.div_ceil(4);
    let mut loader =
        Loader::start(LoaderOptions { last_step: 40, ..loader_options(&dataset, 20) }).unwrap();
    let batches: Vec<Batch> = (0..40).map(|_| loader.next().unwrap()).collect();
    let fetched = loader.fetched().unwrap();
    // Two epochs. Windows and lanes cut blocks, which are then read at both ends.
    assert_eq!(samples(&batches).len(), 800);
    assert!(
        (2 * blocks..3 * blocks).contains(&fetched.blocks),
        "{fetched:?}, and the set has {blocks} blocks"
    );
    assert_eq!(fetched.dropped, 0);
}

#[test]
fn memory_decides_how_samples_are_read_and_not_which() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = dataset(write_shards(folder.path(), 8, 50, keep), 20).unwrap();
    let options = |memory| LoaderOptions { memory, last_step: 20, ..loader_options(&dataset, 20) };
    let roomy = load(options(1 << 30)).unwrap();
    let mut tight = Loader::start(options(0)).unwrap();
    assert_eq!(tight.fetched(), None, "one by one");
    for batch in &roomy {
        assert_eq!(*batch, tight.next().unwrap());
    }
    // Just enough for the pool: blocks come and go.
    let enough = dataset.pool_bytes(1.0);
    let mut snug = Loader::start(options(enough)).unwrap();
    for batch in &roomy {
        assert_eq!(*batch, snug.next().unwrap());
    }
    assert!(snug.fetched().is_some());
}

/// A set that fits the pool is read once for all epochs.
#[test]
fn a_small_set_stays_in_memory_over_epochs() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = dataset(write_shards(folder.path(), 2, 30, keep), 20).unwrap();
    let mut loader =
        Loader::start(LoaderOptions { last_step: 15, ..loader_options(&dataset, 20) }).unwrap();
    for _ in 0..15 {
        loader.next().unwrap();
    }
    assert_eq!(loader.fetched().unwrap().blocks, 2 * 30_u64.div_ceil(4));
}

#[test]
fn a_source_of_no_data_fills_batches_without_reading() {
    let names = vec!["synthetic:2500000".to_owned(), "synthetic:7".to_owned()];
    let data = data(vec![spec::Source::train(names)]);
    let dataset = Arc::new(Dataset::open(&data, 64).unwrap());
    assert_eq!((dataset.len(), dataset.shards()), (2_500_007, 4));
    let options = LoaderOptions { last_step: 2, ..loader_options(&dataset, 64) };
    let values = options.preprocess.values();
    let mut loader = Loader::start(options).unwrap();
    for step in 0..2 {
        let batch = loader.next().unwrap();
        assert_eq!((batch.step, batch.samples.len(), batch.replaced), (step, 64, 0));
        assert_eq!(batch.images.len(), 64 * values);
        assert!(batch.images.iter().any(|value| *value != batch.images[0]));
    }
    assert_eq!(loader.fetched().map(|fetched| fetched.blocks), Some(0));
    // Whoever reads it otherwise gets a picture and a caption.
    let sample = dataset.read(0, 2_000_001, &CancellationToken::new()).unwrap();
    assert_eq!(sample.captions, ["Dummy caption"]);
    assert!(ringmaster_inputs::image::decode(&sample.image).is_ok());
}
