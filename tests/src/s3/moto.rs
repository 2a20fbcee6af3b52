//! moto, a server in Python: quick to start and to install, and not as strict as a real one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::ceph::{ATTEMPTS, free_port};
use super::daemons::Daemons;
use super::request;
use crate::processes::eventually;
use crate::python::environment;

/// Only a broken installation takes so long.
const LIMIT: Duration = Duration::from_secs(60);

/// Returns the program that `cargo xtask test` puts into the cache folder where there is no Ceph.
pub(super) fn program() -> Option<PathBuf> {
    environment("moto").map(|folder| folder.join("bin/moto_server"))
}

/// Starts it; answers when it serves.
pub(super) fn start(program: &std::path::Path) -> (Daemons, SocketAddr) {
    let mut trouble = String::new();
    for _ in 0..ATTEMPTS {
        let mut daemons = Daemons::new();
        let address = free_port();
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", &address.port().to_string()]);
        daemons.start("moto", &mut command);
        let mut ended = None;
        let serves = eventually(LIMIT, || {
            let answers = request(address, "GET", "/", &[]).is_ok();
            ended = daemons.ended();
            ended.is_some() || answers
        });
        if serves && ended.is_none() {
            return (daemons, address);
        }
        trouble = format!("ended: {ended:?}\n{}", daemons.last_words());
    }
    panic!("moto does not start: {trouble}");
}
