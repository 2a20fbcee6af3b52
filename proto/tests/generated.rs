//! The generated code in `src/generated` is what `proto/ringmaster/v1/*.proto` says.
//!
//! It is committed rather than made by a build script, so that nobody who builds Ringmaster compiles a
//! protobuf compiler first. After a change to a `.proto` file:
//!
//! ```text
//! RINGMASTER_REGENERATE=1 cargo test --workspace --test generated
//! ```

#![allow(clippy::unwrap_used)]

use std::env;
use std::fs;
use std::path::Path;

use prost::Message as _;

const FILES: [&str; 5] = [
    "ringmaster/v1/types.proto",
    "ringmaster/v1/jobs.proto",
    "ringmaster/v1/fleet.proto",
    "ringmaster/v1/ranks.proto",
    "ringmaster/v1/local.proto",
];

#[test]
fn the_generated_code_is_that_of_the_proto_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = tempfile::tempdir().unwrap();
    let descriptors = protox::compile(FILES, [root.join("proto")]).unwrap();
    fs::write(fresh.path().join("ringmaster.v1.bin"), descriptors.encode_to_vec()).unwrap();
    tonic_prost_build::configure().out_dir(fresh.path()).compile_fds(descriptors).unwrap();

    let committed = root.join("src/generated");
    for name in ["ringmaster.v1.rs", "ringmaster.v1.bin"] {
        let made = fs::read(fresh.path().join(name)).unwrap();
        if env::var_os("RINGMASTER_REGENERATE").is_some() {
            fs::write(committed.join(name), &made).unwrap();
        }
        let same = fs::read(committed.join(name)).unwrap() == made;
        assert!(same, "{name} is older than the .proto files: see the head of this test");
    }
}

#[test]
fn every_proto_file_is_compiled() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/ringmaster/v1");
    let mut found: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| format!("ringmaster/v1/{}", entry.unwrap().file_name().to_string_lossy()))
        .collect();
    let mut named = FILES.map(str::to_owned);
    found.sort();
    named.sort();
    assert_eq!(found, named);
}
