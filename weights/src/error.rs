//! Why weights cannot be read.

use std::path::{Path, PathBuf};

/// A file that is not what it should be. Nothing in it was executed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened or mapped.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No known format begins like this.
    #[error(
        "{} begins like no weights that are known ({found}); expected safetensors, a PyTorch \
         checkpoint (.pt, .pth, .bin) or numpy's .npz",
        path.display()
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// Its first bytes, as text or hexadecimal numbers.
        found: String,
    },
    /// The file breaks the rules of its format.
    #[error("{} is not intact {format}: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What it seems to be.
        format: &'static str,
        /// Where and how, and what was expected.
        reason: String,
    },
    /// A pickle asks for a function or class that is not on the list of harmless ones.
    #[error(
        "{} wants to call {global} (at byte {position} of {part}), which loading weights never \
         needs: refused, and nothing was executed; if you trust where the file comes from, load it \
         in PyTorch and save its state_dict as safetensors",
        path.display()
    )]
    Refused {
        /// The file.
        path: PathBuf,
        /// The pickle inside it.
        part: String,
        /// What it named.
        global: String,
        /// Where it named it.
        position: usize,
    },
    /// No run can go on from the file.
    #[error("no run can go on from {}: {reason}", path.display())]
    Training {
        /// The file.
        path: PathBuf,
        /// What it lacks, and what to do instead.
        reason: String,
    },
    /// There is no tensor of that name.
    #[error("{} holds no tensor {name}", path.display())]
    NoTensor {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A tensor has another shape than its place in a model.
    #[error("{name} of {} has shape {found:?}; expected {expected}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// What was expected, in words.
        expected: String,
    },
}

impl Error {
    pub(crate) fn corrupt(path: &Path, format: &'static str, reason: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_owned(), format, reason: reason.into() }
    }
}
