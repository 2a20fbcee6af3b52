// The build id: which sources a binary was made from, and with which features. Included (`#[path]`) by the
// build scripts of the command line and of the worker, which embed it, and by the tests, which compute it again
// so that none of them runs on a stale binary. It sits in `proto` because both binaries build on it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Files at the workspace's root that decide what is compiled.
const ROOT_FILES: [&str; 3] = ["Cargo.lock", "Cargo.toml", "rust-toolchain.toml"];
/// Parts of a crate's folder that reach its binary; those that do not exist are passed over.
const CRATE_PARTS: [&str; 6] =
    ["Cargo.toml", "build.rs", "build_id.rs", "run_path.rs", "proto", "src"];
/// Folders outside the crates whose files are compiled in.
const EMBEDDED: [&str; 1] = ["configs/models"];

/// Folder of the crate that `ringmaster` is made of.
#[allow(dead_code)] // each build script uses one of the two
pub(crate) const RINGMASTER: &str = "cli";
/// Folder of the crate that `ringmaster-worker` is made of.
#[allow(dead_code)] // each build script uses one of the two
pub(crate) const WORKER: &str = "worker";

/// What makes ranks fail on demand, in the worker, and lets an agent take such a worker: the feature of this
/// name, which every build for development has.
#[allow(dead_code)] // the tests name it
const FAULTS: &str = "faults";

/// Has cargo embed the build id and the version, and set `cfg(faults)`, in the crate whose build script calls
/// this; `own` is its folder.
///
/// # Errors
/// No cargo around, or whatever reading the sources gives.
#[allow(dead_code)] // the tests only compute
#[allow(clippy::print_stdout, reason = "cargo reads it")]
pub(crate) fn embed(own: &str) -> Result<(), Box<dyn std::error::Error>> {
    let manifest_dir = std::env::var("CARGO_MANIFEST_DIR")?;
    let root = Path::new(&manifest_dir).parent().ok_or("the crate lies in no workspace")?;
    for input in inputs(root, own)? {
        println!("cargo:rerun-if-changed={}", input.display());
    }
    println!("cargo:rustc-check-cfg=cfg({FAULTS})");
    let has_faults =
        std::env::var_os("CARGO_FEATURE_FAULTS").is_some() || std::env::var("PROFILE")? == "debug";
    let features: &[&str] = if has_faults { &[FAULTS] } else { &[] };
    if has_faults {
        println!("cargo:rustc-cfg={FAULTS}");
    }
    let id = compute(root, own, features)?;
    let version: String = features.iter().map(|feature| format!("+{feature}")).collect();
    let version = std::env::var("CARGO_PKG_VERSION")? + &version;
    println!("cargo:rustc-env=RINGMASTER_BUILD_ID={id}");
    println!("cargo:rustc-env=RINGMASTER_VERSION={version} (build {id})");
    Ok(())
}

/// Returns the first 16 hexadecimal digits of the SHA-256 over the features and the sources of the binary whose
/// crate lies in the folder `own` below `root`: that crate and those of the workspace that it builds on, what
/// they embed and the lock file, names and contents, in the order of names.
///
/// # Errors
/// Whatever reading a folder or a file gives.
pub(crate) fn compute(root: &Path, own: &str, features: &[&str]) -> io::Result<String> {
    let mut files = Vec::new();
    for input in inputs(root, own)? {
        collect(&input, &mut files)?;
    }
    files.sort();
    let mut hasher = Sha256::new();
    hasher.update(features.join(",").as_bytes());
    for file in files {
        let name = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().replace('\\', "/");
        let content = std::fs::read(&file)?;
        for part in [name.as_bytes(), &content] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    let mut id = String::new();
    for byte in hasher.finalize().iter().take(8) {
        write!(id, "{byte:02x}").map_err(io::Error::other)?;
    }
    Ok(id)
}

/// Returns the files and folders that [`compute`] reads, for `cargo:rerun-if-changed`.
///
/// # Errors
/// Whatever reading a manifest gives.
pub(crate) fn inputs(root: &Path, own: &str) -> io::Result<Vec<PathBuf>> {
    let crates = crates(root, own)?;
    let of_crates =
        crates.iter().flat_map(|folder| CRATE_PARTS.map(|part| root.join(folder).join(part)));
    let of_root = ROOT_FILES.iter().chain(&EMBEDDED).map(|name| root.join(name));
    Ok(of_crates.chain(of_root).filter(|path| path.exists()).collect())
}

/// Returns the folders of a crate and of all those of the workspace that it builds on, as the manifests have
/// them.
fn crates(root: &Path, own: &str) -> io::Result<Vec<String>> {
    let workspace = std::fs::read_to_string(root.join("Cargo.toml"))?;
    let path = |line: &str| {
        let (name, value) = line.split_once(" = { path = \"")?;
        Some((name.to_owned(), value.split('"').next()?.to_owned()))
    };
    let folders: BTreeMap<String, String> = workspace.lines().filter_map(path).collect();
    let mut found = vec![own.to_owned()];
    let mut next = 0;
    while let Some(folder) = found.get(next).cloned() {
        next += 1;
        for name in dependencies(&std::fs::read_to_string(root.join(folder).join("Cargo.toml"))?) {
            let Some(folder) = folders.get(name) else { continue };
            if !found.contains(folder) {
                found.push(folder.clone());
            }
        }
    }
    Ok(found)
}

/// Returns what a crate's code and its build script depend on.
fn dependencies(manifest: &str) -> Vec<&str> {
    let mut section = "";
    let mut found = Vec::new();
    for line in manifest.lines() {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']');
        } else if matches!(section, "dependencies" | "build-dependencies") {
            found.extend(line.split(['.', ' ', '=']).next().filter(|name| !name.is_empty()));
        }
    }
    found
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        // Editors leave hidden files behind; they are no source.
        if !entry.file_name().to_string_lossy().starts_with('.') {
            collect(&entry.path(), files)?;
        }
    }
    Ok(())
}
