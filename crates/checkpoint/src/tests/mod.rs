//! What checkpoints promise, on real files.

mod faults;
pub(crate) mod testing;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use ringmaster_proto::v1::{Generation, StoredObject};
use ringmaster_tests::logged::logged;
use tempfile::TempDir;

use self::testing::{Coordinator, Crash, JOB_ID, assert_is, options, publish, publisher, snapshot};
use super::*;

/// A folder of its own for each test.
struct Folder {
    root: TempDir,
}

impl Folder {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    fn uri(&self) -> &str {
        self.root.path().to_str().unwrap()
    }

    fn job(&self) -> PathBuf {
        self.root.path().join(JOB_ID)
    }

    fn job_url(&self) -> String {
        job_url(self.uri(), JOB_ID)
    }

    fn step(&self, name: &str) -> PathBuf {
        self.job().join(name)
    }

    fn steps(&self) -> BTreeSet<String> {
        entries(&self.job()).into_iter().filter(|name| name.starts_with("step-")).collect()
    }

    fn newest(&self) -> Option<Loaded> {
        choose(&[&self.job_url()]).unwrap().map(|chosen| chosen.load().unwrap())
    }

    /// The step latest.json names, after checking that it can be loaded.
    fn latest(&self) -> Option<u64> {
        let text = fs::read(self.job().join("latest.json")).ok()?;
        let pointer: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let place = format!("{}/{}", self.job_url(), pointer["prefix"].as_str().unwrap());
        let loaded = choose(&[&place]).unwrap().expect("latest.json names one").load().unwrap();
        assert_eq!(Some(loaded.state.step), pointer["step"].as_u64());
        assert_eq!(pointer["generation"], loaded.state.generation.to_string());
        pointer["step"].as_u64()
    }
}

fn entries(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// Saves one step by writers of all ranks and waits for them.
fn save_by_all(folder: &Folder, counter: u32, step: u64, world_size: usize) -> Vec<Published> {
    let grant = Arc::new(Coordinator::new(world_size));
    let mut writers: Vec<Writer> = (0..world_size)
        .map(|rank| {
            let grant: Arc<dyn Grant> = Arc::<Coordinator>::clone(&grant);
            Writer::new(options(folder.uri(), counter, rank, world_size, grant))
        })
        .collect();
    for (rank, writer) in writers.iter_mut().enumerate() {
        assert_eq!(writer.save(snapshot(counter, step, rank, world_size)), Saved::Started);
    }
    let published: Vec<Published> =
        writers.into_iter().map(|writer| writer.finish().unwrap().unwrap()).collect();
    assert_eq!(*grant.announced.lock().unwrap(), [(step, published[0].url.clone())]);
    published
}

#[test]
fn any_world_size_writes_what_any_other_reads() {
    // 30 elements in four parameters: slices cut parameters, and of 40 ranks some hold nothing.
    for world_size in [1, 2, 3, 7, 40] {
        let folder = Folder::new();
        let published = save_by_all(&folder, 7, 1000, world_size);
        let url = format!("{}/step-0000001000.g1.7", folder.job_url());
        assert!(published.iter().all(|p| *p == Published { step: 1000, url: url.clone() }));

        let chosen = choose(&[&folder.job_url()]).unwrap().unwrap();
        assert_eq!((chosen.url(), chosen.digest()), (url, Some(1000)));
        let loaded = chosen.load().unwrap();
        assert_is(&loaded, 1000);
        assert_eq!(loaded.state.world_size, world_size);
        assert_eq!(folder.latest(), Some(1000));
        let files = entries(&folder.step("step-0000001000.g1.7"));
        assert_eq!(files.len(), world_size + 3, "{files:?}");
    }
}

#[test]
fn a_place_may_be_a_path_a_file_url_a_job_or_a_checkpoint() {
    let folder = Folder::new();
    let spaced = folder.root.path().join("with space & ünïcode%41");
    let path = spaced.to_str().unwrap().to_owned();
    let url = url::Url::from_file_path(&spaced).unwrap().to_string();
    publish(&path, 1, 1);
    publish(&url, 1, 2);
    assert_eq!(entries(&spaced.join(JOB_ID)).len(), 4, "both spellings are one folder");
    for uri in [&path, &url] {
        let job = job_url(uri, JOB_ID);
        let step = format!("{job}/step-0000000001.g1.1");
        for (place, expected) in [(job.clone(), 2), (format!("{job}/"), 2), (step, 1)] {
            let chosen = choose(&[&place]).unwrap().unwrap();
            assert!(chosen.url().starts_with(&job), "{}", chosen.url());
            assert_is(&chosen.load().unwrap(), expected);
        }
    }
}

#[test]
fn the_first_place_that_has_a_complete_one_wins() {
    let (own, other) = (Folder::new(), Folder::new());
    assert!(choose(&[]).unwrap().is_none());
    assert!(choose(&[&own.job_url(), &other.job_url()]).unwrap().is_none());
    publish(other.uri(), 1, 90);
    let places = [own.job_url(), other.job_url()];
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    assert_is(&choose(&places).unwrap().unwrap().load().unwrap(), 90);
    publish(own.uri(), 2, 5);
    assert_is(&choose(&places).unwrap().unwrap().load().unwrap(), 5);
}

#[test]
fn a_newer_generation_counts_more_than_a_higher_step() {
    let folder = Folder::new();
    publish(folder.uri(), 1, 200);
    publish(folder.uri(), 2, 150);
    assert_is(&folder.newest().unwrap(), 150);
    assert_eq!(folder.latest(), Some(150));
}

#[test]
fn a_changed_byte_in_any_object_falls_back_to_the_older_checkpoint_and_names_the_object() {
    let folder = Folder::new();
    save_by_all(&folder, 1, 10, 2);
    save_by_all(&folder, 1, 20, 2);
    let newest = folder.step("step-0000000020.g1.1");
    let files = entries(&newest);
    assert_eq!(files.len(), 5);
    for file in files {
        let path = newest.join(&file);
        let good = fs::read(&path).unwrap();
        for at in [0, good.len() / 3, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 0x80;
            fs::write(&path, &bad).unwrap();
            let log = logged(|| assert_is(&folder.newest().unwrap(), 10));
            let url = format!("{}/step-0000000020.g1.1/{file}", folder.job_url());
            assert!(log.contains("WARN") && log.contains(&url), "{log}");
        }
        fs::write(&path, &good).unwrap();
        assert_is(&folder.newest().unwrap(), 20);
    }
}

#[test]
fn a_missing_or_shortened_object_falls_back_and_names_it() {
    for file in ["model.safetensors", "state.json", "optim-00001-of-00002.safetensors"] {
        let folder = Folder::new();
        save_by_all(&folder, 1, 10, 2);
        save_by_all(&folder, 1, 20, 2);
        let path = folder.step("step-0000000020.g1.1").join(file);
        let text = fs::read(&path).unwrap();
        fs::write(&path, &text[..text.len() - 1]).unwrap();
        let log = logged(|| assert_is(&folder.newest().unwrap(), 10));
        assert!(log.contains(file) && log.contains("the manifest says"), "{log}");
        fs::remove_file(&path).unwrap();
        let log = logged(|| assert_is(&folder.newest().unwrap(), 10));
        assert!(log.contains(file) && log.contains("does not exist"), "{log}");
    }
}

#[test]
fn a_checkpoint_without_manifest_does_not_exist() {
    let folder = Folder::new();
    publish(folder.uri(), 1, 10);
    publish(folder.uri(), 1, 20);
    fs::remove_file(folder.step("step-0000000020.g1.1/MANIFEST.json")).unwrap();
    assert_is(&folder.newest().unwrap(), 10);
    fs::remove_file(folder.step("step-0000000010.g1.1/MANIFEST.json")).unwrap();
    assert!(folder.newest().is_none());
}

#[test]
fn an_unparsable_state_that_verifies_is_an_error_not_a_reason_to_walk_back() {
    let folder = Folder::new();
    publish(folder.uri(), 1, 10);
    let chosen = choose(&[&folder.job_url()]).unwrap().unwrap();
    drop(chosen);
    let mut strange = snapshot(1, 20, 0, 1);
    if let Some(state) = &mut strange.state {
        state.version = 9;
    }
    publisher(folder.uri(), 1, Crash::default()).publish(strange).unwrap();
    let error = choose(&[&folder.job_url()]).unwrap().unwrap().load().unwrap_err();
    let text = error.to_string();
    assert!(text.contains("step-0000000020.g1.1/state.json has format version 9"), "{text}");
}

#[test]
fn what_the_coordinator_refuses_is_never_visible() {
    for (call, what) in [("report_shard", "the objects"), ("commit", "the commit")] {
        let folder = Folder::new();
        let mut coordinator = Coordinator::new(1);
        coordinator.refuses = Some(call);
        let mut writer = Writer::new(options(folder.uri(), 1, 0, 1, Arc::new(coordinator)));
        let _ = writer.save(snapshot(1, 10, 0, 1));
        let error = writer.finish().unwrap_err();
        assert_eq!(error.to_string(), format!("the coordinator did not take {what} of step 10"));
        let reason = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(reason, "generation g1.1 is over, g1.2 is current");
        assert!(folder.newest().is_none());
        assert_eq!(folder.latest(), None);
        assert!(!folder.step("step-0000000010.g1.1/MANIFEST.json").exists());
    }
}

#[test]
fn an_announcement_that_fails_leaves_a_good_checkpoint() {
    let folder = Folder::new();
    let mut coordinator = Coordinator::new(1);
    coordinator.refuses = Some("published");
    let mut writer = Writer::new(options(folder.uri(), 1, 0, 1, Arc::new(coordinator)));
    let _ = writer.save(snapshot(1, 10, 0, 1));
    assert!(writer.finish().is_err());
    assert_is(&folder.newest().unwrap(), 10);
    assert_eq!(folder.latest(), Some(10));
}

#[test]
fn only_the_newest_keep_last_checkpoints_stay() {
    let folder = Folder::new();
    for step in [10, 20, 30] {
        publish(folder.uri(), 1, step);
    }
    assert_eq!(folder.steps(), names(&["step-0000000020.g1.1", "step-0000000030.g1.1"]));
    publish(folder.uri(), 2, 25);
    assert_eq!(folder.steps(), names(&["step-0000000030.g1.1", "step-0000000025.g1.2"]));
    // A writer of an older generation whose grant came late.
    publish(folder.uri(), 1, 40);
    assert_eq!(folder.latest(), Some(25));
    assert!(folder.step("step-0000000025.g1.2").exists());
}

#[test]
fn what_a_dead_rank_left_behind_is_cleared_by_the_next_checkpoint() {
    let folder = Folder::new();
    let left = folder.step("step-0000000010.g1.1");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("model.safetensors#1"), "staged").unwrap();
    let running = folder.step("step-0000000010.g1.9");
    fs::create_dir_all(&running).unwrap();
    fs::write(running.join("state.json"), "being written").unwrap();
    publish(folder.uri(), 2, 15);
    assert_eq!(folder.steps(), names(&["step-0000000010.g1.9", "step-0000000015.g1.2"]));
}

#[test]
fn a_crash_before_any_phase_leaves_the_newest_loadable_and_latest_json_true() {
    let mut survived = false;
    let mut outcomes = BTreeSet::new();
    for at in 0.. {
        let folder = Folder::new();
        for step in [10, 20] {
            publish(folder.uri(), 1, step);
        }
        let left = folder.step("step-0000000011.g1.1");
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join("state.json"), "half a checkpoint").unwrap();

        let doomed = publisher(folder.uri(), 2, Crash::at(at));
        let visible_before_death = match doomed.publish(snapshot(2, 30, 0, 1)) {
            Ok(_) => {
                survived = folder.steps().len() == 2;
                true
            }
            Err(_) => folder.step("step-0000000030.g1.2/MANIFEST.json").exists(),
        };
        let newest = if visible_before_death { 30 } else { 20 };
        assert_is(&folder.newest().unwrap(), newest);
        let latest = folder.latest().expect("there was one before");
        assert!(latest == 20 || latest == newest, "death {at}: latest.json names {latest}");
        outcomes.insert((newest, latest));

        // Whoever comes next tidies up and goes on.
        publish(folder.uri(), 3, 40);
        assert_is(&folder.newest().unwrap(), 40);
        assert_eq!(folder.latest(), Some(40));
        let before = if newest == 30 { "step-0000000030.g1.2" } else { "step-0000000020.g1.1" };
        assert_eq!(folder.steps(), names(&[before, "step-0000000040.g1.3"]), "death {at}");
        if survived {
            assert!(at >= 10, "three objects and seven further phases");
            break;
        }
    }
    assert_eq!(outcomes, BTreeSet::from([(20, 20), (30, 20), (30, 30)]));
}

/// A coordinator that answers the report when the test says so.
struct Gate {
    entered: Mutex<Sender<()>>,
    open: Mutex<Receiver<()>>,
    inner: Coordinator,
}

impl Gate {
    fn new() -> (Arc<Self>, Receiver<()>, Sender<()>) {
        let (entered, reached) = channel();
        let (release, open) = channel();
        let (entered, open) = (Mutex::new(entered), Mutex::new(open));
        (Arc::new(Self { entered, open, inner: Coordinator::new(1) }), reached, release)
    }
}

impl Grant for Gate {
    fn report_shard(&self, step: u64, objects: Vec<StoredObject>) -> Result<(), GrantError> {
        self.entered.lock().unwrap().send(()).unwrap();
        self.open.lock().unwrap().recv().unwrap();
        self.inner.report_shard(step, objects)
    }
    fn report_failure(&self, _step: u64, _reason: &str) -> Result<(), GrantError> {
        Ok(())
    }

    fn commit(&self, step: u64, digest: u64) -> Result<Vec<StoredObject>, GrantError> {
        self.inner.commit(step, digest)
    }
    fn published(&self, step: u64, url: &str) -> Result<(), GrantError> {
        self.inner.published(step, url)
    }
}

#[test]
fn a_snapshot_is_skipped_while_the_one_before_it_is_being_written() {
    let folder = Folder::new();
    let (gate, reached, release) = Gate::new();
    let mut writer = Writer::new(options(folder.uri(), 1, 0, 1, gate));
    assert_eq!(writer.save(snapshot(1, 10, 0, 1)), Saved::Started);
    reached.recv().unwrap();
    assert_eq!(writer.save(snapshot(1, 20, 0, 1)), Saved::Skipped);
    assert!(writer.poll().is_none());
    release.send(()).unwrap();
    assert_eq!(writer.finish().unwrap().unwrap().step, 10);
    assert_eq!(folder.steps(), names(&["step-0000000010.g1.1"]));
}

#[test]
fn a_writer_without_snapshots_finishes_with_nothing() {
    let folder = Folder::new();
    let writer = Writer::new(options(folder.uri(), 1, 0, 1, Arc::new(Coordinator::new(1))));
    assert_eq!(writer.finish().unwrap(), None);
    assert!(!folder.job().exists());
}

#[test]
fn a_dropped_writer_asks_for_no_commit() {
    let folder = Folder::new();
    let (gate, reached, release) = Gate::new();
    let weak = Arc::downgrade(&gate);
    let inner = Arc::<Gate>::clone(&gate);
    let mut writer = Writer::new(options(folder.uri(), 1, 0, 1, gate));
    let _ = writer.save(snapshot(1, 10, 0, 1));
    reached.recv().unwrap();
    drop(writer);
    release.send(()).unwrap();
    // The thread holds the only other reference until it ends.
    while weak.strong_count() > 1 {
        std::thread::yield_now();
    }
    assert_eq!(inner.inner.commits.load(std::sync::atomic::Ordering::Relaxed), 0);
    assert!(folder.newest().is_none());
}

#[test]
fn a_snapshot_of_rank_0_without_model_is_refused_before_anything_is_written() {
    let folder = Folder::new();
    let bare = Snapshot { layout: Arc::default(), ..snapshot(1, 10, 0, 1) };
    let error = publisher(folder.uri(), 1, Crash::default()).publish(bare).unwrap_err();
    assert_eq!(error.to_string(), "checkpoint of step 10 lacks the model");
    assert!(!folder.job().exists());
}

#[test]
fn a_place_that_cannot_be_written_is_an_error_of_that_checkpoint_only() {
    let folder = Folder::new();
    let blocked = folder.root.path().join("blocked");
    fs::write(&blocked, "a file where a folder should be").unwrap();
    let grant = Arc::new(Coordinator::new(1));
    let mut writer = Writer::new(options(blocked.to_str().unwrap(), 1, 0, 1, grant));
    let _ = writer.save(snapshot(1, 10, 0, 1));
    let first = loop {
        match writer.poll() {
            Some(result) => break result,
            None => std::thread::yield_now(),
        }
    };
    assert!(first.unwrap_err().to_string().starts_with("cannot write /"));
    fs::remove_file(&blocked).unwrap();
    assert_eq!(writer.save(snapshot(1, 20, 0, 1)), Saved::Started);
    assert_eq!(writer.finish().unwrap().unwrap().step, 20);
}

#[test]
fn generations_in_files_are_readable_text() {
    let folder = Folder::new();
    publish(folder.uri(), 7, 10);
    let text = fs::read_to_string(folder.step("step-0000000010.g1.7/MANIFEST.json")).unwrap();
    assert!(text.contains("\"generation\": \"g1.7\""), "{text}");
    assert_eq!(folder.newest().unwrap().state.generation, Generation::new(1, 7));
}

/// Checkpoints as each past version wrote them, of step 12 by two ranks: `fixtures/v<state version>`.
#[test]
fn checkpoints_of_every_past_version_load() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    for version in 1..=STATE_VERSION {
        let job = fixtures.join(format!("v{version}"));
        let chosen = choose(&[job.to_str().unwrap()]).unwrap();
        let loaded = chosen.unwrap_or_else(|| panic!("no fixture v{version}")).load().unwrap();
        assert_is(&loaded, 12);
        assert_eq!(loaded.state.data.cursor, Cursor { next_batch: 12, next_sample: 12 * 64 });
        assert_eq!((loaded.state.rng.seed, loaded.state.rng.augmentation), (0, 12 * 64));
        assert_eq!(loaded.state.manifest.name, "tiny");
    }
}
