//! PyTorch's checkpoints: a pickle that says what there is, and the storages it names.

use std::collections::{BTreeMap, BTreeSet};

use crate::map::{Bytes, MappedFile};
use crate::npz::{self, entry, most_unpacked};
use crate::pickle::{self, Failure, Pickle, Reason, Storage, Value, ValueRef};
use crate::tensor::Content;
use crate::{DType, Error, Tensor};

const ZIP: &str = "PyTorch archive";
const LEGACY: &str = "PyTorch checkpoint of the format before 1.6";
/// First pickle of the legacy format.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Deepest module of a TorchScript archive that is looked at.
const DEEPEST: usize = 64;
/// Most attributes of a TorchScript archive that are looked at: modules that share modules may have
/// more paths than there are atoms.
const MOST: usize = 1 << 20;
/// Most attributes of a module that was pickled whole.
const MOST_OF_MODULE: usize = 1 << 12;
/// Most bytes of all their names.
const MOST_TEXT: usize = 1 << 26;

/// Reads a zip archive: `<name>/data.pkl` and `<name>/data/<key>`; of a TorchScript archive also
/// the tensors that its modules hold.
pub(crate) fn read_zip(file: &MappedFile) -> Result<Pickle, Error> {
    let corrupt = |reason: String| Error::corrupt(file.path(), ZIP, reason);
    let mut archive = npz::open(file)?;
    let mut entries = BTreeMap::new();
    let mut left = most_unpacked(file);
    for index in 0..archive.len() {
        let (name, bytes) = entry(file, &mut archive, index, &mut left)?;
        entries.insert(name, bytes);
    }
    let pickle = entries.keys().find(|name| *name == "data.pkl" || name.ends_with("/data.pkl"));
    let pickle = pickle.ok_or_else(|| corrupt("it has no data.pkl".to_owned()))?.clone();
    let folder = pickle.trim_end_matches("data.pkl").to_owned();
    if entries.get(&format!("{folder}byteorder")).is_some_and(|order| &order[..] == b"big") {
        let what = "a PyTorch archive of a big-endian machine";
        return Err(Error::unsupported(file.path(), what));
    }
    let mut view = |storage: &Storage, offset, shape, strides| {
        let name = format!("{folder}data/{}", storage.key);
        let bytes = entries.get(&name).ok_or_else(|| format!("its storage {name} is missing"))?;
        let expected = storage.len.saturating_mul(storage.dtype.size());
        if bytes.len() < expected {
            return Err(format!("{name} has {} bytes, expected {expected}", bytes.len()));
        }
        Tensor::new(storage.dtype, shape, strides, offset, bytes.clone())
    };
    let ran = pickle::run(&entries[&pickle], &mut view);
    ran.map(|(value, _)| value).map_err(|failure| fail(file, ZIP, &pickle, failure))
}

/// Returns whether a file begins as one of the legacy format: a pickle of a magic number.
pub(crate) fn is_legacy(bytes: &[u8]) -> bool {
    bytes.len() > 20 && bytes[0] == 0x80 && bytes[2] == 0x8a && bytes[4..].starts_with(&MAGIC)
}

/// Reads the legacy format: pickles of the magic number, the protocol, the machine, the data and
/// the storages' keys, then every storage: its length, 8 bytes, and its elements.
pub(crate) fn read_legacy(file: &MappedFile) -> Result<Pickle, Error> {
    let failed = |failure| fail(file, LEGACY, "the pickle", failure);
    let corrupt = |reason: String| Error::corrupt(file.path(), LEGACY, reason);
    let mut at = 0;
    for _ in 0..3 {
        let (_, end) = pickle::run(&file[at..], &mut no_tensors).map_err(failed)?;
        at += end;
    }
    let begin = at;
    // Once to find where the storages lie, once more to build tensors on them.
    let mut nothing = |_: &Storage, _, _, _| {
        Tensor::contiguous(DType::U8, vec![0], Bytes::Own(std::sync::Arc::default()))
    };
    let (named, end) = pickle::run(&file[begin..], &mut nothing).map_err(failed)?;
    let types: BTreeMap<&str, DType> =
        named.storages().map(|storage| (storage.key.as_str(), storage.dtype)).collect();
    at += end;
    let (keys, end) = pickle::run(&file[at..], &mut no_tensors).map_err(failed)?;
    at += end;
    let mut storages = BTreeMap::new();
    for key in keys.root().elements().filter_map(ValueRef::as_str) {
        let short = || corrupt(format!("storage {key} at byte {at} is cut short"));
        let len = file.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        let len = u64::from_le_bytes(len.ok_or_else(short)?);
        let Some(size) = types.get(key).map(|dtype| dtype.size()) else {
            let what =
                format!("a {LEGACY} with a storage of another type than numbers of 1 to 8 bytes");
            return Err(Error::unsupported(file.path(), what));
        };
        let len = usize::try_from(len).ok().and_then(|len| len.checked_mul(size));
        let end = len.and_then(|len| (at + 8).checked_add(len)).filter(|end| *end <= file.len());
        let end = end.ok_or_else(short)?;
        storages.insert(key.to_owned(), Bytes::Part(file.clone(), at + 8..end));
        at = end;
    }
    let mut view = |storage: &Storage, offset, shape, strides| {
        let bytes = storages.get(&storage.key);
        let bytes = bytes.ok_or_else(|| format!("its storage {} is missing", storage.key))?;
        Tensor::new(storage.dtype, shape, strides, offset, bytes.clone())
    };
    pickle::run(&file[begin..], &mut view).map(|(value, _)| value).map_err(failed)
}

fn no_tensors(_: &Storage, _: usize, _: Vec<usize>, _: Vec<usize>) -> Result<Tensor, String> {
    Err("a tensor where none belongs".to_owned())
}

fn fail(file: &MappedFile, format: &'static str, part: &str, failure: Failure) -> Error {
    let Failure { position, reason } = failure;
    let path = file.path().to_owned();
    match reason {
        Reason::Refused(global) => Error::Refused { path, part: part.to_owned(), global, position },
        Reason::Broken(reason) => {
            Error::Corrupt { path, format, reason: format!("{part}, byte {position}: {reason}") }
        }
    }
}

/// Returns what a dictionary holds by name, or a module, of TorchScript or pickled whole, and the modules
/// in it.
///
/// # Errors
/// Modules that hold one another so often that naming all they hold would never end.
pub(crate) fn named_tensors(root: ValueRef<'_>) -> Result<Content, String> {
    let mut walk = Walk { found: Content::default(), entries: MOST, text: MOST_TEXT };
    match walk.collect(root, "", 0) {
        Some(()) => Ok(walk.found),
        None => Err(format!("its modules hold more than {MOST} attributes; expected a model's")),
    }
}

struct Walk {
    found: Content,
    /// Attributes that may still be looked at.
    entries: usize,
    /// Bytes that their names may still have.
    text: usize,
}

impl Walk {
    /// Takes what a value holds; none if it is too much.
    fn collect(&mut self, value: ValueRef<'_>, prefix: &str, depth: usize) -> Option<()> {
        if !self.is_module(value)? {
            return self.take(value.entries(), prefix, depth);
        }
        let own = |part: &str| value.get(part).into_iter().flat_map(ValueRef::entries);
        let passing = value.get(PASSING).into_iter().flat_map(ValueRef::elements);
        let passing: BTreeSet<&str> = passing.filter_map(ValueRef::as_str).collect();
        self.take(own(PARAMETERS), prefix, depth)?;
        self.take(own(BUFFERS).filter(|(name, _)| !passing.contains(name)), prefix, depth)?;
        self.take(own(MODULES), prefix, depth)
    }

    fn take<'a>(
        &mut self,
        entries: impl Iterator<Item = (&'a str, ValueRef<'a>)>,
        prefix: &str,
        depth: usize,
    ) -> Option<()> {
        for (name, value) in entries {
            self.entries = self.entries.checked_sub(1)?;
            self.text = self.text.checked_sub(prefix.len() + name.len())?;
            let name = format!("{prefix}{name}");
            match value.value() {
                Value::Tensor(tensor) => drop(self.found.tensors.insert(name, (**tensor).clone())),
                Value::Object { class, .. } => {
                    if !is_script(class) && !self.is_module(value)? {
                        self.found.unreadable.insert(name, class.clone());
                    } else if depth < DEEPEST {
                        self.collect(value, &format!("{name}."), depth + 1)?;
                    }
                }
                _ => {}
            }
        }
        Some(())
    }

    /// Whether a value is a module that was pickled whole; looking costs as much as it has attributes.
    fn is_module(&mut self, value: ValueRef<'_>) -> Option<bool> {
        if !matches!(value.value(), Value::Object { .. }) || value.len() > MOST_OF_MODULE {
            return Some(false);
        }
        self.entries = self.entries.checked_sub(value.len())?;
        Some(is_module(value))
    }
}

/// Attributes of PyTorch's modules that hold their own parameters and buffers and the modules in them, and
/// the names of buffers that a state dict leaves out.
const PARAMETERS: &str = "_parameters";
const BUFFERS: &str = "_buffers";
const MODULES: &str = "_modules";
const PASSING: &str = "_non_persistent_buffers_set";

/// Whether a class is one of a TorchScript archive.
pub(crate) fn is_script(class: &str) -> bool {
    class.starts_with("__torch__.")
}

/// Whether an object is a module that was pickled whole, as `torch.save(model)` does.
fn is_module(object: ValueRef<'_>) -> bool {
    object.get(PARAMETERS).is_some() && object.get(MODULES).is_some()
}

/// Whether a value may hold a model's tensors by name.
pub(crate) fn is_model(value: ValueRef<'_>) -> bool {
    match value.value() {
        Value::Dict(_) => true,
        Value::Object { class, .. } => is_script(class) || is_module(value),
        _ => false,
    }
}
