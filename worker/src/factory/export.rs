//! Folders that other tools load.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use ringmaster_manifest::model_config::PreprocessCfg;
use ringmaster_weights::hub;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::transformers;
use crate::model::{Clip, Entry};

/// Whose folder it becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Layout {
    /// `open_clip.create_model_and_transforms('local-dir:FOLDER')` and `hf-hub:` load it.
    OpenClip,
    /// `transformers.CLIPModel.from_pretrained` or `SiglipModel.from_pretrained` load it.
    Transformers,
}

/// Why a model cannot be exported.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The tensors cannot be written.
    #[error("cannot write {}: {reason}", path.display())]
    Tensors { path: PathBuf, reason: String },
    /// The other library has no such model.
    #[error("transformers has no model like this one: {reason}; export it for open_clip")]
    NoCounterpart { reason: String },
}

/// A tensor on its way to a file.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) shape: Vec<usize>,
    pub(super) dtype: Dtype,
    pub(super) bytes: Vec<u8>,
}

impl Stored {
    pub(super) fn f32(shape: &[i64], values: &[f32]) -> Self {
        Self {
            shape: shape.iter().map(|size| *size as usize).collect(),
            dtype: Dtype::F32,
            bytes: bytemuck::cast_slice(values).to_vec(),
        }
    }
}

/// Writes `folder`: configuration first, weights last, each under a temporary name that is then
/// changed, so that a folder with weights is complete.
///
/// # Errors
/// A file that cannot be written, and a model the other library does not have.
pub fn export(
    clip: &Clip,
    preprocess: &PreprocessCfg,
    layout: Layout,
    folder: &Path,
) -> Result<(), Error> {
    let (files, weights, tensors): (Vec<(&str, Value)>, _, _) = match layout {
        Layout::OpenClip => {
            let config = json!({
                "model_cfg": clip.config().to_json(),
                "preprocess_cfg": preprocess,
            });
            (vec![(hub::CONFIG, config)], "open_clip_model.safetensors", open_clip(clip))
        }
        Layout::Transformers => {
            let (config, tensors) = transformers::convert(clip)?;
            let files = vec![
                ("config.json", config),
                ("preprocessor_config.json", transformers::preprocessor(clip, preprocess)?),
            ];
            (files, "model.safetensors", tensors)
        }
    };
    let write = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Write { path, source }
    };
    std::fs::create_dir_all(folder).map_err(write(folder))?;
    for (name, content) in files {
        let path = folder.join(name);
        let text = serde_json::to_string_pretty(&content).expect("plain data serialises");
        replace(&path, (text + "\n").as_bytes()).map_err(write(&path))?;
    }
    save(&folder.join(weights), &tensors)
}

/// Writes a file that is either the old or the new one.
fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, content)?;
    std::fs::rename(&partial, path)
}

/// Writes tensors as safetensors, as PyTorch's users have them.
///
/// # Errors
/// A file that cannot be written.
pub(super) fn save(path: &Path, tensors: &BTreeMap<String, Stored>) -> Result<(), Error> {
    let fail = |reason: String| Error::Tensors { path: path.to_owned(), reason };
    let views = tensors.iter().map(|(name, stored)| {
        let view = TensorView::new(stored.dtype, stored.shape.clone(), &stored.bytes);
        view.map(|view| (name.as_str(), view)).map_err(|error| fail(error.to_string()))
    });
    let views: Vec<_> = views.collect::<Result<_, _>>()?;
    let metadata = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
    let partial = path.with_extension("partial");
    safetensors::serialize_to_file(views, Some(metadata), &partial)
        .map_err(|error| fail(error.to_string()))?;
    // The library keeps files to their owner; weights are as readable as what lies beside them.
    let readable = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(&partial, readable).map_err(|error| fail(error.to_string()))?;
    std::fs::rename(&partial, path).map_err(|error| fail(error.to_string()))
}

/// Returns the state dict, as `open_clip` saves it: f32, and counters as i64.
fn open_clip(clip: &Clip) -> BTreeMap<String, Stored> {
    clip.params()
        .entries()
        .iter()
        .map(|entry| {
            let values = values(clip, entry);
            let counter = entry.name.ends_with("num_batches_tracked");
            let stored = if counter {
                Stored {
                    shape: vec![],
                    dtype: Dtype::I64,
                    bytes: (values[0] as i64).to_le_bytes().to_vec(),
                }
            } else {
                Stored::f32(&entry.shape, &values)
            };
            (entry.name.clone(), stored)
        })
        .collect()
}

/// Returns a parameter's values on the host, in f32.
pub(super) fn values(clip: &Clip, entry: &Entry) -> Vec<f32> {
    let part: Tensor = clip.params().flat().narrow(0, entry.offset as i64, entry.len as i64);
    let part = part.to_device(Device::Cpu).to_kind(Kind::Float);
    Vec::try_from(&part).expect("a flat f32 tensor on the host is a vector")
}
