//! Where weights lie: files, objects in a store, checkpoints of runs, repositories, OpenCLIP's tags.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringmaster_checkpoint::{self as checkpoint, Listing};
use ringmaster_manifest::model_config::preprocess::{Interpolation, ResizeMode};
use ringmaster_manifest::model_config::{ModelConfig, PreprocessCfg};
use ringmaster_weights::hub::{self, Hub, Settings, Tag};
use ringmaster_weights::parts::{self, PartIndex};
pub(super) use ringmaster_words::{HF_HUB, LOCAL_DIR};
use sha2::{Digest as _, Sha256};
use url::Url;

use super::lookup::Error;
use crate::progress::{self, Work};

/// Time between two lines about a download.
const REPORT_EVERY: Duration = Duration::from_secs(2);
/// Bytes of a file whose end is worth a line, however fast it came.
const LARGE: u64 = 16 << 20;

/// Weights that lie here, or that were read.
#[derive(Debug)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// A checkpoint of a run.
    Checkpoint(Box<checkpoint::Loaded>),
}

/// What a name of weights stands for, and what is known of their use.
#[derive(Debug)]
pub struct Pretrained {
    /// The weights.
    pub source: Source,
    /// Whether they were trained with QuickGELU.
    pub quick_gelu: Option<bool>,
    /// How images were prepared for them; the size counts for nothing.
    pub preprocess: Option<PreprocessCfg>,
}

impl Pretrained {
    /// Of a file of which nothing more is known.
    fn file(path: PathBuf) -> Self {
        Self { source: Source::File(path), quick_gelu: None, preprocess: None }
    }

    fn run(loaded: Box<checkpoint::Loaded>) -> Self {
        let model = &loaded.state.manifest.model;
        let quick_gelu = Some(model.config.quick_gelu);
        let preprocess = Some(model.preprocess.clone());
        Self { source: Source::Checkpoint(loaded), quick_gelu, preprocess }
    }

    /// Of a repository or a folder; of one of OpenCLIP's its configuration says more.
    fn located(located: hub::Located) -> Self {
        let text = located.config.and_then(|config| std::fs::read_to_string(config).ok());
        let config = text.as_ref().and_then(|text| ModelConfig::from_json(text).ok());
        let preprocess = text.and_then(|text| ModelConfig::preprocess_from_json(&text).ok());
        Self {
            source: Source::File(located.weights),
            quick_gelu: config.map(|config| config.quick_gelu),
            preprocess: preprocess.flatten(),
        }
    }

    fn tag(weights: PathBuf, tag: &Tag) -> Self {
        let preprocess = PreprocessCfg {
            mean: tag.preprocess.mean,
            std: tag.preprocess.std,
            interpolation: match tag.preprocess.interpolation {
                "bilinear" => Interpolation::Bilinear,
                _ => Interpolation::Bicubic,
            },
            resize_mode: match tag.preprocess.resize_mode {
                "squash" => ResizeMode::Squash,
                _ => ResizeMode::Shortest,
            },
            ..PreprocessCfg::default()
        };
        let (quick_gelu, preprocess) = (Some(tag.quick_gelu), Some(preprocess));
        Self { source: Source::File(weights), quick_gelu, preprocess }
    }
}

/// Finds the weights that `pretrained` stands for: a file, an index of parts, a folder,
/// `hf-hub:ORG/NAME`, the URL of a file or index in a store or on a web server, of a folder with such in a
/// store (brought into this user's cache), the URL or path of a run's checkpoints, or one of the tags that
/// `model` has in OpenCLIP.
///
/// # Errors
/// A name that leads nowhere, and what keeps it from being fetched.
pub fn find(model: &str, pretrained: &str) -> Result<Pretrained, Error> {
    let url = Url::parse(pretrained).ok();
    let local = url.as_ref().filter(|url| url.scheme() == "file");
    let local = local.and_then(|url| url.to_file_path().ok());
    let path = local.as_deref().unwrap_or(Path::new(pretrained));
    if path.is_file() {
        return Ok(Pretrained::file(path.to_owned()));
    }
    if pretrained.starts_with(HF_HUB) || pretrained.starts_with(LOCAL_DIR) {
        return Ok(Pretrained::located(hub::resolve(pretrained, &hub(), &mut report())?));
    }
    if path.is_dir() {
        return in_folder(path);
    }
    match (checkpoint::is_weights(pretrained), pretrained.contains("://")) {
        (true, true) if local.is_none() => {
            return Ok(Pretrained::file(fetched(pretrained, &cache())?));
        }
        (false, true) => return in_store(pretrained, &cache()),
        _ => {}
    }
    if pretrained.contains(['/', '.']) || hub::tags(model).next().is_none() {
        // A path that leads nowhere: opening it says so.
        return Ok(Pretrained::file(path.to_owned()));
    }
    let (located, tag) = hub::resolve_tag(model, pretrained, &hub(), &mut report())?;
    Ok(Pretrained::tag(located.weights, tag))
}

/// Returns a run's newest good checkpoint, of which every byte is verified, or else a file of weights.
fn in_folder(folder: &Path) -> Result<Pretrained, Error> {
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    match checkpoint::choose(&[&absolute.display().to_string()])? {
        Some(chosen) => Ok(Pretrained::run(Box::new(chosen.load()?))),
        // Its weights would be those that did not verify.
        None if is_of_a_run(&absolute) => {
            Err(Error::NoCheckpoint { url: folder.display().to_string() })
        }
        None => {
            let name = format!("{LOCAL_DIR}{}", absolute.display());
            Ok(Pretrained::located(hub::resolve(&name, &hub(), &mut report())?))
        }
    }
}

/// As [`in_folder`], of a folder in a store; what is fetched lies below `cache`.
fn in_store(url: &str, cache: &Path) -> Result<Pretrained, Error> {
    if url.starts_with("http://") || url.starts_with("https://") {
        return Err(Error::WebFolder { url: url.to_owned() });
    }
    if let Some(chosen) = checkpoint::choose(&[url])? {
        return Ok(Pretrained::run(Box::new(chosen.load()?)));
    }
    let Listing { files, folders } = Listing::read_blocking(url)?;
    let is_of_a_run = |name: &String| checkpoint::step_of(name).is_some();
    if checkpoint::step_of(url).is_some() || folders.iter().any(is_of_a_run) {
        return Err(Error::NoCheckpoint { url: url.to_owned() });
    }
    if files.is_empty() {
        return Err(Error::Nothing { url: url.to_owned() });
    }
    let weights = hub::weights_among(url, &files)?;
    let weights = fetched(&checkpoint::url_below(url, weights), cache)?;
    let config = if files.iter().any(|name| name == hub::CONFIG) {
        Some(fetched(&checkpoint::url_below(url, hub::CONFIG), cache)?)
    } else {
        None
    };
    Ok(Pretrained::located(hub::Located { weights, config, tokenizer: Vec::new() }))
}

/// Whether a folder is that of a checkpoint or holds such folders.
fn is_of_a_run(folder: &Path) -> bool {
    let named = |path: &Path| checkpoint::step_of(&path.display().to_string()).is_some();
    let below = std::fs::read_dir(folder).into_iter().flatten().flatten();
    named(folder) || below.into_iter().any(|entry| named(&entry.path()))
}

/// Returns the newest good checkpoint at `place`.
pub(super) fn checkpoint(place: &str) -> Result<Box<checkpoint::Loaded>, Error> {
    let chosen = checkpoint::choose(&[place])?;
    let chosen = chosen.ok_or_else(|| Error::NoCheckpoint { url: place.to_owned() })?;
    Ok(Box::new(chosen.load()?))
}

/// Brings a file into the cache, unless it lies there; of an index also its parts.
fn fetched(url: &str, cache: &Path) -> Result<PathBuf, Error> {
    let file = download(url, cache)?;
    if parts::is_index(url) { with_parts(url, &file, cache) } else { Ok(file) }
}

/// Brings the parts of an index into the cache; returns the index in a folder where they lie beside it:
/// each object lies in a folder of its own version.
fn with_parts(url: &str, index: &Path, cache: &Path) -> Result<PathBuf, Error> {
    let read = |source| Error::Read { path: index.to_owned(), source };
    let listed = PartIndex::parse(index, &std::fs::read(index).map_err(read)?)?;
    let (folder, name) = url.rsplit_once('/').unwrap_or_default();
    let mut files = vec![(name, index.to_owned())];
    for part in listed.parts() {
        files.push((part, download(&checkpoint::url_below(folder, part), cache)?));
    }
    let mut hasher = Sha256::new();
    for (name, file) in &files {
        hasher.update(format!("{name}\n{}\n", file.display()));
    }
    let together = cache.join(format!("parts-{}", hex::encode(&hasher.finalize()[..16])));
    for (name, file) in &files {
        let path = together.join(name);
        link(&path, file).map_err(|source| Error::Cache { path, source })?;
    }
    Ok(together.join(name))
}

/// Makes `path` a link to `file`.
fn link(path: &Path, file: &Path) -> std::io::Result<()> {
    if std::fs::read_link(path).is_ok_and(|target| target == file) {
        return Ok(());
    }
    std::fs::create_dir_all(path.parent().unwrap_or(path))?;
    // Complete or invisible, whoever else is at it: another name until it is a link.
    let new = path.with_added_extension(format!("{}.new", std::process::id()));
    let _ = std::fs::remove_file(&new);
    std::os::unix::fs::symlink(file, &new)?;
    std::fs::rename(&new, path)
}

fn download(url: &str, cache: &Path) -> Result<PathBuf, Error> {
    let (mut report, file) = (report(), url.rsplit('/').next().unwrap_or(url));
    let mut moved = |done, total| report(hub::Progress { file, done, total: Some(total) });
    Ok(checkpoint::download(url, cache, &mut moved)?)
}

/// Returns where weights from stores are kept: in what holds this user's programs' caches.
fn cache() -> PathBuf {
    let folder = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("XDG_CACHE_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
        .join("ringmaster")
        .join("weights")
}

/// Returns the hub of this process's environment.
pub(super) fn hub() -> Hub {
    Hub::new(Settings::from_env())
}

/// Returns what says how far a download is, every few seconds.
pub(super) fn report() -> impl FnMut(hub::Progress<'_>) + Send {
    let mut said = Instant::now();
    move |hub::Progress { file, done, total }| {
        progress::advance(Work::Data);
        let ended = total == Some(done);
        if said.elapsed() >= REPORT_EVERY || (ended && done > LARGE) {
            said = Instant::now();
            let share = total.map(|total| format!("{} %", done * 100 / total.max(1)));
            tracing::info!(file, bytes = done, share, "downloading");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "source_tests.rs"]
mod tests;
