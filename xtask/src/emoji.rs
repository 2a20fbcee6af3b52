//! The data of the main job: packages are downloaded here, `emoji-set` draws the set from them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::digest;
use crate::fetch::{self, Artifact, Registry};
use crate::tools::Tools;
use crate::workspace::Workspace;

const GOOGLE: Artifact = Artifact {
    package: "emoji-datasource-google",
    version: "16.0.0",
    registry: Registry::Npm,
    file: "emoji-datasource-google-16.0.0.tgz",
    bytes: 74_344_091,
    sha256: "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
};

const TWITTER: Artifact = Artifact {
    package: "emoji-datasource-twitter",
    version: "16.0.0",
    registry: Registry::Npm,
    file: "emoji-datasource-twitter-16.0.0.tgz",
    bytes: 61_683_754,
    sha256: "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
};

const OPENMOJI: Artifact = Artifact {
    package: "openmoji",
    version: "17.0.0",
    registry: Registry::Npm,
    file: "openmoji-17.0.0.tgz",
    bytes: 4_339_458,
    sha256: "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
};

const FLUENT_3D: Artifact = Artifact {
    package: "@lobehub/fluent-emoji-3d",
    version: "1.1.0",
    registry: Registry::Npm,
    file: "lobehub-fluent-emoji-3d-1.1.0.tgz",
    bytes: 15_792_027,
    sha256: "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
};

const FLUENT_FLAT: Artifact = Artifact {
    package: "@lobehub/fluent-emoji-flat",
    version: "1.1.0",
    registry: Registry::Npm,
    file: "lobehub-fluent-emoji-flat-1.1.0.tgz",
    bytes: 7_607_263,
    sha256: "8f9113c027c7c20eced0070354715a4093a459b8bef6332b91d45f38c9bdb147",
};

const EMOJIBASE: Artifact = Artifact {
    package: "emojibase-data",
    version: "17.0.0",
    registry: Registry::Npm,
    file: "emojibase-data-17.0.0.tgz",
    bytes: 6_711_091,
    sha256: "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
};

/// Everything that is downloaded for the set.
const PACKAGES: [Artifact; 6] = [GOOGLE, TWITTER, OPENMOJI, FLUENT_3D, FLUENT_FLAT, EMOJIBASE];

/// The folder inside the cache folder, and what `data/emoji` links to.
pub(crate) const FOLDER: &str = "emoji-v1";

/// The package of this workspace that draws the set.
pub(crate) const PROGRAM: &str = "emoji-set";

/// Changes whenever the bytes of the shards would: a set built by an older recipe is built again.
const RECIPE: u32 = 4;

const STAMP: &str = "stamp.json";

/// Written last; its presence says that the folder was complete and verified once.
#[derive(Debug, Serialize, Deserialize)]
struct Stamp {
    recipe: u32,
    /// File name to SHA-256 of the packages the set was built from.
    packages: BTreeMap<String, String>,
    shards: BTreeMap<String, Shard>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Shard {
    samples: usize,
    bytes: u64,
    sha256: String,
}

/// Whether a complete set of the current recipe is there. Instant: sizes are compared, not contents.
pub(crate) fn is_ready(folder: &Path) -> bool {
    let Some(stamp) = read_stamp(folder) else { return false };
    let complete = stamp.shards.iter().all(|(name, shard)| {
        fs::metadata(folder.join(name)).is_ok_and(|metadata| metadata.len() == shard.bytes)
    });
    stamp.recipe == RECIPE && stamp.packages == digests() && complete
}

/// Downloads the packages the set is drawn from.
pub(crate) fn download(workspace: &Workspace, tools: &Tools) -> Result<()> {
    let downloads = downloads(workspace);
    fs::create_dir_all(&downloads)
        .with_context(|| format!("cannot create {}", downloads.display()))?;
    for package in &PACKAGES {
        fetch::fetch(package, &downloads, tools)?;
    }
    Ok(())
}

/// Draws the set from what [`download`] brought, with the program that was built before.
pub(crate) fn draw(workspace: &Workspace) -> Result<()> {
    let partial = workspace.cache().join(format!(".{FOLDER}.partial"));
    fetch::fresh_folder(&partial)?;
    let downloads = downloads(workspace);
    let mut program = workspace.command(workspace.program(PROGRAM)?);
    program.arg(&partial).args(PACKAGES.map(|package| {
        let file = downloads.join(package.file);
        format!("{}={}", package.package, file.display())
    }));
    let status = program.status().with_context(|| format!("cannot start {PROGRAM}"))?;
    if !status.success() {
        bail!("{PROGRAM} failed; what it drew so far is in {}", partial.display());
    }
    let shards = partial.join("shards.json");
    let stamp = Stamp {
        recipe: RECIPE,
        packages: digests(),
        shards: read_json(&shards).with_context(|| format!("cannot read {}", shards.display()))?,
    };
    let path = partial.join(STAMP);
    fs::write(&path, serde_json::to_vec_pretty(&stamp)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    verify(&partial)?;
    fetch::replace_folder(&partial, &workspace.cache().join(FOLDER))
}

/// Reads every shard again and compares its checksum.
pub(crate) fn verify(folder: &Path) -> Result<()> {
    let stamp = read_stamp(folder)
        .with_context(|| format!("{} has no readable {STAMP}", folder.display()))?;
    for (name, shard) in &stamp.shards {
        let path = folder.join(name);
        let found = digest::sha256(&path)?;
        if found != shard.sha256 {
            bail!("{} has SHA-256 {found}, expected {}", path.display(), shard.sha256);
        }
    }
    Ok(())
}

fn downloads(workspace: &Workspace) -> PathBuf {
    workspace.cache().join("downloads")
}

/// File name of each package to its pinned digest.
fn digests() -> BTreeMap<String, String> {
    PACKAGES.iter().map(|p| (p.file.to_owned(), p.sha256.to_owned())).collect()
}

fn read_stamp(folder: &Path) -> Option<Stamp> {
    read_json(&folder.join(STAMP)).ok()
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}
