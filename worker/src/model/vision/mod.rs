//! Image towers.

mod convnext;
mod embed;
mod head;
mod native;
mod patches;
mod pool;
mod resnet;
mod trunk_vit;

use ringmaster_manifest::model_config::ModelConfig;
use ringmaster_manifest::model_config::trunk::Trunk;
use ringmaster_manifest::model_config::{Layers, VisionConfig};
use tch::Tensor;

#[cfg(test)]
pub(super) use patches::kept;

use super::clip::Mode;
use super::compute::Compute;
use super::vars::Vars;
use super::{Error, Tower};

/// The image tower a configuration describes.
#[derive(Debug)]
pub(super) struct ImageTower {
    image_size: i64,
    family: Family,
}

#[derive(Debug)]
enum Family {
    Native(native::VisionTransformer),
    TrunkVit(trunk_vit::TrunkVit),
    ConvNext(convnext::ConvNext),
    ResNet(resnet::ModifiedResNet),
}

impl ImageTower {
    /// Takes the parameters under `visual.`, for a configuration that has been checked.
    pub(super) fn new(config: &ModelConfig, vars: &Vars<'_>) -> Self {
        let vars = vars.of(Tower::Image).sub("visual");
        let vision = &config.vision_cfg;
        let family = match trunk(vision) {
            Some(Trunk::Vit(vit)) => {
                Family::TrunkVit(trunk_vit::TrunkVit::new(vision, &vit, config.embed_dim, &vars))
            }
            Some(Trunk::ConvNext(net)) => {
                Family::ConvNext(convnext::ConvNext::new(vision, &net, config.embed_dim, &vars))
            }
            None => match vision.layers {
                Layers::Blocks(_) => Family::Native(native::VisionTransformer::new(config, &vars)),
                Layers::Stages(stages) => Family::ResNet(resnet::ModifiedResNet::new(
                    vision,
                    stages,
                    config.embed_dim,
                    &vars,
                )),
            },
        };
        Self { image_size: vision.image_size, family }
    }

    /// Shapes: images [N, 3, H, H] -> [N, E].
    pub(super) fn forward(
        &self,
        images: &Tensor,
        mode: &Mode<'_>,
        compute: &Compute,
    ) -> Result<Tensor, Error> {
        let size = self.image_size;
        let shape = images.size();
        if shape.len() != 4 || shape[1..] != [3, size, size] {
            let expected = format!("[N, 3, {size}, {size}]");
            return Err(Error::InputShape { input: "images", expected, found: shape });
        }
        mode.check_rows(shape[0])?;
        Ok(match &self.family {
            Family::Native(tower) => tower.forward(images, mode, compute),
            Family::TrunkVit(tower) => tower.forward(images, mode, compute),
            Family::ConvNext(tower) => tower.forward(images, mode, compute),
            Family::ResNet(tower) => tower.forward(images, mode, compute),
        })
    }
}

/// Returns the timm tower of a configuration that has been checked.
fn trunk(vision: &VisionConfig) -> Option<Trunk> {
    vision.trunk().map(|trunk| trunk.expect("a checked configuration names a known tower"))
}
