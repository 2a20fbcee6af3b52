//! moto, a server in Python: quick to start and to install, and not as strict as a real one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::ceph::free_port;
use super::daemons::Daemons;
use super::request;
use crate::processes::eventually;

/// Only a broken installation takes so long.
const LIMIT: Duration = Duration::from_secs(60);

/// Returns the program that `cargo xtask setup --system` puts into the cache folder where it cannot
/// install Ceph.
pub(super) fn program() -> Option<PathBuf> {
    let cache = match std::env::var_os("RINGMASTER_CACHE") {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".cache/ringmaster"),
    };
    Some(cache.join("moto/bin/moto_server")).filter(|program| program.is_file())
}

/// Starts it; answers when it serves.
pub(super) fn start(program: &std::path::Path) -> (Daemons, SocketAddr) {
    let mut daemons = Daemons::new();
    let address = free_port();
    let mut command = Command::new(program);
    command.args(["-H", "127.0.0.1", "-p", &address.port().to_string()]);
    daemons.start("moto", &mut command);
    let serves = eventually(LIMIT, || request(address, "GET", "/", &[]).is_ok());
    assert!(serves, "moto does not start: {}", daemons.last_words());
    (daemons, address)
}
