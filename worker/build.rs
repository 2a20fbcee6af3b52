//! Embeds the build id, and says whether faults can be asked for and where libtorch is looked for at run time.

#[path = "../proto/build_id.rs"]
mod build_id;
#[path = "run_path.rs"]
mod run_path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    build_id::embed(build_id::WORKER)?;
    run_path::set();
    Ok(())
}
