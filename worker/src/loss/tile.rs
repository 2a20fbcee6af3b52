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
        // Rounded down to a power of two.
        let chosen = 1_usize << (elements / sub_chunk).clamp(64, 8192).ilog2();
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
    /// f32, or f64 for f64 embeddings.
    products: Tensor,
    /// On a GPU with bf16 embeddings, the weights once more in bf16, for the matrix units.
    low: Option<Tensor>,
}

impl Tile {
    /// A tile for embeddings of dtype `kind`.
    ///
    /// Without `products` the caller has memory of its own for these.
    pub(super) fn new(
        rows: usize,
        columns: usize,
        kind: Kind,
        device: Device,
        products: bool,
    ) -> Result<Self, Error> {
        let elements = [(rows * columns) as i64];
        let low = device != Device::Cpu && kind == Kind::BFloat16;
        Ok(Self {
            products: Tensor::f_empty(
                if products { elements } else { [0] },
                (sum_kind(kind), device),
            )?,
            low: low.then(|| Tensor::f_empty(elements, (kind, device))).transpose()?,
        })
    }

    /// Returns X Yᵀ, in this tile's memory. Shapes: `[n, d]`, `[m, d]` → `[n, m]`.
    pub(super) fn dot_products(&self, image: &Tensor, text: &Tensor) -> Result<Tensor, Error> {
        let (n, m) = (image.size()[0], text.size()[0]);
        let out = self.products.narrow(0, 0, n * m).view([n, m]);
        dot_products_into(&out, image, text)?;
        Ok(out)
    }

    /// Returns X Yᵀ in memory of its own.
    pub(super) fn own_dot_products(image: &Tensor, text: &Tensor) -> Result<Tensor, Error> {
        let shape = [image.size()[0], text.size()[0]];
        let out = Tensor::f_empty(shape, (sum_kind(image.kind()), image.device()))?;
        dot_products_into(&out, image, text)?;
        Ok(out)
    }

    /// Where the weights of these products also go in bf16, if they do.
    pub(super) fn low(&self, products: &Tensor) -> Option<Tensor> {
        let shape = products.size();
        self.low.as_ref().map(|low| low.narrow(0, 0, shape[0] * shape[1]).view(shape.as_slice()))
    }
}

/// dtype in which products of `kind` are summed.
pub(super) fn sum_kind(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

/// `out` = X Yᵀ. Shapes: `[n, d]`, `[m, d]` → `[n, m]`; `out` f32 or f64, operands as [`operand`]
/// returns them.
pub fn dot_products_into(out: &Tensor, image: &Tensor, text: &Tensor) -> Result<(), tch::TchError> {
    let _ = if image.kind() == out.kind() {
        image.f_mm_out(out, &text.tr())?
    } else {
        // bf16 factors, products summed and left in f32; CUDA only.
        image.f_mm_dtype_out(out, &text.tr(), out.kind())?
    };
    Ok(())
}

/// `sum` += W Y, or `sum` = W Y where nothing has been added yet. Shapes: `[n, m]`, `[m, d]` → `[n, d]`.
pub fn multiply_into(
    sum: &mut Tensor,
    weights: &Tensor,
    rows: &Tensor,
    first: bool,
) -> Result<(), tch::TchError> {
    let _ = match (first, rows.kind() == sum.kind()) {
        (true, true) => weights.f_mm_out(sum, rows)?,
        (false, true) => sum.f_addmm_(weights, rows)?,
        (true, false) => weights.f_mm_dtype_out(sum, rows, sum.kind())?,
        (false, false) => sum.f_addmm_dtype_out(sum, weights, rows, sum.kind())?,
    };
    Ok(())
}

/// Embeddings as the products take them: a CPU multiplies in the dtype of the sums (a tile's worth
/// is converted), a GPU multiplies bf16 as it is.
pub fn operand(rows: &Tensor, kind: Kind) -> Result<Tensor, tch::TchError> {
    match rows.device() {
        Device::Cpu if rows.kind() != kind => rows.f_to_kind(kind),
        _ => Ok(rows.shallow_clone()),
    }
}

/// Consecutive ranges of at most `step` rows that cover `rows`.
pub(super) fn ranges(rows: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(step.max(1)).map(move |start| start..rows.min(start + step))
}
