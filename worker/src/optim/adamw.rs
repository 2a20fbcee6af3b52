//! AdamW (arXiv:1711.05101) in one pass over flat buffers.
//!
//! m ← β1 m + (1 − β1) g; v ← β2 v + (1 − β2) g²; with m̂ = m/(1 − β1ᵗ) and v̂ = v/(1 − β2ᵗ):
//! θ ← θ (1 − lr·λ) − lr · m̂ / (√v̂ + ε), as `torch.optim.AdamW` computes it. λ is zero outside
//! the decay ranges. On the CPU the four buffers are read once and written once, which is the
//! floor of a memory-bound update; on a GPU the same formula runs as libtorch operations.

use std::ops::Range;

pub use ringmaster_kernels::adamw::Update;
use ringmaster_kernels::adamw::{self, Factors};
use tch::{Device, Kind, TchError, Tensor};

use crate::ffi::memory::HostBytes;

/// The moments of every parameter, flat like the parameters.
#[derive(Debug)]
pub struct AdamW {
    /// m. Shape `[P]`, of the parameters' dtype.
    pub exp_avg: Tensor,
    /// v. Shape `[P]`, of the parameters' dtype.
    pub exp_avg_sq: Tensor,
}

impl AdamW {
    /// Returns zero moments for the flat buffer `params`, f32 or f64.
    pub fn like(params: &Tensor) -> Self {
        Self { exp_avg: params.zeros_like(), exp_avg_sq: params.zeros_like() }
    }

    /// Updates `params` with `grad` (both `[P]`, contiguous, of the moments' dtype); `ranges` cover the
    /// buffer and say where weight decay applies.
    ///
    /// # Errors
    /// libtorch's, on a device other than the CPU.
    pub fn apply(
        &mut self,
        params: &Tensor,
        grad: &Tensor,
        ranges: &[(Range<usize>, bool)],
        update: Update,
    ) -> Result<(), TchError> {
        for (range, decay) in ranges {
            let weight_decay = if *decay { update.weight_decay } else { 0.0 };
            let factors = Factors::new(Update { weight_decay, ..update });
            if params.device() == Device::Cpu {
                let part = |t: &Tensor| t.narrow(0, range.start as i64, range.len() as i64);
                let buffers =
                    [params, grad, &self.exp_avg, &self.exp_avg_sq].map(|t| host(&part(t)));
                match params.kind() {
                    Kind::Double => update_f64(&buffers, factors),
                    _ => update_f32(&buffers, factors.rounded()),
                }
            } else {
                self.update_device(params, grad, range, factors.rounded())?;
            }
        }
        Ok(())
    }

    fn update_device(
        &mut self,
        params: &Tensor,
        grad: &Tensor,
        range: &Range<usize>,
        f: Factors<f32>,
    ) -> Result<(), TchError> {
        let part = |t: &Tensor| t.narrow(0, range.start as i64, range.len() as i64);
        let grad = part(grad) * f64::from(f.grad_factor);
        let (mut params, mut m, mut v) =
            (part(params), part(&self.exp_avg), part(&self.exp_avg_sq));
        let _ =
            m.f_mul_scalar_(f64::from(f.beta1))?.f_add_(&(&grad * f64::from(f.one_minus_beta1)))?;
        let _ = v
            .f_mul_scalar_(f64::from(f.beta2))?
            .f_add_(&(grad.square() * f64::from(f.one_minus_beta2)))?;
        let denominator = v.f_sqrt()? * f64::from(f.inverse_root_correction2) + f64::from(f.eps);
        let _ = params
            .f_mul_scalar_(f64::from(f.keep))?
            .f_sub_(&(m.f_div(&denominator)? * f64::from(f.step_size)))?;
        Ok(())
    }
}

fn host(t: &Tensor) -> HostBytes {
    HostBytes::of(t).expect("flat buffers are contiguous and on the CPU here")
}

fn update_f32([params, grad, m, v]: &[HostBytes; 4], factors: Factors<f32>) {
    adamw::update_f32(numbers_mut(params), numbers(grad), numbers_mut(m), numbers_mut(v), factors);
}

fn update_f64([params, grad, m, v]: &[HostBytes; 4], factors: Factors<f64>) {
    adamw::update_f64(numbers_mut(params), numbers(grad), numbers_mut(m), numbers_mut(v), factors);
}

fn numbers<T: bytemuck::Pod>(bytes: &HostBytes) -> &[T] {
    bytemuck::cast_slice(bytes.read(0..bytes.len()))
}

#[allow(clippy::mut_from_ref)] // as `HostBytes::write`
fn numbers_mut<T: bytemuck::Pod>(bytes: &HostBytes) -> &mut [T] {
    bytemuck::cast_slice_mut(bytes.write(0..bytes.len()))
}

/// Returns the factor that brings a gradient of norm `norm` down to `max_norm`; 1 when it is
/// already there or there is no limit. As `torch.nn.utils.clip_grad_norm_`.
pub fn clip_factor(norm: f64, max_norm: Option<f64>) -> f64 {
    match max_norm {
        Some(max_norm) => (max_norm / (norm + 1e-6)).min(1.0),
        None => 1.0,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const UPDATE: Update = Update {
        lr: 0.01,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-6,
        weight_decay: 0.1,
        grad_factor: 0.5,
        step: 0,
    };

    fn values(n: i64, frequency: f64) -> Tensor {
        (Tensor::arange(n, (Kind::Float, Device::Cpu)) * frequency).sin()
    }

    /// The definition, in f64, one operation a line.
    fn reference(steps: u64, n: i64, decay_until: i64) -> (Tensor, Tensor) {
        let mut param = values(n, 0.3).to_kind(Kind::Double);
        let mut m = param.zeros_like();
        let mut v = param.zeros_like();
        let decays = Tensor::arange(n, (Kind::Double, Device::Cpu)).lt(decay_until as f64);
        let decay = decays.to_kind(Kind::Double) * UPDATE.weight_decay;
        for t in 1..=steps {
            let grad = values(n, 0.7 * t as f64).to_kind(Kind::Double) * UPDATE.grad_factor;
            m = m * UPDATE.beta1 + &grad * (1.0 - UPDATE.beta1);
            v = v * UPDATE.beta2 + grad.square() * (1.0 - UPDATE.beta2);
            let m_hat = &m / (1.0 - UPDATE.beta1.powi(t as i32));
            let v_hat = &v / (1.0 - UPDATE.beta2.powi(t as i32));
            param = &param - &param * &decay * UPDATE.lr;
            param -= m_hat / (v_hat.sqrt() + UPDATE.eps) * UPDATE.lr;
        }
        (param, v)
    }

    fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
        (a.to_kind(Kind::Double) - b).abs().max().double_value(&[])
    }

    #[test]
    fn the_flat_update_equals_the_definition_and_decays_only_its_range() {
        let n = 1003; // odd, so that vector loops have a tail
        let param = values(n, 0.3);
        let mut adamw = AdamW::like(&param);
        let ranges = [(0..400, true), (400..n as usize, false)];
        for step in 1..=5 {
            let grad = values(n, 0.7 * step as f64);
            adamw.apply(&param, &grad, &ranges, Update { step, ..UPDATE }).unwrap();
        }
        let (expected, expected_v) = reference(5, n, 400);
        assert!(largest_difference(&param, &expected) < 1e-6);
        assert!(largest_difference(&adamw.exp_avg_sq, &expected_v) < 1e-6);
    }

    #[test]
    fn in_f64_the_update_equals_the_definition_to_the_last_digits() {
        let n = 103;
        let param = values(n, 0.3).to_kind(Kind::Double);
        let mut adamw = AdamW::like(&param);
        for step in 1..=5 {
            let grad = values(n, 0.7 * step as f64).to_kind(Kind::Double);
            let ranges = [(0..40, true), (40..n as usize, false)];
            adamw.apply(&param, &grad, &ranges, Update { step, ..UPDATE }).unwrap();
        }
        let (expected, expected_v) = reference(5, n, 40);
        assert!(largest_difference(&param, &expected) < 1e-14);
        assert!(largest_difference(&adamw.exp_avg_sq, &expected_v) < 1e-14);
    }

    #[test]
    fn the_device_form_equals_the_host_form() {
        let n = 129;
        let (host_param, device_param) = (values(n, 0.3), values(n, 0.3));
        let mut host_state = AdamW::like(&host_param);
        let mut device_state = AdamW::like(&device_param);
        for step in 1..=3 {
            let grad = values(n, 0.7 * step as f64);
            let update = Update { step, ..UPDATE };
            host_state.apply(&host_param, &grad, &[(0..n as usize, true)], update).unwrap();
            let whole = 0..n as usize;
            let factors = Factors::new(update).rounded();
            device_state.update_device(&device_param, &grad, &whole, factors).unwrap();
        }
        let difference = largest_difference(&host_param, &device_param.to_kind(Kind::Double));
        assert!(difference < 1e-6, "{difference:e}");
    }

    #[test]
    fn clipping_leaves_small_gradients_alone() {
        assert_eq!(clip_factor(0.5, Some(1.0)), 1.0);
        assert_eq!(clip_factor(7.0, None), 1.0);
        assert!((clip_factor(4.0, Some(1.0)) * 4.0 - 1.0).abs() < 1e-5);
    }
}
