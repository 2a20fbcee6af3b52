//! The only unsafe code of the crate: the two calls of the C library that std offers no safe form of, a new
//! session for a child, and an exit that runs nothing on its way out.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Makes the child of `command` the leader of a new session and process group, so that everything
/// it starts can be killed together and no signal of the agent's terminal reaches it.
pub fn in_new_session(command: &mut Command) -> &mut Command {
    // SAFETY: the closure runs in the forked child before exec, where only async-signal-safe
    // functions may be called. It calls setsid(2), which is one, and converts an error number to
    // an `io::Error` of the OS kind, which does not allocate. It captures nothing.
    unsafe { command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(io::Error::from)) }
}

/// Ends the process at once with `code`: no destructors, no handlers registered with `atexit`.
///
/// A rank must end like this from any thread but the main one: `exit(3)` would run libtorch's
/// static destructors while the compute thread still uses what they destroy.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) takes any integer, touches no memory of this process and does not return.
    unsafe { nix::libc::_exit(code) }
}
