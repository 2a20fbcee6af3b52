//! Python environments that `cargo xtask test` puts into the cache folder.

use std::path::PathBuf;

use crate::skips;

/// Returns the folder of an environment; none where it is not installed, or not to the end.
pub(crate) fn environment(name: &str) -> Option<PathBuf> {
    let cache = match std::env::var_os("RINGMASTER_CACHE") {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".cache/ringmaster"),
    };
    // Written last: without it the installation was interrupted.
    let folder = cache.join(name);
    folder.join("complete").is_file().then_some(folder)
}

/// Returns a Python that speaks gRPC; none where none is installed: then the running test is noted as skipped, and
/// has to return.
///
/// # Panics
/// When there is none and `RINGMASTER_REQUIRE` names `grpc`.
pub fn with_grpc() -> Option<PathBuf> {
    let found = environment("grpc").map(|folder| folder.join("bin/python"));
    if found.is_none() {
        skips::skip("grpc", "no Python with grpcio is installed (cargo xtask setup --system)");
    }
    found
}
