//! Tensors of files and of checkpoints, and how they are written into flat buffers.

use std::ops::Range;

use ringmaster_checkpoint::{Dtype, Values};
use ringmaster_weights as weights;
use tch::{Kind, Tensor};

use crate::ffi::memory::HostBytes;

/// Elements of a stored tensor that are turned into a libtorch tensor at once.
const PUT_ELEMENTS: usize = 1 << 20;

/// A tensor that may become a parameter.
pub trait Loadable {
    /// Returns its shape; empty for a scalar.
    fn extents(&self) -> Vec<i64>;

    /// Returns its values, row-major, as f32; others are rounded.
    fn rounded(&self) -> Vec<f32>;

    /// Writes its values into a flat buffer from `offset` on, in whatever dtype the buffer has.
    fn put(&self, buffer: &Tensor, offset: usize);
}

/// Of a file; what is wider than f32 there is rounded.
impl Loadable for weights::Tensor {
    fn extents(&self) -> Vec<i64> {
        self.shape().iter().map(|size| *size as i64).collect()
    }

    fn rounded(&self) -> Vec<f32> {
        self.to_f32()
    }

    fn put(&self, buffer: &Tensor, offset: usize) {
        put(buffer, offset, &self.to_f32());
    }
}

/// Of a checkpoint. Its f64 stays f64, unless it is resized: that is done in f32.
impl Loadable for Values<'_> {
    fn extents(&self) -> Vec<i64> {
        self.shape()
    }

    fn rounded(&self) -> Vec<f32> {
        self.to_f32()
    }

    fn put(&self, buffer: &Tensor, offset: usize) {
        let (kind, width) = match self.dtype() {
            Dtype::F64 => (Kind::Double, 8),
            _ => (Kind::Float, 4),
        };
        let place = part(buffer, offset..offset + self.numel());
        if place.kind() == kind
            && let Ok(host) = HostBytes::of(&place)
        {
            return self.copy_bytes(0, host.write(0..host.len()));
        }
        let mut bytes = vec![0; self.numel().min(PUT_ELEMENTS) * width];
        for first in (0..self.numel()).step_by(PUT_ELEMENTS) {
            let len = PUT_ELEMENTS.min(self.numel() - first);
            let bytes = &mut bytes[..len * width];
            self.copy_bytes(first * width, bytes);
            let values = Tensor::from_data_size(bytes, &[len as i64], kind);
            part(&place, first..first + len).copy_(&values);
        }
    }
}

/// Writes values into a flat buffer from `offset` on, in whatever dtype the buffer has.
pub(super) fn put(buffer: &Tensor, offset: usize, values: &[f32]) {
    part(buffer, offset..offset + values.len()).copy_(&Tensor::from_slice(values));
}

fn part(buffer: &Tensor, range: Range<usize>) -> Tensor {
    buffer.narrow(0, range.start as i64, range.len() as i64)
}
