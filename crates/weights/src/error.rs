//! Why weights cannot be read.

use std::path::{Path, PathBuf};

/// A file that is not what it should be. Nothing in it was executed.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened or mapped.
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A folder where a file is read.
    #[error("{} is a folder; name the file of weights in it, or its index (….index.json)", path.display())]
    Folder { path: PathBuf },
    /// The file is something else, which is known.
    #[error(
        "{} is {what}; expected safetensors, a PyTorch checkpoint (.pt, .pth, .bin), numpy's .npz or \
         an index of weights in parts (….index.json)",
        path.display()
    )]
    NoWeights {
        path: PathBuf,
        /// What it is, and what to do about it.
        what: String,
    },
    /// No known format begins like this.
    #[error(
        "{} begins like no weights that are known ({found}); expected safetensors, a PyTorch \
         checkpoint (.pt, .pth, .bin), numpy's .npz or an index of weights in parts (….index.json)",
        path.display()
    )]
    UnknownFormat {
        path: PathBuf,
        /// Its first bytes, as text or hexadecimal numbers.
        found: String,
    },
    /// A file of a known format without a tensor by name.
    #[error("{} holds no tensors by name: it is {found}; {remedy}", path.display())]
    NoTensors { path: PathBuf, found: String, remedy: &'static str },
    /// An index of weights in parts that cannot be followed, or that its parts do not bear out.
    #[error("{} cannot be followed: {reason}", path.display())]
    Index {
        path: PathBuf,
        /// What it says or lacks, and what to do.
        reason: String,
    },
    /// What this build does not read although nothing is wrong with the file.
    #[error("{} is {what}, which is not read here; {remedy}", path.display())]
    Unsupported { path: PathBuf, what: String, remedy: &'static str },
    /// The file breaks the rules of its format.
    #[error("{} is no intact {format}: {reason}", path.display())]
    Corrupt {
        path: PathBuf,
        format: &'static str,
        /// Where and how, and what was expected.
        reason: String,
    },
    /// A pickle asks for something that runs programs or code.
    #[error(
        "{} wants to call {global} (at byte {position} of {part}), which loading weights never \
         needs: refused, and nothing was executed; if you trust where the file comes from, load it \
         in PyTorch and save its state_dict as safetensors",
        path.display()
    )]
    Refused {
        path: PathBuf,
        /// The pickle inside it.
        part: String,
        global: String,
        position: usize,
    },
    /// No run can go on from the file.
    #[error("no run can go on from {}: {reason}", path.display())]
    Training {
        path: PathBuf,
        /// What it lacks, and what to do instead.
        reason: String,
    },
    /// There is no tensor of that name.
    #[error("{} holds no tensor {name}", path.display())]
    NoTensor { path: PathBuf, name: String },
    /// What is stored under that name is of a type that is not read.
    #[error(
        "{name} of {} is stored as {what}, which is not read here; convert it with the library that \
         wrote it and save it again",
        path.display()
    )]
    Unreadable {
        path: PathBuf,
        name: String,
        /// Its type, in words.
        what: String,
    },
    /// A tensor has another shape than its place in a model.
    #[error("{name} of {} has shape {found:?}; expected {expected}", path.display())]
    Shape {
        path: PathBuf,
        name: String,
        found: Vec<usize>,
        /// What was expected, in words.
        expected: String,
    },
}

impl Error {
    /// Names what is not read although the file may be right.
    pub(crate) fn unsupported(path: &Path, what: impl Into<String>) -> Self {
        let remedy = "load it with the library that wrote it and save it as safetensors";
        Self::Unsupported { path: path.to_owned(), what: what.into(), remedy }
    }

    pub(crate) fn corrupt(path: &Path, format: &'static str, reason: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_owned(), format, reason: reason.into() }
    }
}
