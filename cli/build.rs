//! Embeds the build id.

#[path = "../proto/build_id.rs"]
mod build_id;

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let manifest_dir = std::env::var("CARGO_MANIFEST_DIR")?;
    let root = Path::new(&manifest_dir).parent().ok_or("the crate lies in no workspace")?;
    for input in build_id::inputs(root, build_id::RINGMASTER)? {
        println!("cargo:rerun-if-changed={}", input.display());
    }
    let id = build_id::compute(root, build_id::RINGMASTER, &[])?;
    println!("cargo:rustc-env=RINGMASTER_BUILD_ID={id}");
    println!(
        "cargo:rustc-env=RINGMASTER_VERSION={} (build {id})",
        std::env::var("CARGO_PKG_VERSION")?
    );
    Ok(())
}
