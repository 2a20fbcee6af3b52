//! Embeds every model configuration of `configs/models` in the crate.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let manifest_dir = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let folder = Path::new(&manifest_dir).join("../../configs/models");
    println!("cargo::rerun-if-changed={}", folder.display());

    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("cannot list {}: {error}", folder.display()))
        .map(|entry| entry.expect("a readable folder entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    files.sort();

    let mut code = String::from("pub(super) const BUILTIN: &[(&str, &str)] = &[\n");
    for path in &files {
        println!("cargo::rerun-if-changed={}", path.display());
        let path = path.canonicalize().expect("a listed file exists");
        let name = path.file_stem().and_then(|stem| stem.to_str()).expect("a UTF-8 file name");
        writeln!(code, "    ({name:?}, include_str!({path:?})),").expect("a String takes all text");
    }
    code.push_str("];\n");

    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(out.join("builtin_models.rs"), code).expect("OUT_DIR is writable");
}
