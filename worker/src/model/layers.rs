//! What towers are made of: linear layers and norms.

use tch::Tensor;

use super::compute::Compute;
use super::init::Init;
use super::vars::Vars;

/// x Wᵀ + b.
#[derive(Debug)]
pub(super) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Takes `weight` [O, I] and `bias` [O] under `vars`.
    pub(super) fn new(
        vars: &Vars<'_>,
        inputs: i64,
        outputs: i64,
        weight: Init,
        bias: Option<Init>,
    ) -> Self {
        Self {
            weight: vars.tensor("weight", &[outputs, inputs], weight),
            bias: bias.map(|bias| vars.tensor("bias", &[outputs], bias)),
        }
    }

    /// As torch's `nn.Linear`, with its initial values.
    pub(super) fn torch(vars: &Vars<'_>, inputs: i64, outputs: i64, bias: bool) -> Self {
        let init = Init::torch_default(inputs);
        Self::new(vars, inputs, outputs, init, bias.then_some(init))
    }

    /// As timm and Hugging Face start theirs: normal with deviation 0.02, biases zero.
    pub(super) fn small(vars: &Vars<'_>, inputs: i64, outputs: i64) -> Self {
        Self::new(vars, inputs, outputs, Init::Normal(0.02), Some(Init::Constant(0.0)))
    }

    /// Made of parameters that have other names.
    pub(super) fn of(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// Shapes: x [S, I] -> [S, O], in the kind of products.
    pub(super) fn forward(&self, x: &Tensor, compute: &Compute) -> Tensor {
        compute.linear(x, &self.weight, self.bias.as_ref())
    }

    /// Returns the layer of the outputs `from..from + count` alone.
    pub(super) fn rows(&self, from: i64, count: i64) -> Self {
        Self {
            weight: self.weight.narrow(0, from, count),
            bias: self.bias.as_ref().map(|bias| bias.narrow(0, from, count)),
        }
    }
}

/// Scale and shift after normalising each row.
#[derive(Debug)]
pub(super) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    width: i64,
    eps: f64,
}

impl LayerNorm {
    /// Takes `weight` and `bias` [width] under `vars`.
    pub(super) fn new(vars: &Vars<'_>, width: i64, eps: f64) -> Self {
        Self {
            weight: vars.tensor("weight", &[width], Init::Constant(1.0)),
            bias: vars.tensor("bias", &[width], Init::Constant(0.0)),
            width,
            eps,
        }
    }

    /// Normalises the last dimension, in the stream's kind whatever the products' is.
    pub(super) fn forward(&self, x: &Tensor, compute: &Compute) -> Tensor {
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        compute.widen(x).layer_norm([self.width], weight, bias, self.eps, false)
    }
}

/// Scale and shift after normalising each channel over the batch (arXiv:1502.03167), with torch's
/// momentum and eps.
#[derive(Debug)]
pub(super) struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    batches: Tensor,
}

impl BatchNorm {
    const MOMENTUM: f64 = 0.1;
    const EPS: f64 = 1e-5;

    /// Takes five tensors under `vars`; `weight` starts at the given value.
    pub(super) fn new(vars: &Vars<'_>, channels: i64, weight: f64) -> Self {
        let shape = [channels];
        Self {
            weight: vars.tensor("weight", &shape, Init::Constant(weight)),
            bias: vars.tensor("bias", &shape, Init::Constant(0.0)),
            mean: vars.statistic("running_mean", &shape, Init::Constant(0.0)),
            variance: vars.statistic("running_var", &shape, Init::Constant(1.0)),
            batches: vars.statistic("num_batches_tracked", &[], Init::Constant(0.0)),
        }
    }

    /// Normalises by the running statistics, or, `training`, by the batch's, which then move the
    /// running ones. Shapes: x [N, C, H, W] -> the same, in the stream's kind.
    pub(super) fn forward(&self, x: &Tensor, training: bool, compute: &Compute) -> Tensor {
        // Other views of the same storage: autograd must not take a change of the statistics for
        // one of the weights beside them.
        let (mean, variance) = (self.mean.data(), self.variance.data());
        if training {
            let _ = self.batches.data().g_add_scalar_(1.0);
        }
        compute.widen(x).batch_norm(
            Some(&self.weight),
            Some(&self.bias),
            Some(&mean),
            Some(&variance),
            training,
            Self::MOMENTUM,
            Self::EPS,
            false,
        )
    }
}

/// A convolution without padding of its own.
#[derive(Debug)]
pub(super) struct Conv {
    weight: Tensor,
    bias: Option<Tensor>,
    stride: i64,
    padding: i64,
    groups: i64,
}

/// What a [`Conv`] is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConvShape {
    pub(super) inputs: i64,
    pub(super) outputs: i64,
    pub(super) kernel: i64,
    pub(super) stride: i64,
    pub(super) padding: i64,
    pub(super) groups: i64,
}

impl Conv {
    /// Takes `weight` [O, I/groups, k, k] and `bias` [O] under `vars`.
    pub(super) fn new(vars: &Vars<'_>, shape: ConvShape, weight: Init, bias: Option<Init>) -> Self {
        let ConvShape { inputs, outputs, kernel, stride, padding, groups } = shape;
        let filters = [outputs, inputs / groups, kernel, kernel];
        Self {
            weight: vars.tensor("weight", &filters, weight),
            bias: bias.map(|bias| vars.tensor("bias", &[outputs], bias)),
            stride,
            padding,
            groups,
        }
    }

    /// Shapes: x [N, I, H, W] -> [N, O, H', W'], in the kind of products.
    pub(super) fn forward(&self, x: &Tensor, compute: &Compute) -> Tensor {
        compute.cast(x).conv2d(
            &compute.cast(&self.weight),
            self.bias.as_ref().map(|bias| compute.cast(bias)),
            [self.stride; 2],
            [self.padding; 2],
            [1, 1],
            self.groups,
        )
    }
}
