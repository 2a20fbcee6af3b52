//! The tcp collective between real processes: what the others see when one is killed, and what
//! the bench prints.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringmaster_bench::collective::monotonic;
use ringmaster_bench::processes::{Event, Group};
use ringmaster_tests::timing::fastest_of;
use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_ringmaster-bench");
const RANKS: usize = 4;
/// What the contract allows.
const PROMPT: Duration = Duration::from_secs(1);
/// What no machine is too busy for: whoever takes so long has noticed nothing, and waited for a limit.
const HUNG: Duration = Duration::from_secs(10);
/// Only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(120);
/// Times a rank is killed in an operation; another number in this variable makes a longer run.
const REPEATS: (&str, usize) = ("RINGMASTER_KILLS", 10);

#[test]
fn when_one_of_four_ranks_is_killed_in_an_all_reduce_the_others_fail_within_a_second() {
    kill_each("all_reduce");
}

#[test]
fn when_one_of_four_ranks_is_killed_in_a_barrier_the_others_fail_within_a_second() {
    kill_each("barrier");
}

/// Ranks 2 and 3 exchange nothing with 0 and 1, and learn of their end all the same.
#[test]
fn when_one_of_four_ranks_is_killed_in_pairwise_exchanges_both_pairs_fail_within_a_second() {
    kill_each("pairs");
}

/// Kills the ranks in turn, each in a fresh ring that repeats `op`.
fn kill_each(op: &str) {
    let repeats = std::env::var(REPEATS.0).map_or(REPEATS.1, |text| text.parse().unwrap());
    let mut slowest = Duration::ZERO;
    for repeat in 0..repeats {
        let noticed = fastest_of(PROMPT, || {
            let noticed = kill_one(op, repeat % RANKS);
            assert!(noticed < HUNG, "{op}, repetition {repeat}: {noticed:?}");
            noticed
        });
        assert!(noticed < PROMPT, "{op}, repetition {repeat}: {noticed:?}");
        slowest = slowest.max(noticed);
    }
    eprintln!("{op}: {repeats} of {repeats}, slowest {} ms", slowest.as_millis());
}

/// Returns how long after the signal the last survivor had its error.
fn kill_one(op: &str, victim: usize) -> Duration {
    let (op, ranks) = (format!("--op={op}"), format!("--ranks={RANKS}"));
    let args = ["collective", &op, &ranks, "--bytes=16777216", "--until-lost"];
    let mut group = Group::start(Path::new(BENCH), RANKS, 1, &args).unwrap();
    for _ in 0..RANKS {
        let (_, report) = next_report(&mut group);
        assert!(report["inside"].as_u64().is_some(), "{report}");
    }
    // Before the signal, so that the time includes the death itself.
    let killed_at = monotonic().unwrap();
    kill(Pid::from_raw(group.pid(victim) as i32), Signal::SIGKILL).unwrap();
    let mut last = Duration::ZERO;
    let (mut reported, mut ended) = (0, 0);
    while ended < RANKS {
        match group.next(PATIENCE).unwrap().expect("a survivor hangs") {
            (rank, Event::Report(report)) => {
                assert_ne!(rank, victim, "{report}");
                let at = Duration::from_nanos(report["lost_at"].as_u64().unwrap());
                assert!(at >= killed_at, "rank {rank} failed before the signal: {report}");
                let error = report["error"].as_str().unwrap();
                assert!(error.contains("lost rank") || error.contains("aborted"), "{error}");
                last = last.max(at - killed_at);
                reported += 1;
            }
            (rank, Event::Ended(status)) => {
                let expected = (rank == victim).then_some(Signal::SIGKILL as i32);
                assert_eq!(status.signal(), expected, "rank {rank}");
                assert!(rank == victim || status.success(), "rank {rank}: {status}");
                ended += 1;
            }
        }
    }
    assert_eq!(reported, RANKS - 1);
    last
}

fn next_report(group: &mut Group) -> (usize, Value) {
    match group.next(PATIENCE).unwrap().expect("a rank hangs") {
        (rank, Event::Report(report)) => (rank, report),
        (rank, Event::Ended(status)) => panic!("rank {rank} ended: {status}"),
    }
}

#[test]
fn the_bench_prints_one_line_with_all_its_fields() {
    for op in ["all_reduce", "ring"] {
        let args = ["collective", "--op", op, "--ranks", "3", "--bytes", "100000"];
        let output = Command::new(BENCH).args(args).args(["--steps", "3"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let line = String::from_utf8(output.stdout).unwrap();
        assert_eq!(line.lines().count(), 1, "{line}");
        let result: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&result["op"], &result["ranks"]), (&op.into(), &3.into()));
        assert_eq!((&result["bytes"], &result["steps"]), (&100_000.into(), &3.into()));
        let number = |field: &str| result[field].as_f64().unwrap();
        let rate = 100_000.0 / number("seconds") / 1e9;
        assert!((number("gigabytes_per_second") / rate - 1.0).abs() < 1e-9, "{line}");
        assert!(number("copy_gigabytes_per_second") > 0.0, "{line}");
        assert!(number("socket_gigabytes_per_second") > 0.0, "{line}");
    }
}

#[test]
fn the_bench_refuses_what_it_cannot_measure_and_names_it() {
    let refused = [
        (["all_reduce", "1", "64"], "1 is not in 2..=64"),
        (["all_reduce", "2", "7"], "must be a multiple of 4"),
        (["ring", "2", "0"], "must be above 0"),
        (["all_to_all", "2", "64"], "possible values: all_reduce, ring"),
    ];
    for ([op, ranks, bytes], message) in refused {
        let args = ["collective", "--op", op, "--ranks", ranks, "--bytes", bytes];
        let output = Command::new(BENCH).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(message), "{stderr}");
    }
}

#[test]
fn a_rank_that_fails_is_reported_with_its_stderr() {
    let script = ["-c", "echo '{\"address\": \"127.0.0.1:1\"}'; echo no memory left >&2; exit 3"];
    let error = Group::start(Path::new("/bin/sh"), 2, 1, &script)
        .and_then(Group::results)
        .unwrap_err()
        .to_string();
    // A child may be gone before it has been told its place.
    let told = error.contains("no memory left") && error.contains("exit status: 3");
    assert!(told || error.contains("is gone"), "{error}");
}
