//! The thread that owns the communicator, against a device and an NCCL that do as they are told.
//!
//! `stub.c` takes the place of libcuda and libnccl in a process of its own: the test program starts
//! itself again with the compiled stub in `LD_LIBRARY_PATH`, to run one test that does nothing
//! otherwise.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Which case a started process plays.
const CASE: &str = "RINGMASTER_TEST_NCCL_STUB";
/// As in `stub.c`.
const FINE: u8 = 0;
const ABSENT_PEERS: u8 = 1;
const STUCK: u8 = 2;
const REMOTE_ERROR: u8 = 3;
const UNREADY: u8 = 4;
const HANGING_ABORT: u8 = 5;

fn options(what: u8) -> Options {
    let mut id = [0; UniqueId::LEN];
    id[0] = what;
    Options {
        id: UniqueId::from_bytes(&id).unwrap(),
        rank: 0,
        world_size: 2,
        ordinal: 0,
        connect_timeout: Duration::from_secs(60),
        deadline: None,
        abort_deadline: Duration::from_secs(20),
        on_failure: None,
    }
}

fn connect(what: u8) -> Nccl {
    Nccl::connect(options(what), &AbortFlag::new()).unwrap()
}

/// An all-reduce of eight numbers at an address that is never read.
fn start(ring: &Nccl) -> Result<Pending, Error> {
    let data = DeviceBytes::at(0x5000, 32);
    let (dtype, op) = (data_type(Kind::Float), sys::RedOp::ncclSum);
    ring.start("all_reduce", Call::AllReduce { data, dtype, op, mask: None }, None, &[])
}

/// Runs one case, which passes, in a process with the stub; returns what the stub wrote.
fn run_case(case: &str) -> String {
    let output = start_case(case);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && out.contains("1 passed"), "{case}: {out}{text}");
    text
}

/// Runs one case in a process with the stub, however it ends.
fn start_case(case: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let stub = folder.path().join("stub.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/collective/nccl/stub.c");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let compiled = Command::new(&compiler)
        .args(["-shared", "-fPIC", "-o"])
        .args([&stub, &source])
        .output()
        .unwrap_or_else(|e| panic!("the build needs a C compiler, {compiler} does not start: {e}"));
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    // One file under all names: the linker loads it once, so that both halves share their state.
    // cudarc looks for the unversioned name first, which a machine with a driver may have elsewhere.
    for name in ["libcuda.so", "libcuda.so.1", "libnccl.so.2"] {
        symlink(&stub, folder.path().join(name)).unwrap();
    }
    let inherited = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let folders =
        std::iter::once(folder.path().to_owned()).chain(std::env::split_paths(&inherited));
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "collective::nccl::stub_tests::stub_process", "--nocapture"])
        .env("LD_LIBRARY_PATH", std::env::join_paths(folders).unwrap())
        .env(CASE, case)
        .output()
        .unwrap()
}

/// A started process: plays its case, with the stub as driver and NCCL.
#[test]
fn stub_process() {
    let Ok(case) = std::env::var(CASE) else { return };
    match case.as_str() {
        "fine" => operations_succeed(),
        "abort" => an_abort_is_no_success(),
        "remote" => a_remote_error_is_told(),
        "deadline" => a_deadline_passes(),
        "unready" => an_abort_ends_a_call_that_nccl_does_not_finish(),
        "absent" => absent_peers_are_an_error(),
        "hanging" => a_hanging_abort_ends_the_process(),
        "interrupted" => an_abort_ends_the_wait_for_peers(),
        other => panic!("no case {other}"),
    }
}

fn operations_succeed() {
    let ring = connect(FINE);
    let pending: Vec<Pending> = (0..5).map(|_| start(&ring).unwrap()).collect();
    for pending in pending {
        pending.wait().unwrap();
    }
    ring.settle().unwrap();
    assert_eq!(ring.sequence(), 5);
    // An aborter that lives on does not keep the communicator open.
    let aborter = ring.aborter();
    drop(ring);
    aborter.abort("too late to matter");
}

fn an_abort_is_no_success() {
    let ring = connect(STUCK);
    start(&ring).unwrap().wait().expect("it is queued; how it ends shows later");
    let aborter = ring.aborter();
    std::thread::scope(|scope| {
        scope.spawn(move || aborter.abort("told to"));
        let error = ring.settle().unwrap_err();
        assert!(matches!(&error, Error::Aborted { reason } if reason == "told to"), "{error}");
    });
    // The stub's event has happened now; the operation has failed all the same.
    assert!(ring.settle().is_err());
    let error = start(&ring).unwrap_err();
    assert!(matches!(&error, Error::Aborted { reason } if reason == "told to"), "{error}");
}

fn a_remote_error_is_told() {
    let told = Arc::new(AtomicBool::new(false));
    let on_failure = Some(Aborter::new({
        let told = Arc::clone(&told);
        move |_| told.store(true, Ordering::SeqCst)
    }));
    let flag = AbortFlag::new();
    let ring = Nccl::connect(Options { on_failure, ..options(REMOTE_ERROR) }, &flag).unwrap();
    let error = start(&ring).and_then(Pending::wait).and_then(|()| ring.settle()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("all_reduce #1: communicator: ncclRemoteError: words of the stub"),
        "{text}"
    );
    assert!(told.load(Ordering::SeqCst), "the host's connections are told before anybody here");
    assert!(flag.get().is_some_and(|reason| reason.contains("ncclRemoteError")));
}

fn a_deadline_passes() {
    let deadline = Some(Duration::from_millis(50));
    let ring = Nccl::connect(Options { deadline, ..options(STUCK) }, &AbortFlag::new()).unwrap();
    start(&ring).unwrap().wait().unwrap();
    let text = ring.settle().unwrap_err().to_string();
    assert!(text.contains("all_reduce #1 exceeded its deadline of 50ms"), "{text}");
}

fn an_abort_ends_a_call_that_nccl_does_not_finish() {
    let ring = connect(UNREADY);
    let (first, second) = (start(&ring).unwrap(), start(&ring).unwrap());
    ring.aborter().abort("told to");
    // What never reached the stream fails in wait() already, and what was queued behind it too.
    assert!(first.wait().is_err() && second.wait().is_err());
    assert!(ring.settle().is_err());
}

fn a_hanging_abort_ends_the_process() {
    let abort_deadline = Duration::from_millis(100);
    let options = Options { abort_deadline, ..options(HANGING_ABORT) };
    let ring = Nccl::connect(options, &AbortFlag::new()).unwrap();
    start(&ring).unwrap().wait().unwrap();
    ring.aborter().abort("told to");
    // Never returns: the abort does not, and until it has, nobody is told anything.
    let _ = ring.settle();
    println!("settled");
}

fn absent_peers_are_an_error() {
    let connect_timeout = Duration::from_millis(50);
    let options = Options { connect_timeout, ..options(ABSENT_PEERS) };
    let text = Nccl::connect(options, &AbortFlag::new()).unwrap_err().to_string();
    assert_eq!(
        text,
        "cannot form the ring of 2 ranks: not all ranks had joined the communicator after 50ms"
    );
}

fn an_abort_ends_the_wait_for_peers() {
    let flag = AbortFlag::new();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| Nccl::connect(options(ABSENT_PEERS), &flag));
        flag.set("a newer generation begins");
        let error = waiting.join().unwrap().unwrap_err();
        assert!(matches!(&error, Error::Aborted { reason } if reason.contains("newer")), "{error}");
    });
}

#[test]
fn operations_succeed_and_the_communicator_closes_politely() {
    let stub = run_case("fine");
    assert!(stub.contains("stub: destroyed\n") && !stub.contains("stub: aborted"), "{stub}");
}

#[test]
fn what_an_abort_ends_has_not_succeeded() {
    assert!(run_case("abort").contains("stub: aborted"));
}

#[test]
fn an_error_of_the_network_ends_the_communicator_and_tells_the_peers() {
    assert!(run_case("remote").contains("stub: aborted"));
}

#[test]
fn an_operation_that_outlasts_its_deadline_is_aborted() {
    assert!(run_case("deadline").contains("stub: aborted"));
}

#[test]
fn a_call_that_never_reaches_the_stream_fails_with_all_behind_it() {
    assert!(run_case("unready").contains("stub: aborted"));
}

#[test]
fn a_process_whose_abort_hangs_ends_and_counts_as_lost() {
    let output = start_case("hanging");
    assert_eq!(output.status.code(), Some(1), "{}", output.status);
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(!out.contains("settled") && !out.contains("test result"), "{out}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("stub: aborted"));
}

#[test]
fn peers_that_do_not_come_in_time_are_an_error() {
    assert!(run_case("absent").contains("stub: aborted"));
}

#[test]
fn an_abort_ends_the_wait_for_peers_that_do_not_come() {
    assert!(run_case("interrupted").contains("stub: aborted"));
}
