//! The stream between agent and coordinator: registration, heartbeats, assignments, exits.
//!
//! A broken stream is opened again for ever; ranks go on meanwhile. A new stream starts with a
//! registration that names what runs here, so a coordinator that restarted finds its ranks again.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use ringmaster_proto::v1::agent_message::Message as Report;
use ringmaster_proto::v1::coordinator_message::Message as Order;
use ringmaster_proto::v1::fleet_client::FleetClient;
use ringmaster_proto::v1::{
    self, AgentMessage, CoordinatorMessage, Dial, DialPeer, Dialled, Register, Registered,
    SlotsOut, Unreached,
};
use ringmaster_proto::{address, limits};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use super::dial;
use super::ranks::Table;
use super::worker::{Probes, Worker};

/// How long the coordinator may take to open the stream and to answer a registration.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages that may wait for the network. More means that nothing gets through any more.
const OUTBOX: usize = 64;
/// Heartbeats after which an exit without acknowledgement is sent again.
const RESEND_HEARTBEATS: u32 = 2;
/// A dozen signs of life of a rank.
const LEAST_SILENCE: Duration = Duration::from_secs(3);
/// Pauses between attempts to open a session; they begin anew once one was registered.
const PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(100))
    .with_max_delay(LAST_PAUSE)
    .without_max_times();
const LAST_PAUSE: Duration = Duration::from_secs(2);
/// Grace of ranks that are stopped because the coordinator stays away.
const ORPHAN_GRACE: Duration = Duration::from_secs(60);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
pub enum Error {
    #[error("cannot connect to the coordinator at {url}")]
    Connect {
        url: String,
        #[source]
        source: tonic::transport::Error,
    },
    #[error("the coordinator did not answer the registration within {} s", ANSWER_TIMEOUT.as_secs())]
    NoAnswer,
    #[error("the stream broke: {}", .0.message())]
    Broken(#[source] Box<Status>),
    #[error("the coordinator closed the stream")]
    Closed,
    #[error("the coordinator reads nothing any more: {OUTBOX} messages wait")]
    Stalled,
    #[error("the coordinator refuses this agent: {}", .0.message())]
    Refused(#[source] Box<Status>),
    #[error("the coordinator has another agent of this node's name: {}", .0.message())]
    Taken(#[source] Box<Status>),
    #[error(
        "what answers at {url} is no coordinator for agents: it does not speak gRPC without TLS ({why}); \
         name the address that `ringmaster coordinator --fleet-listen` has (port 7071 unless it is told \
         otherwise)"
    )]
    Foreign { url: String, why: String },
    #[error(
        "what answers at {url} has no service for agents, as a coordinator's listener for commands; name \
         the address that `ringmaster coordinator --fleet-listen` has (port 7071 unless it is told \
         otherwise)"
    )]
    NoFleet { url: String },
}

impl Error {
    /// What became of a session's first call. Who never answered one may be no coordinator.
    fn at_first(status: Status, url: String) -> Self {
        let is_answer = status.source().is_none();
        match status.code() {
            Code::Unimplemented if is_answer && status.message().is_empty() => {
                Self::NoFleet { url }
            }
            _ if address::is_foreign(&status) => {
                Self::Foreign { url, why: address::innermost(&status) }
            }
            _ => Self::from(status),
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let refused = matches!(
            status.code(),
            Code::InvalidArgument
                | Code::FailedPrecondition
                | Code::PermissionDenied
                | Code::Unauthenticated
                | Code::Unimplemented
        );
        // Only a status without a source is the coordinator's own word.
        if refused && status.source().is_none() {
            return Self::Refused(Box::new(status));
        }
        Self::Broken(Box::new(status))
    }
}

/// The way to the coordinator.
#[derive(Debug, Clone)]
pub enum Line {
    /// A connection of its own for every session.
    Endpoint(Box<Endpoint>),
    /// What connects by itself, such as a simulated network.
    Channel(Channel),
}

impl Line {
    async fn connect(&self) -> Result<Channel, Error> {
        match self {
            Self::Endpoint(endpoint) => {
                let connected = endpoint.connect().await;
                connected.map_err(|source| Error::Connect { url: self.url(), source })
            }
            Self::Channel(channel) => Ok(channel.clone()),
        }
    }

    /// Returns the pauses between attempts. Agents that lost one coordinator do not come back all at once;
    /// a simulation repeats itself.
    fn pauses(&self) -> ExponentialBackoff {
        match self {
            Self::Endpoint(_) => PAUSES.with_jitter().build(),
            Self::Channel(_) => PAUSES.build(),
        }
    }

    fn url(&self) -> String {
        match self {
            Self::Endpoint(endpoint) => endpoint.uri().to_string(),
            Self::Channel(_) => "the coordinator".to_owned(),
        }
    }
}

/// Says so where the coordinator has another agent of this name. That may be this one's predecessor, whose
/// session is not closed yet: it is no reason to end.
fn taken(error: Error) -> Error {
    match error {
        Error::Broken(status)
            if status.code() == Code::AlreadyExists && status.source().is_none() =>
        {
            Error::Taken(status)
        }
        error => error,
    }
}

/// Whom a simulated node does not reach.
pub trait Reach: std::fmt::Debug + Send + Sync {
    /// Returns why it does not reach another node, in a sentence; none when it does.
    fn misses(&self, peer: &DialPeer) -> Option<String>;
}

/// Keeps one session open.
#[derive(Debug)]
pub struct Service {
    pub(super) line: Line,
    pub(super) table: Arc<Table>,
    /// None where ranks are no processes.
    pub(super) worker: Option<Arc<Worker>>,
    /// What a registration always says; worker, ranks and highest generation are filled in each time.
    pub(super) identity: Register,
    /// After this long without a coordinator, ranks are asked to checkpoint and stop.
    pub(super) orphan_timeout: Duration,
    /// After this long a silent rank is killed; none: after the coordinator's lease.
    pub(super) silence: Option<Duration>,
    /// Which other nodes a simulated one does not reach; none: it reaches all.
    pub(super) reach: Option<Arc<dyn Reach>>,
}

impl Service {
    /// A session for ranks that are no processes: a simulation's, or a load generator's. `identity` is what
    /// a registration says beside the ranks that run.
    pub fn without_worker(line: Line, table: Arc<Table>, identity: Register) -> Self {
        let orphan_timeout = Duration::MAX;
        Self { line, table, worker: None, identity, orphan_timeout, silence: None, reach: None }
    }

    /// The same on a network that does not connect everybody.
    #[must_use]
    pub fn with_reach(self, reach: Arc<dyn Reach>) -> Self {
        Self { reach: Some(reach), ..self }
    }

    /// Runs until the coordinator refuses this agent's first registration.
    pub async fn run(self) -> Error {
        let mut ever_registered = false;
        let mut lost_at = Some(Instant::now());
        let mut pauses = self.line.pauses();
        let mut was_taken = false;
        loop {
            let mut registered = false;
            let error = match self.open(&mut registered, &mut lost_at).await {
                Ok(never) => match never {},
                Err(error) => taken(error),
            };
            if registered {
                lost_at = Some(Instant::now());
                pauses = self.line.pauses();
            }
            ever_registered |= registered;
            if matches!(error, Error::Refused(_) | Error::NoFleet { .. }) && !ever_registered {
                return error;
            }
            let pause = pauses.next().unwrap_or(LAST_PAUSE);
            let is_taken = matches!(error, Error::Taken(_));
            if is_taken {
                // Their places were given up before the name was: nobody will tell them what to do.
                self.table.stop_all(Duration::ZERO, "another agent has this node's name");
            }
            // The other one may be connected for days.
            if !(is_taken && was_taken) {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    pause_ms = pause.as_millis() as u64,
                    "no session with the coordinator, trying again"
                );
            }
            was_taken = is_taken;
            tokio::time::sleep(pause).await;
            if lost_at.take_if(|at| at.elapsed() >= self.orphan_timeout).is_some() {
                self.table.stop_all(ORPHAN_GRACE, "the coordinator has been away for too long");
            }
        }
    }

    /// Opens a session and serves it to its end.
    async fn open(
        &self,
        registered: &mut bool,
        lost_at: &mut Option<Instant>,
    ) -> Result<std::convert::Infallible, Error> {
        let channel = self.line.connect().await?;
        let mut client = FleetClient::new(channel)
            .max_decoding_message_size(limits::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(limits::MAX_MESSAGE_BYTES);
        let (sender, receiver) = mpsc::channel(OUTBOX);
        let outbox = Outbox(sender);
        let (running, highest) = self.table.registration();
        let told = self.to_tell();
        outbox.send(Report::Register(Register {
            running,
            highest_generation: Some(highest),
            worker: told.worker.clone(),
            slots_out: Some(told.slots_out.clone()),
            ..self.identity.clone()
        }))?;
        let answer = client.session(ReceiverStream::new(receiver));
        let answered = timeout(ANSWER_TIMEOUT, answer).await.map_err(|_| Error::NoAnswer)?;
        let unanswered = |status| Error::at_first(status, self.line.url());
        let mut orders = answered.map_err(unanswered)?.into_inner();
        let terms = self.terms(&outbox, &mut orders).await?;
        *registered = true;
        *lost_at = None;
        self.table.set_silence(self.silence.unwrap_or_else(|| silence_within(&terms)));
        tracing::info!(node = %self.identity.node, heartbeat_ms = terms.heartbeat_interval_ms, lease_ms = terms.lease_ms, "registered with the coordinator");
        self.serve(&outbox, &mut orders, &terms, told).await
    }

    /// Waits for the answer to the registration.
    async fn terms(
        &self,
        outbox: &Outbox,
        orders: &mut Streaming<CoordinatorMessage>,
    ) -> Result<Registered, Error> {
        let wait = async {
            loop {
                match next(orders).await? {
                    Some(Order::Registered(terms)) => return Ok(terms),
                    // Nothing sent before it is lost.
                    Some(order) => self.obey(order, outbox),
                    None => {}
                }
            }
        };
        timeout(ANSWER_TIMEOUT, wait).await.map_err(|_| Error::NoAnswer)?
    }

    async fn serve(
        &self,
        outbox: &Outbox,
        orders: &mut Streaming<CoordinatorMessage>,
        terms: &Registered,
        mut told: Told,
    ) -> Result<std::convert::Infallible, Error> {
        let mut probes = self.worker.as_ref().map(|worker| worker.probes());
        let interval = Duration::from_millis(terms.heartbeat_interval_ms.max(10).into());
        // Who runs ranks says so twice as often: that it is not heard of tells more then, and sooner.
        let mut ticks = tokio::time::interval(interval / 2);
        let mut is_between = true;
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut announced = false;
        loop {
            // In a fixed order, so that a simulation repeats itself: rare things first, none can be starved.
            tokio::select! {
                biased;
                _ = ticks.tick() => {
                    is_between = !is_between;
                    if !is_between || self.table.has_ranks() {
                        outbox.send(Report::Heartbeat(self.table.heartbeat()))?;
                    }
                }
                () = next_probe(&mut probes) => {}
                () = self.table.news.notified() => if self.table.take_urgent() {
                    outbox.send(Report::Heartbeat(self.table.heartbeat()))?;
                },
                order = next(orders) => if let Some(order) = order? {
                    self.obey(order, outbox);
                },
            }
            if !announced && let Some(leaving) = self.table.leaving() {
                announced = true;
                outbox.send(Report::Leaving(leaving))?;
            }
            // Looked at before the news, and told after them: the coordinator knows then why a rank could not
            // be started, and which slot takes no other.
            let exits = self.table.exits.due(Instant::now(), interval * RESEND_HEARTBEATS);
            let news = self.to_tell();
            if told.worker != news.worker
                && let Some(worker) = &news.worker
            {
                outbox.send(Report::Worker(worker.clone()))?;
            }
            if told.slots_out != news.slots_out {
                outbox.send(Report::SlotsOut(news.slots_out.clone()))?;
            }
            told = news;
            for exit in exits {
                outbox.send(Report::RankExited(exit))?;
            }
        }
    }

    fn to_tell(&self) -> Told {
        let worker = self.worker.as_ref().and_then(|worker| worker.message());
        Told { worker, slots_out: self.table.slots_out() }
    }

    fn obey(&self, order: Order, outbox: &Outbox) {
        match order {
            Order::StartRank(start) => self.table.start(start),
            Order::Regenerate(regenerate) => self.table.regenerate(regenerate),
            Order::StopRank(stop) => self.table.stop(stop),
            Order::ExitAck(ack) => self.table.exits.acknowledge(&ack.exit_id),
            Order::Dial(dial) => self.dial(dial, outbox),
            // Not asked for by this agent.
            Order::HeartbeatAck(_) => {}
            Order::Registered(_) => tracing::warn!("the coordinator repeats its terms; ignored"),
        }
    }

    /// Dials other nodes and answers whom it did not reach; the session goes on meanwhile.
    fn dial(&self, dial: Dial, outbox: &Outbox) {
        match self.line {
            Line::Endpoint(_) => {
                // Weak: a session that ends meanwhile wants no answer.
                let outbox = outbox.0.downgrade();
                tokio::spawn(async move {
                    let dialled = dial::reach_all(dial).await;
                    for peer in &dialled.unreached {
                        tracing::warn!(node = %peer.node, address = %peer.address, why = %peer.why, "cannot reach another node");
                    }
                    if let Some(sender) = outbox.upgrade() {
                        answer(&Outbox(sender), dialled);
                    }
                });
            }
            // There is no other network than the simulated one.
            Line::Channel(_) => {
                let Dial { job_id, generation, peers } = dial;
                let missed = |peer: DialPeer| {
                    let why = self.reach.as_ref()?.misses(&peer)?;
                    Some(Unreached { node: peer.node, address: peer.address, why })
                };
                let unreached = peers.into_iter().filter_map(missed).collect();
                answer(outbox, Dialled { job_id, generation, unreached });
            }
        }
    }
}

/// What the coordinator was told last of what seldom changes.
#[derive(Debug)]
struct Told {
    worker: Option<v1::Worker>,
    slots_out: SlotsOut,
}

/// Waits for the next probe; for ever where there is no worker.
async fn next_probe(probes: &mut Option<Probes>) {
    match probes {
        Some(probes) => probes.next().await,
        None => std::future::pending().await,
    }
}

/// Returns the silence of a rank that still lets its loss be known within the lease; never less than
/// a dozen of the signs of life that a rank gives four times a second.
fn silence_within(terms: &Registered) -> Duration {
    Duration::from_millis(terms.lease_ms.into()).max(LEAST_SILENCE)
}

/// Returns the next order; none for one that this build does not know.
async fn next(orders: &mut Streaming<CoordinatorMessage>) -> Result<Option<Order>, Error> {
    let message = orders.message().await?.ok_or(Error::Closed)?;
    Ok(message.message)
}

/// Answers who asked to dial; one whose session has ended is answered no more.
fn answer(outbox: &Outbox, dialled: Dialled) {
    if let Err(error) = outbox.send(Report::Dialled(dialled)) {
        tracing::debug!(%error, "cannot say which nodes are reached");
    }
}

struct Outbox(mpsc::Sender<AgentMessage>);

impl Outbox {
    /// Never waits: what cannot be queued shows that the session is of no use any more.
    fn send(&self, report: Report) -> Result<(), Error> {
        self.0.try_send(AgentMessage { message: Some(report) }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::Stalled,
            mpsc::error::TrySendError::Closed(_) => Error::Closed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn agents_pause_for_different_times_and_a_simulated_one_for_the_same() {
        let endpoint = Endpoint::from_static("http://127.0.0.1:7071");
        let simulated = Line::Channel(endpoint.connect_lazy());
        let real = Line::Endpoint(Box::new(endpoint));
        let pauses = |line: &Line| line.pauses().take(8).collect::<Vec<_>>();
        let plain = pauses(&simulated);
        assert_eq!(plain, pauses(&simulated));
        assert_eq!((plain[0], plain[7]), (Duration::from_millis(100), LAST_PAUSE));
        let (one, other) = (pauses(&real), pauses(&real));
        assert_ne!(one, other);
        for (pause, least) in one.iter().chain(&other).zip(plain.iter().cycle()) {
            assert!((*least..=2 * *least).contains(pause), "{pause:?} for {least:?}");
        }
    }
}
