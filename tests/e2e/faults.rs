//! Ranks and terminals that die at moments the test chooses.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringmaster_tests::job::Job;
use ringmaster_tests::processes::{eventually, mentioning};
use ringmaster_tests::tiny;

fn job() -> Job {
    let mut job = Job::new();
    (job.steps, job.checkpoint_every) = (12, 5);
    job
}

/// Trains with a fault and returns the final state; the marker proves that the fault struck.
fn final_state_after(job: Job, faults: &[(u32, u64, &str)]) -> Vec<(String, Vec<u8>)> {
    let mut job = job;
    let live = job.checkpoint_every > job.steps;
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
    if live {
        assert_eq!(steps, (1..=12).collect::<Vec<u64>>(), "every step is written down, none twice");
    }
    run.final_state().into_iter().collect()
}

#[test]
fn a_rank_killed_anywhere_in_a_step_leaves_the_final_weights_bit_for_bit_the_same() {
    let undisturbed: Vec<(String, Vec<u8>)> = job().train(&[]).final_state().into_iter().collect();
    for at in ["before_reduce", "before_apply", "after_apply"] {
        for rank in [0, 1] {
            // Without a checkpoint to fall back to, only the survivor's state can bring it back.
            let mut job = job();
            job.checkpoint_every = 1000;
            let disturbed = final_state_after(job, &[(rank, 7, at)]);
            assert!(disturbed == undisturbed, "rank {rank} killed {at} changed the weights");
        }
    }
}

#[test]
fn three_ranks_of_uneven_shares_survive_the_loss_of_any_one() {
    let three = || {
        let mut job = job();
        (job.ranks, job.checkpoint_every) = (3, 1000);
        job
    };
    let undisturbed: Vec<(String, Vec<u8>)> =
        three().train(&[]).final_state().into_iter().collect();
    for (rank, at) in [(0, "after_apply"), (1, "before_reduce"), (2, "before_apply")] {
        let disturbed = final_state_after(three(), &[(rank, 6, at)]);
        assert!(disturbed == undisturbed, "rank {rank} killed {at} changed the weights");
    }
}

#[test]
fn a_substitution_in_the_very_step_of_a_fault_is_counted_once() {
    let corrupt = |mut job: Job| {
        // Every shard has one: some step before the fault and the step itself meet theirs.
        let bad: Vec<(usize, usize)> = (0..12).map(|shard| (shard, 3 * shard)).collect();
        job.train = tiny::write_shards(&job.folder().join("bad"), 12, &bad);
        (job.max_corrupt, job.checkpoint_every) = (0.1, 1000);
        job
    };
    let undisturbed_job = corrupt(job());
    let undisturbed = undisturbed_job.train(&[]);
    let per_step = undisturbed.metrics();
    let count = |line: &serde_json::Value| line["train/substituted"].as_f64().unwrap();
    let step = (1..per_step.len())
        .find(|&i| count(&per_step[i]) > count(&per_step[i - 1]))
        .expect("some step after the first meets a corrupt sample");
    for at in ["before_apply", "after_apply"] {
        let mut job = corrupt(job());
        let marker = job.folder().join("struck");
        let fault = format!("rank=1,step={},at={at},marker={}", step + 1, marker.display());
        job.env.insert("RINGMASTER_FAULT".into(), fault);
        let run = job.train(&[]);
        assert!(marker.exists());
        assert_eq!(run.summary()["substituted"], undisturbed.summary()["substituted"], "{at}");
        assert_eq!(run.curve(), undisturbed.curve(), "{at}");
    }
}

#[test]
fn losing_every_rank_at_once_falls_back_to_the_checkpoint_and_ends_with_the_same_bits() {
    let undisturbed: Vec<(String, Vec<u8>)> = job().train(&[]).final_state().into_iter().collect();
    let disturbed = final_state_after(job(), &[(0, 8, "after_apply"), (1, 8, "after_apply")]);
    assert!(disturbed == undisturbed);
}

#[test]
fn a_rank_killed_after_the_last_checkpoint_is_replaced_and_the_run_still_finishes() {
    // Step 12 was saved already: the new generation saves it again under its own prefix.
    let undisturbed: Vec<(String, Vec<u8>)> = job().train(&[]).final_state().into_iter().collect();
    for rank in [0, 1] {
        let disturbed = final_state_after(job(), &[(rank, 12, "before_last_eval")]);
        assert!(disturbed == undisturbed, "rank {rank}");
    }
}

#[test]
fn a_rank_killed_again_and_again_is_replaced_each_time() {
    let undisturbed: Vec<(String, Vec<u8>)> = job().train(&[]).final_state().into_iter().collect();
    let disturbed = final_state_after(
        job(),
        &[(1, 2, "before_reduce"), (0, 4, "before_apply"), (1, 9, "after_apply")],
    );
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
