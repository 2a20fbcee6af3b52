//! Rank processes of a bench: this program again, once per rank, joined by a tcp ring on loopback.
//!
//! A child binds a port that the system chooses and writes its address as a first line to stdout;
//! the parent answers on stdin with rank, peers and token; from then on every line a child writes
//! is a report in JSON. Stdin stays open as the sign that the parent lives: a child ends with it.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child as Process, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use ringmaster_proto::v1::Generation;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use ringmaster_agent::ffi::exit_now;
use ringmaster_worker::collective::tcp::{AbortFlag, Options, Tcp};
use ringmaster_worker::collective::{Collective, Solo};

/// Set in the environment of a rank process.
const CHILD: &str = "RINGMASTER_BENCH_CHILD";
/// Time all ranks have to connect once they know one another.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Time the other ranks have to end by themselves, and to say why, once one has failed.
const GRACE: Duration = Duration::from_secs(2);
/// Bytes of a child's stderr that an error repeats.
const STDERR_TAIL: usize = 4 << 10;

/// A child's first line.
#[derive(Serialize, Deserialize)]
struct Listening {
    address: String,
}

/// The parent's answer once it knows all addresses.
#[derive(Serialize, Deserialize)]
struct Membership {
    rank: usize,
    peers: Vec<String>,
    token: String,
}

/// What a rank process did.
#[derive(Debug)]
pub enum Event {
    /// It wrote a line of JSON.
    Report(Value),
    /// It ended.
    Ended(ExitStatus),
}

/// Runs this program with `child_args` as `world_size` ranks of `threads` threads each, all on one
/// GPU with `share_gpu`, and returns the last report of every rank.
///
/// The children find their ring with [`child`] and report with [`report`].
///
/// # Errors
/// A rank could not be started, failed (its stderr is in the message) or reported nothing.
pub fn run<S: AsRef<OsStr>>(
    world_size: usize,
    threads: usize,
    share_gpu: bool,
    child_args: &[S],
) -> anyhow::Result<Vec<Value>> {
    let program = std::env::current_exe().context("cannot find this program's file")?;
    Group::start_with(&program, world_size, threads, share_gpu, child_args)?.results()
}

/// Whether this process is a rank that [`Group::start`] started.
pub fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Returns a rank process's end of the ring, after all ranks have connected.
///
/// From here on the process ends when its parent does.
///
/// # Errors
/// This process was not started by [`Group::start`], or the ring could not be formed.
pub fn child() -> anyhow::Result<Box<dyn Collective>> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on loopback")?;
    report(&Listening { address: listener.local_addr()?.to_string() })?;
    let mut line = String::new();
    io::stdin().read_line(&mut line).context("cannot read this rank's membership from stdin")?;
    let ring: Membership =
        serde_json::from_str(&line).context("stdin holds no membership of a ring")?;
    std::thread::Builder::new().name("parent-pipe".into()).spawn(|| {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        exit_now(1)
    })?;
    if ring.peers.len() == 1 {
        return Ok(Box::new(Solo::new()));
    }
    let options = Options {
        generation: Generation::new(1, 1),
        rank: ring.rank,
        peers: ring.peers,
        token: hex::decode(&ring.token).context("the ring's token is not hexadecimal")?,
        connect_timeout: CONNECT_TIMEOUT,
        deadline: None,
        tls: None,
    };
    Ok(Box::new(Tcp::connect(&listener, &options, &AbortFlag::new())?))
}

/// Writes one line of JSON for the parent.
///
/// # Errors
/// The parent is gone.
pub fn report(value: &impl Serialize) -> anyhow::Result<()> {
    let line = serde_json::to_string(value)? + "\n";
    io::stdout().lock().write_all(line.as_bytes()).context("cannot report to the parent process")
}

/// The ranks of one bench; dropping it kills those that still run.
#[derive(Debug)]
pub struct Group {
    ranks: Vec<Rank>,
    lines: Receiver<(usize, Option<String>)>,
}

#[derive(Debug)]
struct Rank {
    process: Process,
    stderr: Option<JoinHandle<String>>,
    status: Option<ExitStatus>,
}

impl Group {
    /// Starts `program` with `args` as `world_size` ranks and tells each its rank and its peers.
    ///
    /// # Errors
    /// A process could not be started or ended before it had an address.
    pub fn start<S: AsRef<OsStr>>(
        program: &Path,
        world_size: usize,
        threads: usize,
        args: &[S],
    ) -> anyhow::Result<Self> {
        Self::start_with(program, world_size, threads, false, args)
    }

    fn start_with<S: AsRef<OsStr>>(
        program: &Path,
        world_size: usize,
        threads: usize,
        share_gpu: bool,
        args: &[S],
    ) -> anyhow::Result<Self> {
        let (sender, lines) = channel();
        let mut group = Self { ranks: Vec::with_capacity(world_size), lines };
        for rank in 0..world_size {
            let mut command = Command::new(program);
            if share_gpu {
                // NCCL refuses two ranks of one host on one GPU: each poses as a host of its own.
                command
                    .env("NCCL_HOSTID", format!("ringmaster-bench-{rank}"))
                    .env("NCCL_IB_DISABLE", "1")
                    .env("NCCL_SOCKET_IFNAME", "lo");
            }
            let process = command
                .args(args)
                .env(CHILD, "1")
                .env("OMP_NUM_THREADS", threads.to_string())
                .env("OMP_WAIT_POLICY", "passive")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("cannot start {}", program.display()))?;
            group.ranks.push(Rank::watch(process, rank, sender.clone())?);
        }
        group.introduce()?;
        Ok(group)
    }

    /// Returns the process id of a rank.
    pub fn pid(&self, rank: usize) -> u32 {
        self.ranks[rank].process.id()
    }

    /// Waits for the next thing that any rank does, at most for `timeout`; `None` if nothing did.
    ///
    /// # Errors
    /// A rank wrote something else than JSON, or its end could not be waited for.
    pub fn next(&mut self, timeout: Duration) -> anyhow::Result<Option<(usize, Event)>> {
        match self.lines.recv_timeout(timeout) {
            Ok((rank, Some(line))) => {
                let value = serde_json::from_str(&line)
                    .with_context(|| format!("rank {rank} wrote {line:?}, which is not JSON"))?;
                Ok(Some((rank, Event::Report(value))))
            }
            Ok((rank, None)) => {
                let status = self.ranks[rank].process.wait()?;
                self.ranks[rank].status = Some(status);
                Ok(Some((rank, Event::Ended(status))))
            }
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("all ranks have ended"),
        }
    }

    /// Waits for all ranks and returns the last report of each.
    ///
    /// # Errors
    /// A rank failed, which ends the others too, or reported nothing.
    pub fn results(mut self) -> anyhow::Result<Vec<Value>> {
        let mut results: Vec<Option<Value>> = self.ranks.iter().map(|_| None).collect();
        let mut failed: Vec<usize> = Vec::new();
        let mut deadline: Option<Instant> = None;
        while self.ranks.iter().any(|rank| rank.status.is_none()) {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            match self.next(left.unwrap_or(Duration::from_secs(3600)))? {
                Some((rank, Event::Report(value))) => results[rank] = Some(value),
                Some((rank, Event::Ended(status))) if !status.success() => {
                    failed.push(rank);
                    deadline.get_or_insert_with(|| Instant::now() + GRACE);
                }
                Some((_, Event::Ended(_))) => {}
                None if deadline.is_some() => break,
                None => {}
            }
        }
        if !failed.is_empty() {
            let failures: Vec<String> = failed.iter().map(|&rank| self.failure(rank)).collect();
            bail!("{}", failures.join("; "));
        }
        let missing = |rank| move || anyhow!("rank {rank} ended without a result");
        results.into_iter().enumerate().map(|(rank, r)| r.ok_or_else(missing(rank))).collect()
    }

    /// Collects every rank's address and tells each its rank and its peers.
    fn introduce(&mut self) -> anyhow::Result<()> {
        let mut peers = vec![String::new(); self.ranks.len()];
        while peers.iter().any(String::is_empty) {
            match self.next(CONNECT_TIMEOUT)? {
                Some((rank, Event::Report(value))) => {
                    let listening: Listening = serde_json::from_value(value)?;
                    peers[rank] = listening.address;
                }
                Some((rank, Event::Ended(_))) => bail!("{}", self.failure(rank)),
                None => bail!("a rank did not start within {CONNECT_TIMEOUT:?}"),
            }
        }
        let token = hex::encode(rand::random::<[u8; 32]>());
        for (rank, child) in self.ranks.iter_mut().enumerate() {
            let membership = Membership { rank, peers: peers.clone(), token: token.clone() };
            let line = serde_json::to_string(&membership)? + "\n";
            let stdin = child.process.stdin.as_mut().context("a rank's stdin was not piped")?;
            stdin.write_all(line.as_bytes()).with_context(|| format!("rank {rank} is gone"))?;
        }
        Ok(())
    }

    /// Returns how an ended rank ended, with the last of its stderr.
    fn failure(&mut self, rank: usize) -> String {
        let child = &mut self.ranks[rank];
        let status = child.status.map_or_else(String::new, |status| status.to_string());
        let stderr = child.stderr.take().and_then(|reader| reader.join().ok()).unwrap_or_default();
        format!("rank {rank} failed ({status}): {}", stderr.trim())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for rank in &mut self.ranks {
            if rank.status.is_none() {
                let _ = rank.process.kill();
                let _ = rank.process.wait();
            }
        }
    }
}

impl Rank {
    /// Starts the threads that read what `process` writes.
    fn watch(
        mut process: Process,
        rank: usize,
        lines: Sender<(usize, Option<String>)>,
    ) -> anyhow::Result<Self> {
        let stdout = process.stdout.take().context("a rank's stdout was not piped")?;
        let stderr = process.stderr.take().context("a rank's stderr was not piped")?;
        std::thread::Builder::new().name(format!("stdout-{rank}")).spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = lines.send((rank, Some(line)));
            }
            let _ = lines.send((rank, None));
        })?;
        let stderr = std::thread::Builder::new()
            .name(format!("stderr-{rank}"))
            .spawn(move || tail(stderr, STDERR_TAIL))?;
        Ok(Self { process, stderr: Some(stderr), status: None })
    }
}

/// Reads to the end and returns the last `limit` bytes.
fn tail(mut source: impl Read, limit: usize) -> String {
    let mut kept = VecDeque::with_capacity(limit);
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = source.read(&mut buffer) {
        kept.extend(&buffer[..read]);
        kept.drain(..kept.len().saturating_sub(limit));
    }
    String::from_utf8_lossy(kept.make_contiguous()).into_owned()
}
