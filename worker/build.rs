//! Embeds the build id and where libtorch is looked for at run time.

#[path = "../proto/build_id.rs"]
mod build_id;

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let manifest_dir = std::env::var("CARGO_MANIFEST_DIR")?;
    let root = Path::new(&manifest_dir).parent().ok_or("the crate lies in no workspace")?;
    for input in build_id::inputs(root, &build_id::WORKER) {
        println!("cargo:rerun-if-changed={}", input.display());
    }
    let id = build_id::compute(root, &build_id::WORKER)?;
    println!("cargo:rustc-env=RINGMASTER_BUILD_ID={id}");
    println!(
        "cargo:rustc-env=RINGMASTER_VERSION={} (build {id})",
        std::env::var("CARGO_PKG_VERSION")?
    );
    set_run_path();
    Ok(())
}

/// An installed worker finds libtorch in `../lib`, a built one in the folder it was linked against.
/// As RUNPATH, not RPATH: LD_LIBRARY_PATH goes first, so an installed PyTorch can take its place.
/// `rustc-link-arg` reaches binaries, unit tests, integration tests and examples alike.
fn set_run_path() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rustc-link-arg=-Wl,--enable-new-dtags");
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib");
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        let lib = Path::new(&libtorch).join("lib");
        let lib = lib.canonicalize().unwrap_or(lib);
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    }
}
