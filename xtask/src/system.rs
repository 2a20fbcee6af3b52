//! `cargo xtask setup --system`: servers that tests talk to. A package manager installs the best of
//! them, which takes root; what takes no root is installed by `cargo xtask test` itself.

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::console::{self, Progress};
use crate::workspace::Workspace;
use crate::{deny, fetch, setup, tools};

/// Ceph's gateway, a real S3 server, with the daemons it needs; 70 MB.
const CEPH: [&str; 5] = ["radosgw", "ceph-mon", "ceph-osd", "ceph-mgr", "ceph-common"];
/// Programs of these packages that tests start.
const PROGRAMS: [&str; 6] =
    ["radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "monmaptool"];
/// What serves S3 where there is no Ceph; less strict.
const MOTO: [&str; 3] = ["moto[s3]==5.2.1", "flask==3.1.3", "flask-cors==6.0.2"];
/// What they take on disk, with all they need.
const MOTO_BYTES: u64 = 100_000_000;
/// The folder of moto inside the cache folder.
const MOTO_FOLDER: &str = "moto";
/// Written last, so that an interrupted installation is begun anew; tests look for it, too.
const COMPLETE: &str = "complete";

/// Installs what is missing, as far as this user and this machine let it; else says how.
///
/// # Errors
/// Neither apt-get nor pip brings a server.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    if let Err(error) = deny::ensure(workspace) {
        console::note(&format!("no cargo-deny, which checks the dependencies: {error:#}"));
    }
    if has_ceph() {
        console::note("an S3 server for tests is installed: radosgw");
        return Ok(());
    }
    let install = format!("apt-get install -y --no-install-recommends {}", CEPH.join(" "));
    if is_on_path("apt-get") && is_root() {
        console::step(&format!("an S3 server for tests (70 MB to download): {install}"));
        let words: Vec<&str> = install.split(' ').skip(1).collect();
        match apt(&["update"]).and_then(|()| apt(&words)) {
            Ok(()) if has_ceph() => return Ok(()),
            Ok(()) => console::note(&format!("{} are not all on PATH", PROGRAMS.join(", "))),
            // Somebody else holds the package manager, or its mirror is away: there is moto.
            Err(error) => console::note(&format!("{error:#}")),
        }
    }
    ensure_moto(workspace)?;
    console::note("tests use moto as S3 server, which checks less than a real one");
    if is_on_path("apt-get") {
        console::note(&format!("for a real one, run as root: {install}"));
    } else {
        console::note("for a real one, install Ceph's radosgw, ceph-mon, ceph-osd and ceph-common");
    }
    Ok(())
}

fn has_ceph() -> bool {
    PROGRAMS.iter().all(|program| is_on_path(program))
}

fn is_on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").stderr(Stdio::null()).output();
    id.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// Runs apt-get without questions, and quietly: the output matters only when it fails.
fn apt(words: &[&str]) -> Result<()> {
    let output = Command::new("apt-get")
        .args(words)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .context("cannot start apt-get")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!("apt-get {} failed: {}", words.join(" "), said.trim());
    }
    Ok(())
}

/// Installs an S3 server for tests, where there is none and as far as that goes without root. Where it
/// does not go, the tests that need one are skipped, and counted.
pub(crate) fn ensure_s3_server(workspace: &Workspace) {
    if has_ceph() {
        return;
    }
    if let Err(error) = ensure_moto(workspace) {
        console::note(&format!("no S3 server for tests: {error:#}"));
    }
}

fn ensure_moto(workspace: &Workspace) -> Result<()> {
    let folder = workspace.cache().join(MOTO_FOLDER);
    let (complete, wanted) = (folder.join(COMPLETE), MOTO.join("\n"));
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
    console::step(&format!("moto, an S3 server for tests, into {}", folder.display()));
    install_moto(&folder, &tools.pip)?;
    fs::write(&complete, wanted).with_context(|| format!("cannot write {}", complete.display()))
}

/// Makes a Python environment with moto in it.
fn install_moto(folder: &Path, pip: &[String]) -> Result<()> {
    let mut install = environment(folder, pip)?;
    // Beside the result, so that its size is the progress; /tmp may be small.
    let scratch = folder.join("tmp");
    fetch::fresh_folder(&scratch)?;
    install
        .args(["install", "--quiet", "--no-cache-dir", "--disable-pip-version-check"])
        .args(MOTO)
        .env("TMPDIR", &scratch);
    let child = install.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.context("cannot start pip")?;
    let progress = Progress::bytes("moto", MOTO_BYTES);
    let (success, said) = fetch::watch(child, || progress.set(fetch::bytes_below(folder)))?;
    if !success {
        drop(progress);
        bail!("cannot install {}, pip says:\n{}", MOTO.join(", "), fetch::indent(&said));
    }
    progress.done();
    fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))
}

/// Makes an empty Python environment, and returns pip for it, without its arguments.
fn environment(folder: &Path, pip: &[String]) -> Result<Command> {
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
