//! What is known about a store when one of its requests fails.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::kind::{Flaw, Kind};

/// Kinds of stores, by what their remedies are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// This machine's files.
    File,
    /// Memory of this process.
    Memory,
    /// Amazon S3 and what speaks like it.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
    /// Plain HTTP; for reading only.
    Http,
}

impl Scheme {
    /// What the variables of such a store begin with.
    pub(super) fn prefix(self) -> Option<&'static str> {
        match self {
            Self::S3 => Some("AWS_"),
            Self::Google => Some("GOOGLE_"),
            Self::Azure => Some("AZURE_"),
            Self::File | Self::Memory | Self::Http => None,
        }
    }
}

/// A store in words, and what must not be said of it.
pub(super) struct Context {
    pub(super) scheme: Scheme,
    /// As in "… does not exist".
    pub(super) place: String,
    /// Never shown.
    pub(super) secrets: Vec<String>,
    pub(super) route: Route,
    health: Mutex<Health>,
}

/// How a store is reached, for remedies.
#[derive(Debug, Clone, Default)]
pub(super) struct Route {
    /// What names the server: a variable, or "the URL".
    pub(super) endpoint: String,
    /// Whether it is asked without TLS.
    pub(super) plain: bool,
    /// The variable that names a proxy on the way.
    pub(super) proxy: Option<String>,
    /// Credentials of other tools' that are there and are not read, and how to hand them over.
    pub(super) unread: Option<String>,
}

/// Whether the store has ever answered, and since when it does not.
#[derive(Debug, Default)]
struct Health {
    reached: bool,
    away_since: Option<Instant>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Context {
    pub(super) fn new(scheme: Scheme, place: String, secrets: Vec<String>) -> Self {
        Self { scheme, place, secrets, route: Route::default(), health: Mutex::default() }
    }

    /// Says how the store is reached.
    pub(super) fn by(self, route: Route) -> Self {
        Self { route, ..self }
    }

    /// Of an error whose store is not known.
    pub(super) fn unknown() -> Self {
        Self::new(Scheme::Memory, "the store".to_owned(), Vec::new())
    }

    /// Returns `text` without what must not be shown.
    pub(super) fn redacted(&self, text: &str) -> String {
        let strike = |text: String, secret: &String| text.replace(secret.as_str(), "[secret]");
        self.secrets.iter().fold(text.to_owned(), strike)
    }

    /// Returns what to do about a failure; empty where nothing but waiting helps.
    pub(super) fn remedy(&self, kind: Kind, code: Option<&str>, flaw: Flaw) -> String {
        let Route { endpoint, plain, .. } = &self.route;
        match kind {
            Kind::NoCredentials | Kind::WrongCredentials | Kind::NoPermission => {
                self.credentials_remedy(kind, code)
            }
            Kind::NoBucket => "create it, or correct the URL".to_owned(),
            Kind::Full => "free space or raise the quota".to_owned(),
            Kind::Untrusted => self.certificate_remedy(flaw),
            Kind::NotHttp if !endpoint.is_empty() => {
                format!("if it is behind TLS, write https:// in {endpoint}")
            }
            Kind::NotTls if !endpoint.is_empty() => {
                format!("write http:// in {endpoint}, or correct the port")
            }
            Kind::Cut if *plain && !endpoint.is_empty() && !self.reached() => {
                format!("it has never answered: if it is behind TLS, write https:// in {endpoint}")
            }
            Kind::Unresolved | Kind::Unreachable => self.way_remedy(),
            _ => String::new(),
        }
    }

    fn credentials_remedy(&self, kind: Kind, code: Option<&str>) -> String {
        let variables = match self.scheme {
            Scheme::S3 => "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            Scheme::Google => "GOOGLE_APPLICATION_CREDENTIALS",
            Scheme::Azure => "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
            Scheme::File | Scheme::Memory | Scheme::Http => "",
        };
        match (kind, self.scheme) {
            (Kind::NoCredentials, _) if !variables.is_empty() => match &self.route.unread {
                Some(unread) => unread.clone(),
                None => format!("set {variables}, or run where a role is attached"),
            },
            (Kind::WrongCredentials, _) if code == Some("RequestTimeTooSkewed") => {
                "set this machine's clock".to_owned()
            }
            (Kind::WrongCredentials, _) if !variables.is_empty() => format!("check {variables}"),
            (Kind::NoPermission, Scheme::S3) => {
                "check the credentials, and allow them to list the \
                                                 bucket and to get, put and delete objects there"
                    .to_owned()
            }
            (Kind::NoPermission, Scheme::File) => {
                "give this user the right to read and write it, or name another place".to_owned()
            }
            (Kind::NoPermission, _) => "check what the credentials permit".to_owned(),
            _ => String::new(),
        }
    }

    fn certificate_remedy(&self, flaw: Flaw) -> String {
        match flaw {
            Flaw::Authority => "its certificate is an authority's own (CA:TRUE), which cannot stand \
                                for a server; make the server's with `openssl req -x509 -newkey \
                                rsa:2048 -nodes -keyout key.pem -out cert.pem -days 365 -subj /CN=HOST \
                                -addext basicConstraints=critical,CA:FALSE -addext \
                                subjectAltName=DNS:HOST`"
                .to_owned(),
            Flaw::Name => "name the server by a host name that its certificate is for".to_owned(),
            Flaw::Time => "renew its certificate, or set this machine's clock".to_owned(),
            Flaw::Issuer if self.scheme == Scheme::S3 => {
                "name the authority's certificate in AWS_CA_BUNDLE".to_owned()
            }
            Flaw::Issuer | Flaw::Other => String::new(),
        }
    }

    /// What to do where nothing answers.
    fn way_remedy(&self) -> String {
        match (&self.route.proxy, self.scheme) {
            (Some(proxy), _) => format!(
                "check the proxy that {proxy} names, or list the store's host in NO_PROXY to go past it"
            ),
            (None, Scheme::S3) => {
                "check AWS_ENDPOINT_URL and AWS_REGION, and that the store runs".to_owned()
            }
            (None, _) => "check the URL, and that the store runs".to_owned(),
        }
    }

    /// Notes an answer; returns for how long there was none before it.
    pub(super) fn answered(&self) -> Option<Duration> {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        health.reached = true;
        health.away_since.take().map(|since| since.elapsed())
    }

    /// Notes a failure; returns whether it is the first since an answer.
    pub(super) fn failed(&self) -> bool {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let first = health.away_since.is_none();
        health.away_since.get_or_insert_with(Instant::now);
        first
    }

    /// Whether it has ever answered this process.
    pub(super) fn reached(&self) -> bool {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).reached
    }
}
