//! The two towers, the scale and the bias.

use ringmaster_manifest::model_config::ModelConfig;
use ringmaster_manifest::spec::Precision;
use tch::{Device, Kind, Tensor};

use super::layers::Compute;
use super::params::Params;
use super::text::TextTower;
use super::vision::ImageTower;
use super::{Error, shapes};

/// Initial values of the two parameters that no tower has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogitInit {
    /// t′: the logarithm of the factor on dot products.
    pub scale: f64,
    /// β, added to scaled products; the model has a `logit_bias` when this is some.
    pub bias: Option<f64>,
}

/// What a forward pass is for.
#[derive(Debug, Clone, Copy)]
pub enum Mode<'a> {
    /// Every patch is kept.
    Eval,
    /// Patches are dropped as the configuration says.
    Train {
        /// Seed of the run.
        seed: u64,
        /// Step, counted from zero.
        step: u64,
        /// Global row of each image of this batch; randomness belongs to rows, so neither world
        /// size nor micro-batching changes it.
        rows: &'a [u64],
    },
}

/// A CLIP model with its parameters.
#[derive(Debug)]
pub struct Clip {
    config: ModelConfig,
    params: Params,
    image: ImageTower,
    text: TextTower,
    compute: Compute,
}

impl Clip {
    /// Builds the model of `config` on `device` with initial values drawn from `seed`.
    ///
    /// Parameters are f32; with [`Precision::AmpBf16`] the inputs of matrix products are rounded
    /// to bf16 while the residual stream, LayerNorm and the results stay f32. With
    /// [`Precision::Fp64`] all of it is f64.
    ///
    /// # Errors
    /// When the configuration describes no model, such as a width that heads do not divide.
    pub fn new(
        config: &ModelConfig,
        precision: Precision,
        device: Device,
        seed: u64,
        logits: LogitInit,
    ) -> Result<Self, Error> {
        let (product, stream) = match precision {
            Precision::Fp32 => (Kind::Float, Kind::Float),
            Precision::AmpBf16 => (Kind::BFloat16, Kind::Float),
            Precision::Fp64 => (Kind::Double, Kind::Double),
        };
        Self::with_kinds(config, product, stream, device, seed, logits)
    }

    /// As [`Self::new`] with any kinds; tests compare in f64.
    pub(crate) fn with_kinds(
        config: &ModelConfig,
        product: Kind,
        stream: Kind,
        device: Device,
        seed: u64,
        logits: LogitInit,
    ) -> Result<Self, Error> {
        check(config)?;
        let params = Params::new(shapes::specs(config, logits), stream, device, seed);
        let image = ImageTower::new(config, &params);
        let text = TextTower::new(config, &params);
        let compute = Compute { product, stream, device, quick_gelu: config.quick_gelu };
        Ok(Self { config: config.clone(), params, image, text, compute })
    }

    /// Returns how many parameters the model of `config` has, without building it.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn count_parameters(config: &ModelConfig) -> Result<u64, Error> {
        check(config)?;
        let specs = shapes::specs(config, LogitInit { scale: 0.0, bias: Some(0.0) });
        Ok(specs.iter().map(|spec| spec.shape.iter().product::<i64>().unsigned_abs()).sum())
    }

    /// Returns the parameters and their gradients.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Returns the configuration the model was built from.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Returns the embedding of each image, not normalised.
    ///
    /// Shapes: images [N, 3, H, H] f32 on the model's device -> [N, D] f32. Builds a graph unless
    /// called under `tch::no_grad`. A row does not depend on the others beyond rounding.
    ///
    /// # Errors
    /// When the images are not of the configuration's size, or `mode` names another number of
    /// rows.
    pub fn encode_image(&self, images: &Tensor, mode: &Mode<'_>) -> Result<Tensor, Error> {
        self.image.forward(images, mode, &self.compute)
    }

    /// Returns the embedding of each caption, not normalised.
    ///
    /// Shapes: tokens [N, L] i64 on any device -> [N, D] f32. L is the configuration's
    /// `context_length`. Builds a graph unless called under `tch::no_grad`. A row does not depend
    /// on the others beyond rounding. `mode` changes nothing yet: text has no dropout.
    ///
    /// # Errors
    /// When the tokens have another shape or an id lies outside the vocabulary.
    pub fn encode_text(&self, tokens: &Tensor, mode: &Mode<'_>) -> Result<Tensor, Error> {
        let _ = mode;
        self.text.forward(tokens, &self.compute)
    }

    /// Returns t′, the logarithm of the factor on dot products. Waits for the device.
    pub fn logit_scale(&self) -> f64 {
        let scale = self.params.get("logit_scale").expect("every model has a scale");
        scale.double_value(&[])
    }

    /// Returns β where the model has one. Waits for the device.
    pub fn logit_bias(&self) -> Option<f64> {
        self.params.get("logit_bias").map(|bias| bias.double_value(&[]))
    }
}

/// Returns the rows of `x` divided by their L2 norm, which counts as at least 1e-12, as
/// `F.normalize`. Shapes: [N, D] -> [N, D].
pub fn normalize(x: &Tensor) -> Tensor {
    x / x.norm_scalaropt_dim(2.0, [-1_i64].as_slice(), true).clamp_min(1e-12)
}

/// Refuses what no model can be built from.
fn check(config: &ModelConfig) -> Result<(), Error> {
    let (vision, text) = (&config.vision_cfg, &config.text_cfg);
    let positive = [
        ("embed_dim", config.embed_dim),
        ("vision_cfg.layers", vision.layers),
        ("vision_cfg.width", vision.width),
        ("vision_cfg.head_width", vision.head_width),
        ("vision_cfg.patch_size", vision.patch_size),
        ("vision_cfg.image_size", vision.image_size),
        ("text_cfg.context_length", text.context_length),
        ("text_cfg.vocab_size", text.vocab_size),
        ("text_cfg.width", text.width),
        ("text_cfg.heads", text.heads),
        ("text_cfg.layers", text.layers),
        ("vision_cfg.mlp_ratio × width", shapes::mlp_width(vision.width, vision.mlp_ratio)),
        ("text_cfg.mlp_ratio × width", shapes::mlp_width(text.width, text.mlp_ratio)),
    ];
    let refuse =
        |field, value: String, constraint: String| Err(Error::Config { field, value, constraint });
    for (field, value) in positive {
        if value < 1 {
            return refuse(field, value.to_string(), "it must be at least 1".to_owned());
        }
    }
    let heads = vision.width / vision.head_width;
    if heads == 0 || vision.width % heads != 0 {
        let constraint = format!("its {heads} heads do not divide the width {}", vision.width);
        return refuse("vision_cfg.head_width", vision.head_width.to_string(), constraint);
    }
    if text.width % text.heads != 0 {
        let constraint = format!("it must divide the width {}", text.width);
        return refuse("text_cfg.heads", text.heads.to_string(), constraint);
    }
    if vision.patch_size > vision.image_size {
        let constraint = format!("an image has only {} pixels a side", vision.image_size);
        return refuse("vision_cfg.patch_size", vision.patch_size.to_string(), constraint);
    }
    if !(0.0..1.0).contains(&vision.patch_dropout) {
        let constraint = "it must be in [0, 1)".to_owned();
        return refuse("vision_cfg.patch_dropout", vision.patch_dropout.to_string(), constraint);
    }
    Ok(())
}
