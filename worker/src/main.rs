//! `ringmaster-worker`: a rank of a job.

mod cli;

fn main() {
    cli::run()
}
