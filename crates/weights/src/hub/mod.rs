//! Weights by name: files, folders, repositories of a model hub, and OpenCLIP's pretrained tags.
//!
//! [`resolve`] turns a name into files, [`resolve_tag`] does so for a model and one of OpenCLIP's
//! tags. What a hub sends lies in the cache that Python's `huggingface_hub` keeps, in its layout, so
//! that either finds what the other fetched. Modules in reading order: `settings` (the environment),
//! `repository` (names that are safe as paths), `cache` (the layout on disk), `client` (what the hub
//! answers), `download` (bytes, resumed and verified), `folder` (which file of a folder), `tags`.
//!
//! Not the crate hf-hub, as of 1.0.0. Its cache has the same layout, and it can be kept offline call by call, but:
//! what came is given its name without a look at its SHA-256; a download that broke off begins again at its first
//! byte, in the same `.incomplete` file that Python would go on with; a lock is waited for 10 s, however well its
//! holder gets on; and it needs reqwest with its default TLS (aws-lc-rs, which deny.toml bans) and hf-xet.

mod cache;
mod client;
mod download;
mod error;
mod folder;
mod repository;
mod settings;
mod tag_table;
mod tags;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::path::{Path, PathBuf};

pub use download::Progress;
pub use error::Error;
pub use folder::{weights_among, weights_in};
pub use repository::Repository;
pub use settings::Settings;
pub use tags::{Preprocess, Tag, tag, tags};

use crate::file::parts::{INDEX, PartIndex};
use cache::Cache;
use client::Client;
use ringmaster_words::{HF_HUB, LOCAL_DIR};

/// Configuration of a folder or a repository: `model_cfg` and `preprocess_cfg`.
pub const CONFIG: &str = "open_clip_config.json";
/// Weights of a repository, in the order OpenCLIP looks for them, and then those of a single tower, as
/// timm and transformers name them.
const WEIGHTS: [&str; 4] = [
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
];
/// What a tokenizer may consist of.
const TOKENIZER: [&str; 6] = [
    "tokenizer.json",
    "spiece.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
];

/// What is told of a download while it runs.
pub type OnProgress<'a> = &'a mut (dyn FnMut(Progress<'_>) + Send);

/// Files that a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The weights.
    pub weights: PathBuf,
    /// The `open_clip_config.json` beside them, if there is one.
    pub config: Option<PathBuf>,
    /// Files of a tokenizer beside them.
    pub tokenizer: Vec<PathBuf>,
}

/// Finds the files of `local-dir:FOLDER`, `hf-hub:ORG/NAME[@REVISION]`, or the path of a file or
/// folder. Files of a repository are downloaded where the cache lacks them.
///
/// # Errors
/// A name that leads nowhere, a folder or repository without weights, and what keeps a file from
/// being fetched.
pub fn resolve(name: &str, hub: &Hub, on_progress: OnProgress<'_>) -> Result<Located, Error> {
    if let Some(folder) = name.strip_prefix(LOCAL_DIR) {
        return folder::locate(Path::new(folder));
    }
    if let Some(repository) = name.strip_prefix(HF_HUB) {
        return in_repository(&Repository::parse(repository)?, &TOKENIZER, hub, on_progress);
    }
    let path = Path::new(name);
    if path.is_dir() {
        return folder::locate(path);
    }
    if path.is_file() {
        Ok(Located { weights: path.to_owned(), config: None, tokenizer: Vec::new() })
    } else {
        Err(Error::NoFile { path: path.to_owned() })
    }
}

/// Finds the weights of `model` under OpenCLIP's tag, and what the tag says of their use. The
/// tokenizer is the model's own and is not fetched.
///
/// # Errors
/// A tag that the model does not have, and as [`resolve`].
pub fn resolve_tag(
    model: &str,
    name: &str,
    hub: &Hub,
    on_progress: OnProgress<'_>,
) -> Result<(Located, &'static Tag), Error> {
    let tag = tag(model, name).ok_or_else(|| Error::UnknownTag {
        model: model.to_owned(),
        tag: name.to_owned(),
        known: tags(model).map(|tag| tag.name).collect(),
    })?;
    let repository = Repository::parse(tag.repository)?;
    Ok((in_repository(&repository, &[], hub, on_progress)?, tag))
}

fn in_repository(
    repository: &Repository,
    tokenizer: &[&str],
    hub: &Hub,
    on_progress: OnProgress<'_>,
) -> Result<Located, Error> {
    let config = hub.fetch_if_present(repository, CONFIG, &mut *on_progress)?;
    let weights = weights_of(repository, hub, &mut *on_progress)?;
    let mut files = Vec::new();
    for file in tokenizer {
        files.extend(hub.fetch_if_present(repository, file, &mut *on_progress)?);
    }
    let weights = match weights {
        Some(weights) => weights,
        // Says whether there are none, or none that the hub could give now.
        None => hub.fetch(repository, WEIGHTS[0], on_progress).map_err(|error| match error {
            Error::NoSuchFile { .. } | Error::NotCached { .. } => hub.no_weights(repository),
            error => error,
        })?,
    };
    Ok(Located { weights, config, tokenizer: files })
}

/// Finds a repository's weights: a file, or the index of parts, all of which are fetched.
fn weights_of(
    repository: &Repository,
    hub: &Hub,
    on_progress: OnProgress<'_>,
) -> Result<Option<PathBuf>, Error> {
    for file in WEIGHTS {
        let whole = hub.fetch_if_present(repository, file, &mut *on_progress)?;
        if whole.is_some() {
            return Ok(whole);
        }
        let index = format!("{file}{INDEX}");
        if let Some(index) = hub.fetch_if_present(repository, &index, &mut *on_progress)? {
            hub.fetch_parts(repository, &index, on_progress)?;
            return Ok(Some(index));
        }
    }
    Ok(None)
}

/// A hub of models, and the cache of what came from it.
#[derive(Debug)]
pub struct Hub {
    settings: Settings,
}

impl Hub {
    /// Makes a hub of these settings; nothing is contacted before a file is asked for.
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// Returns the path of a repository's file in the cache; downloads it if it is not there or has
    /// changed. A hub that cannot be reached does not matter if the cache has the file.
    ///
    /// # Errors
    /// [`Error::NotCached`] where the hub may not be asked, and what the hub, the network or the
    /// disk has against it.
    pub fn fetch(
        &self,
        repository: &Repository,
        file: &str,
        on_progress: OnProgress<'_>,
    ) -> Result<PathBuf, Error> {
        repository::check_file(file)?;
        let cache = Cache::new(&self.settings.cache, repository);
        // A commit never changes.
        if let Some(path) = repository.commit().and_then(|commit| cache.find(commit, file)) {
            return Ok(path);
        }
        if self.settings.offline {
            return cache.current(repository.revision(), file).ok_or_else(|| Error::NotCached {
                repository: repository.to_string(),
                file: file.to_owned(),
                cache: self.settings.cache.clone(),
            });
        }
        // A thread of its own: the caller may itself be driven by a runtime, which must not block.
        std::thread::scope(|scope| {
            let work = || self.online(&cache, repository, file, on_progress);
            let thread = std::thread::Builder::new().name("hub".to_owned());
            let thread = thread.spawn_scoped(scope, work).map_err(Error::Start)?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn online(
        &self,
        cache: &Cache,
        repository: &Repository,
        file: &str,
        on_progress: OnProgress<'_>,
    ) -> Result<PathBuf, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(Error::Start)?.block_on(async {
            let client = Client::new(&self.settings)?;
            match client.head(repository, file).await {
                Ok(found) => download::store(&client, cache, repository, &found, on_progress).await,
                Err(error) if error.is_of_the_network() => {
                    let path = cache.current(repository.revision(), file).ok_or(error)?;
                    tracing::warn!(%repository, file, "hub out of reach, the cached file is used");
                    Ok(path)
                }
                Err(error) => Err(error),
            }
        })
    }

    /// As [`Self::fetch`], none where the repository has no such file. A hub that cannot be reached is no
    /// failure where the cache holds something of this revision: what it lacks was not there.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub fn fetch_if_present(
        &self,
        repository: &Repository,
        file: &str,
        on_progress: OnProgress<'_>,
    ) -> Result<Option<PathBuf>, Error> {
        match self.fetch(repository, file, on_progress) {
            Ok(path) => Ok(Some(path)),
            Err(Error::NoSuchFile { .. } | Error::NotCached { .. }) => Ok(None),
            Err(error) if error.is_of_the_network() => {
                let cache = Cache::new(&self.settings.cache, repository);
                if cache.knows(repository.revision()) { Ok(None) } else { Err(error) }
            }
            Err(error) => Err(error),
        }
    }

    /// Fetches what an index in the cache lists, of the commit that the index is of.
    fn fetch_parts(
        &self,
        repository: &Repository,
        index: &Path,
        on_progress: OnProgress<'_>,
    ) -> Result<(), Error> {
        let unusable = |source| Error::Index { repository: repository.to_string(), source };
        let text = std::fs::read(index).map_err(Error::cache("read", index))?;
        let listed = PartIndex::parse(index, &text).map_err(unusable)?;
        let commit = index.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        let repository = repository.at(commit.unwrap_or_default());
        for part in listed.parts() {
            self.fetch(&repository, part, &mut *on_progress).map_err(|error| match error {
                Error::NoSuchFile { repository, file } => {
                    let index =
                        index.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    Error::NoPart { repository, file, index }
                }
                error => error,
            })?;
        }
        Ok(())
    }

    fn no_weights(&self, repository: &Repository) -> Error {
        let file = format!("{} (whole, or in parts with {INDEX})", WEIGHTS.join(" or "));
        let repository = repository.to_string();
        if self.settings.offline {
            Error::NotCached { repository, file, cache: self.settings.cache.clone() }
        } else {
            Error::NoSuchFile { repository, file }
        }
    }
}
