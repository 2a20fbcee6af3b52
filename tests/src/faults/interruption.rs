//! A drill that is broken off ends where it waits, and all it has started ends with it.

use std::io;

use nix::sys::signal::{SigSet, Signal};

use crate::processes::interrupt;

/// Interrupts this process's waits at SIGINT, SIGTERM and SIGHUP, and at the end of stdin if it is
/// the pipe of a parent. Must come before any other thread: it blocks the signals for all that follow.
///
/// # Errors
/// When the system refuses.
pub fn watch(parent_pipe: bool) -> io::Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    spawn("signals", move || {
        // An error would mean an empty or invalid set.
        if signals.wait().is_ok() {
            interrupt();
        }
    })?;
    if parent_pipe {
        spawn("parent-pipe", || {
            // A pipe that cannot be read has nobody behind it either.
            let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
            interrupt();
        })?;
    }
    Ok(())
}

fn spawn(name: &str, wait: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(wait).map(drop)
}
