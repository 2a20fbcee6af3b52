//! Which file of a folder holds its weights.

use std::path::{Path, PathBuf};

use super::{CONFIG, Error, Located, TOKENIZER};

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

/// Returns the files of a model's folder.
pub(super) fn locate(folder: &Path) -> Result<Located, Error> {
    let weights = weights_in(folder)?;
    let file = |name: &&str| Some(folder.join(name)).filter(|path| path.is_file());
    let config = file(&CONFIG);
    Ok(Located { weights, config, tokenizer: TOKENIZER.iter().filter_map(file).collect() })
}

/// Returns the file of a folder's weights: the first of OpenCLIP's names that is there, else the
/// first `.safetensors`, else the first `.bin` or `.pth`, by name.
///
/// # Errors
/// A folder that cannot be read or has no weights.
pub fn weights_in(folder: &Path) -> Result<PathBuf, Error> {
    let preferred = PREFERRED.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    if let Some(path) = preferred {
        return Ok(path);
    }
    let read = || Error::cache("read the folder", folder);
    let mut others = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(read())? {
        let path = entry.map_err(read())?.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        if path.is_file() && ending.is_some_and(|ending| ENDINGS.contains(&ending)) {
            // False comes before true.
            others.push((ending != Some(ENDINGS[0]), path));
        }
    }
    let first = others.into_iter().min();
    first.map(|(_, path)| path).ok_or_else(|| Error::NoWeights {
        folder: folder.to_owned(),
        expected: PREFERRED.join(", "),
    })
}
