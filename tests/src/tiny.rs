//! Shards and a model small enough that a job of twenty steps takes seconds.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::{ImageFormat, Rgb, RgbImage};

/// Name of the model in [`write_models`].
pub const MODEL: &str = "tiny";
/// Samples per shard of [`write_shards`].
pub const PER_SHARD: usize = 40;
const SIDE: u32 = 16;
const COLORS: [(&str, [u8; 3]); 8] = [
    ("red", [220, 30, 30]),
    ("green", [30, 200, 40]),
    ("blue", [40, 60, 230]),
    ("yellow", [240, 220, 40]),
    ("purple", [150, 40, 200]),
    ("orange", [250, 140, 20]),
    ("grey", [120, 120, 120]),
    ("black", [10, 10, 10]),
];
const SHAPES: [&str; 5] = ["square", "bar", "column", "frame", "corner"];

/// Writes `count` shards of coloured shapes with captions and returns the brace pattern that names
/// them. A shard in `corrupt` (shard, sample) has a truncated image there.
pub fn write_shards(folder: &Path, count: usize, corrupt: &[(usize, usize)]) -> String {
    std::fs::create_dir_all(folder).expect("a temporary folder is writable");
    for shard in 0..count {
        let file = std::fs::File::create(folder.join(format!("{shard:03}.tar")));
        let mut tar = tar::Builder::new(file.expect("a temporary folder is writable"));
        for sample in 0..PER_SHARD {
            let (image, caption) = drawing(shard * PER_SHARD + sample);
            let mut png = png(&image);
            if corrupt.contains(&(shard, sample)) {
                png.truncate(png.len() / 2);
            }
            let key = format!("{shard:03}{sample:05}");
            append(&mut tar, &format!("{key}.png"), &png);
            append(&mut tar, &format!("{key}.txt"), caption.as_bytes());
        }
        tar.finish().expect("a tar ends");
    }
    format!("{}/{{000..{:03}}}.tar", folder.display(), count - 1)
}

/// Writes a folder of model configurations that holds [`MODEL`] and returns it.
pub fn write_models(folder: &Path) -> PathBuf {
    let models = folder.join("models");
    std::fs::create_dir_all(&models).expect("a temporary folder is writable");
    let config = serde_json::json!({
        "embed_dim": 16,
        "vision_cfg": {"image_size": SIDE, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    });
    std::fs::write(models.join(format!("{MODEL}.json")), config.to_string())
        .expect("a temporary folder is writable");
    models
}

fn drawing(index: usize) -> (RgbImage, String) {
    let (color_name, color) = COLORS[index % COLORS.len()];
    let shape = SHAPES[(index / COLORS.len()) % SHAPES.len()];
    let shift = (index / (COLORS.len() * SHAPES.len())) as u32 % 3;
    let inside = |x: u32, y: u32| match shape {
        "square" => (4..12).contains(&x) && (4..12).contains(&y),
        "bar" => (6..10).contains(&y),
        "column" => (6..10).contains(&x),
        "frame" => x < 3 || y < 3 || x >= SIDE - 3 || y >= SIDE - 3,
        _ => x < 8 && y < 8,
    };
    let image = RgbImage::from_fn(SIDE, SIDE, |x, y| match inside((x + shift) % SIDE, y) {
        true => Rgb(color),
        false => Rgb([255, 255, 255]),
    });
    (image, format!("a {color_name} {shape} {shift}"))
}

fn png(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).expect("a PNG fits memory");
    bytes.into_inner()
}

fn append(tar: &mut tar::Builder<std::fs::File>, name: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    tar.append_data(&mut header, name, bytes).expect("a temporary file is writable");
}
