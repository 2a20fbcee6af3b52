//! From images to tokens: patches, a class token, positions.

use tch::{Device, Tensor};

use super::super::clip::Mode;
use super::super::compute::Compute;
use super::super::packing::Packing;
use super::super::text::look_up;
use super::patches;

/// What turns an image into tokens.
#[derive(Debug)]
pub(super) struct Embed {
    pub(super) patch_size: i64,
    pub(super) grid: i64,
    pub(super) width: i64,
    /// Share of patches dropped in training.
    pub(super) dropout: f64,
    /// Shape: [W, 3, p, p].
    pub(super) filters: Tensor,
    /// Shape: [W].
    pub(super) bias: Option<Tensor>,
    /// The class token, of any shape that holds W values.
    pub(super) class: Option<Tensor>,
    /// Positions, of the class token first; any shape that holds [T, W].
    pub(super) positions: Tensor,
}

impl Embed {
    /// Returns the tokens of every image as rows, the class token first, and how they lie.
    ///
    /// Shapes: images [N, 3, H, H] -> [N·T, W] in the stream's kind.
    pub(super) fn forward(
        &self,
        images: &Tensor,
        mode: &Mode<'_>,
        compute: &Compute,
    ) -> (Tensor, Packing) {
        let (width, batch) = (self.width, images.size()[0]);
        let patches = self.grid * self.grid;
        let prefix = i64::from(self.class.is_some());
        let positions = self.positions.view([patches + prefix, width]);
        let kept = patches::kept(mode, patches, self.dropout);
        let rows = patches::patchify(&images.to_kind(compute.product), self.patch_size, self.grid);
        let filters = self.filters.view([width, 3 * self.patch_size * self.patch_size]);
        let bias = self.bias.as_ref();
        let mut tokens = match &kept {
            None => {
                let embedded = compute.linear(&rows, &filters, bias).view([batch, patches, width]);
                embedded + positions.narrow(0, prefix, patches)
            }
            Some(kept) => {
                let (rows_kept, places) = places(kept, patches, prefix, compute.device);
                let embedded = compute.linear(&rows.index_select(0, &rows_kept), &filters, bias);
                let embedded = embedded + look_up(&positions, &places, false);
                embedded.view([batch, rows_kept.size()[0] / batch, width])
            }
        }; // [N, kept, W]
        if let Some(class) = &self.class {
            let class = class.view([width]) + positions.select(0, 0);
            tokens = Tensor::cat(&[class.expand([batch, 1, width], false), tokens], 1);
        }
        let length = tokens.size()[1];
        let packing = Packing::uniform(batch, length, compute.device);
        (tokens.view([batch * length, width]), packing)
    }
}

/// Returns, for each kept patch, its row among all patches of the batch and its position.
/// Shapes: two of [N·kept] i64.
fn places(kept: &[Vec<i64>], patches: i64, prefix: i64, device: Device) -> (Tensor, Tensor) {
    let (mut rows, mut positions) = (Vec::new(), Vec::new());
    for (numbers, image) in kept.iter().zip(0..) {
        rows.extend(numbers.iter().map(|number| image * patches + number));
        positions.extend(numbers.iter().map(|number| number + prefix));
    }
    let tensor = |places: &[i64]| Tensor::from_slice(places).to_device(device);
    (tensor(&rows), tensor(&positions))
}

/// Returns the mean of each image's patches. Shapes: tokens [N·T, W] -> [N, W].
pub(super) fn mean_of_patches(tokens: &Tensor, packing: &Packing, prefix: i64) -> Tensor {
    let group = &packing.groups()[0];
    let tokens = tokens.view([group.rows, group.len, -1]);
    tokens.narrow(1, prefix, group.len - prefix).mean_dim([1_i64].as_slice(), false, None)
}
