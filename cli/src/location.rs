//! Where something is, as a person says it.

use std::path::{Component, PathBuf};

use crate::error::Error;

/// Returns the URL or absolute path that a person's words mean.
pub(crate) fn location(given: &str) -> Result<String, Error> {
    if given.contains("://") {
        return Ok(given.to_owned());
    }
    let path = std::path::absolute(given)
        .map_err(|source| Error::io(format!("make {given:?} an absolute path"), source))?;
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir => {}
            other => normal.push(other),
        }
    }
    Ok(normal.display().to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_path_becomes_absolute_and_a_url_stays() {
        let here = std::env::current_dir().unwrap();
        let absolute = |path: &str| here.join(path).display().to_string();
        assert_eq!(location("runs/a/").unwrap(), absolute("runs/a"));
        assert_eq!(location("./x/../runs").unwrap(), absolute("runs"));
        assert_eq!(location("/runs").unwrap(), "/runs");
        assert_eq!(location("s3://b/runs/").unwrap(), "s3://b/runs/");
    }
}
