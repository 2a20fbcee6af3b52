//! Runs that go on with other data than they began with, or with another batch.

use ringmaster_tests::job::Job;
use ringmaster_tests::tiny;

use crate::world_size::assert_same_curve;

/// A run that was stopped, gone on with two shards fewer: samples came twice or never, and nothing was said.
#[test]
fn a_run_that_would_go_on_with_fewer_shards_is_refused_until_it_accepts_them() {
    let mut job = Job::new();
    (job.ranks, job.steps) = (1, 10);
    job.train(&[]);
    job.steps = 20;
    job.train = job.train.replace("..011}", "..009}");
    let refused = job.train_command(&["--resume"]).output().unwrap();
    let text = job.transcript(&refused);
    assert_eq!(refused.status.code(), Some(2), "{text}");
    assert!(text.contains("the number of shards of train was 12 and is 10"), "{text}");
    assert!(text.contains("--accept-new-data"), "{text}");

    let run = job.train(&["--resume", "latest", "--accept-new-data"]);
    assert_eq!(run.curve().first().unwrap().0, 11);
    assert_eq!(run.summary()["samples"], 20 * 48);
    let log = run.log();
    assert!(log.contains("goes on after 480 samples in the new order"), "{log}");
}

/// What only shows once the shards are opened.
#[test]
fn a_shard_that_was_replaced_by_another_is_refused_by_the_ranks() {
    let mut job = Job::new();
    (job.ranks, job.steps) = (1, 10);
    job.train(&[]);
    job.steps = 20;
    let shard = job.folder().join("train/003.tar");
    let other = tiny::write_pictures(&job.folder().join("other"), 40, 1);
    std::fs::copy(other, shard).unwrap();
    let refused = job.train_command(&["--resume"]).output().unwrap();
    let text = job.transcript(&refused);
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(text.contains("shards have other names, lengths or numbers of samples"), "{text}");
    assert!(text.contains("--accept-new-data"), "{text}");
    assert!(!text.contains("restart budget"), "the job's fault, found once: {text}");
}

/// 32,000 samples became 64,128 when the batch was doubled at step 500, and the rate of learning with them.
#[test]
fn a_batch_twice_as_large_goes_on_after_as_many_samples() {
    let mut job = Job::new();
    (job.ranks, job.steps, job.global) = (1, 10, 24);
    job.train(&[]);
    (job.steps, job.global) = (12, 48);
    let run = job.train(&["--resume", "latest"]);
    // 240 samples are five steps of 48.
    let curve = run.curve();
    assert_eq!((curve.first().unwrap().0, curve.last().unwrap().0), (6, 12));
    assert_eq!(
        (&run.summary()["samples"], &run.summary()["resumed_samples"]),
        (&(12 * 48).into(), &240.into())
    );

    // What is read is what a run of that batch reads there.
    let mut straight = Job::new();
    (straight.ranks, straight.steps) = (1, 12);
    let whole = straight.train(&[]).curve();
    let orders = |curve: &[(u64, f64, String)]| -> Vec<String> {
        curve.iter().map(|step| step.2.clone()).collect()
    };
    assert_eq!(orders(&curve), orders(&whole[5..]));
}

#[test]
fn ranks_need_not_divide_the_batch_and_may_be_more_than_lanes() {
    let mut job = Job::new();
    (job.ranks, job.steps, job.lanes, job.global) = (1, 6, 2, 47);
    let one = job.train(&[]).curve();
    job.ranks = 3;
    let run = job.train(&[]);
    assert_eq!(run.summary()["world_size"], 3);
    assert_same_curve(&one, &run.curve(), 1e-4);
}
