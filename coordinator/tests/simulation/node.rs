//! An agent and the ranks of its machine: the real agent's session and table over simulated processes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ringmaster_agent::{
    Ending, Exits, Key, Launch, Line, Processes, Reach, Secret, Service, Table,
};
use ringmaster_proto::v1;
use ringmaster_proto::v1::agent_command::Command;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::blame::Exit;
use super::net::{self, FLEET};
use super::orders::Orders;
use super::processes::Process;
use super::rank;
use super::world::{World, short};

/// How often the agent looks at what the world does to its ranks, and ranks give a sign of life.
const LOOK: Duration = Duration::from_millis(50);
/// A rank that says nothing for so long is killed, until a coordinator has said how long leases are.
const SILENCE: Duration = Duration::from_secs(3);

/// A rank that is still there so long after it was killed is given up.
const KILL_DEADLINE: Duration = Duration::from_secs(1);
/// How the reason begins of a rank that its agent has killed when a deadline had passed.
const DEADLINES: [(&str, &str); 2] =
    [("no sign of life", "deadline: silence"), ("killed after a grace", "deadline: grace")];

/// What an agent is started with.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) world: World,
    /// The name it registers under.
    pub(crate) name: String,
    /// The machine it runs on.
    pub(crate) host: String,
    pub(crate) slots: u32,
    pub(crate) seed: u64,
    /// Of this start: another one is another process.
    pub(crate) pid: u32,
}

struct Agent {
    options: Options,
    table: Arc<Table>,
    ranks: BTreeMap<u64, Rank>,
    starts: u64,
    /// Told to end, and when it kills what is left.
    leaves_at: Option<Instant>,
    news: UnboundedSender<News>,
}

/// A process of this machine.
struct Rank {
    key: Key,
    /// It was to be killed, which came to nothing.
    undead: bool,
    task: JoinHandle<()>,
    /// Orders to it, and its signs of life.
    lines: [JoinHandle<()>; 2],
}

/// What becomes of processes.
enum News {
    /// It ended by itself.
    Ended(u64, Exit),
    /// It is to be killed.
    Kill(u64),
    /// Nothing of a killed one is left.
    Gone(Key, u64),
}

/// Passes on which processes the table wants killed.
#[derive(Debug)]
struct Killer(UnboundedSender<News>);

/// What of the network between ranks is down for a node.
struct Links {
    world: World,
    node: String,
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Links")
    }
}

impl Reach for Links {
    fn misses(&self, peer: &v1::DialPeer) -> Option<String> {
        let is_cut = self.world.is_cut(&self.node, &peer.node);
        is_cut.then(|| {
            self.world.count("dial: not reached");
            "no route".to_owned()
        })
    }
}

impl std::fmt::Debug for News {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("News")
    }
}

impl Processes for Killer {
    fn kill(&self, pid: u32) {
        // Heard by nobody once the machine is gone.
        let _ = self.0.send(News::Kill(pid.into()));
    }
}

/// Runs until the machine is crashed, or the agent was told to end and has done so.
pub(crate) async fn run(options: Options) -> turmoil::Result {
    options.world.log(format!("{}: agent {} starts", options.host, options.pid));
    options.world.agent_lives(&options.name, &options.host);
    let (news, told) = mpsc::unbounded_channel();
    let (launches, queue) = mpsc::unbounded_channel();
    let exits = Exits::new(format!("{}-{}", options.name, options.pid));
    let killer = Arc::new(Killer(news.clone()));
    let table = Table::new(options.slots as usize, SILENCE, exits, launches, killer);
    let table = Arc::new(table.with_kill_deadline(KILL_DEADLINE));
    let line = Line::Channel(net::channel(FLEET));
    let reach = Arc::new(Links { world: options.world.clone(), node: options.name.clone() });
    let service = Service::without_worker(line, Arc::clone(&table), register(&options));
    let service = service.with_reach(reach);
    let session = tokio::task::spawn_local(service.run());
    let agent = Agent { options, table, ranks: BTreeMap::new(), starts: 0, leaves_at: None, news };
    agent.serve(queue, told, session).await
}

/// What the agent says of its machine when it registers.
fn register(options: &Options) -> v1::Register {
    v1::Register {
        node: options.name.clone(),
        slots: options.slots,
        accelerator: "cpu".to_owned(),
        address: options.name.clone(),
        pid: options.pid,
        instance: format!("{}-{}", options.host, options.pid),
        dial_address: format!("{}:9", options.host),
        cpus: options.slots,
        ..Default::default()
    }
}

impl Agent {
    async fn serve<T>(
        mut self,
        mut queue: UnboundedReceiver<Key>,
        mut told: UnboundedReceiver<News>,
        session: JoinHandle<T>,
    ) -> turmoil::Result {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                biased;
                Some(news) = told.recv() => self.hear(news),
                Some(key) = queue.recv() => self.launch(&key),
                _ = looks.tick() => self.look(),
            }
            if self.has_left() {
                session.abort();
                return self.go();
            }
        }
    }

    fn log(&self, line: String) {
        self.options.world.log(format!("{}: {line}", self.options.host));
    }

    // ---- What the table asks for

    fn launch(&mut self, key: &Key) {
        self.starts += 1;
        let Options { world, name, host, .. } = &self.options;
        let exec = |start: &v1::StartRank, secret: &Secret| {
            let generation = start.generation.unwrap_or_default();
            let process = Process::new(name, host, (&key.0, key.1.0), generation);
            let process = world.start_process(process);
            Ok((pid(process), (process, secret.clone())))
        };
        let table = Arc::clone(&self.table);
        let Some(((process, secret), Launch { start, .. })) = table.launch(key, exec) else {
            return;
        };
        let generation = start.generation.unwrap_or_default();
        self.log(format!("starts {}/{} in {generation}", short(&key.0), key.1));
        let orders = Arc::new(Orders::new(generation));
        let rank = Rank {
            key: key.clone(),
            undead: false,
            task: tokio::task::spawn_local(self.rank(process, start, &orders)),
            lines: [
                tokio::task::spawn_local(self.orders(key, &secret, &orders)),
                tokio::task::spawn_local(self.signs_of_life(key, process, &orders)),
            ],
        };
        self.ranks.insert(process, rank);
    }

    /// Runs a rank to its end.
    fn rank(
        &self,
        process: u64,
        start: v1::StartRank,
        orders: &Arc<Orders>,
    ) -> impl Future<Output = ()> + use<> {
        let options = rank::Options {
            world: self.options.world.clone(),
            node: self.options.name.clone(),
            process,
            start,
            orders: Arc::clone(orders),
            seed: self.options.seed ^ (u64::from(self.options.pid) << 32) ^ self.starts,
        };
        let news = self.news.clone();
        async move {
            let exit = rank::run(options).await;
            let _ = news.send(News::Ended(process, exit));
        }
    }

    /// Connects a rank to its table and hands it what it is told.
    fn orders(
        &self,
        key: &Key,
        secret: &Secret,
        orders: &Arc<Orders>,
    ) -> impl Future<Output = ()> + use<> {
        let (sender, mut commands) = mpsc::unbounded_channel();
        let connected = self.table.connected(key, secret, sender);
        assert!(connected.is_some(), "a rank that was just started is known");
        let orders = Arc::clone(orders);
        async move {
            while let Some(command) = commands.recv().await {
                match command.command {
                    Some(Command::Regenerate(order)) => {
                        orders.regenerate(order.generation.unwrap_or_default());
                    }
                    Some(Command::Stop(stop)) if stop.graceful => orders.stop(),
                    // It is killed within its grace.
                    Some(Command::Stop(_)) | None => {}
                }
            }
        }
    }

    /// Says what a rank does, as long as it does not hang.
    fn signs_of_life(
        &self,
        key: &Key,
        process: u64,
        orders: &Arc<Orders>,
    ) -> impl Future<Output = ()> + use<> {
        let (table, world) = (Arc::clone(&self.table), self.options.world.clone());
        let (key, orders) = (key.clone(), Arc::clone(orders));
        async move {
            loop {
                if !world.is_mute(process) {
                    table.status(&key, pid(process), orders.status());
                }
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    // ---- What becomes of processes

    fn hear(&mut self, news: News) {
        match news {
            News::Ended(process, exit) => self.ended(process, exit),
            News::Kill(process) => self.kill(process),
            News::Gone(key, process) => self.gone(&key, process, Exit::killed()),
        }
    }

    /// Looks for what the world has killed, what has outlived its grace, and what says nothing.
    fn look(&mut self) {
        let world = self.options.world.clone();
        let runs = |process: &u64| world.with(|state| state.processes.contains_key(process));
        world.with(|state| state.relent());
        let is_over = |process: &u64, rank: &Rank| {
            !runs(process) || (rank.undead && !world.survives(*process))
        };
        let struck = self.ranks.iter().filter(|(process, rank)| is_over(process, rank));
        let struck: Vec<u64> = struck.map(|(process, _)| *process).collect();
        for process in struck {
            self.kill(process);
        }
        self.table.enforce(Instant::now());
        self.leave_if_told();
    }

    /// Ends a process, unless that comes to nothing; a moment later nothing is left of it.
    fn kill(&mut self, process: u64) {
        if self.options.world.survives(process) {
            self.log(format!("cannot kill process {process}"));
            // A process whose kill is pending runs nothing of its own any more, whenever the kernel lets it go.
            if let Some(rank) = self.ranks.get_mut(&process) {
                rank.undead = true;
                rank.abort();
            }
            return;
        }
        let Some(rank) = self.ranks.remove(&process) else { return };
        rank.abort();
        let (world, news) = (self.options.world.clone(), self.news.clone());
        world.with(|state| state.leave_rings(process));
        // Different for each, and the same in every run.
        let lasts = Duration::from_millis(20 + process * 97 % 400);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(lasts).await;
            world.end_process(process);
            let _ = news.send(News::Gone(rank.key, process));
        });
    }

    /// A process has ended by itself.
    fn ended(&mut self, process: u64, exit: Exit) {
        let Some(rank) = self.ranks.remove(&process) else { return };
        rank.abort();
        self.options.world.end_process(process);
        self.gone(&rank.key, process, exit);
    }

    fn gone(&self, key: &Key, process: u64, exit: Exit) {
        self.log(format!("{}/{} ended: {exit:?}", short(&key.0), key.1));
        self.options.world.rank_ended(&self.options.name, &exit);
        let pid = pid(process);
        let killed = self.table.killed_because(key, pid);
        for (begins, deadline) in DEADLINES {
            if killed.as_ref().is_some_and(|killed| killed.because.starts_with(begins)) {
                self.options.world.count(deadline);
            }
        }
        let Exit { code, signal, class, reason, operation, cause, .. } = exit;
        let (operation, cause) = (operation.to_owned(), cause.to_owned());
        let by_itself =
            || Ending { code, signal, reason, class, operation, cause, ..Ending::default() };
        let ending = killed.map_or_else(by_itself, Ending::from);
        self.table.ending(key, pid);
        self.table.ended(key, pid, ending);
    }

    // ---- Leaving

    /// An agent that was told to end says so, and has its ranks stop within the notice.
    fn leave_if_told(&mut self) {
        let host = &self.options.host;
        let notice = self.options.world.with(|state| state.leaving.get(host).copied());
        let Some(notice) = notice.filter(|_| self.leaves_at.is_none()) else { return };
        self.log("leaves".to_owned());
        self.leaves_at = Some(Instant::now() + notice);
        self.table.leave(notice, "told to end");
    }

    /// True when an agent that was told to end has nothing left to do, or no time left to do it.
    fn has_left(&self) -> bool {
        self.leaves_at.is_some_and(|at| Instant::now() >= at || self.table.is_done())
    }

    /// Kills what is left and ends.
    fn go(&self) -> turmoil::Result {
        self.log("is gone".to_owned());
        for rank in self.ranks.values() {
            rank.abort();
        }
        self.options.world.with(|state| state.end_processes_of(&self.options.host));
        Ok(())
    }
}

impl Rank {
    fn abort(&self) {
        self.task.abort();
        for line in &self.lines {
            line.abort();
        }
    }
}

fn pid(process: u64) -> u32 {
    u32::try_from(process).expect("few processes are ever started")
}
