//! The matrix products of a tile, and how large a tile is.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::Error;

/// How the pair matrix is divided; part of the numeric plan, since it fixes the order of additions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// Text rows that travel together round the ring, and columns of a tile.
    pub sub_chunk: usize,
    /// Image rows of a tile.
    pub image_rows: usize,
}

impl Tiling {
    /// Text rows that travel together unless told otherwise.
    pub const SUB_CHUNK: usize = 256;

    /// Returns the tiling for `device`: a tile of f32 logits takes half a core's second-level
    /// cache on a CPU, and on a GPU as much as fills it with work.
    ///
    /// `sub_chunk` and `image_rows` of 0 mean: choose.
    pub fn choose(device: Device, sub_chunk: usize, image_rows: usize) -> Self {
        let (columns, elements) = match device {
            Device::Cpu => (Self::SUB_CHUNK, second_level_cache() / 2 / size_of::<f32>()),
            _ => (8192, 8192 * 8192),
        };
        let sub_chunk = if sub_chunk == 0 { columns } else { sub_chunk };
        let chosen = (elements / sub_chunk).next_power_of_two().clamp(64, 8192);
        Self { sub_chunk, image_rows: if image_rows == 0 { chosen } else { image_rows } }
    }
}

/// Bytes of a core's second-level cache; 1 MiB where the kernel does not say.
fn second_level_cache() -> usize {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index2/size");
    let parsed = text.ok().and_then(|text| {
        let text = text.trim();
        let kib = text.strip_suffix('K').and_then(|k| k.parse::<usize>().ok());
        let mib = text.strip_suffix('M').and_then(|m| m.parse::<usize>().ok());
        kib.map(|k| k << 10).or(mib.map(|m| m << 20))
    });
    parsed.unwrap_or(1 << 20).clamp(256 << 10, 4 << 20)
}

/// Memory for one tile of dot products, used for every tile of a call.
pub(super) struct Tile {
    buffer: Tensor,
}

impl Tile {
    pub(super) fn new(
        rows: usize,
        columns: usize,
        kind: Kind,
        device: Device,
    ) -> Result<Self, Error> {
        Ok(Self { buffer: Tensor::f_empty([(rows * columns) as i64], (kind, device))? })
    }

    /// Returns X Yᵀ, in this tile's memory. Shapes: `[n, d]`, `[m, d]` → `[n, m]`.
    pub(super) fn dot_products(&self, image: &Tensor, text: &Tensor) -> Result<Tensor, Error> {
        let (n, m) = (image.size()[0], text.size()[0]);
        let out = self.buffer.narrow(0, 0, n * m).view([n, m]);
        dot_products_into(&out, image, text)?;
        Ok(out)
    }
}

/// `out` = X Yᵀ. Shapes: `[n, d]`, `[m, d]` → `[n, m]`, f32 or f64.
pub(crate) fn dot_products_into(
    out: &Tensor,
    image: &Tensor,
    text: &Tensor,
) -> Result<(), tch::TchError> {
    let _ = image.f_mm_out(out, &text.tr())?;
    Ok(())
}

/// `sum` += W Y, or `sum` = W Y where nothing has been added yet. Shapes: `[n, m]`, `[m, d]` → `[n, d]`.
pub(crate) fn multiply_into(
    sum: &mut Tensor,
    weights: &Tensor,
    rows: &Tensor,
    first: bool,
) -> Result<(), tch::TchError> {
    let _ = match first {
        true => weights.f_mm_out(sum, rows)?,
        false => sum.f_addmm_(weights, rows)?,
    };
    Ok(())
}

/// Rows in the dtype of the sums: themselves, or one tile's worth converted.
pub(crate) fn widened(rows: &Tensor, kind: Kind) -> Tensor {
    if rows.kind() == kind { rows.shallow_clone() } else { rows.to_kind(kind) }
}

/// Consecutive ranges of at most `step` rows that cover `rows`.
pub(super) fn ranges(rows: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(step.max(1)).map(move |start| start..rows.min(start + step))
}
