//! A build that begins while libtorch is still being downloaded.
//!
//! Most of what is compiled needs no libtorch: only torch-sys does, and what stands on it. Where the
//! download is over by the time it is torch-sys' turn, the build simply goes on; where it is not, torch-sys
//! fails, all else is built meanwhile, and a second build does the rest.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStderr, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};

use crate::console;
use crate::workspace::Workspace;

/// A running build. Dropped, it starts no more compilers; those that run come to their end.
pub(crate) struct EarlyBuild {
    cargo: Child,
    is_heard: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl EarlyBuild {
    /// Begins to build the programs of these packages, without a word.
    pub(crate) fn start(workspace: &Workspace, packages: &[&str]) -> Result<Self> {
        let mut command = workspace.build_command(packages);
        command.arg("--keep-going").stdin(Stdio::null()).stderr(Stdio::piped());
        let mut cargo = command.spawn().context("cannot start cargo")?;
        let is_heard = Arc::new(AtomicBool::new(false));
        let reader = cargo.stderr.take().map(|stderr| {
            let is_heard = Arc::clone(&is_heard);
            thread::spawn(move || pass_on(stderr, &is_heard))
        });
        Ok(Self { cargo, is_heard, reader })
    }

    /// Lets what it says from now on be heard, and waits for its end. Returns whether everything was built.
    ///
    /// What it said before is lost. Where it failed for want of libtorch, the next build works; where for
    /// something else, the next build says so again.
    pub(crate) fn finish(mut self) -> Result<bool> {
        self.is_heard.store(true, Ordering::Relaxed);
        let status = self.cargo.wait().context("cannot wait for cargo")?;
        if let Some(reader) = self.reader.take() {
            // It has nothing to say but lines of cargo's.
            let _ = reader.join();
        }
        Ok(status.success())
    }
}

impl Drop for EarlyBuild {
    fn drop(&mut self) {
        // Of a build that has ended nothing is left to end.
        let _ = self.cargo.kill();
        let _ = self.cargo.wait();
    }
}

/// Reads to the end, so that cargo never waits for a reader.
fn pass_on(stderr: ChildStderr, is_heard: &AtomicBool) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        if is_heard.load(Ordering::Relaxed) {
            console::note(&line);
        }
    }
}
