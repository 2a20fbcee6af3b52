//! One rank of this node: its process, what it said last, and what is to become of it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringmaster_proto::v1::agent_command::Command;
use ringmaster_proto::v1::{
    AgentCommand, Generation, Phase, RankExited, RankStatus, StartRank, StepMetrics,
};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::processes::Processes;
use super::secret::Secret;

/// What is known of one rank.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) start: StartRank,
    /// The newest generation this process was asked to be in, packed for the log tailer.
    pub(super) generation: Arc<AtomicU64>,
    pub(super) process: Process,
    /// What the process is told, and shows when it connects.
    pub(super) secret: Secret,
    pub(super) status: RankStatus,
    pub(super) metrics_sent: Option<StepMetrics>,
    pub(super) line: Line,
    /// What of the current generation the coordinator should hear of at once.
    milestone: Milestone,
    /// When the rank last said anything; none until it has connected.
    pub(super) heard_at: Option<Instant>,
    /// When it is killed unless it ends before, and why.
    pub(super) kill_at: Option<(Instant, String)>,
    pub(super) killed_because: Option<String>,
    /// What to start in its place once nothing of it is left.
    pub(super) next: Option<StartRank>,
}

/// How far a rank has come in its generation, as far as somebody waits for it: a recovery is over
/// when every rank has its state and the first step is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Milestone {
    /// Joining, connecting or receiving its state.
    Entering,
    /// Has its state, after so many steps.
    Ready(u64),
    /// Has done a step.
    Stepping,
}

/// The process of a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Process {
    Queued,
    Running(u32),
    /// A zombie or reaped: its number may belong to somebody else soon.
    Ended(u32),
}

/// The way of commands to a rank.
#[derive(Debug)]
pub(super) enum Line {
    /// Commands kept for a rank that has not connected yet.
    Closed(Vec<AgentCommand>),
    Open(mpsc::UnboundedSender<AgentCommand>),
}

/// How a process ended, as far as the operating system and the rank itself say.
#[derive(Debug, Default)]
pub struct Ending {
    /// Its exit code, if no signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Why, in a sentence.
    pub reason: String,
    /// False when running it again cannot help.
    pub retryable: bool,
    /// It never ran, because this node's worker cannot.
    pub for_the_worker: bool,
}

/// Why a rank was not started.
#[derive(Debug)]
pub struct NotStarted {
    /// In a sentence.
    pub why: String,
    /// This node's worker cannot run, which says nothing of the job.
    pub for_the_worker: bool,
}

impl From<io::Error> for NotStarted {
    fn from(error: io::Error) -> Self {
        Self { why: error.to_string(), for_the_worker: false }
    }
}

/// What whoever starts a rank needs of it.
#[derive(Debug)]
pub struct Launch {
    /// What the coordinator asked for.
    pub start: StartRank,
    /// The generation it is in by now, in one word.
    pub(super) generation: Arc<AtomicU64>,
}

impl Entry {
    pub(super) fn new(start: StartRank) -> Self {
        let generation = start.generation.unwrap_or_default();
        let status = RankStatus {
            job_id: start.job_id.clone(),
            rank: start.rank,
            generation: Some(generation),
            phase: Phase::Start as i32,
            ..RankStatus::default()
        };
        Self {
            start,
            generation: Arc::new(AtomicU64::new(pack(generation))),
            process: Process::Queued,
            secret: Secret::draw(),
            status,
            metrics_sent: None,
            milestone: Milestone::Entering,
            line: Line::Closed(Vec::new()),
            heard_at: None,
            kill_at: None,
            killed_because: None,
            next: None,
        }
    }

    pub(super) fn target(&self) -> Generation {
        unpack(self.generation.load(Ordering::Relaxed))
    }

    pub(super) fn pid(&self) -> Option<u32> {
        match self.process {
            Process::Queued => None,
            Process::Running(pid) | Process::Ended(pid) => Some(pid),
        }
    }

    /// Takes in what the rank says of itself; true when the coordinator should hear of it at once.
    pub(super) fn update(&mut self, status: RankStatus) -> bool {
        // Which rank this is says the agent, not the process.
        let status = RankStatus {
            job_id: self.start.job_id.clone(),
            rank: self.start.rank,
            generation: status.generation.or(self.start.generation),
            ..status
        };
        let entered = status.generation != self.status.generation;
        // Back in Join within its generation: its ring broke.
        let broke = status.phase() == Phase::Join && self.milestone != Milestone::Entering;
        if entered || broke {
            self.milestone = Milestone::Entering;
        }
        let trains = status.phase() >= Phase::Data;
        let reached = match self.milestone {
            Milestone::Entering if trains => Some(Milestone::Ready(status.step)),
            Milestone::Ready(step) if status.step > step => Some(Milestone::Stepping),
            _ => None,
        };
        self.milestone = reached.unwrap_or(self.milestone);
        self.status = status;
        entered || broke || reached.is_some()
    }

    pub(super) fn report(&mut self) -> Option<RankStatus> {
        self.pid()?;
        let mut status = self.status.clone();
        if status.metrics == self.metrics_sent {
            status.metrics = None;
        } else {
            self.metrics_sent.clone_from(&status.metrics);
        }
        Some(status)
    }

    /// Whether it has ever been heard of.
    pub(super) fn has_connected(&self) -> bool {
        matches!(self.line, Line::Open(_))
    }

    pub(super) fn send(&mut self, command: Command) {
        let command = AgentCommand { command: Some(command) };
        match &mut self.line {
            Line::Closed(waiting) => waiting.push(command),
            // Fails when the rank hung up: it is ending, and its exit will say so.
            Line::Open(sender) => drop(sender.send(command)),
        }
    }

    pub(super) fn kill(&mut self, processes: &dyn Processes, because: &str) {
        if let Process::Running(pid) = self.process {
            tracing::warn!(job_id = %self.start.job_id, rank = self.start.rank, pid, because, "killing the rank");
            self.killed_because.get_or_insert_with(|| because.to_owned());
            processes.kill(pid);
        }
    }

    pub(super) fn exit(self, ending: Ending) -> RankExited {
        RankExited {
            exit_id: String::new(),
            generation: Some(self.target()),
            job_id: self.start.job_id,
            rank: self.start.rank,
            code: ending.code,
            signal: ending.signal,
            reason: ending.reason,
            retryable: ending.retryable,
            for_the_worker: ending.for_the_worker,
            last_phase: self.status.phase,
            last_step: self.status.step,
        }
    }
}

/// Returns a generation in one word, ordered as generations are.
pub(super) fn pack(generation: Generation) -> u64 {
    u64::from(generation.incarnation) << 32 | u64::from(generation.counter)
}

/// Returns the generation that [`pack`] made a word of.
pub(super) fn unpack(word: u64) -> Generation {
    Generation::new((word >> 32) as u32, word as u32)
}
