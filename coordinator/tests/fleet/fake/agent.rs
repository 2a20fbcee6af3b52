//! What an agent says and hears, one message at a time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringmaster_proto::v1;
use ringmaster_proto::v1::agent_message::Message as FromAgent;
use ringmaster_proto::v1::coordinator_message::Message as ToAgent;
use ringmaster_proto::v1::fleet_client::FleetClient;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{Coordinator, within};

/// An agent that heartbeats by itself and otherwise does what the test says.
pub(crate) struct Agent {
    sender: mpsc::Sender<v1::AgentMessage>,
    inbound: Streaming<v1::CoordinatorMessage>,
    ranks: Arc<Mutex<Vec<v1::RankStatus>>>,
    beat: JoinHandle<()>,
    pub(crate) registered: v1::Registered,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.beat.abort();
    }
}

pub(crate) fn register(node: &str, slots: u32) -> v1::Register {
    v1::Register {
        node: node.to_owned(),
        slots,
        accelerator: "cpu".to_owned(),
        address: "127.0.0.1".to_owned(),
        pid: 100,
        cpus: slots * 2,
        ..Default::default()
    }
}

impl Agent {
    pub(crate) async fn connect(coordinator: &Coordinator, node: &str, slots: u32) -> Self {
        Self::register(coordinator, register(node, slots)).await
    }

    pub(crate) async fn register(coordinator: &Coordinator, register: v1::Register) -> Self {
        Self::try_register(coordinator, register).await.unwrap()
    }

    /// Tries until it is let in.
    pub(crate) async fn let_in(coordinator: &Coordinator, register: v1::Register) -> Self {
        let tries = async {
            loop {
                match Self::try_register(coordinator, register.clone()).await {
                    Ok(agent) => return agent,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        within("being let in", tries).await
    }

    /// Why the coordinator does not let this agent in.
    pub(crate) async fn refused(coordinator: &Coordinator, register: v1::Register) -> Status {
        match Self::try_register(coordinator, register).await {
            Ok(_) => panic!("the agent is let in"),
            Err(status) => status,
        }
    }

    async fn try_register(
        coordinator: &Coordinator,
        register: v1::Register,
    ) -> Result<Self, Status> {
        let mut client = FleetClient::connect(coordinator.fleet_url()).await.unwrap();
        let (sender, outbound) = mpsc::channel(64);
        let first = v1::AgentMessage { message: Some(FromAgent::Register(register)) };
        sender.send(first).await.unwrap();
        let response = client.session(ReceiverStream::new(outbound)).await?;
        let mut inbound = response.into_inner();
        let answer = within("registration", inbound.message()).await?.unwrap();
        let Some(ToAgent::Registered(registered)) = answer.message else {
            panic!("the first message is not Registered: {answer:?}");
        };
        let ranks = Arc::<Mutex<Vec<v1::RankStatus>>>::default();
        let beat = tokio::spawn(beat(sender.clone(), Arc::clone(&ranks)));
        Ok(Self { sender, inbound, ranks, beat, registered })
    }

    /// Reports these ranks from now on.
    pub(crate) fn report(&self, ranks: Vec<v1::RankStatus>) {
        *self.ranks.lock().unwrap() = ranks;
    }

    pub(crate) async fn say(&self, message: FromAgent) {
        self.sender.send(v1::AgentMessage { message: Some(message) }).await.unwrap();
    }

    /// The next message, whatever it is.
    pub(crate) async fn next(&mut self) -> ToAgent {
        let message = within("a message to the agent", self.inbound.message()).await;
        message.unwrap().expect("the session is open").message.unwrap()
    }

    pub(crate) async fn start_rank(&mut self) -> v1::StartRank {
        match self.next().await {
            ToAgent::StartRank(start) => start,
            other => panic!("not StartRank: {other:?}"),
        }
    }

    pub(crate) async fn regenerate(&mut self) -> v1::Regenerate {
        match self.next().await {
            ToAgent::Regenerate(regenerate) => regenerate,
            other => panic!("not Regenerate: {other:?}"),
        }
    }

    pub(crate) async fn stop_rank(&mut self) -> v1::StopRank {
        match self.next().await {
            ToAgent::StopRank(stop) => stop,
            other => panic!("not StopRank: {other:?}"),
        }
    }

    /// Reports an exit and waits for its acknowledgement; returns what else came before it.
    pub(crate) async fn exit(&mut self, exited: v1::RankExited) -> Vec<ToAgent> {
        let message = v1::AgentMessage { message: Some(FromAgent::RankExited(exited.clone())) };
        self.sender.send(message).await.unwrap();
        let mut others = Vec::new();
        loop {
            match self.next().await {
                ToAgent::ExitAck(ack) if ack.exit_id == exited.exit_id => return others,
                other => others.push(other),
            }
        }
    }

    /// Reports an exit that another attempt would meet, too, and the same of that attempt: no other node could
    /// make it.
    pub(crate) async fn fail_twice(&mut self, start: &v1::StartRank, reason: &str) {
        self.exit(hopeless(start, reason)).await;
        let again = loop {
            match self.next().await {
                ToAgent::StartRank(again) if again.rank == start.rank => break again,
                _ => {}
            }
        };
        self.exit(hopeless(&again, reason)).await;
    }

    /// Stops heartbeats while the connection stays up, as a stopped process would.
    pub(crate) fn fall_silent(&self) {
        self.beat.abort();
    }

    /// The status with which the coordinator ends the session.
    pub(crate) async fn ended(&mut self) -> Status {
        loop {
            match within("the end of the session", self.inbound.message()).await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok("closed"),
                Err(status) => return status,
            }
        }
    }
}

async fn beat(sender: mpsc::Sender<v1::AgentMessage>, ranks: Arc<Mutex<Vec<v1::RankStatus>>>) {
    let mut interval = tokio::time::interval(Duration::from_millis(50));
    loop {
        interval.tick().await;
        let ranks = ranks.lock().unwrap().clone();
        let message = FromAgent::Heartbeat(v1::Heartbeat { ranks, sequence: 0 });
        if sender.send(v1::AgentMessage { message: Some(message) }).await.is_err() {
            return;
        }
    }
}

pub(crate) fn status(start: &v1::StartRank, step: u64) -> v1::RankStatus {
    v1::RankStatus {
        job_id: start.job_id.clone(),
        generation: start.generation,
        rank: start.rank,
        pid: 1000 + start.rank,
        step,
        phase: v1::Phase::Compute.into(),
        ..Default::default()
    }
}

/// What a survivor holds.
pub(crate) fn held(applied_step: u64) -> Option<v1::HeldState> {
    Some(v1::HeldState { applied_step, digest: 7, entered_ready: false, agreed: None })
}

/// The ranks of an agent that comes back, as it reports them.
pub(crate) fn running_ranks(
    starts: &[v1::StartRank],
    generation: v1::Generation,
) -> Vec<v1::RunningRank> {
    let ranks = starts.iter().map(|start| v1::RunningRank {
        job_id: start.job_id.clone(),
        generation: Some(generation),
        rank: start.rank,
        pid: 1000 + start.rank,
        started: start.generation,
    });
    ranks.collect()
}

pub(crate) fn exited(start: &v1::StartRank, code: i32) -> v1::RankExited {
    v1::RankExited {
        exit_id: format!("{}-{}-{:?}", start.job_id, start.rank, start.generation),
        job_id: start.job_id.clone(),
        generation: start.generation,
        rank: start.rank,
        code: Some(code),
        class: v1::ExitClass::Retry.into(),
        ..Default::default()
    }
}

/// An exit that every other attempt would meet, as the rank says.
pub(crate) fn hopeless(start: &v1::StartRank, reason: &str) -> v1::RankExited {
    v1::RankExited {
        reason: reason.to_owned(),
        class: v1::ExitClass::Job.into(),
        operation: "read manifest".to_owned(),
        cause: "manifest".to_owned(),
        ..exited(start, 78)
    }
}

pub(crate) fn killed(start: &v1::StartRank) -> v1::RankExited {
    v1::RankExited { code: None, signal: Some(9), ..exited(start, 0) }
}
