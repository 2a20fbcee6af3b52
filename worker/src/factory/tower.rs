//! Weights of one tower alone: for image towers that stay locked (LiT, arXiv:2111.07991) and for towers
//! that begin as somebody else's language or vision model.

use std::collections::BTreeMap;
use std::path::Path;

use ringmaster_manifest::model_config::{ModelConfig, TextConfig};
use ringmaster_weights::{self as weights, Format, Weights};

use super::load::{self, Optional};
use super::loadable::Loadable;
use super::source::{self, HF_HUB, Pretrained, Source};
use super::{Error, check_gelu, gelu_of, misfit_of};
use crate::model::{Clip, Tower};

/// What asks for a text tower as it is drawn.
pub const NONE: &str = "none";

/// Beginnings of the names of a Hugging Face model's parts that the tower does not have: heads for other
/// tasks, and the pooling layer where the configuration pools otherwise.
const OTHER_HEADS: [&str; 3] =
    ["text.transformer.lm_head.", "text.transformer.classifier.", "text.transformer.pooler."];
/// The same of timm's image models: their classifiers.
const CLASSIFIERS: [&str; 3] =
    ["visual.trunk.head.", "visual.trunk.head_dist.", "visual.trunk.pre_logits."];

/// Returns which towers are loaded by themselves, and from where: what is given for each, or, for text
/// without a `whole` model's weights, what its configuration begins with.
pub fn wanted(
    config: &ModelConfig,
    image: Option<&str>,
    text: Option<&str>,
    whole: bool,
) -> Vec<(Tower, String)> {
    let image = image.map(|given| (Tower::Image, given.to_owned()));
    let text = match text {
        Some(given) => Some(given.to_owned()),
        None => base_of(&config.text_cfg).filter(|_| !whole).inspect(|base| {
            tracing::info!("the text tower begins with {base}, unless pretrained_text is none");
        }),
    };
    let text = text.filter(|given| given != NONE).map(|given| (Tower::Text, given));
    image.into_iter().chain(text).collect()
}

/// Returns the repository whose weights a Hugging Face tower begins with, as OpenCLIP: that of its
/// configuration, unless this says otherwise or changes the model.
fn base_of(text: &TextConfig) -> Option<String> {
    let name = text.hf_model_name.as_ref().filter(|_| text.hf_model_pretrained)?;
    text.hf_model_config.is_none().then(|| format!("{HF_HUB}{name}"))
}

/// Loads the weights of `tower` from what `given` stands for; returns what was done to make them fit.
///
/// # Errors
/// A name that leads nowhere, weights that cannot be read, everything that does not fit, and weights
/// trained with the other GELU unless that is `allowed`.
pub fn load(
    clip: &Clip,
    tower: Tower,
    model: &str,
    given: &str,
    allowed: bool,
) -> Result<Vec<String>, Error> {
    let config = clip.config();
    let Pretrained { source, quick_gelu, .. } = source::find(model, given)?;
    let check = |path: &Path, trained: Option<bool>| {
        let trained = trained.filter(|_| has_clips_gelu(config, tower));
        check_gelu(model, config, path, trained, allowed)
    };
    match source {
        Source::File(path) => {
            let weights = Weights::open(&path)?;
            check(&path, quick_gelu.or(gelu_of(&weights)))?;
            from_file(clip, tower, &weights)
        }
        Source::Checkpoint(loaded) => {
            check(given.as_ref(), quick_gelu)?;
            let named = load::of_checkpoint(&loaded);
            fit(clip, tower, &named).map_err(|misfit| Error::Misfit { path: given.into(), misfit })
        }
    }
}

/// Whether a tower's activation is the one `quick_gelu` is about: timm's and transformers' are their own.
fn has_clips_gelu(config: &ModelConfig, tower: Tower) -> bool {
    match tower {
        Tower::Image => config.vision_cfg.timm_model_name.is_none(),
        _ => config.text_cfg.hf_model_name.is_none(),
    }
}

/// Loads the weights of `tower` from a file: a whole model's, those of the tower by OpenCLIP's names, a
/// vision transformer of timm's or Google's (`.npz`), or a text model of transformers'. Its projection
/// stays as it is where the file has none; a classifier is left out.
///
/// # Errors
/// Everything that does not fit.
pub fn from_file(clip: &Clip, tower: Tower, weights: &Weights) -> Result<Vec<String>, Error> {
    let named = match (weights.format(), tower) {
        (Format::Npz, Tower::Image) => weights::vision_transformer(weights)?,
        _ => None,
    };
    let named = match named {
        Some(named) => named,
        None => load::named(weights)?,
    };
    let mut notes = weights.notes().to_vec();
    notes.extend(fit(clip, tower, &named).map_err(|misfit| misfit_of(weights, misfit))?);
    Ok(notes)
}

fn fit<T: Loadable>(
    clip: &Clip,
    tower: Tower,
    named: &BTreeMap<String, T>,
) -> Result<Vec<String>, load::Misfit> {
    let given = match tower {
        Tower::Image => image_names(clip.config(), named),
        _ => text_names(clip.config(), named),
    };
    let has = |name: &str| clip.params().entry(name).is_some();
    let left_out: &[&str] = match tower {
        Tower::Image => &CLASSIFIERS,
        _ => &OTHER_HEADS,
    };
    let surplus = |name: &str| !has(name) && left_out.iter().any(|part| name.starts_with(part));
    let given: BTreeMap<_, _> = given.into_iter().filter(|(name, _)| !surplus(name)).collect();
    let entries = clip.params().entries().iter().filter(|entry| entry.tower == tower);
    let optional = |name: &str| if is_head(name) { Optional::Kept } else { Optional::No };
    load::fit(clip, entries.collect(), given, &optional)
}

/// Whether a parameter maps the tower's vector to the embedding, which other models do not have.
fn is_head(name: &str) -> bool {
    const HEADS: [&str; 4] =
        ["visual.head.", "visual.proj", "text.proj.", "text.transformer.pooler."];
    HEADS.iter().any(|head| name.starts_with(head)) || name.contains("text_projection")
}

/// Returns tensors under the names of the image tower.
fn image_names<'a, T>(config: &ModelConfig, named: &'a BTreeMap<String, T>) -> Given<'a, T> {
    let begins = |part: &str| named.keys().any(|name| name.starts_with(part));
    let trunk = config.vision_cfg.timm_model_name.is_some();
    match () {
        () if begins("visual.") => of(named, "visual.", "visual."),
        () if begins("trunk.") || !trunk => of(named, "", "visual."),
        () => of(named, "", "visual.trunk."),
    }
}

/// Returns tensors under the names of the text tower.
fn text_names<'a, T>(config: &ModelConfig, named: &'a BTreeMap<String, T>) -> Given<'a, T> {
    let begins = |part: &str| named.keys().any(|name| name.starts_with(part));
    let prefix = if config.has_text_prefix() { "text." } else { "" };
    let hugging_face = config.text_cfg.hf_model_name.is_some();
    match () {
        () if begins("text.") => of(named, "text.", prefix),
        () if begins("visual.") => {
            let text = named.iter().filter(|(name, _)| load::is_text_key(name));
            text.map(|(name, tensor)| (format!("{prefix}{name}"), tensor)).collect()
        }
        () if !hugging_face || begins("transformer.") => of(named, "", prefix),
        () if begins("roberta.") => of(named, "roberta.", "text.transformer."),
        () => of(named, "", "text.transformer."),
    }
}

type Given<'a, T> = BTreeMap<String, &'a T>;

/// Returns the tensors whose names begin with `from`, which becomes `to`.
fn of<'a, T>(named: &'a BTreeMap<String, T>, from: &str, to: &str) -> Given<'a, T> {
    let renamed = |(name, tensor): (&String, &'a T)| {
        name.strip_prefix(from).map(|rest| (format!("{to}{rest}"), tensor))
    };
    named.iter().filter_map(renamed).collect()
}
