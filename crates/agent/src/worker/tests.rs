//! Tests of what is found out about a worker, with shell scripts as workers.

use std::fs;

use tempfile::TempDir;

use super::*;

/// What a worker answers that sees GPUs of these UUIDs.
fn answer(version: &str, uuids: &[&str]) -> String {
    let device = |uuid: &&str| DeviceInfo { uuid: (*uuid).to_owned(), ..DeviceInfo::default() };
    let info = WorkerInfo {
        version: version.to_owned(),
        protocol: ringmaster_proto::limits::RANK_PROTOCOL,
        devices: uuids.iter().map(device).collect(),
        ..WorkerInfo::default()
    };
    serde_json::to_string(&info).unwrap()
}

/// A worker at the end of a prefix: a shell reads it, so that nothing is executed that was just written.
struct Script {
    folder: TempDir,
    worker: Worker,
}

impl Script {
    fn new() -> Self {
        Self::with_slots("cpu", 1)
    }

    fn with_slots(accelerator: &str, slots: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker");
        let program = RankProgram::Worker { path, prefix: vec!["/bin/sh".into()] };
        let accelerator = accelerator.to_owned();
        let demands = Demands { accelerator, slots, takes_faults: false };
        Self { folder, worker: Worker::new(program, demands) }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("worker")
    }

    /// Replaces the worker, as an installer does.
    fn put(&self, text: &str) {
        let next = self.path().with_extension("next");
        fs::write(&next, text).unwrap();
        fs::rename(&next, self.path()).unwrap();
    }

    fn answering(&self, version: &str) {
        self.listing(version, &[]);
    }

    /// Answers with these GPUs.
    fn listing(&self, version: &str, uuids: &[&str]) {
        let answer = answer(version, uuids);
        self.put(&format!("test \"$1 $2\" = 'probe --json' && echo '{answer}'"));
    }

    /// The UUIDs that the coordinator is told, by slot.
    fn slots(&self) -> Vec<String> {
        let devices = self.worker.message().unwrap().devices;
        devices.into_iter().map(|device| device.uuid).collect()
    }

    fn unusable(&self) -> String {
        self.worker.message().unwrap().unusable
    }

    fn may_have_changed(&self) -> bool {
        self.worker.may_have_changed(Stamp::at(&self.path()))
    }
}

#[test]
fn a_worker_is_usable_once_it_has_answered_and_starts_ranks_from_then_on() {
    let script = Script::new();
    script.answering("v1");
    let never = |_: &mut Command| unreachable!("nothing is started");
    assert!(script.worker.start(never).is_err(), "not probed yet");
    script.worker.probe();
    assert_eq!(script.unusable(), "");
    assert_eq!(script.worker.message().unwrap().version, "v1");
    let spawn = |command: &mut Command| {
        assert_eq!(
            command.get_args().collect::<Vec<_>>(),
            [script.path().as_os_str(), "rank".as_ref()]
        );
        command.spawn()
    };
    script.worker.start(spawn).unwrap().wait().unwrap();
}

#[test]
fn a_worker_is_asked_again_when_its_file_changes_and_only_then() {
    let script = Script::new();
    script.answering("v1");
    script.worker.probe();
    assert!(!script.may_have_changed());
    script.answering("v2, an update");
    assert!(script.may_have_changed());
    script.worker.probe();
    assert_eq!(script.worker.message().unwrap().version, "v2, an update");
    assert!(!script.may_have_changed());
}

#[test]
fn a_worker_that_cannot_start_says_why_starts_no_rank_and_may_recover() {
    let script = Script::new();
    script.put("echo 'libtorch_cpu.so is missing' >&2; exit 127");
    script.worker.probe();
    assert!(script.unusable().contains("libtorch_cpu.so is missing"), "{}", script.unusable());
    assert!(script.unusable().starts_with(&script.path().display().to_string()));
    let never = |_: &mut Command| unreachable!("nothing is started");
    let refused = script.worker.start(never).unwrap_err();
    assert!(
        refused.for_the_worker && refused.why.contains("libtorch_cpu.so is missing"),
        "{refused:?}"
    );
    script.answering("v1");
    assert!(script.may_have_changed());
    script.worker.probe();
    assert_eq!(script.unusable(), "");
}

/// A GPU that fell off the bus made its node unusable, and the slots behind it would have had their
/// neighbours' GPUs.
#[test]
fn a_gpu_that_has_gone_keeps_its_place_and_is_not_listed_until_it_is_back() {
    let script = Script::with_slots("cuda", 3);
    script.listing("v1", &["a", "b", "c"]);
    script.worker.probe();
    assert_eq!(script.worker.listed().0, ["a", "b", "c"]);
    script.listing("v1", &["a", "c"]);
    script.worker.probe();
    assert_eq!(
        (script.unusable().as_str(), script.slots()),
        ("", ["a", "b", "c"].map(String::from).to_vec())
    );
    assert_eq!(script.worker.listed().0, ["a", "c"]);
    // None at all is no answer, and forgets no place.
    script.put("echo 'no driver' >&2; exit 1");
    script.worker.probe();
    assert!(script.unusable().contains("no driver") && script.worker.listed().0.is_empty());
    script.listing("v1", &["c", "b", "a"]);
    script.worker.probe();
    assert_eq!(
        (script.unusable().as_str(), script.slots()),
        ("", ["a", "b", "c"].map(String::from).to_vec())
    );
    // Fewer GPUs than slots from the start are a mistake.
    let script = Script::with_slots("cuda", 3);
    script.listing("v1", &["a", "c"]);
    script.worker.probe();
    assert!(script.unusable().contains("2 of the 3 GPUs"), "{}", script.unusable());
}

#[test]
fn a_device_that_failed_is_asked_for_at_once_and_then_now_and_then() {
    let script = Script::new();
    let probed = script.worker.listed().1;
    assert!(!script.worker.is_missing_a_device(None));
    assert!(script.worker.is_missing_a_device(Some(probed)));
    assert!(script.worker.is_missing_a_device(Some(probed + Duration::from_secs(1))));
    let before = probed.checked_sub(Duration::from_millis(1)).unwrap();
    assert!(!script.worker.is_missing_a_device(Some(before)), "it was asked just now");
    let long_ago = Instant::now().checked_sub(RETRY_INTERVAL).unwrap();
    script.worker.found.send_modify(|found| found.at = long_ago);
    let before = long_ago.checked_sub(Duration::from_millis(1)).unwrap();
    assert!(script.worker.is_missing_a_device(Some(before)));
}

/// It counted as the job's fault, and the worker as usable, until its file changed.
#[test]
fn a_worker_that_cannot_be_started_any_more_is_unusable_until_it_has_been_probed_again() {
    let script = Script::new();
    script.answering("v1");
    script.worker.probe();
    let fails = |_: &mut Command| Err(io::Error::from(io::ErrorKind::ExecutableFileBusy));
    let refused = script.worker.start(fails).unwrap_err();
    assert!(refused.for_the_worker, "{refused:?}");
    assert!(script.unusable().contains("a rank could not be started"), "{}", script.unusable());
    assert_eq!(script.worker.suspect(), None);
    assert_eq!(script.unusable(), "");
}

#[test]
fn a_worker_whose_file_was_written_to_starts_no_rank_before_it_has_been_probed_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("worker");
    fs::write(&path, "one").unwrap();
    let program = RankProgram::Worker { path: path.clone(), prefix: Vec::new() };
    let demands = Demands { accelerator: "cpu".to_owned(), slots: 1, takes_faults: false };
    let worker = Worker::new(program, demands);
    let executable = Some(Arc::new(Executable::open(&path).unwrap()));
    worker.found.send_modify(|found| (found.unusable, found.executable) = (None, executable));
    fs::write(&path, "another").unwrap();
    let never = |_: &mut Command| unreachable!("nothing is started");
    let refused = worker.start(never).unwrap_err();
    assert!(refused.for_the_worker && refused.why.contains("written to"), "{refused:?}");
}

#[test]
fn a_worker_that_is_not_there_makes_the_node_unusable() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none");
    let program = RankProgram::Worker { path, prefix: Vec::new() };
    let demands = Demands { accelerator: "cpu".to_owned(), slots: 1, takes_faults: false };
    let worker = Worker::new(program, demands);
    worker.probe();
    let why = worker.unusable().unwrap();
    assert!(why.contains("cannot be opened") && why.contains("No such file"), "{why}");
}

/// The worker was blamed for what was not there.
#[test]
fn a_prefix_that_cannot_be_started_is_named() {
    let program =
        RankProgram::Worker { path: "/bin/true".into(), prefix: vec!["/no/numactl".into()] };
    let demands = Demands { accelerator: "cpu".to_owned(), slots: 1, takes_faults: false };
    let worker = Worker::new(program, demands);
    worker.probe();
    let why = worker.unusable().unwrap();
    assert!(why.starts_with("started by --rank-prefix /no/numactl: it cannot"), "{why}");
}

#[test]
fn a_program_for_tests_is_taken_as_it_is() {
    let program = RankProgram::Other(vec!["/bin/true".into(), "rank".into()]);
    let demands = Demands { accelerator: "cpu".to_owned(), slots: 1, takes_faults: false };
    let worker = Worker::new(program, demands);
    assert_eq!((worker.message(), worker.unusable()), (None, None));
    assert!(worker.start(Command::spawn).unwrap().wait().unwrap().success());
}
