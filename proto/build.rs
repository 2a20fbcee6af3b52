//! Compiles `proto/ringmaster/v1/*.proto` with protox, so no protoc install is needed.

use std::path::PathBuf;

use prost::Message as _;

const FILES: [&str; 5] = [
    "ringmaster/v1/types.proto",
    "ringmaster/v1/jobs.proto",
    "ringmaster/v1/fleet.proto",
    "ringmaster/v1/ranks.proto",
    "ringmaster/v1/local.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("ringmaster_descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
