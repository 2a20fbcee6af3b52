//! Embeds the build id, and says whether faults can be asked for and where libtorch is looked for at run time.

#[path = "../proto/build_id.rs"]
mod build_id;
#[path = "run_path.rs"]
mod run_path;

use std::env;
use std::path::Path;

/// What `RINGMASTER_FAULT` needs: the feature of this name, which every build for development has.
const FAULTS: &str = "faults";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let manifest_dir = env::var("CARGO_MANIFEST_DIR")?;
    let root = Path::new(&manifest_dir).parent().ok_or("the crate lies in no workspace")?;
    for input in build_id::inputs(root, build_id::WORKER)? {
        println!("cargo:rerun-if-changed={}", input.display());
    }
    println!("cargo:rustc-check-cfg=cfg({FAULTS})");
    let has_faults =
        env::var_os("CARGO_FEATURE_FAULTS").is_some() || env::var("PROFILE")? == "debug";
    let features: &[&str] = if has_faults { &[FAULTS] } else { &[] };
    if has_faults {
        println!("cargo:rustc-cfg={FAULTS}");
    }
    let id = build_id::compute(root, build_id::WORKER, features)?;
    let version: String = features.iter().map(|feature| format!("+{feature}")).collect();
    let version = env::var("CARGO_PKG_VERSION")? + &version;
    println!("cargo:rustc-env=RINGMASTER_BUILD_ID={id}");
    println!("cargo:rustc-env=RINGMASTER_VERSION={version} (build {id})");
    run_path::set();
    Ok(())
}
