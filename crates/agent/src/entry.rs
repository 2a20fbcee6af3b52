//! One rank of this node: its process, what it said last, and what is to become of it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ringmaster_proto::Seat;
use ringmaster_proto::v1::agent_command::Command;
use ringmaster_proto::v1::{
    AgentCommand, ExitClass, Generation, Phase, RankExited, RankStatus, StartRank, StepMetrics,
};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::processes::Processes;
use super::secret::Secret;
use crate::exit::{Class, cause, operation};

/// How long a process may stay stopped by a signal before it is killed: its ring stands still meanwhile.
pub(super) const STOPPED_FOR: Duration = Duration::from_millis(1500);

/// A job's rank: (job id, seat).
pub type Key = (String, Seat);

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
    pub(super) kill_at: Option<(Instant, Killed)>,
    /// Since when its process has been stopped by a signal, and a number that says whether it ran since.
    stopped_since: Option<(Instant, u64)>,
    pub(super) killed: Option<Killed>,
    /// When SIGKILL was sent first.
    killed_at: Option<Instant>,
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

/// Why the agent killed a rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Killed {
    /// In a sentence.
    pub because: String,
    /// Of [`cause`].
    pub cause: &'static str,
}

/// How a process ended, as far as the operating system and the rank itself say.
#[derive(Debug, Clone, Default)]
pub struct Ending {
    /// Its exit code, if no signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Why, in a sentence.
    pub reason: String,
    /// Whose fault that probably is.
    pub class: Class,
    /// What it was about to do: a word of [`operation`], or of the worker's.
    pub operation: String,
    /// What kind of thing went wrong: a word of [`cause`], or of the worker's.
    pub cause: String,
    /// It never ran, because this node's worker cannot.
    pub for_the_worker: bool,
    /// SIGKILL has not ended it within its deadline.
    pub undead: bool,
}

/// Why a rank was not started.
#[derive(Debug)]
pub struct NotStarted {
    /// In a sentence.
    pub why: String,
    /// What kind of thing went wrong: a word of [`cause`].
    pub cause: String,
    /// This node's worker cannot run, which says nothing of the job.
    pub for_the_worker: bool,
}

impl From<io::Error> for NotStarted {
    fn from(error: io::Error) -> Self {
        Self { why: error.to_string(), cause: cause::io(error.kind()), for_the_worker: false }
    }
}

impl From<NotStarted> for Ending {
    fn from(NotStarted { why, cause, for_the_worker }: NotStarted) -> Self {
        // Room may be made on a disk that is full.
        let may_pass = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded].map(cause::io);
        let class = if may_pass.contains(&cause) { Class::Retry } else { Class::Node };
        Self {
            reason: format!("cannot start the rank: {why}"),
            class,
            operation: operation::EXEC.to_owned(),
            cause,
            for_the_worker,
            ..Self::default()
        }
    }
}

impl From<Killed> for Ending {
    fn from(Killed { because, cause }: Killed) -> Self {
        Self {
            reason: because,
            class: Class::Retry,
            operation: operation::RUN.to_owned(),
            cause: cause.to_owned(),
            ..Self::default()
        }
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
            stopped_since: None,
            killed: None,
            killed_at: None,
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

    /// Ends its process, if it runs.
    pub(super) fn kill(&mut self, processes: &dyn Processes, now: Instant, killed: Killed) {
        if let Process::Running(pid) = self.process {
            let because = killed.because.as_str();
            tracing::warn!(job_id = %self.start.job_id, rank = self.start.rank, pid, because, "killing the rank");
            self.killed.get_or_insert(killed);
            self.killed_at.get_or_insert(now);
            processes.kill(pid);
        }
    }

    /// The agent stood still: nothing that took long meanwhile was the rank's doing.
    pub(super) fn restart_clocks(&mut self, now: Instant) {
        for since in [&mut self.heard_at, &mut self.killed_at] {
            if since.is_some() {
                *since = Some(now);
            }
        }
        self.stopped_since = None;
    }

    /// Returns why it is to be killed now, if it is: its grace is over, it is stopped by a signal, or it has
    /// said nothing for longer than `silence`. Each is said once.
    pub(super) fn overdue(
        &mut self,
        now: Instant,
        silence: Duration,
        stopped: Option<u64>,
    ) -> Option<Killed> {
        if let Some((_, killed)) = self.kill_at.take_if(|(at, _)| *at <= now) {
            return Some(killed);
        }
        if self.killed.is_some() {
            return None;
        }
        self.stopped_since = stopped.map(|mark| match self.stopped_since {
            Some((since, before)) if before == mark => (since, mark),
            _ => (now, mark),
        });
        let stopped_for = |(since, _)| now.saturating_duration_since(since) >= STOPPED_FOR;
        if self.stopped_since.is_some_and(stopped_for) {
            let seconds = STOPPED_FOR.as_secs_f64();
            let because = format!("stopped by a signal (state T) for {seconds} s");
            return Some(Killed { because, cause: cause::STOPPED });
        }
        let is_silent = |heard_at| now.saturating_duration_since(heard_at) > silence;
        if !self.heard_at.is_some_and(is_silent) {
            return None;
        }
        self.heard_at = None;
        let because = format!("no sign of life for {} s", silence.as_secs_f64());
        Some(Killed { because, cause: cause::SILENT })
    }

    /// Its leader is a zombie: from here on what it left is being killed.
    pub(super) fn begin_to_clear(&mut self, now: Instant) {
        self.killed_at.get_or_insert(now);
    }

    /// Returns why it counts as undead, if it does: it is still there so long after SIGKILL.
    ///
    /// Once its leader is a zombie, what it left has as long again: whoever waits for it gives up by then.
    pub(super) fn survives(&self, now: Instant, deadline: Duration) -> Option<(u32, String)> {
        let (pid, deadline, what) = match self.process {
            Process::Queued => return None,
            Process::Running(pid) => (pid, deadline, "is still there"),
            Process::Ended(pid) => (pid, 2 * deadline, "has ended, and what it left has not,"),
        };
        let took = now.saturating_duration_since(self.killed_at?);
        let (slot, seconds) = (self.start.local_rank, deadline.as_secs_f64());
        let because = self.killed.as_ref().map_or("", |killed| killed.because.as_str());
        let why =
            format!("process {pid} in slot {slot} {what} {seconds} s after SIGKILL ({because})");
        (took >= deadline).then_some((pid, why))
    }

    pub(super) fn exit(self, ending: Ending) -> RankExited {
        let generation = self.target();
        let of_rank = RankExited {
            last_phase: self.status.phase,
            last_step: self.status.step,
            ..RankExited::default()
        };
        ending.of((self.start.job_id, Seat(self.start.rank)), generation, of_rank)
    }
}

impl Ending {
    /// Returns what the coordinator is told of the rank of this name; `known` is what else there is to say.
    pub(super) fn of(
        self,
        (job_id, Seat(rank)): Key,
        generation: Generation,
        known: RankExited,
    ) -> RankExited {
        RankExited {
            job_id,
            rank,
            generation: Some(generation),
            code: self.code,
            signal: self.signal,
            reason: self.reason,
            class: ExitClass::from(self.class).into(),
            operation: self.operation,
            cause: self.cause,
            for_the_worker: self.for_the_worker,
            undead: self.undead,
            ..known
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
