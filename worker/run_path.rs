// Where programs with libtorch look for it: included (`#[path]`) by the build scripts of those that link it.

use std::path::Path;

/// An installed worker finds libtorch in `../lib`, a built one in the folder it was linked against.
/// As RUNPATH, not RPATH: LD_LIBRARY_PATH goes first, so an installed PyTorch can take its place.
/// `rustc-link-arg` reaches binaries, unit tests, integration tests and examples alike.
pub(crate) fn set() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rustc-link-arg=-Wl,--enable-new-dtags");
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib");
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        let lib = Path::new(&libtorch).join("lib");
        let lib = lib.canonicalize().unwrap_or(lib);
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    }
}
