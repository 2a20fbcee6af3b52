//! Why a name leads to no weights.

use std::path::{Path, PathBuf};

/// What keeps a name from becoming files.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A path that is none.
    #[error(
        "there is no file or folder {}; a repository is named hf-hub:ORG/NAME, a folder \
         local-dir:FOLDER",
        path.display()
    )]
    NoFile { path: PathBuf },
    /// A folder without weights.
    #[error(
        "{folder} holds no weights: {found}; expected {expected} or another .safetensors, .bin or .pth, or \
         an index of parts of such (….index.json); other files are named by themselves"
    )]
    NoWeights {
        folder: String,
        found: String,
        /// The names that are looked for first.
        expected: String,
    },
    /// A folder with parts of weights and nothing that says which is which.
    #[error(
        "{folder} holds {count} part(s) of weights, such as {part}, and no index of them (….index.json); \
         fetch the index, too"
    )]
    NoIndex { folder: String, part: String, count: usize },
    /// An index of a repository's weights that cannot be used.
    #[error("the index of {repository}'s weights cannot be used")]
    Index {
        repository: String,
        #[source]
        source: crate::Error,
    },
    /// A repository that lacks a part which its index lists.
    #[error("{repository} has no {file}, which its {index} lists; the repository is incomplete")]
    NoPart { repository: String, file: String, index: String },
    /// A model without that tag.
    #[error("{model} has no pretrained weights {tag:?}; {}", known_tags(known))]
    UnknownTag { model: String, tag: String, known: Vec<&'static str> },
    /// A name that a hub cannot have, or that would leave the cache.
    #[error("{what} {name:?} is not usable: {constraint}")]
    Name { what: &'static str, name: String, constraint: &'static str },
    /// The cache lacks a file and the hub may not be asked.
    #[error(
        "{file} of {repository} is not in the cache {} and HF_HUB_OFFLINE forbids asking the hub; \
         unset it, or name a folder that holds the files by local-dir:",
        cache.display()
    )]
    NotCached { repository: String, file: String, cache: PathBuf },
    /// The repository has no such file.
    #[error("{repository} has no {file}")]
    NoSuchFile { repository: String, file: String },
    /// The hub has no such repository or revision.
    #[error("{endpoint} has no {what} {repository}; check its spelling and HF_ENDPOINT")]
    NoRepository {
        endpoint: String,
        /// `repository` or `revision`.
        what: &'static str,
        repository: String,
    },
    /// The hub wants to know who asks, or knows and refuses.
    #[error("{endpoint} refuses {repository} (status {status}): {remedy}")]
    Denied {
        endpoint: String,
        repository: String,
        /// 401 or 403.
        status: u16,
        remedy: String,
    },
    /// The hub answers with another status than expected.
    #[error("{url} answers with status {status}")]
    Status { url: String, status: u16 },
    /// The hub's answer lacks something or is not believed.
    #[error("{url} answers without a usable {what}: {found}; is HF_ENDPOINT a model hub?")]
    Answer { url: String, what: &'static str, found: String },
    /// The network.
    #[error(
        "cannot fetch {url}; check the network and HF_ENDPOINT, or name a folder that holds the \
         files by local-dir:"
    )]
    Network {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    /// A connection that broke more often than it is taken up again.
    #[error("{url} broke off after {done} of {} bytes, {attempts} times in a row; what came is kept, \
             and the next attempt goes on from there", known(*total))]
    BrokenOff {
        url: String,
        /// Bytes that came.
        done: u64,
        /// Bytes expected.
        total: Option<u64>,
        /// Attempts without a new byte.
        attempts: usize,
        #[source]
        source: Box<Self>,
    },
    /// What came is not what the hub announced.
    #[error(
        "{url} sent other content than announced: {what} is {found}, expected {expected}; it \
             was thrown away"
    )]
    Content {
        url: String,
        /// `size` or `sha256`.
        what: &'static str,
        found: String,
        expected: String,
    },
    /// Another process downloads the same file and makes no progress.
    #[error("{} has been locked for {seconds} s by a download that does not move; end that \
             process, or name another cache by HF_HUB_CACHE", path.display())]
    Locked {
        path: PathBuf,
        /// Seconds without progress.
        seconds: u64,
    },
    /// The cache cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    Cache {
        action: &'static str,
        path: PathBuf,
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
