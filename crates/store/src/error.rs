//! What a store says, in words that name the place, what is wrong with it and what to do.
//!
//! Answers of stores can repeat what was sent to them, session tokens included. Of an answer only
//! its status, its code and its message are kept, and known secrets are struck out of those.

use std::error::Error as StdError;
use std::fmt;
use std::io::ErrorKind;

use object_store::client::{HttpError, HttpErrorKind};

use super::context::Context;
use super::kind::{Flaw, Kind};

/// Longest message of a store that is repeated.
const LONGEST: usize = 300;

/// Why a request to a store failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What it means.
    pub kind: Kind,
    /// The bucket and its endpoint, or the file system.
    place: String,
    /// What the store, or the way to it, said.
    said: String,
    /// What to do about it; empty where nothing but waiting helps.
    remedy: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, place, said, remedy } = self;
        match kind {
            Kind::Missing => write!(f, "it does not exist"),
            Kind::Exists => write!(f, "it exists already"),
            Kind::Changed => write!(f, "somebody changed it meanwhile"),
            Kind::NoCredentials => write!(f, "{place} needs credentials and there are none"),
            Kind::WrongCredentials => write!(f, "{place} does not accept the credentials"),
            Kind::NoPermission => write!(f, "{place} does not permit it"),
            Kind::NoBucket => write!(f, "{place} does not exist"),
            Kind::Full => write!(f, "{place} is full"),
            Kind::Unsupported => write!(f, "{place} cannot do it"),
            Kind::Untrusted => write!(f, "the certificate of {place} is not trusted"),
            Kind::Refused => write!(f, "{place} refuses the request"),
            Kind::NotHttp => write!(f, "what answers at {place} speaks no plain HTTP"),
            Kind::NotTls => write!(f, "what answers at {place} speaks no TLS"),
            Kind::Unresolved => write!(f, "the host name of {place} cannot be resolved"),
            Kind::Unreachable => write!(f, "nothing answers at {place}"),
            Kind::Throttled => write!(f, "{place} asks to slow down"),
            Kind::Stalled => write!(f, "{place} did not answer in time"),
            Kind::Cut => write!(f, "the connection to {place} broke off"),
            Kind::Failed => write!(f, "{place} failed"),
        }?;
        if !said.is_empty() {
            write!(f, " ({said})")?;
        }
        if !remedy.is_empty() {
            write!(f, "; {remedy}")?;
        }
        Ok(())
    }
}

impl StdError for Error {}

impl From<object_store::Error> for Error {
    /// Returns the explanation inside of an error of this crate's stores; explains others without
    /// knowing the place.
    fn from(error: object_store::Error) -> Self {
        match find(&error) {
            Some(known) => known.clone(),
            None => Self::explain(&error, &Context::unknown()),
        }
    }
}

/// Whether the same request may succeed later: not if the store understood and refused it.
pub fn is_transient(error: &object_store::Error) -> bool {
    let kind = find(error).map_or_else(|| Facts::of(error).kind(), |known| known.kind);
    !kind.is_lasting()
}

/// Returns the explanation an error carries already.
pub(super) fn find(error: &object_store::Error) -> Option<&Error> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

impl Error {
    /// Explains an error of the store that `context` describes.
    pub(super) fn explain(error: &object_store::Error, context: &Context) -> Self {
        let facts = Facts::of(error);
        let mut kind = facts.kind();
        // Where an instance's role would come from nothing answers: there is no role either.
        if !matches!(kind, Kind::Missing) && facts.asked_for_a_role {
            kind = Kind::NoCredentials;
        }
        // A store that has answered before does not speak otherwise now: something broke on the way.
        if matches!(kind, Kind::NotHttp | Kind::NotTls) && context.reached() {
            kind = Kind::Cut;
        }
        Self {
            kind,
            place: context.place.clone(),
            said: context.redacted(&facts.said()),
            remedy: context.remedy(kind, facts.code.as_deref(), facts.flaw.unwrap_or_default()),
        }
    }

    /// Puts the explanation where callers look for kinds of errors: into the store's own type.
    pub(super) fn into_store_error(self, path: &str) -> object_store::Error {
        let (kind, path, source) = (self.kind, path.to_owned(), Box::new(self));
        match kind {
            Kind::Missing => object_store::Error::NotFound { path, source },
            Kind::Exists => object_store::Error::AlreadyExists { path, source },
            Kind::Changed => object_store::Error::Precondition { path, source },
            Kind::Unsupported => object_store::Error::NotSupported { source },
            _ => object_store::Error::Generic { store: "store", source },
        }
    }
}

/// What an error of the store's library says, taken out of its many layers.
#[derive(Debug, Default)]
struct Facts {
    /// The library's own word, for what needs no look at the answer.
    variant: Option<Kind>,
    status: Option<u16>,
    code: Option<String>,
    message: Option<String>,
    transport: Option<HttpErrorKind>,
    io: Option<(ErrorKind, String)>,
    unresolved: bool,
    untrusted: bool,
    flaw: Option<Flaw>,
    not_http: bool,
    not_tls: bool,
    /// A web server that does not say how long its answer is.
    no_length: bool,
    asked_for_a_role: bool,
    /// The innermost message, for errors that are none of the above.
    last: String,
}

impl Facts {
    fn of(error: &object_store::Error) -> Self {
        use object_store::Error as E;
        let variant = match error {
            E::NotFound { .. } => Some(Kind::Missing),
            E::AlreadyExists { .. } => Some(Kind::Exists),
            E::Precondition { .. } | E::NotModified { .. } => Some(Kind::Changed),
            E::PermissionDenied { .. } => Some(Kind::NoPermission),
            E::Unauthenticated { .. } => Some(Kind::WrongCredentials),
            E::NotSupported { .. } | E::NotImplemented { .. } => Some(Kind::Unsupported),
            E::InvalidPath { .. } | E::UnknownConfigurationKey { .. } => Some(Kind::Refused),
            _ => None,
        };
        let mut facts = Self { variant, ..Self::default() };
        for cause in causes(error) {
            facts.look_at(cause);
        }
        facts
    }

    fn look_at(&mut self, cause: &(dyn StdError + 'static)) {
        if let Some(http) = cause.downcast_ref::<HttpError>() {
            self.transport.get_or_insert(http.kind());
        }
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            self.io = Some((io.kind(), io.to_string()));
        }
        let text = cause.to_string();
        if self.status.is_none() {
            self.status = number_after(&text, "status code: ");
        }
        if self.code.is_none() {
            self.code = between(&text, "<Code>", "</Code>");
            self.message = between(&text, "<Message>", "</Message>");
        }
        let lower = text.to_lowercase();
        self.unresolved |=
            lower.contains("dns error") || lower.contains("failed to lookup address");
        self.untrusted |= lower.contains("certificate");
        self.flaw = self.flaw.or_else(|| Flaw::of(&lower));
        // The bytes of a TLS alert in place of an answer, and the words of servers that see a request
        // come without TLS.
        self.not_http |= lower.contains("invalid http version parsed")
            || lower.contains("to an https server")
            || lower.contains("sent to https port");
        self.not_tls |= lower.contains("invalidcontenttype");
        self.no_length |= lower.contains("content-length header missing");
        self.asked_for_a_role |= lower.contains("/latest/api/token")
            || lower.contains("169.254.169.254")
            || lower.contains("metadata.google.internal");
        self.last = text;
    }

    fn kind(&self) -> Kind {
        if let Some(kind) = self.code.as_deref().and_then(kind_of_code) {
            return kind;
        }
        if self.no_length {
            return Kind::Unsupported;
        }
        if self.not_http && self.code.is_none() {
            return Kind::NotHttp;
        }
        match (self.status, self.variant) {
            (Some(507), _) => return Kind::Full,
            (Some(501), _) => return Kind::Unsupported,
            (Some(429 | 503), _) => return Kind::Throttled,
            (Some(408), _) => return Kind::Stalled,
            (Some(500..), _) => return Kind::Failed,
            // What came back was no answer of a store.
            (Some(301 | 302 | 307 | 308), _) => return Kind::Refused,
            (_, Some(kind)) if self.io.is_none() || kind != Kind::NoPermission => return kind,
            (Some(400..), _) => return Kind::Refused,
            _ => {}
        }
        if self.transport.is_some() {
            return self.kind_of_transport();
        }
        match self.io.as_ref().map(|(kind, _)| *kind) {
            Some(kind) => kind_of_io(kind),
            None => Kind::Failed,
        }
    }

    fn kind_of_transport(&self) -> Kind {
        match self.transport {
            _ if self.unresolved => Kind::Unresolved,
            _ if self.untrusted => Kind::Untrusted,
            _ if self.not_tls => Kind::NotTls,
            Some(HttpErrorKind::Timeout) => Kind::Stalled,
            Some(HttpErrorKind::Connect) => Kind::Unreachable,
            _ => Kind::Cut,
        }
    }

    /// What to repeat of it.
    fn said(&self) -> String {
        let mut text = match (self.status, &self.code, &self.message) {
            (Some(status), None, _) => format!("status {status}"),
            (_, Some(code), Some(message)) => format!("{code}: {message}"),
            (_, Some(code), None) => code.clone(),
            (None, None, _) => match (&self.io, self.transport) {
                (Some((_, text)), _) => text.clone(),
                (None, Some(_)) => self.last.clone(),
                // The library's own words about an object that is or is not there add nothing.
                (None, None) if self.variant.is_some() => String::new(),
                (None, None) => self.last.clone(),
            },
        };
        if let Some((end, _)) = text.char_indices().nth(LONGEST) {
            text.truncate(end);
            text.push('…');
        }
        text
    }
}

/// What the codes of S3, Google and Azure mean, where the status alone says too little.
fn kind_of_code(code: &str) -> Option<Kind> {
    Some(match code {
        "NoSuchBucket" | "ContainerNotFound" => Kind::NoBucket,
        "NoSuchKey" | "NoSuchUpload" | "BlobNotFound" => Kind::Missing,
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "InvalidToken"
        | "RequestTimeTooSkewed"
        | "AuthenticationFailed"
        | "InvalidSecurity"
        | "TokenRefreshRequired"
        | "InvalidClientTokenId" => Kind::WrongCredentials,
        "AccessDenied"
        | "AllAccessDisabled"
        | "AuthorizationFailure"
        | "AccountProblem"
        | "AuthorizationPermissionMismatch"
        | "InsufficientAccountPermissions" => Kind::NoPermission,
        "QuotaExceeded"
        | "InsufficientStorage"
        | "StorageFull"
        | "XMinioStorageFull"
        | "InsufficientCapacity"
        | "AccountLimitExceeded" => Kind::Full,
        "SlowDown"
        | "ServiceUnavailable"
        | "Throttling"
        | "ThrottlingException"
        | "TooManyRequests"
        | "RequestLimitExceeded"
        | "ServerBusy" => Kind::Throttled,
        "RequestTimeout" | "OperationTimedOut" => Kind::Stalled,
        // What arrived is not what was sent: the same bytes once more may arrive whole.
        "BadDigest" | "XAmzContentSHA256Mismatch" | "IncompleteBody" | "Md5Mismatch" => Kind::Cut,
        "InternalError" => Kind::Failed,
        "NotImplemented" => Kind::Unsupported,
        _ => return None,
    })
}

fn kind_of_io(kind: ErrorKind) -> Kind {
    match kind {
        ErrorKind::NotFound => Kind::Missing,
        ErrorKind::AlreadyExists => Kind::Exists,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Kind::NoPermission,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Kind::Full,
        ErrorKind::IsADirectory | ErrorKind::NotADirectory | ErrorKind::InvalidFilename => {
            Kind::Refused
        }
        ErrorKind::TimedOut => Kind::Stalled,
        ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable => Kind::Unreachable,
        _ => Kind::Failed,
    }
}

fn between(text: &str, open: &str, close: &str) -> Option<String> {
    let (_, rest) = text.split_once(open)?;
    let (inside, _) = rest.split_once(close)?;
    Some(inside.trim().to_owned())
}

fn number_after(text: &str, before: &str) -> Option<u16> {
    let (_, rest) = text.split_once(before)?;
    rest.get(..3)?.parse().ok()
}
