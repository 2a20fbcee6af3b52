//! Where a model's configuration and weights lie.

use std::path::{Path, PathBuf};

use ringmaster_checkpoint as checkpoint;
use ringmaster_manifest::ModelCatalogue;
use ringmaster_manifest::model_config::{self, ModelConfig, PreprocessCfg};

/// Files of weights in a folder, in the order `open_clip` prefers them.
const WEIGHTS: [&str; 5] = [
    "open_clip_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
    "open_clip_model.pt",
];
/// The configuration in a folder.
pub const CONFIG: &str = "open_clip_config.json";
const LOCAL_DIR: &str = "local-dir:";
const HF_HUB: &str = "hf-hub:";

/// What a name stands for.
#[derive(Debug)]
pub struct Found {
    /// The model.
    pub config: ModelConfig,
    /// How images are prepared for it.
    pub preprocess: PreprocessCfg,
    /// Its weights, if there are any.
    pub weights: Option<Source>,
    /// The folder of the model, where it has one: its tokenizer may lie there.
    pub folder: Option<PathBuf>,
}

/// Where weights lie.
#[derive(Debug)]
pub enum Source {
    /// In a file.
    File(PathBuf),
    /// In a checkpoint of a run.
    Checkpoint(Box<checkpoint::Loaded>),
}

/// Why a name leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No model has this name.
    #[error(
        "no model is called {name:?}{}; `ringmaster models` lists all; a folder is named by \
         local-dir:FOLDER, a repository by hf-hub:ORG/NAME, a run's checkpoints by their URL",
        did_you_mean(nearest)
    )]
    UnknownModel {
        /// The name.
        name: String,
        /// Names that look like it.
        nearest: Vec<String>,
    },
    /// The folder of further configurations is not usable.
    #[error("the models that RINGMASTER_MODELS names cannot be used")]
    Catalogue(#[from] ringmaster_manifest::catalogue::Error),
    /// A file of a model's folder cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A folder's configuration is no model's.
    #[error("{} is no usable model configuration", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: model_config::Error,
    },
    /// A folder has no weights.
    #[error("{} holds no weights; expected one of {}", folder.display(), WEIGHTS.join(", "))]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },
    /// A repository is not in the local cache.
    #[error(
        "{repository} is not in the Hugging Face cache ({}); fetch it with `huggingface-cli \
         download {repository}`, or name a folder that holds its files by local-dir:",
        cache.display()
    )]
    NotCached {
        /// The repository.
        repository: String,
        /// The cache.
        cache: PathBuf,
    },
    /// A store or a checkpoint in it cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// A place holds no complete checkpoint.
    #[error("{url} holds no complete checkpoint")]
    NoCheckpoint {
        /// The URL.
        url: String,
    },
}

fn did_you_mean(nearest: &[String]) -> String {
    match nearest {
        [] => String::new(),
        names => format!(", did you mean {}?", names.join(", ")),
    }
}

/// Finds what `name` and `pretrained` stand for.
///
/// # Errors
/// A name that leads nowhere, and files there that cannot be used.
pub fn find(name: &str, pretrained: Option<&str>) -> Result<Found, Error> {
    let mut found = model(name)?;
    if let Some(pretrained) = pretrained {
        found.weights = Some(weights(pretrained)?);
    }
    Ok(found)
}

fn model(name: &str) -> Result<Found, Error> {
    if let Some(folder) = name.strip_prefix(LOCAL_DIR) {
        return in_folder(Path::new(folder));
    }
    if let Some(repository) = name.strip_prefix(HF_HUB) {
        return in_folder(&cached(repository)?);
    }
    if name.contains("://") {
        return of_run(name);
    }
    if Path::new(name).join(CONFIG).is_file() {
        return in_folder(Path::new(name));
    }
    let catalogue = ModelCatalogue::from_env()?;
    let unknown = || Error::UnknownModel {
        name: name.to_owned(),
        nearest: catalogue.nearest(name).into_iter().map(str::to_owned).collect(),
    };
    let config = catalogue.get(name).cloned().ok_or_else(unknown)?;
    let preprocess = catalogue.preprocess(name).ok_or_else(unknown)?;
    Ok(Found { config, preprocess, weights: None, folder: None })
}

/// Reads a folder as `open_clip`'s `local-dir:` does.
fn in_folder(folder: &Path) -> Result<Found, Error> {
    let path = folder.join(CONFIG);
    let text = std::fs::read_to_string(&path)
        .map_err(|source| Error::Read { path: path.clone(), source })?;
    let refuse = |source| Error::Config { path: path.clone(), source };
    let config = ModelConfig::from_json(&text).map_err(refuse)?;
    let preprocess = ModelConfig::preprocess_from_json(&text).map_err(refuse)?;
    let preprocess = preprocess.unwrap_or_else(|| PreprocessCfg::of_model("", &config));
    let file = WEIGHTS.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    let file = file.ok_or_else(|| Error::NoWeights { folder: folder.to_owned() })?;
    let weights = Some(Source::File(file));
    Ok(Found { config, preprocess, weights, folder: Some(folder.to_owned()) })
}

fn cached(repository: &str) -> Result<PathBuf, Error> {
    let cache = hub_cache();
    let snapshot = snapshot(&cache, repository).filter(|folder| folder.join(CONFIG).is_file());
    snapshot.ok_or_else(|| {
        let repository = repository.split('@').next().unwrap_or_default().to_owned();
        Error::NotCached { repository, cache }
    })
}

/// Returns the folder of a repository in a Hugging Face cache, if it is there: `ORG/NAME` or
/// `ORG/NAME@REVISION`.
pub(super) fn snapshot(cache: &Path, repository: &str) -> Option<PathBuf> {
    let (name, revision) = repository.split_once('@').unwrap_or((repository, "main"));
    let folder = cache.join(format!("models--{}", name.replace('/', "--")));
    let commit = std::fs::read_to_string(folder.join("refs").join(revision));
    let commit = commit.map_or_else(|_| revision.to_owned(), |text| text.trim().to_owned());
    Some(folder.join("snapshots").join(commit)).filter(|folder| folder.is_dir())
}

/// Returns the folder of Hugging Face's cache, by its environment variables.
pub(super) fn hub_cache() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(cache) = variable("HF_HUB_CACHE") {
        return cache.into();
    }
    let home = variable("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
        let cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| variable("HOME").map(|home| Path::new(&home).join(".cache")));
        cache.unwrap_or_default().join("huggingface")
    });
    home.join("hub")
}

/// Reads the newest checkpoint of a run, or the one named, with the model it was saved from.
fn of_run(url: &str) -> Result<Found, Error> {
    let chosen = checkpoint::choose(&[url])?;
    let loaded = chosen.ok_or_else(|| Error::NoCheckpoint { url: url.to_owned() })?.load()?;
    let model = &loaded.state.manifest.model;
    let mut config = model.config.clone();
    // A loss that has a bias gave the model one.
    if loaded.parameter("logit_bias").is_some() {
        config.init_logit_bias = config.init_logit_bias.or(Some(0.0));
    }
    let preprocess = model.preprocess();
    let weights = Some(Source::Checkpoint(Box::new(loaded)));
    Ok(Found { config, preprocess, weights, folder: None })
}

fn weights(pretrained: &str) -> Result<Source, Error> {
    if let Some(path) = pretrained.strip_prefix("file://").filter(|path| Path::new(path).is_file())
    {
        return Ok(Source::File(PathBuf::from(path)));
    }
    if !pretrained.contains("://") {
        return Ok(Source::File(PathBuf::from(pretrained)));
    }
    let chosen = checkpoint::choose(&[pretrained])?;
    let chosen = chosen.ok_or_else(|| Error::NoCheckpoint { url: pretrained.to_owned() })?;
    Ok(Source::Checkpoint(Box::new(chosen.load()?)))
}
