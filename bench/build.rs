//! Says where libtorch is looked for at run time.

#[path = "../worker/run_path.rs"]
mod run_path;

fn main() {
    run_path::set();
}
