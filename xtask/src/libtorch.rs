//! libtorch for CPU builds, trimmed out of the `torch` wheel.
//!
//! Linking needs the headers and three libraries; `libtorch_cpu.so` of a CUDA 13 wheel also names
//! libcudart and libcupti, which are small. The CUDA part of libtorch stays out on purpose: the
//! bindings link it whenever it lies beside the others. A GPU machine chooses an installed PyTorch
//! at run time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use walkdir::WalkDir;
use xtask::console::{self, Progress};
use xtask::digest;
use zip::ZipArchive;

use crate::fetch::{self, Artifact, Registry};
use crate::tools::Tools;
use crate::workspace::{LIBTORCH, Workspace};

const STAMP: &str = "ringmaster-stamp.json";

/// Files below `include/` of the wheel.
const HEADERS: usize = 9410;

const TORCH: Artifact = Artifact {
    package: "torch",
    version: "2.11.0",
    registry: Registry::Pip,
    file: "torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl",
    bytes: 530_604_548,
    sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
};

const CUDA_RUNTIME: Artifact = Artifact {
    package: "nvidia-cuda-runtime",
    version: "13.0.96",
    registry: Registry::Pip,
    file: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    bytes: 2_243_632,
    sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
};

const CUDA_CUPTI: Artifact = Artifact {
    package: "nvidia-cuda-cupti",
    version: "13.0.85",
    registry: Registry::Pip,
    file: "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
    bytes: 10_715_597,
    sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
};

/// One library of the trimmed folder and where it comes from.
struct Library {
    wheel: &'static Artifact,
    member: &'static str,
    bytes: u64,
    sha256: &'static str,
}

const LIBRARIES: [Library; 6] = [
    Library {
        wheel: &TORCH,
        member: "torch/lib/libtorch_cpu.so",
        bytes: 451_209_129,
        sha256: "99ea9120891528198d73d477714adf14ec662dec467aca8a3940796ccd452e91",
    },
    Library {
        wheel: &TORCH,
        member: "torch/lib/libc10.so",
        bytes: 1_498_969,
        sha256: "be5e17cd7752a6af003978706379384c3108f6b68916bb1949e610f6397bb640",
    },
    Library {
        wheel: &TORCH,
        member: "torch/lib/libgomp.so.1",
        bytes: 254_009,
        sha256: "e28fb2896a3d612b46a27d7f8ef840d34c9efbc29b70a044c42095fb94856890",
    },
    Library {
        wheel: &TORCH,
        member: "torch/lib/libtorch.so",
        bytes: 343_121,
        sha256: "c1840a555e30043ef02c02ee22b21d0687342a3ce82bc971ef2280520c20cd22",
    },
    Library {
        wheel: &CUDA_RUNTIME,
        member: "nvidia/cu13/lib/libcudart.so.13",
        bytes: 704_288,
        sha256: "96c42e418cec19054186b9429c321603cc190bf26a18104e19408117a2a817b0",
    },
    Library {
        wheel: &CUDA_CUPTI,
        member: "nvidia/cu13/lib/libcupti.so.13",
        bytes: 4_152_208,
        sha256: "e2f9ed861fe27c492b8bb52b5e3220ef5120f3edcda36312e96b7fd8a186be3e",
    },
];

impl Library {
    fn file_name(&self) -> &'static str {
        self.member.rsplit('/').next().unwrap_or(self.member)
    }
}

/// Written last; its presence says that the folder was complete and verified once.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Stamp {
    version: u32,
    /// Package name to SHA-256 of its wheel.
    wheels: BTreeMap<String, String>,
    /// Library name to SHA-256.
    libraries: BTreeMap<String, String>,
    headers: usize,
}

impl Stamp {
    fn expected() -> Self {
        let wheels = [&TORCH, &CUDA_RUNTIME, &CUDA_CUPTI];
        Self {
            version: 1,
            wheels: wheels.map(|w| (w.package.to_owned(), w.sha256.to_owned())).into(),
            libraries: LIBRARIES
                .iter()
                .map(|library| (library.file_name().to_owned(), library.sha256.to_owned()))
                .collect(),
            headers: HEADERS,
        }
    }
}

/// Whether the folder was verified before and its libraries still have their sizes. Instant.
pub(crate) fn is_ready(folder: &Path) -> bool {
    let stamp = fs::read(folder.join(STAMP)).ok();
    let stamp = stamp.and_then(|bytes| serde_json::from_slice::<Stamp>(&bytes).ok());
    stamp == Some(Stamp::expected())
        && LIBRARIES.iter().all(|library| {
            fs::metadata(folder.join("lib").join(library.file_name()))
                .is_ok_and(|metadata| metadata.len() == library.bytes)
        })
}

/// Makes sure of a verified libtorch in the cache folder.
///
/// A folder unpacked by other means is taken over when every library has the right checksum.
pub(crate) fn ensure(workspace: &Workspace, tools: &Tools) -> Result<()> {
    let folder = workspace.libtorch();
    if folder.exists() && verify(&folder).is_ok() {
        write_stamp(&folder)?;
        console::note("    libtorch 2.11.0 was there already: verified");
        return Ok(());
    }
    let downloads = workspace.cache().join("downloads");
    let partial = workspace.cache().join(format!(".{LIBTORCH}.partial"));
    fs::create_dir_all(&downloads)
        .with_context(|| format!("cannot create {}", downloads.display()))?;
    fetch::fresh_folder(&partial)?;
    for wheel in [&TORCH, &CUDA_RUNTIME, &CUDA_CUPTI] {
        let path = fetch::fetch(wheel, &downloads, tools)?;
        unpack(wheel, &path, &partial)
            .with_context(|| format!("cannot unpack {}", path.display()))?;
    }
    verify(&partial)?;
    write_stamp(&partial)?;
    fetch::replace_folder(&partial, &folder)?;
    // The wheels are half a gigabyte that nothing reads again.
    for wheel in [&TORCH, &CUDA_RUNTIME, &CUDA_CUPTI] {
        let path = downloads.join(wheel.file);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// Reads every library again and compares its checksum.
pub(crate) fn verify(folder: &Path) -> Result<()> {
    for library in &LIBRARIES {
        let path = folder.join("lib").join(library.file_name());
        let found = digest::sha256(&path)?;
        if found != library.sha256 {
            bail!("{} has SHA-256 {found}, expected {}", path.display(), library.sha256);
        }
    }
    let include = folder.join("include");
    let headers = WalkDir::new(&include)
        .into_iter()
        .flatten()
        .filter(|entry| entry.file_type().is_file())
        .count();
    if headers != HEADERS {
        bail!("{} has {headers} files, expected {HEADERS}", include.display());
    }
    Ok(())
}

fn write_stamp(folder: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(&Stamp::expected())?;
    let path = folder.join(STAMP);
    let partial = folder.join(format!("{STAMP}.partial"));
    fs::write(&partial, text).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, &path).with_context(|| format!("cannot write {}", path.display()))
}

/// Extracts the headers and the libraries that are wanted of one wheel.
fn unpack(wheel: &Artifact, path: &Path, folder: &Path) -> Result<()> {
    let mut archive = ZipArchive::new(File::open(path)?)?;
    let mut wanted = Vec::new();
    for index in 0..archive.len() {
        let member = archive.by_index_raw(index)?;
        if let Some(target) = destination(wheel, &member.name()?) {
            wanted.push((index, folder.join(target)));
        }
    }
    let progress = Progress::items(format!("unpacking {}", wheel.package), wanted.len() as u64);
    for (index, target) in wanted {
        let parent = target.parent().context("an unpacked file has no folder")?;
        fs::create_dir_all(parent)?;
        io::copy(&mut archive.by_index(index)?, &mut File::create(&target)?)?;
        progress.add(1);
    }
    progress.done();
    Ok(())
}

/// Where a member of a wheel goes, relative to the trimmed folder; none if it is not wanted.
fn destination(wheel: &Artifact, member: &str) -> Option<PathBuf> {
    let library = LIBRARIES
        .iter()
        .find(|library| library.wheel.package == wheel.package && library.member == member);
    if let Some(library) = library {
        return Some(Path::new("lib").join(library.file_name()));
    }
    let header = member.strip_prefix("torch/include/")?;
    // The wheel's digest is pinned, so this guards against a mistake here, not against an attack.
    let safe =
        Path::new(header).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    (wheel.package == TORCH.package && safe && !header.is_empty() && !header.ends_with('/'))
        .then(|| Path::new("include").join(header))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_headers_and_named_libraries_leave_the_wheel() {
        let place = |member| destination(&TORCH, member);
        assert_eq!(place("torch/include/ATen/ATen.h"), Some("include/ATen/ATen.h".into()));
        assert_eq!(place("torch/lib/libc10.so"), Some("lib/libc10.so".into()));
        assert_eq!(place("torch/lib/libc10_cuda.so"), None);
        assert_eq!(place("torch/include/"), None);
        assert_eq!(place("torch/include/../../x"), None);
        assert_eq!(destination(&CUDA_CUPTI, "torch/lib/libc10.so"), None);
    }

    #[test]
    fn a_folder_without_a_stamp_is_not_ready() {
        let folder = std::env::temp_dir().join("ringmaster-xtask-no-such-folder");
        assert!(!is_ready(&folder));
    }
}
