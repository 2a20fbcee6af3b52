//! Writers that die, answers that are lost and bytes that change, at every operation of a store.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use ringmaster_proto::v1::{Generation, StoredObject};
use ringmaster_store::{Store, register};
use ringmaster_tests::faulty_store::{Fault, Faulty};
use ringmaster_tests::logged::logged;
use ringmaster_tests::s3;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::testing::{Coordinator, JOB_ID, assert_is, options, snapshot};
use crate::dir::CheckpointDir;
use crate::layout::{CHUNK, StepName};
use crate::write::publish::Publisher;
use crate::write::upload;
use crate::*;

/// How a store tells apart who comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Like {
    /// By a lock beside latest.json.
    Files,
    /// By conditions that it honours.
    Conditions,
    /// Not at all: it ignores conditions without a word.
    Nothing,
}

const ALL: [Like; 3] = [Like::Files, Like::Conditions, Like::Nothing];

/// A job's folder in a store whose faults the test chooses.
struct World {
    like: Like,
    faulty: Faulty,
    uri: String,
    _folder: Option<TempDir>,
}

impl World {
    fn new(like: Like) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        if like == Like::Files {
            let folder = tempfile::tempdir().unwrap();
            let uri = folder.path().to_str().unwrap().to_owned();
            let faulty = Faulty::new(Arc::new(LocalFileSystem::new()), true);
            register(&uri, Store::of(Arc::new(faulty.clone())));
            return Self { like, faulty, uri, _folder: Some(folder) };
        }
        let faulty = Faulty::new(Arc::new(InMemory::new()), like == Like::Conditions);
        let name = format!("faults-{number}");
        register(&name, Store::of(Arc::new(faulty.clone())));
        Self { like, faulty, uri: format!("memory://{name}/runs"), _folder: None }
    }

    fn job_url(&self) -> String {
        job_url(&self.uri, JOB_ID)
    }

    fn dir(&self) -> CheckpointDir {
        CheckpointDir::open(&self.job_url()).unwrap()
    }

    /// One step by all ranks, one after the other; the first error ends it, as it ends the process.
    fn publish(&self, counter: u32, step: u64, world_size: usize) -> Result<(), Error> {
        let grant = Arc::new(Coordinator::new(world_size));
        for rank in (0..world_size).rev() {
            let grant: Arc<dyn Grant> = Arc::<Coordinator>::clone(&grant);
            let options = options(&self.uri, counter, rank, world_size, grant);
            let publisher = Publisher::new(options, CancellationToken::new())?;
            publisher.publish(snapshot(counter, step, rank, world_size))?;
        }
        Ok(())
    }

    fn newest(&self) -> Option<Loaded> {
        choose(&[&self.job_url()]).unwrap().map(|chosen| chosen.load().unwrap())
    }

    /// The step latest.json names, after checking that it is there, whole, and loadable.
    fn latest(&self) -> u64 {
        let dir = self.dir();
        let name = block_on(dir.latest()).unwrap().unwrap().0.unwrap().name();
        let chosen = choose(&[&dir.step_url(name)]).unwrap();
        let loaded = chosen.expect("latest.json names one that exists").load().unwrap();
        assert_is(&loaded, name.step);
        name.step
    }

    fn exists(&self, counter: u32, step: u64, object: &str) -> bool {
        block_on(self.dir().exists(name(counter, step), object)).unwrap()
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn name(counter: u32, step: u64) -> StepName {
    StepName { generation: Generation::new(1, counter), step }
}

/// What a death left, and that whoever comes next goes on from it.
fn check_what_a_death_left(world: &World, fault: Fault, world_size: usize) -> (u64, u64) {
    let what = format!("{:?}, {world_size} ranks, {fault:?}", world.like);
    let newest = if world.exists(2, 30, "MANIFEST.json") { 30 } else { 20 };
    let found = world.newest().unwrap_or_else(|| panic!("{what}: nothing can be loaded"));
    assert_eq!(found.state.step, newest, "{what}");
    assert_is(&found, newest);
    let latest = world.latest();
    assert!(latest == 20 || latest == newest, "{what}: latest.json names {latest}");

    world.publish(3, 40, 1).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    assert_is(&world.newest().unwrap(), 40);
    assert_eq!(world.latest(), 40, "{what}");
    // Its own, the one before it, and nothing of the dead.
    let names = block_on(world.dir().survey()).unwrap().names;
    let before = if newest == 30 { name(2, 30) } else { name(1, 20) };
    assert_eq!(names, [name(3, 40), before], "{what}");
    (newest, latest)
}

#[test]
fn killed_before_or_after_any_operation_a_writer_leaves_the_right_checkpoint_loadable() {
    for like in ALL {
        for world_size in [1, 2] {
            let mut outcomes = BTreeSet::new();
            for at in 0.. {
                let mut survived = false;
                for fault in [Fault::DieBefore(at), Fault::DieAfter(at)] {
                    let world = World::new(like);
                    world.publish(1, 10, world_size).unwrap();
                    world.publish(1, 20, world_size).unwrap();
                    // Of a writer that died before this one.
                    let dir = world.dir();
                    let left = dir.object(name(1, 11), "state.json");
                    block_on(dir.store.put(&left, "half a checkpoint".into())).unwrap();

                    world.faulty.set(fault);
                    let _ = world.publish(2, 30, world_size);
                    survived |= !world.faulty.died();
                    world.faulty.set(Fault::None);
                    outcomes.insert(check_what_a_death_left(&world, fault, world_size));
                }
                if survived {
                    // Objects, manifest, pointer, and what there is to tidy up.
                    assert!(at >= 8, "{like:?}: only {at} operations");
                    break;
                }
            }
            let expected = BTreeSet::from([(20, 20), (30, 20), (30, 30)]);
            assert_eq!(outcomes, expected, "{like:?}, {world_size} ranks");
        }
    }
}

#[test]
fn a_lost_answer_to_any_operation_costs_no_checkpoint() {
    for like in [Like::Conditions, Like::Nothing] {
        for at in 0.. {
            let world = World::new(like);
            world.publish(1, 10, 2).unwrap();
            world.publish(1, 20, 2).unwrap();
            world.faulty.set(Fault::LoseReply(at));
            let published = world.publish(2, 30, 2);
            published.unwrap_or_else(|error| panic!("{like:?}, answer {at}: {error:?}"));
            let operations = world.faulty.operations();
            world.faulty.set(Fault::None);
            assert_is(&world.newest().unwrap(), 30);
            assert_eq!(world.latest(), 30, "{like:?}, answer {at}");
            if operations < at {
                break;
            }
        }
    }
}

#[test]
fn in_a_storm_of_failures_every_checkpoint_that_was_announced_is_whole() {
    // The seeds wait more than they compute.
    std::thread::scope(|scope| {
        for seed in 0..12 {
            scope.spawn(move || weather_a_storm(seed));
        }
    });
}

fn weather_a_storm(seed: u64) {
    let like = if seed.is_multiple_of(2) { Like::Conditions } else { Like::Nothing };
    let world = World::new(like);
    world.faulty.set(Fault::Storm(seed));
    for step in [10, 20, 30] {
        let grant = Arc::new(Coordinator::new(2));
        std::thread::scope(|scope| {
            for rank in [0, 1] {
                let grant: Arc<dyn Grant> = Arc::<Coordinator>::clone(&grant);
                let options = options(&world.uri, 1, rank, 2, grant);
                scope.spawn(move || {
                    let publisher = Publisher::new(options, CancellationToken::new()).unwrap();
                    let published = publisher.publish(snapshot(1, step, rank, 2));
                    published.unwrap_or_else(|error| panic!("seed {seed}, {step}: {error:?}"));
                });
            }
        });
        assert_is(&world.newest().unwrap(), step);
        assert_eq!(world.latest(), step, "seed {seed}");
    }
}

#[test]
fn a_torn_upload_is_invisible_and_the_next_one_is_whole() {
    let pieces = vec![Bytes::from(vec![5; 2 * CHUNK + 9])];
    for like in ALL {
        for at in 0.. {
            let fault = Fault::DieBefore(at);
            let world = World::new(like);
            let (dir, step) = (world.dir(), name(1, 1));
            let put = |step| {
                let (dir, pieces) = (&dir, pieces.clone());
                async move { upload::put(dir, step, "object", pieces, &CancellationToken::new()).await }
            };
            world.faulty.set(fault);
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let torn = runtime.block_on(put(step));
            let died = world.faulty.died();
            world.faulty.set(Fault::None);
            assert_eq!(torn.is_err(), died, "{like:?}, {fault:?}");
            let visible = runtime.block_on(dir.exists(step, "object")).unwrap();
            assert_eq!(visible, !died, "{like:?}, {fault:?}");
            let stored = runtime.block_on(put(name(1, 2))).unwrap();
            assert_eq!(stored.size, pieces[0].len() as u64);
            if !died {
                assert!(at >= 5, "a start, three parts and an end");
                break;
            }
        }
    }
}

#[test]
fn a_bit_that_changes_on_the_way_is_never_taken_for_what_was_saved() {
    for like in [Like::Conditions, Like::Nothing] {
        let world = World::new(like);
        world.publish(1, 10, 2).unwrap();
        world.publish(1, 20, 2).unwrap();
        let mut steps = BTreeSet::new();
        for at in 0.. {
            world.faulty.set(Fault::Corrupt(at));
            let log = logged(|| {
                let found = world.newest().expect("an older one is whole");
                assert_is(&found, found.state.step);
                steps.insert(found.state.step);
            });
            let last = world.faulty.operations() <= at;
            if !log.is_empty() {
                let url = format!("{}/step-0000000020.g1.1/", world.job_url());
                assert!(log.contains("WARN") && log.contains(&url), "read {at}: {log}");
            }
            if last {
                break;
            }
        }
        assert_eq!(steps, BTreeSet::from([10, 20]), "{like:?}");
    }
}

/// Returns the objects of the newest checkpoint, and where they are.
fn objects(dir: &CheckpointDir, name: StepName) -> Vec<Path> {
    let folder = dir.base.clone().join(name.to_string());
    let listed = dir.store.list(Some(&folder)).map_ok(|object| object.location);
    block_on(listed.try_collect()).unwrap()
}

#[test]
fn one_changed_byte_in_any_object_is_found_on_every_store_and_the_object_is_named() {
    let mut worlds: Vec<(String, CheckpointDir)> = Vec::new();
    let memory = World::new(Like::Conditions);
    worlds.push((memory.uri.clone(), memory.dir()));
    if let Some(server) = s3::server_for_part() {
        let opened = crate::dir::tests::stores::opened(&server.bucket(), "", &[]);
        register("one-changed-byte", opened);
        let uri = "memory://one-changed-byte/runs".to_owned();
        let dir = CheckpointDir::open(&job_url(&uri, JOB_ID)).unwrap();
        worlds.push((uri, dir));
    }
    for (uri, dir) in worlds {
        let publish = |step| {
            let grant = Arc::new(Coordinator::new(2));
            for rank in [1, 0] {
                let grant: Arc<dyn Grant> = Arc::<Coordinator>::clone(&grant);
                let options = options(&uri, 1, rank, 2, grant);
                let publisher = Publisher::new(options, CancellationToken::new()).unwrap();
                publisher.publish(snapshot(1, step, rank, 2)).unwrap();
            }
        };
        publish(10);
        publish(20);
        let found = || choose(&[&dir.url]).unwrap().unwrap().load().unwrap();
        let objects = objects(&dir, name(1, 20));
        assert_eq!(objects.len(), 5, "{uri}: {objects:?}");
        for object in objects {
            let get = async { dir.store.get(&object).await?.bytes().await };
            let good = block_on(get).unwrap();
            for at in [0, good.len() / 3, good.len() - 1] {
                let mut bad = good.to_vec();
                bad[at] ^= 0x80;
                block_on(dir.store.put(&object, bad.into())).unwrap();
                let log = logged(|| assert_is(&found(), 10));
                let file = object.filename().unwrap();
                let url = format!("{}/step-0000000020.g1.1/{file}", dir.url);
                assert!(log.contains("WARN") && log.contains(&url), "{uri}: {log}");
            }
            block_on(dir.store.put(&object, good.into())).unwrap();
        }
        assert_is(&found(), 20);
    }
}

/// A coordinator that says yes to a writer that then stands still while newer generations go on, or
/// that finds out meanwhile that the writer's generation is over.
struct LateGrant {
    inner: Coordinator,
    meanwhile: Box<dyn Fn() + Send + Sync>,
    refuses: bool,
}

impl Grant for LateGrant {
    fn report_shard(&self, step: u64, objects: Vec<StoredObject>) -> Result<(), GrantError> {
        self.inner.report_shard(step, objects)
    }

    fn report_failure(&self, step: u64, reason: &str) -> Result<(), GrantError> {
        self.inner.report_failure(step, reason)
    }

    fn commit(&self, step: u64, digest: u64) -> Result<Vec<StoredObject>, GrantError> {
        (self.meanwhile)();
        if self.refuses {
            return Err(GrantError {
                reason: "generation g1.1 is over, g1.2 is current".to_owned(),
            });
        }
        self.inner.commit(step, digest)
    }

    fn published(&self, step: u64, url: &str) -> Result<(), GrantError> {
        self.inner.published(step, url)
    }
}

#[test]
fn a_writer_of_a_stale_generation_publishes_nothing_that_anybody_would_choose() {
    for like in ALL {
        for refuses in [true, false] {
            let world = Arc::new(World::new(like));
            let other = Arc::clone(&world);
            let grant = LateGrant {
                inner: Coordinator::new(1),
                meanwhile: Box::new(move || other.publish(2, 15, 1).unwrap()),
                refuses,
            };
            let options = options(&world.uri, 1, 0, 1, Arc::new(grant));
            let stale = Publisher::new(options, CancellationToken::new()).unwrap();
            let result = stale.publish(snapshot(1, 90, 0, 1));
            assert_eq!(result.is_err(), refuses, "{like:?}");
            assert_eq!(world.exists(1, 90, "MANIFEST.json"), !refuses, "{like:?}");
            assert_is(&world.newest().unwrap(), 15);
            assert_eq!(world.latest(), 15, "{like:?}");
        }
    }
}
