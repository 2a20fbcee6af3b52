// The build id: which sources a binary was made from. Included (`#[path]`) by the build scripts of
// the command line and of the worker, which embed it, and by the tests, which compute it again so
// that none of them runs on a stale binary. It sits in `proto` because both binaries build on it.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Files at the workspace's root that decide what is compiled.
const ROOT_FILES: [&str; 3] = ["Cargo.lock", "Cargo.toml", "rust-toolchain.toml"];
/// Parts of a crate's folder that reach its binary; those that do not exist are passed over.
const CRATE_PARTS: [&str; 5] = ["Cargo.toml", "build.rs", "build_id.rs", "proto", "src"];
/// Folders outside the crates whose files are compiled in.
const EMBEDDED: [&str; 1] = ["configs/models"];

/// Folders whose crates both binaries are made of.
const SHARED: [&str; 7] = [
    "proto",
    "crates/agent",
    "crates/checkpoint",
    "crates/kernels",
    "crates/manifest",
    "crates/store",
    "crates/words",
];
/// Folders whose crates `ringmaster` is made of, beside those.
#[allow(dead_code)] // each build script uses one of the two
pub(crate) const RINGMASTER: [&str; 2] = ["cli", "coordinator"];
/// Folders whose crates `ringmaster-worker` is made of, beside those.
#[allow(dead_code)] // each build script uses one of the two
pub(crate) const WORKER: [&str; 3] = ["worker", "crates/inputs", "crates/weights"];

/// Returns the first 16 hexadecimal digits of the SHA-256 over the sources of the binary whose crate
/// lies in the folders `own` below `root`: its crate and those it builds on, what they embed and the lock
/// file, names and contents, in the order of names.
///
/// # Errors
/// Whatever reading a folder or a file gives.
pub(crate) fn compute(root: &Path, own: &[&str]) -> io::Result<String> {
    let mut files = Vec::new();
    for input in inputs(root, own) {
        collect(&input, &mut files)?;
    }
    files.sort();
    let mut hasher = Sha256::new();
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
pub(crate) fn inputs(root: &Path, own: &[&str]) -> Vec<PathBuf> {
    let crates = SHARED.iter().chain(own);
    let of_crates = crates.flat_map(|name| CRATE_PARTS.map(|part| root.join(name).join(part)));
    let of_root = ROOT_FILES.iter().chain(&EMBEDDED).map(|name| root.join(name));
    of_crates.chain(of_root).filter(|path| path.exists()).collect()
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
