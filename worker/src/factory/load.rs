//! From tensors by name to a model's parameters.

use std::collections::BTreeMap;

use ringmaster_checkpoint::{self as checkpoint, Values};
use ringmaster_weights::{self as weights, Format, Weights};
use ringmaster_words as words;
use tch::Tensor;

use super::loadable::{self, Loadable};
use super::positions;
use crate::model::{Clip, Entry, Tower};

/// Tensors by OpenCLIP's names.
pub type Named = BTreeMap<String, weights::Tensor>;

/// Everything that keeps weights from being a model's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Misfit {
    /// Parameters that are not there.
    pub missing: Vec<String>,
    /// Tensors that belong to no parameter.
    pub unexpected: Vec<String>,
    /// Tensors of another shape, in words.
    pub misshaped: Vec<String>,
    /// What the file is that explains it, and what to do.
    pub hint: Option<String>,
}

impl Misfit {
    /// Says of what is missing how the file has it, where it has it in another form, and whether the file
    /// is only a part of some weights.
    #[must_use]
    pub fn explained_by(mut self, weights: &Weights) -> Self {
        for name in &mut self.missing {
            let stored = weights.unreadable().iter().find(|(stored, _)| is_same(name, stored));
            if let Some((_, what)) = stored {
                name.push_str(&format!(" (stored as {what}, which is not read here)"));
            }
        }
        if !self.missing.is_empty()
            && let Some((index, count)) = weights::parts::index_of(weights.path())
        {
            self.hint = Some(format!(
                "the file is one of {count} parts; name {} or its folder for all of them",
                index.display()
            ));
        }
        self
    }
}

/// Whether two names mean the same tensor, of which one may have more before it: `text.` or a wrapper's.
fn is_same(a: &str, b: &str) -> bool {
    let ends = |long: &str, short: &str| {
        long.strip_suffix(short).is_some_and(|before| before.is_empty() || before.ends_with('.'))
    };
    ends(a, b) || ends(b, a)
}

impl std::fmt::Display for Misfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "these are not the weights of this model")?;
        let lists = [
            ("missing", &self.missing),
            ("unexpected", &self.unexpected),
            ("of another shape", &self.misshaped),
        ];
        for (what, names) in lists.into_iter().filter(|(_, names)| !names.is_empty()) {
            write!(f, "; {} {what}: {}", names.len(), words::some_of(names, 8))?;
        }
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// Returns what a file holds under OpenCLIP's names.
///
/// # Errors
/// Arrays of Google's that are not a SigLIP model's.
pub fn named(weights: &Weights) -> Result<Named, weights::Error> {
    if weights.format() == Format::Npz
        && let Some(named) = weights::big_vision(weights)?
    {
        return Ok(named);
    }
    Ok(weights.tensors().clone())
}

/// Returns what a checkpoint of a run holds.
pub fn of_checkpoint(loaded: &checkpoint::Loaded) -> BTreeMap<String, Values<'_>> {
    loaded.parameters().map(|values| (values.name().to_owned(), values)).collect()
}

/// What a `logit_bias` that is not there becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingBias {
    /// 0, as OpenCLIP: the weights were trained without one.
    Zero,
    /// What the model has: a run that begins says what it begins with.
    Kept,
}

/// Loads every parameter of a model; nothing is changed unless everything fits. Returns what was
/// done to the tensors to make them fit:
/// * text keys are moved under `text.` or out of it, as the model has them;
/// * position embeddings are resized, bicubic for images and linear for text;
/// * a `logit_bias` that is missing becomes what `bias` says, and one that the model does not have is
///   left out, as are position numbers of old Hugging Face towers.
///
/// # Errors
/// Everything that does not fit.
pub fn load<T: Loadable>(
    clip: &Clip,
    named: &BTreeMap<String, T>,
    bias: MissingBias,
) -> Result<Vec<String>, Misfit> {
    let renaming = Renaming::new(clip, named);
    let mut notes: Vec<String> = renaming.note().into_iter().collect();
    let mut given: BTreeMap<String, &T> =
        named.iter().map(|(name, tensor)| (renaming.apply(name), tensor)).collect();
    if clip.params().entry("logit_bias").is_none() && given.remove("logit_bias").is_some() {
        notes.push("logit_bias is left out: the model has none, so logits are shifted".to_owned());
    }
    let optional = |name: &str| match (name, bias) {
        ("logit_bias", MissingBias::Zero) => Optional::Zero,
        ("logit_bias", MissingBias::Kept) => Optional::Kept,
        _ => Optional::No,
    };
    notes.extend(fit(clip, clip.params().entries().iter().collect(), given, &optional)?);
    Ok(notes)
}

/// What becomes of a parameter that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Optional {
    /// It must be there.
    No,
    /// It becomes zero.
    Zero,
    /// It stays as it is.
    Kept,
}

/// What a parameter becomes.
enum Fitted<'a, T> {
    /// What was stored, as it is.
    Stored(&'a T),
    /// What was made of it, or of nothing.
    Made(Vec<f32>),
}

/// Loads `entries` from tensors under their names; nothing is changed unless everything fits. Returns
/// what was done to make them fit.
///
/// # Errors
/// Everything that does not fit.
pub(super) fn fit<T: Loadable>(
    clip: &Clip,
    entries: Vec<&Entry>,
    mut given: BTreeMap<String, &T>,
    optional: &dyn Fn(&str) -> Optional,
) -> Result<Vec<String>, Misfit> {
    let mut notes = Vec::new();
    let mut misfit = Misfit::default();
    let mut values: Vec<(&Entry, Fitted<'_, T>)> = Vec::new();
    for entry in entries {
        let name = &entry.name;
        match (given.remove(name), optional(name)) {
            (Some(tensor), _) => match fitted(clip, entry, tensor, &mut notes) {
                Ok(fitted) => values.push((entry, fitted)),
                Err(reason) => misfit.misshaped.push(reason),
            },
            (None, Optional::No) => misfit.missing.push(name.clone()),
            (None, Optional::Kept) => notes.push(format!("{name} is missing and stays")),
            (None, Optional::Zero) => {
                notes.push(format!("{name} is missing and becomes 0"));
                values.push((entry, Fitted::Made(vec![0.0; entry.len])));
            }
        }
    }
    misfit.unexpected = given.into_keys().filter(|name| !is_dispensable(name)).collect();
    if misfit != Misfit::default() {
        return Err(misfit);
    }
    let flat = clip.params().flat();
    for (entry, values) in values {
        match values {
            Fitted::Stored(tensor) => tensor.put(flat, entry.offset),
            Fitted::Made(values) => loadable::put(flat, entry.offset, &values),
        }
    }
    Ok(notes)
}

fn is_dispensable(name: &str) -> bool {
    name.ends_with("embeddings.position_ids") || name.ends_with("attn_mask")
}

/// Beginnings of the keys of a text tower that has no prefix.
const TEXT_KEYS: [&str; 5] =
    ["positional_embedding", "token_embedding.", "transformer.", "ln_final.", "text_projection"];

/// Whether a name is one of a text tower that has no prefix.
pub(super) fn is_text_key(name: &str) -> bool {
    TEXT_KEYS.iter().any(|key| name.starts_with(key))
}

/// How the names of a file become those of a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Renaming {
    /// Text keys go under `text.`.
    under_text: bool,
    /// Text keys come from under `text.`.
    from_text: bool,
}

impl Renaming {
    pub(crate) fn new<T>(clip: &Clip, named: &BTreeMap<String, T>) -> Self {
        let prefixed = clip.config().has_text_prefix();
        Self {
            under_text: prefixed && named.contains_key("token_embedding.weight"),
            from_text: !prefixed && named.keys().any(|name| name.starts_with("text.")),
        }
    }

    pub(crate) fn apply(self, name: &str) -> String {
        match name.strip_prefix("text.") {
            Some(bare) if self.from_text => bare.to_owned(),
            _ if self.under_text && is_text_key(name) => format!("text.{name}"),
            _ => name.to_owned(),
        }
    }

    fn note(self) -> Option<String> {
        match (self.under_text, self.from_text) {
            (true, _) => Some("text keys were moved under text.".to_owned()),
            (_, true) => Some("text keys were moved from under text.".to_owned()),
            _ => None,
        }
    }
}

/// Returns a tensor in the shape of its parameter.
fn fitted<'a, T: Loadable>(
    clip: &Clip,
    entry: &Entry,
    tensor: &'a T,
    notes: &mut Vec<String>,
) -> Result<Fitted<'a, T>, String> {
    let shape = tensor.extents();
    let scalar = entry.shape.is_empty() && shape.iter().product::<i64>() == 1;
    if shape == entry.shape || scalar {
        return Ok(Fitted::Stored(tensor));
    }
    if let Some(resized) = resized(clip, entry, tensor) {
        notes.push(format!("{} was resized from {shape:?} to {:?}", entry.name, entry.shape));
        return Ok(Fitted::Made(resized));
    }
    Err(format!("{} is {shape:?}, the model's is {:?}", entry.name, entry.shape))
}

fn resized(clip: &Clip, entry: &Entry, tensor: &impl Loadable) -> Option<Vec<f32>> {
    let shape = tensor.extents();
    let width = *entry.shape.last()?;
    let positions =
        entry.name.ends_with("positional_embedding") || entry.name.ends_with("pos_embed");
    if !positions || shape.contains(&0) || shape.last() != Some(&width) {
        return None;
    }
    let given = Tensor::from_slice(&tensor.rounded()).view([-1, width]);
    let count = entry.len as i64 / width;
    let resized = match entry.tower {
        Tower::Text => positions::of_text(&given, count)?,
        _ => {
            let class = clip.params().entry("visual.class_embedding").is_some()
                || clip.params().entry("visual.trunk.cls_token").is_some()
                || entry.name.contains("attnpool");
            let prefix = i64::from(class);
            positions::of_image(&given, prefix, ((count - prefix) as f64).sqrt().round() as i64)?
        }
    };
    resized.contiguous().view([-1]).try_into().ok()
}
