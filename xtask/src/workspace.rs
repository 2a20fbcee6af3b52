//! Where things are, and the environment of the programs that are started from here.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::cargo_env;

/// The folder inside the cache folder. A new libtorch gets a new name.
pub(crate) const LIBTORCH: &str = "libtorch-2.11.0-cpu";

/// The repository and the cache folder of this machine.
pub(crate) struct Workspace {
    root: PathBuf,
    cache: PathBuf,
}

impl Workspace {
    /// Finds the repository from cargo's environment, and creates the cache folder:
    /// `RINGMASTER_CACHE`, or `~/.cache/ringmaster`.
    pub(crate) fn locate() -> Result<Self> {
        // At run time rather than at compile time: checkouts may share one target folder.
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest.parent().context("the xtask crate has no parent folder")?.to_owned();
        let cache = match env::var_os("RINGMASTER_CACHE").filter(|value| !value.is_empty()) {
            Some(folder) => PathBuf::from(folder),
            None => env::home_dir()
                .context("no home folder is known: set RINGMASTER_CACHE to a folder for downloads")?
                .join(".cache/ringmaster"),
        };
        fs::create_dir_all(&cache)
            .with_context(|| format!("cannot create the cache folder {}", cache.display()))?;
        // One spelling for one folder: torch-sys compiles again whenever LIBTORCH's text changes.
        let cache = fs::canonicalize(&cache)
            .with_context(|| format!("cannot resolve the cache folder {}", cache.display()))?;
        Ok(Self { root, cache })
    }

    /// The root of the repository.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The folder for everything that is downloaded or made from downloads.
    pub(crate) fn cache(&self) -> &Path {
        &self.cache
    }

    /// The trimmed libtorch.
    pub(crate) fn libtorch(&self) -> PathBuf {
        self.cache.join(LIBTORCH)
    }

    /// A program with libtorch in its environment and without what cargo set for xtask itself.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        cargo_env::forget_package(&mut command);
        let libtorch = self.libtorch();
        command.env("LD_LIBRARY_PATH", library_path(&libtorch.join("lib")));
        command.env("LIBTORCH", libtorch);
        command
    }

    /// cargo, in the root of the workspace.
    pub(crate) fn cargo(&self) -> Command {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = self.command(cargo);
        command.current_dir(&self.root);
        command
    }

    /// Where [`Workspace::build`] puts a program.
    pub(crate) fn program(&self, name: &str) -> Result<PathBuf> {
        Ok(self.target_directory()?.join("release").join(name))
    }

    /// Builds the programs of these packages as people run them, and with `features`, in the release
    /// profile; tests are compiled in the dev profile, by cargo's own defaults. Returns whether it
    /// succeeded; cargo has said why not.
    pub(crate) fn build(&self, packages: &[&str], features: &[&str]) -> Result<bool> {
        let mut cargo = self.build_command(packages);
        cargo.args(features.iter().flat_map(|feature| ["--features", feature]));
        Ok(cargo.status().context("cannot start cargo")?.success())
    }

    /// The command of [`Workspace::build`].
    pub(crate) fn build_command(&self, packages: &[&str]) -> Command {
        let mut cargo = self.cargo();
        cargo.args(["build", "--release", "--bins"]);
        cargo.args(packages.iter().flat_map(|package| ["--package", package]));
        cargo
    }

    /// The folder cargo builds into.
    pub(crate) fn target_directory(&self) -> Result<PathBuf> {
        #[derive(Deserialize)]
        struct Metadata {
            target_directory: PathBuf,
        }
        let output = self
            .cargo()
            .args(["metadata", "--no-deps", "--format-version=1"])
            .output()
            .context("cannot start cargo")?;
        if !output.status.success() {
            bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let metadata: Metadata =
            serde_json::from_slice(&output.stdout).context("cannot read cargo's metadata")?;
        Ok(metadata.target_directory)
    }

    /// Lines for a POSIX shell that make plain cargo find libtorch.
    pub(crate) fn shell_exports(&self) -> String {
        let libtorch = quote(&self.libtorch().to_string_lossy());
        let library = quote(&self.libtorch().join("lib").to_string_lossy());
        format!(
            "export LIBTORCH={libtorch}\n\
             export LD_LIBRARY_PATH={library}${{LD_LIBRARY_PATH:+\":$LD_LIBRARY_PATH\"}}"
        )
    }
}

/// `folder`, then the folders of the caller's `LD_LIBRARY_PATH` without it.
fn library_path(folder: &Path) -> OsString {
    let inherited = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let others =
        env::split_paths(&inherited).filter(|path| path != folder && !path.as_os_str().is_empty());
    env::join_paths(std::iter::once(folder.to_owned()).chain(others))
        .unwrap_or_else(|_| folder.as_os_str().to_owned())
}

/// A word a POSIX shell reads as `text`.
fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::quote;

    #[test]
    fn a_path_with_spaces_and_quotes_survives_the_shell() {
        assert_eq!(quote("/a/b-1.0"), "/a/b-1.0");
        assert_eq!(quote("/my files/it's"), r"'/my files/it'\''s'");
    }
}
