//! A checkpoint folder without room or without right: said in the terminal, in the job's history and where the
//! job is described, and over as soon as somebody has made room.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringmaster_tests::binaries::binaries;
use ringmaster_tests::job::Job;
use ringmaster_tests::processes::{LIMIT, eventually};
use ringmaster_tests::skips;
use serde_json::Value;

/// Too little for the state of a tiny job, which is ten megabytes, and enough to try whether there is a right
/// to write.
const TOO_SMALL: &str = "size=2m";
/// Enough for its checkpoints.
const ROOM: &str = "size=256m";

/// How often the tests below are done: `cargo xtask soak disk-full` says more than once.
fn rounds() -> usize {
    std::env::var("RINGMASTER_SOAK_FULL_DISKS").map_or(1, |rounds| rounds.parse().unwrap())
}

/// A file system in memory, which ends with this value.
struct Disk {
    folder: PathBuf,
}

impl Disk {
    /// Returns none, after noting the skip, where it cannot be mounted.
    fn new(folder: &Path, options: &str) -> Option<Self> {
        fs::create_dir_all(folder).unwrap();
        let disk = Self { folder: folder.to_owned() };
        if disk.mount(&["-t", "tmpfs", "-o", options, "none"]) {
            return Some(disk);
        }
        skips::skip("mount", "a small file system cannot be mounted (needs root)");
        None
    }

    /// Changes it under whoever uses it. It is busy while a file in it is being written.
    fn change(&self, options: &str) {
        let options = format!("remount,{options}");
        let changed = eventually(LIMIT, || self.mount(&["-o", &options]));
        assert!(changed, "{} cannot be mounted with {options}", self.folder.display());
    }

    fn mount(&self, words: &[&str]) -> bool {
        let output = Command::new("mount").args(words).arg(&self.folder).output();
        output.is_ok_and(|output| output.status.success())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Also while a rank that a failed test has left behind still uses it.
        let _ = Command::new("umount").arg("--lazy").arg(&self.folder).output();
    }
}

/// `ringmaster train` with what it says in a file, and its coordinator.
struct Terminal {
    child: Child,
    said: PathBuf,
    people: String,
    id: String,
}

impl Terminal {
    fn start(job: &Job) -> Self {
        let state = job.folder().join("state");
        let said = job.folder().join("terminal");
        let mut command = job.train_command(&["--state-dir", &state.display().to_string()]);
        let command = command.stdout(Stdio::null()).stderr(File::create(&said).unwrap());
        let child = command.spawn().unwrap();
        let mut terminal = Self { child, said, people: String::new(), id: String::new() };
        let submitted = eventually(LIMIT, || terminal.find_job(&state.join("addresses.json")));
        assert!(submitted, "no job: {}", terminal.text());
        terminal
    }

    /// Whether the coordinator is there and has a job.
    fn find_job(&mut self, addresses: &Path) -> bool {
        let text = fs::read_to_string(addresses).unwrap_or_default();
        let addresses: Value = serde_json::from_str(&text).unwrap_or_default();
        self.people = addresses["people"].as_str().unwrap_or_default().to_owned();
        let jobs: Value =
            serde_json::from_str(&self.ask(&["ls", "--all", "--json"])).unwrap_or_default();
        // A list, or an object a line.
        let job = if jobs.is_array() { &jobs[0] } else { &jobs };
        self.id = job["job_id"].as_str().unwrap_or_default().to_owned();
        !self.id.is_empty()
    }

    /// What a verb of the command line prints.
    fn ask(&self, words: &[&str]) -> String {
        let output = Command::new(&binaries().ringmaster)
            .args(words)
            .args(["--coordinator", &format!("http://{}", self.people)])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// What `describe` shows above the history.
    fn description(&self) -> String {
        let text = self.ask(&["describe", &self.id]);
        text.split("\n\nHistory").next().unwrap_or_default().to_owned()
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.said).unwrap()
    }

    /// Waits until all three places tell why no checkpoint is stored.
    fn until_said(&self, reason: &str) {
        let tells = |text: &str, word: &str| {
            text.lines().any(|line| line.to_lowercase().contains(word) && line.contains(reason))
        };
        let places = || {
            [
                ("the terminal", self.text(), "checkpoint"),
                ("events", self.ask(&["events", &self.id]), "checkpoint_failed"),
                ("describe", self.description(), "checkpoint"),
            ]
        };
        let said = eventually(LIMIT, || places().iter().all(|(_, text, word)| tells(text, word)));
        assert!(said, "{reason:?} is missing in one of {:#?}", places());
    }

    /// Waits until no place tells of a trouble that is over, and a checkpoint is there.
    fn until_over(&self, reason: &str) {
        let stored = || {
            let text = self.description();
            !text.contains(reason) && text.lines().any(|line| line.starts_with("Checkpoint "))
        };
        assert!(eventually(LIMIT, stored), "{}", self.description());
    }

    fn end(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().unwrap();
        (status, self.text())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Only of a test that has failed; its agent and ranks end with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A job whose checkpoints go to `folder`.
fn job_saving_to(folder: &Path) -> Job {
    let mut job = Job::new();
    (job.checkpoint_every, job.when_busy) = (10, "skip");
    job.checkpoint_more = ", keep_last: 1".to_owned();
    job.uri = Some(folder.display().to_string());
    job
}

/// Steps of the complete checkpoints in a folder, as `checkpoints ls` lists them.
fn checkpoints(folder: &Path) -> Vec<u64> {
    let output: Output = Command::new(&binaries().ringmaster)
        .args(["checkpoints", "ls", "--json"])
        .arg(folder)
        .output()
        .unwrap();
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let all = listed[0]["checkpoints"].as_array().cloned().unwrap_or_default();
    let complete = all.iter().filter(|checkpoint| checkpoint["state"] == "complete");
    complete.map(|checkpoint| checkpoint["step"].as_u64().unwrap()).collect()
}

/// A disk that was full failed every checkpoint, and only a rank's log said so.
#[test]
fn a_checkpoint_folder_without_room_is_said_in_three_places_and_the_run_ends_well_once_there_is() {
    for _ in 0..rounds() {
        let disks = tempfile::tempdir().unwrap();
        let Some(disk) = Disk::new(&disks.path().join("checkpoints"), TOO_SMALL) else { return };
        let mut job = job_saving_to(&disk.folder);
        // The last checkpoint is tried until it is stored: the job does not end before there is room.
        job.steps = 40;
        let terminal = Terminal::start(&job);
        terminal.until_said("No space left on device");
        disk.change(ROOM);
        let folder = disk.folder.join(&terminal.id);
        let (status, said) = terminal.end();
        assert!(status.success(), "{status}: {said}");
        assert_eq!(job.latest_run().summary()["steps"], 40);
        assert_eq!(checkpoints(&folder), [40], "{said}");
    }
}

#[test]
fn a_checkpoint_folder_without_right_is_said_in_three_places_until_it_is_given_back() {
    for _ in 0..rounds() {
        let disks = tempfile::tempdir().unwrap();
        let Some(disk) = Disk::new(&disks.path().join("checkpoints"), ROOM) else { return };
        let mut job = job_saving_to(&disk.folder);
        job.steps = 100_000;
        let terminal = Terminal::start(&job);
        terminal.until_over("Read-only");
        disk.change("ro");
        terminal.until_said("Read-only file system");
        disk.change("rw");
        terminal.until_over("Read-only");
        kill(Pid::from_raw(terminal.child.id() as i32), Signal::SIGINT).unwrap();
        let folder = disk.folder.join(&terminal.id);
        let (status, said) = terminal.end();
        assert_eq!(status.code(), Some(130), "{said}");
        let last = job.latest_run().summary()["steps"].as_u64().unwrap();
        assert!(checkpoints(&folder).contains(&last), "step {last} is not saved: {said}");
    }
}
