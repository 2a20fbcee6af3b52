//! The data of a run: three sources of small pictures, one sample in a hundred of them damaged.

use super::*;

/// Samples of every shard of each source. The second source is the smallest: in two lanes of 257 samples, of which one
/// is kept as reserve, it has epochs of 512.
const SHARDS: [&[usize]; 3] = [&[400, 250, 250], &[300, 214], &[350, 350]];
/// What each source weighs. The first has the largest share, and takes what rounding leaves.
const WEIGHTS: [u64; 3] = [5, 4, 3];

/// Rows of the shorter and of the longer batch.
pub(super) const BATCHES: [u64; 2] = [64, 128];
/// The smallest source.
pub(super) const SMALLEST: u32 = 1;
/// Samples of a run: three epochs of the smallest source, which gives every third.
pub(super) const SAMPLES: u64 = 3 * 512 * 3;

/// Returns how many of the first `samples` of a run a source gives, by the formula in whole numbers.
pub(super) fn given(source: usize, samples: u64) -> u64 {
    let all: u64 = WEIGHTS.iter().sum();
    match source {
        0 => samples - given(1, samples) - given(2, samples),
        _ => samples * WEIGHTS[source] / all,
    }
}

/// Returns how many samples a source has.
pub(super) fn len(source: u32) -> u64 {
    SHARDS[source as usize].iter().sum::<usize>() as u64
}

/// Whether the picture of a sample is damaged: about one in a hundred, spread over lanes and shards.
pub(super) fn is_damaged(sample: SampleKey) -> bool {
    (sample.index * 37 + u64::from(sample.source) * 11) % 101 == 5
}

/// Returns the shards of all sources as tars, with their paths.
pub(super) fn shards() -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for (source, shards) in (0..).zip(SHARDS) {
        let mut first = 0;
        for (shard, count) in shards.iter().enumerate() {
            let samples = first..first + *count as u64;
            all.push((path(source, shard), tar(source, samples.clone())));
            first = samples.end;
        }
    }
    all
}

/// Opens the shards below a folder or a URL.
pub(super) fn opened(place: &str) -> Arc<Dataset> {
    let source = |(number, shards): (usize, &&[usize])| spec::Source {
        name: format!("source {number}"),
        data: (0..shards.len()).map(|at| format!("{place}/{}", path(number as u32, at))).collect(),
        weight: Some(WEIGHTS[number] as f64),
        upsample: None,
    };
    let sources = SHARDS.iter().enumerate().map(source).collect();
    let data = spec::Data {
        json_text_key: Some("captions".into()),
        lanes: 2,
        block_samples: 16,
        ..data(sources)
    };
    let dataset = Dataset::open(&data, BATCHES[0]).unwrap();
    dataset.order().check_batch(BATCHES[1]).unwrap();
    Arc::new(dataset)
}

fn path(source: u32, shard: usize) -> String {
    format!("{source}/{shard:02}.tar")
}

/// Returns a shard of these samples of a source.
fn tar(source: u32, samples: Range<u64>) -> Vec<u8> {
    let mut tar = ::tar::Builder::new(Vec::new());
    for index in samples {
        let captions = [format!("a picture {index}"), format!("number {index} of {source}")];
        let json = serde_json::json!({ "captions": captions }).to_string();
        let image = image(SampleKey { source, index });
        for (extension, bytes) in [("png", image), ("json", json.into_bytes())] {
            let mut header = ::tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            let name = format!("s{index:04}.{extension}");
            tar.append_data(&mut header, name, bytes.as_slice()).unwrap();
        }
    }
    tar.into_inner().unwrap()
}

/// Returns a picture that no other sample has; of damaged ones a half, or with another beginning.
fn image(sample: SampleKey) -> Vec<u8> {
    let SampleKey { source, index } = sample;
    let (low, high) = (index as u8, (index >> 8) as u8 * 40 + source as u8 * 13);
    let pixels = RgbImage::from_fn(SIDE, SIDE, |x, y| Rgb([low, high + x as u8 * 9, y as u8 * 31]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    pixels.write_to(&mut bytes, ImageFormat::Png).unwrap();
    let mut bytes = bytes.into_inner();
    match (is_damaged(sample), index % 2) {
        (false, _) => {}
        (true, 0) => bytes.truncate(bytes.len() / 2),
        (true, _) => bytes[..8].fill(0),
    }
    bytes
}
