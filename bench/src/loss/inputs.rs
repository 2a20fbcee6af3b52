//! Embeddings that any program can make again, and sums by which gradients compare.

use tch::{Device, Kind, Tensor};

/// One rank's rows of both sides. Shapes `[b, d]`.
pub(super) struct Shares {
    pub(super) image: Tensor,
    pub(super) text: Tensor,
}

impl Shares {
    /// Rows `start..start + rows` of the global batch.
    pub(super) fn new(
        start: i64,
        rows: i64,
        dim: i64,
        spread: f64,
        kind: Kind,
        device: Device,
    ) -> Self {
        let waves = |make: fn(&Tensor, &Tensor) -> Tensor| {
            let first = unit_rows(&make(&rows_from(0, 1), &columns(dim)));
            // Some rows at a time: f64 temporaries of a large batch would outweigh the loss.
            let parts: Vec<Tensor> = (0..rows)
                .step_by(1024)
                .map(|from| {
                    let count = 1024.min(rows - from);
                    let own = unit_rows(&make(&rows_from(start + from, count), &columns(dim)));
                    let mixed = if spread == 1.0 { own } else { &first + (own - &first) * spread };
                    unit_rows(&mixed).to_kind(kind)
                })
                .collect();
            Tensor::cat(&parts, 0).to_device(device)
        };
        Self {
            image: waves(|i, j| (i * 0.37 + j * 1.3 + i * j * 0.11).sin()),
            text: waves(|i, j| (i * 0.23 - j * 0.7 + i * j * 0.13).cos()),
        }
    }
}

/// Σ |g| and Σ sin(i + 2 j) g[i,j] over the global row i.
pub(super) fn sums(grad: &Tensor, start: i64) -> (f64, f64) {
    let (rows, dim) = (grad.size()[0], grad.size()[1]);
    let (mut absolute, mut wave) = (0.0, 0.0);
    for from in (0..rows).step_by(1024) {
        let count = 1024.min(rows - from);
        let part = grad.narrow(0, from, count).to_device(Device::Cpu).to_kind(Kind::Double);
        let phase = rows_from(start + from, count) + columns(dim) * 2.0;
        absolute += part.abs().sum(Kind::Double).double_value(&[]);
        wave += (part * phase.sin()).sum(Kind::Double).double_value(&[]);
    }
    (absolute, wave)
}

fn rows_from(start: i64, count: i64) -> Tensor {
    let options = (Kind::Double, Device::Cpu);
    Tensor::arange_start(start, start + count, options).unsqueeze(1) // [n, 1]
}

fn columns(dim: i64) -> Tensor {
    Tensor::arange(dim, (Kind::Double, Device::Cpu)).unsqueeze(0) // [1, d]
}

fn unit_rows(rows: &Tensor) -> Tensor {
    rows / rows.norm_scalaropt_dim(2.0, [1_i64].as_slice(), true)
}
