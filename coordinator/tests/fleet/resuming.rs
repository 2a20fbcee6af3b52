//! Going on with ended jobs, and from older checkpoints.

use std::path::Path;

use ringmaster_proto::v1;
use ringmaster_proto::v1::{Generation, JobState};

use crate::fake::{
    Agent, Coordinator, Rank, exited, job, joined, manifest, patient, register, status, submission,
    with, within,
};
use crate::stored;

/// A job of one rank that runs, with checkpoints that lie in `folder`.
struct Job {
    job_id: String,
    manifest: String,
    start: v1::StartRank,
    reply: v1::JoinReply,
}

impl Job {
    async fn run(coordinator: &mut Coordinator, agent: &mut Agent, folder: &Path) -> Self {
        let uri = format!("file://{}", folder.display());
        let manifest = with(&manifest("one", 1), "/checkpoint/uri", uri);
        let job_id = coordinator.submit(manifest.clone()).await;
        Self::start(coordinator, agent, job_id, manifest).await
    }

    /// Lets the rank that is started join and report.
    async fn start(
        coordinator: &mut Coordinator,
        agent: &mut Agent,
        job_id: String,
        manifest: String,
    ) -> Self {
        let start = agent.start_rank().await;
        assert_eq!(start.job_id, job_id);
        agent.report(vec![status(&start, 0)]);
        let ranks = coordinator.ranks().await;
        let reply = joined(ranks.join(&job_id, start.generation.unwrap(), 0, None)).await;
        coordinator.until_state(&job_id, JobState::Running).await;
        Self { job_id, manifest, start, reply }
    }

    async fn again(self, coordinator: &mut Coordinator, agent: &mut Agent) -> Self {
        Self::start(coordinator, agent, self.job_id, self.manifest).await
    }

    fn generation(&self) -> Generation {
        self.start.generation.unwrap()
    }

    /// Stores a checkpoint, has it granted and announces it; returns what others are about to read.
    async fn save(&self, ranks: &Rank, folder: &Path, step: u64) -> (String, Vec<String>) {
        let generation = self.generation();
        let job = job(&self.manifest);
        let url = stored::store(folder, &job, &self.job_id, generation, step).await;
        let in_use = ranks.checkpoint_at(&self.job_id, generation, 1, step, &url).await;
        (url, in_use)
    }

    async fn end(&self, agent: &mut Agent, code: i32) {
        agent.report(Vec::new());
        agent.exit(exited(&self.start, code)).await;
    }
}

async fn roll_back(
    coordinator: &mut Coordinator,
    job_id: &str,
    step: u64,
) -> Result<v1::Job, tonic::Status> {
    let request = v1::ResumeRequest { job_id: job_id.to_owned(), from_step: Some(step) };
    Ok(within("the answer", coordinator.jobs.resume(request)).await?.into_inner())
}

fn rollbacks(folder: &Path, job_id: &str) -> Vec<String> {
    let names = std::fs::read_dir(folder.join(job_id)).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("rollback-")).collect()
}

#[tokio::test]
async fn a_job_that_failed_or_was_cancelled_goes_on_from_its_newest_checkpoint() {
    let (state, runs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut coordinator = Coordinator::start(state.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 1).await;
    let ranks = coordinator.ranks().await;
    let job = Job::run(&mut coordinator, &mut agent, runs.path()).await;
    let (first, job_id) = (job.generation(), job.job_id.clone());
    let (url, _) = job.save(&ranks, runs.path(), 2).await;

    agent.report(Vec::new());
    agent.fail_twice(&job.start, "no data").await;
    coordinator.until_state(&job_id, JobState::Failed).await;
    let resumed = coordinator.resume(&job_id).await;
    assert_eq!((resumed.state(), resumed.ended_at_ms), (JobState::Queued, 0));
    let expected = "was failed, waits in the queue again to go on from its checkpoint of step 2";
    assert_eq!(resumed.reason, expected);
    let job = job.again(&mut coordinator, &mut agent).await;
    assert!(job.generation() > first);
    assert_eq!((&job.reply.checkpoint_hint, job.reply.source()), (&url, v1::StateSource::Stored));
    assert_eq!(job.reply.rolled_back_to, "");

    coordinator.cancel(&job_id).await;
    assert!(agent.stop_rank().await.graceful);
    job.end(&mut agent, 0).await;
    coordinator.until_state(&job_id, JobState::Cancelled).await;
    coordinator.resume(&job_id).await;
    let job = job.again(&mut coordinator, &mut agent).await;

    // What is finished is finished.
    ranks.finish(&job_id, job.generation()).await;
    job.end(&mut agent, 0).await;
    coordinator.until_state(&job_id, JobState::Succeeded).await;
    let request = v1::ResumeRequest { job_id: job_id.clone(), from_step: None };
    let refused = coordinator.jobs.resume(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    let remedy = format!("submit its manifest with a longer schedule and `--resume {job_id}`");
    assert!(refused.message().ends_with(&remedy), "{refused}");
}

#[tokio::test]
async fn a_rank_that_lingers_has_no_part_in_the_next_attempt() {
    let state = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(state.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 4).await;
    let running = crate::fake::run_two(&mut coordinator, &mut agent).await;
    agent.report(vec![status(&running.starts[1], 0)]);
    agent.fail_twice(&running.starts[0], "no data").await;
    assert!(!agent.stop_rank().await.graceful);
    coordinator.resume(&running.job_id).await;
    // It is told again to end, instead of joining what comes; its place is taken when it has.
    let start = agent.start_rank().await;
    assert_eq!(start.rank, 0);
    agent.report(Vec::new());
    let others = agent.exit(exited(&running.starts[1], 1)).await;
    assert_eq!(others, []);
    assert_eq!(agent.start_rank().await.rank, 1);
    assert_eq!(coordinator.get(&running.job_id).await.recoveries, 1, "from before it failed");
}

#[tokio::test]
async fn a_running_job_stops_at_a_step_boundary_and_goes_back_to_an_older_checkpoint() {
    let (state, runs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut coordinator = Coordinator::start(state.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 1).await;
    let ranks = coordinator.ranks().await;
    let job = Job::run(&mut coordinator, &mut agent, runs.path()).await;
    let (old, job_id) = (job.generation(), job.job_id.clone());
    let (second, _) = job.save(&ranks, runs.path(), 2).await;
    job.save(&ranks, runs.path(), 4).await;
    agent.report(vec![status(&job.start, 5)]);

    let answer = roll_back(&mut coordinator, &job_id, 2).await.unwrap();
    assert_eq!((answer.state(), &answer.rolled_back_to), (JobState::Preempting, &second));
    assert_eq!((answer.checkpoint_step, &answer.checkpoint_url), (2, &second));
    assert!(agent.stop_rank().await.graceful);
    assert_eq!(stored::newest(runs.path(), &job_id).await, Some(4), "nobody writes yet");
    // It saves once more on the way out; nobody will read that, and what is gone back to stays.
    let (_, in_use) = job.save(&ranks, runs.path(), 5).await;
    assert_eq!(in_use, std::slice::from_ref(&second));
    job.end(&mut agent, 0).await;

    let job = job.again(&mut coordinator, &mut agent).await;
    let reply = &job.reply;
    assert_eq!((&reply.rolled_back_to, reply.gives_up), (&second, Some(old)));
    assert_eq!((&reply.checkpoint_hint, reply.source()), (&second, v1::StateSource::Stored));
    let went_back = stored_goes_back(runs.path(), &job_id, 2);
    within("the roll-back in the store", went_back).await;

    // Losing every rank before it has saved anew leads back to the same one.
    let (url, up_to) = (second.clone(), old);
    let fault = job.generation();
    agent.exit(exited(&job.start, 1)).await;
    let job = job.again(&mut coordinator, &mut agent).await;
    assert!(job.generation() > fault);
    assert_eq!((&job.reply.rolled_back_to, job.reply.gives_up), (&url, Some(up_to)));

    // With its first checkpoint of its own the roll-back is over.
    let (third, _) = job.save(&ranks, runs.path(), 3).await;
    let now = coordinator.get(&job_id).await;
    assert_eq!((now.rolled_back_to.as_str(), &now.checkpoint_url), ("", &third));
    assert_eq!(stored::newest(runs.path(), &job_id).await, Some(3));
    let kinds = coordinator.kinds(&job_id).await;
    let expected = ["checkpoint", "rolled_back", "preempting", "checkpoint", "preempted", "placed"];
    assert!(kinds.windows(6).any(|window| window == expected), "{kinds:?}");
}

/// Waits until a resume would take this step.
async fn stored_goes_back(folder: &Path, job_id: &str, step: u64) {
    while stored::newest(folder, job_id).await != Some(step) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_paused_job_goes_back_at_once_and_a_restart_does_what_was_left_undone() {
    let (state, runs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut coordinator = Coordinator::start(state.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 1).await;
    let ranks = coordinator.ranks().await;
    let job = Job::run(&mut coordinator, &mut agent, runs.path()).await;
    let (old, job_id) = (job.generation(), job.job_id.clone());
    let (second, _) = job.save(&ranks, runs.path(), 2).await;
    job.save(&ranks, runs.path(), 4).await;
    coordinator.pause(&job_id).await;
    assert!(agent.stop_rank().await.graceful);
    job.end(&mut agent, 0).await;
    coordinator.until_state(&job_id, JobState::Paused).await;
    coordinator.set_node("n0", false).await;

    let answer = roll_back(&mut coordinator, &job_id, 2).await.unwrap();
    assert_eq!(answer.state(), JobState::Queued);
    assert_eq!(stored::newest(runs.path(), &job_id).await, Some(2), "when the answer is there");
    let [mark] = &rollbacks(runs.path(), &job_id)[..] else { panic!("one roll-back is marked") };
    assert_eq!(*mark, format!("rollback-{old}-to-step-0000000002.{old}.json"));

    // As if the coordinator had died after its decision and before it told the store.
    coordinator.server.shutdown().await.unwrap();
    std::fs::remove_file(runs.path().join(&job_id).join(mark)).unwrap();
    assert_eq!(stored::newest(runs.path(), &job_id).await, Some(4));
    let mut coordinator = Coordinator::start(state.path(), patient()).await;
    within("the roll-back in the store", stored_goes_back(runs.path(), &job_id, 2)).await;

    // And a second thought goes further back still, from the queue; not forward to what was given up.
    let refused = roll_back(&mut coordinator, &job_id, 4).await.unwrap_err();
    assert!(refused.message().ends_with("it holds only step 2"), "{refused}");
    let mut agent = Agent::register(&coordinator, register("n0", 1)).await;
    coordinator.set_node("n0", true).await;
    let job = job.again(&mut coordinator, &mut agent).await;
    assert_eq!((&job.reply.rolled_back_to, job.reply.gives_up), (&second, Some(old)));
}

#[tokio::test]
async fn a_restart_in_the_middle_of_stopping_still_goes_back() {
    let (state, runs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut coordinator = Coordinator::start(state.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 1).await;
    let ranks = coordinator.ranks().await;
    let job = Job::run(&mut coordinator, &mut agent, runs.path()).await;
    let (second, _) = job.save(&ranks, runs.path(), 2).await;
    job.save(&ranks, runs.path(), 4).await;
    roll_back(&mut coordinator, &job.job_id, 2).await.unwrap();
    assert!(agent.stop_rank().await.graceful);
    coordinator.server.shutdown().await.unwrap();

    let mut coordinator = Coordinator::start(state.path(), patient()).await;
    let running = crate::fake::running_ranks(std::slice::from_ref(&job.start), job.generation());
    let back = v1::Register { running, ..register("n0", 1) };
    let mut agent = Agent::register(&coordinator, back).await;
    assert!(agent.stop_rank().await.graceful, "it is asked again");
    job.end(&mut agent, 0).await;
    let old = job.generation();
    let job = job.again(&mut coordinator, &mut agent).await;
    assert_eq!((&job.reply.rolled_back_to, job.reply.gives_up), (&second, Some(old)));
}

#[tokio::test]
async fn what_cannot_be_gone_back_to_is_refused_and_the_job_runs_on() {
    let (state, runs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut coordinator = Coordinator::start(state.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 1).await;
    let ranks = coordinator.ranks().await;
    let job = Job::run(&mut coordinator, &mut agent, runs.path()).await;
    let job_id = job.job_id.clone();
    let refused = roll_back(&mut coordinator, &job_id, 2).await.unwrap_err();
    assert!(refused.message().ends_with("the job has published no checkpoint"), "{refused}");

    let (url, _) = job.save(&ranks, runs.path(), 2).await;
    job.save(&ranks, runs.path(), 4).await;
    let refused = roll_back(&mut coordinator, &job_id, 3).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    let text = refused.message();
    assert!(text.ends_with("no complete checkpoint of that step; it holds steps 4, 2"), "{text}");

    let model = Path::new(&url).join("model.safetensors");
    let mut bytes = std::fs::read(&model).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&model, bytes).unwrap();
    let refused = roll_back(&mut coordinator, &job_id, 2).await.unwrap_err();
    let text = refused.message();
    assert!(text.contains("model.safetensors is damaged: checksum of bytes 0.."), "{text}");

    let now = coordinator.get(&job_id).await;
    assert_eq!((now.state(), now.checkpoint_step), (JobState::Running, 4));
    assert_eq!((now.rolled_back_to, rollbacks(runs.path(), &job_id)), (String::new(), vec![]));
}

#[tokio::test]
async fn what_another_job_is_to_start_from_is_named_until_that_has_a_checkpoint_of_its_own() {
    let (state, runs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut coordinator = Coordinator::start(state.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let ranks = coordinator.ranks().await;
    let job = Job::run(&mut coordinator, &mut agent, runs.path()).await;
    let (url, in_use) = job.save(&ranks, runs.path(), 2).await;
    assert_eq!(in_use, Vec::<String>::new());

    let request = v1::SubmitRequest { resume_from: url.clone(), ..submission(manifest("heir", 1)) };
    let heir = coordinator.jobs.submit(request).await.unwrap().into_inner().job_id;
    let (_, in_use) = job.save(&ranks, runs.path(), 4).await;
    assert_eq!(in_use, [url]);
    let start = agent.start_rank().await;
    let generation = start.generation.unwrap();
    joined(ranks.join(&heir, generation, 0, None)).await;
    ranks.checkpoint(&heir, generation, 1, 3).await;
    let (_, in_use) = job.save(&ranks, runs.path(), 6).await;
    assert_eq!(in_use, Vec::<String>::new());
}
