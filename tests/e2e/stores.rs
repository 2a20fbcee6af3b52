//! Runs whose checkpoints are in S3: killed and resumed, and while the store is in trouble.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringmaster_tests::binaries::binaries;
use ringmaster_tests::job::{Job, Run};
use ringmaster_tests::processes::{LIMIT, eventually, until_gone};
use ringmaster_tests::proxy::{FaultyProxy, Trouble, What};
use ringmaster_tests::s3::{self, Bucket};

/// Step, loss and digest of the samples.
type Curve = BTreeMap<u64, (f64, String)>;

fn curve(run: &Run) -> Curve {
    run.curve().into_iter().map(|(step, loss, order)| (step, (loss, order))).collect()
}

/// Returns the metrics of a run that was killed: the last line may be torn.
fn torn_curve(job: &Job) -> Curve {
    let metrics = job.latest_run().folder.join("metrics.jsonl");
    let text = fs::read_to_string(metrics).unwrap_or_default();
    let lines =
        text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines
        .filter_map(|line| {
            let loss = line.get("train/loss")?.as_f64()?;
            Some((line["step"].as_u64()?, (loss, line["order_digest"].as_str()?.to_owned())))
        })
        .collect()
}

fn variable(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise)
}

/// Starts `ringmaster train`, from the newest checkpoint if the bucket has one.
fn start(job: &Job, bucket: &Bucket) -> Child {
    let has_one = bucket.list("runs").iter().any(|path| path.ends_with("/MANIFEST.json"));
    let arguments: &[&str] = if has_one { &["--resume", "latest"] } else { &[] };
    let _ = fs::remove_file(job.folder().join("runs/latest"));
    let mut command = job.train_command(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until the newest run has done a step that `enough` accepts; false if it ends before.
fn until_step(job: &Job, child: &mut Child, enough: impl Fn(u64) -> bool) -> bool {
    let metrics = job.folder().join("runs/latest/metrics.jsonl");
    let mut there = false;
    eventually(LIMIT, || {
        let text = fs::read_to_string(&metrics).unwrap_or_default();
        let newest = text.lines().rev().find_map(|line| {
            serde_json::from_str::<serde_json::Value>(line).ok()?["step"].as_u64()
        });
        there = newest.is_some_and(&enough);
        there || matches!(child.try_wait(), Ok(Some(_)))
    });
    there
}

/// Ends everything of a job at once, as a power cut would.
fn kill_all(job: &Job, mut child: Child) {
    let left = until_gone(job.folder(), &[child.id()], |process| {
        // It may have ended a moment ago.
        let _ = kill(Pid::from_raw(process as i32), Signal::SIGKILL);
    });
    assert!(left.is_empty(), "still alive: {left:?}");
    child.wait().unwrap();
}

/// Returns the bytes of every tensor of the final checkpoint, by file.
fn final_state(run: &Run, bucket: &Bucket) -> BTreeMap<String, Vec<u8>> {
    let summary = run.summary();
    let url = summary["checkpoint"].as_str().expect("a finished run has a checkpoint").to_owned();
    let folder = url.strip_prefix(&format!("s3://{}/", bucket.name)).expect("it is in the bucket");
    let tensors = bucket.list(folder).into_iter().filter(|path| path.ends_with(".safetensors"));
    let state: BTreeMap<String, Vec<u8>> = tensors
        .map(|path| (path.rsplit('/').next().unwrap().to_owned(), bucket.read(&path)))
        .collect();
    assert!(state.contains_key("model.safetensors"), "{url} holds {:?}", state.keys());
    state
}

fn long_job(bucket: &Bucket) -> Job {
    let mut job = Job::new();
    (job.steps, job.checkpoint_every, job.when_busy) = (100_000, 5, "skip");
    job.save_to(bucket);
    job
}

#[test]
fn a_run_killed_again_and_again_and_resumed_from_s3_ends_with_the_same_bits_and_samples() {
    let Some(server) = s3::server() else { return };
    let kills = variable("RINGMASTER_SOAK_KILLS", 3);
    let new = |bucket: &Bucket| {
        let mut job = Job::new();
        (job.steps, job.checkpoint_every) = (30 + 25 * kills, 3);
        job.save_to(bucket);
        job
    };
    let bucket = server.bucket();
    let job = new(&bucket);
    let undisturbed = job.train(&[]);
    let expected = curve(&undisturbed);
    assert_eq!(expected.len() as u64, 30 + 25 * kills);
    let expected_state = final_state(&undisturbed, &bucket);

    let bucket = server.bucket();
    let job = new(&bucket);
    let mut reached = 0;
    let mut told = Curve::new();
    for attempt in 0..kills {
        let mut hasher = DefaultHasher::new();
        (attempt, "a power cut").hash(&mut hasher);
        let until = reached + 2 + hasher.finish() % 12;
        let mut child = start(&job, &bucket);
        let struck = until_step(&job, &mut child, |step| step >= until);
        kill_all(&job, child);
        assert!(struck, "run {attempt} ended before step {until}");
        let torn = torn_curve(&job);
        reached = *torn.keys().last().unwrap();
        told.extend(torn);
    }
    let child = start(&job, &bucket);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", job.transcript(&output));
    let last = job.latest_run();
    told.extend(curve(&last));
    assert_eq!(told, expected, "losses or samples differ");
    assert!(final_state(&last, &bucket) == expected_state, "the final weights differ");
}

#[test]
fn a_run_goes_on_from_s3_with_three_ranks_and_then_with_two() {
    let Some(server) = s3::server() else { return };
    let new = |bucket: &Bucket| {
        let mut job = Job::new();
        (job.steps, job.checkpoint_every, job.ranks) = (90, 3, 1);
        job.save_to(bucket);
        job
    };
    let expected = curve(&new(&server.bucket()).train(&[]));
    let bucket = server.bucket();
    let mut job = new(&bucket);
    let mut told = Curve::new();
    for (ranks, until) in [(1, 8), (3, 30)] {
        job.ranks = ranks;
        let mut child = start(&job, &bucket);
        let there = until_step(&job, &mut child, |step| step >= until);
        kill_all(&job, child);
        assert!(there, "{ranks} ranks ended before step {until}");
        told.extend(torn_curve(&job));
    }
    job.ranks = 2;
    let output = start(&job, &bucket).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", job.transcript(&output));
    let last = job.latest_run();
    assert_eq!(last.summary()["world_size"], 2);
    let optim = |path: &String| path.contains("/optim-") && path.ends_with("-of-00002.safetensors");
    assert_eq!(bucket.list("runs").iter().filter(|path| optim(path)).count() % 2, 0);
    told.extend(curve(&last));
    assert_eq!(told.len(), expected.len());
    for ((step, (loss, order)), (_, (other, other_order))) in expected.iter().zip(&told) {
        assert_eq!(order, other_order, "step {step} saw other samples");
        let difference = (loss - other).abs() / loss.abs();
        assert!(difference <= 1e-4, "step {step}: loss {loss} and {other}");
    }
}

/// Asks a run to end and returns what it said.
fn end(job: &Job, child: Child, signal: Signal) -> Output {
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.code().is_some(), "{}", job.transcript(&output));
    output
}

#[test]
fn sigterm_leads_to_a_checkpoint_of_the_last_step_in_s3() {
    let Some(server) = s3::server() else { return };
    let bucket = server.bucket();
    let mut job = long_job(&bucket);
    job.checkpoint_every = 1_000_000;
    let mut child = start(&job, &bucket);
    assert!(until_step(&job, &mut child, |step| step >= 5), "the job never trained");
    let output = end(&job, child, Signal::SIGTERM);
    let said = job.transcript(&output);
    let steps = job.latest_run().summary()["steps"].as_u64().unwrap();
    let manifest = format!("/step-{steps:010}.g1.1/MANIFEST.json");
    let there = bucket.list("runs").into_iter().any(|path| path.ends_with(&manifest));
    assert!(there && steps >= 5, "no {manifest}: {said}");
    assert!(said.contains(&format!("s3://{}/runs/", bucket.name)), "{said}");
}

/// Runs `ringmaster checkpoints …` on the bucket.
fn checkpoints(job: &Job, arguments: &[&str]) -> Output {
    let mut command = Command::new(&binaries().ringmaster);
    command.arg("checkpoints").args(arguments).envs(&job.env);
    command.stdin(Stdio::null()).output().unwrap()
}

/// Everything in the bucket that says it is complete can be loaded, and latest.json names the newest.
fn assert_all_is_whole(job: &Job, bucket: &Bucket) {
    let manifests: Vec<String> =
        bucket.list("runs").into_iter().filter(|path| path.ends_with("/MANIFEST.json")).collect();
    assert!(!manifests.is_empty());
    for manifest in manifests {
        let folder = manifest.trim_end_matches("/MANIFEST.json");
        let output = checkpoints(job, &["verify", &format!("s3://{}/{folder}", bucket.name)]);
        assert!(output.status.success(), "{folder}: {}", job.transcript(&output));
    }
}

/// Returns what rank 0 of the newest run has logged so far.
fn log_of_rank_0(job: &Job) -> String {
    let logs = fs::read_dir(job.folder().join("runs/latest/logs")).into_iter().flatten().flatten();
    let own = logs.map(|entry| entry.path()).filter(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().ends_with("-rank0.log"))
    });
    own.map(|path| fs::read_to_string(path).unwrap_or_default()).collect()
}

/// Waits until rank 0 has logged all of these, in this order.
fn until_logged(job: &Job, child: &mut Child, wanted: &[&str]) {
    let mut text = String::new();
    let there = eventually(LIMIT, || {
        text = log_of_rank_0(job);
        let mut rest = text.as_str();
        let all = wanted.iter().all(|part| match rest.split_once(part) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        });
        all || matches!(child.try_wait(), Ok(Some(_)))
    });
    let mut rest = text.as_str();
    for part in wanted {
        let found = rest.split_once(part);
        assert!(there && found.is_some(), "{part:?} was never logged: {text}");
        rest = found.map_or("", |(_, after)| after);
    }
}

#[test]
fn a_store_that_refuses_costs_checkpoints_and_no_training_and_the_next_one_works() {
    let Some(server) = s3::server() else { return };
    for (what, said) in [
        (What::Refuse(403, "InvalidAccessKeyId"), "does not accept the credentials"),
        (What::Refuse(404, "NoSuchBucket"), "does not exist (NoSuchBucket"),
        (What::Refuse(507, "InsufficientStorage"), "is full (InsufficientStorage"),
        (What::Refuse(403, "QuotaExceeded"), "free space or raise the quota"),
    ] {
        let bucket = server.bucket();
        let proxy = FaultyProxy::start(bucket.address, 1);
        let job = long_job(&bucket.through(proxy.address));
        let mut child = start(&job, &bucket);
        until_logged(&job, &mut child, &["checkpoint published"]);
        proxy.set(vec![Trouble::new(what.clone())]);
        until_logged(&job, &mut child, &["a checkpoint was not published", said]);
        let before = torn_curve(&job).len();
        let trains = until_step(&job, &mut child, |step| step > before as u64 + 5);
        assert!(trains, "{what:?} stopped the training");
        proxy.set(Vec::new());
        until_logged(&job, &mut child, &["a checkpoint was not published", "checkpoint published"]);
        let output = end(&job, child, Signal::SIGINT);
        assert_eq!(output.status.code(), Some(130), "{what:?}: {}", job.transcript(&output));
        assert_all_is_whole(&job, &bucket);
        let log = log_of_rank_0(&job);
        assert!(!log.contains(bucket.secret()), "a secret was logged");
    }
}

#[test]
fn a_store_that_is_away_in_the_middle_of_a_save_is_waited_for_while_training_goes_on() {
    let Some(server) = s3::server() else { return };
    let away = Duration::from_secs(variable("RINGMASTER_SOAK_AWAY_SECONDS", 3));
    let bucket = server.bucket();
    let proxy = FaultyProxy::start(bucket.address, 2);
    let job = long_job(&bucket.through(proxy.address));
    let mut child = start(&job, &bucket);
    until_logged(&job, &mut child, &["checkpoint published"]);
    let model = Trouble::new(What::GoAway(away)).method("PUT").target("model.safetensors");
    proxy.set(vec![model.times(1)]);
    until_logged(&job, &mut child, &["the store is in trouble"]);
    let before = torn_curve(&job).len();
    until_logged(&job, &mut child, &["the store is in trouble", "the store answers again"]);
    assert!(torn_curve(&job).len() > before, "training stood still while the store was away");
    let back = ["the store answers again", "checkpoint published", "checkpoint published"];
    until_logged(&job, &mut child, &back);
    let output = end(&job, child, Signal::SIGINT);
    assert_eq!(output.status.code(), Some(130), "{}", job.transcript(&output));
    assert!(!log_of_rank_0(&job).contains("was not published"), "patience outlasts it");
    assert_all_is_whole(&job, &bucket);
}

#[test]
fn a_job_whose_store_cannot_be_used_says_so_before_it_trains() {
    let Some(server) = s3::server() else { return };
    let bucket = server.bucket();
    let missing = Bucket { name: "no-such-bucket".to_owned(), ..bucket.clone() };
    let wrong = ("AWS_ACCESS_KEY_ID", "nobody");
    for (bucket, more, said) in [
        (&missing, None, "\"no-such-bucket\" at http://"),
        (&bucket, Some(wrong), "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ] {
        // moto takes any credentials.
        if more.is_some() && s3::strict_server_for_part().is_none() {
            continue;
        }
        let mut job = Job::new();
        job.save_to(bucket);
        job.env.extend(more.map(|(name, value): (&str, &str)| (name.into(), value.into())));
        let output = job.train_command(&[]).output().unwrap();
        let text = job.transcript(&output);
        assert!(!output.status.success(), "{text}");
        assert!(text.contains(said) && !text.contains(bucket.secret()), "{said}: {text}");
    }
}
