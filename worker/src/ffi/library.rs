//! Finding and opening shared libraries that only some machines have.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// A library that could not be opened.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot open {library} ({reason}); {remedy}")]
pub struct Missing {
    /// Its usual file name.
    pub library: &'static str,
    /// What the dynamic linker said.
    pub reason: String,
    /// What the user can do.
    pub remedy: &'static str,
}

/// A library and where it may be.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// File names, the preferred one first.
    pub names: &'static [&'static str],
    /// Folders relative to those of `LD_LIBRARY_PATH`. Python wheels put NVIDIA's libraries into
    /// `site-packages/nvidia`, and the folder that is named is usually `site-packages/torch/lib`.
    pub folders: &'static [&'static str],
    /// What to do when it is nowhere.
    pub remedy: &'static str,
}

/// Opens a library for the rest of the process's life.
///
/// By name first: the dynamic linker then finds one that is loaded already (libtorch_cuda brings
/// several), in `LD_LIBRARY_PATH`, or installed.
///
/// # Errors
/// [`Missing`]: it is nowhere, or what is there cannot be loaded.
pub fn open(wanted: &Wanted) -> Result<Library, Missing> {
    let path = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let mut reasons = Vec::new();
    for candidate in candidates(wanted, &path) {
        match open_one(&candidate) {
            Ok(library) => return Ok(library),
            Err(reason) => reasons.push(reason),
        }
    }
    // What is wrong with a file that is there tells more than that a name leads nowhere; such files
    // come last.
    let reason = reasons.pop().unwrap_or_else(|| "no name to look for".to_owned());
    let library = wanted.names.first().copied().unwrap_or_default();
    Err(Missing { library, reason, remedy: wanted.remedy })
}

/// Returns the folder of the first candidate that is a file beside `LD_LIBRARY_PATH`.
pub(super) fn folder_of(wanted: &Wanted) -> Option<PathBuf> {
    let path = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let file =
        candidates(wanted, &path).into_iter().map(PathBuf::from).find(|c| c.is_absolute())?;
    file.parent().map(Path::to_owned)
}

/// Opens one library by name or path.
pub(super) fn open_one(name: &OsStr) -> Result<Library, String> {
    // SAFETY: loading runs the library's initialisers. Only NVIDIA's driver, NVML, NVRTC and NCCL are
    // named here, whose initialisers set up their own state; no handle is ever closed while code of
    // the library can run, because all callers keep theirs for the process's life.
    let library = unsafe { Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) };
    library.map_err(|error| reason(&error))
}

/// What the dynamic linker said, which the error itself does not repeat.
pub(super) fn reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// Names, then files that exist beside the folders of `path`.
fn candidates(wanted: &Wanted, path: &OsStr) -> Vec<OsString> {
    let mut candidates: Vec<OsString> = wanted.names.iter().map(OsString::from).collect();
    for folder in std::env::split_paths(path).filter(|folder| folder.is_absolute()) {
        let places =
            std::iter::once(folder.clone()).chain(wanted.folders.iter().map(|f| folder.join(f)));
        for place in places {
            for name in wanted.names {
                let file = place.join(name);
                if file.is_file() {
                    candidates.push(file.into_os_string());
                }
            }
        }
    }
    candidates
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const WANTED: Wanted = Wanted {
        names: &["libringmaster-not-there.so.7"],
        folders: &["../../nvidia/thing/lib"],
        remedy: "install the thing",
    };

    #[test]
    fn a_library_that_is_nowhere_is_an_error_with_a_remedy() {
        let error = open(&WANTED).unwrap_err().to_string();
        assert!(error.starts_with("cannot open libringmaster-not-there.so.7 ("), "{error}");
        assert!(error.ends_with("; install the thing"), "{error}");
    }

    #[test]
    fn wheels_beside_a_folder_of_the_library_path_are_found() {
        let site = tempfile::tempdir().unwrap();
        let torch = site.path().join("torch/lib");
        let thing = site.path().join("nvidia/thing/lib");
        for folder in [&torch, &thing] {
            std::fs::create_dir_all(folder).unwrap();
        }
        let file = thing.join(WANTED.names[0]);
        std::fs::write(&file, "not a library").unwrap();
        let path = std::env::join_paths([Path::new("relative"), &torch]).unwrap();
        let found = candidates(&WANTED, &path);
        assert_eq!(found[0], WANTED.names[0], "the linker's own search comes first");
        assert_eq!(std::fs::canonicalize(&found[1]).unwrap(), file.canonicalize().unwrap());
        assert_eq!(found.len(), 2);
        let reason = open_one(&found[1]).unwrap_err();
        assert!(reason.contains("file too short") || reason.contains("invalid ELF"), "{reason}");
    }
}
