//! What is stored of a job, and the changes that may happen to it.

use std::collections::BTreeMap;

use ringmaster_proto::v1::{Event, Generation, JobState, StoredObject};
use ringmaster_proto::{RingRank, Seat};
use serde::{Deserialize, Serialize};

/// State of a job as the database spells it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum State {
    /// Waits for free slots.
    #[default]
    Queued,
    /// Its ranks are being started or are joining their ring.
    Starting,
    /// Every rank has joined and trains.
    Running,
    /// A rank was lost, or the coordinator restarted; the next generation is being formed.
    Recovering,
    /// Its ranks checkpoint and stop; the job goes on later.
    Preempting,
    /// Stopped at a checkpoint until somebody resumes it.
    Paused,
    /// Ended with a summary.
    Succeeded,
    /// Ended without.
    Failed,
    /// Ended because somebody asked for it.
    Cancelled,
}

impl State {
    const ALL: [(Self, &'static str, JobState); 9] = [
        (Self::Queued, "queued", JobState::Queued),
        (Self::Starting, "starting", JobState::Starting),
        (Self::Running, "running", JobState::Running),
        (Self::Recovering, "recovering", JobState::Recovering),
        (Self::Preempting, "preempting", JobState::Preempting),
        (Self::Paused, "paused", JobState::Paused),
        (Self::Succeeded, "succeeded", JobState::Succeeded),
        (Self::Failed, "failed", JobState::Failed),
        (Self::Cancelled, "cancelled", JobState::Cancelled),
    ];

    fn row(self) -> (Self, &'static str, JobState) {
        Self::ALL.into_iter().find(|(state, _, _)| *state == self).expect("ALL lists every state")
    }

    /// Returns the word used in the database, in events and in logs.
    pub fn word(self) -> &'static str {
        self.row().1
    }

    /// Returns the state with this word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, name, _)| *name == word).map(|(state, _, _)| state)
    }

    /// Returns the wire's spelling.
    pub fn to_proto(self) -> JobState {
        self.row().2
    }

    /// True for a state that a job leaves only if somebody resumes it.
    pub fn is_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// True for a job that holds, or is about to hold, slots.
    pub fn is_placed(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Recovering | Self::Preempting)
    }
}

/// Everything durable about a job. By default it is queued and has not been placed yet.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JobRecord {
    /// `<metadata.name>-<6 random characters>`.
    pub job_id: String,
    /// Order of submission, from 1; FIFO within a priority goes by it.
    pub sequence: u64,
    /// `metadata.name`.
    pub name: String,
    /// Where the job stands.
    pub state: State,
    /// Why it stands there, in a sentence.
    pub reason: String,
    /// Chosen by the submitting client; unique.
    pub request_id: String,
    /// The job as it is stored: [`ringmaster_manifest::stored`].
    pub manifest: String,
    /// The file as the user wrote it.
    pub manifest_yaml: String,
    /// Name of that file.
    pub file_name: String,
    /// Checkpoint URL to start from, or empty.
    pub resume_from: String,
    /// Higher runs first.
    pub priority: i32,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// Seats: the most ranks it runs with.
    pub ranks: u32,
    /// Unix milliseconds.
    pub submitted_at_ms: i64,
    /// Unix milliseconds of the first time all ranks trained; zero before.
    pub started_at_ms: i64,
    /// Unix milliseconds; zero before.
    pub ended_at_ms: i64,
    /// The current attempt; absent before the first placement.
    pub generation: Option<Generation>,
    /// The ring of `generation` stands: all its ranks have joined and were told the same plan.
    pub formed: bool,
    /// Generations opened because a rank was lost.
    pub recoveries: u32,
    /// Recoveries since the last new step.
    pub without_progress: u32,
    /// Most steps any rank has applied, as of the last change of state.
    pub high_step: u64,
    /// Why somebody asked for the job to end; absent when nobody did.
    pub cancel_reason: Option<String>,
    /// `summary.json` as rank 0 handed it in; empty before.
    pub summary_json: String,
    /// Step of the newest published checkpoint; zero before.
    pub checkpoint_step: u64,
    /// URL of the newest published checkpoint; empty before.
    pub checkpoint_url: String,
    /// Opaque JSON that the job's first generation fixed; absent before.
    pub numeric_plan: Option<String>,
    /// libtorch threads per rank, fixed at the first placement; zero before.
    pub threads: u32,
    /// Node of every seat by seat; absent where it is vacant.
    pub seats: Vec<Option<String>>,
    /// Which slot of its node each seat has, by seat; without meaning where it is vacant.
    pub slots: Vec<u32>,
    /// Seats whose ranks ended well in the current generation.
    pub done: Vec<bool>,
    /// The newest ring that was formed: its seats in ring order.
    pub ring: Vec<Seat>,
    /// Why its ranks stop although it is to go on later; absent while they are not to.
    pub halt: Option<Halt>,
    /// What it was rolled back to, until it has saved anew.
    pub rollback: Option<Rollback>,
    /// The newest generation whose states a roll-back has given up, for good.
    pub given_up: Option<Generation>,
}

/// A job goes on from an older checkpoint of its own, and what is above it is given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollback {
    /// The checkpoint to go on from.
    pub url: String,
    /// Of which step it is.
    pub step: u64,
    /// The newest generation whose work above it is given up, as (incarnation, counter).
    up_to: (u32, u32),
}

impl Rollback {
    /// Gives up what generations up to `up_to` wrote above the checkpoint at `url`.
    pub fn new(url: String, step: u64, up_to: Generation) -> Self {
        Self { url, step, up_to: (up_to.incarnation, up_to.counter) }
    }

    /// Returns the newest generation whose work is given up.
    pub fn up_to(&self) -> Generation {
        let (incarnation, counter) = self.up_to;
        Generation::new(incarnation, counter)
    }
}

/// A job's ranks checkpoint and stop, and the job goes on later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Halt {
    /// What comes afterwards.
    pub kind: HaltKind,
    /// Why, in a sentence.
    pub reason: String,
}

/// What a job that halted does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HaltKind {
    /// Waits in the queue for slots.
    Preempt,
    /// Waits for somebody to resume it.
    Pause,
}

impl HaltKind {
    /// Returns the word used in the database.
    pub fn word(self) -> &'static str {
        match self {
            Self::Preempt => "preempt",
            Self::Pause => "pause",
        }
    }

    /// Returns the kind with this word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Preempt, Self::Pause].into_iter().find(|kind| kind.word() == word)
    }
}

/// Why a node takes no ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closure {
    /// Who closed it.
    pub kind: ClosureKind,
    /// Why, in a sentence.
    pub reason: String,
    /// Unix milliseconds.
    pub since_ms: i64,
}

/// Who closed a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClosureKind {
    /// Somebody asked for it.
    Drained,
    /// The coordinator, after repeated faults.
    Excluded,
}

impl ClosureKind {
    /// Returns the word used in the database and in listings.
    pub fn word(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::Excluded => "excluded",
        }
    }

    /// Returns the kind with this word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Drained, Self::Excluded].into_iter().find(|kind| kind.word() == word)
    }
}

/// One line of a job's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRecord {
    /// Counts up per database, from 1.
    pub id: u64,
    /// Unix milliseconds.
    pub at_ms: i64,
    /// Whose history.
    pub job_id: String,
    /// A short word.
    pub kind: String,
    /// A sentence.
    pub message: String,
}

impl EventRecord {
    /// Returns the event as the wire shows it.
    pub fn to_proto(&self) -> Event {
        Event {
            id: self.id,
            at_ms: self.at_ms,
            job_id: self.job_id.clone(),
            kind: self.kind.clone(),
            message: self.message.clone(),
        }
    }
}

/// Permission to publish one checkpoint, given once all shards were uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointGrant {
    /// Whose checkpoint.
    pub job_id: String,
    /// The generation that wrote it.
    pub generation: Generation,
    /// Steps applied.
    pub step: u64,
    /// Digest of the state that was saved.
    pub digest: u64,
    /// Unix milliseconds.
    pub at_ms: i64,
    /// Every uploaded object as JSON.
    pub objects_json: String,
}

/// What one rank uploaded of a checkpoint. Kept until the checkpoint is published, because a rank
/// reports once and the coordinator may restart before the others have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardRecord {
    /// Whose checkpoint.
    pub job_id: String,
    /// The generation that writes it.
    pub generation: Generation,
    /// Steps applied.
    pub step: u64,
    /// Who uploaded, by ring rank.
    pub rank: RingRank,
    /// The objects.
    pub objects: Vec<StoredObject>,
    /// Why it could not store its part; empty where it did.
    pub failure: String,
}

/// What a node is charged with, in faults.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FaultScore {
    /// How many, at `at_ms`. Half of them are forgotten every hour.
    pub faults: f64,
    /// Unix milliseconds.
    pub at_ms: i64,
}

/// Which process an agent is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentProcess {
    /// Drawn by every process; empty from an agent that draws none.
    pub instance: String,
    /// Its number on its node.
    pub pid: u32,
}

/// One durable fact; several may be written together, all or none.
#[derive(Debug, Clone)]
pub enum Change {
    /// A new job, or the new state of an old one.
    Job(Box<JobRecord>),
    /// A line of history.
    Event(EventRecord),
    /// A generation was opened. Never twice the same.
    Generation {
        /// The attempt.
        generation: Generation,
        /// For this job.
        job_id: String,
        /// Unix milliseconds.
        at_ms: i64,
        /// Why, in a sentence.
        reason: String,
    },
    /// A node takes no ranks any more, or takes them again.
    Node {
        /// Its name.
        node: String,
        /// Absent when it takes ranks.
        closure: Option<Closure>,
    },
    /// A node is charged with more or fewer faults.
    NodeFaults {
        /// Its name.
        node: String,
        /// Absent when it is charged with none.
        score: Option<FaultScore>,
    },
    /// Another process is a node's agent.
    Agent {
        /// The node's name.
        node: String,
        /// Absent when nobody asks for it any more.
        agent: Option<AgentProcess>,
    },
    /// The incarnation was raised above what an agent reported.
    Incarnation(u32),
    /// A rank's part of a checkpoint is uploaded.
    Shard(Box<ShardRecord>),
    /// A job's reported shards up to this step, of any generation, are no longer needed.
    ForgetShards {
        /// Whose.
        job_id: String,
        /// Steps applied, inclusive.
        up_to_step: u64,
    },
    /// None of a job's reported shards is needed any more.
    ForgetAllShards {
        /// Whose.
        job_id: String,
    },
    /// A checkpoint may be published.
    Grant(Box<CheckpointGrant>),
    /// A granted checkpoint is in place.
    Published {
        /// Whose checkpoint.
        job_id: String,
        /// The generation that wrote it.
        generation: Generation,
        /// Steps applied.
        step: u64,
        /// Where it lies.
        url: String,
    },
}
