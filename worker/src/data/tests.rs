//! Shards and loader together, on tars built on the fly.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use ::image::{ImageFormat, Rgb, RgbImage};
use ringmaster_agent::exit::Class;
use ringmaster_manifest::spec::AugCfg;

use super::*;
use ringmaster_inputs::image::Preprocess;
use ringmaster_inputs::text::Tokenizer;

const SIDE: u32 = 8;

pub(super) fn options(global_batch: u32, lanes: u32) -> OrderOptions {
    OrderOptions { seed: 5, lanes, block_samples: None, shuffle_window: 16, global_batch }
}

fn png(value: u8) -> Vec<u8> {
    let image = RgbImage::from_fn(SIDE, SIDE, |x, y| Rgb([value, x as u8 * 9, y as u8 * 9]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Writes shards of `per_shard` samples; `damage` may change a member's bytes or drop it.
fn write_shards(
    folder: &Path,
    shards: usize,
    per_shard: usize,
    damage: impl Fn(usize, usize, &str, Vec<u8>) -> Option<Vec<u8>>,
) -> Vec<String> {
    (0..shards)
        .map(|shard| {
            let path = folder.join(format!("{shard:02}.tar"));
            let mut tar = tar::Builder::new(std::fs::File::create(&path).unwrap());
            for sample in 0..per_shard {
                let caption = format!("caption {shard} {sample}");
                let members = [("png", png((shard * 7 + sample) as u8)), ("txt", caption.into())];
                for (extension, bytes) in members {
                    let Some(bytes) = damage(shard, sample, extension, bytes) else { continue };
                    let mut header = tar::Header::new_gnu();
                    header.set_size(bytes.len() as u64);
                    header.set_mode(0o644);
                    header.set_cksum();
                    let name = format!("s{sample:04}.{extension}");
                    tar.append_data(&mut header, name, bytes.as_slice()).unwrap();
                }
            }
            tar.finish().unwrap();
            path.display().to_string()
        })
        .collect()
}

fn keep(_: usize, _: usize, _: &str, bytes: Vec<u8>) -> Option<Vec<u8>> {
    Some(bytes)
}

fn open(urls: Vec<String>) -> Result<Dataset, Error> {
    Dataset::open(Options {
        urls,
        image_key: vec!["png".into()],
        text_key: "txt".into(),
        json_text_key: None,
    })
}

fn augmentation() -> AugCfg {
    AugCfg {
        scale: [0.5, 1.0],
        ratio: [0.75, 1.33],
        color_jitter: [0.2, 0.2, 0.2, 0.05],
        color_jitter_prob: 0.8,
        gray_scale_prob: 0.1,
        hflip_prob: 0.5,
        affine: None,
        re_prob: 0.0,
    }
}

/// Loads steps `steps` of `rows` and returns the batches.
fn load(
    dataset: &Arc<Dataset>,
    rows: Range<u64>,
    steps: Range<u64>,
    readers: usize,
    substitutions: Vec<Substitution>,
) -> Result<Vec<Batch>, Error> {
    let order = Arc::new(Order::new(dataset.shard_sizes(), options(24, 8)).unwrap());
    let count = steps.end - steps.start;
    let mut loader = Loader::start(LoaderOptions {
        dataset: Arc::clone(dataset),
        order,
        rows,
        first_step: steps.start,
        last_step: steps.end,
        preprocess: Preprocess::clip(SIDE),
        tokenizer: Arc::new(Tokenizer::clip(8)),
        aug: augmentation(),
        seed: 5,
        readers,
        prefetch: 2,
        substitutions,
        max_corrupt: 0.05,
    })?;
    (0..count).map(|_| loader.next()).collect()
}

#[test]
fn batches_are_the_same_for_any_number_of_readers_any_split_of_rows_and_any_restart() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = Arc::new(open(write_shards(folder.path(), 5, 30, keep)).unwrap());
    assert_eq!(dataset.len(), 150);
    let whole = load(&dataset, 0..24, 0..14, 1, Vec::new()).unwrap();
    assert_eq!(whole, load(&dataset, 0..24, 0..14, 3, Vec::new()).unwrap());
    assert_eq!(whole[5..], load(&dataset, 0..24, 5..14, 2, Vec::new()).unwrap());
    let first = load(&dataset, 0..9, 0..14, 2, Vec::new()).unwrap();
    let second = load(&dataset, 9..24, 0..14, 1, Vec::new()).unwrap();
    for ((whole, first), second) in whole.iter().zip(first).zip(second) {
        assert_eq!(whole.images, [first.images, second.images].concat());
        assert_eq!(whole.tokens, [first.tokens, second.tokens].concat());
        assert_eq!(whole.sample_ids, [first.sample_ids, second.sample_ids].concat());
    }
}

#[test]
fn corrupt_samples_are_replaced_counted_and_replayed_and_nothing_else_changes() {
    let folder = tempfile::tempdir().unwrap();
    let (clean, bad) = (folder.path().join("clean"), folder.path().join("bad"));
    std::fs::create_dir_all(&clean).unwrap();
    std::fs::create_dir_all(&bad).unwrap();
    let clean = Arc::new(open(write_shards(&clean, 5, 30, keep)).unwrap());
    let damage = |shard, sample, extension: &str, bytes: Vec<u8>| match (shard, sample) {
        (1, 4) if extension == "png" => Some(bytes[..bytes.len() / 2].to_vec()),
        (3, 9) if extension == "txt" => None,
        _ => Some(bytes),
    };
    let bad = Arc::new(open(write_shards(&bad, 5, 30, damage)).unwrap());
    let expected = load(&clean, 0..24, 0..6, 2, Vec::new()).unwrap();
    let actual = load(&bad, 0..24, 0..6, 2, Vec::new()).unwrap();
    let made: Vec<Substitution> =
        actual.iter().flat_map(|batch| batch.substitutions.clone()).collect();
    let slots: HashMap<(u64, u64), &Substitution> =
        made.iter().map(|s| ((s.step, s.row), s)).collect();
    assert!((1..=2).contains(&made.len()), "{made:?}");
    for (expected, actual) in expected.iter().zip(&actual) {
        for (row, (before, after)) in expected.sample_ids.iter().zip(&actual.sample_ids).enumerate()
        {
            match slots.get(&(expected.step, row as u64)) {
                None => assert_eq!(before, after),
                Some(s) => assert_eq!((*before, *after), (s.sample, s.replacement)),
            }
        }
    }
    // What was recorded holds even after the shard was repaired.
    let replayed = load(&clean, 0..24, 0..6, 1, made).unwrap();
    for (actual, replayed) in actual.iter().zip(&replayed) {
        assert_eq!(actual.sample_ids, replayed.sample_ids);
        assert_eq!(actual.images, replayed.images);
    }
}

#[test]
fn too_many_corrupt_samples_end_the_loader_with_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let damage = |_, sample: usize, extension: &str, bytes: Vec<u8>| match extension {
        "png" if sample.is_multiple_of(3) => Some(bytes[..20].to_vec()),
        _ => Some(bytes),
    };
    let dataset = Arc::new(open(write_shards(folder.path(), 5, 30, damage)).unwrap());
    let error = load(&dataset, 0..24, 0..6, 2, Vec::new()).unwrap_err();
    assert!(matches!(&error, Error::TooManyCorrupt { limit: 7, .. }), "{error}");
    assert!(error.to_string().contains(".tar/s00"), "{error}");
    assert_eq!(crate::error::Error::from(error).class(), Class::Job);
}

/// Options of a plain loader over `dataset`, for tests that change one of them.
fn loader_options(dataset: &Arc<Dataset>, order: OrderOptions) -> LoaderOptions {
    let rows = 0..u64::from(order.global_batch);
    LoaderOptions {
        dataset: Arc::clone(dataset),
        order: Arc::new(Order::new(dataset.shard_sizes(), order).unwrap()),
        rows,
        first_step: 0,
        last_step: 4,
        preprocess: Preprocess::clip(SIDE),
        tokenizer: Arc::new(Tokenizer::clip(8)),
        aug: augmentation(),
        seed: 5,
        readers: 2,
        prefetch: 2,
        substitutions: Vec::new(),
        max_corrupt: 0.0,
    }
}

#[test]
fn a_loader_says_so_instead_of_waiting_when_nothing_more_will_come() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = Arc::new(open(write_shards(folder.path(), 2, 20, keep)).unwrap());
    let mut loader = Loader::start(loader_options(&dataset, options(8, 4))).unwrap();
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
    let dataset = Arc::new(open(urls.clone()).unwrap());
    let order = Order::new(dataset.shard_sizes(), options(4, 4)).unwrap();
    // Damage the first sample of the fourth batch; none is accepted.
    let victim = order.sample(3, 0).index as usize;
    let damage = |shard: usize, sample: usize, extension: &str, bytes: Vec<u8>| {
        let hit = shard * 20 + sample == victim && extension == "png";
        Some(if hit { bytes[..30].to_vec() } else { bytes })
    };
    write_shards(folder.path(), 2, 20, damage);
    let dataset = Arc::new(open(urls).unwrap());
    let readers = 1;
    let mut loader =
        Loader::start(LoaderOptions { readers, ..loader_options(&dataset, options(4, 4)) })
            .unwrap();
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
    let dataset = Arc::new(open(urls).unwrap());
    let order = OrderOptions { block_samples: Some(10), ..options(12, 4) };
    let last_step = 10;
    let mut loader = Loader::start(LoaderOptions {
        max_corrupt: 0.2,
        last_step,
        ..loader_options(&dataset, order)
    })
    .unwrap();
    let batches: Vec<Batch> = (0..last_step).map(|_| loader.next().unwrap()).collect();
    let lost = 70..80;
    assert!(batches.iter().all(|batch| batch.sample_ids.iter().all(|i| !lost.contains(i))));
    let made: Vec<&Substitution> = batches.iter().flat_map(|b| &b.substitutions).collect();
    assert_eq!(made.len(), 10, "an epoch has 120 places, so each lost sample had one");
    assert!(made.iter().all(|s| lost.contains(&s.sample)));
    assert!(made[0].reason.contains("01.tar") && made[0].reason.contains("checksum"), "{made:?}");
}

#[test]
fn counts_are_cached_beside_the_shards_and_recounted_when_a_shard_changes() {
    let folder = tempfile::tempdir().unwrap();
    let urls = write_shards(folder.path(), 2, 12, keep);
    let cache = folder.path().join("ringmaster-sizes.json");
    let first = open(urls.clone()).unwrap();
    assert_eq!(first.shard_sizes(), [12, 12]);
    // The cache is what the next start reads: a number nobody counted shows that.
    let text = std::fs::read_to_string(&cache).unwrap();
    std::fs::write(&cache, text.replace("\"samples\": 12", "\"samples\": 11")).unwrap();
    assert_eq!(open(urls.clone()).unwrap().shard_sizes(), [11, 11]);
    write_shards(folder.path(), 1, 15, keep);
    let changed = open(urls.clone()).unwrap();
    assert_eq!(changed.shard_sizes(), [15, 11]);
    assert_ne!(changed.fingerprint(), first.fingerprint());
    // A declaration goes before the cache.
    std::fs::write(folder.path().join("sizes.json"), r#"{"00.tar": 15, "01.tar": 12}"#).unwrap();
    assert_eq!(open(urls).unwrap().shard_sizes(), [15, 12]);
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
    let dataset = Arc::new(open(write_shards(folder.path(), 4, 512, damage)).unwrap());
    let mut aug = augmentation();
    aug.color_jitter_prob = 1.0;
    aug.affine = Some(ringmaster_manifest::spec::Affine {
        degrees: 10.0,
        zoom: [0.8, 1.2],
        translate: 0.08,
    });
    let last_step = 12;
    let mut loader = Loader::start(LoaderOptions {
        preprocess: Preprocess::clip(64),
        aug,
        readers: 1,
        last_step,
        ..loader_options(&dataset, options(256, 64))
    })
    .unwrap();
    loader.next().unwrap();
    let start = std::time::Instant::now();
    let samples: usize = (1..last_step).map(|_| loader.next().unwrap().sample_ids.len()).sum();
    let rate = samples as f64 / start.elapsed().as_secs_f64();
    eprintln!("one reader: {rate:.0} samples/s (64 x 64 png, affine and colour jitter)");
    assert_eq!(samples, 11 * 256);
}

#[test]
fn a_tar_that_breaks_off_keeps_the_samples_before_the_break() {
    let folder = tempfile::tempdir().unwrap();
    let urls = write_shards(folder.path(), 2, 20, keep);
    let bytes = std::fs::read(&urls[1]).unwrap();
    // Inside the header of some member in the middle.
    std::fs::write(&urls[1], &bytes[..bytes.len() / 2 / 512 * 512 + 100]).unwrap();
    let counted = open(urls.clone()).unwrap();
    assert!((21..40).contains(&counted.len()), "{}", counted.len());
    let damaged = counted.damaged();
    assert_eq!(damaged.len(), 1);
    assert!(damaged[0].url.ends_with("01.tar"), "{damaged:?}");
    assert_eq!(damaged[0].samples, counted.len() - 20);
    let len = bytes.len() / 2 / 512 * 512 + 100;
    let reason = &damaged[0].reason;
    assert!(reason.contains("breaks off at byte ") && reason.contains(&format!(" of {len} (")));
    // Declared counts keep the order: what is lost is corrupt, not absent.
    let sizes = serde_json::json!({"00.tar": 20, "01.tar": 20}).to_string();
    std::fs::write(folder.path().join("sizes.json"), sizes).unwrap();
    let declared = open(urls).unwrap();
    assert_eq!(declared.len(), 40);
    let error = declared.read(39).unwrap_err().to_string();
    assert!(error.contains("01.tar, sample #19"), "{error}");
    assert!(declared.read(20).is_ok());
}

#[test]
fn what_is_no_tar_at_all_says_so_without_its_raw_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("noise.tar");
    let noise: Vec<u8> = (0..4096_u32).map(|i| (i * 37 % 251) as u8).collect();
    std::fs::write(&path, noise).unwrap();
    let error = open(vec![path.display().to_string()]).unwrap_err().to_string();
    assert!(error.contains("noise.tar holds no sample: not a tar archive"), "{error}");
    assert!(error.contains("byte 0 of 4096"), "{error}");
    assert!(!error.chars().any(char::is_control), "{error:?}");
}

/// A clone without git-lfs, a page saved in place of a file: "numeric field did not have utf-8 text".
#[test]
fn a_shard_that_is_a_pointer_a_page_or_compressed_is_called_that() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.tar");
    for (bytes, expected) in [
        (
            &b"version https://git-lfs.github.com/spec/v1\noid sha256:46ab\nsize 605157884\n"[..],
            "not a tar archive but a git-lfs pointer, which stands for a file of 605157884 bytes (oid \
             sha256:46ab); fetch that with `git lfs pull`",
        ),
        (b"<!DOCTYPE html>\n<html>", "not a tar archive but an HTML page"),
        (b"\xfd7zXZ\0\0\x04", "not a tar archive but compressed by xz; unpack it with unxz"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = open(vec![path.display().to_string()]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_git_lfs_pointer_is_no_caption() {
    let folder = tempfile::tempdir().unwrap();
    let pointer = b"version https://git-lfs.github.com/spec/v1\nsize 31\n";
    let swap = |_, sample: usize, extension: &str, bytes: Vec<u8>| match (extension, sample) {
        ("txt", 1) => Some(pointer.to_vec()),
        _ => Some(bytes),
    };
    let data = open(write_shards(folder.path(), 1, 3, swap)).unwrap();
    assert!(data.read(0).is_ok());
    let error = data.read(1).unwrap_err().to_string();
    assert!(
        error.contains("caption: it is a git-lfs pointer, which stands for a file of 31"),
        "{error}"
    );
}

#[test]
fn the_limit_of_corrupt_samples_is_over_all_ranks() {
    let made = |sample: u64| Substitution {
        step: 0,
        row: sample,
        sample,
        replacement: 99,
        reason: format!("sample {sample}"),
    };
    let all: Vec<Substitution> = [1, 2, 3, 2].into_iter().map(made).collect();
    assert_eq!(
        (corrupt_limit(1000, 0.003), corrupt_limit(10, 0.01), corrupt_limit(10, 0.0)),
        (3, 1, 0)
    );
    assert!(check_corrupt(all.iter(), 3).is_ok(), "one sample counts once");
    let error = check_corrupt(all.iter(), 2).unwrap_err().to_string();
    assert!(error.contains("3 corrupt samples, more than the 2"), "{error}");
    assert!(error.contains("sample 1; sample 2; sample 3"), "{error}");
}

#[test]
fn a_missing_shard_and_an_unknown_scheme_name_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let mut urls = write_shards(folder.path(), 1, 3, keep);
    urls.push(folder.path().join("07.tar").display().to_string());
    let error = open(urls).unwrap_err();
    assert!(matches!(&error, Error::Missing { url } if url.ends_with("07.tar")), "{error}");
    let error = open(vec!["ftp://host/a.tar".into()]).unwrap_err().to_string();
    assert!(error.contains("no store for ftp://"), "{error}");
}

#[test]
fn json_captions_are_chosen_by_position_and_wrong_fields_are_corrupt() {
    let folder = tempfile::tempdir().unwrap();
    let damage = |_, sample: usize, extension: &str, bytes: Vec<u8>| match (extension, sample) {
        ("txt", _) => None,
        _ => Some(bytes),
    };
    let mut urls = write_shards(folder.path(), 1, 1, damage);
    // A shard whose only sample has a json member.
    let path = folder.path().join("json.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&path).unwrap());
    let json = serde_json::json!({"captions": ["a", "b", "c"], "number": 3}).to_string();
    for (name, bytes) in [("x.png", png(3)), ("x.json", json.into_bytes())] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        tar.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    tar.finish().unwrap();
    urls[0] = path.display().to_string();
    let with_field = |field: &str| {
        Dataset::open(Options {
            urls: urls.clone(),
            image_key: vec!["png".into()],
            text_key: "txt".into(),
            json_text_key: Some(field.into()),
        })
        .unwrap()
        .read(0)
    };
    assert_eq!(with_field("captions").unwrap().captions, ["a", "b", "c"]);
    let error = with_field("number").unwrap_err().to_string();
    assert!(error.contains("field \"number\" holds no caption"), "{error}");
}

#[test]
fn any_number_of_ranks_holds_every_row_of_the_global_batch_once() {
    let job = crate::tests::job(4, 4, 48);
    assert_eq!(super::row_counts(&job, 4), [12, 12, 12, 12]);
    assert_eq!(super::row_counts(&job, 3), [24, 12, 12]);
    assert_eq!(super::row_counts(&job, 2), [24, 24]);
    assert_eq!(super::row_counts(&job, 1), [48]);
    for ranks in 1..=4 {
        let lanes: Vec<u32> = (0..ranks).flat_map(|rank| super::share(4, rank, ranks)).collect();
        assert_eq!(lanes, [0, 1, 2, 3], "{ranks} ranks");
    }
}
