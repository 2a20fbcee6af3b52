//! `cargo xtask bench`: our numbers beside the peer's, from the same run on the same machine.
//!
//! The peers (PyTorch with gloo, OpenCLIP) live in a Python environment of their own in the cache
//! folder, made at the first call. The comparisons themselves are scripts under `tests/parity`.
//! The control plane has no peer to run beside it; it is held against its own targets.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::workspace::Workspace;
use crate::{build, console, setup};

/// What the environment of the peers holds.
const PEERS: [&str; 14] = [
    "torch==2.11.0",
    "torchvision==0.26.0",
    "open-clip-torch==3.3.0",
    "timm==1.0.31",
    "transformers==4.57.6",
    "tokenizers==0.22.2",
    "sentencepiece==0.2.3",
    "protobuf==7.36.2",
    "pillow==13.0.0",
    "webdataset==0.2.86",
    "pandas==3.1.1",
    "braceexpand==0.1.7",
    "litdata==0.2.76",
    "spdl==0.8.0",
];

/// Ends a program, and all it has started, with whoever holds the other end of its stdin.
pub(crate) const END_WITH_PARENT: &str = "--parent-pipe";
/// The package with the programs that disturb a cluster, and the features that the product needs for it:
/// a drill makes ranks slow on demand, which what people run does not let itself be told.
pub(crate) const DISTURBERS: (&str, [&str; 2]) =
    ("ringmaster-tests", ["ringmaster/faults", "ringmaster-worker/faults"]);

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// Loss values and gradients against OpenCLIP's, in many shapes.
    Parity,
    /// Time and memory of the losses against OpenCLIP's and against their bare matrix products.
    Loss,
    /// All-reduce over 2 and 4 ranks against gloo's.
    Collective,
    /// What a checkpoint costs a run, beside plain copies, torch.save and torch's async_save.
    Checkpoint,
    /// Captions per second on a core against OpenCLIP's SimpleTokenizer.
    Tokenizer,
    /// Pictures per second on a core against OpenCLIP's transform.
    Preprocess,
    /// Pictures per second from shards to batches on a core against OpenCLIP's loader, and what data costs a step.
    Data,
    /// A coordinator under 10,000 simulated agents and 1,000 jobs against its targets.
    ControlPlane,
    /// Time from a fault to the next completed step, under torchrun and here.
    Recovery,
}

/// `cargo xtask bench`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What to compare.
    what: What,
    /// A Python that has PyTorch 2.11 and open-clip-torch, instead of the cache folder's own.
    #[arg(long)]
    python: Option<PathBuf>,
    /// Further arguments of the script, such as --steps 21, or of the bench, such as --agents 2000.
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Builds the programs, finds the peers and runs the comparison. Returns whether it passed.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    setup::run(workspace, false)?;
    // The drill and the load generator start the programs that they find beside themselves.
    let (more, features): (_, &[&str]) = match options.what {
        What::Recovery => (DISTURBERS.0, &DISTURBERS.1),
        _ => ("ringmaster-bench", &[]),
    };
    if !build(workspace, &[more], features)? {
        return Ok(false);
    }
    let (script, mode) = match options.what {
        What::Parity => ("loss_openclip.py", None),
        What::Loss => ("loss_openclip.py", Some("--speed")),
        What::Collective => ("collective_gloo.py", None),
        What::Checkpoint => ("checkpoint_torch.py", None),
        What::Tokenizer => ("inputs_openclip.py", Some("tokenizer")),
        What::Preprocess => ("inputs_openclip.py", Some("preprocess")),
        What::Data => ("data_openclip.py", None),
        What::ControlPlane => return control_plane(workspace, &options.arguments),
        What::Recovery => return recovery(workspace, options),
    };
    let python = python(workspace, options)?;
    let bench = workspace.program("ringmaster-bench")?;
    console::step(&format!("tests/parity/{script}"));
    // Not the trimmed libtorch for the peer: it brings its own.
    let status = Command::new(&python)
        .arg(workspace.root().join("tests/parity").join(script))
        .arg("--bench")
        .arg(&bench)
        .args(mode)
        .args(&options.arguments)
        .env_remove("LD_LIBRARY_PATH")
        .status()
        .with_context(|| format!("cannot start {}", python.display()))?;
    Ok(status.success())
}

fn python(workspace: &Workspace, options: &Options) -> Result<PathBuf> {
    match &options.python {
        Some(python) => Ok(python.clone()),
        None => peers(&workspace.cache().join("peers")),
    }
}

/// First torchrun, a few times because each takes long, then ours with the arguments given.
fn recovery(workspace: &Workspace, options: &Options) -> Result<bool> {
    let python = python(workspace, options)?;
    console::step("tests/parity/recovery_torchrun.py");
    let mut theirs = Command::new(&python);
    theirs
        .arg(workspace.root().join("tests/parity/recovery_torchrun.py"))
        .arg(END_WITH_PARENT)
        .env_remove("LD_LIBRARY_PATH");
    let theirs = run_with_pipe(&mut theirs)?;
    let program = workspace.program("ringmaster-faults")?;
    console::step("ringmaster-faults --check");
    let mut ours = Command::new(&program);
    ours.args(["--check", END_WITH_PARENT]).args(&options.arguments);
    Ok(run_with_pipe(&mut ours)? && theirs)
}

/// Runs a program that starts others, and ends with them when the pipe to its stdin closes: so
/// nothing is left behind, however this process ends. Returns whether it succeeded.
pub(crate) fn run_with_pipe(command: &mut Command) -> Result<bool> {
    let cannot = format!("cannot start {}", command.get_program().display());
    let mut child = command.stdin(Stdio::piped()).spawn().context(cannot)?;
    // Taken, because waiting for a child closes what it still has.
    let pipe = child.stdin.take();
    let status = child.wait().context("cannot wait for a child")?;
    drop(pipe);
    Ok(status.success())
}

fn control_plane(workspace: &Workspace, arguments: &[String]) -> Result<bool> {
    let program = workspace.program("ringmaster-bench")?;
    console::step("ringmaster-bench control-plane --check");
    let status = Command::new(&program)
        .args(["control-plane", "--check"])
        .args(arguments)
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    Ok(status.success())
}

/// Returns the Python of the peers' environment, which is made where it is missing or incomplete.
pub(crate) fn peers(folder: &Path) -> Result<PathBuf> {
    let python = folder.join("bin/python");
    // Written last, so an interrupted installation is begun anew.
    let (complete, wanted) = (folder.join("complete"), PEERS.join("\n"));
    if std::fs::read_to_string(&complete).is_ok_and(|found| found == wanted) {
        return Ok(python);
    }
    console::step("installing the peers for comparison: PyTorch and OpenCLIP (5 GB, some minutes)");
    let python3 = Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder).status();
    if !python3.context("cannot start python3")?.success() {
        bail!("python3 -m venv failed; on Debian: apt-get install python3-venv");
    }
    let pip = Command::new(&python)
        .args(["-m", "pip", "install", "--disable-pip-version-check", "--quiet"])
        .args(PEERS)
        .status()
        .with_context(|| format!("cannot start {}", python.display()))?;
    if !pip.success() {
        bail!("pip cannot install {}", PEERS.join(", "));
    }
    std::fs::write(&complete, wanted)
        .with_context(|| format!("cannot write {}", complete.display()))?;
    Ok(python)
}
