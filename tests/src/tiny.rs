//! Shards and a model small enough that a job of twenty steps takes seconds.

use std::path::{Path, PathBuf};

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder as _, Rgb, RgbImage};

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

/// Writes one shard of `count` plain pictures whose sides lie anywhere from 8 to 1,100 pixels, drawn
/// from `seed`, and returns its path.
pub fn write_pictures(folder: &Path, count: usize, mut seed: u64) -> String {
    std::fs::create_dir_all(folder).expect("a temporary folder is writable");
    let path = folder.join("pictures.tar");
    let file = std::fs::File::create(&path).expect("a temporary folder is writable");
    let mut tar = tar::Builder::new(file);
    let mut side = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        8 + ((seed >> 33) % 1093) as u32
    };
    for index in 0..count {
        let (width, height) = (side(), side());
        let shade = (index % 251) as u8;
        let image = RgbImage::from_fn(width, height, |x, _| Rgb([shade, (x / 5) as u8, 90]));
        append(&mut tar, &format!("{index:05}.png"), &png(&image));
        let caption = format!("{width} by {height} pixels");
        append(&mut tar, &format!("{index:05}.txt"), caption.as_bytes());
    }
    tar.finish().expect("a tar ends");
    path.display().to_string()
}

/// Writes a folder of model configurations that holds [`MODEL`] and returns it.
pub fn write_models(folder: &Path) -> PathBuf {
    write_model_of(folder, SIDE, 8)
}

/// As [`write_models`], for pictures of `image_size` pixels in patches of `patch_size`.
pub fn write_model_of(folder: &Path, image_size: u32, patch_size: u32) -> PathBuf {
    let models = folder.join("models");
    std::fs::create_dir_all(&models).expect("a temporary folder is writable");
    let vision = serde_json::json!({
        "image_size": image_size, "patch_size": patch_size, "width": 32, "layers": 2, "head_width": 16
    });
    let config = serde_json::json!({
        "embed_dim": 16,
        "vision_cfg": vision,
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
    let image = RgbImage::from_fn(SIDE, SIDE, |x, y| {
        if inside((x + shift) % SIDE, y) { Rgb(color) } else { Rgb([255, 255, 255]) }
    });
    (image, format!("a {color_name} {shape} {shift}"))
}

fn png(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Up)
        .write_image(image, image.width(), image.height(), ExtendedColorType::Rgb8)
        .expect("a PNG fits memory");
    bytes
}

fn append(tar: &mut tar::Builder<std::fs::File>, name: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    tar.append_data(&mut header, name, bytes).expect("a temporary file is writable");
}
