//! `cargo xtask parity`: what OpenCLIP computes, beside what is committed and what is built here.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::workspace::Workspace;
use crate::{bench, build, console, setup};

/// Scripts that write golden files, and what each is given.
const GOLDEN: [(&str, &str); 10] = [
    ("model_golden.py", ""),
    ("model_shapes.py", "shapes-of-models.json"),
    ("weights_golden.py", ""),
    ("training_golden.py", ""),
    ("preprocess_golden.py", "preprocess.safetensors"),
    ("jpeg_golden.py", "jpeg.safetensors"),
    ("jpeg_scaled_golden.py", "jpeg-scaled.json"),
    ("resize_golden.py", "resize.json"),
    ("augment_golden.py", "augment.json"),
    ("tokenizer_live.py --golden", ""),
];
/// Scripts that run both sides.
const LIVE: [&str; 2] = ["tokenizer_live.py", "live.py"];

/// `cargo xtask parity`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Write the golden files into the repository instead of comparing with them.
    #[arg(long)]
    regenerate: bool,
    /// Full-size models to compare [default: nine, of every family]; the largest takes 16 GB.
    #[arg(long, value_name = "NAME,…")]
    models: Option<String>,
}

/// Makes the golden files anew, compares them, and runs both sides. Returns whether all agree.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    setup::run(workspace, false)?;
    if !build(workspace, &[], &[])? {
        return Ok(false);
    }
    let python = bench::peers(&workspace.cache().join("peers"))?;
    let scripts = workspace.root().join("tests/parity");
    let committed = scripts.join("golden");
    let fresh =
        if options.regenerate { committed.clone() } else { workspace.cache().join("golden") };
    std::fs::create_dir_all(&fresh).with_context(|| fresh.display().to_string())?;
    let call = |script: &str, arguments: &[&str]| -> Result<bool> {
        console::step(&format!("tests/parity/{script} {}", arguments.join(" ")));
        let mut words = script.split(' ');
        let status = Command::new(&python)
            .arg(scripts.join(words.next().unwrap_or_default()))
            .args(words)
            .args(arguments)
            // Not the trimmed libtorch for the peer: it brings its own.
            .env_remove("LD_LIBRARY_PATH")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .status();
        Ok(status.with_context(|| format!("cannot start {}", python.display()))?.success())
    };
    let mut agreed = true;
    for (script, file) in GOLDEN {
        let place = fresh.join(file);
        agreed &= call(script, &[&place.to_string_lossy()])?;
    }
    if !options.regenerate {
        agreed &= call("compare_golden.py", &[&text(&committed), &text(&fresh)])?;
    }
    let worker = text(&workspace.program("ringmaster-worker")?);
    for script in LIVE {
        let mut arguments = vec!["--worker", &worker];
        if let (Some(models), "live.py") = (&options.models, script) {
            arguments.extend(["--models", models]);
        }
        agreed &= call(script, &arguments)?;
    }
    Ok(agreed)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
