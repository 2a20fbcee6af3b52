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

    /// Its code on the wire, 1 to 15.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::F32 => 1,
            Self::F64 => 2,
            Self::Bf16 => 3,
            Self::I64 => 4,
        }
    }

    /// The dtype of a code on the wire.
    pub(super) fn from_code(code: u8) -> Option<Self> {
        [Self::F32, Self::F64, Self::Bf16, Self::I64].into_iter().find(|d| d.code() == code)
    }

    pub(super) fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F64 | Self::I64 => 8,
            Self::Bf16 => 2,
        }
    }
}

/// Where the sum of the parts folded so far lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sum {
    /// There is none yet.
    Nowhere,
    /// In `Reduction::sum`, or for bf16 in `Reduction::wide`.
    Aside,
    /// In the destination.
    InPlace,
}

/// The reduction of one block at a time, part by part in rank order, without copies: the first
/// part becomes the sum, and a rank's own part is read, and from then on added to, where it lies.
pub(super) struct Reduction {
    dtype: Dtype,
    op: ReduceOp,
    state: Sum,
    /// Backed by u64, so aligned for every dtype.
    sum: Vec<u64>,
    part: Vec<u64>,
    /// bf16 accumulates here in f32 and is rounded once.
    wide: Vec<f32>,
}

impl Reduction {
    /// Prepares for blocks of up to `len` bytes.
    pub(super) fn new(dtype: Dtype, op: ReduceOp, len: usize) -> Self {
        let words = len.div_ceil(8);
        let (sum, part) = (vec![0; words], vec![0; words]);
        Self { dtype, op, state: Sum::Nowhere, sum, part, wide: Vec::new() }
    }

    /// Returns where the next part of `len` bytes is to be received.
    pub(super) fn part(&mut self, len: usize) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.part)[..len]
    }

    /// Folds the received part, which is as long as `to`, the place of the result.
    pub(super) fn fold_part(&mut self, to: &mut [u8]) {
        let part: &[u8] = &bytemuck::cast_slice(&self.part)[..to.len()];
        if self.dtype == Dtype::Bf16 {
            widen(self.op, self.state, &mut self.wide, part);
            self.state = Sum::Aside;
            return;
        }
        match self.state {
            Sum::Nowhere => {
                std::mem::swap(&mut self.sum, &mut self.part);
                self.state = Sum::Aside;
            }
            Sum::Aside => {
                let sum = &mut bytemuck::cast_slice_mut(&mut self.sum)[..to.len()];
                fold(self.dtype, self.op, sum, part);
            }
            Sum::InPlace => fold(self.dtype, self.op, to, part),
        }
    }

    /// Folds this rank's own part: `None` if it already lies in `to`.
    pub(super) fn fold_own(&mut self, own: Option<&[u8]>, to: &mut [u8]) {
        if self.dtype == Dtype::Bf16 {
            widen(self.op, self.state, &mut self.wide, own.unwrap_or(to));
            self.state = Sum::Aside;
            return;
        }
        let sum: &[u8] = &bytemuck::cast_slice(&self.sum)[..to.len()];
        match (self.state, own) {
            (Sum::Aside, None) => fold_earlier(self.dtype, self.op, to, sum),
            (Sum::Aside, Some(own)) => {
                to.copy_from_slice(own);
                fold_earlier(self.dtype, self.op, to, sum);
            }
            (_, Some(own)) => to.copy_from_slice(own),
            (_, None) => {}
        }
        self.state = Sum::InPlace;
    }

    /// Leaves the result in `to`; every rank's part has been folded.
    pub(super) fn finish(&mut self, to: &mut [u8]) {
        if self.dtype == Dtype::Bf16 {
            let to: &mut [bf16] = bytemuck::cast_slice_mut(to);
            for (to, wide) in to.iter_mut().zip(&self.wide) {
                *to = bf16::from_f32(*wide);
            }
        }
        self.state = Sum::Nowhere;
    }
}

fn widen(op: ReduceOp, state: Sum, wide: &mut Vec<f32>, part: &[u8]) {
    let part: &[bf16] = bytemuck::cast_slice(part);
    if state == Sum::Nowhere {
        wide.clear();
        wide.extend(part.iter().map(|v| v.to_f32()));
        return;
    }
    match op {
        ReduceOp::Sum => zip(wide, part, |sum, part| sum + part.to_f32()),
        ReduceOp::Max => zip(wide, part, |sum, part| sum.larger(part.to_f32())),
    }
}

/// sum = sum ∘ part
fn fold(dtype: Dtype, op: ReduceOp, sum: &mut [u8], part: &[u8]) {
    match dtype {
        Dtype::F32 => fold_as::<f32>(op, sum, part),
        Dtype::F64 => fold_as::<f64>(op, sum, part),
        Dtype::I64 => fold_as::<i64>(op, sum, part),
        Dtype::Bf16 => unreachable!("bf16 is folded in f32"),
    }
}

/// own = earlier ∘ own: the order of the ranks, which decides where a maximum is 0 and −0.
fn fold_earlier(dtype: Dtype, op: ReduceOp, own: &mut [u8], earlier: &[u8]) {
    match dtype {
        Dtype::F32 => fold_earlier_as::<f32>(op, own, earlier),
        Dtype::F64 => fold_earlier_as::<f64>(op, own, earlier),
        Dtype::I64 => fold_earlier_as::<i64>(op, own, earlier),
        Dtype::Bf16 => unreachable!("bf16 is folded in f32"),
    }
}

fn fold_as<T: Number>(op: ReduceOp, sum: &mut [u8], part: &[u8]) {
    let (sum, part): (&mut [T], &[T]) = (bytemuck::cast_slice_mut(sum), bytemuck::cast_slice(part));
    match op {
        ReduceOp::Sum => zip(sum, part, T::plus),
        ReduceOp::Max => zip(sum, part, T::larger),
    }
}

fn fold_earlier_as<T: Number>(op: ReduceOp, own: &mut [u8], earlier: &[u8]) {
    let (own, earlier): (&mut [T], &[T]) =
        (bytemuck::cast_slice_mut(own), bytemuck::cast_slice(earlier));
    match op {
        ReduceOp::Sum => zip(own, earlier, |own, earlier| earlier.plus(own)),
        ReduceOp::Max => zip(own, earlier, |own, earlier| earlier.larger(own)),
    }
}

/// One plain loop per operation, which the compiler turns into vector instructions.
fn zip<A: Copy, B: Copy>(to: &mut [A], from: &[B], combine: impl Fn(A, B) -> A) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = combine(*to, *from);
    }
}

trait Number: bytemuck::Pod {
    fn plus(self, other: Self) -> Self;
    /// A NaN on either side makes the result NaN.
    fn larger(self, other: Self) -> Self;
}

macro_rules! float {
    ($float:ty) => {
        impl Number for $float {
            #[inline]
            fn plus(self, other: Self) -> Self {
                self + other
            }
            #[inline]
            fn larger(self, other: Self) -> Self {
                if self.is_nan() || self > other { self } else { other }
            }
        }
    };
}
float!(f32);
float!(f64);

impl Number for i64 {
    #[inline]
    fn plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
    #[inline]
    fn larger(self, other: Self) -> Self {
        self.max(other)
    }
}
