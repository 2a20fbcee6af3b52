//! A panic ends a rank, and says why to the agent.

use std::panic::PanicHookInfo;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use ringmaster_agent::exit::{self, ExitStatus};
use ringmaster_agent::ffi::exit_now;
use ringmaster_inputs::panics;

/// Makes a panic on any thread write `status_file` and end the process with [`exit::PANICKED`]: a rank
/// that lost a thread would otherwise hold up its peers until a deadline. Panics that
/// [`ringmaster_inputs::panics::caught`] turns into errors pass.
pub fn install(status_file: PathBuf) {
    static PANICKING: AtomicBool = AtomicBool::new(false);
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if panics::is_caught() {
            return;
        }
        // A second panicking thread must not overwrite the first one's words, nor end the process
        // before they are written.
        if PANICKING.swap(true, Ordering::SeqCst) {
            loop {
                std::thread::park();
            }
        }
        print(info);
        let status = ExitStatus {
            reason: describe(info),
            class: exit::Class::Retry,
            operation: "run".to_owned(),
            cause: "panic".to_owned(),
        };
        if let Err(error) = exit::write_status(&status_file, &status) {
            tracing::error!(%error, path = %status_file.display(), "cannot write the status file");
        }
        exit_now(exit::PANICKED);
    }));
}

fn describe(info: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("unnamed");
    let message = info.payload_as_str().unwrap_or("a value that is no text");
    match info.location() {
        Some(place) => format!("thread {name:?} panicked at {place}: {message}"),
        None => format!("thread {name:?} panicked: {message}"),
    }
}
