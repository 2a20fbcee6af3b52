//! `cargo xtask gpu-bundle`: what a machine with a GPU and PyTorch 2.11, but without Rust, needs to
//! run the GPU claims: one folder, one script. libtorch, NCCL and NVRTC are the installed PyTorch's.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;
use walkdir::WalkDir;
use zip::ZipArchive;

use crate::workspace::Workspace;
use crate::{console, fetch, setup, tools};

/// What is run, and where it is.
#[derive(Debug)]
pub(crate) struct Programs {
    /// `ringmaster-bench`.
    pub(crate) bench: PathBuf,
    /// The worker's unit tests.
    pub(crate) tests: PathBuf,
    /// `tests/parity/gpu_loss.py`.
    pub(crate) script: PathBuf,
    /// OpenCLIP's loss.py; none where an installed OpenCLIP is to be imported.
    pub(crate) openclip: Option<PathBuf>,
}

/// Arguments of `cargo xtask gpu-bundle`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The folder to make; replaced when it is there.
    #[arg(long, default_value = "target/ringmaster-gpu", value_name = "FOLDER")]
    out: PathBuf,
}

/// What must fit, all files together.
const LIMIT: u64 = 60_000_000;
/// The release whose losses are compared with.
const OPENCLIP: &str = "open-clip-torch==3.3.0";
const SCRIPT: &str = "tests/parity/gpu_loss.py";
const RUN: &str = r#"#!/bin/sh
# Runs every GPU claim and writes gpu-report.json into the current folder. Needs a GPU and a python3
# with PyTorch 2.11 for CUDA; --python names another interpreter, --out another file.
here=$(cd "$(dirname "$0")" && pwd) || exit 1
exec "$here/bin/xtask" gpu-check --bundle "$here" "$@"
"#;

/// Builds, packs and checks the size.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    setup::run(workspace, false)?;
    let programs = build(workspace)?;
    let out = workspace.root().join(&options.out);
    fetch::fresh_folder(&out)?;
    let bin = out.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot create {}", bin.display()))?;
    console::step("packing");
    // As it is while it runs: the build may have put another in its place.
    let xtask = PathBuf::from(format!("/proc/{}/exe", std::process::id()));
    for (from, name) in [
        (programs.bench.as_path(), "ringmaster-bench"),
        (programs.tests.as_path(), "worker-tests"),
        (xtask.as_path(), "xtask"),
    ] {
        strip(from, &bin.join(name))?;
    }
    copy(&programs.script, &out.join("gpu_loss.py"))?;
    add_openclip(&out.join("openclip"))?;
    write(&out.join("revision"), &format!("{}\n", revision(workspace.root())))?;
    let script = out.join("run.sh");
    write(&script, RUN)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", script.display()))?;
    let size = check_size(&out, LIMIT)?;
    console::note(&format!(
        "{} ({:.1} MB): copy it to a machine with a GPU and PyTorch 2.11, and start run.sh there",
        out.display(),
        size as f64 / 1e6
    ));
    Ok(())
}

/// The programs of a bundle.
pub(crate) fn programs(folder: &Path) -> Programs {
    let bin = folder.join("bin");
    Programs {
        bench: bin.join("ringmaster-bench"),
        tests: bin.join("worker-tests"),
        script: folder.join("gpu_loss.py"),
        openclip: Some(folder.join("openclip/loss.py")),
    }
}

/// The programs of the workspace, as far as they are known without building.
pub(crate) fn in_tree(workspace: &Workspace) -> Programs {
    Programs {
        bench: PathBuf::from("ringmaster-bench"),
        tests: PathBuf::from("worker-tests"),
        script: workspace.root().join(SCRIPT),
        openclip: None,
    }
}

/// Builds the bench and the worker's unit tests.
pub(crate) fn build(workspace: &Workspace) -> Result<Programs> {
    console::step("building the bench and the worker's tests");
    if !workspace.build(&["ringmaster-bench"], &[])? {
        bail!("the build failed");
    }
    let mut cargo = workspace.cargo();
    cargo.args([
        "test",
        "--workspace",
        "--lib",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    let output = cargo.stderr(std::process::Stdio::inherit()).output();
    let output = output.context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the tests do not build");
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let tests = test_program(&messages).context("cargo names no test program of the worker")?;
    let bench = workspace.program("ringmaster-bench")?;
    Ok(Programs { bench, tests, ..in_tree(workspace) })
}

/// Finds the worker's unit tests among cargo's messages.
fn test_program(messages: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_it =
            message["target"]["name"] == "ringmaster_worker" && message["profile"]["test"] == true;
        is_it.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
    })
}

/// The commit of the workspace, marked when files differ from it.
pub(crate) fn revision(root: &Path) -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(text)
    };
    let Some(commit) = git(&["rev-parse", "HEAD"]) else { return "unknown".to_owned() };
    let clean = git(&["status", "--porcelain"]).is_some_and(|changes| changes.is_empty());
    if clean { commit } else { format!("{commit}-dirty") }
}

/// The commit a bundle was made from.
pub(crate) fn revision_of(bundle: &Path) -> Result<String> {
    let path = bundle.join("revision");
    let text = fs::read_to_string(&path).with_context(|| {
        format!("{} cannot be read: is {} a bundle?", path.display(), bundle.display())
    })?;
    Ok(text.trim().to_owned())
}

/// Copies a program without its symbols: two thirds of it.
fn strip(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("strip").arg("-o").arg(to).arg(from).status();
    let status = status.context("cannot start strip; it comes with the C compiler (binutils)")?;
    if !status.success() {
        bail!("strip fails on {}", from.display());
    }
    Ok(())
}

/// Takes OpenCLIP's losses, which need nothing but PyTorch, and their licence out of the wheel.
fn add_openclip(folder: &Path) -> Result<()> {
    let tools = tools::find(tools::Needs { pip: true, npm: false })?;
    let Some((program, arguments)) = tools.pip.split_first() else { bail!("there is no pip") };
    let downloads = folder.with_extension("download");
    fetch::fresh_folder(&downloads)?;
    let status = Command::new(program)
        .args(arguments)
        .args(["download", "--quiet", "--no-deps", "--only-binary=:all:", OPENCLIP, "-d"])
        .arg(&downloads)
        .status()
        .context("cannot start pip")?;
    if !status.success() {
        bail!("pip cannot download {OPENCLIP}, whose losses the bundle compares with");
    }
    let mut entries = fs::read_dir(&downloads).context("cannot list the download")?;
    let wheel = entries.next().context("pip downloaded nothing")??.path();
    unpack_openclip(&wheel, folder)
        .with_context(|| format!("cannot unpack {}", wheel.display()))?;
    fs::remove_dir_all(&downloads).context("cannot remove the download")
}

fn unpack_openclip(wheel: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let mut archive = ZipArchive::new(fs::File::open(wheel)?)?;
    for index in 0..archive.len() {
        let mut member = archive.by_index(index)?;
        let target = match member.name()?.as_ref() {
            "open_clip/loss.py" => "loss.py",
            name if name.ends_with(".dist-info/METADATA") => "METADATA",
            name if name.contains(".dist-info/") && name.ends_with("/LICENSE") => "LICENSE",
            _ => continue,
        };
        let mut file = fs::File::create(folder.join(target))?;
        std::io::copy(&mut member, &mut file)?;
    }
    if !folder.join("loss.py").exists() {
        bail!("it holds no open_clip/loss.py");
    }
    Ok(())
}

/// Returns the size of all files, or an error that names the largest when they are too many bytes.
fn check_size(folder: &Path, limit: u64) -> Result<u64> {
    let mut files = Vec::new();
    for entry in WalkDir::new(folder) {
        let entry = entry.context("cannot list the bundle")?;
        if entry.file_type().is_file() {
            let size = entry.metadata().context("cannot read a file's size")?.len();
            files.push((size, entry.file_name().to_string_lossy().into_owned()));
        }
    }
    files.sort_unstable_by(|a, b| b.cmp(a));
    let total = files.iter().map(|(size, _)| size).sum();
    if total > limit {
        let largest: Vec<String> =
            files.iter().take(3).map(|(size, name)| format!("{name} {size}")).collect();
        bail!("the bundle has {total} bytes, more than {limit}; largest: {}", largest.join(", "));
    }
    Ok(total)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("cannot copy {}", from.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_over_the_limit_is_refused_with_its_largest_files() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        fs::write(folder.path().join("bin/worker"), [0; 700]).unwrap();
        fs::write(folder.path().join("script"), [0; 300]).unwrap();
        assert_eq!(check_size(folder.path(), 1000).unwrap(), 1000);
        let error = check_size(folder.path(), 999).unwrap_err().to_string();
        assert!(error.contains("1000 bytes, more than 999; largest: worker 700"), "{error}");
    }

    #[test]
    fn the_workers_unit_tests_are_found_among_cargos_messages() {
        let messages = r#"
{"reason":"compiler-artifact","target":{"name":"ringmaster_worker"},"profile":{"test":false},"executable":null}
{"reason":"compiler-artifact","target":{"name":"ringmaster"},"profile":{"test":true},"executable":"/t/other"}
{"reason":"compiler-artifact","target":{"name":"ringmaster_worker"},"profile":{"test":true},"executable":"/t/tests"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(test_program(messages), Some(PathBuf::from("/t/tests")));
        assert_eq!(test_program("{}"), None);
    }

    #[test]
    fn the_script_starts_the_check_with_the_bundles_own_programs() {
        assert!(RUN.starts_with("#!/bin/sh\n"));
        assert!(RUN.contains("exec \"$here/bin/xtask\" gpu-check --bundle \"$here\" \"$@\""));
        let programs = programs(Path::new("/b"));
        assert_eq!(programs.tests, Path::new("/b/bin/worker-tests"));
        assert_eq!(programs.openclip.as_deref(), Some(Path::new("/b/openclip/loss.py")));
    }

    #[test]
    fn a_folder_that_is_no_bundle_is_said_to_be_none() {
        let folder = tempfile::tempdir().unwrap();
        let error = revision_of(folder.path()).unwrap_err().to_string();
        assert!(error.contains("is ") && error.ends_with("a bundle?"), "{error}");
    }
}
