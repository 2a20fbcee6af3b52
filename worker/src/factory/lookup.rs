//! Where a model's configuration lies, and what it names of weights.

use std::path::{Path, PathBuf};

use ringmaster_checkpoint as checkpoint;
use ringmaster_manifest::ModelCatalogue;
use ringmaster_manifest::model_config::{self, ModelConfig, PreprocessCfg};
use ringmaster_weights::found;
use ringmaster_weights::hub::{self, Repository};
use ringmaster_words as words;

use super::source::{self, HF_HUB, LOCAL_DIR, Pretrained, Source};

/// What a name stands for.
#[derive(Debug)]
pub struct Found {
    /// The model.
    pub config: ModelConfig,
    /// How images are prepared for it.
    pub preprocess: PreprocessCfg,
    /// Its weights, if there are any.
    pub weights: Option<Source>,
    /// Whether the weights are known to have been trained with QuickGELU, or without.
    pub quick_gelu: Option<bool>,
}

/// Why a name leads nowhere.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No model has this name.
    #[error(
        "no model is called {name:?}{}; `ringmaster models` lists all; a folder is named by \
         local-dir:FOLDER, a repository by hf-hub:ORG/NAME, a run's checkpoints by their URL",
        words::did_you_mean(", ", nearest)
    )]
    UnknownModel {
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
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A folder's configuration is something else.
    #[error("{} is {what}", path.display())]
    Other {
        path: PathBuf,
        /// What it is, and what to do.
        what: String,
    },
    /// A folder's configuration is no model's.
    #[error("{} is no usable model configuration", path.display())]
    Config {
        path: PathBuf,
        #[source]
        source: model_config::Error,
    },
    /// A folder or repository has no weights, or cannot be fetched.
    #[error(transparent)]
    Hub(#[from] hub::Error),
    /// A store or a checkpoint in it cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// A place holds no complete checkpoint.
    #[error("{url} holds no complete checkpoint")]
    NoCheckpoint { url: String },
    /// A folder of a store with nothing in it.
    #[error(
        "{url} holds neither checkpoints of a run nor files; check its spelling: a store knows no empty \
         folders"
    )]
    Nothing { url: String },
    /// A URL on a web server that does not end as a file of weights.
    #[error(
        "{url} does not end as a file of weights does (.safetensors, .bin, .pt, .pth, .npz, .index.json), \
         and web servers list no folders; name the file itself"
    )]
    WebFolder { url: String },
    /// An index of weights in parts cannot be followed.
    #[error(transparent)]
    Index(#[from] ringmaster_weights::Error),
    /// The cache cannot be written.
    #[error("cannot make the link {}", path.display())]
    Cache {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl Found {
    /// Takes over weights and what is known of their use.
    fn take(&mut self, pretrained: Pretrained) {
        let Pretrained { source, quick_gelu, preprocess } = pretrained;
        self.quick_gelu = quick_gelu;
        if let Some(preprocess) = preprocess {
            self.preprocess = PreprocessCfg { size: self.preprocess.size, ..preprocess };
        }
        self.weights = Some(source);
    }
}

/// Finds what `name` and `pretrained` stand for.
///
/// # Errors
/// A name that leads nowhere, and files there that cannot be used or fetched.
pub fn find(name: &str, pretrained: Option<&str>) -> Result<Found, Error> {
    let mut found = model(name)?;
    if let Some(pretrained) = pretrained {
        found.take(source::find(name, pretrained)?);
    }
    Ok(found)
}

fn model(name: &str) -> Result<Found, Error> {
    let named = name.starts_with(LOCAL_DIR) || name.starts_with(HF_HUB);
    if named || Path::new(name).join(hub::CONFIG).is_file() {
        return of_folder(name);
    }
    if name.contains("://") {
        return of_run(name);
    }
    let catalogue = ModelCatalogue::from_env()?;
    let unknown = || Error::UnknownModel {
        name: name.to_owned(),
        nearest: catalogue.nearest(name).into_iter().map(str::to_owned).collect(),
    };
    let config = catalogue.get(name).cloned().ok_or_else(unknown)?;
    let preprocess = catalogue.preprocess(name).ok_or_else(unknown)?;
    Ok(Found { config, preprocess, weights: None, quick_gelu: None })
}

/// Reads a folder or a repository as `open_clip` does.
fn of_folder(name: &str) -> Result<Found, Error> {
    let located = hub::resolve(name, &source::hub(), &mut source::report())?;
    let beside = || located.weights.with_file_name(hub::CONFIG);
    let path = located.config.clone().unwrap_or_else(beside);
    let text = std::fs::read_to_string(&path)
        .map_err(|source| Error::Read { path: path.clone(), source })?;
    if let Some(what) = found::described(text.as_bytes()) {
        return Err(Error::Other { path, what });
    }
    let refuse = |source| Error::Config { path: path.clone(), source };
    let config = ModelConfig::from_json(&text).map_err(refuse)?;
    let preprocess = ModelConfig::preprocess_from_json(&text).map_err(refuse)?;
    let of_model = PreprocessCfg::of_model("", &config);
    let preprocess = match preprocess {
        // What open_clip writes says nothing of the size, and what it reads of it is not heeded.
        Some(given) => PreprocessCfg { size: of_model.size, ..given },
        None => of_model,
    };
    let weights = Some(Source::File(located.weights));
    Ok(Found { config, preprocess, weights, quick_gelu: None })
}

/// Reads the newest checkpoint of a run, or the one named, with the model it was saved from.
fn of_run(url: &str) -> Result<Found, Error> {
    let loaded = source::checkpoint(url)?;
    let model = &loaded.state.manifest.model;
    let mut config = model.config.clone();
    // A loss that has a bias gave the model one.
    if loaded.parameter("logit_bias").is_some() {
        config.init_logit_bias = config.init_logit_bias.or(Some(0.0));
    }
    let preprocess = model.preprocess.clone();
    let weights = Some(Source::Checkpoint(loaded));
    Ok(Found { config, preprocess, weights, quick_gelu: None })
}

/// Returns the `tokenizer.json` of a repository, or the SentencePiece model of one that has none,
/// fetched where the cache lacks them.
///
/// # Errors
/// What keeps it from being fetched.
pub(super) fn tokenizer(repository: &str) -> Result<PathBuf, hub::Error> {
    let (hub, repository) = (source::hub(), Repository::parse(repository)?);
    let file = match hub.fetch(&repository, "tokenizer.json", &mut source::report()) {
        Err(absent @ hub::Error::NoSuchFile { .. }) => {
            let model = hub.fetch(&repository, "spiece.model", &mut source::report());
            model.map_err(|_| absent)?
        }
        fetched => fetched?,
    };
    for beside in ["tokenizer_config.json", "special_tokens_map.json"] {
        // One of them is enough, and some repositories have only one.
        hub.fetch_if_present(&repository, beside, &mut source::report())?;
    }
    Ok(file)
}
