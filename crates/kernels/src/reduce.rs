//! Adding and comparing blocks of numbers, in the dtypes a collective carries.

use half::bf16;

/// How an all-reduce combines elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReduceOp {
    /// Sum; integers wrap. Over tcp in rank order, bf16 accumulating in f32; NCCL sums in the order
    /// of its algorithm and rounds each partial sum.
    Sum,
    /// Maximum; a NaN anywhere makes the result NaN.
    Max,
}

/// Element types of a collective.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// `torch.float32`.
    F32,
    /// `torch.float64`.
    F64,
    /// `torch.bfloat16`; combined in f32 and rounded once.
    Bf16,
    /// `torch.int64`.
    I64,
}

impl Dtype {
    /// Its code on the wire, 1 to 15.
    pub fn code(self) -> u8 {
        match self {
            Self::F32 => 1,
            Self::F64 => 2,
            Self::Bf16 => 3,
            Self::I64 => 4,
        }
    }

    /// The dtype of a code on the wire.
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::F32, Self::F64, Self::Bf16, Self::I64].into_iter().find(|d| d.code() == code)
    }

    /// Bytes of an element.
    pub fn size(self) -> usize {
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
pub struct Reduction {
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
    pub fn new(dtype: Dtype, op: ReduceOp, len: usize) -> Self {
        let words = len.div_ceil(8);
        let (sum, part) = (vec![0; words], vec![0; words]);
        Self { dtype, op, state: Sum::Nowhere, sum, part, wide: Vec::new() }
    }

    /// Returns where the next part of `len` bytes is to be received.
    pub fn part(&mut self, len: usize) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.part)[..len]
    }

    /// Folds the received part, which is as long as `to`, the place of the result.
    pub fn fold_part(&mut self, to: &mut [u8]) {
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
    pub fn fold_own(&mut self, own: Option<&[u8]>, to: &mut [u8]) {
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
    pub fn finish(&mut self, to: &mut [u8]) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Folds the parts of ranks in order, the one at `own` lying in the destination already.
    fn reduced<T: bytemuck::Pod>(
        dtype: Dtype,
        op: ReduceOp,
        parts: &[Vec<T>],
        own: usize,
    ) -> Vec<T> {
        let mut to = parts[own].clone();
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut to);
        let mut reduction = Reduction::new(dtype, op, bytes.len());
        for (rank, part) in parts.iter().enumerate() {
            if rank == own {
                reduction.fold_own(None, bytes);
            } else {
                reduction.part(bytes.len()).copy_from_slice(bytemuck::cast_slice(part));
                reduction.fold_part(bytes);
            }
        }
        reduction.finish(bytes);
        to
    }

    #[test]
    fn parts_are_added_in_the_order_of_ranks_wherever_ones_own_lies() {
        // Of odd length, and of values whose sum depends on the order.
        let part = |rank: i32| {
            (0..37).map(|i| ((i * 7 + rank * 3) as f32).sin() * 10_f32.powi(2 * rank)).collect()
        };
        let parts: Vec<Vec<f32>> = (0..4).map(part).collect();
        let expected: Vec<f32> = (0..37)
            .map(|i| parts.iter().map(|part| part[i]).reduce(|a, b| a + b).unwrap_or(0.0))
            .collect();
        for own in 0..4 {
            assert_eq!(reduced(Dtype::F32, ReduceOp::Sum, &parts, own), expected, "{own}");
        }
    }

    #[test]
    fn a_nan_anywhere_is_the_maximum() {
        let parts = [vec![1.0, f64::NAN, 3.0], vec![2.0, 1.0, -1.0], vec![0.0, 5.0, f64::NAN]];
        for own in 0..3 {
            let most = reduced(Dtype::F64, ReduceOp::Max, &parts, own);
            assert!(most[0] == 2.0 && most[1].is_nan() && most[2].is_nan(), "{own} {most:?}");
        }
    }

    #[test]
    fn bf16_is_added_in_f32_and_rounded_once() {
        // 1 + 2⁻⁸ rounds to 1 in bf16: three of them are lost one by one, and seen together.
        let small = bf16::from_f32(1.0 / 256.0);
        let parts = [vec![bf16::ONE], vec![small], vec![small], vec![small]];
        let sum = reduced(Dtype::Bf16, ReduceOp::Sum, &parts, 0);
        assert_eq!(sum, [bf16::from_f32(1.0 + 3.0 / 256.0)]);
    }

    #[test]
    fn integers_wrap() {
        let parts = [vec![i64::MAX], vec![1]];
        assert_eq!(reduced(Dtype::I64, ReduceOp::Sum, &parts, 1), [i64::MIN]);
    }
}
