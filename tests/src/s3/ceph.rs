//! Ceph's gateway on one monitor and one storage daemon that keeps everything in memory.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::daemons::Daemons;
use super::request;
use crate::processes::eventually;

/// Programs of the packages that `cargo xtask setup --system` installs.
const PROGRAMS: [&str; 6] =
    ["radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "monmaptool"];
/// Only a broken installation takes so long.
const LIMIT: Duration = Duration::from_secs(120);
/// Ports are chosen, then given away, then taken by the programs: others may be faster.
pub(super) const ATTEMPTS: usize = 3;

pub(super) fn is_installed() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = std::env::split_paths(&path).collect();
    PROGRAMS.iter().all(|program| folders.iter().any(|folder| folder.join(program).is_file()))
}

/// Starts it; answers when it serves.
pub(super) fn start(access_key: &str, secret_key: &str) -> (Daemons, SocketAddr) {
    let mut trouble = String::new();
    for _ in 0..ATTEMPTS {
        let mut daemons = Daemons::new();
        match try_start(&mut daemons, access_key, secret_key) {
            Ok(address) => return (daemons, address),
            Err(error) => trouble = format!("{error}\n{}", daemons.last_words()),
        }
    }
    panic!("Ceph does not start: {trouble}");
}

fn try_start(
    daemons: &mut Daemons,
    access_key: &str,
    secret_key: &str,
) -> Result<SocketAddr, String> {
    let (monitor, gateway) = (free_port(), free_port());
    let folder = daemons.folder().to_owned();
    let conf = folder.join("ceph.conf");
    for part in ["mon", "osd0", "rgw", "run", "log"] {
        std::fs::create_dir(folder.join(part)).map_err(|error| error.to_string())?;
    }
    let cluster = uuid();
    std::fs::write(&conf, configuration(&folder, &cluster, monitor.port(), gateway))
        .map_err(|error| error.to_string())?;

    let map = folder.join("monmap");
    let ceph = |program: &str| {
        let mut command = Command::new(program);
        command.arg("-c").arg(&conf);
        command
    };
    run(Command::new("monmaptool")
        .args(["--create", "--addv", "a", &format!("[v1:{monitor}]"), "--fsid", &cluster])
        .arg(&map))?;
    run(ceph("ceph-mon").args(["--mkfs", "-i", "a", "--monmap"]).arg(&map))?;
    daemons.start("mon", ceph("ceph-mon").args(["-f", "-i", "a"]));

    let storage = uuid();
    run(ceph("ceph").args(["--connect-timeout", "30", "osd", "new", &storage, "0"]))?;
    run(ceph("ceph-osd").args(["-i", "0", "--mkfs", "--osd-uuid", &storage]))?;
    daemons.start("osd", ceph("ceph-osd").args(["-f", "-i", "0"]));
    let gateway_options = ["-f", "-n", "client.rgw", "--no-mon-config"];
    daemons.start("rgw", ceph("radosgw").args(gateway_options));

    let began = Instant::now();
    let mut ended = None;
    let serves = eventually(LIMIT, || {
        ended = daemons.ended();
        ended.is_some() || request(gateway, "GET", "/", &[]).is_ok()
    });
    if let (false, _) | (_, Some(_)) = (serves, &ended) {
        let seconds = began.elapsed().as_secs();
        return Err(format!("not serving after {seconds} s; ended: {ended:?}"));
    }
    run(ceph("radosgw-admin").args(["--no-mon-config", "user", "create", "--uid=tests"]).args([
        "--display-name=tests",
        "--max-buckets=0",
        &format!("--access-key={access_key}"),
        &format!("--secret-key={secret_key}"),
    ]))?;
    Ok(gateway)
}

fn configuration(folder: &Path, cluster: &str, monitor: u16, gateway: SocketAddr) -> String {
    let folder = folder.display();
    format!(
        "[global]\n\
         fsid = {cluster}\n\
         mon host = v1:127.0.0.1:{monitor}\n\
         mon initial members = a\n\
         auth cluster required = none\n\
         auth service required = none\n\
         auth client required = none\n\
         public network = 127.0.0.0/8\n\
         ms bind ipv6 = false\n\
         run dir = {folder}/run\n\
         log file = {folder}/log/$name.log\n\
         admin socket = {folder}/run/$name.asok\n\
         pid file = {folder}/run/$name.pid\n\
         osd pool default size = 1\n\
         osd pool default min size = 1\n\
         osd pool default pg num = 4\n\
         osd pool default pgp num = 4\n\
         osd pool default pg autoscale mode = off\n\
         osd crush chooseleaf type = 0\n\
         mon allow pool size one = true\n\
         mon warn on pool no redundancy = false\n\
         mon max pg per osd = 1000\n\
         mon data avail crit = 1\n\
         [mon.a]\n\
         mon data = {folder}/mon\n\
         [osd]\n\
         osd data = {folder}/osd$id\n\
         osd objectstore = memstore\n\
         memstore device bytes = 4294967296\n\
         osd memory target = 939524096\n\
         [client.rgw]\n\
         rgw data = {folder}/rgw\n\
         # Without nodelay every answer takes 40 ms.\n\
         rgw frontends = beast endpoint={gateway} tcp_nodelay=1\n\
         keyring = /dev/null\n"
    )
}

/// Returns an address that was free a moment ago.
pub(super) fn free_port() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("loopback has a free port")
}

fn uuid() -> String {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid");
    uuid.expect("the kernel makes identifiers").trim().to_owned()
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}: {said}", output.status))
}
