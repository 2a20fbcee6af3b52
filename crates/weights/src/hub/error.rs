//! Why a name leads to no weights.

use std::path::{Path, PathBuf};

/// What keeps a name from becoming files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A path that is none.
    #[error(
        "there is no file or folder {}; a repository is named hf-hub:ORG/NAME, a folder \
         local-dir:FOLDER",
        path.display()
    )]
    NoFile {
        /// The path.
        path: PathBuf,
    },
    /// A folder without weights.
    #[error(
        "{folder} holds no weights: {found}; expected {expected} or another .safetensors, .bin or .pth, or \
         an index of parts of such (….index.json); other files are named by themselves"
    )]
    NoWeights {
        /// The folder.
        folder: String,
        /// What it holds instead.
        found: String,
        /// The names that are looked for first.
        expected: String,
    },
    /// A folder with parts of weights and nothing that says which is which.
    #[error(
        "{folder} holds {count} part(s) of weights, such as {part}, and no index of them (….index.json); \
         fetch the index, too"
    )]
    NoIndex {
        /// The folder.
        folder: String,
        /// One of the parts.
        part: String,
        /// How many there are.
        count: usize,
    },
    /// An index of a repository's weights that cannot be used.
    #[error("the index of {repository}'s weights cannot be used")]
    Index {
        /// The repository.
        repository: String,
        /// Why.
        #[source]
        source: crate::Error,
    },
    /// A repository that lacks a part which its index lists.
    #[error("{repository} has no {file}, which its {index} lists; the repository is incomplete")]
    NoPart {
        /// The repository.
        repository: String,
        /// The part.
        file: String,
        /// The index.
        index: String,
    },
    /// A model without that tag.
    #[error("{model} has no pretrained weights {tag:?}; {}", known_tags(known))]
    UnknownTag {
        /// The model.
        model: String,
        /// What was asked for.
        tag: String,
        /// What there is.
        known: Vec<&'static str>,
    },
    /// A name that a hub cannot have, or that would leave the cache.
    #[error("{what} {name:?} is not usable: {constraint}")]
    Name {
        /// Of what.
        what: &'static str,
        /// The name.
        name: String,
        /// What it has to be like.
        constraint: &'static str,
    },
    /// The cache lacks a file and the hub may not be asked.
    #[error(
        "{file} of {repository} is not in the cache {} and HF_HUB_OFFLINE forbids asking the hub; \
         unset it, or name a folder that holds the files by local-dir:",
        cache.display()
    )]
    NotCached {
        /// The repository.
        repository: String,
        /// The file.
        file: String,
        /// The cache.
        cache: PathBuf,
    },
    /// The repository has no such file.
    #[error("{repository} has no {file}")]
    NoSuchFile {
        /// The repository.
        repository: String,
        /// The file.
        file: String,
    },
    /// The hub has no such repository or revision.
    #[error("{endpoint} has no {what} {repository}; check its spelling and HF_ENDPOINT")]
    NoRepository {
        /// The hub.
        endpoint: String,
        /// `repository` or `revision`.
        what: &'static str,
        /// The name.
        repository: String,
    },
    /// The hub wants to know who asks, or knows and refuses.
    #[error("{endpoint} refuses {repository} (status {status}): {remedy}")]
    Denied {
        /// The hub.
        endpoint: String,
        /// The repository.
        repository: String,
        /// 401 or 403.
        status: u16,
        /// What to do.
        remedy: String,
    },
    /// The hub answers with another status than expected.
    #[error("{url} answers with status {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// The status.
        status: u16,
    },
    /// The hub's answer lacks something or is not believed.
    #[error("{url} answers without a usable {what}: {found}; is HF_ENDPOINT a model hub?")]
    Answer {
        /// What was asked for.
        url: String,
        /// The header.
        what: &'static str,
        /// What it was.
        found: String,
    },
    /// The network.
    #[error(
        "cannot fetch {url}; check the network and HF_ENDPOINT, or name a folder that holds the \
         files by local-dir:"
    )]
    Network {
        /// What was asked for.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// A connection that broke more often than it is taken up again.
    #[error("{url} broke off after {done} of {} bytes, {attempts} times in a row; what came is kept, \
             and the next attempt goes on from there", known(*total))]
    BrokenOff {
        /// What was asked for.
        url: String,
        /// Bytes that came.
        done: u64,
        /// Bytes expected.
        total: Option<u64>,
        /// Attempts without a new byte.
        attempts: u32,
        /// The last failure.
        #[source]
        source: Box<Self>,
    },
    /// What came is not what the hub announced.
    #[error(
        "{url} sent other content than announced: {what} is {found}, expected {expected}; it \
             was thrown away"
    )]
    Content {
        /// What was asked for.
        url: String,
        /// `size` or `sha256`.
        what: &'static str,
        /// What came.
        found: String,
        /// What was announced.
        expected: String,
    },
    /// Another process downloads the same file and makes no progress.
    #[error("{} has been locked for {seconds} s by a download that does not move; end that \
             process, or name another cache by HF_HUB_CACHE", path.display())]
    Locked {
        /// The lock.
        path: PathBuf,
        /// Seconds without progress.
        seconds: u64,
    },
    /// The cache cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    Cache {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No thread or runtime for the download.
    #[error("cannot start a download")]
    Start(#[source] std::io::Error),
}

impl Error {
    pub(super) fn cache(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Cache { action, path, source }
    }

    /// Whether the hub was not reached, or was and could not answer: it may later.
    pub fn is_of_the_network(&self) -> bool {
        match self {
            Self::Network { .. } | Self::BrokenOff { .. } => true,
            Self::Status { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }

    /// Whether another attempt may do better without anybody's help.
    pub fn may_pass(&self) -> bool {
        self.is_of_the_network()
            || matches!(self, Self::Content { .. } | Self::Locked { .. } | Self::Cache { .. })
    }
}

fn known_tags(known: &[&str]) -> String {
    match known {
        [] => "none are known for it; name a file, local-dir:FOLDER or hf-hub:ORG/NAME".to_owned(),
        names => format!("it has {}", names.join(", ")),
    }
}

fn known(total: Option<u64>) -> String {
    total.map_or_else(|| "unknown".to_owned(), |total| total.to_string())
}
