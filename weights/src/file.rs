//! A file of weights, whatever its format.

use std::collections::BTreeMap;
use std::path::Path;

use crate::map::MappedFile;
use crate::pickle::{Pickle, Value, ValueRef};
use crate::{Error, Tensor, npz, safe, torch};

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// safetensors.
    SafeTensors,
    /// A PyTorch checkpoint, of any age.
    PyTorch,
    /// numpy's `.npz`.
    Npz,
}

/// An opened file of weights.
#[derive(Debug, Clone)]
pub struct Weights {
    path: std::path::PathBuf,
    format: Format,
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
    pickle: Option<Pickle>,
}

/// Keys of a dictionary that hold the model's, in the order they are looked for.
const WRAPPERS: [&str; 2] = ["state_dict", "model"];
/// What wrappers of modules put before every name: either may be around the other.
const PREFIXES: [&str; 3] = ["module.", "_orig_mod.", "module."];
/// What OpenAI's archives hold beside weights.
const NO_WEIGHTS: [&str; 3] = ["input_resolution", "context_length", "vocab_size"];

impl Weights {
    /// Opens a file; its content says what it is, not its name.
    ///
    /// # Errors
    /// A file that cannot be read, is of no known format, is not intact, or whose pickle names
    /// something that is not data.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = MappedFile::open(path)?;
        let mut weights = Self {
            path: path.to_owned(),
            format: Format::PyTorch,
            tensors: BTreeMap::new(),
            metadata: BTreeMap::new(),
            pickle: None,
        };
        if file.starts_with(b"PK\x03\x04") {
            match holds_a_pickle(&file) {
                true => weights.pickle = Some(torch::read_zip(&file)?),
                false => {
                    weights.format = Format::Npz;
                    weights.tensors = npz::read(&file)?;
                }
            }
        } else if torch::is_legacy(&file) {
            weights.pickle = Some(torch::read_legacy(&file)?);
        } else if file.get(8) == Some(&b'{') {
            weights.format = Format::SafeTensors;
            (weights.tensors, weights.metadata) = safe::read(&file)?;
        } else {
            return Err(Error::UnknownFormat { path: path.to_owned(), found: beginning(&file) });
        }
        if let Some(pickle) = &weights.pickle {
            weights.tensors = model(pickle.root())
                .map_err(|reason| Error::corrupt(path, "PyTorch checkpoint", reason))?;
        }
        weights.tensors = unwrapped(std::mem::take(&mut weights.tensors));
        Ok(weights)
    }

    /// Returns the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns what the file is.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Returns the metadata of a safetensors file.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Returns the value a PyTorch checkpoint is, with what lies beside the weights.
    pub fn root(&self) -> Option<ValueRef<'_>> {
        self.pickle.as_ref().map(Pickle::root)
    }

    /// Returns whether it is a TorchScript archive, as OpenAI ships its models.
    pub fn is_torch_script(&self) -> bool {
        let root = self.root().map(ValueRef::value);
        matches!(root, Some(Value::Object { class, .. }) if class.starts_with("__torch__."))
    }

    /// Returns the tensors by name, without what wraps a state dict: `state_dict`, `model`,
    /// `module.`, `_orig_mod.`, and the three numbers in OpenAI's archives.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// Returns the tensor called `name`.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, name: &str) -> Result<&Tensor, Error> {
        self.tensors
            .get(name)
            .ok_or_else(|| Error::NoTensor { path: self.path.clone(), name: name.to_owned() })
    }
}

/// Whether a zip archive is PyTorch's; numpy's has nothing but arrays.
fn holds_a_pickle(file: &MappedFile) -> bool {
    // Names stand in every entry's header; the pickle is the first or the second entry, and its
    // name also stands in the directory at the end of the archive.
    let name = b"data.pkl";
    let tail = file.len().saturating_sub(1 << 22);
    let holds = |part: &[u8]| part.windows(name.len()).any(|window| window == name);
    holds(&file[..file.len().min(4096)]) || holds(&file[tail..])
}

fn beginning(file: &MappedFile) -> String {
    let first = &file[..file.len().min(8)];
    match first {
        [] => "it is empty".to_owned(),
        _ if first.iter().all(|byte| (b' '..=b'~').contains(byte)) => {
            format!("{:?}", String::from_utf8_lossy(first))
        }
        _ => first.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "),
    }
}

/// Returns the tensors of the model in a checkpoint.
fn model(root: ValueRef<'_>) -> Result<BTreeMap<String, Tensor>, String> {
    let wrapped = WRAPPERS.iter().find_map(|key| root.get(key).filter(|value| value.is_mapping()));
    torch::named_tensors(wrapped.unwrap_or(root))
}

fn unwrapped(mut tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    for prefix in PREFIXES {
        if !tensors.is_empty() && tensors.keys().all(|name| name.starts_with(prefix)) {
            let strip = |name: String| name[prefix.len()..].to_owned();
            tensors = tensors.into_iter().map(|(name, tensor)| (strip(name), tensor)).collect();
        }
    }
    if tensors.contains_key("visual.conv1.weight") {
        tensors.retain(|name, _| !NO_WEIGHTS.contains(&name.as_str()));
    }
    tensors
}
