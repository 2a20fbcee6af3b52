//! Files that are something else, cut off or damaged.

use ::parquet::file::reader::{FileReader as _, SerializedFileReader};
use bytes::Bytes;

use super::*;

fn error(path: &Path, bytes: &[u8]) -> String {
    opened(vec![write(path, bytes)], 4).unwrap_err().to_string()
}

#[test]
fn what_is_no_parquet_file_says_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let file = table::bytes(PLAIN, pages(5), &[plain(&rows(0, 30))]);
    for (bytes, expected) in [
        (&b""[..], "a.parquet is no Parquet file: it is empty"),
        (b"PAR1", "it begins as one, but its end does not say what is in it"),
        (&file[..file.len() / 2], "it may have been cut off at byte"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:46ab\nsize 605157884\n",
            "a.parquet is no Parquet file: it is a git-lfs pointer, which stands for a file of 605157884",
        ),
        (b"<!DOCTYPE html>\n<html>", "it is an HTML page"),
        (&[b'x'; 100_000], "(100000 bytes)"),
    ] {
        let error = error(&path, bytes);
        assert!(error.contains(expected), "{error}");
    }
    let missing = opened(vec![folder.path().join("b.parquet").display().to_string()], 4);
    assert!(matches!(missing.unwrap_err(), Error::Missing { .. }));
    let empty = error(&path, &table::bytes(PLAIN, unindexed(), &[]));
    assert!(
        empty.contains("holds no sample: a Parquet file without rows; leave it out"),
        "{empty}"
    );
}

/// The first file that cannot be opened is told, though several are opened at a time.
#[test]
fn a_bad_file_among_many_names_itself() {
    let folder = tempfile::tempdir().unwrap();
    let file = table::bytes(PLAIN, pages(5), &[plain(&rows(0, 30))]);
    let urls: Vec<_> = (0..80)
        .map(|number| {
            let bytes = if number == 41 { &file[..100] } else { &file[..] };
            write(&folder.path().join(format!("{number}.parquet")), bytes)
        })
        .collect();
    let error = opened(urls, 4).unwrap_err().to_string();
    assert!(error.contains("/41.parquet is no Parquet file"), "{error}");
}

/// Checksums of pages are not written here: what is compressed tells by itself.
#[test]
fn a_page_that_cannot_be_decoded_spoils_the_samples_of_its_block_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let table = rows(0, 40);
    let settings = pages(5).set_compression(Compression::ZSTD(ZstdLevel::default()));
    let mut file = table::bytes(PLAIN, settings, &[plain(&table[..20]), plain(&table[20..])]);
    // Zstandard's frames begin with a magic number: the first image's page of the first group is the fifth.
    let magic = [0x28, 0xb5, 0x2f, 0xfd];
    let frames: Vec<usize> =
        file.windows(4).enumerate().filter(|(_, at)| *at == magic).map(|(at, _)| at).collect();
    file[frames[4]] ^= 0xff;
    let source = opened(vec![write(&path, &file)], 5).unwrap();
    let samples = all(&source);
    let spoiled: Vec<usize> = samples
        .iter()
        .enumerate()
        .filter(|(_, sample)| sample.is_err())
        .map(|(row, _)| row)
        .collect();
    assert_eq!(spoiled, [0, 1, 2, 3, 4]);
    let flaw = samples[2].as_ref().unwrap_err().to_string();
    assert!(
        flaw.contains("row 2 (row 2 of row group 0): column \"image\" cannot be decoded"),
        "{flaw}"
    );
}

/// The rows are there: they are read without it.
#[test]
fn a_damaged_offset_index_costs_whole_row_groups() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let table = rows(0, 40);
    let mut file = table::bytes(PLAIN, pages(5), &[plain(&table)]);
    assert_eq!(opened(vec![write(&path, &file)], 20).unwrap().block_samples(), 20);
    let metadata = SerializedFileReader::new(Bytes::from(file.clone())).unwrap();
    let image = metadata.metadata().row_group(0).column(1);
    let index = image.offset_index_offset().unwrap() as usize;
    let len = image.offset_index_length().unwrap() as usize;
    file[index..index + len].fill(0xff);
    let source = opened(vec![write(&path, &file)], 20).unwrap();
    assert_eq!(source.block_samples(), 40);
    assert_holds(&source, &table);
}

/// Another file of the same length, put in its place while training reads.
#[test]
fn a_file_replaced_after_it_was_opened_is_an_error_and_no_flaw() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let settings = || pages(5).set_compression(Compression::SNAPPY);
    let file = table::bytes(PLAIN, settings(), &[plain(&rows(0, 40))]);
    let source = opened(vec![write(&path, &file)], 5).unwrap();
    let noise: Vec<u8> = (0..file.len() as u32).map(|at| (at * at % 251) as u8).collect();
    write(&path, &noise);
    let error = source.fetch(0, 0, &Default::default()).unwrap_err();
    assert!(matches!(&error, Error::Replaced { url } if url.ends_with("a.parquet")), "{error}");
}

proptest! {
    /// Never a panic: an error where the file is opened, or samples and flaws.
    #[test]
    fn damage_of_any_kind_is_an_error_or_flaws(
        settings in settings(),
        nested in any::<bool>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..4),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let table = rows(0, 40);
        let nested_leaves = || vec![
            member(table.iter().map(|(image, _)| Some(Some(image.clone())))),
            member(table.iter().map(|_| Some(None::<&str>))),
            lists(table.iter().map(|(_, caption)| Some(vec![Some(&caption[..]); 2]))),
        ];
        let mut file = if nested {
            table::bytes(STRUCT, settings, &[nested_leaves()])
        } else {
            table::bytes(PLAIN, settings, &[plain(&table[..13]), plain(&table[13..])])
        };
        for (at, with, late) in flips {
            // Half of the damage is in what the footer says.
            let from = if late { file.len() * 2 / 3 } else { 0 };
            let at = from + at.index(file.len() - from);
            file[at] ^= with.max(1);
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        let url = write(&folder.path().join("a.parquet"), &file);
        if let Ok(source) = opened(vec![url], 8) {
            let mut index = 0;
            while index < source.len() {
                let (shard, number) = source.block_of(index);
                match source.fetch(shard, number, &Default::default()) {
                    Ok(block) => index += block.samples.len() as u64,
                    Err(_) => break,
                }
            }
        }
    }
}
