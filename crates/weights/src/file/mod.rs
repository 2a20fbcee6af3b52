//! A file of weights, whatever its format, or the files of an index.

pub mod parts;

use std::collections::BTreeMap;
use std::path::Path;

use crate::map::MappedFile;
use crate::pickle::{Pickle, Value, ValueRef};
use crate::tensor::Content;
use crate::{Error, Tensor, found, npz, safe, torch};

use parts::PartIndex;

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

/// An opened file of weights, or the files of an index.
#[derive(Debug, Clone)]
pub struct Weights {
    path: std::path::PathBuf,
    format: Format,
    tensors: BTreeMap<String, Tensor>,
    unreadable: BTreeMap<String, String>,
    pub(crate) metadata: BTreeMap<String, String>,
    pickle: Option<Pickle>,
    pub(crate) notes: Vec<String>,
}

/// Keys of a dictionary that hold the model's, in the order they are looked for.
const WRAPPERS: [&str; 2] = ["state_dict", "model"];
/// What wrappers of modules put before every name: either may be around the other.
const PREFIXES: [&str; 3] = ["module.", "_orig_mod.", "module."];
/// What OpenAI's archives hold beside weights.
const NO_WEIGHTS: [&str; 3] = ["input_resolution", "context_length", "vocab_size"];

impl Weights {
    /// Opens a file, or all files that an index of weights in parts lists; the content says which, not
    /// the name.
    ///
    /// # Errors
    /// A file that cannot be read, is of no known format, is not intact, holds no tensors, or whose
    /// pickle names something that runs programs; an index whose parts are absent or hold something else
    /// than it says.
    pub fn open(path: &Path) -> Result<Self, Error> {
        if path.is_dir() {
            return Err(Error::Folder { path: path.to_owned() });
        }
        let file = MappedFile::open(path)?;
        let mut weights = if parts::is_json(&file) {
            parts::open(&PartIndex::parse(path, &file)?)?
        } else {
            Self::of_file(&file)?
        };
        weights.unwrap();
        Ok(weights)
    }

    /// Reads one file; its tensors keep the names they have there.
    pub(crate) fn of_file(file: &MappedFile) -> Result<Self, Error> {
        let path = file.path();
        if file.starts_with(b"PK\x03\x04") {
            return if holds_a_pickle(file) {
                Self::of_pickle(path, torch::read_zip(file)?)
            } else {
                Ok(Self::of(path, Format::Npz, npz::read(file)?))
            };
        }
        if torch::is_legacy(file) {
            return Self::of_pickle(path, torch::read_legacy(file)?);
        }
        if file.get(8) == Some(&b'{') {
            let (content, metadata) = safe::read(file)?;
            return Ok(Self { metadata, ..Self::of(path, Format::SafeTensors, content) });
        }
        let path = path.to_owned();
        Err(match described(file) {
            Some(what) => Error::NoWeights { path, what },
            None => Error::UnknownFormat { path, found: beginning(file) },
        })
    }

    pub(crate) fn of(path: &Path, format: Format, content: Content) -> Self {
        Self {
            path: path.to_owned(),
            format,
            tensors: content.tensors,
            unreadable: content.unreadable,
            metadata: BTreeMap::new(),
            pickle: None,
            notes: Vec::new(),
        }
    }

    fn of_pickle(path: &Path, pickle: Pickle) -> Result<Self, Error> {
        let root = pickle.root();
        let content =
            model(root).map_err(|reason| Error::corrupt(path, "PyTorch checkpoint", reason))?;
        if content.tensors.is_empty() && content.unreadable.is_empty() {
            return Err(Error::NoTensors {
                path: path.to_owned(),
                found: root.in_words(),
                remedy: "load it in PyTorch and save the model's state_dict by itself",
            });
        }
        Ok(Self { pickle: Some(pickle), ..Self::of(path, Format::PyTorch, content) })
    }

    /// Takes away what wraps a state dict.
    fn unwrap(&mut self) {
        for prefix in PREFIXES {
            if self.tensors.is_empty() || !self.tensors.keys().all(|name| name.starts_with(prefix))
            {
                continue;
            }
            let strip =
                |name: String| name.strip_prefix(prefix).map_or(name.clone(), str::to_owned);
            let tensors = std::mem::take(&mut self.tensors).into_iter();
            self.tensors = tensors.map(|(name, tensor)| (strip(name), tensor)).collect();
            let others = std::mem::take(&mut self.unreadable).into_iter();
            self.unreadable = others.map(|(name, what)| (strip(name), what)).collect();
        }
        if self.tensors.contains_key("visual.conv1.weight") {
            self.tensors.retain(|name, _| !NO_WEIGHTS.contains(&name.as_str()));
        }
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
        matches!(root, Some(Value::Object { class, .. }) if torch::is_script(class))
    }

    /// Returns the tensors by name, without what wraps a state dict: `state_dict`, `model`,
    /// `module.`, `_orig_mod.`, and the three numbers in OpenAI's archives.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// Returns what is stored under a name and is no tensor that can be read, by that name: its type, in
    /// words.
    pub fn unreadable(&self) -> &BTreeMap<String, String> {
        &self.unreadable
    }

    /// Returns what was found odd on opening and does no harm, in sentences.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Returns the tensor called `name`.
    ///
    /// # Errors
    /// When there is none, or one of a type that is not read.
    pub fn get(&self, name: &str) -> Result<&Tensor, Error> {
        if let Some(tensor) = self.tensors.get(name) {
            return Ok(tensor);
        }
        Err(match self.unreadable.get(name) {
            Some(what) => Error::Unreadable {
                path: self.path.clone(),
                name: name.to_owned(),
                what: what.clone(),
            },
            None => Error::NoTensor { path: self.path.clone(), name: name.to_owned() },
        })
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

/// Where a tar says that it is one.
const TAR_MAGIC: usize = 257;

/// What a file is that is no weights, where that can be told.
fn described(file: &MappedFile) -> Option<String> {
    let start = &file[..file.len().min(found::BEGINNING)];
    found::described(start).or_else(|| {
        if start.get(TAR_MAGIC..).is_some_and(|rest| rest.starts_with(b"ustar")) {
            return Some("a tar archive; unpack it with tar -xf".to_owned());
        }
        // Protocols 2 to 5, each followed by an instruction that begins a value or a frame.
        let plain = matches!(start, [0x80, 2..=5, b'}' | b']' | b'c' | b'(' | b'X' | 0x8c | 0x95, ..]);
        plain.then(|| {
            "a pickle without what PyTorch puts around it, as pickle.dump and joblib write it; load it in \
             Python and save the weights with torch.save"
                .to_owned()
        })
    })
}

/// Returns the model in a checkpoint.
fn model(root: ValueRef<'_>) -> Result<Content, String> {
    let wrapped =
        WRAPPERS.iter().find_map(|key| root.get(key).filter(|value| torch::is_model(*value)));
    torch::named_tensors(wrapped.unwrap_or(root))
}
