//! OpenAI's ResNets: OpenCLIP's `ModifiedResNet` (arXiv:2103.00020, section 2.4).

use ringmaster_manifest::model_config::VisionConfig;
use tch::Tensor;

use super::super::clip::Mode;
use super::super::compute::Compute;
use super::super::init::Init;
use super::super::layers::{BatchNorm, Conv, ConvShape};
use super::super::vars::Vars;
use super::pool::AttentionPool2d;

/// A stem of three convolutions, four stages of bottlenecks whose strides are average pools, and a
/// pool that attends.
#[derive(Debug)]
pub(super) struct ModifiedResNet {
    stem: [Unit; 3],
    stages: Vec<Bottleneck>,
    pool: AttentionPool2d,
}

/// A convolution and its norm.
#[derive(Debug)]
struct Unit {
    conv: Conv,
    norm: BatchNorm,
}

#[derive(Debug)]
struct Bottleneck {
    stride: i64,
    units: [Unit; 3],
    shortcut: Option<Unit>,
}

impl ModifiedResNet {
    /// Channels that leave a bottleneck over those inside.
    const EXPANSION: i64 = 4;

    /// Takes the parameters under `vars`, usually `visual.`.
    pub(super) fn new(
        vision: &VisionConfig,
        stages: [i64; 4],
        embed_dim: i64,
        vars: &Vars<'_>,
    ) -> Self {
        let width = vision.width;
        let stem = [(3, width / 2, 2), (width / 2, width / 2, 1), (width / 2, width, 1)];
        let mut number = 0;
        let stem = stem.map(|(inputs, outputs, stride)| {
            number += 1;
            let shape = ConvShape { inputs, outputs, kernel: 3, stride, padding: 1, groups: 1 };
            Unit::new(vars, &format!("conv{number}"), &format!("bn{number}"), shape, 1.0)
        });
        let mut before = width;
        let mut bottlenecks = Vec::new();
        for (stage, blocks) in stages.into_iter().enumerate() {
            let (vars, planes) = (vars.sub(format!("layer{}", stage + 1)), width << stage);
            for block in 0..blocks {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                bottlenecks.push(Bottleneck::new(&vars.sub(block), before, planes, stride));
                before = planes * Self::EXPANSION;
            }
        }
        let (side, heads) = (vision.image_size / 32, before / vision.head_width);
        let pool = AttentionPool2d::new(&vars.sub("attnpool"), side, before, heads, embed_dim);
        Self { stem, stages: bottlenecks, pool }
    }

    /// Shapes: images [N, 3, H, H] -> [N, E].
    pub(super) fn forward(&self, images: &Tensor, mode: &Mode<'_>, compute: &Compute) -> Tensor {
        let training = matches!(mode, Mode::Train { .. });
        let mut x = compute.cast(images);
        for unit in &self.stem {
            x = unit.forward(&x, training, compute).relu();
        }
        x = average(&x, 2);
        for bottleneck in &self.stages {
            x = bottleneck.forward(&x, training, compute);
        }
        self.pool.forward(&x, compute)
    }
}

impl Unit {
    fn new(vars: &Vars<'_>, conv: &str, norm: &str, shape: ConvShape, weight: f64) -> Self {
        let fan_in = shape.inputs * shape.kernel * shape.kernel;
        Self {
            conv: Conv::new(&vars.sub(conv), shape, Init::torch_default(fan_in), None),
            norm: BatchNorm::new(&vars.sub(norm), shape.outputs, weight),
        }
    }

    fn forward(&self, x: &Tensor, training: bool, compute: &Compute) -> Tensor {
        self.norm.forward(&self.conv.forward(x, compute), training, compute)
    }
}

impl Bottleneck {
    fn new(vars: &Vars<'_>, inputs: i64, planes: i64, stride: i64) -> Self {
        let outputs = planes * ModifiedResNet::EXPANSION;
        let shape = |inputs, outputs, kernel| ConvShape {
            inputs,
            outputs,
            kernel,
            stride: 1,
            padding: kernel / 2,
            groups: 1,
        };
        let shortcut = (stride > 1 || inputs != outputs)
            .then(|| Unit::new(&vars.sub("downsample"), "0", "1", shape(inputs, outputs, 1), 1.0));
        Self {
            stride,
            units: [
                Unit::new(vars, "conv1", "bn1", shape(inputs, planes, 1), 1.0),
                Unit::new(vars, "conv2", "bn2", shape(planes, planes, 3), 1.0),
                // Zero: a fresh block is the identity.
                Unit::new(vars, "conv3", "bn3", shape(planes, outputs, 1), 0.0),
            ],
            shortcut,
        }
    }

    fn forward(&self, x: &Tensor, training: bool, compute: &Compute) -> Tensor {
        let [first, second, third] = &self.units;
        let branch = first.forward(x, training, compute).relu();
        let branch = second.forward(&branch, training, compute).relu();
        let branch = third.forward(&average(&branch, self.stride), training, compute);
        let identity = match &self.shortcut {
            None => compute.widen(x),
            Some(unit) => unit.forward(&average(x, self.stride), training, compute),
        };
        (branch + identity).relu()
    }
}

/// Returns the mean of every `side` × `side` pixels.
fn average(x: &Tensor, side: i64) -> Tensor {
    match side {
        1 => x.shallow_clone(),
        _ => x.avg_pool2d([side; 2], [side; 2], [0, 0], false, true, None),
    }
}
