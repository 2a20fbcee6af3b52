//! Where weights lie: files, objects in a store, checkpoints of runs, repositories, OpenCLIP's tags.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringmaster_checkpoint as checkpoint;
use ringmaster_manifest::model_config::preprocess::{Interpolation, ResizeMode};
use ringmaster_manifest::model_config::{ModelConfig, PreprocessCfg};
use ringmaster_weights::hub::{self, Hub, Settings, Tag};
use url::Url;

use super::place::Error;
use crate::progress::{self, Work};

pub(super) const LOCAL_DIR: &str = "local-dir:";
pub(super) const HF_HUB: &str = "hf-hub:";
/// How files of weights end: what tells a URL of one from that of a run's checkpoints.
const WEIGHTS: [&str; 5] = ["safetensors", "bin", "pt", "pth", "npz"];
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
        let (quick_gelu, preprocess) = (Some(model.config.quick_gelu), Some(model.preprocess()));
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

/// Finds the weights that `pretrained` stands for: a file, a folder, `hf-hub:ORG/NAME`, the URL of a file
/// in a store or on a web server (brought into this user's cache), the URL or path of a run's
/// checkpoints, or one of the tags that `model` has in OpenCLIP.
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
    match (is_weights_file(pretrained), pretrained.contains("://")) {
        (true, true) if local.is_none() => return Ok(Pretrained::file(fetched(pretrained)?)),
        (false, true) => return Ok(Pretrained::run(checkpoint(pretrained)?)),
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

/// Whether a folder is that of a checkpoint or holds such folders.
fn is_of_a_run(folder: &Path) -> bool {
    let named = |path: &Path| checkpoint::step_of(&path.display().to_string()).is_some();
    let below = std::fs::read_dir(folder).into_iter().flatten().flatten();
    named(folder) || below.into_iter().any(|entry| named(&entry.path()))
}

/// Whether a path or URL ends as files of weights do.
pub fn is_weights_file(place: &str) -> bool {
    let ending = Path::new(place).extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| WEIGHTS.contains(&ending))
}

/// Returns the newest good checkpoint at `place`.
pub(super) fn checkpoint(place: &str) -> Result<Box<checkpoint::Loaded>, Error> {
    let chosen = checkpoint::choose(&[place])?;
    let chosen = chosen.ok_or_else(|| Error::NoCheckpoint { url: place.to_owned() })?;
    Ok(Box::new(chosen.load()?))
}

/// Brings a file of weights into the cache, unless it lies there.
fn fetched(url: &str) -> Result<PathBuf, Error> {
    let cache = cache_folder().join("ringmaster").join("weights");
    let (mut report, file) = (report(), url.rsplit('/').next().unwrap_or(url));
    let mut moved = |done, total| report(hub::Progress { file, done, total: Some(total) });
    Ok(checkpoint::download(url, &cache, &mut moved)?)
}

/// Returns where this user's programs keep what can be fetched again.
fn cache_folder() -> PathBuf {
    let folder = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("XDG_CACHE_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
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
