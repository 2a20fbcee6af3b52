//! The agent that `ringmaster train` starts ends with it, however that ends: the parent holds the
//! other end of this process's stdin, and the kernel closes it.
//!
//! (The kernel can also send a signal when a parent dies, but it does so when the *thread* that
//! forked ends, and misses a parent that was gone before the request; a pipe does neither.)

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::error::Error;
use super::ranks::Table;
use crate::exit;
use crate::ffi::exit_now;

/// Starts the thread that waits for stdin's end, kills all ranks then, removes `folders` and ends
/// the process with code 0.
///
/// It does so by itself, so that it works whatever state the rest of the agent is in.
pub(super) fn watch(
    table: Arc<Table>,
    folders: Vec<PathBuf>,
    timeout: Duration,
) -> Result<(), Error> {
    let wait = move || {
        wait_for_end(io::stdin().lock());
        // Nothing goes before the kill, a log line to a dead terminal least of all.
        table.kill_all("the parent process is gone");
        if !table.wait_until_empty(timeout) {
            tracing::error!(?timeout, "some ranks are still there");
        }
        for folder in &folders {
            drop(std::fs::remove_dir_all(folder));
        }
        exit_now(exit::SUCCESS);
    };
    std::thread::Builder::new()
        .name("parent-pipe".into())
        .spawn(wait)
        .map(drop)
        .map_err(|source| Error::Thread { name: "parent-pipe", source })
}

fn wait_for_end(mut pipe: impl io::Read) {
    let mut bytes = [0; 256];
    loop {
        match pipe.read(&mut bytes) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A pipe that cannot be read says nothing about the parent any more.
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_the_pipe_counts_not_what_comes_through_it() {
        let mut input = io::Cursor::new(vec![7_u8; 1000]);
        wait_for_end(&mut input);
        assert_eq!(input.position(), 1000);
    }
}
