//! A simulated agent: the real session stream, heartbeats on time, ranks that only pretend to train.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ringmaster_proto::limits;
use ringmaster_proto::v1;
use ringmaster_proto::v1::agent_message::Message as Report;
use ringmaster_proto::v1::coordinator_message::Message as Order;
use ringmaster_proto::v1::fleet_client::FleetClient;
use ringmaster_proto::v1::ranks_client::RanksClient;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use super::recorder::Recorder;

/// Messages that may wait for the network.
const OUTBOX: usize = 8;
/// Steps by which other ranks outlast rank 0, which hands in the summary.
const LINGER: u64 = 2;

/// What all agents share.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) fleet_url: String,
    pub(crate) slots: u32,
    /// Steps after which a job with this id ends, if it does.
    pub(crate) steps: fn(&str) -> Option<u64>,
    pub(crate) recorder: Arc<Recorder>,
}

/// One agent with its ranks.
pub(crate) struct Agent {
    cluster: Arc<Cluster>,
    channel: Channel,
    outbox: mpsc::Sender<v1::AgentMessage>,
    orders: Streaming<v1::CoordinatorMessage>,
    interval: Duration,
    /// Staggers the heartbeats of different agents over the interval.
    offset: f64,
    sequence: u64,
    /// Heartbeats that count and have no answer yet: number, and when it was due.
    unanswered: VecDeque<(u64, Instant)>,
    ranks: BTreeMap<(String, u32), Rank>,
    news: (mpsc::UnboundedSender<News>, mpsc::UnboundedReceiver<News>),
}

struct Rank {
    generation: v1::Generation,
    pid: u32,
    step: u64,
    /// It was told the plan of its ring.
    formed: bool,
    /// Its Finish is on its way.
    finishing: bool,
}

/// What a rank's call came to.
enum News {
    Joined(String, u32, v1::Generation),
    Finished(String, u32),
}

/// Why an agent could not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot connect ({0:?})")]
    Connect(#[from] tonic::transport::Error),
    #[error("the session was refused: {}", .0.message())]
    Session(#[from] Box<Status>),
    #[error("the coordinator did not answer the registration")]
    NoTerms,
}

impl Agent {
    /// Connects and registers.
    pub(crate) async fn register(index: u32, cluster: &Arc<Cluster>) -> Result<Self, Error> {
        let channel = Endpoint::from_shared(cluster.fleet_url.clone())?
            .connect_timeout(limits::CONNECT_TIMEOUT)
            .http2_keep_alive_interval(limits::KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(limits::KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true)
            .connect()
            .await?;
        let (outbox, outbound) = mpsc::channel(OUTBOX);
        let register = v1::Register {
            node: format!("node-{index:05}"),
            slots: cluster.slots,
            accelerator: "cpu".to_owned(),
            address: "127.0.0.1".to_owned(),
            pid: index + 1,
            cpus: cluster.slots,
            ..Default::default()
        };
        let first = v1::AgentMessage { message: Some(Report::Register(register)) };
        outbox.try_send(first).expect("a new channel has room");
        let mut client = FleetClient::new(channel.clone());
        let answer = client.session(ReceiverStream::new(outbound)).await;
        let mut orders = answer.map_err(Box::new)?.into_inner();
        let terms = match orders.message().await.map_err(Box::new)?.and_then(|order| order.message)
        {
            Some(Order::Registered(terms)) => terms,
            _ => return Err(Error::NoTerms),
        };
        cluster.recorder.register();
        Ok(Self {
            cluster: Arc::clone(cluster),
            channel,
            outbox,
            orders,
            interval: Duration::from_millis(terms.heartbeat_interval_ms.into()),
            // The golden ratio spreads any number of agents evenly.
            offset: (f64::from(index) * 0.618_033_988_749_895).fract(),
            sequence: 0,
            unanswered: VecDeque::new(),
            ranks: BTreeMap::new(),
            news: mpsc::unbounded_channel(),
        })
    }

    /// Serves until the session ends, which counts as trouble.
    pub(crate) async fn run(mut self) {
        let first = Instant::now() + self.interval.mul_f64(self.offset);
        // One that was missed is sent late and counts from when it was due.
        let mut ticks = tokio::time::interval_at(first, self.interval);
        loop {
            let alive = tokio::select! {
                order = self.orders.message() => match order {
                    Ok(Some(order)) => self.obey(order).await,
                    Ok(None) => self.trouble("a session was closed"),
                    Err(status) => self.trouble(&format!("a session broke: {}", status.message())),
                },
                due = ticks.tick() => self.beat(due).await,
                Some(news) = self.news.1.recv() => self.take(news).await,
            };
            if !alive {
                return;
            }
        }
    }

    fn trouble(&self, what: &str) -> bool {
        self.cluster.recorder.lost(what);
        false
    }

    async fn send(&self, report: Report) -> bool {
        self.outbox.send(v1::AgentMessage { message: Some(report) }).await.is_ok()
    }

    // ---- Orders

    async fn obey(&mut self, order: v1::CoordinatorMessage) -> bool {
        match order.message {
            Some(Order::HeartbeatAck(ack)) => self.answered(ack.sequence),
            Some(Order::StartRank(start)) => self.start(start),
            Some(Order::Regenerate(order)) => {
                self.cluster.recorder.regenerate();
                let generation = order.generation.unwrap_or_default();
                if let Some(rank) = self.ranks.get_mut(&(order.job_id.clone(), order.rank)) {
                    rank.generation = generation;
                    rank.formed = false;
                    self.join(order.job_id, order.rank, generation);
                }
            }
            Some(Order::StopRank(stop)) => {
                return self.exit(stop.job_id, stop.rank, Some(9)).await;
            }
            // It has no address at which others could dial it, so it is asked for none.
            Some(Order::ExitAck(_) | Order::Registered(_) | Order::Dial(_)) | None => {}
        }
        true
    }

    fn answered(&mut self, sequence: u64) {
        while let Some((oldest, due)) = self.unanswered.front().copied() {
            if oldest > sequence {
                return;
            }
            self.unanswered.pop_front();
            if oldest == sequence {
                self.cluster.recorder.round_trip(due.elapsed());
            }
        }
    }

    fn start(&mut self, start: v1::StartRank) {
        self.cluster.recorder.started(&start.job_id);
        let generation = start.generation.unwrap_or_default();
        let rank =
            Rank { generation, pid: 1 + start.rank, step: 0, formed: false, finishing: false };
        self.ranks.insert((start.job_id.clone(), start.rank), rank);
        self.join(start.job_id, start.rank, generation);
    }

    // ---- A rank's calls

    fn join(&self, job_id: String, rank: u32, generation: v1::Generation) {
        let mut client = RanksClient::new(self.channel.clone());
        let (news, cluster) = (self.news.0.clone(), Arc::clone(&self.cluster));
        tokio::spawn(async move {
            let request = v1::JoinRequest {
                job_id: job_id.clone(),
                generation: Some(generation),
                rank,
                data_address: format!("127.0.0.1:{}", 9000 + rank),
                numeric_plan: "{}".to_owned(),
                ..Default::default()
            };
            match client.join(request).await {
                Ok(_) => {
                    cluster.recorder.joined(&job_id);
                    // Received by nobody once the agent has ended.
                    let _ = news.send(News::Joined(job_id, rank, generation));
                }
                Err(status) => cluster.recorder.lost(&format!("join: {}", status.code())),
            }
        });
    }

    fn finish(&self, job_id: String, rank: u32, generation: v1::Generation) {
        let mut client = RanksClient::new(self.channel.clone());
        let (news, cluster) = (self.news.0.clone(), Arc::clone(&self.cluster));
        tokio::spawn(async move {
            let request = v1::FinishRequest {
                job_id: job_id.clone(),
                generation: Some(generation),
                summary_json: "{}".to_owned(),
            };
            match client.finish(request).await {
                Ok(_) => {
                    // As above.
                    let _ = news.send(News::Finished(job_id, rank));
                }
                Err(status) => cluster.recorder.lost(&format!("finish: {}", status.code())),
            }
        });
    }

    async fn take(&mut self, news: News) -> bool {
        match news {
            News::Joined(job_id, rank, generation) => {
                let rank = self.ranks.get_mut(&(job_id, rank));
                if let Some(rank) = rank.filter(|rank| rank.generation == generation) {
                    rank.formed = true;
                }
                true
            }
            News::Finished(job_id, rank) => self.exit(job_id, rank, None).await,
        }
    }

    // ---- Reports

    async fn beat(&mut self, due: Instant) -> bool {
        let ended = self.step();
        for (job_id, rank) in ended {
            if rank > 0 {
                if !self.exit(job_id, rank, None).await {
                    return false;
                }
            } else if let Some(state) = self.ranks.get_mut(&(job_id.clone(), rank)) {
                state.finishing = true;
                let generation = state.generation;
                self.finish(job_id, rank, generation);
            }
        }
        self.sequence += 1;
        let ranks = self.ranks.iter().map(|((job_id, rank), state)| state.status(job_id, *rank));
        let heartbeat = v1::Heartbeat { ranks: ranks.collect(), sequence: self.sequence };
        if self.cluster.recorder.beat() {
            self.unanswered.push_back((self.sequence, due));
        }
        self.send(Report::Heartbeat(heartbeat)).await
    }

    /// One step for every rank that trains; returns those that have reached their end.
    fn step(&mut self) -> Vec<(String, u32)> {
        let mut ended = Vec::new();
        for ((job_id, rank), state) in &mut self.ranks {
            if !state.formed || state.finishing {
                continue;
            }
            state.step += 1;
            let linger = if *rank == 0 { 0 } else { LINGER };
            if (self.cluster.steps)(job_id).is_some_and(|steps| state.step >= steps + linger) {
                ended.push((job_id.clone(), *rank));
            }
        }
        ended
    }

    async fn exit(&mut self, job_id: String, rank: u32, signal: Option<i32>) -> bool {
        let Some(state) = self.ranks.remove(&(job_id.clone(), rank)) else { return true };
        let exited = v1::RankExited {
            exit_id: format!("{job_id}/{rank}/{}", state.generation),
            job_id,
            generation: Some(state.generation),
            rank,
            code: signal.is_none().then_some(0),
            signal,
            last_step: state.step,
            ..Default::default()
        };
        self.send(Report::RankExited(exited)).await
    }
}

impl Rank {
    fn status(&self, job_id: &str, rank: u32) -> v1::RankStatus {
        let metrics = || v1::StepMetrics {
            step: self.step,
            total_steps: 1_000_000,
            samples: self.step * 4096,
            loss: 1.0,
            lr: 1e-3,
            generation: Some(self.generation),
            ..Default::default()
        };
        let phase = if self.formed { v1::Phase::Compute } else { v1::Phase::Join };
        v1::RankStatus {
            job_id: job_id.to_owned(),
            generation: Some(self.generation),
            rank,
            pid: self.pid,
            step: self.step,
            phase: phase.into(),
            collective_sequence: self.step * 4,
            metrics: (rank == 0 && self.step > 0).then(metrics),
            progress: self.step,
        }
    }
}
