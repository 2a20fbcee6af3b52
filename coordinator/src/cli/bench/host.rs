//! The coordinator's process, and what the kernel says about it.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};
use ringmaster::server::{ADDRESSES_FILE, Addresses};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::cli::error::Error;
use crate::cli::open_files;
use crate::cli::text::thousands;

/// Files that either process needs beside one connection for each agent.
const OTHER_FILES: u64 = 128;
/// How long the coordinator may take to serve.
const START: Duration = Duration::from_secs(20);

/// Refuses more agents than either process may have connections.
pub(crate) fn check_open_files(agents: u32) -> Result<(), Error> {
    let limit = open_files::raise_limit()
        .map_err(|source| Error::io("raise the limit of open files", source))?;
    let needed = u64::from(agents) + OTHER_FILES;
    if needed <= limit {
        return Ok(());
    }
    Err(Error::Flag {
        flag: "--agents",
        value: agents.to_string(),
        constraint: format!(
            "every agent is a connection, and a process may have {} files open here (hard limit)",
            thousands(limit)
        ),
        remedy: format!(
            "raise the hard limit to {} (`ulimit -Hn` as root, LimitNOFILE= in a systemd unit), or \
             use {} agents",
            thousands(needed),
            limit.saturating_sub(OTHER_FILES)
        ),
    })
}

/// `ringmaster coordinator` of this very build, with a state directory that ends with it.
#[derive(Debug)]
pub(crate) struct Coordinator {
    child: Child,
    folder: tempfile::TempDir,
    pub(crate) pid: u32,
    pub(crate) addresses: Addresses,
}

impl Coordinator {
    /// Starts it on free loopback ports and waits until it serves.
    pub(crate) async fn start() -> Result<Self, Error> {
        let folder = tempfile::Builder::new()
            .prefix("ringmaster-bench-")
            .tempdir()
            .map_err(|source| Error::io("create a temporary folder", source))?;
        let program = std::env::current_exe()
            .map_err(|source| Error::io("find the executable that runs", source))?;
        let log = std::fs::File::create(folder.path().join("coordinator.log"))
            .map_err(|source| Error::io("create the coordinator's log", source))?;
        let child = Command::new(program)
            .args(["coordinator", "--listen", "127.0.0.1:0", "--fleet-listen", "127.0.0.1:0"])
            .args(["--health-listen", "127.0.0.1:0", "--state-dir"])
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| Error::io("start the coordinator", source))?;
        let pid = child.id().unwrap_or_default();
        let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let addresses = Addresses { people: any, fleet: any, health: any };
        let mut coordinator = Self { child, folder, pid, addresses };
        coordinator.addresses = coordinator.serving().await?;
        Ok(coordinator)
    }

    async fn serving(&mut self) -> Result<Addresses, Error> {
        let path = self.folder.path().join(ADDRESSES_FILE);
        let until = Instant::now() + START;
        loop {
            // Written under another name first, so it is whole when it is there.
            if let Ok(text) = std::fs::read(&path)
                && let Ok(addresses) = serde_json::from_slice(&text)
            {
                return Ok(addresses);
            }
            self.check()?;
            if Instant::now() >= until {
                let what = format!("the coordinator did not serve within {} s", START.as_secs());
                return Err(Error::Bench { what });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Returns an error, with its last words, once the coordinator has ended.
    pub(crate) fn check(&mut self) -> Result<(), Error> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                let log = std::fs::read_to_string(self.folder.path().join("coordinator.log"));
                let log = log.unwrap_or_default();
                let last = log.lines().last().unwrap_or("it said nothing");
                Err(Error::Bench { what: format!("the coordinator ended ({status}): {last}") })
            }
            Err(source) => Err(Error::io("ask for the coordinator's status", source)),
        }
    }

    /// The most memory it has ever held, in bytes.
    pub(crate) fn peak_rss(&self) -> Result<u64, Error> {
        let path = format!("/proc/{}/status", self.pid);
        let text = read(Path::new(&path))?;
        let kib = text.lines().find_map(|line| {
            line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        });
        let missing = || Error::Bench { what: format!("{path} names no VmHWM") };
        Ok(kib.ok_or_else(missing)? * 1024)
    }

    pub(crate) async fn stop(mut self) {
        // It is a measurement's coordinator: nothing of it is kept, whatever it answers.
        let _ = self.child.kill().await;
    }
}

/// Processor time used so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) coordinator: Duration,
    pub(crate) this: Duration,
}

impl Usage {
    /// Reads what the kernel has counted for the coordinator and for this process.
    pub(crate) fn read(coordinator: u32) -> Result<Self, Error> {
        Ok(Self {
            coordinator: processor_time(&format!("/proc/{coordinator}/stat"))?,
            this: processor_time("/proc/self/stat")?,
        })
    }

    /// Cores that were busy on average between this and a later reading.
    pub(crate) fn cores_until(
        &self,
        later: &Duration,
        elapsed: Duration,
        of: impl Fn(&Self) -> Duration,
    ) -> f64 {
        later.saturating_sub(of(self)).as_secs_f64() / elapsed.as_secs_f64()
    }
}

fn processor_time(path: &str) -> Result<Duration, Error> {
    let text = read(Path::new(path))?;
    let odd = || Error::Bench { what: format!("{path} is not what Linux writes") };
    // The name in parentheses may hold anything; user and system time are the 12th and 13th after it.
    let (_, fields) = text.rsplit_once(')').ok_or_else(odd)?;
    let ticks: Vec<u64> =
        fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    let [user, system] = ticks[..] else { return Err(odd()) };
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    let per_second = u32::try_from(per_second).unwrap_or(100).max(1);
    Ok(Duration::from_secs(user + system) / per_second)
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path)
        .map_err(|source| Error::io(format!("read {}", path.display()), source))
}
