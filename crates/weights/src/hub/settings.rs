//! Where the hub and its cache are, by the environment variables of `huggingface_hub`.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The public hub.
const ENDPOINT: &str = "https://huggingface.co";

/// How a hub is reached, and what is kept of it.
#[derive(Clone)]
pub struct Settings {
    /// URL that repositories are below (`HF_ENDPOINT`).
    pub endpoint: String,
    /// Folder of the cache (`HF_HUB_CACHE`, else `hub` in `HF_HOME`).
    pub cache: PathBuf,
    /// Uses the cache alone (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// Who asks (`HF_TOKEN`, else what `huggingface-cli login` left in `HF_TOKEN_PATH` or `HF_HOME`); sent
    /// to the endpoint's host only, never shown.
    pub token: Option<String>,
    /// Longest silence of a connection.
    pub timeout: Duration,
    /// Pause before a broken download is taken up again; doubled with each failure in a row.
    pub pause: Duration,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("offline", &self.offline)
            .field("token", &self.token.as_ref().map(|_| "set, not shown"))
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Reads this process's environment.
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var_os(name))
    }

    /// Reads variables; an empty one counts as none.
    pub fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let get = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| get(name).and_then(|value| value.into_string().ok());
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let user_cache = || {
            let home = get("HOME").map(|home| PathBuf::from(home).join(".cache"));
            get("XDG_CACHE_HOME").map(PathBuf::from).or(home).unwrap_or_default()
        };
        let home = || {
            get("HF_HOME").map(PathBuf::from).unwrap_or_else(|| user_cache().join("huggingface"))
        };
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache: get("HF_HUB_CACHE").map(PathBuf::from).unwrap_or_else(|| home().join("hub")),
            offline: text("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value)),
            token: text("HF_TOKEN")
                .or_else(|| {
                    let path = get("HF_TOKEN_PATH").map(PathBuf::from);
                    std::fs::read_to_string(path.unwrap_or_else(|| home().join("token"))).ok()
                })
                .map(|token| token.trim().to_owned())
                .filter(|token| !token.is_empty()),
            timeout: Duration::from_secs(30),
            pause: Duration::from_secs(1),
        }
    }
}

fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].iter().any(|word| value.eq_ignore_ascii_case(word))
}
