//! `ringmaster-bench control-plane`: a real coordinator under the load of a large cluster.
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

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use ringmaster_proto::address::{self, Listener};
use ringmaster_proto::limits;
use ringmaster_proto::v1::jobs_client::JobsClient;
use ringmaster_proto::v1::{JobState, ListRequest};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::transport::Channel;

use self::agent::{Agent, Cluster};
use self::host::{Coordinator, Usage};
use self::recorder::Recorder;
use self::report::Report;
use ringmaster_words::thousands;

/// Connections that are being opened at once.
const CONNECTING: usize = 128;
/// How often the terminal hears of progress.
const PROGRESS: Duration = Duration::from_secs(2);
/// After this long without an answer to what was asked, the bench gives up.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time that heartbeats of the last moment get for their answers.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// What `ringmaster-bench control-plane` can be told.
#[derive(Debug, Args)]
pub struct ControlPlane {
    /// Simulated agents, each with its own connection
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) agents: u32,
    /// Jobs to submit; one in four ends during the measurement
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub(crate) jobs: u32,
    /// Ranks of each job
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) ranks: u32,
    /// Slots of each agent
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) slots: u32,
    /// Jobs submitted per second
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) submit_rate: u32,
    /// Seconds to go on measuring once every job runs
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    pub(crate) seconds: u64,
    /// Fail unless heartbeats are answered within 100 ms (p99), jobs assigned within 1 s, and the
    /// coordinator stays under 1 GiB
    #[arg(long)]
    pub(crate) check: bool,
}

/// Starts a coordinator, loads it and says what came of it.
pub async fn run(args: &ControlPlane) -> Result<()> {
    check(args)?;
    host::check_open_files(args.agents)?;
    let mut coordinator = Coordinator::start().await?;
    let people = format!("http://{}", coordinator.addresses.people);
    let client = JobsClient::new(address::endpoint(&people, Listener::People)?.connect_lazy())
        .max_decoding_message_size(limits::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(limits::MAX_MESSAGE_BYTES);
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
    submit(args, &client, &recorder, &mut coordinator).await?;
    let submitting = measured.elapsed();

    // ---- All of them run; some end
    steady(args.seconds, &recorder, &mut coordinator).await?;
    recorder.measure(false);
    let window = measured.elapsed();
    let after = Usage::read(coordinator.pid)?;
    answers(&recorder).await;
    let listed = list(client).await?;
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
    say(&report.table());
    writeln!(std::io::stdout(), "{}", report.json())?;
    if args.check { report.check() } else { Ok(()) }
}

fn check(args: &ControlPlane) -> Result<()> {
    let (wanted, slots) = (args.jobs * args.ranks, args.agents * args.slots);
    if wanted <= slots {
        return Ok(());
    }
    bail!(
        "{} jobs of {} ranks need {} slots, and {} agents of {} have {}; use fewer --jobs, fewer --ranks, or \
         more --slots",
        args.jobs,
        args.ranks,
        thousands(wanted.into()),
        args.agents,
        args.slots,
        thousands(slots.into())
    );
}

/// Returns all jobs.
async fn list(mut client: JobsClient<Channel>) -> Result<Vec<ringmaster_proto::v1::Job>> {
    let request = ListRequest { include_ended: true };
    Ok(client.list(request).await?.into_inner().jobs)
}

/// Writes a remark to standard error; failure to do so is ignored.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Connects and registers every agent, a bounded number at a time.
async fn register(
    agents: u32,
    cluster: &Arc<Cluster>,
    coordinator: &mut Coordinator,
) -> Result<JoinSet<()>> {
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
    args: &ControlPlane,
    client: &JobsClient<Channel>,
    recorder: &Arc<Recorder>,
    coordinator: &mut Coordinator,
) -> Result<()> {
    let submissions = tokio::spawn(jobs::submit_all(
        client.clone(),
        Arc::clone(recorder),
        args.ranks,
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

async fn steady(seconds: u64, recorder: &Recorder, coordinator: &mut Coordinator) -> Result<()> {
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
) -> Result<()> {
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    let (mut moved, mut said) = ((0, Instant::now()), Instant::now());
    loop {
        let now = ticks.tick().await;
        let (count, done, text) = progress();
        if count != moved.0 {
            moved = (count, now);
        }
        if done || now >= said + PROGRESS {
            say(&format!("bench: {text}"));
            said = now;
        }
        if done {
            return Ok(());
        }
        coordinator.check()?;
        if now >= moved.1 + patience {
            let trouble = recorder.trouble().unwrap_or_else(|| "no error was seen".to_owned());
            bail!("nothing moved for {} s ({text}); {trouble}", patience.as_secs());
        }
    }
}
