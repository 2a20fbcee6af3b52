//! Jobs that people stop or lose, and what they find afterwards.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringmaster_tests::binaries::binaries;
use ringmaster_tests::job::Job;
use ringmaster_tests::network::Nobody;
use ringmaster_tests::processes::{LIMIT, eventually};
use ringmaster_tests::tiny;

/// Sends `signal` to `ringmaster train` once it has trained some steps, and returns what it said.
fn interrupted(job: &Job, signal: Signal) -> Output {
    let child = job
        .train_command(&[])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ringmaster starts");
    let metrics = job.folder().join("runs/latest/metrics.jsonl");
    let training = eventually(LIMIT, || {
        std::fs::read_to_string(&metrics).is_ok_and(|text| text.lines().count() > 5)
    });
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(training, "the job never trained: {}", job.transcript(&output));
    output
}

#[test]
fn a_run_stopped_in_the_terminal_says_what_was_saved_and_goes_on_from_there() {
    let mut job = Job::new();
    job.steps = 100_000;
    let output = interrupted(&job, Signal::SIGINT);
    let said = job.transcript(&output);
    assert_eq!(output.status.code(), Some(130), "{said}");
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in ["stopped after step ", "checkpoint  ", "report.html", "--resume latest"] {
        assert!(out.contains(part), "{part}: {said}");
    }
    assert!(out.lines().count() <= 6, "a few lines: {said}");
    assert!(!said.contains("error:") && !said.contains("queued:"), "{said}");
    let stopped = job.latest_run();
    let summary = stopped.summary();
    let steps = summary["steps"].as_u64().unwrap();
    assert_eq!(summary["finished"], false);
    assert!(out.contains(&format!("step-{steps:010}.")), "the last step is the one saved: {said}");
    assert!(stopped.folder.join("report.html").is_file());

    // Only the samples of this run count for its speed, not those it resumed from.
    job.steps = steps + 10;
    let resumed = job.train(&["--resume", "latest"]);
    let summary = resumed.summary();
    assert_eq!(summary["finished"], true);
    assert_eq!(summary["samples"].as_u64().unwrap(), (steps + 10) * 48);
    let own = summary["samples_per_second"].as_f64().unwrap()
        * summary["training_seconds"].as_f64().unwrap();
    assert!((own - 480.0).abs() < 1e-6, "{own} of {summary}");
    assert_eq!(resumed.curve().first().unwrap().0, steps + 1);
}

#[test]
fn a_resumed_run_that_falls_back_to_its_own_checkpoint_counts_only_its_own_samples() {
    let mut job = Job::new();
    (job.steps, job.checkpoint_every) = (10, 5);
    job.train(&[]);
    job.steps = 20;
    let markers = [0, 1].map(|rank| job.folder().join(format!("struck-{rank}")));
    let fault = |rank: usize| {
        format!("rank={rank},step=18,at=after_apply,marker={}", markers[rank].display())
    };
    let faults = [fault(0), fault(1)];
    job.env.insert("RINGMASTER_FAULT".into(), faults.join(";"));
    let run = job.train(&["--resume", "latest"]);
    assert!(markers.iter().all(|marker| marker.exists()));
    let summary = run.summary();
    let own = summary["samples_per_second"].as_f64().unwrap()
        * summary["training_seconds"].as_f64().unwrap();
    assert!((own - 480.0).abs() < 1e-6, "{own} of {summary}");
}

#[test]
fn a_killed_terminal_leaves_the_ranks_words_in_the_run_folder_and_no_temporary_folder() {
    let mut job = Job::new();
    job.steps = 100_000;
    let temporary = job.folder().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    job.env.insert("TMPDIR".into(), temporary.display().to_string());
    interrupted(&job, Signal::SIGKILL);
    let left = || std::fs::read_dir(&temporary).unwrap().count();
    assert!(eventually(LIMIT, || left() == 0), "{} left", left());
    let logs = job.latest_run().folder.join("logs");
    for rank in [0, 1] {
        let log = std::fs::read_to_string(logs.join(format!("g1.1-rank{rank}.log"))).unwrap();
        assert!(log.contains("rank ready"), "{log}");
    }
}

#[test]
fn resuming_with_another_loss_is_refused_with_both_before_anything_starts() {
    let mut job = Job::new();
    (job.steps, job.ranks) = (5, 1);
    job.train(&[]);
    job.loss = "infonce";
    let output = job.train_command(&["--resume", "latest"]).output().unwrap();
    let said = job.transcript(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("siglip and the manifest says infonce"), "{said}");
    assert_eq!(std::fs::read_dir(job.folder().join("checkpoints")).unwrap().count(), 1, "{said}");
}

#[test]
fn a_shard_that_breaks_off_is_used_up_to_there_and_the_result_says_so() {
    let mut job = Job::new();
    (job.steps, job.ranks) = (5, 1);
    let shard = job.folder().join("train/004.tar");
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() / 2 / 512 * 512 + 100]).unwrap();
    let output = job.train_command(&[]).output().unwrap();
    let said = job.transcript(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 shard of the training data breaks off"), "{said}");
    let run = job.latest_run();
    assert_eq!(run.summary()["damaged_shards"], 1);
    let log = run.log();
    assert!(log.contains("004.tar") && log.contains("breaks off at byte"), "{log}");
}

#[test]
fn corrupt_samples_are_counted_over_all_ranks_against_the_limit() {
    let mut job = Job::new();
    // One epoch: every sample is met at most once, by one rank.
    job.steps = 10;
    let bad: Vec<(usize, usize)> = (0..12).map(|shard| (shard, 3 * shard)).collect();
    job.train = tiny::write_shards(&job.folder().join("bad"), 12, &bad);
    job.max_corrupt = 0.1;
    let met = job.train(&[]).summary()["substituted"].as_u64().unwrap();
    assert!(met >= 6, "{met}");
    // One less than all ranks meet together; neither meets that many alone.
    job.max_corrupt = (met as f64 - 0.5) / 480.0;
    let output = job.train_command(&[]).output().unwrap();
    let said = job.transcript(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let limit = format!("{met} corrupt samples, more than the {} that data.max_corrupt", met - 1);
    assert!(said.contains(&limit), "{limit}: {said}");
}

fn ringmaster(arguments: &[&str], folder: &Path) -> Output {
    Command::new(&binaries().ringmaster)
        .args(arguments)
        .current_dir(folder)
        .env("RINGMASTER_MODELS", folder.join("models"))
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn a_coordinator_that_does_not_answer_is_named_once_with_what_to_do() {
    let job = Job::new();
    let nobody = Nobody::there();
    let url = format!("http://{}", nobody.address);
    for verb in ["ls", "nodes"] {
        let output = ringmaster(&[verb, "--coordinator", &url], job.folder());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert_eq!(said.matches(&url).count(), 1, "{said}");
        assert!(said.contains("ringmaster coordinator") && said.lines().count() <= 2, "{said}");
        assert!(!said.contains("Status {") && !said.contains("metadata"), "{said}");
    }
}

#[test]
fn validate_warns_of_missing_files_and_refuses_them_where_asked() {
    let job = Job::new();
    let manifest = job.write_manifest().display().to_string();
    let whole = ringmaster(&["validate", &manifest], job.folder());
    assert!(whole.status.success() && whole.stderr.is_empty(), "{}", job.transcript(&whole));
    let opened = ringmaster(&["validate", "--data", &manifest], job.folder());
    let said = job.transcript(&opened);
    assert!(opened.status.success(), "{said}");
    assert!(
        said.contains(" samples in 12 shards, ") && said.contains(" of blocks in memory"),
        "{said}"
    );
    let mut small = Job::new();
    small.data_more = ", memory: 1".to_owned();
    let refused = ringmaster(
        &["validate", "--data", &small.write_manifest().display().to_string()],
        small.folder(),
    );
    let said = small.transcript(&refused);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(
        said.contains("spec.data.memory is 1 B") && said.contains("lower data.pool_samples"),
        "{said}"
    );
    std::fs::remove_file(job.folder().join("train/007.tar")).unwrap();
    let warned = ringmaster(&["validate", &manifest], job.folder());
    let said = job.transcript(&warned);
    assert!(warned.status.success(), "{said}");
    assert!(said.contains("warning: ") && said.contains("007.tar"), "{said}");
    let refused = ringmaster(&["validate", "--data", &manifest], job.folder());
    assert_eq!(refused.status.code(), Some(2), "{}", job.transcript(&refused));
}
