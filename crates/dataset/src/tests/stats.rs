//! What is counted of a set, and what is found wrong with it.

use super::*;
use crate::stats::{Options, Stats, stats};

fn count(input: &Input) -> Stats {
    stats(input, Options { distance: 3 }, &Meter::default()).unwrap()
}

/// Two good pictures, the first in four forms, a cut and an unknown image, a sample without a caption, an empty and a
/// long caption.
fn mixed(folder: &Path) -> String {
    let (first, second) = (picture(1, 160, 120), picture(50, 90, 200));
    let small = ::image::imageops::resize(&first, 80, 60, ::image::imageops::FilterType::Triangle);
    let cut = png(&second)[..300].to_vec();
    let mut members = Members::new();
    members.extend(sample("a", "png", png(&first), "a red apple"));
    members.extend(sample("b", "png", png(&first), "a red apple"));
    members.extend(sample("c", "png", png(&small), ""));
    members.extend(sample("d", "webp", encode(&first, ImageFormat::WebP), "a red apple"));
    members.extend(sample("e", "png", png(&second), &"word ".repeat(100)));
    members.extend(sample("f", "png", cut, "cut"));
    members.extend(sample("g", "png", b"no image".to_vec(), "unknown"));
    members.push(("h.png".into(), png(&second)));
    shard(&folder.join("mixed.tar"), &members)
}

#[test]
fn samples_formats_captions_and_duplicates_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let found = count(&open([mixed(folder.path())]));
    assert_eq!((found.samples, found.shards, found.corrupt), (8, 1, 3));
    assert_eq!(
        found.formats.iter().map(|(k, v)| (*k, *v)).collect::<Vec<_>>(),
        [("png", 4), ("webp", 1)]
    );
    assert_eq!((found.captions, found.empty_captions, found.long_captions), (5, 1, 1));
    assert_eq!(found.different_captions, Some(3));
    assert_eq!(found.caption_tokens.max, 102.0);
    assert_eq!(found.frequent_captions.len(), 1);
    assert_eq!(
        (found.frequent_captions[0].caption.as_str(), found.frequent_captions[0].count),
        ("a red apple", 3)
    );
    assert_eq!((found.exact_duplicates.groups, found.exact_duplicates.extra), (1, 1));
    assert_eq!(found.exact_duplicates.largest[0].keys, ["mixed.tar/a", "mixed.tar/b"]);
    // Same picture in another format and another size; the exact copy is no picture of its own.
    assert_eq!((found.near_duplicates.groups, found.near_duplicates.extra), (1, 2));
    assert_eq!(
        found.near_duplicates.largest[0].keys,
        ["mixed.tar/a", "mixed.tar/c", "mixed.tar/d"]
    );
    assert_eq!((found.width.min, found.width.max, found.height.max), (80.0, 160.0, 200.0));
}

#[test]
fn histograms_add_up_to_what_can_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let found = count(&open(good(folder.path(), 3, 17).into_iter().chain([mixed(folder.path())])));
    assert_eq!(found.samples, 3 * 17 + 8);
    let sum = |bars: &[crate::stats::histogram::Bar]| bars.iter().map(|bar| bar.count).sum::<u64>();
    let usable = found.samples - found.corrupt;
    for of in [
        &found.width,
        &found.height,
        &found.pixels,
        &found.bytes_per_image,
        &found.captions_per_sample,
    ] {
        assert_eq!((of.count, sum(&of.bars)), (usable, usable));
    }
    assert_eq!(sum(&found.aspect_ratio), usable);
    assert_eq!(sum(&found.caption_characters.bars), found.captions);
    assert_eq!(sum(&found.caption_tokens.bars), found.captions);
    assert_eq!(found.formats.values().sum::<u64>(), usable);
}

#[test]
fn text_json_and_page_say_the_same_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let input = open(good(folder.path(), 2, 20).into_iter().chain([mixed(folder.path())]));
    let found = count(&input);
    let text = found.to_text(80);
    for part in [
        "samples",
        "48",
        "MOST FREQUENT CAPTIONS",
        "a red apple",
        "mixed.tar/a",
        "CORRUPT",
        "breaks",
    ] {
        assert_eq!(text.contains(part), part != "breaks", "{part}: {text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 200), "{text}");
    let json = found.to_json();
    assert_eq!((json["samples"].as_u64(), json["corrupt"].as_u64()), (Some(48), Some(3)));
    assert_eq!(json["first_corrupt"][0]["key"], "f");
    let meter = Meter::default();
    let samples = crate::show::samples(&input, vec![0, 45], 60, &meter).unwrap();
    let alike = crate::show::duplicates(&input, &found.near_duplicates, 60, &meter).unwrap();
    let html = found.to_html("a <set>", &samples, &alike);
    assert!(html.contains("a &lt;set&gt;") && !html.contains("<set>"));
    // One value is no histogram: every sample has one caption.
    assert_eq!(html.matches("<svg").count(), 7);
    assert!(html.contains("data:image/jpeg;base64,") && html.contains("look alike"));
    assert!(!html.contains("http://") && !html.contains("https://"));
}

#[test]
fn verify_names_every_bad_sample_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = mixed(folder.path());
    let verified = crate::verify::verify(&open([path.clone()]), &Meter::default()).unwrap();
    assert_eq!((verified.samples, verified.empty_captions), (8, 1));
    let keys: Vec<_> = verified.bad.iter().map(|flaw| flaw.key.as_str()).collect();
    assert_eq!(keys, ["f", "g", "h"]);
    assert!(verified.bad.iter().all(|flaw| flaw.shard == path), "{:?}", verified.bad);
    assert!(verified.bad[1].reason.contains("not a png, jpeg, webp or gif image"));
    assert!(verified.bad[2].reason.contains("no caption"));
    assert!(!verified.is_good());
    assert_eq!(verified.to_json()["bad"][2]["key"], "h");
    let good = crate::verify::verify(&open(good(folder.path(), 1, 5)), &Meter::default()).unwrap();
    assert!(good.is_good() && good.samples == 5);
}

#[test]
fn a_shard_that_breaks_off_is_not_good() {
    let folder = tempfile::tempdir().unwrap();
    let path = good(folder.path(), 1, 30).remove(0);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let verified = crate::verify::verify(&open([path.clone()]), &Meter::default()).unwrap();
    assert!(!verified.is_good() && verified.samples < 30);
    assert_eq!(verified.damaged[0].url, path);
    let found = count(&open([path.clone()]));
    assert_eq!(found.damaged_shards, [path]);
    assert!(found.to_text(80).contains("breaks off"));
}
