//! An agent and the ranks of its machine: what it does follows the real agent's session and table.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ringmaster_proto::v1;
use ringmaster_proto::v1::agent_message::Message as Report;
use ringmaster_proto::v1::coordinator_message::Message as Order;
use ringmaster_proto::v1::fleet_client::FleetClient;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::net::{self, FLEET};
use super::rank::{self, Exit, Orders};
use super::world::{Process, World, short};

const ANSWER: Duration = Duration::from_secs(2);
const OUTBOX: usize = 64;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// A rank that says nothing for so long is killed.
const SILENCE: Duration = Duration::from_secs(2);

type Key = (String, u32);

/// What an agent is started with.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) world: World,
    pub(crate) name: String,
    pub(crate) slots: u32,
    pub(crate) seed: u64,
    /// Of this start: another one is another process.
    pub(crate) pid: u32,
}

struct Agent {
    options: Options,
    table: Rc<RefCell<Table>>,
    ended: mpsc::UnboundedSender<(Key, u64, Exit)>,
}

#[derive(Default)]
struct Table {
    ranks: BTreeMap<Key, Entry>,
    highest: v1::Generation,
    exits: BTreeMap<u64, (v1::RankExited, Option<Instant>)>,
    exit_count: u64,
    starts: u64,
    /// When an agent that was told to end kills what is left.
    leaves_at: Option<Instant>,
}

struct Entry {
    process: u64,
    task: JoinHandle<()>,
    orders: Arc<Orders>,
    /// The generation it was last told to be in.
    target: v1::Generation,
    kill_at: Option<Instant>,
    hung_since: Option<Instant>,
    /// It was killed; until then something of it is left and holds its slot.
    gone_at: Option<Instant>,
    /// What takes its place then.
    next: Option<v1::StartRank>,
}

/// Why a session ended.
#[derive(Debug)]
#[allow(dead_code, reason = "read through Debug")]
enum Error {
    NoAnswer,
    Broken(tonic::Code),
    Closed,
    Stalled,
    /// The agent was told to end, and nothing is left to do.
    Left,
}

/// Runs until the machine is crashed.
pub(crate) async fn run(options: Options) -> turmoil::Result {
    let (ended, mut endings) = mpsc::unbounded_channel();
    options.world.log(format!("{}: agent {} starts", options.name, options.pid));
    let agent = Rc::new(Agent { options, table: Rc::default(), ended });
    let table = Rc::clone(&agent);
    tokio::task::spawn_local(async move {
        while let Some((key, process, exit)) = endings.recv().await {
            table.end(&key, process, exit);
        }
    });
    let mut pause = FIRST_PAUSE;
    loop {
        let mut registered = false;
        let error = agent.session(&mut registered).await;
        if matches!(error, Error::Left) || agent.has_left() {
            return agent.go();
        }
        if registered {
            pause = FIRST_PAUSE;
        }
        agent.log(format!("no session: {error:?}"));
        tokio::time::sleep(pause).await;
        agent.enforce();
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

impl Agent {
    fn log(&self, line: String) {
        self.options.world.log(format!("{}: {line}", self.options.name));
    }

    // ---- The session

    async fn session(&self, registered: &mut bool) -> Error {
        match self.serve(registered).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn serve(&self, registered: &mut bool) -> Result<std::convert::Infallible, Error> {
        let (outbox, outbound) = mpsc::channel(OUTBOX);
        send(&outbox, Report::Register(self.registration()))?;
        let mut client = FleetClient::new(net::channel(FLEET));
        let answer = client.session(ReceiverStream::new(outbound));
        let answer = timeout(ANSWER, answer).await.map_err(|_| Error::NoAnswer)?;
        let mut orders = answer.map_err(|status| Error::Broken(status.code()))?.into_inner();
        let terms = timeout(ANSWER, self.terms(&mut orders)).await;
        let terms = terms.map_err(|_| Error::NoAnswer)??;
        *registered = true;
        self.log("registered".to_owned());
        let interval = Duration::from_millis(terms.heartbeat_interval_ms.into());
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut announced = false;
        loop {
            tokio::select! {
                biased;
                order = next(&mut orders) => self.obey(order?),
                _ = ticks.tick() => {
                    self.enforce();
                    send(&outbox, Report::Heartbeat(self.heartbeat()))?;
                }
            }
            if !announced && let Some(grace_ms) = self.leaving() {
                announced = true;
                let reason = "told to end".to_owned();
                send(&outbox, Report::Leaving(v1::Leaving { grace_ms, reason }))?;
            }
            if self.has_left() {
                return Err(Error::Left);
            }
            for exit in self.due(2 * interval) {
                send(&outbox, Report::RankExited(exit))?;
            }
        }
    }

    /// The notice, once the agent was told to end; its ranks are told to stop within it.
    fn leaving(&self) -> Option<u32> {
        let notice =
            self.options.world.with(|state| state.leaving.get(&self.options.name).copied());
        let notice = notice?;
        let mut table = self.table.borrow_mut();
        if table.leaves_at.is_none() {
            self.log("leaves".to_owned());
            table.leaves_at = Some(Instant::now() + notice);
            for entry in table.ranks.values_mut() {
                entry.orders.stop();
            }
        }
        u32::try_from(notice.as_millis()).ok()
    }

    /// True when an agent that was told to end has nothing left to do, or no time left to do it.
    fn has_left(&self) -> bool {
        let over = |at: Instant, table: &Table| {
            Instant::now() >= at || (table.ranks.is_empty() && table.exits.is_empty())
        };
        self.leaving();
        let table = self.table.borrow();
        table.leaves_at.is_some_and(|at| over(at, &table))
    }

    /// Kills what is left and ends.
    fn go(&self) -> turmoil::Result {
        self.log("is gone".to_owned());
        for entry in self.table.borrow().ranks.values() {
            entry.task.abort();
        }
        self.options.world.with(|state| state.end_processes_of(&self.options.name));
        Ok(())
    }

    fn registration(&self) -> v1::Register {
        let mut table = self.table.borrow_mut();
        for (_, sent_at) in table.exits.values_mut() {
            *sent_at = None;
        }
        let running = table.ranks.iter().map(|((job_id, rank), entry)| v1::RunningRank {
            job_id: job_id.clone(),
            generation: Some(entry.target),
            rank: *rank,
            pid: pid(entry.process),
        });
        v1::Register {
            node: self.options.name.clone(),
            slots: self.options.slots,
            accelerator: "cpu".to_owned(),
            address: self.options.name.clone(),
            pid: self.options.pid,
            highest_generation: Some(table.highest),
            running: running.collect(),
            cpus: self.options.slots,
            ..Default::default()
        }
    }

    async fn terms(
        &self,
        orders: &mut Streaming<v1::CoordinatorMessage>,
    ) -> Result<v1::Registered, Error> {
        loop {
            match next(orders).await? {
                Some(Order::Registered(terms)) => return Ok(terms),
                order => self.obey(order),
            }
        }
    }

    fn heartbeat(&self) -> v1::Heartbeat {
        let table = self.table.borrow();
        let ranks = table.ranks.iter().map(|((job_id, rank), entry)| v1::RankStatus {
            job_id: job_id.clone(),
            rank: *rank,
            pid: pid(entry.process),
            ..entry.orders.status()
        });
        v1::Heartbeat { ranks: ranks.collect(), sequence: 0 }
    }

    fn due(&self, interval: Duration) -> Vec<v1::RankExited> {
        let now = Instant::now();
        let mut table = self.table.borrow_mut();
        let mut due = Vec::new();
        for (exit, sent_at) in table.exits.values_mut() {
            if sent_at.is_none_or(|sent_at| now - sent_at >= interval) {
                *sent_at = Some(now);
                due.push(exit.clone());
            }
        }
        due
    }

    // ---- The table

    fn obey(&self, order: Option<Order>) {
        match order {
            Some(Order::StartRank(start)) => self.start(&start),
            Some(Order::Regenerate(order)) => self.regenerate(&order),
            Some(Order::StopRank(stop)) => self.stop(&stop),
            Some(Order::ExitAck(ack)) => {
                let mut table = self.table.borrow_mut();
                table.exits.retain(|_, (exit, _)| exit.exit_id != ack.exit_id);
            }
            Some(Order::Registered(_) | Order::HeartbeatAck(_)) | None => {}
        }
    }

    fn start(&self, start: &v1::StartRank) {
        let generation = start.generation.unwrap_or_default();
        let key = (start.job_id.clone(), start.rank);
        let mut table = self.table.borrow_mut();
        table.highest = table.highest.max(generation);
        if let Some(entry) = table.ranks.get_mut(&key) {
            if entry.target >= generation {
                return;
            }
            self.log(format!("{}/{} is replaced", short(&key.0), key.1));
            entry.next = Some(start.clone());
            return entry.kill(&self.options.world);
        }
        if table.leaves_at.is_some() {
            return refuse(&mut table, &self.options, key, generation);
        }
        if table.ranks.len() >= self.options.slots as usize {
            let what =
                format!("{} is full, and is to start {}/{}", self.options.name, key.0, key.1);
            self.options.world.violate("no node runs more ranks than it has slots", what);
            return refuse(&mut table, &self.options, key, generation);
        }
        self.log(format!("starts {}/{} in {generation}", short(&key.0), key.1));
        table.starts += 1;
        let process = self.options.world.start_process(Process {
            node: self.options.name.clone(),
            job_id: key.0.clone(),
            seat: key.1,
            generation,
            hung: false,
        });
        let orders = Arc::new(Orders::new(generation));
        let rank = rank::Options {
            world: self.options.world.clone(),
            node: self.options.name.clone(),
            process,
            start: start.clone(),
            orders: Arc::clone(&orders),
            seed: self.options.seed ^ (u64::from(self.options.pid) << 32) ^ table.starts,
        };
        let (ended, named) = (self.ended.clone(), key.clone());
        let task = tokio::task::spawn_local(async move {
            let exit = rank::run(rank).await;
            // Heard by nobody once the machine is gone.
            let _ = ended.send((named, process, exit));
        });
        let entry = Entry {
            process,
            task,
            orders,
            target: generation,
            kill_at: None,
            hung_since: None,
            gone_at: None,
            next: None,
        };
        table.ranks.insert(key, entry);
    }

    fn regenerate(&self, order: &v1::Regenerate) {
        let generation = order.generation.unwrap_or_default();
        let key = (order.job_id.clone(), order.rank);
        let mut table = self.table.borrow_mut();
        table.highest = table.highest.max(generation);
        let Some(entry) = table.ranks.get_mut(&key) else {
            return refuse(&mut table, &self.options, key, generation);
        };
        if generation >= entry.target {
            entry.target = generation;
            entry.orders.regenerate(generation);
        }
    }

    fn stop(&self, stop: &v1::StopRank) {
        let key = (stop.job_id.clone(), stop.rank);
        {
            let mut table = self.table.borrow_mut();
            let Some(entry) = table.ranks.get_mut(&key) else { return };
            let kill_at = Instant::now() + Duration::from_millis(stop.grace_ms.into());
            if entry.kill_at.is_none_or(|earlier| kill_at < earlier) {
                entry.kill_at = Some(kill_at);
            }
            if stop.graceful {
                entry.orders.stop();
            }
        }
        self.enforce();
    }

    /// Kills what has outlived its grace or said nothing for too long, and what the world killed.
    fn enforce(&self) {
        let now = Instant::now();
        let mut killed = Vec::new();
        for (key, entry) in &mut self.table.borrow_mut().ranks {
            let gone =
                !self.options.world.with(|state| state.processes.contains_key(&entry.process));
            let hung = self.options.world.is_hung(entry.process);
            entry.hung_since = hung.then(|| entry.hung_since.unwrap_or(now));
            let silent = entry.hung_since.is_some_and(|since| now - since >= SILENCE);
            if gone || silent || entry.kill_at.is_some_and(|at| at <= now) {
                entry.kill(&self.options.world);
            }
            if entry.gone_at.is_some_and(|at| at <= now) {
                killed.push((key.clone(), entry.process));
            }
        }
        for (key, process) in killed {
            let exit = Exit { code: None, signal: Some(9), reason: "killed" };
            self.end(&key, process, exit);
        }
    }

    /// Nothing is left of a process.
    fn end(&self, key: &Key, process: u64, exit: Exit) {
        let mut table = self.table.borrow_mut();
        if table.ranks.get(key).is_none_or(|entry| entry.process != process) {
            return;
        }
        let entry = table.ranks.remove(key).expect("it was just seen");
        entry.task.abort();
        self.options.world.end_process(process);
        if let Some(next) = entry.next {
            // The coordinator asked for the replacement: it needs no word of the old process.
            drop(table);
            return self.start(&next);
        }
        let status = entry.orders.status();
        self.log(format!("{}/{} ended: {exit:?} at {}", short(&key.0), key.1, status.step));
        let exited = v1::RankExited {
            job_id: key.0.clone(),
            generation: Some(entry.target),
            rank: key.1,
            code: exit.code,
            signal: exit.signal,
            reason: exit.reason.to_owned(),
            retryable: true,
            last_step: status.step,
            ..Default::default()
        };
        add_exit(&mut table, &self.options, exited);
    }
}

impl Entry {
    /// Ends the process; a moment later nothing is left of it.
    fn kill(&mut self, world: &World) {
        if self.gone_at.is_none() {
            self.task.abort();
            world.with(|state| state.leave_rings(self.process));
            // Different for each, and the same in every run.
            let lasts = Duration::from_millis(20 + self.process * 97 % 400);
            self.gone_at = Some(Instant::now() + lasts);
        }
    }
}

/// Tells the coordinator that a rank it speaks of does not run here.
fn refuse(table: &mut Table, options: &Options, key: Key, generation: v1::Generation) {
    let exited = v1::RankExited {
        job_id: key.0,
        rank: key.1,
        generation: Some(generation),
        reason: "the rank does not run on this node".to_owned(),
        retryable: true,
        ..Default::default()
    };
    add_exit(table, options, exited);
}

fn add_exit(table: &mut Table, options: &Options, mut exited: v1::RankExited) {
    table.exit_count += 1;
    let number = table.exit_count;
    exited.exit_id = format!("{}-{}-{number}", options.name, options.pid);
    table.exits.insert(number, (exited, None));
}

fn pid(process: u64) -> u32 {
    u32::try_from(process).expect("few processes are ever started")
}

fn send(outbox: &mpsc::Sender<v1::AgentMessage>, report: Report) -> Result<(), Error> {
    let message = v1::AgentMessage { message: Some(report) };
    outbox.try_send(message).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => Error::Stalled,
        mpsc::error::TrySendError::Closed(_) => Error::Closed,
    })
}

async fn next(orders: &mut Streaming<v1::CoordinatorMessage>) -> Result<Option<Order>, Error> {
    let message = orders.message().await.map_err(|status| Error::Broken(status.code()))?;
    Ok(message.ok_or(Error::Closed)?.message)
}
