//! The `ringmaster` executable: the coordinator, its command line, and `train`, which runs a
//! whole cluster on one machine.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("control")
        .build()
        .expect("a tokio runtime starts unless the host refuses threads");
    let exit_code = runtime.block_on(cli::run());
    // Nothing that still runs here is worth waiting for: what must be kept is kept.
    runtime.shutdown_background();
    exit_code
}
