//! `cargo xtask fuzz`: inputs made by libFuzzer for what reads texts of strangers.
//!
//! cargo-fuzz wants a nightly compiler for its sanitizers only; without one, and with what the pinned
//! compiler hides from stable code allowed, it counts coverage just as well. Overflow and failed
//! assertions are found, memory errors are not looked for: the crate has no unsafe code.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::console;
use crate::workspace::Workspace;

/// The crate with the targets, relative to the root of the workspace.
const CRATE: &str = "crates/manifest/fuzz";

/// Memory a target may have in all, and in one piece, in MiB. What the fuzzer itself keeps counts, too.
const MEMORY_MB: u32 = 1024;
const ALLOCATION_MB: u32 = 128;

/// Seconds after which one input takes too long.
const TIMEOUT: u32 = 10;

/// Longest input, in bytes.
const LONGEST: u32 = 8192;

/// How many inputs of a target the repository keeps.
const KEPT: usize = 300;

/// `cargo xtask fuzz`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Which targets; all of them if none is named.
    #[arg(value_name = "TARGET")]
    targets: Vec<Target>,
    /// How long each of them runs, side by side.
    #[arg(long, default_value_t = 5)]
    minutes: u64,
    /// Afterwards, keep 300 of the inputs that reach all code that was reached in the repository.
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    /// Any bytes as a manifest
    Manifest,
    /// Any text as the place of data, checkpoints and weights
    Braces,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Braces => "braces",
        }
    }

    /// Folders of the repository that it starts from, beside its corpus.
    fn seeds(self) -> &'static [&'static str] {
        match self {
            Self::Manifest => &["configs/jobs", "crates/manifest/tests/mistakes/fixtures"],
            Self::Braces => &[],
        }
    }
}

/// Runs the targets. Returns whether none of them found anything; libFuzzer tells what it finds, and
/// where the input lies.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    find_cargo_fuzz(workspace)?;
    let chosen = match options.targets.as_slice() {
        [] => Target::value_variants(),
        some => some,
    };
    let fuzzer = Fuzzer { workspace, folder: workspace.target_directory()?.join("fuzz") };
    console::step("cargo fuzz build");
    if !fuzzer.cargo("build").status().context("cannot start cargo")?.success() {
        return Ok(false);
    }
    let mut running = Vec::new();
    for target in chosen {
        running.push((*target, fuzzer.start(*target, options.minutes)?));
    }
    let mut clean = true;
    for (target, mut child) in running {
        let held = child.wait().context("cannot wait for cargo")?.success();
        clean &= held;
        fuzzer.tell(target, held)?;
        if held && options.keep {
            fuzzer.keep(target)?;
        }
    }
    Ok(clean)
}

fn find_cargo_fuzz(workspace: &Workspace) -> Result<()> {
    let mut command = workspace.cargo();
    command.args(["fuzz", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    if command.status().is_ok_and(|status| status.success()) {
        Ok(())
    } else {
        bail!(
            "cargo-fuzz is not installed; cargo install cargo-fuzz --locked, then run the same command \
             again"
        )
    }
}

struct Fuzzer<'w> {
    workspace: &'w Workspace,
    /// For all that is built and found.
    folder: PathBuf,
}

impl Fuzzer<'_> {
    /// `cargo fuzz VERB`, without a sanitizer and on a stable compiler.
    fn cargo(&self, verb: &str) -> Command {
        let mut cargo = self.workspace.cargo();
        cargo.args(["fuzz", verb, "--fuzz-dir", CRATE, "--sanitizer", "none", "--target-dir"]);
        cargo.arg(&self.folder).env("RUSTC_BOOTSTRAP", "1");
        cargo
    }

    fn start(&self, target: Target, minutes: u64) -> Result<Child> {
        let found = self.corpus(target)?;
        let path = self.log(target);
        let (name, place) = (target.name(), path.display());
        console::step(&format!("{name} for {minutes} min; its words go to {place}"));
        let log = fs::File::create(&path).with_context(|| format!("cannot write {place}"))?;
        let mut cargo = self.cargo("run");
        cargo.arg(target.name()).arg(&found).arg(self.kept(target)?);
        cargo.args(target.seeds().iter().map(|seeds| self.workspace.root().join(seeds)));
        cargo.arg("--").args([
            format!("-max_total_time={}", minutes * 60),
            format!("-rss_limit_mb={MEMORY_MB}"),
            format!("-malloc_limit_mb={ALLOCATION_MB}"),
            format!("-timeout={TIMEOUT}"),
            format!("-max_len={LONGEST}"),
            format!("-dict={}", self.workspace.root().join(CRATE).join("manifest.dict").display()),
            "-print_final_stats=1".to_owned(),
        ]);
        cargo.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        cargo.spawn().context("cannot start cargo")
    }

    /// Prints the end of what a target said.
    fn tell(&self, target: Target, held: bool) -> Result<()> {
        let log = fs::read(self.log(target)).context("cannot read the fuzzer's words")?;
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let coverage = lines.iter().rev().find(|line| line.contains(" cov: "));
        let stats = lines.iter().filter(|line| line.starts_with("stat::"));
        console::note(&format!(
            "{}: {}",
            target.name(),
            if held { "nothing found" } else { "FOUND" }
        ));
        for line in coverage.into_iter().chain(stats) {
            console::note(&format!("    {}", line.trim()));
        }
        if !held {
            // libFuzzer ends with the input, its place and how to run it again.
            lines.iter().skip(lines.len().saturating_sub(40)).for_each(|line| console::note(line));
        }
        Ok(())
    }

    /// Replaces the corpus in the repository by some of the least that reaches as much code.
    fn keep(&self, target: Target) -> Result<()> {
        let least = self.folder.join("least").join(target.name());
        let _ = fs::remove_dir_all(&least);
        fs::create_dir_all(&least).context("cannot create a folder")?;
        let mut cargo = self.cargo("run");
        cargo.arg(target.name()).arg(&least).arg(self.kept(target)?).arg(self.corpus(target)?);
        cargo.args(["--", "-set_cover_merge=1", &format!("-max_len={LONGEST}")]);
        cargo.stdout(Stdio::null()).stderr(Stdio::null());
        if !cargo.status().context("cannot start cargo")?.success() {
            bail!("the corpus of {} cannot be merged", target.name());
        }
        let kept = self.kept(target)?;
        fs::remove_dir_all(&kept).context("cannot replace the corpus")?;
        fs::create_dir_all(&kept).context("cannot replace the corpus")?;
        let (files, bytes) = copy_spread(&least, &kept, KEPT)?;
        console::note(&format!("{}: {files} inputs kept, {bytes} bytes", target.name()));
        Ok(())
    }

    /// The inputs that the repository keeps.
    fn kept(&self, target: Target) -> Result<PathBuf> {
        existing(self.workspace.root().join(CRATE).join("corpus").join(target.name()))
    }

    /// All that was found on this machine.
    fn corpus(&self, target: Target) -> Result<PathBuf> {
        existing(self.folder.join("corpus").join(target.name()))
    }

    fn log(&self, target: Target) -> PathBuf {
        self.folder.join(format!("{}.log", target.name()))
    }
}

/// A folder that is created where it is missing.
fn existing(folder: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

/// Copies `most` files, or all where there are fewer, of sizes as different as there are. Returns how many
/// files and bytes these are.
fn copy_spread(from: &Path, to: &Path, most: usize) -> Result<(usize, u64)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry.context("cannot read a folder")?;
        files.push((entry.metadata().context("cannot read a file")?.len(), entry.path()));
    }
    files.sort();
    let count = most.min(files.len());
    let mut bytes = 0;
    for place in 0..count {
        let (length, path) = &files[place * files.len() / count];
        let name = path.file_name().context("a listed file has a name")?;
        fs::copy(path, to.join(name)).with_context(|| format!("cannot copy {}", path.display()))?;
        bytes += length;
    }
    Ok((count, bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn inputs_of_all_sizes_are_kept_up_to_a_number() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir_all(&from).unwrap();
        fs::create_dir_all(&to).unwrap();
        for (name, length) in [("a", 5), ("b", 1), ("c", 3), ("d", 4)] {
            fs::write(from.join(name), vec![0; length]).unwrap();
        }
        assert_eq!(copy_spread(&from, &to, 2).unwrap(), (2, 5));
        assert!(to.join("b").exists() && to.join("d").exists());
        assert_eq!(copy_spread(&from, &to, 9).unwrap(), (4, 13));
    }
}
