//! A rank: joins, steps with its peers, saves, finishes, and goes on in another generation after a
//! fault, as the real one does; what it trains is a count of steps.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use ringmaster_proto::v1;
use ringmaster_proto::v1::Generation;
use ringmaster_proto::v1::ranks_client::RanksClient;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::net::{self, FLEET};
use super::ring::{RingKey, Wait};
use super::world::{World, short};

const POLL: Duration = Duration::from_millis(10);
/// After a fault without orders a rank joins again of itself.
const REGROUP: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// How often a request is sent again although it was answered.
const DUPLICATES: f64 = 0.1;

/// What a rank is started with.
pub(crate) struct Options {
    pub(crate) world: World,
    pub(crate) node: String,
    pub(crate) process: u64,
    pub(crate) start: v1::StartRank,
    pub(crate) orders: Arc<Orders>,
    pub(crate) seed: u64,
}

/// How a rank ended.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) reason: &'static str,
}

impl Exit {
    fn with(code: i32, reason: &'static str) -> Self {
        Self { code: Some(code), signal: None, reason }
    }
}

/// What the agent tells its rank, and the rank its agent.
pub(crate) struct Orders(Mutex<Line>);

struct Line {
    newest: Generation,
    stop: bool,
    status: v1::RankStatus,
}

impl Orders {
    pub(crate) fn new(generation: Generation) -> Self {
        let status = v1::RankStatus {
            generation: Some(generation),
            phase: v1::Phase::Start.into(),
            ..Default::default()
        };
        Self(Mutex::new(Line { newest: generation, stop: false, status }))
    }

    pub(crate) fn regenerate(&self, generation: Generation) {
        let mut line = self.0.lock().unwrap();
        line.newest = line.newest.max(generation);
    }

    pub(crate) fn stop(&self) {
        self.0.lock().unwrap().stop = true;
    }

    pub(crate) fn status(&self) -> v1::RankStatus {
        self.0.lock().unwrap().status.clone()
    }

    fn newest(&self) -> Generation {
        self.0.lock().unwrap().newest
    }

    fn stops(&self) -> bool {
        self.0.lock().unwrap().stop
    }

    fn show(&self, generation: Generation, phase: v1::Phase, step: u64) {
        let mut line = self.0.lock().unwrap();
        line.status.generation = Some(generation);
        line.status.phase = phase.into();
        line.status.step = step;
        line.status.progress += 1;
    }
}

/// Why an attempt ended.
enum Ended {
    /// The ring broke, or its generation is over.
    Regroup,
    Exit(Exit),
}

/// Steps applied, and whether the gradients of the next one are in hand.
#[derive(Clone, Copy)]
struct Held {
    applied: u64,
    entered_ready: bool,
}

struct Rank {
    options: Options,
    client: RanksClient<Channel>,
    random: Arc<Mutex<StdRng>>,
    /// None until it has a state.
    held: Option<Held>,
    total: u64,
    every: u64,
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
        total: job["schedule"]["total_steps"].as_u64().unwrap(),
        every: job["checkpoint"]["every_steps"].as_u64().unwrap(),
        saving: JoinSet::new(),
        attempts: 0,
        options,
    };
    rank.sleep(20, 400).await;
    let mut generation = rank.options.start.generation.unwrap_or_default();
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
        let step = self.held.map_or(0, |held| held.applied);
        self.options.orders.show(generation, phase, step);
    }

    // ---- One generation

    async fn attempt(&mut self, generation: Generation) -> Ended {
        self.show(generation, v1::Phase::Join);
        let reply = match self.join(generation).await {
            Ok(Some(reply)) => reply,
            Ok(None) => return Ended::Regroup,
            Err(status) if status.code() == Code::Aborted => return Ended::Regroup,
            Err(_) => return Ended::Exit(Exit::with(1, "the coordinator refuses the call")),
        };
        if self.options.orders.newest() > generation {
            return Ended::Regroup;
        }
        let key = (self.options.start.job_id.clone(), generation);
        let Options { world, node, process, .. } = &self.options;
        world.enter(&key, reply.rank, reply.world_size, *process, node);
        let ended = self.in_ring(&key, &reply).await;
        if matches!(ended, Ended::Regroup) {
            self.options.world.break_ring(&key);
            self.saving.abort_all();
        }
        ended
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
            held: self.held.map(|held| v1::HeldState {
                applied_step: held.applied,
                digest: held.applied.wrapping_mul(0x9e37_79b9_7f4a_7c15),
                entered_ready: held.entered_ready,
            }),
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
        if hint < known {
            let what = format!("{} is told {hint:?}, {known:?} was published", start.job_id);
            world.violate("an acknowledged checkpoint is never forgotten", what);
        }
        Ok(Some(reply))
    }

    async fn in_ring(&mut self, key: &RingKey, reply: &v1::JoinReply) -> Ended {
        self.show(key.1, v1::Phase::Load);
        let world = self.options.world.clone();
        if self.agree(key, reply).await.is_none() {
            return Ended::Regroup;
        }
        if reply.rank == 0 {
            let step = self.held.map_or(0, |held| held.applied);
            world.log(format!(
                "{} {}: {} ranks from {step}",
                short(&key.0),
                key.1,
                reply.world_size
            ));
        }
        while let Some(Held { applied, .. }) = self.held.filter(|held| held.applied < self.total) {
            self.show(key.1, v1::Phase::Compute);
            self.sleep(20, 120).await;
            let step = applied + 1;
            self.held = Some(Held { applied, entered_ready: true });
            world.ready(key, reply.rank, step, self.options.orders.stops());
            self.show(key.1, v1::Phase::Collective);
            if self.wait(key, || world.passed(key, step)).await.is_none() {
                return Ended::Regroup;
            }
            self.held = Some(Held { applied: step, entered_ready: false });
            world.stepped(key);
            let stops = world.stops_after(key) == Some(step);
            if (stops || step % self.every == 0) && world.saves(key, step) {
                self.save(key, reply, step);
            }
            if stops {
                return self.finish_saving(key, "stopped").await;
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

    /// All leave with the source's state.
    async fn agree(&mut self, key: &RingKey, reply: &v1::JoinReply) -> Option<()> {
        let world = self.options.world.clone();
        if reply.apply_held
            && let Some(held) = self.held.filter(|held| held.entered_ready)
        {
            self.held = Some(Held { applied: held.applied + 1, entered_ready: false });
        }
        let stored = reply.source() == v1::StateSource::Stored;
        if reply.rank == reply.source_rank {
            self.sleep(10, 200).await;
            let applied = match self.held {
                _ if stored => world.newest_checkpoint(&key.0),
                Some(held) => held.applied,
                None => {
                    world.violate("a ring goes on from one state", format!("{key:?}: no source"));
                    return None;
                }
            };
            self.held = Some(Held { applied, entered_ready: false });
            world.begin(key, applied);
        }
        let step = self.wait(key, || world.begun(key)).await?;
        if stored || reply.receivers.contains(&reply.rank) {
            self.sleep(10, 200).await;
            self.held = Some(Held { applied: step, entered_ready: false });
        }
        let mine = self.held.map(|held| held.applied);
        if mine != Some(step) {
            let what = format!("{key:?}: rank {} is at {mine:?}, the source at {step}", reply.rank);
            world.violate("a ring goes on from one state", what);
        }
        Some(())
    }

    // ---- Saving and ending

    /// Uploads this rank's part; rank 0 commits and publishes.
    fn save(&mut self, key: &RingKey, reply: &v1::JoinReply, step: u64) {
        let upload = Upload {
            world: self.options.world.clone(),
            client: self.client.clone(),
            random: Arc::clone(&self.random),
            key: key.clone(),
            place: reply.rank,
            step,
        };
        self.saving.spawn_local(async move {
            let done = upload.run().await;
            if upload.place == 0 {
                upload.world.saved(&upload.key);
            }
            if let Err(status) = done
                && !matches!(status.code(), Code::Aborted | Code::FailedPrecondition)
            {
                let what = format!("{:?} step {step}: {status}", upload.key);
                upload.world.violate("a checkpoint is refused for a known reason only", what);
            }
        });
    }

    async fn finish_saving(&mut self, key: &RingKey, how: &'static str) -> Ended {
        self.show(key.1, v1::Phase::Save);
        if let Ended::Regroup = self.idle_saving(key).await {
            return Ended::Regroup;
        }
        self.options.world.finish_ring(key);
        Ended::Exit(Exit::with(0, how))
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

/// One rank's part of one checkpoint.
struct Upload {
    world: World,
    client: RanksClient<Channel>,
    random: Arc<Mutex<StdRng>>,
    key: RingKey,
    place: u32,
    step: u64,
}

impl Upload {
    async fn run(&self) -> Result<(), Status> {
        let millis = self.random.lock().unwrap().random_range(20..500);
        tokio::time::sleep(Duration::from_millis(millis)).await;
        let (job_id, generation) = (self.key.0.clone(), Some(self.key.1));
        let shard = v1::ReportShardRequest {
            job_id: job_id.clone(),
            generation,
            rank: self.place,
            step: self.step,
            objects: vec![v1::StoredObject {
                name: format!("shard-{}", self.place),
                size: 1,
                blake3: vec!["00".to_owned()],
                ..v1::StoredObject::default()
            }],
            failure: String::new(),
        };
        insist_for(&self.world, &self.key, &self.random, || {
            let (mut client, request) = (self.client.clone(), shard.clone());
            async move { client.report_shard(request).await }
        })
        .await?;
        if self.place > 0 {
            return Ok(());
        }
        let commit = v1::CommitCheckpointRequest {
            job_id: job_id.clone(),
            generation,
            step: self.step,
            digest: 1,
        };
        insist_for(&self.world, &self.key, &self.random, || {
            let (mut client, request) = (self.client.clone(), commit.clone());
            async move { client.commit_checkpoint(request).await }
        })
        .await?;
        let url = self.world.put_checkpoint(&job_id, self.key.1, self.step);
        let published = v1::CheckpointPublishedRequest {
            job_id: job_id.clone(),
            generation,
            step: self.step,
            url,
        };
        insist_for(&self.world, &self.key, &self.random, || {
            let (mut client, request) = (self.client.clone(), published.clone());
            async move { client.checkpoint_published(request).await }
        })
        .await?;
        self.world.acknowledged_checkpoint(&job_id, self.key.1, self.step);
        Ok(())
    }
}

/// As [`insist`], for a call that speaks for a generation. Sent after a newer one was durable, it
/// must be refused, whoever sends it and why.
async fn insist_for<T, F>(
    world: &World,
    key: &RingKey,
    random: &Mutex<StdRng>,
    mut send: impl FnMut() -> F,
) -> Result<T, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let fenced = || {
        let (superseded, reply) = (world.is_superseded(key), send());
        async move {
            let reply = reply.await;
            if superseded && reply.is_ok() {
                let what = format!("{} {}: {}", key.0, key.1, std::any::type_name::<T>());
                world.violate("a stale generation is refused", what);
            }
            reply
        }
    };
    insist(random, fenced).await
}

/// Sends a call until it is answered, and now and then once more.
pub(crate) async fn insist<T, F>(
    random: &Mutex<StdRng>,
    mut send: impl FnMut() -> F,
) -> Result<T, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let mut pause = FIRST_PAUSE;
    loop {
        match send().await {
            Ok(reply) => {
                if random.lock().unwrap().random_bool(DUPLICATES) {
                    let _ = tokio::time::timeout(REGROUP, send()).await;
                }
                return Ok(reply.into_inner());
            }
            Err(status) if !is_transient(&status) => return Err(status),
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// True when the network, not the coordinator's judgement, ended a call.
fn is_transient(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
        || matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded)
}

/// Generation and step of a checkpoint's URL; nothing for none.
fn parse_url(url: &str) -> (Generation, u64) {
    let parse = || {
        let (_, name) = url.rsplit_once("/step-")?;
        let (step, generation) = name.split_once('.')?;
        Some((generation.parse().ok()?, step.parse().ok()?))
    };
    parse().unwrap_or_default()
}
