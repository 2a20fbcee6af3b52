//! `ringmaster-worker`: the agent of a node and the ranks it runs.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
