//! Files that pyarrow and Hugging Face's datasets wrote: `fixtures/parquet/make.py`.

use super::*;

const FILES: [&str; 3] = ["pyarrow.parquet", "pyarrow-indexed.parquet", "datasets.parquet"];

#[test]
fn files_of_pyarrow_and_datasets_are_read() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/parquet");
    for file in FILES {
        let source = opened(vec![format!("{folder}/{file}")], 4).unwrap();
        let samples = all(&source);
        assert_eq!(samples.len(), 24);
        for (row, sample) in samples.into_iter().enumerate() {
            let sample = sample.unwrap();
            let picture = ::image::load_from_memory(&sample.image).unwrap().to_rgb8();
            let colour = row as u8 * 10;
            assert_eq!(picture.get_pixel(1, 2), &Rgb([colour, 255 - colour, 7]), "{}", sample.key);
            assert_eq!(sample.captions[0], format!("colour {row}"));
            assert_eq!(sample.captions.len(), 1 + usize::from(file.contains("indexed")));
        }
    }
}

#[test]
fn an_offset_index_that_pyarrow_wrote_cuts_row_groups_into_blocks() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/parquet");
    let open = |file: usize| opened(vec![format!("{folder}/{}", FILES[file])], 4).unwrap();
    let indexed = open(1);
    assert_eq!(indexed.shard_sizes(), [10, 10, 4]);
    assert!(indexed.block_samples() < 10, "{}", indexed.block_samples());
    assert_eq!(open(0).block_samples(), 24);
}
