//! People: they submit, look, sometimes cancel, pause or go back, and drain nodes.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use ringmaster_proto::v1;
use ringmaster_proto::v1::jobs_client::JobsClient;
use tokio::time::timeout;
use tonic::Code;

use super::call::insist;
use super::net::{self, PEOPLE};
use super::scenario::{Drain, JobPlan, Pause};
use super::world::{World, short};

/// How often people look at their job.
const LOOK: Duration = Duration::from_millis(700);
/// How often they look whether there is a checkpoint to go back to.
const PATIENCE: u32 = 10;
/// When they give a call up and make it again.
const CALL: Duration = Duration::from_secs(3);

/// Submits every job at its time and looks at it until it has ended; closes and opens nodes.
pub(crate) async fn run(
    world: World,
    jobs: Vec<JobPlan>,
    drains: Vec<Drain>,
    seed: u64,
) -> turmoil::Result {
    for (number, plan) in (0..).zip(jobs) {
        tokio::task::spawn_local(follow(world.clone(), plan, seed ^ number));
    }
    for (number, plan) in (0..).zip(drains) {
        tokio::task::spawn_local(drain(world.clone(), plan, seed.rotate_left(7) ^ number));
    }
    std::future::pending().await
}

async fn follow(world: World, plan: JobPlan, seed: u64) {
    let random = Mutex::new(StdRng::seed_from_u64(seed));
    tokio::time::sleep(plan.at).await;
    let tiny = include_str!("../fleet/tiny.json");
    let request = v1::SubmitRequest {
        manifest_yaml: manifest(&plan),
        file_name: "job.yaml".to_owned(),
        request_id: format!("request-{}", plan.name),
        models: HashMap::from([("tiny".to_owned(), tiny.to_owned())]),
        ..Default::default()
    };
    let submit = || {
        let request = request.clone();
        async move {
            let mut client = JobsClient::new(net::channel(PEOPLE));
            timeout(CALL, client.submit(request)).await.unwrap_or_else(|_| Err(given_up()))
        }
    };
    let job_id = match insist(&random, submit).await {
        Ok(reply) => reply.job_id,
        Err(status) => return world.violate("a valid job is taken", status.to_string()),
    };
    world.log(format!("client: {} is submitted", plan.name));
    world.acknowledged_submit(&request.request_id, &job_id);
    if let Some(at) = plan.cancel_at {
        tokio::task::spawn_local(cancel(world.clone(), job_id.clone(), at, seed));
    }
    tokio::task::spawn_local(pauses(world.clone(), job_id.clone(), plan.pauses, seed));
    tokio::task::spawn_local(go_back(world.clone(), job_id.clone(), plan.rollbacks));
    look(&world, &job_id).await;
}

async fn look(world: &World, job_id: &str) {
    let mut ended = None;
    let mut client = JobsClient::new(net::channel(PEOPLE));
    loop {
        tokio::time::sleep(LOOK).await;
        let request = v1::GetRequest { job_id: job_id.to_owned() };
        let Ok(answer) = timeout(CALL, client.get(request)).await else { continue };
        match answer {
            Ok(job) => {
                let job = job.into_inner();
                let is_ended = job.ended_at_ms > 0;
                if let Some(state) = ended.filter(|state| *state != job.state()) {
                    if world.may_go_on(job_id, state) {
                        ended = None;
                        continue;
                    }
                    let what = format!("{job_id} was seen {state:?} and then {:?}", job.state());
                    world.violate("what has ended stays ended", what);
                }
                if is_ended && ended.is_none() {
                    world.log(format!(
                        "client: {} is {}",
                        short(job_id),
                        job.state().as_str_name()
                    ));
                    ended = Some(job.state());
                }
            }
            Err(status) if status.code() == Code::NotFound => {
                world.violate("an acknowledged submission is never lost", status.to_string());
            }
            Err(_) => {}
        }
    }
}

async fn cancel(world: World, job_id: String, at: Duration, seed: u64) {
    let random = Mutex::new(StdRng::seed_from_u64(!seed));
    until(&world, at).await;
    let request = v1::CancelRequest { job_id: job_id.clone(), reason: "enough".to_owned() };
    let cancel = || {
        let request = request.clone();
        async move {
            let mut client = JobsClient::new(net::channel(PEOPLE));
            timeout(CALL, client.cancel(request)).await.unwrap_or_else(|_| Err(given_up()))
        }
    };
    match insist(&random, cancel).await {
        Ok(_) => world.log(format!("client: {} is cancelled", short(&job_id))),
        Err(status) => {
            world.violate("an acknowledged submission is never lost", status.to_string())
        }
    }
}

/// Pauses a job at its times and resumes it again.
async fn pauses(world: World, job_id: String, plans: Vec<Pause>, seed: u64) {
    let random = Mutex::new(StdRng::seed_from_u64(seed.rotate_left(13)));
    for plan in plans {
        until(&world, plan.at).await;
        let request = v1::PauseRequest { job_id: job_id.clone(), reason: "lunch".to_owned() };
        let call = async |mut client: JobsClient<_>| client.pause(request.clone()).await;
        if has_ended(&world, &ask(&random, call).await) {
            world.with(|state| state.plans -= 1);
            continue;
        }
        world.acknowledged_pause(&job_id);
        let Some(lasts) = plan.lasts else {
            world.with(|state| state.plans -= 1);
            continue;
        };
        tokio::time::sleep(lasts).await;
        world.asked_to_resume(&job_id);
        let request = v1::ResumeRequest { job_id: job_id.clone(), ..Default::default() };
        let call = async |mut client: JobsClient<_>| client.resume(request.clone()).await;
        if !has_ended(&world, &ask(&random, call).await) {
            world.log(format!("client: {} is resumed", short(&job_id)));
        }
        world.with(|state| state.plans -= 1);
    }
}

/// Lets a job go back to an older checkpoint at these times, once there is one.
async fn go_back(world: World, job_id: String, plans: Vec<(Duration, usize)>) {
    for (at, pick) in plans {
        until(&world, at).await;
        let mut older = world.older_checkpoints(&job_id);
        for _ in 0..PATIENCE {
            if !older.is_empty() {
                break;
            }
            tokio::time::sleep(LOOK).await;
            older = world.older_checkpoints(&job_id);
        }
        if let Some(to) = pick.checked_rem(older.len()).map(|index| older[index]) {
            world.asked_to_resume(&job_id);
            if world.ask_to_go_back(&job_id, to, CALL).await {
                world.count("people: roll-back");
                let (generation, step) = to;
                let job = short(&job_id);
                world.log(format!("client: {job} goes back to step {step} of {generation}"));
            }
        }
        world.with(|state| state.plans -= 1);
    }
}

/// Whether a job was past pausing and resuming; no other refusal is right.
fn has_ended(world: &World, answer: &Result<v1::Job, tonic::Status>) -> bool {
    match answer {
        Ok(job) => job.ended_at_ms > 0,
        Err(status) if status.code() == Code::FailedPrecondition => true,
        Err(status) => {
            world.violate("an acknowledged submission is never lost", status.to_string());
            true
        }
    }
}

/// Closes a node for some time.
async fn drain(world: World, plan: Drain, seed: u64) {
    let random = Mutex::new(StdRng::seed_from_u64(seed));
    let node = format!("n{}", plan.node);
    until(&world, plan.at).await;
    let set = async |usable: bool| {
        let request =
            v1::SetNodeRequest { node: node.clone(), usable, reason: "repairs".to_owned() };
        ask(&random, async |mut client: JobsClient<_>| client.set_node(request.clone()).await).await
    };
    // One that has never registered is not known yet.
    if set(false).await.is_ok() {
        world.acknowledged_drain(&node);
        if let Some(lasts) = plan.lasts {
            tokio::time::sleep(lasts).await;
            world.asked_to_undrain(&node);
            // Once it is open, one that has not come back after a restart is not known any more.
            if let Err(status) = set(true).await
                && world.with(|state| state.is_closed(&node))
            {
                world.violate("a closed node stays known", status.to_string());
            }
            world.log(format!("client: {node} is open again"));
        }
    }
    world.with(|state| state.plans -= 1);
}

/// Makes a call until it is answered.
async fn ask<T>(
    random: &Mutex<StdRng>,
    call: impl AsyncFn(
        JobsClient<tonic::transport::Channel>,
    ) -> Result<tonic::Response<T>, tonic::Status>,
) -> Result<T, tonic::Status> {
    let send = || async {
        let client = JobsClient::new(net::channel(PEOPLE));
        timeout(CALL, call(client)).await.unwrap_or_else(|_| Err(given_up()))
    };
    insist(random, send).await
}

async fn until(world: &World, at: Duration) {
    let now = world.with(|state| state.now);
    tokio::time::sleep(at.saturating_sub(now)).await;
}

fn given_up() -> tonic::Status {
    tonic::Status::deadline_exceeded("the client has given the call up")
}

fn manifest(plan: &JobPlan) -> String {
    let text = include_str!("../fleet/job.json");
    let mut manifest: serde_json::Value = serde_json::from_str(text).unwrap();
    manifest["metadata"]["name"] = plan.name.clone().into();
    let spec = &mut manifest["spec"];
    spec["resources"]["ranks"] = plan.ranks.into();
    spec["resources"]["min_ranks"] = plan.min_ranks.into();
    spec["data"]["lanes"] = 8.into();
    spec["resources"]["priority"] = plan.priority.into();
    spec["schedule"]["steps"] = plan.steps.into();
    spec["checkpoint"]["every_steps"] = plan.checkpoint_every.into();
    spec["restart"]["max_without_progress"] = plan.max_without_progress.into();
    format!("{manifest:#}")
}
