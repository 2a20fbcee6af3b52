//! What the failure of a request means.

/// What a failure means for whoever made the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// There is no such object.
    Missing,
    /// There is one already, and it was to be created.
    Exists,
    /// It is not the version that was to be replaced.
    Changed,
    /// The environment holds no credentials.
    NoCredentials,
    /// The store does not know the credentials, or they have expired.
    WrongCredentials,
    /// The store knows who asks and does not let them.
    NoPermission,
    /// There is no such bucket or container.
    NoBucket,
    /// No space, or a quota is used up.
    Full,
    /// The store cannot do this.
    Unsupported,
    /// Its certificate is not trusted.
    Untrusted,
    /// What answers there speaks no plain HTTP; a server behind TLS, most likely.
    NotHttp,
    /// What answers there speaks no TLS; a server of plain HTTP, most likely.
    NotTls,
    /// It understood the request and refuses it.
    Refused,
    /// Its name cannot be resolved.
    Unresolved,
    /// Nothing answers there.
    Unreachable,
    /// It asks to slow down.
    Throttled,
    /// It did not answer in time.
    Stalled,
    /// The connection ended early, or what arrived is not what was sent.
    Cut,
    /// It failed by itself.
    Failed,
}

impl Kind {
    /// Whether the same request will fail again however often it is made.
    pub fn is_lasting(self) -> bool {
        !matches!(
            self,
            Self::Unresolved
                | Self::Unreachable
                | Self::Throttled
                | Self::Stalled
                | Self::Cut
                | Self::Failed
        )
    }

    /// Whether it lies in what the job or its machines were told (the URL, the endpoint, credentials and
    /// what they permit): every process that is told the same fails in the same way.
    pub fn is_mistake(self) -> bool {
        matches!(
            self,
            Self::NoCredentials
                | Self::WrongCredentials
                | Self::NoPermission
                | Self::NoBucket
                | Self::Unsupported
                | Self::Untrusted
                | Self::NotHttp
                | Self::NotTls
                | Self::Refused
        )
    }

    /// Returns the kind in words, which name no place.
    pub fn word(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Exists => "exists",
            Self::Changed => "changed",
            Self::NoCredentials => "no credentials",
            Self::WrongCredentials => "wrong credentials",
            Self::NoPermission => "no permission",
            Self::NoBucket => "no bucket",
            Self::Full => "full",
            Self::Unsupported => "unsupported",
            Self::Untrusted => "untrusted",
            Self::NotHttp => "not HTTP",
            Self::NotTls => "not TLS",
            Self::Refused => "refused",
            Self::Unresolved => "unresolved",
            Self::Unreachable => "unreachable",
            Self::Throttled => "throttled",
            Self::Stalled => "stalled",
            Self::Cut => "cut",
            Self::Failed => "failed",
        }
    }

    /// Whether the store itself has said so.
    pub(super) fn is_answer(self) -> bool {
        self.is_lasting()
            && !matches!(self, Self::NoCredentials | Self::Untrusted | Self::NotHttp | Self::NotTls)
    }
}

/// What is wrong with a certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Flaw {
    /// Nobody who is trusted vouches for it.
    Issuer,
    /// It is an authority's own, and stands for a server.
    Authority,
    /// It is for another name.
    Name,
    /// It is not valid now.
    Time,
    /// Something else.
    #[default]
    Other,
}

impl Flaw {
    pub(super) fn of(lower: &str) -> Option<Self> {
        [
            ("unknownissuer", Self::Issuer),
            ("causedasendentity", Self::Authority),
            ("certificate not valid for name", Self::Name),
            ("certificate expired", Self::Time),
            ("certificate not valid yet", Self::Time),
        ]
        .into_iter()
        .find_map(|(words, flaw)| lower.contains(words).then_some(flaw))
    }
}
