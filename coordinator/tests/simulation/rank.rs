//! A rank: joins, steps with its peers, saves, finishes, and goes on in another generation after a
//! fault, as the real one does; what it trains is told apart by its history.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use ringmaster_proto::v1;
use ringmaster_proto::v1::Generation;
use ringmaster_proto::v1::ranks_client::RanksClient;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::blame::Exit;
use super::call::insist_for;
use super::history::{At, Held, WentBack, parse_url};
use super::net::{self, FLEET};
use super::orders::Orders;
use super::ring::{Member, RingKey, Wait};
use super::saving::Upload;
use super::world::{World, short};

const POLL: Duration = Duration::from_millis(20);
/// After a fault without orders a rank joins again of itself.
const REGROUP: Duration = Duration::from_secs(2);
/// Within this time all ranks of a ring have connected, or they give it up.
const CONNECT: Duration = Duration::from_secs(3);

/// What a rank is started with.
pub(crate) struct Options {
    pub(crate) world: World,
    pub(crate) node: String,
    pub(crate) process: u64,
    pub(crate) start: v1::StartRank,
    pub(crate) orders: Arc<Orders>,
    pub(crate) seed: u64,
}

/// Why an attempt ended.
enum Ended {
    /// The ring broke, or its generation is over.
    Regroup,
    Exit(Exit),
}

struct Rank {
    options: Options,
    client: RanksClient<Channel>,
    random: Arc<Mutex<StdRng>>,
    /// None until it has a state, and while it is sent another one.
    held: Option<Held>,
    /// How the ring it was in last came to its end.
    left: Option<v1::RingLoss>,
    total: u64,
    every: u64,
    slow: bool,
    /// Uploads in the background; they end with the process.
    saving: JoinSet<()>,
    attempts: u32,
}

/// Runs a rank to its end, unless its task is dropped: that is a kill.
pub(crate) async fn run(options: Options) -> Exit {
    let random = Arc::new(Mutex::new(StdRng::seed_from_u64(options.seed)));
    let stored: serde_json::Value = serde_json::from_str(&options.start.manifest).unwrap();
    let job = &stored["job"];
    let mut rank = Rank {
        client: RanksClient::new(net::channel(FLEET)),
        random,
        held: None,
        left: None,
        total: job["schedule"]["total_steps"].as_u64().unwrap(),
        every: job["checkpoint"]["every_steps"].as_u64().unwrap(),
        slow: options.world.is_slow(&options.start.job_id),
        saving: JoinSet::new(),
        attempts: 0,
        options,
    };
    rank.sleep(20, rank.options.world.with(|state| state.start_ms)).await;
    let Options { world, start, node, .. } = &rank.options;
    if let Some(exit) = world.meets(&start.job_id, node) {
        return exit;
    }
    let mut generation = start.generation.unwrap_or_default();
    loop {
        generation = generation.max(rank.options.orders.newest());
        rank.attempts += 1;
        match rank.attempt(generation).await {
            Ended::Exit(exit) => return exit,
            Ended::Regroup => rank.await_orders(generation).await,
        }
    }
}

impl Rank {
    async fn sleep(&self, least: u64, most: u64) {
        let millis = self.random.lock().unwrap().random_range(least..=most);
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    /// Polls until `done` answers. A rank that hangs does not even poll.
    async fn until<T>(&self, mut done: impl FnMut() -> Option<T>) -> T {
        loop {
            if !self.options.world.is_hung(self.options.process)
                && let Some(value) = done()
            {
                return value;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn await_orders(&self, current: Generation) {
        let newer = self.until(|| (self.options.orders.newest() > current).then_some(()));
        // Without orders it tries the same generation again.
        let _ = tokio::time::timeout(REGROUP, newer).await;
    }

    fn show(&self, generation: Generation, phase: v1::Phase) {
        let step = self.held.map_or(0, |held| held.at.step);
        self.options.orders.show(generation, phase, step);
    }

    // ---- One generation

    async fn attempt(&mut self, generation: Generation) -> Ended {
        self.show(generation, v1::Phase::Join);
        self.until(|| Some(())).await;
        let reply = match self.join(generation).await {
            Ok(Some(reply)) => reply,
            Ok(None) => return Ended::Regroup,
            Err(status) if status.code() == Code::Aborted => return Ended::Regroup,
            Err(_) => return Ended::Exit(Exit::with(1, "the coordinator refuses the call")),
        };
        self.until(|| Some(())).await;
        if self.options.orders.newest() > generation {
            return Ended::Regroup;
        }
        let key = (self.options.start.job_id.clone(), generation);
        let Options { world, node, process, .. } = &self.options;
        world.enter(&key, reply.rank, reply.world_size, Member::new(*process, node, self.held));
        self.left = None;
        let ended = self.in_ring(&key, &reply).await;
        if matches!(ended, Ended::Regroup) {
            self.note_loss(&key, reply.rank);
            self.options.world.break_ring(&key, reply.rank);
            self.saving.abort_all();
        }
        ended
    }

    /// Keeps how a ring came to its end, unless its generation is simply over.
    fn note_loss(&mut self, key: &RingKey, place: u32) {
        if self.left.is_some() || self.options.orders.newest() > key.1 {
            return;
        }
        let peers = self.options.world.lost(key, place);
        let kind = if peers.is_empty() { v1::RingLossKind::Other } else { v1::RingLossKind::Lost };
        let how = "the ring broke".to_owned();
        self.left = Some(v1::RingLoss { generation: Some(key.1), kind: kind.into(), peers, how });
    }

    /// The reply; none when a newer generation was announced while it waited.
    async fn join(&self, generation: Generation) -> Result<Option<v1::JoinReply>, Status> {
        let Options { world, start, process, orders, .. } = &self.options;
        let known = world.published(&start.job_id);
        let request = v1::JoinRequest {
            job_id: start.job_id.clone(),
            generation: Some(generation),
            rank: start.rank,
            data_address: format!("process-{process}:{}", self.attempts),
            // What no ring has agreed on is nobody's to go on from.
            held: self.held.filter(|held| held.agreed.is_some()).map(|held| v1::HeldState {
                applied_step: held.at.step,
                digest: held.at.digest,
                entered_ready: held.gradients.is_some(),
                agreed: held.agreed,
            }),
            left: self.left.clone(),
            numeric_plan: "{}".to_owned(),
            ..Default::default()
        };
        let key = (start.job_id.clone(), generation);
        let call = insist_for(world, &key, &self.random, || {
            let (mut client, request) = (self.client.clone(), request.clone());
            async move { client.join(request).await }
        });
        let newer = self.until(|| (orders.newest() > generation).then_some(()));
        let reply = tokio::select! {
            biased;
            () = newer => return Ok(None),
            reply = call => reply?,
        };
        let hint = parse_url(&reply.checkpoint_hint);
        // Somebody may have gone back meanwhile.
        let known = known.min(world.published(&start.job_id));
        if hint < known {
            let what = format!("{} is told {hint:?}, {known:?} was published", start.job_id);
            world.violate("an acknowledged checkpoint is never forgotten", what);
        }
        Ok(Some(reply))
    }

    async fn in_ring(&mut self, key: &RingKey, reply: &v1::JoinReply) -> Ended {
        self.show(key.1, v1::Phase::Load);
        let world = self.options.world.clone();
        if self.connect(key).await.is_none() || self.agree(key, reply).await.is_none() {
            return Ended::Regroup;
        }
        if reply.rank == 0 {
            let step = self.held.map_or(0, |held| held.at.step);
            let size = reply.world_size;
            world.log(format!("{} {}: {size} ranks from {step}", short(&key.0), key.1));
        }
        while let Some(mut held) = self.held.filter(|held| held.at.step < self.total) {
            self.show(key.1, v1::Phase::Compute);
            let times = if self.slow { 10 } else { 1 };
            self.sleep(20 * times, 120 * times).await;
            if let Some(exit) = world.meets_on_the_way(&key.0) {
                return Ended::Exit(exit);
            }
            let step = held.at.step + 1;
            held.reduce(key.1);
            self.held = Some(held);
            world.ready(key, reply.rank, step, self.options.orders.stops());
            self.show(key.1, v1::Phase::Collective);
            if self.wait(key, || world.passed(key, step)).await.is_none() {
                return Ended::Regroup;
            }
            world.apply(&mut held);
            self.held = Some(held);
            world.stepped(key, held.at);
            let stops = world.stops_after(key) == Some(step);
            if (stops || step % self.every == 0) && world.saves(key, step) {
                self.save(key, reply, held.at);
            }
            if stops {
                return self.finish_saving(key, reply).await;
            }
        }
        self.finish(key, reply).await
    }

    /// Waits inside the ring; none when it is over.
    async fn wait<T>(&self, key: &RingKey, mut done: impl FnMut() -> Wait<T>) -> Option<T> {
        let orders = &self.options.orders;
        self.until(|| match done() {
            _ if orders.newest() > key.1 => Some(None),
            Wait::Broken => Some(None),
            Wait::Done(value) => Some(Some(value)),
            Wait::NotYet => None,
        })
        .await
    }

    /// All connect to one another.
    async fn connect(&mut self, key: &RingKey) -> Option<()> {
        let world = &self.options.world;
        let connected = self.wait(key, || world.connected(key, &self.options.node));
        match tokio::time::timeout(CONNECT, connected).await {
            Ok(connected) => connected,
            Err(_) => {
                world.count("deadline: connect");
                self.left = Some(v1::RingLoss {
                    generation: Some(key.1),
                    kind: v1::RingLossKind::Connect.into(),
                    peers: world.unreached(key, &self.options.node),
                    how: "no connection".to_owned(),
                });
                None
            }
        }
    }

    /// All leave with the source's state, and know that they do.
    async fn agree(&mut self, key: &RingKey, reply: &v1::JoinReply) -> Option<()> {
        let world = self.options.world.clone();
        let mut applied = None;
        if reply.apply_held
            && let Some(held) = &mut self.held
        {
            applied = world.apply(held);
        }
        let stored = reply.source() == v1::StateSource::Stored;
        if reply.rank == reply.source_rank {
            self.sleep(10, 200).await;
            let mut held = match self.held {
                _ if stored => Held::new(world.load(&key.0, went_back(reply))),
                Some(held) => held,
                None => {
                    world.violate("a ring goes on from one state", format!("{key:?}: no source"));
                    return None;
                }
            };
            held.gradients = None;
            self.held = Some(held);
            world.begin(key, held.at, stored);
        }
        let at = self.wait(key, || world.begun(key)).await?;
        let receives = stored || reply.receivers.contains(&reply.rank);
        if receives && reply.rank != reply.source_rank {
            // What it held is overwritten.
            self.held = None;
            self.sleep(10, 200).await;
            self.held = Some(Held::new(at));
        }
        self.compare(key, reply, at, applied).await
    }

    async fn compare(
        &mut self,
        key: &RingKey,
        reply: &v1::JoinReply,
        source: At,
        applied: Option<super::history::Gradients>,
    ) -> Option<()> {
        let world = self.options.world.clone();
        let mine = self.held.map(|held| held.at);
        if mine.map(|at| at.step) != Some(source.step) {
            let what =
                format!("{key:?}: rank {} is at {mine:?}, the source at {source:?}", reply.rank);
            world.violate("a ring goes on from one state", what);
        }
        world.post(key, reply.rank, mine?.digest, applied);
        self.wait(key, || world.agreed(key)).await?;
        if let Some(held) = &mut self.held {
            held.agreed = Some(key.1);
            held.gradients = None;
        }
        Some(())
    }

    // ---- Saving and ending

    fn save(&mut self, key: &RingKey, reply: &v1::JoinReply, at: At) {
        let upload = Upload {
            world: self.options.world.clone(),
            client: self.client.clone(),
            random: Arc::clone(&self.random),
            key: key.clone(),
            place: reply.rank,
            at,
        };
        self.saving.spawn_local(upload.run());
    }

    /// All were asked to stop, have saved, and end together.
    async fn finish_saving(&mut self, key: &RingKey, reply: &v1::JoinReply) -> Ended {
        self.show(key.1, v1::Phase::Save);
        if let Ended::Regroup = self.idle_saving(key).await {
            return Ended::Regroup;
        }
        let world = &self.options.world;
        world.reach_the_end(key, reply.rank);
        match self.wait(key, || world.ring_finished(key)).await {
            Some(()) => Ended::Exit(Exit::with(0, "stopped")),
            None => Ended::Regroup,
        }
    }

    async fn finish(&mut self, key: &RingKey, reply: &v1::JoinReply) -> Ended {
        self.show(key.1, v1::Phase::Done);
        let world = self.options.world.clone();
        if reply.rank > 0 {
            return match self.wait(key, || world.ring_finished(key)).await {
                Some(()) => Ended::Exit(Exit::with(0, "done")),
                None => Ended::Regroup,
            };
        }
        if let Ended::Regroup = self.idle_saving(key).await {
            return Ended::Regroup;
        }
        let request = v1::FinishRequest {
            job_id: key.0.clone(),
            generation: Some(key.1),
            summary_json: "{\"finished\":true}".to_owned(),
        };
        let call = insist_for(&world, key, &self.random, || {
            let (mut client, request) = (self.client.clone(), request.clone());
            async move { client.finish(request).await }
        });
        match call.await {
            Ok(_) => {
                world.acknowledged_finish(&key.0, key.1);
                world.finish_ring(key);
                Ended::Exit(Exit::with(0, "done"))
            }
            Err(status) if status.code() == Code::Aborted => Ended::Regroup,
            Err(_) => Ended::Exit(Exit::with(1, "the coordinator refuses the summary")),
        }
    }

    /// Waits for the uploads that are under way.
    async fn idle_saving(&mut self, key: &RingKey) -> Ended {
        loop {
            while self.saving.try_join_next().is_some() {}
            if self.saving.is_empty() {
                return Ended::Exit(Exit::with(0, "saved"));
            }
            let world = &self.options.world;
            let broken = matches!(world.begun(key), Wait::Broken);
            if broken || self.options.orders.newest() > key.1 {
                return Ended::Regroup;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// What a rank that reads what is stored is told of a roll-back.
fn went_back(reply: &v1::JoinReply) -> Option<WentBack> {
    let up_to = reply.gives_up.filter(|_| !reply.rolled_back_to.is_empty())?;
    Some(WentBack { to: parse_url(&reply.rolled_back_to), up_to })
}
