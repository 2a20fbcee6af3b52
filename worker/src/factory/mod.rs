//! Models by name, folder, file or URL, as `open_clip`'s factory makes them.
//!
//! [`create_model_and_transforms`] finds a configuration ([`lookup`]) and weights ([`source`]), builds the
//! model and loads it ([`load`], with positions resized; [`loadable`], from files or from checkpoints;
//! [`tower`] for one tower alone), and says how images are prepared for it.
//! What is returned has no mode of its own: every forward pass says whether it trains
//! ([`crate::model::Mode`]). [`export`] writes folders that `open_clip` and Hugging Face's
//! `transformers` load; [`commands`] is `ringmaster-worker model`.

pub mod commands;
pub mod export;
pub mod load;
pub mod loadable;
pub mod lookup;
mod positions;
pub mod source;
pub mod tokenizer;
pub mod tower;
mod transformers;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tower_tests;

use std::path::{Path, PathBuf};

use ringmaster_manifest::model_config::{ModelConfig, PreprocessCfg};
use ringmaster_manifest::spec::Precision;
use ringmaster_weights::Weights;
use tch::Device;

use crate::model::{self, Clip, LogitInit};
use load::MissingBias;
use source::Source;

const QUICK_GELU: &str = "QuickGELU";
const EXACT_GELU: &str = "exact GELU";

/// How a model is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// In which arithmetic.
    pub precision: Precision,
    /// Where.
    pub device: Device,
    /// Of the initial weights, where none are loaded.
    pub seed: u64,
    /// Uses QuickGELU whatever the configuration says, as `--force-quick-gelu`.
    pub force_quick_gelu: bool,
    /// Side of the images, as `--force-image-size`; positions are resized.
    pub force_image_size: Option<i64>,
    /// Tokens of a caption, as `--force-context-length`; positions are resized.
    pub force_context_length: Option<i64>,
    /// Loads weights although they were trained with the other GELU.
    pub allow_gelu_mismatch: bool,
    /// Weights of the image tower, loaded after all others: as `pretrained` of
    /// [`create_model_and_transforms`], or in timm's or Google's layout.
    pub pretrained_image: Option<String>,
    /// Weights of the text tower, loaded after all others, as they are or in transformers' layout; or
    /// [`tower::NONE`].
    pub pretrained_text: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            precision: Precision::Fp32,
            device: Device::Cpu,
            seed: 0,
            force_quick_gelu: false,
            force_image_size: None,
            force_context_length: None,
            allow_gelu_mismatch: false,
            pretrained_image: None,
            pretrained_text: None,
        }
    }
}

/// A model and what belongs to it.
#[derive(Debug)]
pub struct Created {
    /// The model.
    pub clip: Clip,
    /// How images are prepared for it.
    pub preprocess: PreprocessCfg,
    /// What was done to the weights to make them fit, in sentences; empty for none.
    pub notes: Vec<String>,
}

/// Why a model cannot be made.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No model or folder has this name.
    #[error(transparent)]
    Lookup(#[from] lookup::Error),
    /// The weights cannot be read.
    #[error(transparent)]
    Weights(#[from] ringmaster_weights::Error),
    /// A checkpoint of a run cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] ringmaster_checkpoint::Error),
    /// The weights are not this model's.
    #[error("{}: {misfit}", path.display())]
    Misfit { path: PathBuf, misfit: load::Misfit },
    /// The weights were trained with the other GELU.
    #[error(
        "{} was trained with {with} and {model} uses {uses}, which would cost accuracy silently; {remedy}",
        path.display()
    )]
    GeluMismatch {
        path: PathBuf,
        with: &'static str,
        model: String,
        uses: &'static str,
        remedy: String,
    },
    /// A training checkpoint is of a run with another loss.
    #[error(
        "{} holds {}; use the loss it was trained with, or start a run from its weights with \
         spec.model.pretrained",
        path.display(),
        if *has_bias { "a logit_bias, which the loss infonce does not have" } else { "no logit_bias, which the loss siglip trains" }
    )]
    OtherLoss { path: PathBuf, has_bias: bool },
    /// The configuration describes no model.
    #[error(transparent)]
    Model(#[from] model::Error),
}

impl Error {
    /// Whether another attempt may do better without anybody's help: a store or a hub was away, or a disk
    /// full.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Checkpoint(error) => is_of_a_store(error),
            Self::Lookup(lookup::Error::Checkpoint(error)) => is_of_a_store(error),
            Self::Lookup(lookup::Error::Hub(error)) => error.may_pass(),
            // A full disk may have room again.
            Self::Lookup(lookup::Error::Cache { .. }) => true,
            _ => false,
        }
    }
}

fn is_of_a_store(error: &ringmaster_checkpoint::Error) -> bool {
    use ringmaster_checkpoint::Error;
    matches!(error, Error::Store { .. } | Error::Io { .. } | Error::Runtime { .. })
}

/// Makes the model that `name` stands for, with the weights of `pretrained`, if given, or of the
/// place that `name` is: a name of the catalogue, `local-dir:FOLDER` or the path of a folder with
/// an `open_clip_config.json`, `hf-hub:ORG/REPOSITORY` (fetched where the local cache lacks it), or the
/// URL of a run's checkpoints. What `pretrained` may be is told at [`source::find`].
///
/// # Errors
/// A name that leads nowhere, weights that cannot be read or are not the model's (everything that
/// does not fit is listed), and weights trained with the other GELU.
pub fn create_model_and_transforms(
    name: &str,
    pretrained: Option<&str>,
    options: &Options,
) -> Result<Created, Error> {
    create(name, pretrained, options).map_err(with_options)
}

fn create(name: &str, pretrained: Option<&str>, options: &Options) -> Result<Created, Error> {
    let found = lookup::find(name, pretrained)?;
    let lookup::Found { mut config, mut preprocess, weights, quick_gelu } = found;
    config.quick_gelu |= options.force_quick_gelu;
    if let Some(size) = options.force_image_size {
        config.vision_cfg.image_size = size;
        preprocess.size = u32::try_from(size).unwrap_or(u32::MAX);
    }
    if let Some(length) = options.force_context_length {
        config.text_cfg.context_length = length;
    }
    let whole = weights.is_some();
    let (clip, mut notes) = match weights {
        None => drawn(&config, options)?,
        Some(source) => loaded(name, &config, source, quick_gelu, options)?,
    };
    let (image, text) = (options.pretrained_image.as_deref(), options.pretrained_text.as_deref());
    for (tower, given) in tower::wanted(&config, image, text, whole) {
        notes.extend(tower::load(&clip, tower, name, &given, options.allow_gelu_mismatch)?);
    }
    Ok(Created { clip, preprocess, notes })
}

/// Builds a model with the weights of `source`.
fn loaded(
    name: &str,
    config: &ModelConfig,
    source: Source,
    quick_gelu: Option<bool>,
    options: &Options,
) -> Result<(Clip, Vec<String>), Error> {
    let check = |path: &Path, trained: Option<bool>| {
        check_gelu(name, config, path, trained, options.allow_gelu_mismatch)
    };
    match source {
        Source::File(path) => {
            let weights = Weights::open(&path)?;
            check(&path, quick_gelu.or(gelu_of(&weights)))?;
            let clip = blank(config, options)?;
            let notes = from_file(&clip, &weights, MissingBias::Zero)?;
            Ok((clip, notes))
        }
        Source::Checkpoint(loaded) => {
            let path = PathBuf::from("the checkpoint");
            check(&path, quick_gelu)?;
            let clip = blank(config, options)?;
            let named = load::of_checkpoint(&loaded);
            let mut notes = load::load(&clip, &named, MissingBias::Zero)
                .map_err(|misfit| Error::Misfit { path, misfit })?;
            notes.extend(differs(&loaded.state.manifest.model.config, config));
            Ok((clip, notes))
        }
    }
}

/// Adds the ways out that only this command has.
fn with_options(error: Error) -> Error {
    match error {
        Error::GeluMismatch { path, with, model, uses, remedy } => {
            let force = if with == QUICK_GELU { " or --force-quick-gelu" } else { "" };
            let remedy =
                format!("{remedy}{force}, or --allow-gelu-mismatch to load it all the same");
            Error::GeluMismatch { path, with, model, uses, remedy }
        }
        other => other,
    }
}

fn drawn(config: &ModelConfig, options: &Options) -> Result<(Clip, Vec<String>), Error> {
    let Options { precision, device, seed, .. } = *options;
    let clip = Clip::new(config, precision, device, seed, logits(config))?;
    Ok((clip, vec!["the weights are random: no pretrained ones were named".to_owned()]))
}

/// Says where the model a run trained is not the one its weights are loaded into.
pub fn differs(trained: &ModelConfig, config: &ModelConfig) -> Option<String> {
    let (path, before, now) = ringmaster_manifest::config_difference(trained, config)?;
    Some(format!("the run's model has {path} {before}, this one {now}"))
}

/// Loads a file of weights into a model; returns what was done to make them fit.
///
/// # Errors
/// Weights of an unknown layout, and weights that are not the model's.
pub fn from_file(clip: &Clip, weights: &Weights, bias: MissingBias) -> Result<Vec<String>, Error> {
    let named = load::named(weights)?;
    let mut notes = weights.notes().to_vec();
    notes.extend(load::load(clip, &named, bias).map_err(|misfit| misfit_of(weights, misfit))?);
    Ok(notes)
}

/// Says why a file's tensors are not a model's.
pub(crate) fn misfit_of(weights: &Weights, misfit: load::Misfit) -> Error {
    Error::Misfit { path: weights.path().to_owned(), misfit: misfit.explained_by(weights) }
}

/// Builds a model whose parameters are loaded next.
pub(crate) fn blank(config: &ModelConfig, options: &Options) -> Result<Clip, model::Error> {
    Clip::blank(config, options.precision, options.device, logits(config))
}

fn logits(config: &ModelConfig) -> LogitInit {
    let scale = config.init_logit_scale.unwrap_or_else(|| (1.0_f64 / 0.07).ln());
    LogitInit { scale, bias: config.init_logit_bias }
}

/// Returns whether weights were trained with QuickGELU, as far as the file shows: OpenAI's archives were.
/// They are TorchScript, which nobody else ships.
pub fn gelu_of(weights: &Weights) -> Option<bool> {
    weights.is_torch_script().then_some(true)
}

/// Refuses weights at `path` that were `trained` with another GELU than the model `name` has, unless
/// `allowed`.
///
/// # Errors
/// Such weights, with what to do instead.
pub fn check_gelu(
    name: &str,
    config: &ModelConfig,
    path: &Path,
    trained: Option<bool>,
    allowed: bool,
) -> Result<(), Error> {
    if allowed || trained.is_none_or(|trained| trained == config.quick_gelu) {
        return Ok(());
    }
    let [with, uses] =
        if config.quick_gelu { [EXACT_GELU, QUICK_GELU] } else { [QUICK_GELU, EXACT_GELU] };
    let remedy = match (config.quick_gelu, name.strip_suffix("-quickgelu")) {
        (true, Some(plain)) => format!("use {plain}"),
        (true, None) => "use a configuration without quick_gelu".to_owned(),
        (false, _) => format!("use {name}-quickgelu"),
    };
    let (path, model) = (path.to_owned(), name.to_owned());
    Err(Error::GeluMismatch { path, with, model, uses, remedy })
}
