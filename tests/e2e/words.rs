//! What people read in the terminal while a job runs, and when its stores cannot be used.

use std::process::{Output, Stdio};

use ringmaster_tests::job::Job;
use ringmaster_tests::proxy::{FaultyProxy, Trouble, What};
use ringmaster_tests::tiny;

/// Returns an address on loopback at which nothing answers.
fn nobody() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A job whose training data is in S3 at `endpoint`.
fn job_in_s3(endpoint: &str) -> Job {
    let mut job = Job::new();
    job.train = "s3://bucket/train/0.tar".to_owned();
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", "somebody"),
        ("AWS_SECRET_ACCESS_KEY", "k4J9wQ2mZ7xT1vB6"),
        ("AWS_ENDPOINT_URL", endpoint),
        ("NO_PROXY", ""),
    ] {
        job.env.insert(name.to_owned(), value.to_owned());
    }
    job
}

fn fails(job: &Job) -> (Output, String) {
    let output = job.train_command(&[]).stderr(Stdio::piped()).output().unwrap();
    let text = job.transcript(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(!text.contains("k4J9wQ2mZ7xT1vB6"), "{text}");
    (output, text)
}

/// A wrong secret was tried four times, read as a missing permission, and the job's reason ended with
/// its restart budget; a missing bucket read as a missing shard.
#[test]
fn a_store_that_refuses_the_data_ends_the_job_after_one_more_try_with_the_cause() {
    for (status, code, said) in [
        (403, "SignatureDoesNotMatch", "does not accept the credentials (SignatureDoesNotMatch"),
        (404, "NoSuchBucket", "does not exist (NoSuchBucket"),
    ] {
        let proxy = FaultyProxy::start(nobody(), 1);
        proxy.set(vec![Trouble::new(What::Refuse(status, code))]);
        let (_, text) = fails(&job_in_s3(&format!("http://{}", proxy.address)));
        assert!(text.contains(said), "{text}");
        assert!(text.contains("running it again would not help"), "{text}");
        assert!(!text.contains("g1.4") && !text.contains("max_without_progress"), "{text}");
    }
}

/// The terminal was silent for 147 s.
#[test]
fn a_store_that_is_away_at_the_start_is_said_in_the_terminal_and_for_how_long_it_is_tried() {
    let endpoint = format!("http://{}", nobody());
    let mut job = job_in_s3(&endpoint);
    job.env.insert("RINGMASTER_STORE_PATIENCE_SECONDS".to_owned(), "2".to_owned());
    let (output, text) = fails(&job);
    let terminal = String::from_utf8_lossy(&output.stderr).into_owned();
    let said = terminal.lines().position(|line| line.ends_with("trying again for up to 2 s"));
    let gave_up = terminal.lines().position(|line| line.contains("recovering"));
    assert!(said.is_some() && gave_up > said, "{text}");
    assert!(terminal.contains(&format!("nothing answers at bucket \"bucket\" at {endpoint}")));
}

/// Ranks had no HTTP_PROXY: the command line reached a store that they did not.
#[test]
fn ranks_ask_a_store_through_the_proxy_and_the_cluster_itself_does_not_use_it() {
    let proxy = FaultyProxy::start(nobody(), 1);
    proxy.set(vec![Trouble::new(What::Refuse(403, "SignatureDoesNotMatch"))]);
    let mut job = job_in_s3("http://store.invalid:9000");
    let url = format!("http://{}", proxy.address);
    for name in ["HTTP_PROXY", "http_proxy"] {
        job.env.insert(name.to_owned(), url.clone());
    }
    let (_, text) = fails(&job);
    assert!(text.contains(&format!("through the proxy {url} (HTTP_PROXY)")), "{text}");
    assert!(text.contains("does not accept the credentials"), "the proxy was not asked: {text}");
}

/// Evaluations showed nothing in the terminal until the end.
#[test]
fn each_evaluation_is_a_line_in_the_terminal_when_it_is_there_and_no_log_has_colour_codes() {
    let mut job = Job::new();
    (job.steps, job.eval_every) = (15, Some(5));
    job.held_out = tiny::write_shards(&job.folder().join("held-out"), 1, &[]);
    let state = job.folder().join("state").display().to_string();
    let output = job.train_command(&["--state-dir", &state]).output().unwrap();
    let text = job.transcript(&output);
    assert!(output.status.success(), "{text}");
    let terminal = String::from_utf8_lossy(&output.stderr).into_owned();
    let at = |step: u32| {
        let wanted = format!("◆ step {step}: shapes: top-1 ");
        terminal
            .lines()
            .position(|line| line.contains(&wanted) && line.contains("R@1 image → text"))
    };
    assert!(at(5).is_some() && at(10) > at(5) && at(15) > at(10), "{text}");
    assert!(!text.contains('\u{1b}'), "{text:?}");

    let mut logs = vec![
        job.folder().join("state/coordinator.log"),
        job.folder().join("state/agent/agent.log"),
    ];
    let ranks = std::fs::read_dir(job.latest_run().folder.join("logs")).unwrap();
    logs.extend(ranks.map(|entry| entry.unwrap().path()));
    assert!(logs.len() >= 4, "{logs:?}");
    for log in logs {
        let text = std::fs::read_to_string(&log).unwrap();
        assert!(!text.is_empty() && !text.contains('\u{1b}'), "{}: {text:?}", log.display());
    }
}
