//! ConvNeXt (arXiv:2201.03545) under timm's names.

use ringmaster_manifest::model_config::VisionConfig;
use ringmaster_manifest::model_config::trunk;
use tch::Tensor;

use super::super::clip::Mode;
use super::super::compute::{Activation, Compute};
use super::super::init::Init;
use super::super::layers::{Conv, ConvShape, LayerNorm, Linear};
use super::super::projection::Projection;
use super::super::vars::Vars;
use super::head::head;

/// Four stages of blocks, each at half the side of the one before.
///
/// Between convolutions a map lies as [N, H, W, C], so that norms and MLPs work on its last
/// dimension.
#[derive(Debug)]
pub(super) struct ConvNext {
    stem: Conv,
    stem_norm: LayerNorm,
    stages: Vec<Stage>,
    norm: LayerNorm,
    head: Projection,
}

#[derive(Debug)]
struct Stage {
    downsample: Option<(LayerNorm, Conv)>,
    blocks: Vec<Block>,
}

#[derive(Debug)]
struct Block {
    /// Number in the tower, for the draws of stochastic depth.
    index: u64,
    /// Share of images it is skipped for in training.
    drop_path: f64,
    conv_dw: Conv,
    norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    gamma: Tensor,
}

impl ConvNext {
    /// Takes the parameters under `vars`, usually `visual.`.
    pub(super) fn new(
        vision: &VisionConfig,
        net: &trunk::ConvNext,
        embed_dim: i64,
        vars: &Vars<'_>,
    ) -> Self {
        let trunk = vars.sub("trunk");
        let (stem, eps, features) = (trunk.sub("stem"), net.eps, net.dims[3]);
        let blocks: i64 = net.depths.iter().sum();
        let rate = vision.timm_drop_path.unwrap_or(0.0);
        // From 0 in the first block to the whole rate in the last.
        let drop_path = |index: i64| rate * index as f64 / (blocks - 1).max(1) as f64;
        let mut first = 0;
        let stages = (0..4_usize)
            .map(|stage| {
                let vars = trunk.sub("stages").sub(stage);
                let before = stage.checked_sub(1).map(|before| net.dims[before]);
                let numbers = first..first + net.depths[stage];
                first = numbers.end;
                let rates = numbers.map(|index| (index as u64, drop_path(index)));
                Stage::new(&vars, before, net.dims[stage], eps, rates)
            })
            .collect();
        Self {
            stem: filters(&stem.sub(0), 3, net.dims[0], 4),
            stem_norm: LayerNorm::new(&stem.sub(1), net.dims[0], eps),
            stages,
            norm: LayerNorm::new(&trunk.sub("head").sub("norm"), features, eps),
            head: head(vision, features, embed_dim, "head.fc", vars),
        }
    }

    /// Shapes: images [N, 3, H, H] -> [N, E].
    pub(super) fn forward(&self, images: &Tensor, mode: &Mode<'_>, compute: &Compute) -> Tensor {
        let x = channels_last(&self.stem.forward(images, compute)); // [N, H/4, W/4, C]
        let mut x = self.stem_norm.forward(&x, compute);
        for stage in &self.stages {
            x = stage.forward(x, mode, compute);
        }
        let pooled = x.mean_dim([1_i64, 2].as_slice(), false, None); // [N, C]
        self.head.forward(&self.norm.forward(&pooled, compute), compute)
    }
}

impl Stage {
    fn new(
        vars: &Vars<'_>,
        before: Option<i64>,
        width: i64,
        eps: f64,
        blocks: impl Iterator<Item = (u64, f64)>,
    ) -> Self {
        let downsample = before.map(|before| {
            let vars = vars.sub("downsample");
            (LayerNorm::new(&vars.sub(0), before, eps), filters(&vars.sub(1), before, width, 2))
        });
        let vars = vars.sub("blocks");
        let blocks = blocks
            .zip(0..)
            .map(|((index, drop_path), place): (_, i64)| {
                Block::new(&vars.sub(place), width, eps, index, drop_path)
            })
            .collect();
        Self { downsample, blocks }
    }

    fn forward(&self, x: Tensor, mode: &Mode<'_>, compute: &Compute) -> Tensor {
        let x = match &self.downsample {
            None => x,
            Some((norm, conv)) => {
                let x = channels_first(&norm.forward(&x, compute));
                compute.widen(&channels_last(&conv.forward(&x, compute)))
            }
        };
        self.blocks.iter().fold(x, |x, block| block.forward(&x, mode, compute))
    }
}

impl Block {
    fn new(vars: &Vars<'_>, width: i64, eps: f64, index: u64, drop_path: f64) -> Self {
        let mlp = vars.sub("mlp");
        let shape = ConvShape {
            inputs: width,
            outputs: width,
            kernel: 7,
            stride: 1,
            padding: 3,
            groups: width,
        };
        let zero = Some(Init::Constant(0.0));
        Self {
            index,
            drop_path,
            conv_dw: Conv::new(&vars.sub("conv_dw"), shape, Init::Normal(0.02), zero),
            norm: LayerNorm::new(&vars.sub("norm"), width, eps),
            fc1: Linear::small(&mlp.sub("fc1"), width, 4 * width),
            fc2: Linear::small(&mlp.sub("fc2"), 4 * width, width),
            gamma: vars.tensor("gamma", &[width], Init::Constant(1e-6)),
        }
    }

    /// Shapes: x [N, H, W, C] -> the same.
    fn forward(&self, x: &Tensor, mode: &Mode<'_>, compute: &Compute) -> Tensor {
        let branch = channels_last(&self.conv_dw.forward(&channels_first(x), compute));
        let branch = self.norm.forward(&branch, compute);
        let branch = Activation::Gelu.apply(&self.fc1.forward(&branch, compute));
        let branch = self.fc2.forward(&branch, compute) * &self.gamma;
        match mode.kept_paths(self.index, self.drop_path) {
            None => x + branch,
            Some(factors) => {
                let factors = Tensor::from_slice(&factors).to_device(compute.device);
                x + branch * factors.to_kind(compute.stream).view([-1, 1, 1, 1])
            }
        }
    }
}

/// A convolution whose filters do not overlap.
fn filters(vars: &Vars<'_>, inputs: i64, outputs: i64, side: i64) -> Conv {
    let shape = ConvShape { inputs, outputs, kernel: side, stride: side, padding: 0, groups: 1 };
    Conv::new(vars, shape, Init::Normal(0.02), Some(Init::Constant(0.0)))
}

fn channels_last(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1])
}

fn channels_first(x: &Tensor) -> Tensor {
    x.permute([0, 3, 1, 2])
}
