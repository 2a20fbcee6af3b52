//! Ranks and terminals that die at moments the test chooses.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringmaster_tests::job::{Job, Run};
use ringmaster_tests::processes::{LIMIT, eventually, mentioning, until_gone};
use ringmaster_tests::tiny;

fn job() -> Job {
    let mut job = Job::new();
    (job.steps, job.checkpoint_every) = (12, 5);
    job
}

/// Trains with faults and returns the run; the markers prove that the faults struck.
fn run_with(job: &mut Job, faults: &[(u32, u64, &str)]) -> Run {
    let live = job.checkpoint_every > job.steps;
    let marker = |i: usize| job.folder().join(format!("struck-{i}"));
    let text: Vec<String> = faults
        .iter()
        .enumerate()
        .map(|(i, (rank, step, at))| {
            // `{1}` in a place stands for the marker of fault 1.
            let name = |at: String, i: usize| {
                at.replace(&format!("{{{i}}}"), &marker(i).display().to_string())
            };
            let at = (0..faults.len()).fold((*at).to_owned(), name);
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
    run
}

/// Trains with faults and returns the final state.
fn final_state_after(job: Job, faults: &[(u32, u64, &str)]) -> Vec<(String, Vec<u8>)> {
    let mut job = job;
    run_with(&mut job, faults).final_state().into_iter().collect()
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
fn a_survivor_that_missed_the_end_of_ready_applies_the_gradients_it_holds() {
    // As when a rank dies after its part of *ready* has reached only one of two peers: that one
    // applies the step, the other has entered *ready* and never learns that it is over.
    let three = || {
        let mut job = job();
        (job.ranks, job.checkpoint_every) = (3, 1000);
        job
    };
    let calm = three();
    let undisturbed = calm.train(&[]);
    for (applied, held, dead) in [(1, 2, 0), (2, 0, 1)] {
        let mut job = three();
        // All three are past the all-reduce before the first of them strikes.
        let faults = [
            (applied, 6, "after_apply,act=live"),
            (held, 6, "in_ready,after={0},after={2}"),
            (dead, 6, "before_apply,after={0},after={1}"),
        ];
        let run = run_with(&mut job, &faults);
        let log = run.log();
        let said = |words: &str| log.lines().filter(|line| line.contains(words)).count();
        assert_eq!(said("applying the gradients held since the fault"), 1, "{log}");
        assert_eq!(said("the gradients held gave the same state"), 1, "{log}");
        assert!(run.final_state() == undisturbed.final_state(), "rank {held} changed the weights");
        assert_eq!(run.curve(), undisturbed.curve(), "rank {held}");
    }
}

#[test]
fn held_gradients_alone_bring_a_rank_to_the_state_of_the_others() {
    // Nobody dies, so nobody receives: what rank 0 saves in the end comes of what it held.
    let two = || {
        let mut job = job();
        job.checkpoint_every = 1000;
        job
    };
    let (calm, mut job) = (two(), two());
    let undisturbed = calm.train(&[]);
    let faults = [(1, 6, "after_apply,act=live"), (0, 6, "in_ready,after={0}")];
    let run = run_with(&mut job, &faults);
    let log = run.log();
    assert!(log.contains("applying the gradients held since the fault"), "{log}");
    assert!(!log.contains("live=true"), "nobody received a state: {log}");
    assert!(run.final_state() == undisturbed.final_state());
    assert_eq!(run.curve(), undisturbed.curve());
}

#[test]
fn weights_that_differ_are_found_before_they_are_saved_and_the_run_goes_back_to_the_checkpoint() {
    let undisturbed = job().train(&[]).final_state();
    for rank in [0, 1] {
        let mut job = job();
        job.env.insert(
            "RINGMASTER_FAULT".into(),
            format!(
                "rank={rank},step=7,at=after_apply,act=corrupt,marker={}",
                job.folder().join("struck").display()
            ),
        );
        let run = job.train(&[]);
        assert!(job.folder().join("struck").exists(), "the fault never struck");
        let log = run.log();
        assert!(log.contains("different weights or optimizer state after step 10"), "{log}");
        assert!(run.final_state() == undisturbed, "rank {rank}: the damage is in what was saved");
    }
}

#[test]
fn what_was_due_at_the_step_of_a_fault_is_done_after_the_recovery() {
    for rank in [0, 1] {
        let mut job = job();
        job.held_out = tiny::write_shards(&job.folder().join("held-out"), 1, &[]);
        job.eval_every = Some(5);
        let run = run_with(&mut job, &[(rank, 5, "after_apply")]);
        let url = run.summary()["checkpoint"].as_str().unwrap().replacen("file://", "", 1);
        let of_job = std::path::Path::new(&url).parent().unwrap();
        let saved = std::fs::read_dir(of_job).unwrap().flatten().any(|step| {
            step.file_name().to_string_lossy().starts_with("step-0000000005.")
                && step.path().join("MANIFEST.json").is_file()
        });
        assert!(saved, "no checkpoint of step 5 in {}", of_job.display());
        let evaluations: Vec<u64> = run.evaluations();
        assert_eq!(evaluations, [5, 10, 12], "rank {rank}");
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
    // Step 12 was saved already: the new generation saves it again under its own prefix. The last
    // evaluation, which all ranks do together, shows the survivor that it is alone.
    let evaluated = || {
        let mut job = job();
        job.held_out = tiny::write_shards(&job.folder().join("held-out"), 1, &[]);
        job
    };
    let undisturbed: Vec<(String, Vec<u8>)> =
        evaluated().train(&[]).final_state().into_iter().collect();
    for rank in [0, 1] {
        let disturbed = final_state_after(evaluated(), &[(rank, 12, "before_last_eval")]);
        assert!(disturbed == undisturbed, "rank {rank}");
    }
}

#[test]
fn a_rank_killed_after_the_summary_is_not_replaced_and_does_not_hold_up_the_end() {
    // The other rank waits in the last barrier; it used to wait for the grace of 30 s.
    let mut job = job();
    let marker = job.folder().join("struck");
    let fault = format!("rank=0,step=12,at=after_finish,marker={}", marker.display());
    job.env.insert("RINGMASTER_FAULT".into(), fault);
    let output = job.train_command(&[]).output().unwrap();
    let said = job.transcript(&output);
    assert!(output.status.success() && marker.exists(), "{said}");
    let took = marker.metadata().unwrap().modified().unwrap().elapsed().unwrap();
    assert_eq!(job.latest_run().summary()["steps"], 12);
    assert!(!said.contains("forming generation"), "nothing is redone: {said}");
    assert!(took < Duration::from_secs(20), "{took:?}: {said}");
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
    let training = eventually(LIMIT, || {
        std::fs::read_to_string(&metrics).is_ok_and(|text| text.lines().count() > 2)
    });
    let before = mentioning(job.folder());
    kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
    child.wait().unwrap();
    assert!(training, "the job never trained");
    assert!(before.len() >= 4, "command, agent and two ranks: {before:?}");
    let left = until_gone(job.folder(), &before, |_| ());
    assert!(left.is_empty(), "still alive: {left:?}");
}
