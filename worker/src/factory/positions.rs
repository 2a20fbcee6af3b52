//! Position embeddings for another number of positions.

use tch::{Kind, Tensor};

/// Returns an image tower's positions for a grid of `grid` × `grid` patches: bicubic, antialiased,
/// as OpenCLIP and timm; `prefix` positions before the grid stay. None where the given ones are no
/// square grid. Shapes: [T, W] -> [grid² + prefix, W].
pub(super) fn of_image(positions: &Tensor, prefix: i64, grid: i64) -> Option<Tensor> {
    let (count, width) = positions.size2().ok()?;
    let patches = count - prefix;
    let side = (patches as f64).sqrt().round() as i64;
    if patches < 1 || side * side != patches {
        return None;
    }
    let image = positions.narrow(0, prefix, patches).view([1, side, side, width]);
    let image = image.permute([0, 3, 1, 2]); // [1, W, side, side]
    let resized = image.internal_upsample_bicubic2d_aa([grid, grid], false, None, None);
    let resized = resized.permute([0, 2, 3, 1]).reshape([grid * grid, width]);
    Some(Tensor::cat(&[positions.narrow(0, 0, prefix), resized], 0).to_kind(Kind::Float))
}

/// Returns a text tower's positions for `length` tokens, interpolated linearly, as OpenCLIP.
/// Shapes: [L, W] -> [length, W].
pub(super) fn of_text(positions: &Tensor, length: i64) -> Option<Tensor> {
    let (count, width) = positions.size2().ok()?;
    let line = positions.view([1, count, width]).permute([0, 2, 1]); // [1, W, L]
    let resized = line.upsample_linear1d([length], false, None);
    Some(resized.permute([0, 2, 1]).reshape([length, width]))
}
