//! `ringmaster bench control-plane`: a real coordinator under the load of a large cluster.
//!
//! The coordinator is a process of its own, so that its memory and time are its own. The agents are
//! simulated in this process, each over its own connection, through the same streams and calls that
//! real agents and ranks use; a rank's calls share its agent's connection.
//!
//! Files in reading order: this one (the phases), `host` (limits, the coordinator's process, what
//! the kernel counts), `agent` (one agent and its ranks), `jobs` (what is submitted), `recorder`
//! (what was seen), `report` (what it comes to).

mod agent;
mod host;
mod jobs;
mod recorder;
mod report;

use std::sync::Arc;
use std::time::Duration;

use ringmaster_proto::v1::JobState;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::args;
use super::client::Client;
use super::error::Error;
use super::output;
use super::text::thousands;
use agent::{Agent, Cluster};
use host::{Coordinator, Usage};
use recorder::Recorder;
use report::Report;

/// Connections that are being opened at once.
const CONNECTING: usize = 128;
/// How often the terminal hears of progress.
const PROGRESS: Duration = Duration::from_secs(2);
/// After this long without an answer to what was asked, the bench gives up.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time that heartbeats of the last moment get for their answers.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Runs what was asked for.
pub(crate) async fn run(what: &args::Bench) -> Result<(), Error> {
    match &what.what {
        args::BenchWhat::ControlPlane(args) => Box::pin(control_plane(args)).await,
    }
}

async fn control_plane(args: &args::ControlPlane) -> Result<(), Error> {
    check(args)?;
    host::check_open_files(args.agents)?;
    let manifest = jobs::manifest(args.ranks)?;
    let mut coordinator = Coordinator::start().await?;
    let client = Client::new(&format!("http://{}", coordinator.addresses.people))?;
    let recorder = Arc::new(Recorder::new(args.jobs, args.ranks));
    let cluster = Arc::new(Cluster {
        fleet_url: format!("http://{}", coordinator.addresses.fleet),
        slots: args.slots,
        steps: jobs::steps,
        recorder: Arc::clone(&recorder),
    });

    // ---- Every agent registers
    let began = Instant::now();
    let _agents = register(args.agents, &cluster, &mut coordinator).await?;
    let register_seconds = began.elapsed().as_secs_f64();

    // ---- Jobs come in; heartbeats count from here on
    let before = Usage::read(coordinator.pid)?;
    recorder.measure(true);
    let measured = Instant::now();
    submit(args, manifest, &client, &recorder, &mut coordinator).await?;
    let submitting = measured.elapsed();

    // ---- All of them run; some end
    steady(args.seconds, &recorder, &mut coordinator).await?;
    recorder.measure(false);
    let window = measured.elapsed();
    let after = Usage::read(coordinator.pid)?;
    answers(&recorder).await;
    let listed = client.list(true).await?;
    let count = |state: JobState| listed.iter().filter(|job| job.state() == state).count();
    let report = Report {
        agents: args.agents,
        jobs: args.jobs,
        ranks: args.ranks,
        slots: args.slots,
        register_seconds,
        submitting_seconds: submitting.as_secs_f64(),
        window_seconds: window.as_secs_f64(),
        seen: recorder.take(),
        coordinator_cores: before
            .cores_until(&after.coordinator, window, |usage| usage.coordinator),
        agents_cores: before.cores_until(&after.this, window, |usage| usage.this),
        peak_rss_bytes: coordinator.peak_rss()?,
        jobs_running: count(JobState::Running),
        jobs_succeeded: count(JobState::Succeeded),
        jobs_listed: listed.len(),
    };
    coordinator.stop().await;
    output::error_line(&report.table());
    output::print(&report.json().to_string())?;
    if args.check { report.check() } else { Ok(()) }
}

fn check(args: &args::ControlPlane) -> Result<(), Error> {
    let (wanted, slots) = (args.jobs * args.ranks, args.agents * args.slots);
    if wanted <= slots {
        return Ok(());
    }
    Err(Error::Flag {
        flag: "--jobs",
        value: args.jobs.to_string(),
        constraint: format!(
            "{} jobs of {} ranks need {} slots, and {} agents of {} have {}",
            args.jobs,
            args.ranks,
            thousands(wanted.into()),
            args.agents,
            args.slots,
            thousands(slots.into())
        ),
        remedy: "use fewer jobs, fewer --ranks, or more --slots".to_owned(),
    })
}

/// Connects and registers every agent, a bounded number at a time.
async fn register(
    agents: u32,
    cluster: &Arc<Cluster>,
    coordinator: &mut Coordinator,
) -> Result<JoinSet<()>, Error> {
    let gate = Arc::new(Semaphore::new(CONNECTING));
    let mut tasks = JoinSet::new();
    for index in 0..agents {
        let (gate, cluster) = (Arc::clone(&gate), Arc::clone(cluster));
        tasks.spawn(async move {
            let Ok(permit) = gate.acquire_owned().await else { return };
            match Agent::register(index, &cluster).await {
                Ok(agent) => {
                    drop(permit);
                    agent.run().await;
                }
                Err(error) => cluster.recorder.lost(&format!("agent {index}: {error}")),
            }
        });
    }
    let recorder = &cluster.recorder;
    let began = Instant::now();
    wait(coordinator, recorder, PATIENCE, || {
        let registered = recorder.registered();
        let text = format!(
            "{} of {} agents registered, {:.1} s",
            thousands(registered),
            thousands(agents.into()),
            began.elapsed().as_secs_f64()
        );
        (registered, registered == u64::from(agents), text)
    })
    .await?;
    Ok(tasks)
}

/// Hands in the jobs at a steady rate and waits until every rank's start has reached its agent and
/// every ring is formed.
async fn submit(
    args: &args::ControlPlane,
    manifest: serde_json::Value,
    client: &Client,
    recorder: &Arc<Recorder>,
    coordinator: &mut Coordinator,
) -> Result<(), Error> {
    let submissions = tokio::spawn(jobs::submit_all(
        client.clone(),
        Arc::clone(recorder),
        manifest,
        jobs::Rate { jobs: args.jobs, per_second: args.submit_rate },
    ));
    let waited = wait(coordinator, recorder, PATIENCE, || {
        let (submitted, assigned, joined) = recorder.jobs();
        let text = format!(
            "{} of {} jobs submitted, {} assigned, {} with all ranks joined; {}",
            thousands(submitted),
            thousands(args.jobs.into()),
            thousands(assigned),
            thousands(joined),
            recorder.beats_line(),
        );
        (submitted + assigned + joined, joined == u64::from(args.jobs), text)
    })
    .await;
    submissions.abort();
    waited
}

async fn steady(
    seconds: u64,
    recorder: &Recorder,
    coordinator: &mut Coordinator,
) -> Result<(), Error> {
    let until = Instant::now() + Duration::from_secs(seconds);
    wait(coordinator, recorder, PATIENCE, || {
        let left = until.saturating_duration_since(Instant::now());
        let text = format!("steady, {} s left; {}", left.as_secs(), recorder.beats_line());
        (left.as_secs(), left.is_zero(), text)
    })
    .await
}

/// Waits for the answers to heartbeats that are still on their way.
async fn answers(recorder: &Recorder) {
    let until = Instant::now() + LAST_ANSWERS;
    while recorder.unanswered() > 0 && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until `progress` says that it is done, telling the terminal how far it is. Gives up when
/// the coordinator ends, or when the number `progress` returns has not changed for `patience`.
async fn wait(
    coordinator: &mut Coordinator,
    recorder: &Recorder,
    patience: Duration,
    mut progress: impl FnMut() -> (u64, bool, String),
) -> Result<(), Error> {
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    let (mut moved, mut said) = ((0, Instant::now()), Instant::now());
    loop {
        let now = ticks.tick().await;
        let (count, done, text) = progress();
        if count != moved.0 {
            moved = (count, now);
        }
        if done || now >= said + PROGRESS {
            output::error_line(&format!("bench: {text}"));
            said = now;
        }
        if done {
            return Ok(());
        }
        coordinator.check()?;
        if now >= moved.1 + patience {
            let trouble = recorder.trouble().unwrap_or_else(|| "no error was seen".to_owned());
            let what = format!("nothing moved for {} s ({text}); {trouble}", patience.as_secs());
            return Err(Error::Bench { what });
        }
    }
}
