//! In which arithmetic towers compute, and attention.

use ringmaster_manifest::model_config::{ActKwargs, Approximate};
use tch::{Device, Kind, Tensor};

/// In which arithmetic a tower computes.
#[derive(Debug)]
pub(super) struct Compute {
    /// Kind of the inputs of matrix products: the parameters' own, or bf16 under `amp_bf16`.
    pub(super) product: Kind,
    /// Kind of the parameters, the residual stream and the results.
    pub(super) stream: Kind,
    /// Device of the parameters.
    pub(super) device: Device,
}

/// Which keys a query sees.
pub(super) enum Mask {
    /// All of its sequence.
    None,
    /// Those up to its own position.
    Causal,
    /// Those where this is zero and not -inf; broadcast to [N, H, Q, T].
    Additive(Tensor),
}

impl Mask {
    /// Returns the mask that adds `mask`, or none.
    pub(super) fn additive(mask: Option<&Tensor>) -> Self {
        mask.map_or(Self::None, |mask| Self::Additive(mask.shallow_clone()))
    }
}

impl Compute {
    /// Returns `x` in the kind of matrix products; no copy where it has it already.
    pub(super) fn cast(&self, x: &Tensor) -> Tensor {
        if x.kind() == self.product { x.shallow_clone() } else { x.to_kind(self.product) }
    }

    /// Returns `x` in the stream's kind; no copy where it has it already.
    pub(super) fn widen(&self, x: &Tensor) -> Tensor {
        if x.kind() == self.stream { x.shallow_clone() } else { x.to_kind(self.stream) }
    }

    /// Returns x Wᵀ + b in the kind of products. Shapes: x [S, I], weight [O, I], bias [O] -> [S, O].
    pub(super) fn linear(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        self.cast(x).linear(&self.cast(weight), bias.map(|bias| self.cast(bias)))
    }

    /// Returns x P in the stream's kind. Shapes: x [N, I], projection [I, O] -> [N, O].
    pub(super) fn project(&self, x: &Tensor, projection: &Tensor) -> Tensor {
        self.widen(&self.cast(x).mm(&self.cast(projection)))
    }

    /// Whether attention is written out instead of fused: libtorch's fused CPU kernel is several
    /// times slower than three batched products in bf16 (26 ms against 4.3 ms for 128 sequences of
    /// 17 tokens and two heads of 64, forward and backward on one core), and in f32 the faster of
    /// the two (6.8 ms against 7.1 ms; 29 ms against 40 ms for 65 tokens).
    fn writes_attention_out(&self) -> bool {
        self.device == Device::Cpu && self.product == Kind::BFloat16
    }

    /// Returns softmax(q kᵀ / √d + mask) v.
    ///
    /// Shapes: q [N, H, Q, D], k and v [N, H, T, D] -> [N, Q, H·D].
    pub(super) fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: &Mask) -> Tensor {
        let (sequences, heads, queries, head_width) = q.size4().expect("q is [N, H, Q, D]");
        let attended = if self.writes_attention_out() {
            self.weights(q, k, mask).matmul(v)
        } else {
            let additive = match mask {
                Mask::Additive(mask) => Some(mask),
                Mask::None | Mask::Causal => None,
            };
            let causal = matches!(mask, Mask::Causal);
            Tensor::scaled_dot_product_attention(q, k, v, additive, 0.0, causal, None, false)
        };
        attended.transpose(1, 2).reshape([sequences, queries, heads * head_width])
    }

    /// As [`Self::attend`], with what `dropped` leaves of attention's weights.
    pub(super) fn attend_with(
        &self,
        [q, k, v]: [&Tensor; 3],
        mask: &Mask,
        dropped: impl Fn(&Tensor) -> Tensor,
    ) -> Tensor {
        let (sequences, heads, queries, head_width) = q.size4().expect("q is [N, H, Q, D]");
        let attended = dropped(&self.weights(q, k, mask)).matmul(v);
        attended.transpose(1, 2).reshape([sequences, queries, heads * head_width])
    }

    /// Returns softmax(q kᵀ / √d + mask). Shape: [N, H, Q, T].
    fn weights(&self, q: &Tensor, k: &Tensor, mask: &Mask) -> Tensor {
        let (_, _, queries, head_width) = q.size4().expect("q is [N, H, Q, D]");
        let scores = q.matmul(&k.transpose(-2, -1)) * (head_width as f64).powf(-0.5);
        let scores = match mask {
            Mask::None => scores,
            Mask::Causal => scores + self.causal_mask(queries),
            Mask::Additive(mask) => scores + mask,
        };
        scores.softmax(-1, None)
    }

    /// Returns zero where a token may look and -inf above the diagonal. Shape: [length, length].
    fn causal_mask(&self, length: i64) -> Tensor {
        Tensor::full([length, length], f64::NEG_INFINITY, (self.product, self.device)).triu(1)
    }
}

/// Returns rows of tokens as heads. Shapes: x [N·T, H·D] -> [N, H, T, D].
pub(super) fn heads_first(x: &Tensor, sequences: i64, heads: i64) -> Tensor {
    let (tokens, width) = x.size2().expect("tokens are rows of a matrix");
    x.view([sequences, tokens / sequences, heads, width / heads]).transpose(1, 2)
}

/// The function between the two layers of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    /// x·Φ(x), exactly (arXiv:1606.08415).
    Gelu,
    /// The same by a hyperbolic tangent, as flax and SigLIP 2.
    GeluTanh,
    /// x·sigmoid(1.702x), as OpenAI's weights need.
    QuickGelu,
}

impl Activation {
    /// Returns the activation of one of OpenCLIP's own towers.
    pub(super) fn of(quick_gelu: bool, kwargs: Option<ActKwargs>) -> Self {
        match (quick_gelu, kwargs.unwrap_or_default().approximate) {
            (true, _) => Self::QuickGelu,
            (false, approximate) => approximate.into(),
        }
    }

    /// Applies it to every element.
    pub(super) fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Self::Gelu => x.gelu("none"),
            Self::GeluTanh => x.gelu("tanh"),
            Self::QuickGelu => x * (x * 1.702).sigmoid(),
        }
    }
}

impl From<Approximate> for Activation {
    fn from(approximate: Approximate) -> Self {
        match approximate {
            Approximate::None => Self::Gelu,
            Approximate::Tanh => Self::GeluTanh,
        }
    }
}
