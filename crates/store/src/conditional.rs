//! Which conditional writes a store honours. Some ignore the condition without a word, so it is
//! tried rather than believed.

use std::hash::{BuildHasher, RandomState};

use object_store::path::Path;
use object_store::{
    Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, Result, UpdateVersion,
};

/// What a store does with a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conditional {
    /// It refuses to create what exists.
    pub create: bool,
    /// How it wants to hear of the version that is to be replaced; none: it replaces any.
    pub update: Option<Tag>,
}

/// How the version's tag is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// As the store gave it.
    AsGiven,
    /// Without the quotes around it, as Ceph wants it.
    Unquoted,
}

impl Tag {
    /// Returns the version as the store wants it.
    pub fn applied(self, version: UpdateVersion) -> UpdateVersion {
        let unquoted = |tag: String| match self {
            Self::AsGiven => tag,
            Self::Unquoted => tag.trim_matches('"').to_owned(),
        };
        UpdateVersion { e_tag: version.e_tag.map(unquoted), ..version }
    }
}

impl Conditional {
    /// Tells people what a store without conditional writes means for them.
    pub fn say(self, place: &str) {
        if !self.create {
            tracing::warn!(
                "{place} overwrites what is to be created only once: that two ranks do not publish \
                 the same checkpoint is left to the coordinator alone"
            );
        }
        if self.update.is_none() {
            tracing::warn!(
                "{place} cannot compare before it replaces: latest.json is read again after it is \
                 written, and may name an older checkpoint for a moment"
            );
        }
    }
}

/// Tries the store with an object in `folder`, which is removed again.
pub(super) async fn probe(store: &dyn ObjectStore, folder: &Path) -> Result<Conditional> {
    let name = format!(".probe-{:016x}", RandomState::new().hash_one(std::process::id()));
    let at = folder.clone().join(name);
    let found = try_out(store, &at).await;
    // An object that stays is small, and no reader looks at it.
    if let Err(error) = store.delete(&at).await
        && !matches!(error, Error::NotFound { .. })
    {
        tracing::debug!(%error, object = %at, "the object that tried the store stays");
    }
    found
}

async fn try_out(store: &dyn ObjectStore, at: &Path) -> Result<Conditional> {
    // Refused at the first attempt: it was made, and the answer got lost.
    if attempt(store, at, PutMode::Create).await? == Outcome::Impossible {
        attempt(store, at, PutMode::Overwrite).await?;
    }
    let create = attempt(store, at, PutMode::Create).await? == Outcome::Refused;
    // As long as a real one, and nobody's.
    let other = UpdateVersion {
        e_tag: Some(format!("\"{}\"", "0".repeat(32))),
        version: Some("1".to_owned()),
    };
    let mut update = None;
    if attempt(store, at, PutMode::Update(other)).await? == Outcome::Refused {
        for tag in [Tag::AsGiven, Tag::Unquoted] {
            let meta = store.head(at).await?;
            let version = UpdateVersion { e_tag: meta.e_tag, version: meta.version };
            let mode = PutMode::Update(tag.applied(version));
            if attempt(store, at, mode).await? == Outcome::Done {
                update = Some(tag);
                break;
            }
        }
    }
    Ok(Conditional { create, update })
}

/// What became of a conditional write.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    /// Because of the condition.
    Refused,
    /// The store knows no such condition.
    Impossible,
}

async fn attempt(store: &dyn ObjectStore, at: &Path, mode: PutMode) -> Result<Outcome> {
    let body = PutPayload::from_static(b"whether this store honours conditions");
    match store.put_opts(at, body, PutOptions::from(mode)).await {
        Ok(_) => Ok(Outcome::Done),
        Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(Outcome::Refused),
        Err(Error::NotSupported { .. } | Error::NotImplemented { .. }) => Ok(Outcome::Impossible),
        Err(error) => Err(error),
    }
}
