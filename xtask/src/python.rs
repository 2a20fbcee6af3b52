//! Python environments for tests, in the cache folder.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::console::{self, Progress};
use crate::workspace::Workspace;
use crate::{fetch, setup, tools};

/// Written last, so that an interrupted installation is begun anew; tests look for it, too.
const COMPLETE: &str = "complete";

/// An environment with some packages in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Environment {
    /// Its folder inside the cache folder.
    pub(crate) folder: &'static str,
    /// What it is, for people.
    pub(crate) what: &'static str,
    /// What is in it.
    pub(crate) packages: Packages,
    /// What it takes on disk, roughly.
    pub(crate) bytes: u64,
}

/// What to install.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Packages {
    /// These, and whatever they need.
    Named(&'static [&'static str]),
    /// Those of a file of the repository, which has the hash of every one.
    Pinned(&'static str),
}

impl Packages {
    /// Returns what tells one content of an environment from another.
    fn key(self, workspace: &Workspace) -> Result<String> {
        match self {
            Self::Named(names) => Ok(names.join("\n")),
            Self::Pinned(file) => {
                let path = workspace.root().join(file);
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
            }
        }
    }

    /// Tells `pip install` what to install.
    fn add_to(self, install: &mut Command, workspace: &Workspace) {
        match self {
            Self::Named(names) => install.args(names),
            Self::Pinned(file) => install
                .args(["--require-hashes", "--only-binary=:all:", "--requirement"])
                .arg(workspace.root().join(file)),
        };
    }
}

impl Environment {
    /// Makes it, if it is not there with the same packages.
    ///
    /// # Errors
    /// There is no pip, or what it says.
    pub(crate) fn ensure(self, workspace: &Workspace) -> Result<()> {
        let folder = workspace.cache().join(self.folder);
        // What is installed belongs to one version of Python.
        let wanted = format!("{}\n{}", python_version()?, self.packages.key(workspace)?);
        let complete = folder.join(COMPLETE);
        let is_ready = || fs::read_to_string(&complete).is_ok_and(|found| found == wanted);
        if is_ready() {
            return Ok(());
        }
        let tools = tools::find_pip()?;
        let _lock = setup::lock(workspace)?;
        // Another set-up may have installed it meanwhile.
        if is_ready() {
            return Ok(());
        }
        console::step(&format!("{}, into {}", self.what, folder.display()));
        self.install(workspace, &folder, &tools.pip)?;
        fs::write(&complete, wanted).with_context(|| format!("cannot write {}", complete.display()))
    }

    fn install(self, workspace: &Workspace, folder: &Path, pip: &[String]) -> Result<()> {
        let mut install = empty(folder, pip)?;
        // Beside the result, so that its size is the progress; /tmp may be small.
        let scratch = folder.join("tmp");
        fetch::fresh_folder(&scratch)?;
        install.args(["install", "--quiet", "--no-cache-dir", "--disable-pip-version-check"]);
        self.packages.add_to(&mut install, workspace);
        install.env("TMPDIR", &scratch);
        let child =
            install.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let child = child.context("cannot start pip")?;
        let progress = Progress::bytes(self.folder, self.bytes);
        let (success, said) = fetch::watch(child, || progress.set(fetch::bytes_below(folder)))?;
        if !success {
            drop(progress);
            bail!("cannot install {}, pip says:\n{}", self.what, fetch::indent(&said));
        }
        progress.done();
        fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))
    }
}

/// Returns the version of the Python that environments are made with; nothing where there is none, of which
/// finding pip tells.
fn python_version() -> Result<String> {
    let version = "import sys; print(sys.version)";
    match Command::new("python3").args(["-c", version]).output() {
        Ok(output) => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).context("cannot start python3"),
    }
}

/// Makes an empty environment, and returns pip for it, without its arguments.
fn empty(folder: &Path, pip: &[String]) -> Result<Command> {
    let make = |more: &[&str]| -> Result<Result<(), String>> {
        let mut command = Command::new("python3");
        command.args(["-m", "venv", "--clear"]).args(more).arg(folder);
        let output = command.output().context("cannot start python3")?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        Ok(if output.status.success() { Ok(()) } else { Err(said) })
    };
    let python = folder.join("bin/python");
    if make(&[])?.is_ok() {
        let mut own = Command::new(python);
        own.args(["-m", "pip"]);
        return Ok(own);
    }
    // Debian's Python makes environments with pip only where python3-venv is installed.
    if let Err(said) = make(&["--without-pip"])? {
        bail!("python3 -m venv fails:\n{}", fetch::indent(&said));
    }
    let mut outer = Command::new(&pip[0]);
    outer.args(&pip[1..]).arg("--python").arg(python);
    Ok(outer)
}
