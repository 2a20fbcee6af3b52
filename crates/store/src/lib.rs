//! Stores by URL: files, S3 and what speaks like it, Google, Azure, memory; one way to all of them.
//!
//! [`open`] chooses by the URL's scheme. Everything else comes from the environment, under the names
//! that each store's own tools use (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `AWS_REGION`,
//! `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_NAME`, … with server-side encryption,
//! path style and checksums among them). Secrets are in no URL, no message and no debug output.
//!
//! Who fails, and for how long it is tried again: a connection has 5 s; a request that moves no byte
//! for [`STALL`] seconds (30) is given up and made again; the library makes a failed request again
//! three times within 5 s, in silence; a request of [`Store::patient`] or [`Store::insist`] goes on failing
//! for [`PATIENCE`] seconds (120) before the failure counts, 15 s if the store has never answered this process (`retries`). What the
//! store understood and refused is not tried again ([`Kind::is_lasting`]).
//!
//! Modules in reading order: `kind`, `context` and `error` (what is said of a failure), `news` (who else is
//! told), `settings`, `endpoint` and `proxy` (the environment), `http` (the runtime behind all requests),
//! `retries` (for how long), `guard` (errors explained, requests made again), `upload` (the same for
//! parts), `resume` (bodies that break off), `conditional` (which promises a store keeps), `unfinished`
//! (uploads that nobody ended).

mod conditional;
mod context;
mod endpoint;
mod error;
mod guard;
mod http;
mod kind;
mod news;
mod proxy;
mod resume;
mod retries;
mod settings;
mod unfinished;

use std::collections::HashMap;
use std::path::{Path as FsPath, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreScheme};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use url::{Position, Url};

pub use self::conditional::{Conditional, Tag};
pub use self::context::Scheme;
pub use self::error::{Error, is_transient};
pub use self::kind::Kind;
pub use self::news::{News, on_news};
pub use self::settings::{PATIENCE, STALL, Settings};

use self::context::{Context, Route};
use self::guard::Guarded;
use self::retries::Patience;
use self::unfinished::Bucket;

/// A URL that names no store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url}: {reason}")]
pub struct Unusable {
    /// The URL, without what it may hold of a password.
    pub url: String,
    /// What is wrong with it, and what to write instead.
    pub reason: String,
    /// Whether the URL is sound and the environment's settings for its store are not.
    pub by_settings: bool,
}

/// Stores behind a network that are kept for the next who asks for them; those in use are kept in any case.
/// Images of the web may lie on thousands of hosts.
const KEPT_STORES: usize = if cfg!(test) { 64 } else { 512 };

/// A store, and where in it a URL points.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
    /// Of what the URL names, within the store.
    pub path: Path,
    /// The same where the store is this machine's files.
    pub local: Option<PathBuf>,
}

/// What everybody who uses the same store has in common.
#[derive(Debug)]
struct Shared {
    guarded: Arc<Guarded>,
    patient: Arc<Guarded>,
    patience: Patience,
    scheme: Scheme,
    /// For what only S3 can do.
    bucket: Option<Bucket>,
    conditional: OnceCell<Conditional>,
}

/// Opens the store that an absolute path or a URL names. Nothing is asked of it yet.
///
/// # Errors
/// [`Unusable`] for a relative path, an unknown scheme, or settings that cannot be used.
pub fn open(url: &str) -> Result<Store, Unusable> {
    open_with(url, &Settings::from_env())
}

/// Makes `memory://NAME/…` of this process, or all files below the folder NAME, mean another store: for
/// tests that want one whose failures they choose.
pub fn register(name: &str, store: Store) {
    let mut all = registered().lock().unwrap_or_else(PoisonError::into_inner);
    all.insert(name.to_owned(), store.shared);
}

/// As [`open`], with other settings than this process's environment.
pub fn open_with(url: &str, settings: &Settings) -> Result<Store, Unusable> {
    let unusable =
        |reason: String| Unusable { url: without_secrets(url), reason, by_settings: false };
    if url.starts_with('/') {
        return files(FsPath::new(url)).map_err(unusable);
    }
    let parsed = Url::parse(url).map_err(|error| {
        unusable(format!(
            "neither an absolute path nor a URL ({error}); write s3://…, file:///… or /…"
        ))
    })?;
    if parsed.scheme() == "file" && (parsed.query().is_some() || parsed.fragment().is_some()) {
        let reason = "? and # end the path of a URL; write %3F and %23 for them, or the path without \
                      file://";
        return Err(unusable(reason.to_owned()));
    }
    if parsed.password().is_some() || parsed.query().is_some() {
        let reason = "credentials do not belong into a URL, which logs repeat; put them into the \
                      environment (a ? that belongs to a name is written %3F)";
        return Err(unusable(reason.to_owned()));
    }
    if parsed.fragment().is_some() {
        return Err(unusable("# ends the path of a URL; write %23 for it".to_owned()));
    }
    match parsed.scheme() {
        "file" => {
            let foreign =
                |()| unusable("a file URL names no other host; write file:///…".to_owned());
            let folder = parsed.to_file_path().map_err(foreign)?;
            files(&folder).map_err(unusable)
        }
        "memory" => {
            let path = Path::from_url_path(parsed.path()).map_err(|e| unusable(e.to_string()))?;
            Ok(Store { shared: memory(parsed.host_str().unwrap_or_default()), path, local: None })
        }
        _ => remote(&parsed, settings).map_err(|error| match error {
            NotOpened::Url(reason) => unusable(reason),
            NotOpened::Settings(reason) => Unusable { by_settings: true, ..unusable(reason) },
        }),
    }
}

impl Store {
    /// Wraps a store of the caller's own making.
    pub fn of(objects: Arc<dyn ObjectStore>) -> Self {
        let context = Context::new(Scheme::Memory, objects.to_string(), Vec::new());
        let shared = Shared::new(objects, None, context, &Settings::new(std::iter::empty()), None);
        Self { shared: Arc::new(shared), path: Path::default(), local: None }
    }

    /// Returns the store itself, its errors explained. Requests that fail are made again for some
    /// seconds only.
    pub fn objects(&self) -> Arc<dyn ObjectStore> {
        Arc::<Guarded>::clone(&self.shared.guarded)
    }

    /// Returns the store whose failed requests are made again as long as the settings say.
    pub fn patient(&self) -> Arc<dyn ObjectStore> {
        Arc::<Guarded>::clone(&self.shared.patient)
    }

    /// Makes a request of [`Self::objects`] again as long as the settings say, but for `most` at the longest,
    /// and until `cancel` ends the wait. This machine's files, which may lie behind a network, are waited for
    /// `most`, too, and need no runtime.
    ///
    /// # Errors
    /// What is not worth another attempt, and the last failure after the time is over or the wait cancelled.
    pub async fn insist<T, F>(
        &self,
        most: Duration,
        cancel: &CancellationToken,
        request: impl Fn() -> F + Send + Sync,
    ) -> object_store::Result<T>
    where
        F: Future<Output = object_store::Result<T>> + Send,
    {
        let patience = match self.shared.scheme {
            Scheme::File => Patience { usual: most, first: most },
            _ => self.shared.patience.at_most(most),
        };
        let guarded = self.shared.guarded.patient(patience).until(cancel);
        guarded.run(request).await
    }

    /// Returns which kind of store it is.
    pub fn scheme(&self) -> Scheme {
        self.shared.scheme
    }

    /// Returns which promises the store keeps; found out once per process, with an object in
    /// `folder` that is removed again.
    pub async fn conditional(&self, folder: &Path) -> object_store::Result<Conditional> {
        let probe = || async {
            let found = conditional::probe(&*self.shared.patient, folder).await?;
            found.say(&self.shared.guarded.place());
            Ok(found)
        };
        self.shared.conditional.get_or_try_init(probe).await.copied()
    }

    /// Ends every upload below `folder` that nobody completed, where the store can list them and
    /// `chosen` says so of the object's path; returns how many.
    pub async fn abort_unfinished(
        &self,
        folder: &Path,
        chosen: impl Fn(&Path) -> bool,
    ) -> object_store::Result<usize> {
        let Some(bucket) = &self.shared.bucket else { return Ok(0) };
        let ended = bucket.abort_unfinished(folder, chosen).await;
        ended.map_err(|error| self.shared.guarded.explained(error))
    }
}

impl Shared {
    fn new(
        objects: Arc<dyn ObjectStore>,
        parts: Option<Arc<dyn MultipartStore>>,
        context: Context,
        settings: &Settings,
        bucket: Option<Bucket>,
    ) -> Self {
        let scheme = context.scheme;
        let guarded = Guarded::new(objects, parts, context);
        let patience = Patience { usual: settings.patience, first: settings.first_patience };
        // Local files are away only as long as the kernel itself waits for them, but see `insist`.
        let patient = match scheme {
            Scheme::File => guarded.clone(),
            _ => guarded.patient(patience),
        };
        Self {
            guarded: Arc::new(guarded),
            patient: Arc::new(patient),
            patience,
            scheme,
            bucket,
            conditional: OnceCell::new(),
        }
    }
}

fn files(path: &FsPath) -> Result<Store, String> {
    static FILES: OnceLock<Arc<Shared>> = OnceLock::new();
    let shared = FILES.get_or_init(|| {
        let context = Context::new(Scheme::File, "the file system".to_owned(), Vec::new());
        let files = Arc::new(LocalFileSystem::new().with_fsync(true));
        Arc::new(Shared::new(files, None, context, &Settings::new(std::iter::empty()), None))
    });
    let inside = Path::from_absolute_path(path).map_err(|error| error.to_string())?;
    let shared = registered_above(path).unwrap_or_else(|| Arc::clone(shared));
    Ok(Store { shared, path: inside, local: Some(path.to_owned()) })
}

/// Returns the store that [`register`] put in place of a folder's files.
fn registered_above(path: &FsPath) -> Option<Arc<Shared>> {
    let all = registered().lock().unwrap_or_else(PoisonError::into_inner);
    path.ancestors().filter_map(FsPath::to_str).find_map(|folder| all.get(folder)).cloned()
}

fn registered() -> &'static Mutex<HashMap<String, Arc<Shared>>> {
    static REGISTERED: OnceLock<Mutex<HashMap<String, Arc<Shared>>>> = OnceLock::new();
    REGISTERED.get_or_init(Mutex::default)
}

fn memory(name: &str) -> Arc<Shared> {
    let mut all = registered().lock().unwrap_or_else(PoisonError::into_inner);
    let known = all.entry(name.to_owned()).or_insert_with(|| {
        let context = Context::new(Scheme::Memory, "memory".to_owned(), Vec::new());
        let settings = Settings::new(std::iter::empty());
        Arc::new(Shared::new(Arc::new(InMemory::new()), None, context, &settings, None))
    });
    Arc::clone(known)
}

/// What keeps a store behind a network from being opened.
enum NotOpened {
    Url(String),
    Settings(String),
}

/// Opens a store behind a network; the same one for all who ask alike, so that they share
/// connections and what is known of it.
fn remote(url: &Url, settings: &Settings) -> Result<Store, NotOpened> {
    let (scheme, path) = match url.scheme() {
        "http" | "https" => (ObjectStoreScheme::Http, Path::from_url_path(url.path())),
        other => {
            let parsed = ObjectStoreScheme::parse(url);
            let (scheme, path) = parsed.map_err(|_| NotOpened::Url(unknown_scheme(other)))?;
            (scheme, Ok(path))
        }
    };
    let path = path.map_err(|error| NotOpened::Url(error.to_string()))?;
    let key = (url[..Position::BeforePath].to_owned(), settings.fingerprint());
    let mut opened = opened().lock().unwrap_or_else(PoisonError::into_inner);
    let shared = match opened.get(&key) {
        Some(known) => Arc::clone(known),
        None => {
            let new = connect(url, &scheme, settings).map_err(NotOpened::Settings)?;
            if opened.len() >= KEPT_STORES {
                opened.retain(|_, store| Arc::strong_count(store) > 1);
            }
            let new = Arc::new(new);
            opened.insert(key, Arc::clone(&new));
            new
        }
    };
    Ok(Store { shared, path, local: None })
}

/// The stores behind a network: by where one is, and by the settings it was opened with.
type Opened = HashMap<(String, u64), Arc<Shared>>;

fn opened() -> &'static Mutex<Opened> {
    static OPENED: OnceLock<Mutex<Opened>> = OnceLock::new();
    OPENED.get_or_init(Mutex::default)
}

fn connect(url: &Url, scheme: &ObjectStoreScheme, settings: &Settings) -> Result<Shared, String> {
    let bucket = url.host_str().unwrap_or_default();
    match scheme {
        ObjectStoreScheme::AmazonS3 => {
            settings.check(Scheme::S3)?;
            let opened = settings.s3(bucket)?;
            let usual = format!("https://s3.{}.amazonaws.com", opened.region);
            let context = context(Scheme::S3, &format!("bucket {bucket:?}"), &usual, settings);
            let store = Arc::new(opened.s3.clone());
            let parts = Some(Arc::clone(&store) as Arc<dyn MultipartStore>);
            Ok(Shared::new(store, parts, context, settings, Some(opened)))
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            settings.check(Scheme::Google)?;
            let store = Arc::new(settings.google(bucket)?);
            let parts = Some(Arc::clone(&store) as Arc<dyn MultipartStore>);
            let place = format!("bucket {bucket:?} of Google Cloud Storage");
            let usual = "https://storage.googleapis.com";
            let context = context(Scheme::Google, &place, usual, settings);
            Ok(Shared::new(store, parts, context, settings, None))
        }
        ObjectStoreScheme::MicrosoftAzure => {
            settings.check(Scheme::Azure)?;
            let store = Arc::new(settings.azure(url)?);
            let parts = Some(Arc::clone(&store) as Arc<dyn MultipartStore>);
            let name = &url[Position::BeforeUsername..Position::AfterHost];
            let place = format!("container {name:?} of Azure");
            let usual = format!("https://{bucket}");
            let context = context(Scheme::Azure, &place, &usual, settings);
            Ok(Shared::new(store, parts, context, settings, None))
        }
        ObjectStoreScheme::Http => {
            settings.check(Scheme::Http)?;
            let origin = &url[..Position::BeforePath];
            let store = settings.http(origin)?;
            let context = context(Scheme::Http, origin, origin, settings);
            Ok(Shared::new(store, None, context, settings, None))
        }
        _ => Err(unknown_scheme(url.scheme())),
    }
}

/// Describes a store that is at `usual` unless the settings name another place.
fn context(scheme: Scheme, what: &str, usual: &str, settings: &Settings) -> Context {
    let named = settings.endpoint(scheme);
    let server = named.map_or(usual, |(_, server)| server);
    let proxy = settings.proxy(scheme, server);
    let at = named.map_or_else(String::new, |(_, server)| format!(" at {server}"));
    let through = proxy.as_ref().map_or_else(String::new, |proxy| {
        format!(" through the proxy {} ({})", proxy.url, proxy.variable)
    });
    let endpoint = match (named, scheme) {
        (Some((variable, _)), _) => variable.to_owned(),
        (None, Scheme::Http) => "the URL".to_owned(),
        (None, _) => String::new(),
    };
    Context::new(scheme, format!("{what}{at}{through}"), settings.secrets()).by(Route {
        endpoint,
        plain: server.starts_with("http://"),
        proxy: proxy.map(|proxy| proxy.variable),
        unread: settings.unread_credentials().filter(|_| scheme == Scheme::S3),
    })
}

fn unknown_scheme(scheme: &str) -> String {
    format!(
        "there is no store for {scheme}://; write s3://, gs://, az://, abfss://, file:/// or an \
         absolute path"
    )
}

/// Returns a URL as it may be shown: without a password, without a query.
fn without_secrets(url: &str) -> String {
    let Ok(mut parsed) = Url::parse(url) else {
        // What cannot be read may still hold one.
        return match url.split_once('@') {
            Some((before, after)) if before.contains("://") => {
                let scheme = before.split_once("://").map_or("", |(scheme, _)| scheme);
                format!("{scheme}://…@{after}")
            }
            _ => url.to_owned(),
        };
    };
    if parsed.password().is_none() && parsed.query().is_none() {
        return url.to_owned();
    }
    let _ = parsed.set_password(None);
    parsed.set_query(None);
    parsed.to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod trouble_tests;
