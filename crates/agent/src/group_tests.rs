use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::*;
use crate::ffi::in_new_session;

/// Only a broken kernel or `setsid` makes anybody wait so long.
const LIMIT: Duration = Duration::from_secs(60);

/// A process that leads a session and has ended, its number not yet free.
struct Leader(Child);

impl Leader {
    fn new() -> Self {
        Self(in_new_session(&mut Command::new("/bin/true")).spawn().unwrap())
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.0.wait().unwrap();
    }
}

/// `ending.c`, compiled.
struct Program {
    folder: TempDir,
    path: PathBuf,
}

impl Program {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ending");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ending.c");
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
        let mut command = Command::new(&compiler);
        let compiled = command.arg("-pthread").arg("-o").args([&path, &source]).output();
        let compiled = compiled.unwrap_or_else(|e| {
            panic!("the build needs a C compiler, {compiler} does not start: {e}")
        });
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        Self { folder, path }
    }

    /// A status file that no other run of a test on this machine has.
    fn status(&self) -> PathBuf {
        self.folder.path().join("status.json")
    }

    /// Starts it in a session of its own, as something that fled a rank.
    fn start(&self, what: &str) -> Fled {
        let mut command = Command::new(&self.path);
        command.arg(what).env(env::STATUS_FILE, self.status()).stdout(Stdio::piped());
        Fled(in_new_session(&mut command).spawn().unwrap())
    }
}

/// A process that ends with the test at the latest.
struct Fled(Child);

impl Fled {
    fn runs(&self) -> bool {
        Process::of(self.0.id()).is_some()
    }
}

impl Drop for Fled {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    line
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(POLL);
    }
}

#[test]
fn a_session_ends_as_a_whole_even_what_left_the_process_group() {
    // `set -m` gives the background job a process group of its own.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "sleep 600 & set -m; sleep 600 & set +m; echo ready; wait"]);
    let mut leader = in_new_session(&mut command).stdout(Stdio::piped()).spawn().unwrap();
    first_line(&mut leader);
    assert_eq!(members(leader.id()).count(), 3);

    kill(pid(leader.id()), Signal::SIGKILL).unwrap();
    until("the leader survives SIGKILL", || Process::of(leader.id()).is_none());
    assert_eq!(clear(leader.id(), Path::new("/nonexistent")).found, 2);
    assert_eq!(members(leader.id()).count(), 0);
    leader.wait().unwrap();
}

#[test]
fn a_leader_that_still_runs_ends_with_its_session() {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "sleep 600 & echo ready; wait"]);
    let mut leader = in_new_session(&mut command).stdout(Stdio::piped()).spawn().unwrap();
    first_line(&mut leader);
    assert_eq!(clear(leader.id(), Path::new("/nonexistent")).found, 2);
    assert_eq!(members(leader.id()).count(), 0);
    leader.wait().unwrap();
}

#[test]
fn a_process_that_fled_into_its_own_session_is_found_by_its_environment() {
    let folder = tempfile::tempdir().unwrap();
    let status = folder.path().join("status.json");
    let mut command = Command::new("/bin/sh");
    command.env(env::STATUS_FILE, &status).args(["-c", "setsid sleep 600 & echo $!; wait"]);
    let mut leader = in_new_session(&mut command).stdout(Stdio::piped()).spawn().unwrap();
    let child: u32 = first_line(&mut leader).trim().parse().unwrap();
    let child = Process::of(child).unwrap();
    let leaves = || !child.is_led_by(leader.id());
    until("setsid never ran", leaves);

    kill(pid(leader.id()), Signal::SIGKILL).unwrap();
    until("the leader survives SIGKILL", || Process::of(leader.id()).is_none());
    assert_eq!(clear(leader.id(), &status).found, 1);
    assert!(!child.runs());
    leader.wait().unwrap();
}

/// A rank's agent said that it was gone as soon as nothing could be read of it. It gives up its
/// memory first, and only then its ports and its GPU: what took its place found them in use.
#[test]
fn a_process_is_gone_once_it_has_ended_and_not_once_its_memory_is_given_up() {
    let (program, leader) = (Program::new(), Leader::new());
    let mut large = program.start("large");
    first_line(&mut large.0);
    assert_eq!(clear(leader.0.id(), &program.status()).found, 1);
    assert!(!large.runs());
}

#[test]
fn a_process_whose_main_thread_has_ended_is_found_and_ended() {
    let (program, leader) = (Program::new(), Leader::new());
    let mut headless = program.start("headless");
    first_line(&mut headless.0);
    let stat = format!("/proc/{}/stat", headless.0.id());
    let is_zombie = || std::fs::read_to_string(&stat).unwrap().contains(") Z ");
    until("its main thread never ended", is_zombie);
    assert!(headless.runs());
    assert_eq!(clear(leader.0.id(), &program.status()).found, 1);
    assert!(!headless.runs());
}

/// In the middle of an exec a process has no environment, and was taken for a stranger's.
#[test]
fn a_process_in_the_middle_of_an_exec_is_found() {
    let (program, leader) = (Program::new(), Leader::new());
    for _ in 0..100 {
        let restless = program.start("restless");
        assert_eq!(clear(leader.0.id(), &program.status()).found, 1);
        assert!(!restless.runs());
    }
}

#[test]
fn only_a_socket_that_refuses_belongs_to_an_agent_that_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    assert!(nobody_answers(&path));
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert!(!nobody_answers(&path));
    drop(listener);
    assert!(nobody_answers(&path));
    // A name that no socket can have says nothing of an agent.
    assert!(!nobody_answers(&folder.path().join("x".repeat(200))));
}

#[test]
fn the_environment_of_a_rank_says_which_slot_it_holds() {
    let known = |text: &str| Environment::Known(text.replace(' ', "\0").into_bytes());
    let of_rank = known("RINGMASTER_JOB_ID=job RANK=2 LOCAL_RANK=5 ");
    assert_eq!(place(&of_rank), Some((("job".to_owned(), Seat(2)), 5)));
    for other in ["RANK=2 LOCAL_RANK=5", "RINGMASTER_JOB_ID=job RANK=x LOCAL_RANK=5", ""] {
        assert_eq!(place(&known(other)), None, "{other}");
    }
    assert_eq!(place(&Environment::Released), None);
}
