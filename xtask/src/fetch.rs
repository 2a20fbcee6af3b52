//! Verified downloads through pip and npm, so that a person's own mirrors and proxies apply.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use walkdir::WalkDir;

use xtask::console::{self, Progress};
use xtask::digest::sha256;

use crate::tools::Tools;

/// One file of a package registry, pinned by its content.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Artifact {
    /// The package's name in its registry.
    pub(crate) package: &'static str,
    /// The package's version.
    pub(crate) version: &'static str,
    /// Which registry has it.
    pub(crate) registry: Registry,
    /// The name of the downloaded file.
    pub(crate) file: &'static str,
    /// Its size.
    pub(crate) bytes: u64,
    /// SHA-256 of its content, in hex.
    pub(crate) sha256: &'static str,
}

/// Where an [`Artifact`] comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Registry {
    /// `pip download` of a wheel for x86-64 Linux, whatever the local Python is.
    Pip,
    /// `npm pack` of a published package.
    Npm,
}

/// Returns the path of the artifact in `folder`, downloading it if it is not there or damaged.
pub(crate) fn fetch(artifact: &Artifact, folder: &Path, tools: &Tools) -> Result<PathBuf> {
    let path = folder.join(artifact.file);
    if path.is_file() {
        if sha256(&path)? == artifact.sha256 {
            return Ok(path);
        }
        console::note(&format!("    {} is damaged and is downloaded again", path.display()));
    }
    let staging = folder.join(format!(".{}.partial", artifact.file));
    fresh_folder(&staging)?;
    let result = download(artifact, &staging, tools).and_then(|()| {
        let downloaded = staging.join(artifact.file);
        verify(artifact, &downloaded)?;
        fs::rename(&downloaded, &path)
            .with_context(|| format!("cannot move {} into place", downloaded.display()))
    });
    let removed = fs::remove_dir_all(&staging);
    result?;
    removed.with_context(|| format!("cannot remove {}", staging.display()))?;
    Ok(path)
}

fn download(artifact: &Artifact, staging: &Path, tools: &Tools) -> Result<()> {
    let label = format!("{} {}", artifact.package, artifact.version);
    let mut command = match artifact.registry {
        Registry::Pip => pip(artifact, staging, &tools.pip),
        Registry::Npm => npm(artifact, staging, &tools.npm),
    };
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    let progress = Progress::bytes(label.clone(), artifact.bytes);
    let (success, output) = watch(child, || progress.set(bytes_below(staging)))?;
    if !success {
        drop(progress);
        bail!(
            "cannot download {label}, {} says:\n{}\n\
             check the network and the registry settings of {0}, then run the same command again",
            if artifact.registry == Registry::Pip { "pip" } else { "npm" },
            indent(&output)
        );
    }
    progress.done();
    Ok(())
}

fn pip(artifact: &Artifact, staging: &Path, program: &[String]) -> Command {
    let mut command = Command::new(&program[0]);
    command.args(&program[1..]).args(["download", "--quiet", "--no-deps", "--no-cache-dir"]);
    command.args(["--disable-pip-version-check", "--only-binary=:all:"]);
    // Named in full, so that any Python gets these wheels: nothing of Python itself is used.
    command.args(["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"]);
    for platform in ["2_28", "2_25", "2_17"] {
        command.args(["--platform", &format!("manylinux_{platform}_x86_64")]);
    }
    command.args(["--platform", "manylinux2014_x86_64", "--abi", "none", "--dest"]);
    command.arg(staging).arg(format!("{}=={}", artifact.package, artifact.version));
    // pip's temporary files beside the result: their size is the progress, and /tmp may be small.
    command.env("TMPDIR", staging).current_dir(staging);
    command
}

fn npm(artifact: &Artifact, staging: &Path, program: &[String]) -> Command {
    let mut command = Command::new(&program[0]);
    command.args(&program[1..]).args(["pack", "--loglevel=error", "--ignore-scripts"]);
    command.arg("--pack-destination").arg(staging);
    command.arg("--cache").arg(staging.join("npm-cache"));
    command.arg(format!("{}@{}", artifact.package, artifact.version));
    command.env("NPM_CONFIG_UPDATE_NOTIFIER", "false").current_dir(staging);
    command
}

/// Waits for a child while calling `tick` a few times a second; returns what it printed.
pub(crate) fn watch(mut child: Child, tick: impl Fn()) -> Result<(bool, String)> {
    let stdout = child.stdout.take().context("standard output was not captured")?;
    let stderr = child.stderr.take().context("standard error was not captured")?;
    thread::scope(|scope| {
        let readers = [scope.spawn(|| read_all(stdout)), scope.spawn(|| read_all(stderr))];
        let status = loop {
            if let Some(status) = child.try_wait().context("cannot wait for a download")? {
                break status;
            }
            tick();
            thread::sleep(Duration::from_millis(100));
        };
        let texts = readers.map(|reader| reader.join().unwrap_or_default());
        Ok((status.success(), texts.concat()))
    })
}

fn read_all(mut source: impl Read) -> String {
    let mut bytes = Vec::new();
    // What arrived before an error is still worth showing.
    let _ = source.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn verify(artifact: &Artifact, path: &Path) -> Result<()> {
    if !path.is_file() {
        bail!("the registry gave no file {} for {}", artifact.file, artifact.package);
    }
    let found = sha256(path)?;
    if found != artifact.sha256 {
        bail!(
            "{} {} has SHA-256 {found}, expected {}: the registry or a mirror serves another file, \
             which is not used",
            artifact.package,
            artifact.version,
            artifact.sha256
        );
    }
    Ok(())
}

/// Makes `folder` exist and be empty.
pub(crate) fn fresh_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot empty {}", folder.display()));
        }
        _ => {}
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

/// Puts the finished folder `new` where `target` is, so that nobody sees half of it: what was there
/// is moved aside first and removed afterwards.
pub(crate) fn replace_folder(new: &Path, target: &Path) -> Result<()> {
    let name = target.file_name().context("the folder to replace has no name")?;
    let old = target.with_file_name(format!(".{}.old", name.to_string_lossy()));
    fresh_folder(&old)?;
    if target.exists() {
        fs::rename(target, &old)
            .with_context(|| format!("cannot move {} aside", target.display()))?;
    }
    fs::rename(new, target)
        .with_context(|| format!("cannot move {} into place", target.display()))?;
    fs::remove_dir_all(&old).with_context(|| format!("cannot remove {}", old.display()))
}

/// Bytes of all files below `folder`; files that vanish meanwhile count as nothing.
pub(crate) fn bytes_below(folder: &Path) -> u64 {
    WalkDir::new(folder)
        .into_iter()
        .flatten()
        .filter(|entry| entry.file_type().is_file())
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}

/// Sets a text off from what is said around it.
pub(crate) fn indent(text: &str) -> String {
    text.trim().lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ARTIFACT: Artifact = Artifact {
        package: "thing",
        version: "1",
        registry: Registry::Npm,
        file: "thing-1.tgz",
        bytes: 5,
        sha256: "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
    };

    /// Stands in for npm: writes `content` to the wanted file, or fails.
    fn registry(content: &str) -> Tools {
        let script = format!("printf {content} > thing-1.tgz");
        Tools { npm: ["sh", "-c", &script].map(str::to_owned).to_vec(), ..Tools::default() }
    }

    #[test]
    fn a_download_with_the_right_checksum_is_kept_and_not_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let path = fetch(&ARTIFACT, folder.path(), &registry("hello")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "hello");
        fetch(&ARTIFACT, folder.path(), &registry("unused")).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "staging is removed");
    }

    #[test]
    fn a_download_with_another_checksum_is_refused_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let error = fetch(&ARTIFACT, folder.path(), &registry("other")).unwrap_err();
        assert!(error.to_string().contains("expected 2cf24dba"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_file_is_downloaded_again() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(ARTIFACT.file), "hel").unwrap();
        let path = fetch(&ARTIFACT, folder.path(), &registry("hello")).unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "hello");
    }

    #[test]
    fn a_failing_registry_client_is_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let script = "echo E404 no such package >&2; exit 1";
        let tools =
            Tools { npm: ["sh", "-c", script].map(str::to_owned).to_vec(), ..Tools::default() };
        let error = fetch(&ARTIFACT, folder.path(), &tools).unwrap_err().to_string();
        assert!(error.contains("cannot download thing 1"), "{error}");
        assert!(error.contains("E404 no such package"), "{error}");
    }

    #[test]
    fn replacing_a_folder_leaves_only_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let (new, target) = (folder.path().join("new"), folder.path().join("target"));
        for (path, text) in [(&new, "new"), (&target, "old")] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("file"), text).unwrap();
        }
        replace_folder(&new, &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
