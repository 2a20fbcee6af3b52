//! Outputs and gradients of every family against tensors that open_clip computed
//! (`tests/parity/model_golden.py` writes them).

use std::collections::BTreeSet;
use std::path::Path;

use ringmaster_manifest::model_config::ModelConfig;
use ringmaster_manifest::spec::Precision;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use tch::{Device, Kind, Tensor};

use super::tests::overwrite;
use super::*;

/// A golden file.
struct Golden<'a> {
    name: &'a str,
    file: SafeTensors<'a>,
    config: ModelConfig,
    training: bool,
    tolerance: f64,
}

impl<'a> Golden<'a> {
    fn read(name: &'a str, bytes: &'a [u8]) -> Self {
        let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
        let metadata = header.metadata().as_ref().unwrap();
        Self {
            name,
            file: SafeTensors::deserialize(bytes).unwrap(),
            config: ModelConfig::from_json(&metadata["config"]).unwrap(),
            training: metadata["mode"] == "train",
            tolerance: metadata["tolerance"].parse().unwrap(),
        }
    }

    fn names(&self, prefix: &str) -> BTreeSet<&str> {
        self.file.names().into_iter().filter_map(|key| key.strip_prefix(prefix)).collect()
    }

    fn get(&self, key: &str) -> Tensor {
        let view = self.file.tensor(key).unwrap_or_else(|error| panic!("{key}: {error}"));
        tensor(&view)
    }

    /// Builds the model with the file's weights.
    fn model(&self) -> Clip {
        let logits = LogitInit { scale: 0.0, bias: self.config.init_logit_bias };
        let clip = Clip::new(&self.config, Precision::Fp32, Device::Cpu, 0, logits).unwrap();
        let ours: BTreeSet<&str> =
            clip.params().entries().iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(ours, self.names("param."), "{}", self.name);
        for entry in clip.params().entries() {
            let value = self.get(&format!("param.{}", entry.name)).to_kind(Kind::Float);
            let values = Vec::<f32>::try_from(value.reshape([-1])).unwrap();
            assert_eq!(value.size(), entry.shape, "{}", entry.name);
            overwrite(&clip, &entry.name, &values);
        }
        clip
    }

    fn assert_close(&self, got: &Tensor, expected: &Tensor, what: &str) {
        self.assert_near(got, expected, 0.0, what);
    }

    /// Compares relatively to the norm of what is expected, or to `floor` where that is larger.
    fn assert_near(&self, got: &Tensor, expected: &Tensor, floor: f64, what: &str) {
        let (name, tolerance) = (self.name, self.tolerance);
        assert_eq!(got.size(), expected.size(), "{name}: {what}");
        let difference = (got - expected).norm().double_value(&[]);
        let norm = expected.norm().double_value(&[]).max(floor);
        assert!(
            difference <= tolerance * norm,
            "{name}: {what} differs by {difference}, its norm is {norm}"
        );
    }
}

fn tensor(view: &TensorView<'_>) -> Tensor {
    let kind = match view.dtype() {
        safetensors::Dtype::F32 => Kind::Float,
        safetensors::Dtype::I64 => Kind::Int64,
        other => panic!("unexpected {other:?}"),
    };
    let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
    Tensor::from_data_size(view.data(), &shape, kind)
}

/// The part of a flat buffer that is `entry`'s, in its shape.
fn part(flat: &Tensor, entry: &Entry) -> Tensor {
    flat.narrow(0, entry.offset as i64, entry.len as i64).view(entry.shape.as_slice())
}

fn compare(golden: &Golden<'_>) {
    let clip = golden.model();
    let params = clip.params();
    let rows: Vec<u64> = (0..4).collect();
    let mode =
        if golden.training { Mode::Train { seed: 0, step: 0, rows: &rows } } else { Mode::Eval };
    let image = clip.encode_image(&golden.get("images"), &mode).unwrap();
    let text = clip.encode_text(&golden.get("tokens"), &mode).unwrap();
    golden.assert_close(&image, &golden.get("image"), "image");
    golden.assert_close(&text, &golden.get("text"), "text");
    let surrogate = |x: Tensor, weight: &str| (x * golden.get(weight)).sum(Kind::Float);
    params.backward(Tower::Image, &surrogate(image, "weight_image"), false).unwrap();
    params.backward(Tower::Text, &surrogate(text, "weight_text"), false).unwrap();

    let with_gradient = golden.names("grad.");
    // Of a gradient far smaller than the others only rounding is left in f32.
    let squares = with_gradient.iter().map(|name| {
        golden.get(&format!("grad.{name}")).square().sum(Kind::Double).double_value(&[])
    });
    let floor = 1e-3 * squares.sum::<f64>().sqrt();
    for entry in params.entries().iter().filter(|entry| entry.tower != Tower::Head) {
        let name = &entry.name;
        let got = part(params.grad(), entry);
        if with_gradient.contains(name.as_str()) {
            let expected = golden.get(&format!("grad.{name}"));
            golden.assert_near(&got, &expected, floor, &format!("gradient of {name}"));
        } else {
            assert_eq!(got.count_nonzero(None).int64_value(&[]), 0, "{name}")
        }
    }
    let changed = golden.names("after.");
    for entry in params.entries() {
        let before = if changed.contains(entry.name.as_str()) { "after" } else { "param" };
        let expected = golden.get(&format!("{before}.{}", entry.name)).to_kind(Kind::Float);
        golden.assert_close(&part(params.flat(), entry), &expected, &entry.name);
    }
}

#[test]
fn outputs_and_gradients_of_every_family_equal_those_of_open_clip() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/golden");
    let mut compared = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        if let Some(name) = stem.strip_prefix("model-") {
            compare(&Golden::read(name, &std::fs::read(&path).unwrap()));
            compared += 1;
        }
    }
    assert_eq!(compared, 16, "golden files");
}

#[test]
fn fixed_positions_start_where_open_clips_do() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/golden");
    let bytes = std::fs::read(folder.join("model-clipa.safetensors")).unwrap();
    let golden = Golden::read("clipa", &bytes);
    let logits = LogitInit { scale: 0.0, bias: None };
    let clip = Clip::new(&golden.config, Precision::Fp32, Device::Cpu, 0, logits).unwrap();
    let fresh = clip.params().get("visual.positional_embedding").unwrap();
    golden.assert_close(fresh, &golden.get("param.visual.positional_embedding"), "positions");
}
