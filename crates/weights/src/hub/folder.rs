//! Which file of a folder holds its weights.

use std::path::{Path, PathBuf};

use super::{CONFIG, Error, Located, TOKENIZER};
use crate::file::parts::INDEX;

/// Names of weights in the order OpenCLIP prefers them (`_find_checkpoint_in_dir` of its factory).
const PREFERRED: [&str; 8] = [
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
];
/// Endings of further weights; those that come first are taken first.
const ENDINGS: [&str; 3] = ["safetensors", "bin", "pth"];
/// Names that an error lists of what lies there instead.
const SHOWN: usize = 5;

/// Returns the files of a model's folder.
pub(super) fn locate(folder: &Path) -> Result<Located, Error> {
    let weights = weights_in(folder)?;
    let file = |name: &&str| Some(folder.join(name)).filter(|path| path.is_file());
    let config = file(&CONFIG);
    Ok(Located { weights, config, tokenizer: TOKENIZER.iter().filter_map(file).collect() })
}

/// Returns the file of a folder's weights, as [`weights_among`] chooses it.
///
/// # Errors
/// A folder that cannot be read or has no weights, or parts of some without an index.
pub fn weights_in(folder: &Path) -> Result<PathBuf, Error> {
    let read = || Error::cache("read the folder", folder);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(read())? {
        let path = entry.map_err(read())?.path();
        let name = path.file_name().and_then(|name| name.to_str()).filter(|_| path.is_file());
        names.extend(name.map(str::to_owned));
    }
    let name = weights_among(&folder.display().to_string(), &names)?;
    Ok(folder.join(name))
}

/// Returns which of the files called `names`, which lie in `folder`, holds its weights: the first of
/// OpenCLIP's names that is there, else the first `.safetensors`, else the first `.bin` or `.pth`, by name.
/// Where an index of weights in parts (`NAME.index.json`) stands for the file, it is that.
///
/// # Errors
/// None of them, or parts of weights without an index.
pub fn weights_among<'a>(folder: &str, names: &'a [String]) -> Result<&'a str, Error> {
    let preferred = PREFERRED.iter().find_map(|preferred| {
        let index = format!("{preferred}{INDEX}");
        let named = |wanted: &str| names.iter().find(|name| *name == wanted);
        named(preferred).or_else(|| named(&index))
    });
    if let Some(name) = preferred {
        return Ok(name);
    }
    let mut others: Vec<_> = names.iter().filter_map(|name| Some((rank(name)?, name))).collect();
    others.sort();
    let Some((_, first)) = others.first() else { return Err(nothing(folder, names)) };
    if let [_, (_, second), ..] = others[..] {
        let (count, taken) = (others.len(), first.as_str());
        tracing::warn!(
            folder,
            taken,
            other = second.as_str(),
            count,
            "of several files of weights the \
             first is taken; name the file itself to take another"
        );
    }
    Ok(first)
}

/// Places names in the order they are taken in: none for what is no weights, or a part of some.
fn rank(name: &str) -> Option<(usize, bool)> {
    let (file, is_index) = match name.strip_suffix(INDEX) {
        Some(file) => (file, true),
        None => (name, false),
    };
    let ending = ENDINGS.iter().position(|ending| ending_of(file) == Some(ending))?;
    // As for OpenCLIP, .bin and .pth are alike.
    (is_index || !is_part(name)).then_some((ending.min(1), is_index))
}

fn ending_of(name: &str) -> Option<&str> {
    name.rsplit_once('.').map(|(_, ending)| ending)
}

/// Whether a name is that of one of several parts: `NAME-00001-of-00002.ENDING`.
fn is_part(name: &str) -> bool {
    fn number(digits: &str) -> Option<&str> {
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| digits.trim_start_matches('0'))
    }
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let of = stem.rsplit_once("-of-").and_then(|(before, count)| {
        let (_, part) = before.rsplit_once('-')?;
        Some((number(part)?, number(count)?))
    });
    // One part of one is all there is.
    of.is_some_and(|of| of != ("1", "1"))
}

/// Says what lies there instead of weights.
fn nothing(folder: &str, names: &[String]) -> Error {
    let folder = folder.to_owned();
    let weights = |name: &&String| ending_of(name).is_some_and(|ending| ENDINGS.contains(&ending));
    let mut parts: Vec<&str> = names.iter().filter(weights).map(String::as_str).collect();
    parts.sort_unstable();
    if let [part, ..] = parts[..] {
        return Error::NoIndex { folder, part: part.to_owned(), count: parts.len() };
    }
    let mut others: Vec<&str> = names.iter().map(String::as_str).collect();
    others.sort_unstable();
    let more = others.len().saturating_sub(SHOWN);
    others.truncate(SHOWN);
    let found = match (others.len(), more) {
        (0, _) => "there are no files in it".to_owned(),
        (_, 0) => format!("there is {}", others.join(", ")),
        (_, more) => format!("there are {} and {more} more files", others.join(", ")),
    };
    Error::NoWeights { folder, found, expected: PREFERRED.join(", ") }
}
