//! The coordinator's process, and what the kernel says about it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::unistd::{SysconfVar, sysconf};
use ringmaster_coordinator::open_files;
use ringmaster_coordinator::server::{ADDRESSES_FILE, Addresses};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use ringmaster_words::thousands;

/// Files that either process needs beside one connection for each agent.
const OTHER_FILES: u64 = 128;
/// How long the coordinator may take to serve.
const START: Duration = Duration::from_secs(20);

/// Refuses more agents than either process may have connections.
pub(crate) fn check_open_files(agents: u32) -> Result<()> {
    let limit = open_files::raise_limit().context("cannot raise the limit of open files")?;
    let needed = u64::from(agents) + OTHER_FILES;
    if needed <= limit {
        return Ok(());
    }
    bail!(
        "every agent is a connection, and a process may have {} files open here (hard limit): raise it to {} \
         (`ulimit -Hn` as root, LimitNOFILE= in a systemd unit), or use --agents {}",
        thousands(limit),
        thousands(needed),
        limit.saturating_sub(OTHER_FILES)
    );
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
    pub(crate) async fn start() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("ringmaster-bench-")
            .tempdir()
            .context("cannot create a temporary folder")?;
        let program = beside_this_program()?;
        let log = std::fs::File::create(folder.path().join("coordinator.log"))
            .context("cannot create the coordinator's log")?;
        let child = Command::new(program)
            .args(["coordinator", "--listen", "127.0.0.1:0", "--fleet-listen", "127.0.0.1:0"])
            .args(["--health-listen", "127.0.0.1:0", "--state-dir"])
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the coordinator")?;
        let pid = child.id().unwrap_or_default();
        let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let addresses = Addresses { people: any, fleet: any, health: any };
        let mut coordinator = Self { child, folder, pid, addresses };
        coordinator.addresses = coordinator.serving().await?;
        Ok(coordinator)
    }

    async fn serving(&mut self) -> Result<Addresses> {
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
                bail!("the coordinator did not serve within {} s", START.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Returns an error, with its last words, once the coordinator has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                let log = std::fs::read_to_string(self.folder.path().join("coordinator.log"));
                let log = log.unwrap_or_default();
                let last = log.lines().last().unwrap_or("it said nothing");
                bail!("the coordinator ended ({status}): {last}")
            }
            Err(error) => Err(error).context("cannot ask for the coordinator's status"),
        }
    }

    /// The most memory it has ever held, in bytes.
    pub(crate) fn peak_rss(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid);
        let text = read(Path::new(&path))?;
        let kib = text.lines().find_map(|line| {
            line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        });
        let missing = || anyhow!("{path} names no VmHWM");
        Ok(kib.ok_or_else(missing)? * 1024)
    }

    pub(crate) async fn stop(mut self) {
        // It is a measurement's coordinator: nothing of it is kept, whatever it answers.
        let _ = self.child.kill().await;
    }
}

/// `ringmaster`, built together with this program.
fn beside_this_program() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find the executable that runs")?;
    let program = own.with_file_name("ringmaster");
    if !program.is_file() {
        bail!("there is no {}; `cargo xtask bench control-plane` builds both", program.display());
    }
    Ok(program)
}

/// Processor time used so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) coordinator: Duration,
    pub(crate) this: Duration,
}

impl Usage {
    /// Reads what the kernel has counted for the coordinator and for this process.
    pub(crate) fn read(coordinator: u32) -> Result<Self> {
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

fn processor_time(path: &str) -> Result<Duration> {
    let text = read(Path::new(path))?;
    let odd = || anyhow!("{path} is not what Linux writes");
    // The name in parentheses may hold anything; user and system time are the 12th and 13th after it.
    let (_, fields) = text.rsplit_once(')').ok_or_else(odd)?;
    let ticks: Vec<u64> =
        fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    let [user, system] = ticks[..] else { return Err(odd()) };
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    let per_second = u32::try_from(per_second).unwrap_or(100).max(1);
    Ok(Duration::from_secs(user + system) / per_second)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
