//! `cargo xtask setup --system`: servers that tests talk to. A package manager installs the best of
//! them, which takes root; what takes no root is installed by `cargo xtask test` itself.

use std::env;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::console;
use crate::deny;
use crate::python::{Environment, Packages};
use crate::workspace::Workspace;

/// Ceph's gateway, a real S3 server, with the daemons it needs; 70 MB.
const CEPH: [&str; 5] = ["radosgw", "ceph-mon", "ceph-osd", "ceph-mgr", "ceph-common"];
/// Programs of these packages that tests start.
const PROGRAMS: [&str; 6] =
    ["radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "monmaptool"];
/// What serves S3 where there is no Ceph; less strict.
const MOTO: Environment = Environment {
    folder: "moto",
    what: "moto, an S3 server for tests",
    packages: Packages::Named(&["moto[s3]==5.2.1", "flask==3.1.3", "flask-cors==6.0.2"]),
    bytes: 100_000_000,
};
/// What a client is made of that is not ours.
const GRPC: Environment = Environment {
    folder: "grpc",
    what: "a Python client of gRPC for tests",
    packages: Packages::Pinned("tests/e2e/requirements.txt"),
    bytes: 50_000_000,
};

/// Installs what is missing, as far as this user and this machine let it; else says how.
///
/// # Errors
/// Neither apt-get nor pip brings a server.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    if let Err(error) = deny::ensure(workspace) {
        console::note(&format!("no cargo-deny, which checks the dependencies: {error:#}"));
    }
    ensure_grpc_client(workspace);
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
    MOTO.ensure(workspace)?;
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
    if let Err(error) = MOTO.ensure(workspace) {
        console::note(&format!("no S3 server for tests: {error:#}"));
    }
}

/// Installs a client of gRPC in Python, which takes no root. Where that fails, the test that calls it is
/// skipped, and counted.
pub(crate) fn ensure_grpc_client(workspace: &Workspace) {
    if let Err(error) = GRPC.ensure(workspace) {
        console::note(&format!("no Python client of gRPC for tests: {error:#}"));
    }
}
