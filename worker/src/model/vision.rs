//! The image tower: OpenCLIP's `VisionTransformer`.

use ringmaster_manifest::model_config::{ModelConfig, VisionConfig, VisionPool};
use tch::{Device, Tensor};

use super::clip::Mode;
use super::layers::{Block, Compute, LayerNorm, parameter, pooled_by_last};
use super::packing::Packing;
use super::params::Params;
use super::{Error, patches, shapes};

/// ViT with a class token.
#[derive(Debug)]
pub(super) struct ImageTower {
    config: VisionConfig,
    class_embedding: Tensor,
    positional_embedding: Tensor,
    conv1: Tensor,
    ln_pre: Option<LayerNorm>,
    blocks: Vec<Block>,
    ln_post: LayerNorm,
    proj: Tensor,
}

impl ImageTower {
    /// Takes the parameters under `visual.`.
    pub(super) fn new(config: &ModelConfig, params: &Params) -> Self {
        let config = config.vision_cfg.clone();
        let heads = config.width / config.head_width;
        let block = |index| format!("visual.transformer.resblocks.{index}");
        Self {
            class_embedding: parameter(params, "visual.class_embedding"),
            positional_embedding: parameter(params, "visual.positional_embedding"),
            conv1: parameter(params, "visual.conv1.weight"),
            ln_pre: (!config.no_ln_pre).then(|| LayerNorm::new(params, "visual.ln_pre")),
            blocks: (0..config.layers).map(|i| Block::new(params, &block(i), heads)).collect(),
            ln_post: LayerNorm::new(params, "visual.ln_post"),
            proj: parameter(params, "visual.proj"),
            config,
        }
    }

    /// Shapes: images [N, 3, H, H] -> [N, E].
    pub(super) fn forward(
        &self,
        images: &Tensor,
        mode: &Mode<'_>,
        compute: &Compute,
    ) -> Result<Tensor, Error> {
        let size = self.config.image_size;
        let shape = images.size();
        if shape.len() != 4 || shape[1..] != [3, size, size] {
            let expected = format!("[N, 3, {size}, {size}]");
            return Err(Error::InputShape { input: "images", expected, found: shape });
        }
        let (tokens, length) = self.embed(images, mode, compute)?; // [N·T, W]
        let packing = Packing::uniform(shape[0], length, compute.device);
        let pooled = self.pool(tokens, &packing, compute); // [N, W]
        Ok(compute.project(&pooled, &self.proj))
    }

    /// Returns class token and kept patches of every image as rows, and how many an image has.
    fn embed(
        &self,
        images: &Tensor,
        mode: &Mode<'_>,
        compute: &Compute,
    ) -> Result<(Tensor, i64), Error> {
        let VisionConfig { width, patch_size, patch_dropout, .. } = self.config;
        let grid = shapes::grid(&self.config);
        let (batch, patches) = (images.size()[0], grid * grid);
        let kept = patches::kept(mode, batch, patches, patch_dropout)?;
        let rows = patches::patchify(&images.to_kind(compute.product), patch_size, grid);
        let filters = self.conv1.view([width, 3 * patch_size * patch_size]);
        let embedded = match &kept {
            None => {
                let embedded = compute.linear(&rows, &filters, None).view([batch, patches, width]);
                embedded + self.positional_embedding.narrow(0, 1, patches)
            }
            Some(kept) => {
                let (rows_kept, positions) = places(kept, patches, compute.device);
                let embedded = compute.linear(&rows.index_select(0, &rows_kept), &filters, None);
                let embedded = embedded + look_up(&self.positional_embedding, &positions, false);
                embedded.view([batch, rows_kept.size()[0] / batch, width])
            }
        }; // [N, kept, W]
        let class = &self.class_embedding + self.positional_embedding.select(0, 0); // [W]
        let class = class.expand([batch, 1, width], false);
        let tokens = Tensor::cat(&[class, embedded], 1); // [N, T, W]
        let length = tokens.size()[1];
        let tokens = tokens.view([batch * length, width]);
        let tokens = self.ln_pre.as_ref().map_or(tokens.shallow_clone(), |ln| ln.forward(&tokens));
        Ok((tokens, length))
    }

    /// Runs the blocks and returns one vector per image, after the final LayerNorm.
    fn pool(&self, tokens: Tensor, packing: &Packing, compute: &Compute) -> Tensor {
        match self.config.pool_type {
            // One row each: before or after the LayerNorm is the same.
            VisionPool::Tok => {
                self.ln_post.forward(&pooled_by_last(&self.blocks, tokens, packing, compute))
            }
            VisionPool::Avg => {
                let mut x = tokens;
                for block in &self.blocks {
                    x = block.forward(&x, packing, compute);
                }
                let group = &packing.groups()[0];
                let mean = |x: &Tensor| {
                    let x = x.view([group.rows, group.len, self.config.width]);
                    x.narrow(1, 1, group.len - 1).mean_dim([1_i64].as_slice(), false, None)
                };
                match self.config.final_ln_after_pool {
                    true => self.ln_post.forward(&mean(&x)),
                    false => mean(&self.ln_post.forward(&x)),
                }
            }
        }
    }
}

/// Returns, for each kept patch, its row among all patches of the batch and its position, where
/// position 0 is the class token's. Shapes: two of [N·kept] i64.
fn places(kept: &[Vec<i64>], patches: i64, device: Device) -> (Tensor, Tensor) {
    let (mut rows, mut positions) = (Vec::new(), Vec::new());
    for (numbers, image) in kept.iter().zip(0..) {
        rows.extend(numbers.iter().map(|number| image * patches + number));
        positions.extend(numbers.iter().map(|number| number + 1));
    }
    let tensor = |places: &[i64]| Tensor::from_slice(places).to_device(device);
    (tensor(&rows), tensor(&positions))
}

/// Returns the rows of `table` at `places`. With `sparse`, the table's gradient lists rows.
pub(super) fn look_up(table: &Tensor, places: &Tensor, sparse: bool) -> Tensor {
    Tensor::embedding(table, places, -1, false, sparse)
}
