//! An agent from its start to its end.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringmaster_proto::address::{self, Listener};
use ringmaster_proto::v1::Register;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tonic::transport::Endpoint;

use crate::address::advertised;
use crate::dial;
use crate::error::Error;
use crate::exits::Exits;
use crate::group::Orphan;
use crate::launcher::{Launcher, LogFolder};
use crate::processes::Sessions;
use crate::ranks::{KILL_DEADLINE, Key, Table};
use crate::session::Line;
use crate::socket::Socket;
use crate::worker::{Demands, RankProgram, Worker};
use crate::{environment, group, logs, parent, session};

/// How often overdue and silent ranks are looked for.
const ENFORCE_INTERVAL: Duration = Duration::from_millis(100);
/// How often it is looked whether what an earlier agent left has gone.
const ORPHAN_INTERVAL: Duration = Duration::from_secs(1);
/// Silence after which a rank is killed until a coordinator has said how long its leases are.
const SILENCE_BEFORE_TERMS: Duration = Duration::from_secs(5);
/// How long a machine that starts may have no network, and the pause between two looks.
const NETWORK_PATIENCE: Duration = Duration::from_secs(60);
const NETWORK_PAUSE: Duration = Duration::from_secs(2);
/// How long an ending agent waits for its ranks to be gone. Undead ones are known by then, and not waited for.
const KILL_TIMEOUT: Duration = KILL_DEADLINE.saturating_add(Duration::from_secs(1));
/// How long an ending agent tries to deliver exits and log lines.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// What an agent needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// URL of the coordinator's fleet listener.
    pub coordinator: String,
    /// Name of this node; stable over restarts.
    pub node: String,
    /// Ranks this node can run at once.
    pub slots: u32,
    /// What the coordinator is told of this agent's build; empty where nobody cares.
    pub build_id: String,
    /// "cpu" or "cuda".
    pub accelerator: String,
    /// Address at which other nodes' ranks reach this node's (no port); none: [`advertised`] finds one.
    pub address: Option<String>,
    /// Cores of this node that its ranks may use, shared evenly over the slots.
    pub cpus: u32,
    /// Folder for manifests, status files and, unless `logs_in_runs`, logs of ranks.
    pub work_dir: PathBuf,
    /// Folder of run folders, told to ranks.
    pub runs_dir: PathBuf,
    /// Write the ranks' logs to `logs/` in each job's run folder.
    pub logs_in_runs: bool,
    /// Folder that a parent which was killed leaves behind: removed once it and all ranks are gone.
    pub parent_folder: Option<PathBuf>,
    /// Kill all ranks and end the process when stdin reaches its end.
    pub parent_pipe: bool,
    /// What ranks are.
    pub rank_program: RankProgram,
    /// Take a worker that was compiled with the feature by which ranks fail on demand.
    pub takes_faults: bool,
    /// A connected rank that says nothing for this long is killed; none: for the coordinator's lease.
    /// Ranks speak four times a second.
    pub silence: Option<Duration>,
    /// Notice that ranks get to checkpoint and stop when the agent is told to end.
    pub grace: Duration,
    /// After this long without a coordinator, ranks are asked to checkpoint and stop.
    pub orphan_timeout: Duration,
}

impl Options {
    /// Returns options with the defaults: CPU, all cores this process may use, the address that this node has
    /// towards the coordinator, no worker with faults, silence for as long as the coordinator's lease, 25 s of
    /// grace, an hour without coordinator.
    pub fn new(
        coordinator: &str,
        node: &str,
        slots: u32,
        work_dir: PathBuf,
        rank_program: RankProgram,
    ) -> Self {
        Self {
            coordinator: coordinator.to_owned(),
            node: node.to_owned(),
            slots,
            build_id: String::new(),
            accelerator: "cpu".to_owned(),
            address: None,
            cpus: available_cpus(),
            work_dir,
            runs_dir: PathBuf::from("runs"),
            logs_in_runs: false,
            parent_folder: None,
            parent_pipe: false,
            rank_program,
            takes_faults: false,
            silence: None,
            grace: Duration::from_secs(25),
            orphan_timeout: Duration::from_secs(3600),
        }
    }
}

/// An agent, ready to run.
#[derive(Debug)]
pub struct Agent {
    options: Options,
    /// Where other nodes reach this one's ranks.
    address: String,
    dials: dial::Listener,
    endpoint: Endpoint,
    socket: Socket,
    table: Arc<Table>,
    /// What an earlier agent left and SIGKILL has not ended.
    orphans: Vec<Orphan>,
    launches: mpsc::UnboundedReceiver<Key>,
}

impl Agent {
    /// Makes the folders, binds the socket and listens at the node's address. With `parent_pipe`, stdin is
    /// watched from here on.
    ///
    /// # Errors
    /// [`Error`]: an address, folder, socket or thread that cannot be had. A coordinator's name that is to tell
    /// the node's address is resolved.
    pub fn build(mut options: Options) -> Result<Self, Error> {
        let endpoint =
            address::endpoint(&options.coordinator, Listener::Fleet).map_err(Error::Address)?;
        let address = find_address(&options)?;
        let dials = dial::Listener::bind(&address)
            .map_err(|source| Error::Listen { address: address.clone(), source })?;
        options.work_dir = folder(&options.work_dir)?;
        options.runs_dir = folder(&options.runs_dir)?;
        let orphans = group::end_orphans(&options.work_dir);
        let socket = Socket::bind().map_err(|source| Error::Socket { source })?;
        let (sender, launches) = mpsc::unbounded_channel();
        let slots = usize::try_from(options.slots).unwrap_or(usize::MAX);
        let exits = Exits::new(life(&options.node));
        let silence = options.silence.unwrap_or(SILENCE_BEFORE_TERMS);
        let table = Arc::new(Table::new(slots, silence, exits, sender, Arc::new(Sessions)));
        // One in a slot that this agent does not have is in nobody's way.
        for orphan in orphans.iter().filter(|orphan| orphan.slot < options.slots) {
            table.keep_out_for(&orphan.key, orphan.process.pid, orphan.slot);
        }
        if options.parent_pipe {
            let folders = std::iter::once(socket.folder()).chain(options.parent_folder.clone());
            parent::watch(Arc::clone(&table), folders.collect(), KILL_TIMEOUT)?;
        }
        Ok(Self { options, address, dials, endpoint, socket, table, orphans, launches })
    }

    /// Runs until `shutdown` completes, then lets all ranks checkpoint and stop; those that have not
    /// when the grace is over, or `hurry` completes, are killed. Delivers what is left to say.
    ///
    /// # Errors
    /// [`Error::Refused`] when the coordinator refuses the first registration, [`Error::Worker`] with
    /// `parent_pipe`, [`Error::Socket`], [`Error::Thread`], [`Error::Ended`]; all ranks are dead then as well.
    pub async fn run(
        self,
        shutdown: impl Future<Output = ()>,
        hurry: impl Future<Output = ()>,
    ) -> Result<(), Error> {
        let Self { options, address, dials, endpoint, socket, table, orphans, launches } = self;
        let mut shutdown = std::pin::pin!(shutdown);
        let worker = Arc::new(worker(&options));
        let probing = Arc::clone(&worker);
        // On threads, not on the runtime's: an agent that ends waits for no probe.
        let probed = watched_thread("worker-probe", move || probing.probe())?;
        tokio::select! {
            _ = probed => {}
            () = &mut shutdown => return Ok(()),
        }
        if let Some(why) = worker.unusable().filter(|_| options.parent_pipe) {
            return Err(Error::Worker { why });
        }
        let (line_sender, lines) = mpsc::channel(logs::QUEUE_LINES);
        let tails = logs::Tails {
            runtime: tokio::runtime::Handle::current(),
            lines: line_sender.downgrade(),
        };
        let agent_socket = socket.path();
        let identity = identity(&options, &address, &dials);
        let launcher = launcher(&options, address, &table, &worker, agent_socket, tails);
        let mut launcher = watched_thread("rank-launcher", move || launcher.run(launches))?;

        let mut dials = tokio::spawn(dials.serve(options.node.clone()));
        // A separate connection: logs must not take the heartbeats' window.
        let shipper = tokio::spawn(logs::ship(endpoint.clone(), lines));
        let service = session::Service {
            line: Line::Endpoint(Box::new(endpoint)),
            table: Arc::clone(&table),
            worker: Some(Arc::clone(&worker)),
            identity,
            orphan_timeout: options.orphan_timeout,
            silence: options.silence,
            reach: None,
        };
        let mut session = tokio::spawn(service.run());
        let mut ranks = tokio::spawn(socket.serve(Arc::clone(&table)));
        let watchdog = tokio::spawn(enforce(Arc::clone(&table)));
        let orphans = tokio::spawn(release_orphans(orphans, Arc::clone(&table)));
        let (is_over, watching) = (Arc::new(AtomicBool::new(false)), Arc::clone(&worker));
        let (told, watched) = (Arc::clone(&is_over), Arc::clone(&table));
        drop(watched_thread("worker-watch", move || watching.watch(&told, &watched))?);

        let outcome = tokio::select! {
            () = &mut shutdown => {
                wind_down(&table, options.grace, hurry).await;
                Ok(())
            }
            ended = &mut session => Err(match ended {
                Ok(error) => Error::Refused { message: error.to_string() },
                Err(_) => Error::Ended { part: "session" },
            }),
            ended = &mut ranks => Err(match ended {
                Ok(Err(source)) => Error::Socket { source },
                Ok(Ok(())) | Err(_) => Error::Ended { part: "socket" },
            }),
            // Without it other nodes take this one for unreachable.
            _ = &mut dials => Err(Error::Ended { part: "listener for other nodes" }),
            // Without it no rank starts any more; it runs as long as the table is there.
            _ = &mut launcher => Err(Error::Ended { part: "rank launcher" }),
        };
        farewell(&table, line_sender, shipper, &session).await;
        is_over.store(true, Ordering::Relaxed);
        for task in [
            session.abort_handle(),
            watchdog.abort_handle(),
            orphans.abort_handle(),
            dials.abort_handle(),
        ] {
            task.abort();
        }
        // The socket's folder goes with its task, and the process may end as soon as this returns.
        if !ranks.is_finished() {
            ranks.abort();
            let _ = ranks.await;
        }
        outcome
    }
}

/// Starts a thread; the returned channel closes when it ends, by a panic too.
fn watched_thread(
    name: &'static str,
    body: impl FnOnce() + Send + 'static,
) -> Result<oneshot::Receiver<Infallible>, Error> {
    let (alive, gone) = oneshot::channel();
    let body = move || {
        let _alive = alive;
        body();
    };
    let thread = std::thread::Builder::new().name(name.into()).spawn(body);
    thread.map(|_| gone).map_err(|source| Error::Thread { name, source })
}

/// Asks all ranks to checkpoint and stop, and waits for them within the grace.
async fn wind_down(table: &Arc<Table>, grace: Duration, hurry: impl Future<Output = ()>) {
    tracing::info!(?grace, "told to end: the ranks checkpoint and stop first");
    table.leave(grace, "the agent was told to end");
    let waiting = Arc::clone(table);
    let empty = tokio::task::spawn_blocking(move || waiting.wait_until_empty(grace));
    tokio::select! {
        _ = empty => {}
        () = hurry => tracing::warn!("told again to end: the ranks are killed"),
    }
}

/// Kills all ranks, then gives exits and log lines a moment to reach the coordinator.
async fn farewell<T>(
    table: &Arc<Table>,
    lines: mpsc::Sender<ringmaster_proto::v1::AgentLogLine>,
    shipper: tokio::task::JoinHandle<()>,
    session: &tokio::task::JoinHandle<T>,
) {
    table.kill_all("the agent ends");
    let waiting = Arc::clone(table);
    let empty = tokio::task::spawn_blocking(move || waiting.wait_until_empty(KILL_TIMEOUT));
    if !empty.await.unwrap_or(false) {
        tracing::error!(timeout = ?KILL_TIMEOUT, "some ranks are still there");
    }
    drop(lines);
    let delivered = async {
        drop(shipper.await);
        while !session.is_finished() && !table.exits.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(FAREWELL_TIMEOUT, delivered).await.is_err() {
        tracing::warn!("the coordinator did not take the last exits and log lines");
    }
}

async fn enforce(table: Arc<Table>) {
    let mut ticks = tokio::time::interval(ENFORCE_INTERVAL);
    loop {
        ticks.tick().await;
        table.enforce(Instant::now());
    }
}

/// Gives the slots back of what an earlier agent left, as that goes.
async fn release_orphans(mut orphans: Vec<Orphan>, table: Arc<Table>) {
    let mut ticks = tokio::time::interval(ORPHAN_INTERVAL);
    while !orphans.is_empty() {
        ticks.tick().await;
        orphans.retain(|orphan| {
            let runs = orphan.process.runs();
            if !runs {
                table.release(&orphan.key, orphan.process.pid);
            }
            runs
        });
    }
}

/// Returns the address that other nodes are told. A machine that starts may have neither network nor names for
/// a while.
fn find_address(options: &Options) -> Result<String, Error> {
    let began = std::time::Instant::now();
    loop {
        let found = advertised(&options.coordinator, options.address.as_deref());
        let may_come = matches!(found, Err(crate::address::Error::Unknown { .. }));
        if !may_come || began.elapsed() >= NETWORK_PATIENCE {
            return found.map_err(Error::Advertised);
        }
        if let Err(error) = found {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "no address yet, trying again"
            );
        }
        std::thread::sleep(NETWORK_PAUSE);
    }
}

fn worker(options: &Options) -> Worker {
    let demands = Demands {
        accelerator: options.accelerator.clone(),
        slots: options.slots,
        takes_faults: options.takes_faults,
    };
    Worker::new(options.rank_program.clone(), demands)
}

fn launcher(
    options: &Options,
    address: String,
    table: &Arc<Table>,
    worker: &Arc<Worker>,
    agent_socket: PathBuf,
    tails: logs::Tails,
) -> Launcher {
    Launcher {
        table: Arc::clone(table),
        worker: Arc::clone(worker),
        work_dir: options.work_dir.clone(),
        logs: if options.logs_in_runs {
            LogFolder::Runs(options.runs_dir.clone())
        } else {
            LogFolder::Work
        },
        node: environment::Node {
            coordinator: options.coordinator.clone(),
            agent_socket,
            runs_dir: options.runs_dir.clone(),
            address,
            threads: (options.cpus / options.slots.max(1)).max(1),
        },
        tails,
    }
}

fn identity(options: &Options, address: &str, dials: &dial::Listener) -> Register {
    Register {
        node: options.node.clone(),
        slots: options.slots,
        accelerator: options.accelerator.clone(),
        address: address.to_owned(),
        pid: std::process::id(),
        cpus: options.cpus,
        build_id: options.build_id.clone(),
        instance: format!("{:016x}", rand::random::<u64>()),
        dial_address: dials.address().to_owned(),
        ..Register::default()
    }
}

/// Cores this process may use: affinity and cgroup quota are taken into account.
fn available_cpus() -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    u32::try_from(cpus).unwrap_or(u32::MAX)
}

/// Returns a name for this life of the agent, part of every exit's id.
fn life(node: &str) -> String {
    format!("{node}-{:016x}", rand::random::<u64>())
}

fn folder(path: &PathBuf) -> Result<PathBuf, Error> {
    let failed = |source| Error::Folder { path: path.clone(), source };
    let path = std::path::absolute(path).map_err(failed)?;
    std::fs::create_dir_all(&path).map_err(failed)?;
    Ok(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_thread_that_ends_or_panics_is_noticed_and_one_that_runs_is_not() {
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let mut gone = watched_thread("waits", move || {
            let _ = wait.recv();
        })
        .unwrap();
        assert!(gone.try_recv().is_err_and(|e| e == oneshot::error::TryRecvError::Empty));
        drop(release);
        assert!(gone.await.is_err());
        let gone = watched_thread("panics", || panic!("on purpose")).unwrap();
        assert!(gone.await.is_err());
    }
}
