//! Ranks that stand still: stopped by a signal, or hung with their other threads alive.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use ringmaster_tests::cluster::Cluster;
use ringmaster_tests::job::{Job, Run};
use ringmaster_tests::processes::{LIMIT, eventually, signal_process};
use ringmaster_tests::timing::fastest_of;

/// From SIGSTOP to the next step.
const LOSS: Duration = Duration::from_secs(10);

#[test]
fn a_stopped_rank_is_replaced_and_the_next_step_done_within_ten_seconds() {
    let mut job = Job::new();
    job.steps = 100_000;
    let cluster = Cluster::start(&job, &[1, 1]);
    let id = cluster.submit(&job);
    let run = Run { folder: job.folder().join("runs").join(&id) };
    let reached = || cluster.describe(&job, &id)["metrics"]["step"].as_u64() > Some(5);
    assert!(eventually(LIMIT, reached), "{:#?}", cluster.events(&job, &id));
    let mut stopped = Vec::new();
    let took = fastest_of(LOSS, || {
        let rank = next_process(&cluster, &job, &id, &stopped);
        signal_process(rank, Signal::SIGSTOP);
        let began = Instant::now();
        stopped.push(rank);
        let losses = || {
            let events = cluster.events(&job, &id);
            events.iter().filter(|(kind, ..)| kind == "rank_lost").count()
        };
        // The ring stands still now: one step may have been under way.
        assert!(
            eventually(LIMIT, || losses() == stopped.len()),
            "{:#?}",
            cluster.events(&job, &id)
        );
        let before = run.curve().len();
        let goes_on = || run.curve().len() > before;
        assert!(eventually(LIMIT, goes_on), "{:#?}", cluster.events(&job, &id));
        began.elapsed()
    });
    let (lost, _) = cluster.until_event(&job, &id, |kind, _| kind == "rank_lost");
    let (recovered, _) = cluster.until_event(&job, &id, |kind, _| kind == "recovered");
    println!("{took:?} from SIGSTOP to the next step; {lost}; {recovered}");
    assert!(lost.contains("stopped by a signal (state T) for 1.5 s"), "{lost}");
    assert!(took < LOSS, "{took:?}: {:#?}", cluster.events(&job, &id));
}

/// Waits until rank 1 has a process that was not stopped before.
fn next_process(cluster: &Cluster, job: &Job, id: &str, stopped: &[u32]) -> u32 {
    let mut rank = 0;
    let is_new = eventually(LIMIT, || {
        rank = cluster.rank_pid(job, id, 1);
        rank > 0 && !stopped.contains(&rank)
    });
    assert!(is_new, "{:#?}", cluster.events(job, id));
    rank
}

#[test]
fn a_rank_that_hangs_in_compute_is_named_and_replaced_and_the_result_is_the_same() {
    let job = || {
        let mut job = Job::new();
        job.steps = 12;
        job
    };
    let (calm, mut job) = (job(), job());
    let undisturbed = calm.train(&[]);
    let marker = job.folder().join("struck");
    let fault = format!("rank=1,step=7,at=before_reduce,act=hang,marker={}", marker.display());
    job.env.insert("RINGMASTER_FAULT".into(), fault);
    let cluster = Cluster::start_with(&job, &[1, 1], &["--deadline", "compute=4"]);
    let id = cluster.submit(&job);
    cluster.until_succeeded(&job, &id);
    assert!(marker.exists());
    let events = cluster.events(&job, &id);
    let hung: Vec<&String> =
        events.iter().filter(|(kind, ..)| kind == "rank_hung").map(|(_, m, _)| m).collect();
    assert_eq!(hung.len(), 1, "{events:#?}");
    assert!(hung[0].starts_with("rank 1 on node-"), "{hung:?}");
    assert!(hung[0].contains("no progress in compute after step 6 for "), "{hung:?}");
    let run = Run { folder: job.folder().join("runs").join(&id) };
    assert_eq!(run.curve(), undisturbed.curve());
    assert!(run.final_state() == undisturbed.final_state());
}
