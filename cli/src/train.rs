//! `ringmaster train`: a whole cluster in one command, over the same code as a real one.
//!
//! The coordinator runs in this process on loopback ports the host chooses; one agent runs as a
//! child that notices when this process goes away. Nothing starts before the manifest, the
//! flags and the local data files are found good.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ringmaster_coordinator::server::{Server, ServerOptions};
use ringmaster_manifest::ModelCatalogue;
use ringmaster_manifest::spec::Accelerator;
use ringmaster_proto::v1::{Job, JobState, LogsRequest};

use super::agent_process::{self, AgentProcess};
use super::client::Client;
use super::error::Error;
use super::job_file::JobFile;
use super::progress::Progress;
use super::{args, output, resume, summary::Summary, watch};
use ringmaster_words::thousands;

/// Time the last log lines may take to arrive.
const LOG_DEADLINE: Duration = Duration::from_secs(5);
/// Time the embedded agent gets to register before the job is handed in all the same.
const AGENT_DEADLINE: Duration = Duration::from_secs(20);
/// Time between two looks for it.
const AGENT_POLL: Duration = Duration::from_millis(20);
/// Lines of a failed job's log that are shown.
const SHOWN_LOG_LINES: u64 = 20;

/// Trains the job of a manifest on this machine and shows what comes of it.
pub(crate) async fn run(args: &args::Train) -> Result<(), Error> {
    let mut file = JobFile::read(&args.manifest)?;
    if let Some(ranks) = args.ranks {
        file.set_ranks(ranks)?;
    }
    if args.accept_new_data {
        file.accept_new_data();
    }
    file.advise();
    file.check_data()?;
    file.check_stores()?;
    let resume_from = match &args.resume {
        Some(wanted) => resume::resolve(wanted, &file.job, resume::Reader::ThisMachine).await?,
        None => String::new(),
    };
    let folders = Folders::create(args)?;
    super::log_to_file(&folders.state_dir.join("coordinator.log"))?;

    let any_port = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let mut options = ServerOptions::new(&folders.state_dir, any_port, any_port, any_port);
    options.models = ModelCatalogue::from_env().map_err(Error::Models)?;
    let server_error =
        |source| Error::Server { state_dir: folders.state_dir.clone(), source: Box::new(source) };
    let mut server = Server::start(options).await.map_err(server_error)?;
    let client = Client::new(&format!("http://{}", server.addresses().people))?;
    let agent = AgentProcess::start(&agent_process::Options {
        fleet_url: format!("http://{}", server.addresses().fleet),
        slots: file.job.resources.ranks,
        work_dir: &folders.work_dir,
        runs_dir: &folders.runs_dir,
        temporary: folders.temporary.as_ref().map(tempfile::TempDir::path),
        accelerator: accelerator_word(file.job.resources.accelerator),
    });
    let result = match agent {
        Ok(mut agent) => {
            let result = tokio::select! {
                result = train(args, &client, &file, resume_from, &mut agent, &folders) => result,
                Err(source) = server.failed() => Err(server_error(source)),
            };
            agent.stop().await;
            result
        }
        Err(error) => Err(error),
    };
    let stopped = server.shutdown().await.map_err(server_error);
    result.and_then(|done| stopped.map(|()| done))
}

/// Submits the job, follows it to its end and prints what people want to know.
async fn train(
    args: &args::Train,
    client: &Client,
    file: &JobFile,
    resume_from: String,
    agent: &mut AgentProcess,
    folders: &Folders,
) -> Result<(), Error> {
    let is_resumed = !resume_from.is_empty();
    wait_for_agent(client, agent).await?;
    let request = file.submit_request(resume_from.clone());
    let job_id = client.submit(request).await?;
    let mut progress = Progress::new(Duration::from_secs(args.log_interval));
    progress.line(&format!("{job_id} · {}", file.headline()));
    if is_resumed {
        progress.line(&format!("resuming from {resume_from}"));
    }
    let followed = follow_or_stop(client, &job_id, &mut progress, agent).await;
    progress.finish(followed.as_ref().ok());

    let run_folder = folders.runs_dir.join(&job_id);
    let log = save_logs(client, &job_id, &run_folder).await;
    let job = followed?;
    if job.state() == JobState::Cancelled {
        print_stopped(&job, file.job.schedule.total_steps, &run_folder, &args.manifest)?;
        return Err(Error::Stopped { job_id });
    }
    if let Err(error) = watch::outcome(&job) {
        output::error_line(&last_log_lines(client, &job_id).await);
        if let Some(log) = log {
            output::error_line(&format!("log of all ranks: {}", log.display()));
        }
        if !job.checkpoint_url.is_empty() {
            output::error_line(&format!(
                "go on with: ringmaster train {} --resume {job_id}",
                args.manifest.display()
            ));
        }
        return Err(error);
    }
    print_result(&job, &run_folder)
}

/// Waits until the embedded agent has registered: before, a job could only be queued.
async fn wait_for_agent(client: &Client, agent: &mut AgentProcess) -> Result<(), Error> {
    let registered = async {
        while client.nodes().await?.is_empty() {
            tokio::time::sleep(AGENT_POLL).await;
        }
        Ok(())
    };
    tokio::select! {
        result = tokio::time::timeout(AGENT_DEADLINE, registered) => result.unwrap_or(Ok(())),
        error = agent.ended_early() => Err(error),
    }
}

/// Follows the job; the first Ctrl-C (or SIGTERM) cancels it, the second gives it up.
async fn follow_or_stop(
    client: &Client,
    job_id: &str,
    progress: &mut Progress,
    agent: &mut AgentProcess,
) -> Result<Job, Error> {
    let mut stop = StopSignals::new()?;
    let notices = progress.notices();
    let follow = watch::follow(client, job_id, progress);
    tokio::pin!(follow);
    tokio::select! {
        job = &mut follow => return job,
        error = agent.ended_early() => return Err(error),
        () = stop.next() => {}
    }
    notices.line("stopping: the ranks save their state first; Ctrl-C again to kill them");
    client.cancel(job_id, "interrupted by the user").await?;
    tokio::select! {
        job = &mut follow => job,
        error = agent.ended_early() => Err(error),
        () = stop.next() => Err(Error::Interrupted { job_id: job_id.to_owned() }),
    }
}

/// SIGINT and SIGTERM.
struct StopSignals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl StopSignals {
    fn new() -> Result<Self, Error> {
        use tokio::signal::unix::{SignalKind, signal};
        let failed = |source| Error::io("listen for signals", source);
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Where the embedded cluster keeps its files.
struct Folders {
    state_dir: PathBuf,
    work_dir: PathBuf,
    runs_dir: PathBuf,
    /// Removed when the command ends, if the user named no folder.
    temporary: Option<tempfile::TempDir>,
}

impl Folders {
    fn create(args: &args::Train) -> Result<Self, Error> {
        let absolute = |path: &Path| {
            std::path::absolute(path)
                .map_err(|source| Error::io(format!("make {} absolute", path.display()), source))
        };
        let (state_dir, temporary) = match &args.state_dir {
            Some(folder) => (absolute(folder)?, None),
            None => {
                let folder = tempfile::Builder::new().prefix("ringmaster-").tempdir();
                let folder =
                    folder.map_err(|source| Error::io("make a temporary folder", source))?;
                (folder.path().to_owned(), Some(folder))
            }
        };
        let work_dir = state_dir.join("agent");
        let runs_dir = absolute(&args.runs_dir)?;
        for folder in [&state_dir, &work_dir, &runs_dir] {
            std::fs::create_dir_all(folder)
                .map_err(|source| Error::io(format!("create {}", folder.display()), source))?;
        }
        Ok(Self { state_dir, work_dir, runs_dir, temporary })
    }
}

fn accelerator_word(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Cpu => "cpu",
        Accelerator::Cuda => "cuda",
    }
}

/// Copies the ranks' log lines into the run folder; the embedded coordinator forgets them.
async fn save_logs(client: &Client, job_id: &str, run_folder: &Path) -> Option<PathBuf> {
    let request = LogsRequest { job_id: job_id.to_owned(), ..LogsRequest::default() };
    let lines = tokio::time::timeout(LOG_DEADLINE, collect_logs(client, request)).await.ok()??;
    let path = run_folder.join("ranks.log");
    std::fs::create_dir_all(run_folder).ok()?;
    std::fs::write(&path, lines).ok()?;
    Some(path)
}

async fn last_log_lines(client: &Client, job_id: &str) -> String {
    let request =
        LogsRequest { job_id: job_id.to_owned(), tail: SHOWN_LOG_LINES, ..LogsRequest::default() };
    let lines = tokio::time::timeout(LOG_DEADLINE, collect_logs(client, request)).await;
    let lines = lines.ok().flatten().unwrap_or_default();
    lines.trim_end().to_owned()
}

async fn collect_logs(client: &Client, request: LogsRequest) -> Option<String> {
    let mut stream = client.logs(request).await.ok()?;
    let mut text = String::new();
    while let Ok(Some(line)) = stream.message().await {
        text.push_str(&super::logs::text_line(&line));
        text.push('\n');
    }
    Some(text)
}

/// Prints the table of scores and where everything lies.
fn print_result(job: &Job, run_folder: &Path) -> Result<(), Error> {
    let stored = std::fs::read_to_string(run_folder.join("summary.json"));
    let text = stored.unwrap_or_else(|_| job.summary_json.clone());
    let mut lines = Vec::new();
    if let Some(summary) = Summary::from_json(&text) {
        lines.push(summary.training_line());
        lines.extend(summary.notes());
        lines.extend(summary.table());
    }
    lines.push(format!("run folder  {}", shown(run_folder)));
    let report = run_folder.join("report.html");
    if report.is_file() {
        lines.push(format!("report      {}", shown(&report)));
    }
    if !job.checkpoint_url.is_empty() {
        lines.push(format!("checkpoint  {}", job.checkpoint_url));
    }
    output::print(&lines.join("\n"))
}

/// Prints what a job that was stopped leaves behind, and how to go on.
fn print_stopped(
    job: &Job,
    total_steps: u64,
    run_folder: &Path,
    manifest: &Path,
) -> Result<(), Error> {
    let stored = std::fs::read_to_string(run_folder.join("summary.json"));
    let summary = stored.ok().and_then(|text| Summary::from_json(&text));
    let done = summary.map(|summary| summary.steps);
    let seen = done.or_else(|| job.metrics.as_ref().map(|metrics| metrics.step)).unwrap_or(0);
    let mut lines = vec![match seen {
        0 => "stopped before the first step".to_owned(),
        _ => format!("stopped after step {} of {}", thousands(seen), thousands(total_steps)),
    }];
    let report = run_folder.join("report.html");
    if report.is_file() {
        lines.push(format!("run folder  {}", shown(run_folder)));
        lines.push(format!("report      {}", shown(&report)));
    }
    match job.checkpoint_url.as_str() {
        "" => lines.push("checkpoint  none was saved".to_owned()),
        url => {
            lines.push(format!("checkpoint  {url}"));
            let manifest = manifest.display();
            lines.push(format!("go on with  ringmaster train {manifest} --resume latest"));
        }
    }
    output::print(&lines.join("\n"))
}

/// Returns a path relative to the working directory where it lies below it.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}
