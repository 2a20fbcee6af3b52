//! `ringmaster-worker`: the agent of a node and the ranks it runs.

mod cli;

fn main() {
    cli::run()
}
