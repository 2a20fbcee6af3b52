//! What is known about a store when one of its requests fails.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::Kind;

/// Kinds of stores, by what their remedies are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Scheme {
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

/// A store in words, and what must not be said of it.
pub(super) struct Context {
    pub(super) scheme: Scheme,
    /// As in "… does not exist".
    pub(super) place: String,
    /// Never shown.
    pub(super) secrets: Vec<String>,
    health: Mutex<Health>,
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
        Self { scheme, place, secrets, health: Mutex::default() }
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
    pub(super) fn remedy(&self, kind: Kind, code: Option<&str>) -> String {
        let variables = match self.scheme {
            Scheme::S3 => "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            Scheme::Google => "GOOGLE_APPLICATION_CREDENTIALS",
            Scheme::Azure => "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
            Scheme::File | Scheme::Memory | Scheme::Http => "",
        };
        let endpoint = match self.scheme {
            Scheme::S3 => "check AWS_ENDPOINT_URL and AWS_REGION, and that the store runs",
            _ => "check the URL, and that the store runs",
        };
        match kind {
            Kind::NoCredentials if !variables.is_empty() => {
                format!("set {variables}, or run where a role is attached")
            }
            Kind::WrongCredentials if code == Some("RequestTimeTooSkewed") => {
                "set this machine's clock".to_owned()
            }
            Kind::WrongCredentials if !variables.is_empty() => format!("check {variables}"),
            Kind::NoPermission if self.scheme == Scheme::S3 => {
                "check the credentials, and allow them to list the bucket and to get, put and \
                 delete objects there"
                    .to_owned()
            }
            Kind::NoPermission if self.scheme == Scheme::File => {
                "make it writable for this user, or name another folder".to_owned()
            }
            Kind::NoPermission => "check what the credentials permit".to_owned(),
            Kind::NoBucket => "create it, or correct the URL".to_owned(),
            Kind::Full => "free space or raise the quota".to_owned(),
            Kind::Untrusted if self.scheme == Scheme::S3 => {
                "name the authority's certificate in AWS_CA_BUNDLE".to_owned()
            }
            Kind::Unresolved | Kind::Unreachable => endpoint.to_owned(),
            _ => String::new(),
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
