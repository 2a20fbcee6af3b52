//! Names that come from outside and become paths: each is checked before it does.

use std::fmt;

use super::Error;

/// A repository of models at some revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    name: String,
    revision: String,
}

impl Repository {
    /// Reads `ORG/NAME` or `ORG/NAME@REVISION`; the revision is a branch, a tag or a commit, and
    /// `main` where there is none.
    ///
    /// # Errors
    /// A name that no repository has.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let parts: Vec<&str> = name.trim_end_matches('/').split('/').collect();
        if parts.len() > 2 || !parts.iter().all(|part| is_plain(part) && !part.contains("--")) {
            return Err(Error::Name {
                what: "repository",
                name: text.to_owned(),
                constraint: "expected ORG/NAME or ORG/NAME@REVISION of letters, digits, '-', '_' \
                             and '.'",
            });
        }
        if !revision.split('/').all(is_plain) {
            return Err(Error::Name {
                what: "revision",
                name: revision.to_owned(),
                constraint: "expected a branch, a tag or a commit",
            });
        }
        Ok(Self { name: parts.join("/"), revision: revision.to_owned() })
    }

    /// Returns `ORG/NAME`.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the revision.
    pub(super) fn revision(&self) -> &str {
        &self.revision
    }

    /// Returns the revision if it is a commit, which never changes.
    pub(super) fn commit(&self) -> Option<&str> {
        is_commit(&self.revision).then_some(self.revision.as_str())
    }

    /// Returns the same repository as it is at a commit; as it is where `commit` is none.
    pub(super) fn at(&self, commit: &str) -> Self {
        let revision = if is_commit(commit) { commit } else { &self.revision };
        Self { name: self.name.clone(), revision: revision.to_owned() }
    }

    /// Returns the folder of the repository in a cache.
    pub(super) fn folder(&self) -> String {
        format!("models--{}", self.name.replace('/', "--"))
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision.as_str() {
            "main" => write!(f, "{}", self.name),
            revision => write!(f, "{}@{revision}", self.name),
        }
    }
}

/// Checks the name of a file in a repository.
pub(super) fn check_file(file: &str) -> Result<(), Error> {
    if file.split('/').all(is_plain) {
        Ok(())
    } else {
        Err(Error::Name {
            what: "file",
            name: file.to_owned(),
            constraint: "expected a path inside the repository",
        })
    }
}

/// Whether `text` is one step of a path and stays one: not empty, hidden, upwards or escaped.
pub(super) fn is_plain(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !text.is_empty() && text.len() <= 255 && !text.starts_with('.') && text.bytes().all(known)
}

/// Whether `text` is a commit: 40 hexadecimal digits.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hexadecimal(text)
}

/// Whether `text` is the SHA-256 that a hub gives large files as their ETag.
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && is_hexadecimal(text)
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}
