//! People: they submit, look, and sometimes cancel.

use std::sync::Mutex;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use ringmaster_proto::v1;
use ringmaster_proto::v1::jobs_client::JobsClient;
use tokio::time::timeout;
use tonic::Code;

use super::net::{self, PEOPLE};
use super::rank::insist;
use super::scenario::JobPlan;
use super::world::{World, short};

/// How often people look at their job.
const LOOK: Duration = Duration::from_millis(700);
/// When they give a call up and make it again.
const CALL: Duration = Duration::from_secs(3);

/// Submits every job at its time and looks at it until it has ended.
pub(crate) async fn run(world: World, jobs: Vec<JobPlan>, seed: u64) -> turmoil::Result {
    for (number, plan) in (0..).zip(jobs) {
        tokio::task::spawn_local(follow(world.clone(), plan, seed ^ number));
    }
    std::future::pending().await
}

async fn follow(world: World, plan: JobPlan, seed: u64) {
    let random = Mutex::new(StdRng::seed_from_u64(seed));
    tokio::time::sleep(plan.at).await;
    let request = v1::SubmitRequest {
        manifest: manifest(&plan),
        file_name: "job.yaml".to_owned(),
        request_id: format!("request-{}", plan.name),
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
    look(&world, &job_id).await;
}

async fn look(world: &World, job_id: &str) {
    let mut ended = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let mut client = JobsClient::new(net::channel(PEOPLE));
        let request = v1::GetRequest { job_id: job_id.to_owned() };
        let Ok(answer) = timeout(CALL, client.get(request)).await else { continue };
        match answer {
            Ok(job) => {
                let job = job.into_inner();
                let is_ended = job.ended_at_ms > 0;
                if let Some(state) = ended.filter(|state| *state != job.state()) {
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
    let now = world.with(|state| state.now);
    tokio::time::sleep(at.saturating_sub(now)).await;
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

fn given_up() -> tonic::Status {
    tonic::Status::deadline_exceeded("the client has given the call up")
}

fn manifest(plan: &JobPlan) -> String {
    let text = include_str!("../fleet/job.json");
    let mut job: serde_json::Value = serde_json::from_str(text).unwrap();
    job["name"] = plan.name.clone().into();
    job["resources"]["ranks"] = plan.ranks.into();
    job["resources"]["min_ranks"] = plan.min_ranks.into();
    job["data"]["lanes"] = 8.into();
    job["resources"]["priority"] = plan.priority.into();
    job["schedule"]["total_steps"] = plan.steps.into();
    job["checkpoint"]["every_steps"] = plan.checkpoint_every.into();
    job["restart"]["max_without_progress"] = 50.into();
    job.to_string()
}
