//! The writer thread with group commit, and the reader beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::inline::{Hooks, Inline};
use super::record::{
    AgentProcess, Change, Closure, EventRecord, FaultScore, JobRecord, ShardRecord,
};
use super::{Error, apply, load, migrations, sql};

/// Writes that may wait before a caller has to.
const QUEUE: usize = 256;
/// Writes that share one flush at most.
const GROUP: usize = 256;

/// A handle to the database; clones share the writer.
#[derive(Debug, Clone)]
pub struct Store {
    writer: Writer,
    reader: Arc<Mutex<Connection>>,
}

/// Who commits.
#[derive(Debug, Clone)]
enum Writer {
    Thread(mpsc::Sender<Request>),
    Inline(Arc<Inline>),
}

/// What the coordinator knows when it starts.
#[derive(Debug)]
pub struct Loaded {
    /// This start's number, durable already.
    pub incarnation: u32,
    /// Newest counter any generation had.
    pub counter: u32,
    /// Id of the newest event, or zero.
    pub last_event: u64,
    /// Every job, in the order of submission.
    pub jobs: Vec<JobRecord>,
    /// Shards of checkpoints that were not published.
    pub shards: Vec<ShardRecord>,
    /// Nodes that take no ranks, by name.
    pub closures: BTreeMap<String, Closure>,
    /// What nodes are charged with, by name.
    pub scores: BTreeMap<String, FaultScore>,
    /// Which process the agent of each node is, by the node's name.
    pub agents: BTreeMap<String, AgentProcess>,
}

#[derive(Debug)]
struct Request {
    changes: Vec<Change>,
    done: oneshot::Sender<Result<(), Error>>,
}

impl Store {
    /// Opens or creates the database, brings its schema up to date, counts this start durably and
    /// starts the writer thread. The thread ends when the last clone of the store is dropped, or
    /// after a write failed.
    ///
    /// # Errors
    /// When the file cannot be opened, is of a newer coordinator, or holds what none ever wrote.
    pub fn open(path: &Path) -> Result<(Self, Loaded), Error> {
        let (connection, loaded) = take_up(connect(path)?)?;
        let reader = Arc::new(Mutex::new(connect(path)?));
        let (writer, requests) = mpsc::channel(QUEUE);
        std::thread::Builder::new()
            .name("state-writer".to_owned())
            .spawn(move || run(connection, requests))
            .map_err(|source| Error::Thread { source })?;
        Ok((Self { writer: Writer::Thread(writer), reader }, loaded))
    }

    /// As [`Store::open`], but without a thread: writes commit in the task that asks for them, with
    /// `hooks` around each, and outlive the process but not a power failure. For simulations, in
    /// which one thread is everybody.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_inline(path: &Path, hooks: Arc<dyn Hooks>) -> Result<(Self, Loaded), Error> {
        let connection = connect(path)?;
        connection.pragma_update(None, "synchronous", "OFF").map_err(sql("choosing speed"))?;
        let (connection, loaded) = take_up(connection)?;
        let reader = Arc::new(Mutex::new(connect(path)?));
        let writer = Writer::Inline(Arc::new(Inline::new(connection, hooks)));
        Ok((Self { writer, reader }, loaded))
    }

    /// Makes all changes durable, or none, and returns when they are.
    ///
    /// # Errors
    /// After an error the writer has stopped: whether the changes are durable is then unknown, and
    /// only a restart, which reads the database, can tell.
    pub async fn write(&self, changes: Vec<Change>) -> Result<(), Error> {
        let writer = match &self.writer {
            Writer::Thread(writer) => writer,
            Writer::Inline(inline) => return inline.write(changes).await,
        };
        let (done, answer) = oneshot::channel();
        let request = Request { changes, done };
        writer.send(request).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    /// Returns a job's history, oldest first. Blocks for the time of one query.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn events(&self, job_id: &str) -> Result<Vec<EventRecord>, Error> {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        load::events(&reader, job_id)
    }
}

fn connect(path: &Path) -> Result<Connection, Error> {
    let open = |source| Error::Open { path: PathBuf::from(path), source };
    let connection = Connection::open(path).map_err(open)?;
    connection.busy_timeout(Duration::from_secs(10)).map_err(open)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(open)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(open)?;
    connection.pragma_update(None, "foreign_keys", true).map_err(open)?;
    Ok(connection)
}

/// Brings the schema up to date, counts this start and reads everything.
fn take_up(mut connection: Connection) -> Result<(Connection, Loaded), Error> {
    migrations::migrate(&mut connection)?;
    let incarnation = load::meta(&connection, "incarnation")? + 1;
    apply::set_meta(&connection, "incarnation", incarnation)?;
    let loaded = Loaded {
        incarnation,
        counter: load::meta(&connection, "counter")?,
        last_event: load::last_event(&connection)?,
        jobs: load::jobs(&connection)?,
        shards: load::shards(&connection)?,
        closures: load::closures(&connection)?,
        scores: load::scores(&connection)?,
        agents: load::agents(&connection)?,
    };
    Ok((connection, loaded))
}

fn run(mut connection: Connection, mut requests: mpsc::Receiver<Request>) {
    while let Some(first) = requests.blocking_recv() {
        let mut group = vec![first];
        while group.len() < GROUP {
            let Ok(next) = requests.try_recv() else { break };
            group.push(next);
        }
        let changes = group.iter().flat_map(|request| &request.changes);
        match apply::commit(&mut connection, changes) {
            Ok(()) => {
                for request in group {
                    // A caller that has gone no longer needs the answer.
                    let _ = request.done.send(Ok(()));
                }
            }
            Err(error) => return fail(group, error),
        }
    }
}

/// Tells one caller why and lets the others see the closed channel; the thread ends, because what
/// memory and disk hold may differ from here on.
fn fail(group: Vec<Request>, error: Error) {
    tracing::error!(%error, source = ?std::error::Error::source(&error), "the database failed");
    if let Some(first) = group.into_iter().next() {
        let _ = first.done.send(Err(error));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ringmaster_proto::v1::{Generation, StoredObject};
    use ringmaster_proto::{RingRank, Seat};

    use super::super::record::{CheckpointGrant, ClosureKind, Halt, HaltKind, Rollback, State};
    use super::*;

    fn record(job_id: &str, sequence: u64) -> JobRecord {
        JobRecord {
            job_id: job_id.to_owned(),
            sequence,
            name: "a".to_owned(),
            state: State::Running,
            reason: "all ranks train".to_owned(),
            request_id: format!("request-{sequence}"),
            manifest: "{}".to_owned(),
            manifest_yaml: "kind: TrainJob".to_owned(),
            file_name: "job.yaml".to_owned(),
            resume_from: String::new(),
            priority: -3,
            labels: BTreeMap::from([("team".to_owned(), "vision".to_owned())]),
            ranks: 2,
            submitted_at_ms: 1,
            started_at_ms: 2,
            ended_at_ms: 0,
            generation: Some(Generation::new(1, 4)),
            formed: true,
            recoveries: 1,
            without_progress: 1,
            high_step: 77,
            cancel_reason: None,
            summary_json: String::new(),
            checkpoint_step: 50,
            checkpoint_url: "file:///runs/a/step-50".to_owned(),
            numeric_plan: Some("{\"threads\":1}".to_owned()),
            threads: 1,
            seats: vec![Some("n0".to_owned()), None],
            slots: vec![3, 0],
            done: vec![true, false],
            ring: vec![Seat(0)],
            halt: Some(Halt { kind: HaltKind::Pause, reason: "later".to_owned() }),
            rollback: Some(Rollback::new(
                "file:///runs/a/step-40".to_owned(),
                40,
                Generation::new(1, 3),
            )),
            given_up: Some(Generation::new(1, 2)),
        }
    }

    fn event(id: u64, job_id: &str) -> Change {
        Change::Event(EventRecord {
            id,
            at_ms: 9,
            job_id: job_id.to_owned(),
            kind: "submitted".to_owned(),
            message: "queued".to_owned(),
        })
    }

    #[tokio::test]
    async fn what_was_written_is_there_after_a_restart_and_the_incarnation_rises() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ringmaster.db");
        let job = record("a-000001", 1);
        {
            let (store, loaded) = Store::open(&path).unwrap();
            assert_eq!((loaded.incarnation, loaded.counter, loaded.last_event), (1, 0, 0));
            let generation = Generation::new(1, 4);
            let opened = Change::Generation {
                generation,
                job_id: job.job_id.clone(),
                at_ms: 3,
                reason: "placed".to_owned(),
            };
            let grant = CheckpointGrant {
                job_id: job.job_id.clone(),
                generation,
                step: 50,
                digest: u64::MAX - 1,
                at_ms: 5,
                objects_json: "[]".to_owned(),
            };
            let changes = vec![
                Change::Job(Box::new(job.clone())),
                event(1, &job.job_id),
                opened,
                Change::Grant(Box::new(grant)),
            ];
            store.write(changes).await.unwrap();
        }
        let (store, loaded) = Store::open(&path).unwrap();
        assert_eq!((loaded.incarnation, loaded.counter, loaded.last_event), (2, 4, 1));
        assert_eq!(loaded.jobs, [job]);
        assert_eq!(store.events("a-000001").unwrap().len(), 1);
        assert_eq!(store.events("b").unwrap(), []);
    }

    #[tokio::test]
    async fn reported_shards_outlive_a_restart_until_they_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ringmaster.db");
        let object = StoredObject {
            name: "m".to_owned(),
            size: 3,
            blake3: vec!["ab".to_owned()],
            ..StoredObject::default()
        };
        let shard = |job_id: &str, step| ShardRecord {
            job_id: job_id.to_owned(),
            generation: Generation::new(1, 1),
            step,
            rank: RingRank(1),
            objects: vec![object.clone()],
            failure: "the store is away".to_owned(),
        };
        {
            let (store, _) = Store::open(&path).unwrap();
            let reported = [("a", 10), ("a", 20), ("b", 10), ("b", 30)];
            let changes = reported.map(|(job, step)| Change::Shard(Box::new(shard(job, step))));
            store.write(changes.to_vec()).await.unwrap();
            let some = Change::ForgetShards { job_id: "a".to_owned(), up_to_step: 10 };
            let all = Change::ForgetAllShards { job_id: "b".to_owned() };
            store.write(vec![some, all]).await.unwrap();
        }
        let (_store, loaded) = Store::open(&path).unwrap();
        assert_eq!(loaded.shards, [shard("a", 20)]);
    }

    #[tokio::test]
    async fn a_closed_node_stays_closed_over_a_restart_until_it_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ringmaster.db");
        let closure =
            Closure { kind: ClosureKind::Excluded, reason: "3 faults".to_owned(), since_ms: 9 };
        let change = |node: &str, closure| Change::Node { node: node.to_owned(), closure };
        {
            let (store, _) = Store::open(&path).unwrap();
            let closed = ["n0", "n1"].map(|node| change(node, Some(closure.clone())));
            store.write(closed.to_vec()).await.unwrap();
            store.write(vec![change("n0", None)]).await.unwrap();
        }
        let (_store, loaded) = Store::open(&path).unwrap();
        assert_eq!(loaded.closures, BTreeMap::from([("n1".to_owned(), closure)]));
    }

    #[tokio::test]
    async fn what_a_node_is_charged_with_outlives_a_restart_until_it_is_forgiven() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ringmaster.db");
        let score = FaultScore { faults: 1.5, at_ms: 9 };
        let change = |node: &str, score| Change::NodeFaults { node: node.to_owned(), score };
        {
            let (store, _) = Store::open(&path).unwrap();
            let charged = ["n0", "n1"].map(|node| change(node, Some(score)));
            store.write(charged.to_vec()).await.unwrap();
            store.write(vec![change("n0", None)]).await.unwrap();
        }
        let (_store, loaded) = Store::open(&path).unwrap();
        assert_eq!(loaded.scores, BTreeMap::from([("n1".to_owned(), score)]));
    }

    #[tokio::test]
    async fn the_process_of_a_nodes_agent_is_known_after_a_restart_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ringmaster.db");
        let agent = |pid| AgentProcess { instance: format!("a{pid}"), pid };
        let change = |node: &str, agent| Change::Agent { node: node.to_owned(), agent };
        {
            let (store, _) = Store::open(&path).unwrap();
            let first = ["n0", "n1"].map(|node| change(node, Some(agent(7))));
            store.write(first.to_vec()).await.unwrap();
            store.write(vec![change("n0", None), change("n1", Some(agent(8)))]).await.unwrap();
        }
        let (_store, loaded) = Store::open(&path).unwrap();
        assert_eq!(loaded.agents, BTreeMap::from([("n1".to_owned(), agent(8))]));
    }

    #[tokio::test]
    async fn many_writers_at_once_are_all_durable() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ringmaster.db");
        let (store, _) = Store::open(&path).unwrap();
        let writes = (1..=100).map(|id| store.write(vec![event(id, "a")]));
        for result in futures::future::join_all(writes).await {
            result.unwrap();
        }
        assert_eq!(store.events("a").unwrap().len(), 100);
    }

    #[tokio::test]
    async fn a_generation_is_never_opened_twice_and_a_failed_write_stops_the_writer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ringmaster.db");
        let (store, _) = Store::open(&path).unwrap();
        let opened = Change::Generation {
            generation: Generation::new(1, 1),
            job_id: "a".to_owned(),
            at_ms: 0,
            reason: String::new(),
        };
        store.write(vec![opened.clone()]).await.unwrap();
        let error = store.write(vec![event(1, "a"), opened]).await.unwrap_err();
        assert!(matches!(error, Error::Sql { .. }), "{error}");
        assert_eq!(store.events("a").unwrap(), [], "all or none");
        assert!(matches!(store.write(vec![event(2, "a")]).await, Err(Error::Closed)));
    }

    #[tokio::test]
    async fn a_numeric_plan_stays_as_the_first_generation_fixed_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ringmaster.db");
        {
            let (store, _) = Store::open(&path).unwrap();
            let mut job = record("a", 1);
            store.write(vec![Change::Job(Box::new(job.clone()))]).await.unwrap();
            job.numeric_plan = Some("another".to_owned());
            store.write(vec![Change::Job(Box::new(job))]).await.unwrap();
        }
        let (_store, loaded) = Store::open(&path).unwrap();
        assert_eq!(loaded.jobs[0].numeric_plan.as_deref(), Some("{\"threads\":1}"));
    }
}
