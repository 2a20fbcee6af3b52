//! Parquet files, written here column by column, and some that others wrote.

mod damage;
mod requests;
mod table;
mod written;

use ::parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use ::parquet::file::properties::{WriterPropertiesBuilder, WriterVersion};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use self::table::{LINKS, PLAIN, STRUCT, lists, member, optional, pages, plain, unindexed, write};
use super::*;
use crate::source::parquet::{Options, Parquet};

/// What sources without keys of their own are read by.
fn options(urls: Vec<String>) -> Options {
    let keys = |keys: &str| keys.split(';').map(str::to_owned).collect();
    Options {
        urls,
        img_keys: keys("image;jpg;jpeg;png;webp;url"),
        caption_keys: keys("caption;text;title;txt"),
    }
}

fn opened(urls: Vec<String>, block_samples: u32) -> Result<Source, Error> {
    Ok(Source::new(Box::new(Parquet::open(&options(urls))?), block_samples))
}

/// Returns rows that tell themselves apart; images of odd lengths.
fn rows(from: usize, count: usize) -> Vec<(Vec<u8>, String)> {
    let row = |row: usize| {
        let image = (0..60 + row % 37).map(|byte| (row * 31 + byte * 7) as u8).collect();
        (image, format!("caption {row}"))
    };
    (from..from + count).map(row).collect()
}

/// Returns every sample of a source, read block by block.
fn all(source: &Source) -> Vec<Result<RawSample, Flaw>> {
    let mut samples = Vec::new();
    let mut index = 0;
    while index < source.len() {
        let (shard, number) = source.block_of(index);
        let block = source.fetch(shard, number, &Default::default()).unwrap();
        let count = block.samples.len() as u64;
        assert!(count > 0 && count <= source.block_samples());
        samples.extend((index..index + count).map(|index| source.sample(&block, index)));
        index += count;
    }
    samples
}

fn assert_holds(source: &Source, expected: &[(Vec<u8>, String)]) {
    let found = all(source);
    assert_eq!(found.len(), expected.len());
    for (sample, (image, caption)) in found.into_iter().zip(expected) {
        let sample = sample.unwrap();
        assert_eq!((&sample.image[..], &sample.captions[..]), (&image[..], &[caption.clone()][..]));
    }
}

fn flaw(source: &Source, index: u64) -> String {
    read(source, index).unwrap_err().to_string()
}

#[test]
fn every_row_group_of_every_file_is_a_shard() {
    let folder = tempfile::tempdir().unwrap();
    let table = rows(0, 30);
    let groups = |cuts: &[Range<usize>]| -> Vec<_> {
        cuts.iter().map(|cut| plain(&table[cut.clone()])).collect()
    };
    let first = table::bytes(PLAIN, unindexed(), &groups(&[0..1, 1..12, 12..12, 12..15]));
    let second = table::bytes(PLAIN, unindexed(), &[plain(&table[15..])]);
    let urls = vec![
        write(&folder.path().join("a.parquet"), &first),
        write(&folder.path().join("b.parquet"), &second),
    ];
    let source = opened(urls, 4).unwrap();
    // A row group without rows is none.
    assert_eq!(source.shard_sizes(), [1, 11, 3, 15]);
    // Nobody knows where the rows of a group lie: they are read together.
    assert_eq!(source.block_samples(), 15);
    assert_holds(&source, &table);
    assert_eq!(read(&source, 13).unwrap().key, "a.parquet/row 13 (row 1 of row group 3)");
    let held: usize = table.iter().map(|(image, _)| image.len()).sum();
    assert!((held as u64 / 4..4 * held as u64).contains(&source.bytes()), "{}", source.bytes());
    assert!(!source.is_remote());
}

fn compressions() -> impl Strategy<Value = Compression> {
    prop_oneof![
        Just(Compression::UNCOMPRESSED),
        Just(Compression::SNAPPY),
        Just(Compression::GZIP(GzipLevel::default())),
        Just(Compression::ZSTD(ZstdLevel::default())),
        Just(Compression::BROTLI(BrotliLevel::try_new(3).unwrap())),
        Just(Compression::LZ4),
        Just(Compression::LZ4_RAW),
    ]
}

/// Returns settings of a writer: pages of some rows, or no index.
fn settings() -> impl Strategy<Value = WriterPropertiesBuilder> {
    let version = prop_oneof![Just(WriterVersion::PARQUET_1_0), Just(WriterVersion::PARQUET_2_0)];
    (compressions(), version, prop::option::of(1_usize..40), any::<bool>()).prop_map(
        |(compression, version, rows, dictionary)| {
            let properties = rows.map_or_else(unindexed, pages);
            let properties = properties.set_compression(compression).set_writer_version(version);
            properties.set_dictionary_enabled(dictionary).set_dictionary_page_size_limit(700)
        },
    )
}

proptest! {
    #[test]
    fn rows_are_the_same_however_they_were_written_and_are_cut(
        settings in settings(),
        sizes in prop::collection::vec(1_usize..70, 1..4),
        block in 1_u32..50,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let table = rows(0, sizes.iter().sum());
        let mut groups = Vec::new();
        let mut start = 0;
        for size in &sizes {
            groups.push(plain(&table[start..start + size]));
            start += size;
        }
        let url = write(&folder.path().join("a.parquet"), &table::bytes(PLAIN, settings, &groups));
        let source = opened(vec![url], block).unwrap();
        assert_holds(&source, &table);
        for index in 0..source.len() {
            prop_assert_eq!(&read(&source, index).unwrap().captions[0], &table[index as usize].1);
        }
    }

    #[test]
    fn lists_of_captions_stay_with_their_rows(
        settings in settings(),
        table in prop::collection::vec(
            prop::option::of(prop::collection::vec(prop::option::of("[a-z]{1,9}"), 0..5)),
            1..60,
        ),
        block in 1_u32..50,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let image = |row: usize| Some(Some(vec![row as u8; 9]));
        let texts = table.iter().map(|row| {
            row.as_ref().map(|list| list.iter().map(|text| text.as_deref()).collect())
        });
        let none = table.iter().map(|_| Some(None::<Vec<u8>>));
        let leaves = vec![member((0..table.len()).map(image)), member(none), lists(texts)];
        let url = write(&folder.path().join("a.parquet"), &table::bytes(STRUCT, settings, &[leaves]));
        let source = opened(vec![url], block).unwrap();
        for (row, sample) in all(&source).into_iter().enumerate() {
            let expected: Vec<String> = table[row].iter().flatten().flatten().cloned().collect();
            match sample {
                Ok(sample) => {
                    prop_assert_eq!(sample.captions, expected);
                    prop_assert_eq!(&sample.image[..], &[row as u8; 9]);
                }
                Err(flaw) => {
                    prop_assert!(expected.is_empty());
                    prop_assert!(flaw.reason.contains("column \"text\" is null or an empty list"));
                }
            }
        }
    }
}

#[test]
fn a_struct_of_bytes_and_path_is_read_as_hugging_face_means_it() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("images")).unwrap();
    std::fs::write(folder.path().join("images/1.png"), b"one").unwrap();
    let bytes = [Some(Some(&b"zero"[..])), Some(None), Some(None), None, Some(None)];
    let path =
        [Some(Some("0.png")), Some(Some("images/1.png")), Some(Some("2.png")), None, Some(None)];
    let texts = (0..5).map(|_| Some(vec![Some("a"), None, Some(" b ")]));
    let leaves = vec![member(bytes), member(path), lists(texts)];
    let file = table::bytes(STRUCT, unindexed(), &[leaves]);
    let source = opened(vec![write(&folder.path().join("a.parquet"), &file)], 4).unwrap();
    let first = read(&source, 0).unwrap();
    assert_eq!(
        (&first.image[..], &first.captions[..]),
        (&b"zero"[..], &["a".into(), "b".into()][..])
    );
    // Without bytes the path counts, from the file's folder on.
    assert_eq!(&read(&source, 1).unwrap().image[..], b"one");
    let missing = flaw(&source, 2);
    assert!(
        missing.contains("a.parquet, sample row 2 (row 2 of row group 0): image /"),
        "{missing}"
    );
    assert!(missing.contains("2.png"), "{missing}");
    for row in [3, 4] {
        assert!(flaw(&source, row).contains("no image: column \"image\" is null"));
    }
}

#[test]
fn a_column_of_text_holds_links_to_images() {
    let folder = tempfile::tempdir().unwrap();
    let image = write(&folder.path().join("far.png"), b"far");
    let links = [
        image.clone(),
        "far.png".into(),
        "./far.png".into(),
        format!("file://{image}"),
        " ".into(),
    ];
    let leaves = vec![
        optional(links.iter().map(|link| Some(link.clone()))),
        optional(links.iter().map(|_| Some("title"))),
    ];
    let file = table::bytes(LINKS, pages(2), &[leaves]);
    let source = opened(vec![write(&folder.path().join("a.parquet"), &file)], 4).unwrap();
    for row in 0..4 {
        assert_eq!(&read(&source, row).unwrap().image[..], b"far", "{}", links[row as usize]);
    }
    assert!(flaw(&source, 4).contains("column \"url\" is empty"), "{}", flaw(&source, 4));
    // Who reads links asks others for the images.
    assert!(source.is_remote());
}

#[test]
fn what_is_missing_in_a_row_is_told_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let images = [Some(vec![1_u8]), None, Some(vec![3]), Some(vec![4])];
    let captions = [Some(b"a".to_vec()), Some(b"b".to_vec()), None, Some(b"\xff\xfe".to_vec())];
    let leaves = vec![optional(images.clone()), optional(images), optional(captions)];
    let file = table::bytes(PLAIN, pages(3), &[plain(&rows(0, 7)), leaves]);
    let source = opened(vec![write(&folder.path().join("a.parquet"), &file)], 4).unwrap();
    assert_eq!(read(&source, 7).unwrap().captions, ["a"]);
    for (index, expected) in [
        (8, "a.parquet, sample row 8 (row 1 of row group 1): no image: column \"image\" is null"),
        (9, "row 9 (row 2 of row group 1): no caption: column \"caption\" is null"),
        (10, "row 10 (row 3 of row group 1): column \"caption\": invalid utf-8 sequence"),
    ] {
        let found = flaw(&source, index);
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn the_first_name_that_a_file_has_counts_and_what_lacks_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = table::bytes(PLAIN, unindexed(), &[plain(&rows(0, 3))]);
    let url = write(&folder.path().join("a.parquet"), &file);
    let with = |image: &[&str], caption: &[&str]| {
        let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect();
        let urls = vec![url.clone()];
        Parquet::open(&Options { urls, img_keys: keys(image), caption_keys: keys(caption) })
    };
    assert!(with(&["jpg", "image"], &["caption"]).is_ok());
    let error = with(&["jpg", "png"], &["caption"]).unwrap_err().to_string();
    assert!(
        error.contains("a.parquet: no column for the image: looked for [\"jpg\", \"png\"]"),
        "{error}"
    );
    assert!(error.contains("the file has [\"ignored\", \"image\", \"caption\"]"), "{error}");
    let file = table::bytes(
        STRUCT,
        unindexed(),
        &[vec![
            member([Some(Some("a"))]),
            member([Some(Some("b"))]),
            lists([Some(vec![Some("c")])]),
        ]],
    );
    std::fs::write(&url, file).unwrap();
    let error = with(&["text"], &["text"]).unwrap_err().to_string();
    assert!(
        error.contains("column \"text\" is a group of [\"list\"], the image is read from"),
        "{error}"
    );
    let error = with(&["image"], &["image"]).unwrap_err().to_string();
    assert!(error.contains("the caption is read from text or a list of texts"), "{error}");
}

#[test]
fn the_digest_tells_files_rows_and_columns_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let digest = |table: Vec<u8>, caption: &str| {
        let mut options = options(vec![write(&path, &table)]);
        options.caption_keys = vec![caption.into()];
        let mut digest = Sha256::new();
        Source::new(Box::new(Parquet::open(&options).unwrap()), 4).add_to(&mut digest);
        digest.finalize().to_vec()
    };
    let table = |groups: &[Vec<table::Leaf>]| table::bytes(PLAIN, unindexed(), groups);
    let (one, two) =
        (table(&[plain(&rows(0, 6))]), table(&[plain(&rows(0, 3)), plain(&rows(3, 3))]));
    let first = digest(one.clone(), "caption");
    assert_eq!(first, digest(one.clone(), "caption"));
    assert_ne!(first, digest(two, "caption"));
    assert_ne!(first, digest(one, "ignored"));
}
