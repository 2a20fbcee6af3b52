//! AdamW (arXiv:1711.05101) in one pass over flat buffers.
//!
//! m ← β1 m + (1 − β1) g; v ← β2 v + (1 − β2) g²; with m̂ = m/(1 − β1ᵗ) and v̂ = v/(1 − β2ᵗ):
//! θ ← θ (1 − lr·λ) − lr · m̂ / (√v̂ + ε), as `torch.optim.AdamW` computes it. The four buffers are read once
//! and three of them written once, which is the floor of a memory-bound update.

use std::ops::{Add, Div, Mul, Sub};

/// The constants of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment; 0.95 keeps large batches stable (arXiv:2303.15343, §4.7).
    pub beta2: f64,
    /// Added to √v̂.
    pub eps: f64,
    /// λ of the decay ranges.
    pub weight_decay: f64,
    /// Multiplies the gradient first: the clipping factor.
    pub grad_factor: f64,
    /// t, counting from 1.
    pub step: u64,
}

/// The update's constants as the inner loop uses them.
#[derive(Debug, Clone, Copy)]
pub struct Factors<T> {
    /// Multiplies the gradient first.
    pub grad_factor: T,
    /// β1
    pub beta1: T,
    /// 1 − β1
    pub one_minus_beta1: T,
    /// β2
    pub beta2: T,
    /// 1 − β2
    pub one_minus_beta2: T,
    /// 1 / √(1 − β2ᵗ)
    pub inverse_root_correction2: T,
    /// ε
    pub eps: T,
    /// lr / (1 − β1ᵗ)
    pub step_size: T,
    /// 1 − lr λ
    pub keep: T,
}

impl Factors<f64> {
    /// Returns those of an update.
    pub fn new(u: Update) -> Self {
        let t = i32::try_from(u.step).unwrap_or(i32::MAX);
        let correction1 = 1.0 - u.beta1.powi(t);
        let correction2 = 1.0 - u.beta2.powi(t);
        Self {
            grad_factor: u.grad_factor,
            beta1: u.beta1,
            one_minus_beta1: 1.0 - u.beta1,
            beta2: u.beta2,
            one_minus_beta2: 1.0 - u.beta2,
            inverse_root_correction2: 1.0 / correction2.sqrt(),
            eps: u.eps,
            step_size: u.lr / correction1,
            keep: 1.0 - u.lr * u.weight_decay,
        }
    }

    /// Returns the same in f32.
    pub fn rounded(self) -> Factors<f32> {
        Factors {
            grad_factor: self.grad_factor as f32,
            beta1: self.beta1 as f32,
            one_minus_beta1: self.one_minus_beta1 as f32,
            beta2: self.beta2 as f32,
            one_minus_beta2: self.one_minus_beta2 as f32,
            inverse_root_correction2: self.inverse_root_correction2 as f32,
            eps: self.eps as f32,
            step_size: self.step_size as f32,
            keep: self.keep as f32,
        }
    }
}

/// The dtypes parameters may have on the host.
trait Number:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    fn sqrt(self) -> Self;
}

impl Number for f32 {
    fn sqrt(self) -> Self {
        self.sqrt()
    }
}

impl Number for f64 {
    fn sqrt(self) -> Self {
        self.sqrt()
    }
}

/// Updates `params` and the moments `m` and `v` with `grad`, in f32. Shapes: all `[P]`.
#[inline(never)]
pub fn update_f32(
    params: &mut [f32],
    grad: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    factors: Factors<f32>,
) {
    each(params, grad, m, v, factors);
}

/// The same in f64.
#[inline(never)]
pub fn update_f64(
    params: &mut [f64],
    grad: &[f64],
    m: &mut [f64],
    v: &mut [f64],
    factors: Factors<f64>,
) {
    each(params, grad, m, v, factors);
}

fn each<T: Number>(params: &mut [T], grad: &[T], m: &mut [T], v: &mut [T], f: Factors<T>) {
    for (((param, grad), m), v) in params.iter_mut().zip(grad).zip(m).zip(v) {
        let grad = *grad * f.grad_factor;
        *m = f.beta1 * *m + f.one_minus_beta1 * grad;
        *v = f.beta2 * *v + f.one_minus_beta2 * grad * grad;
        let denominator = v.sqrt() * f.inverse_root_correction2 + f.eps;
        *param = *param * f.keep - f.step_size * (*m / denominator);
    }
}
