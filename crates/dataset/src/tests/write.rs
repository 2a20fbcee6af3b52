//! Shards that are written, read again.

use std::collections::HashSet;
use std::path::PathBuf;

use proptest::prelude::*;
use ringmaster_inputs::image::{decode, formats};

use super::*;
use crate::write::{Format, Images, MOST_SHARD_BYTES, Options, SHARD_BYTES, Written, write};

fn options(output: &Path) -> Options {
    Options {
        output: output.display().to_string(),
        samples_per_shard: 10_000,
        shard_bytes: SHARD_BYTES,
        images: Images { format: Format::Keep, max_side: None, quality: 95 },
        shuffle: None,
        drop_duplicates: false,
        skip_corrupt: false,
        overwrite: false,
    }
}

fn run(input: &Input, options: &Options) -> Result<Written, Error> {
    write(input, options, &Meter::default())
}

/// All files of a folder, by name.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().display().to_string(), std::fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

fn shards(folder: &Path) -> Vec<String> {
    let names = files(folder).into_iter().map(|(name, _)| name);
    names
        .filter(|name| name.ends_with(".tar"))
        .map(|name| folder.join(name).display().to_string())
        .collect()
}

#[test]
fn what_was_written_is_read_again_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (input, out) = (open(good(folder.path(), 3, 7)), folder.path().join("out"));
    let written = run(&input, &Options { samples_per_shard: 5, ..options(&out) }).unwrap();
    assert_eq!((written.samples, written.encoded, written.sizes.len()), (21, 0, 5));
    let again = read_all(shards(&out), None);
    let before: Vec<_> = (0..input.samples()).map(|i| input.source.read(i).unwrap()).collect();
    assert_eq!(again.len(), before.len());
    for (one, other) in again.iter().zip(&before) {
        assert_eq!((&one.image, &one.captions), (&other.image, &other.captions));
    }
    let keys: HashSet<&str> = again.iter().map(|one| one.key.split_once('/').unwrap().1).collect();
    assert_eq!(keys.len(), 21, "keys are unique in the whole set");
    let sizes: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("sizes.json")).unwrap()).unwrap();
    assert_eq!(sizes, serde_json::json!(written.sizes));
    assert_eq!((&sizes["000000.tar"], &sizes["000004.tar"]), (&5.into(), &1.into()));
}

#[test]
fn the_same_input_gives_the_same_bytes_and_another_seed_another_order() {
    let folder = tempfile::tempdir().unwrap();
    let input = open(good(folder.path(), 2, 40));
    let at = |name: &str, shuffle| {
        let out = folder.path().join(name);
        let images = Images { format: Format::Jpeg, max_side: Some(24), quality: 90 };
        run(&input, &Options { samples_per_shard: 30, images, shuffle, ..options(&out) }).unwrap();
        out
    };
    let (one, two, three) = (at("a", Some(7)), at("b", Some(7)), at("c", Some(8)));
    assert_eq!(files(&one), files(&two));
    assert_ne!(files(&one), files(&three));
    let captions = |folder: &PathBuf| {
        read_all(shards(folder), None)
            .into_iter()
            .map(|one| one.captions[0].clone())
            .collect::<Vec<_>>()
    };
    let (stored, shuffled) = (captions(&at("d", None)), captions(&one));
    assert_ne!(stored, shuffled);
    assert_eq!(HashSet::<&String>::from_iter(&stored), HashSet::from_iter(&shuffled));
}

#[test]
fn several_captions_are_all_kept() {
    let folder = tempfile::tempdir().unwrap();
    let captions = serde_json::json!({"all": ["one", "two ü", "three"]}).to_string();
    let members =
        vec![("x.png".to_owned(), png(&picture(3, 9, 9))), ("x.json".to_owned(), captions.into())];
    let path = shard(&folder.path().join("in.tar"), &members);
    let from = Words { json_text_key: Some("all".into()), ..words([path]) };
    let input = Input::open(&from, Path::new("/"), &Meter::default()).unwrap();
    let out = folder.path().join("out");
    run(&input, &options(&out)).unwrap();
    assert_eq!(read_all(shards(&out), Some("captions"))[0].captions, ["one", "two ü", "three"]);
    assert_eq!(read_all(shards(&out), None)[0].captions, ["one"]);
}

#[test]
fn images_keep_their_bytes_unless_something_is_asked_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let original = picture(4, 60, 30);
    let forms = [("png", ImageFormat::Png), ("webp", ImageFormat::WebP), ("gif", ImageFormat::Gif)];
    let members =
        forms.iter().flat_map(|(name, format)| sample(name, name, encode(&original, *format), "x"));
    let path = shard(&folder.path().join("in.tar"), &members.collect());
    let from = Words { image_key: Some("png;webp;gif".into()), ..words([path]) };
    let input = Input::open(&from, Path::new("/"), &Meter::default()).unwrap();
    let before: Vec<_> = (0..3).map(|i| input.source.read(i).unwrap().image).collect();
    let cases = [
        (Format::Keep, None, ["png", "webp", "png"]),
        (Format::Keep, Some(60), ["png", "webp", "png"]),
        (Format::Keep, Some(30), ["jpeg"; 3]),
        (Format::Png, None, ["png"; 3]),
        (Format::WebP, None, ["webp"; 3]),
        (Format::Jpeg, Some(59), ["jpeg"; 3]),
    ];
    for (number, (format, max_side, expected)) in cases.into_iter().enumerate() {
        let out = folder.path().join(format!("out-{number}"));
        let images = Images { format, max_side, quality: 95 };
        let written = run(&input, &Options { images, ..options(&out) }).unwrap();
        let images: Vec<_> =
            read_all(shards(&out), None).into_iter().map(|one| one.image).collect();
        let found: Vec<_> =
            images.iter().map(|image| formats::Format::of(image).unwrap().name()).collect();
        assert_eq!(found, expected, "{format:?} {max_side:?}");
        let kept = images.iter().zip(&before).filter(|(new, old)| new == old).count() as u64;
        assert_eq!(kept, 3 - written.encoded, "{format:?} {max_side:?}");
        if max_side.is_none_or(|side| side >= 60) {
            let same = |(new, old): (&bytes::Bytes, &bytes::Bytes)| {
                decode(new).unwrap() == decode(old).unwrap()
            };
            assert!(images.iter().zip(&before).all(same), "nothing is lost: {format:?}");
        }
    }
}

#[test]
fn a_corrupt_sample_ends_the_writing_and_leaves_nothing_unless_it_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let bad = sample("bad", "png", b"no image".to_vec(), "x");
    let mut all = good(folder.path(), 2, 10);
    all.push(shard(&folder.path().join("bad.tar"), &bad));
    let (input, out) = (open(all), folder.path().join("out"));
    let few = Options { samples_per_shard: 4, ..options(&out) };
    let error = run(&input, &few).unwrap_err().to_string();
    assert!(
        error.contains("bad.tar, sample bad: not a png") && error.contains("--skip-corrupt"),
        "{error}"
    );
    assert_eq!(files(&out), []);
    let written = run(&input, &Options { skip_corrupt: true, ..few }).unwrap();
    assert_eq!((written.samples, written.corrupt), (20, 1));
    assert!(written.first_corrupt[0].contains("sample bad"));
    let only = open([shard(&folder.path().join("only.tar"), &bad)]);
    let skip = Options { skip_corrupt: true, ..options(&folder.path().join("none")) };
    assert!(run(&only, &skip).unwrap_err().to_string().contains("no sample"));
}

#[test]
fn exact_duplicates_are_written_once_with_the_first_caption() {
    let folder = tempfile::tempdir().unwrap();
    let image = png(&picture(1, 30, 30));
    let members = (0..50)
        .flat_map(|n| sample(&format!("s{n}"), "png", image.clone(), &format!("number {n}")));
    let input = open([shard(&folder.path().join("in.tar"), &members.collect())]);
    let out = folder.path().join("out");
    let written = run(&input, &Options { drop_duplicates: true, ..options(&out) }).unwrap();
    assert_eq!((written.samples, written.duplicates), (1, 49));
    assert_eq!(read_all(shards(&out), None)[0].captions, ["number 0"]);
}

#[test]
fn a_folder_with_something_in_it_is_refused_and_overwriting_spares_what_others_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let (input, out) = (open(good(folder.path(), 1, 9)), folder.path().join("out"));
    run(&input, &Options { samples_per_shard: 2, ..options(&out) }).unwrap();
    std::fs::write(out.join("notes.txt"), "mine").unwrap();
    let error = run(&input, &options(&out)).unwrap_err().to_string();
    assert!(
        error.contains("is not empty: it holds 000000.tar") && error.contains("--overwrite"),
        "{error}"
    );
    assert_eq!(files(&out).len(), 7);
    run(&input, &Options { samples_per_shard: 5, overwrite: true, ..options(&out) }).unwrap();
    let names: Vec<_> = files(&out).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["000000.tar", "000001.tar", "notes.txt", "sizes.json"]);
    // Never over what is being read, whatever is passed.
    let own = open(shards(&out));
    let error = run(&own, &Options { overwrite: true, ..options(&out) }).unwrap_err().to_string();
    assert!(error.contains("lies in the folder that is written to"), "{error}");
    assert_eq!(files(&out).len(), 4);
}

#[test]
fn a_store_gets_the_same_objects_as_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (input, out) = (open(good(folder.path(), 1, 12)), folder.path().join("out"));
    run(&input, &Options { samples_per_shard: 5, ..options(&out) }).unwrap();
    let url = "memory://written/a/set".to_owned();
    let to_store = Options { output: url.clone(), samples_per_shard: 5, ..options(&out) };
    run(&input, &to_store).unwrap();
    let store = ringmaster_store::open(&url).unwrap();
    for (name, bytes) in files(&out) {
        let path = store.path.clone().join(name.as_str());
        let stored = futures::executor::block_on(async {
            use object_store::ObjectStoreExt as _;
            store.objects().get(&path).await.unwrap().bytes().await.unwrap()
        });
        assert_eq!(stored, bytes, "{name}");
    }
    let error = run(&input, &to_store).unwrap_err().to_string();
    assert!(error.contains("000000.tar, 000001.tar, 000002.tar, sizes.json"), "{error}");
}

#[test]
fn a_shard_that_cannot_be_stored_ends_the_writing_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (input, out) = (open(good(folder.path(), 1, 9)), folder.path().join("out"));
    // A folder stands where the third shard belongs; without a file in it, it counts as empty.
    std::fs::create_dir_all(out.join("000002.tar")).unwrap();
    let error = run(&input, &Options { samples_per_shard: 2, ..options(&out) }).unwrap_err();
    assert!(matches!(&error, Error::Store { url, .. } if url.ends_with("/000002.tar")), "{error}");
    let left: Vec<_> =
        std::fs::read_dir(&out).unwrap().map(|one| one.unwrap().file_name()).collect();
    assert_eq!(left, ["000002.tar"]);
}

#[test]
fn options_out_of_bounds_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let (input, out) = (open(good(folder.path(), 1, 2)), folder.path().join("out"));
    let keep = options(&out);
    let image = |images| Options { images, ..keep.clone() };
    let base = keep.images;
    for wrong in [
        Options { samples_per_shard: 0, ..keep.clone() },
        Options { shard_bytes: 0, ..keep.clone() },
        Options { shard_bytes: MOST_SHARD_BYTES + 1, ..keep.clone() },
        Options { output: "ftp://host/x".into(), ..keep.clone() },
        image(Images { max_side: Some(0), ..base }),
        image(Images { quality: 0, ..base }),
        image(Images { quality: 101, ..base }),
    ] {
        let error = run(&input, &wrong).unwrap_err();
        assert!(matches!(error, Error::Asked { .. }), "{error}");
        assert_eq!(files(&out), []);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Sizes of every shape, columns of one pixel among them; shards of every size.
    #[test]
    fn sides_are_bounded_and_no_sample_is_lost(
        sizes in prop::collection::vec((1_u32..90, prop_oneof![Just(1_u32), 1_u32..300]), 1..12),
        most in 1_u32..100,
        per_shard in 1_u64..6,
        shard_bytes in 1_u64..20_000,
        format in prop_oneof![Just(Format::Keep), Just(Format::Jpeg), Just(Format::WebP), Just(Format::Png)],
    ) {
        let folder = tempfile::tempdir().unwrap();
        let members = sizes.iter().zip(0_u32..).flat_map(|(&(width, height), number)| {
            let image = png(&picture(number, width, height));
            sample(&format!("s{number}"), "png", image, &format!("caption {number}"))
        });
        let input = open([shard(&folder.path().join("in.tar"), &members.collect())]);
        let out = folder.path().join("out");
        let images = Images { format, max_side: Some(most), quality: 95 };
        let asked = Options { samples_per_shard: per_shard, shard_bytes, images, ..options(&out) };
        let written = run(&input, &asked).unwrap();
        prop_assert_eq!(written.sizes.values().sum::<u64>(), sizes.len() as u64);
        prop_assert!(written.sizes.values().all(|&size| (1..=per_shard).contains(&size)));
        for (name, samples) in &written.sizes {
            let length = std::fs::metadata(out.join(name)).unwrap().len();
            prop_assert!(*samples == 1 || length <= shard_bytes + 1024, "{} bytes", length);
        }
        let again = read_all(shards(&out), None);
        for ((number, &(width, height)), one) in (0..).zip(&sizes).zip(&again) {
            let expected = format!("caption {number}");
            prop_assert_eq!(&one.captions[0], &expected);
            let (w, h) = decode(&one.image).unwrap().dimensions();
            if width.max(height) <= most {
                prop_assert_eq!((w, h), (width, height));
            } else {
                prop_assert_eq!(w.max(h), most);
            }
        }
    }
}
