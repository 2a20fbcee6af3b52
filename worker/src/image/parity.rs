//! Decoding and evaluation's transform against PIL and OpenCLIP
//! (`tests/parity/preprocess_golden.py` writes the file).

use ringmaster_manifest::model_config::preprocess::{Interpolation, PreprocessCfg, ResizeMode};
use safetensors::SafeTensors;

use super::{Preprocess, decode};

const GOLDEN: &[u8] = include_bytes!("../../../tests/parity/golden/preprocess.safetensors");

/// Largest difference, and the share of values that differ by more than one of 255.
fn difference(got: impl Iterator<Item = u8>, expected: &[u8]) -> (u8, f64) {
    let differences: Vec<u8> = got.zip(expected).map(|(a, b)| a.abs_diff(*b)).collect();
    assert_eq!(differences.len(), expected.len());
    let far = differences.iter().filter(|difference| **difference > 1).count();
    let most = differences.iter().max().copied().unwrap_or(0);
    (most, far as f64 / differences.len() as f64)
}

/// Whether PIL's JPEG decoder is here; where a run requires it, it must be.
#[allow(clippy::print_stderr, reason = "a skipped test says so")]
fn has_turbo() -> bool {
    let missing = crate::ffi::turbojpeg::missing();
    let required = std::env::var("RINGMASTER_REQUIRE").unwrap_or_default();
    if let Some(missing) = &missing {
        assert!(!required.split(',').any(|word| word == "jpeg"), "{missing}");
        eprintln!("skipped for JPEGs: {missing}");
    }
    missing.is_none()
}

#[test]
fn images_of_every_kind_are_decoded_as_pil_decodes_them() {
    let turbo = has_turbo();
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    let names = golden.names();
    let names = names.iter().filter_map(|name| name.strip_suffix(".file"));
    let mut compared = 0;
    for name in names {
        let file = golden.tensor(&format!("{name}.file")).unwrap();
        let expected = golden.tensor(&format!("{name}.rgb")).unwrap();
        let image = decode(file.data()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let size = [image.height() as usize, image.width() as usize, 3];
        assert_eq!(expected.shape(), size, "{name}");
        let (most, far) = difference(image.as_raw().iter().copied(), expected.data());
        match name {
            // Pillow rounds inverted CMYK in another place.
            "jpeg-cmyk" => assert!(most <= 1, "{name}: differs by up to {most}"),
            _ if name.starts_with("jpeg") && !turbo => assert!(most <= 4, "{name}: {most}"),
            _ => assert_eq!(most, 0, "{name}: {far} differ by more than one"),
        }
        compared += 1;
    }
    assert_eq!(compared, 17);
}

#[test]
fn inputs_are_those_of_open_clips_evaluation_transform() {
    let turbo = has_turbo();
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    let mut compared = 0;
    for (name, expected) in golden.tensors() {
        let parts: Vec<&str> = name.split('.').collect();
        let [picture, mode, filter, size] = parts[..] else { continue };
        if picture.starts_with("jpeg") && !turbo {
            continue;
        }
        let config = PreprocessCfg {
            size: size.parse().unwrap(),
            mean: [0.0; 3],
            std: [1.0; 3],
            resize_mode: match mode {
                "shortest" => ResizeMode::Shortest,
                "longest" => ResizeMode::Longest,
                _ => ResizeMode::Squash,
            },
            interpolation: match filter {
                "bicubic" => Interpolation::Bicubic,
                _ => Interpolation::Bilinear,
            },
            fill_color: 9,
            ..PreprocessCfg::default()
        };
        let file = golden.tensor(&format!("{picture}.file")).unwrap();
        let values = Preprocess::new(&config).eval(&decode(file.data()).unwrap()).unwrap();
        let got = values.iter().map(|value| (value * 255.0).round() as u8);
        let (most, far) = difference(got, expected.data());
        assert!(far <= 1e-3, "{name}: {far} differ by more than 1/255, by up to {most}");
        compared += 1;
    }
    assert_eq!(compared, if turbo { 21 } else { 7 });
}
