//! Outputs and gradients against tensors that open_clip computed
//! (`tests/parity/model_golden.py` writes them).

use std::collections::BTreeSet;

use ringmaster_manifest::model_config::ModelConfig;
use ringmaster_manifest::spec::Precision;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use tch::{Device, Kind, Tensor};

use super::*;

const GOLDEN: [(&str, &[u8]); 2] = [
    ("clip-tok", include_bytes!("../../../tests/parity/golden/model-clip-tok.safetensors")),
    (
        "custom-avg-quickgelu",
        include_bytes!("../../../tests/parity/golden/model-custom-avg-quickgelu.safetensors"),
    ),
];

fn tensor(view: &TensorView<'_>) -> Tensor {
    let kind = match view.dtype() {
        safetensors::Dtype::F32 => Kind::Float,
        safetensors::Dtype::I64 => Kind::Int64,
        other => panic!("unexpected {other:?}"),
    };
    let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
    Tensor::from_data_size(view.data(), &shape, kind)
}

fn assert_close(got: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(got.size(), expected.size(), "{what}");
    let difference = (got - expected).norm().double_value(&[]);
    let norm = expected.norm().double_value(&[]);
    assert!(difference <= 1e-5 * norm, "{what}: differs by {difference}, its norm is {norm}");
}

#[test]
fn outputs_and_gradients_equal_those_of_open_clip() {
    for (name, bytes) in GOLDEN {
        let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
        let config: ModelConfig =
            serde_json::from_str(&header.metadata().as_ref().unwrap()["config"]).unwrap();
        let file = SafeTensors::deserialize(bytes).unwrap();
        let golden = |key: &str| tensor(&file.tensor(key).unwrap());
        let logits = LogitInit { scale: 0.0, bias: config.init_logit_bias };
        let clip = Clip::new(&config, Precision::Fp32, Device::Cpu, 0, logits).unwrap();
        let params = clip.params();

        let theirs: BTreeSet<&str> =
            file.names().into_iter().filter_map(|key| key.strip_prefix("param.")).collect();
        let ours: BTreeSet<&str> = params.entries().iter().map(|e| e.name.as_str()).collect();
        assert_eq!(ours, theirs, "{name}");
        for entry in params.entries() {
            let value = golden(&format!("param.{}", entry.name));
            let values = Vec::<f32>::try_from(value.reshape([-1])).unwrap();
            params.load(&entry.name, &value.size(), &values).unwrap();
        }

        let image = clip.encode_image(&golden("images"), &Mode::Eval).unwrap();
        let text = clip.encode_text(&golden("tokens"), &Mode::Eval).unwrap();
        assert_close(&image, &golden("image"), &format!("{name}: image"));
        assert_close(&text, &golden("text"), &format!("{name}: text"));
        let surrogate = |x: Tensor, weight: &str| (x * golden(weight)).sum(Kind::Float);
        params.backward(Tower::Image, &surrogate(image, "weight_image"), false).unwrap();
        params.backward(Tower::Text, &surrogate(text, "weight_text"), false).unwrap();
        for entry in params.entries().iter().filter(|entry| entry.tower != Tower::Head) {
            let got = params.grad().narrow(0, entry.offset as i64, entry.len as i64);
            let expected = golden(&format!("grad.{}", entry.name)).reshape([-1]);
            assert_close(&got, &expected, &format!("{name}: gradient of {}", entry.name));
        }
    }
}
