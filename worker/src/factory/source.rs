//! Where weights lie: files, objects in a store, checkpoints of runs, repositories, OpenCLIP's tags.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringmaster_checkpoint as checkpoint;
use ringmaster_weights::hub::{self, Hub, Settings, Tag};
use url::Url;

use super::place::Error;

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

/// What a name of weights stands for.
#[derive(Debug)]
pub struct Pretrained {
    /// The weights.
    pub source: Source,
    /// What OpenCLIP says of their use, if the name was a tag.
    pub tag: Option<&'static Tag>,
}

/// Finds the weights that `pretrained` stands for: a file, a folder, `hf-hub:ORG/NAME`, the URL of a file
/// in a store or on a web server (brought into this user's cache), the URL or path of a run's
/// checkpoints, or one of the tags that `model` has in OpenCLIP.
///
/// # Errors
/// A name that leads nowhere, and what keeps it from being fetched.
pub fn find(model: &str, pretrained: &str) -> Result<Pretrained, Error> {
    let found = |source| Ok(Pretrained { source, tag: None });
    let url = Url::parse(pretrained).ok();
    let local = url.as_ref().filter(|url| url.scheme() == "file");
    let local = local.and_then(|url| url.to_file_path().ok());
    let path = local.as_deref().unwrap_or(Path::new(pretrained));
    if path.is_file() {
        return found(Source::File(path.to_owned()));
    }
    if pretrained.starts_with(HF_HUB) || pretrained.starts_with(LOCAL_DIR) {
        return found(Source::File(hub::resolve(pretrained, &hub(), &mut report())?.weights));
    }
    if path.is_dir() {
        return found(in_folder(path)?);
    }
    match (is_weights_file(pretrained), pretrained.contains("://")) {
        (true, true) if local.is_none() => return found(Source::File(fetched(pretrained)?)),
        (false, true) => return found(Source::Checkpoint(checkpoint(pretrained)?)),
        _ => {}
    }
    if pretrained.contains(['/', '.']) || hub::tags(model).next().is_none() {
        // A path that leads nowhere: opening it says so.
        return found(Source::File(path.to_owned()));
    }
    let (located, tag) = hub::resolve_tag(model, pretrained, &hub(), &mut report())?;
    Ok(Pretrained { source: Source::File(located.weights), tag: Some(tag) })
}

/// Returns a run's newest good checkpoint, of which every byte is verified, or else a file of weights.
fn in_folder(folder: &Path) -> Result<Source, Error> {
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    match checkpoint::choose(&[&absolute.display().to_string()])? {
        Some(chosen) => Ok(Source::Checkpoint(Box::new(chosen.load()?))),
        None => Ok(Source::File(hub::weights_in(folder)?)),
    }
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
///
/// # Errors
/// A store that fails and a cache that cannot be written.
pub fn fetched(url: &str) -> Result<PathBuf, Error> {
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
        let ended = total == Some(done);
        if said.elapsed() >= REPORT_EVERY || (ended && done > LARGE) {
            said = Instant::now();
            let share = total.map(|total| format!("{} %", done * 100 / total.max(1)));
            tracing::info!(file, bytes = done, share, "downloading");
        }
    }
}
