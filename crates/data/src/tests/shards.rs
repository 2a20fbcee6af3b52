//! Shards as they are found.

use super::*;

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
    // A declaration goes before the cache.
    std::fs::write(folder.path().join("sizes.json"), r#"{"00.tar": 15, "01.tar": 12}"#).unwrap();
    assert_eq!(open(urls).unwrap().shard_sizes(), [15, 12]);
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
    let error = read(&declared, 39).unwrap_err().to_string();
    assert!(error.contains("01.tar, sample #19"), "{error}");
    assert!(read(&declared, 20).is_ok());
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
    assert!(read(&data, 0).is_ok());
    let error = read(&data, 1).unwrap_err().to_string();
    assert!(
        error.contains("caption: it is a git-lfs pointer, which stands for a file of 31"),
        "{error}"
    );
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
        let mut data = data(vec![spec::Source::train(urls.clone())]);
        data.json_text_key = Some(field.into());
        read(&Source::open(&data, &data.sources[0]).unwrap(), 0)
    };
    assert_eq!(with_field("captions").unwrap().captions, ["a", "b", "c"]);
    let error = with_field("number").unwrap_err().to_string();
    assert!(error.contains("field \"number\" holds no caption"), "{error}");
}

#[test]
fn runs_hold_every_sample_once_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let source = open(write_shards(folder.path(), 3, 10, keep)).unwrap();
    let cancel = tokio_util::sync::CancellationToken::new();
    let mut keys = Vec::new();
    for run in source.runs() {
        assert_eq!(run.first, keys.len() as u64);
        assert_eq!(source.shard_of(run.first), run.shard);
        let samples = source.read_run(run, &cancel).unwrap();
        assert!((1..=4).contains(&samples.len()), "{}", samples.len());
        keys.extend(samples.into_iter().map(|sample| sample.unwrap().key));
    }
    let one_by_one = (0..source.len()).map(|index| read(&source, index).unwrap().key);
    assert_eq!(keys, one_by_one.collect::<Vec<_>>());
}
