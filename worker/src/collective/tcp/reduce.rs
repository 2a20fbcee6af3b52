//! Adding and comparing blocks of numbers, in the dtypes a collective carries.

use half::bf16;
use tch::Kind;

use super::super::ReduceOp;

/// Element types of a collective.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dtype {
    F32,
    F64,
    Bf16,
    I64,
}

impl Dtype {
    /// The dtype of a tensor that `HostBytes::of` accepted.
    pub(super) fn of(kind: Kind) -> Self {
        match kind {
            Kind::Double => Self::F64,
            Kind::BFloat16 => Self::Bf16,
            Kind::Int64 => Self::I64,
            _ => Self::F32,
        }
    }

    pub(super) fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F64 | Self::I64 => 8,
            Self::Bf16 => 2,
        }
    }
}

/// An accumulator for one block: `start` with rank 0's part, `add` the others in rank order.
pub(super) struct Accumulator {
    dtype: Dtype,
    op: ReduceOp,
    /// bf16 accumulates here in f32 and is rounded once.
    wide: Vec<f32>,
}

impl Accumulator {
    pub(super) fn new(dtype: Dtype, op: ReduceOp) -> Self {
        Self { dtype, op, wide: Vec::new() }
    }

    /// Sets `sum` to `part`.
    pub(super) fn start(&mut self, sum: &mut [u8], part: &[u8]) {
        match self.dtype {
            Dtype::Bf16 => {
                self.wide.clear();
                self.wide.extend(bytemuck::cast_slice::<u8, bf16>(part).iter().map(|v| v.to_f32()));
            }
            _ => sum.copy_from_slice(part),
        }
    }

    /// Combines `part` into `sum`.
    pub(super) fn add(&mut self, sum: &mut [u8], part: &[u8]) {
        match self.dtype {
            Dtype::F32 => fold(self.op, cast(sum), bytemuck::cast_slice::<u8, f32>(part)),
            Dtype::F64 => fold(self.op, cast(sum), bytemuck::cast_slice::<u8, f64>(part)),
            Dtype::I64 => fold(self.op, cast(sum), bytemuck::cast_slice::<u8, i64>(part)),
            Dtype::Bf16 => {
                let part = bytemuck::cast_slice::<u8, bf16>(part);
                for (sum, part) in self.wide.iter_mut().zip(part) {
                    *sum = f32::combine(self.op, *sum, part.to_f32());
                }
            }
        }
    }

    /// Leaves the result in `sum`.
    pub(super) fn finish(&mut self, sum: &mut [u8]) {
        if self.dtype == Dtype::Bf16 {
            let out: &mut [bf16] = cast(sum);
            for (out, wide) in out.iter_mut().zip(&self.wide) {
                *out = bf16::from_f32(*wide);
            }
        }
    }
}

fn cast<T: bytemuck::Pod>(bytes: &mut [u8]) -> &mut [T] {
    bytemuck::cast_slice_mut(bytes)
}

trait Combine: Copy {
    fn combine(op: ReduceOp, a: Self, b: Self) -> Self;
}

macro_rules! combine_float {
    ($float:ty) => {
        impl Combine for $float {
            #[inline]
            fn combine(op: ReduceOp, a: Self, b: Self) -> Self {
                match op {
                    ReduceOp::Sum => a + b,
                    ReduceOp::Max if a.is_nan() || a > b => a,
                    ReduceOp::Max => b,
                }
            }
        }
    };
}
combine_float!(f32);
combine_float!(f64);

impl Combine for i64 {
    #[inline]
    fn combine(op: ReduceOp, a: Self, b: Self) -> Self {
        match op {
            ReduceOp::Sum => a.wrapping_add(b),
            ReduceOp::Max => a.max(b),
        }
    }
}

fn fold<T: Combine>(op: ReduceOp, sum: &mut [T], part: &[T]) {
    for (sum, part) in sum.iter_mut().zip(part) {
        *sum = T::combine(op, *sum, *part);
    }
}
