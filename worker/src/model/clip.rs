//! The two towers, the scale and the bias.

use ringmaster_manifest::model_config::ModelConfig;
use ringmaster_manifest::spec::Precision;
use tch::{Device, Kind, Tensor};

use super::compute::Compute;
use super::init::Init;
use super::params::{Params, Role, Spec};
use super::text::TextTower;
use super::vars::{self, Vars};
use super::vision::ImageTower;
use super::{Error, Tower};
use ringmaster_inputs::rng::{Site, Stream};

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
    /// Patches, paths and values are dropped as the configuration says, and batch norms take the batch's
    /// statistics.
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

impl Mode<'_> {
    /// Checks that each of `batch` images has its row.
    pub(super) fn check_rows(&self, batch: i64) -> Result<(), Error> {
        match self {
            Self::Train { rows, .. } if rows.len() as i64 != batch => {
                Err(Error::Rows { rows: rows.len(), batch })
            }
            _ => Ok(()),
        }
    }

    /// Returns a factor for each image's branch of block `block` under stochastic depth
    /// (arXiv:1603.09382): 0 for a share `rate` of them, 1 / (1 − rate) for the others; nothing
    /// where all stay as they are. Drawn from seed, step, global row and block only.
    pub(super) fn kept_paths(&self, block: u64, rate: f64) -> Option<Vec<f64>> {
        let Self::Train { seed, step, rows } = *self else { return None };
        let factor = |row: &u64| {
            let mut stream = Stream::new(seed, Site::DropPath, &[step, *row, block]);
            if stream.chance(rate) { 0.0 } else { 1.0 / (1.0 - rate) }
        };
        (rate > 0.0).then(|| rows.iter().map(factor).collect())
    }
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
        let (product, stream) = kinds(precision);
        Self::with_kinds(config, product, stream, device, seed, logits)
    }

    /// As [`Self::new`] for a model whose parameters are all loaded next: they are zero until then,
    /// which saves drawing hundreds of millions of numbers.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn blank(
        config: &ModelConfig,
        precision: Precision,
        device: Device,
        logits: LogitInit,
    ) -> Result<Self, Error> {
        let mut specs = specs(config, logits)?;
        specs.iter_mut().for_each(|spec| spec.init = Init::Constant(0.0));
        let (product, stream) = kinds(precision);
        Ok(Self::of_specs(config, specs, product, stream, device, 0))
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
        Ok(Self::of_specs(config, specs(config, logits)?, product, stream, device, seed))
    }

    fn of_specs(
        config: &ModelConfig,
        specs: Vec<Spec>,
        product: Kind,
        stream: Kind,
        device: Device,
        seed: u64,
    ) -> Self {
        let params = Params::new(specs, stream, device, seed);
        let (image, text) = vars::build(&params, |vars| {
            (ImageTower::new(config, vars), TextTower::new(config, vars))
        });
        let compute = Compute { product, stream, device };
        Self { config: config.clone(), params, image, text, compute }
    }

    /// Returns how many parameters the model of `config` has, without building it.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn count_parameters(config: &ModelConfig) -> Result<u64, Error> {
        let specs = specs(config, LogitInit { scale: 0.0, bias: Some(0.0) })?;
        let learned = specs.iter().filter(|spec| spec.role != Role::Statistic);
        Ok(learned.map(|spec| spec.shape.iter().product::<i64>().unsigned_abs()).sum())
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
    /// on the others beyond rounding. In training Hugging Face's towers have their dropout.
    ///
    /// # Errors
    /// When the tokens have another shape or an id lies outside the vocabulary.
    pub fn encode_text(&self, tokens: &Tensor, mode: &Mode<'_>) -> Result<Tensor, Error> {
        self.text.forward(tokens, mode, &self.compute)
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

/// Returns the kinds of products and of everything else.
fn kinds(precision: Precision) -> (Kind, Kind) {
    match precision {
        Precision::Fp32 => (Kind::Float, Kind::Float),
        Precision::AmpBf16 => (Kind::BFloat16, Kind::Float),
        Precision::Fp64 => (Kind::Double, Kind::Double),
    }
}

/// Lists every parameter of the model that `config` describes.
pub(super) fn specs(config: &ModelConfig, logits: LogitInit) -> Result<Vec<Spec>, Error> {
    config.check().map_err(|reason| Error::Config { reason })?;
    Ok(vars::list(|vars: &Vars<'_>| {
        ImageTower::new(config, vars);
        TextTower::new(config, vars);
        let head = vars.of(Tower::Head);
        let _ = head.tensor("logit_scale", &[], Init::Constant(logits.scale));
        if let Some(bias) = logits.bias {
            let _ = head.tensor("logit_bias", &[], Init::Constant(bias));
        }
    }))
}
