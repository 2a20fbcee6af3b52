//! Ranks and terminals that die at moments the test chooses.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringmaster_tests::job::Job;
use ringmaster_tests::processes::{eventually, mentioning};

fn job() -> Job {
    let mut job = Job::new();
    (job.steps, job.checkpoint_every) = (12, 5);
    job
}

/// Trains with a fault and returns the final state; the marker proves that the fault struck.
fn final_state_after(faults: &[(u32, u64, &str)]) -> Vec<(String, Vec<u8>)> {
    let mut job = job();
    let marker = |i: usize| job.folder().join(format!("struck-{i}"));
    let text: Vec<String> = faults
        .iter()
        .enumerate()
        .map(|(i, (rank, step, at))| {
            format!("rank={rank},step={step},at={at},marker={}", marker(i).display())
        })
        .collect();
    let markers: Vec<_> = (0..faults.len()).map(marker).collect();
    job.env.insert("RINGMASTER_FAULT".into(), text.join(";"));
    let run = job.train(&[]);
    for marker in markers {
        assert!(marker.exists(), "the fault of {} never struck", marker.display());
    }
    let summary = run.summary();
    assert!(summary["recoveries"].as_u64().unwrap() >= 1, "{summary}");
    let steps: Vec<u64> = run.curve().iter().map(|(step, ..)| *step).collect();
    assert_eq!(steps.last(), Some(&12));
    run.final_state().into_iter().collect()
}

#[test]
fn a_rank_killed_anywhere_in_a_step_leaves_the_final_weights_bit_for_bit_the_same() {
    let undisturbed: Vec<(String, Vec<u8>)> = job().train(&[]).final_state().into_iter().collect();
    for at in ["before_reduce", "before_apply", "after_apply"] {
        for rank in [0, 1] {
            let disturbed = final_state_after(&[(rank, 7, at)]);
            assert!(disturbed == undisturbed, "rank {rank} killed {at} changed the weights");
        }
    }
}

#[test]
fn losing_every_rank_at_once_falls_back_to_the_checkpoint_and_ends_with_the_same_bits() {
    let undisturbed: Vec<(String, Vec<u8>)> = job().train(&[]).final_state().into_iter().collect();
    let disturbed = final_state_after(&[(0, 8, "after_apply"), (1, 8, "after_apply")]);
    assert!(disturbed == undisturbed);
}

#[test]
fn a_rank_killed_again_and_again_is_replaced_each_time() {
    let undisturbed: Vec<(String, Vec<u8>)> = job().train(&[]).final_state().into_iter().collect();
    let disturbed = final_state_after(&[
        (1, 2, "before_reduce"),
        (0, 4, "before_apply"),
        (1, 9, "after_apply"),
    ]);
    assert!(disturbed == undisturbed);
}

#[test]
fn killing_the_terminals_command_leaves_no_process_behind() {
    let mut job = job();
    job.steps = 100_000;
    let mut command = job.train_command(&[]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let metrics = job.folder().join("runs/latest/metrics.jsonl");
    let training = eventually(Duration::from_secs(60), || {
        std::fs::read_to_string(&metrics).is_ok_and(|text| text.lines().count() > 2)
    });
    let before = mentioning(job.folder());
    kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
    child.wait().unwrap();
    assert!(training, "the job never trained");
    assert!(before.len() >= 4, "command, agent and two ranks: {before:?}");
    let mut left = Vec::new();
    let gone = eventually(Duration::from_secs(10), || {
        left = mentioning(job.folder());
        left.is_empty()
    });
    assert!(gone, "still alive: {left:?}");
}
