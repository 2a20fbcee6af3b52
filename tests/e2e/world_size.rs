//! World size, micro-batching and restarts do not change training.

use ringmaster_tests::job::Job;

pub(crate) fn assert_same_curve(
    a: &[(u64, f64, String)],
    b: &[(u64, f64, String)],
    tolerance: f64,
) {
    assert_eq!(a.len(), b.len());
    for ((step, loss, order), (other_step, other_loss, other_order)) in a.iter().zip(b) {
        assert_eq!(step, other_step);
        assert!(!order.is_empty());
        assert_eq!(order, other_order, "step {step} saw other samples or another order");
        let difference = (loss - other_loss).abs() / loss.abs();
        assert!(difference <= tolerance, "step {step}: loss {loss} and {other_loss}");
    }
}

#[test]
fn twenty_steps_with_one_two_and_three_ranks_have_the_same_losses_and_sample_order() {
    let mut job = Job::new();
    job.ranks = 1;
    let one = job.train(&[]).curve();
    assert_eq!(one.len(), 20);
    assert!(one.last().unwrap().1 < one[0].1, "training lowers the loss: {one:?}");
    for ranks in [2, 3] {
        job.ranks = ranks;
        let run = job.train(&[]);
        assert_eq!(run.summary()["world_size"], ranks);
        assert_same_curve(&one, &run.curve(), 1e-4);
    }
}

#[test]
fn infonce_trains_the_same_with_one_and_with_three_ranks() {
    let mut job = Job::new();
    (job.loss, job.ranks, job.steps) = ("infonce", 1, 8);
    let one = job.train(&[]).curve();
    job.ranks = 3;
    assert_same_curve(&one, &job.train(&[]).curve(), 1e-4);
}

/// Everything `spec.loss` says about how the work is divided changes rounding only.
#[test]
fn how_a_loss_is_divided_does_not_change_training() {
    let mut job = Job::new();
    (job.ranks, job.steps) = (4, 6);
    for (one, other) in [
        ("infonce", "infonce, exchange: ring, sub_chunk: 3, tile_rows: 2"),
        ("siglip", "siglip, ring: {group: 2}, sub_chunk: 3, tile_rows: 2"),
    ] {
        job.loss = one;
        let expected = job.train(&[]).curve();
        job.loss = other;
        assert_same_curve(&expected, &job.train(&[]).curve(), 1e-4);
    }
}

/// The shapes' captions repeat within a batch, so that they are positives of one another.
#[test]
fn equal_captions_are_positives_on_any_number_of_ranks() {
    let mut job = Job::new();
    job.steps = 4;
    let pairs = job.train(&[]).curve();
    job.loss = "siglip, positives: captions";
    let captions = job.train(&[]).curve();
    assert!((pairs[0].1 - captions[0].1).abs() > 1e-3 * pairs[0].1, "{pairs:?} {captions:?}");
    job.ranks = 1;
    assert_same_curve(&captions, &job.train(&[]).curve(), 1e-4);
}

#[test]
fn micro_batches_do_not_change_training() {
    let mut job = Job::new();
    job.steps = 8;
    let whole = job.train(&[]).curve();
    job.micro = Some(7);
    assert_same_curve(&whole, &job.train(&[]).curve(), 1e-4);
}

#[test]
fn the_same_job_twice_has_the_same_bits() {
    let mut job = Job::new();
    job.steps = 6;
    let first = job.train(&[]).final_state();
    let second = job.train(&[]).final_state();
    assert!(first == second, "two undisturbed runs differ");
}

#[test]
fn a_resumed_run_continues_exactly_and_may_change_its_world_size() {
    let mut job = Job::new();
    job.checkpoint_every = 5;
    let whole = job.train(&[]);
    // The oldest checkpoint that is left; a slow disk may have skipped some.
    let mut checkpoints: Vec<_> = std::fs::read_dir(job.folder().join("checkpoints"))
        .unwrap()
        .flat_map(|job| std::fs::read_dir(job.unwrap().path()).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("MANIFEST.json").exists())
        .collect();
    checkpoints.sort();
    let name = checkpoints[0].file_name().unwrap().to_string_lossy().into_owned();
    let step: usize = name["step-".len()..][..10].parse().unwrap();
    assert!((5..20).contains(&step), "{checkpoints:?}");
    let url = format!("file://{}", checkpoints[0].display());
    let resumed = job.train(&["--resume", &url]);
    assert_eq!(resumed.curve().first().unwrap().0, step as u64 + 1);
    assert_same_curve(&whole.curve()[step..], &resumed.curve(), 0.0);
    assert!(whole.final_state() == resumed.final_state(), "resuming changed the final weights");

    job.ranks = 3;
    let wider = job.train(&["--resume", &url]);
    assert_same_curve(&whole.curve()[step..], &wider.curve(), 1e-4);
}
