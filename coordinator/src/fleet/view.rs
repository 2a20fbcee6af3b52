//! What people see of jobs, events and nodes.

use ringmaster_proto::v1;
use tokio::time::Instant;

use super::job::Job;
use super::node::Node;
use crate::state::{Closure, EventRecord};

/// A job as the wire shows it.
pub(super) fn job(job: &Job) -> v1::Job {
    let record = &job.record;
    let ranks = job.seats().map(|rank| {
        let status = job.statuses[rank as usize].as_ref();
        v1::RankInfo {
            rank,
            node: job.seat(rank).unwrap_or_default().to_owned(),
            pid: status.map_or(0, |status| status.pid),
            phase: status.map_or(0, |status| status.phase),
            step: status.map_or(0, |status| status.step),
        }
    });
    v1::Job {
        job_id: record.job_id.clone(),
        name: record.name.clone(),
        state: record.state.to_proto().into(),
        reason: record.reason.clone(),
        generation: record.generation,
        world_size: world_size(job),
        submitted_at_ms: record.submitted_at_ms,
        started_at_ms: record.started_at_ms,
        ended_at_ms: record.ended_at_ms,
        metrics: job.metrics,
        ranks: ranks.collect(),
        recoveries: record.recoveries,
        summary_json: record.summary_json.clone(),
        manifest_yaml: record.manifest_yaml.clone(),
        resume_from: record.resume_from.clone(),
        checkpoint_step: record.checkpoint_step,
        checkpoint_url: record.checkpoint_url.clone(),
        labels: record.labels.clone().into_iter().collect(),
        priority: record.priority,
        max_ranks: record.ranks,
        min_ranks: job.wants.min_ranks,
        rolled_back_to: record.rollback.as_ref().map(|to| to.url.clone()).unwrap_or_default(),
    }
}

/// Ranks of the ring that stands or stood last; of a job without one, what it has, or asks for.
fn world_size(job: &Job) -> u32 {
    let record = &job.record;
    let has_ring = record.formed || record.state.is_ended();
    let ranks = if has_ring { record.ring.len() } else { job.taken() };
    match u32::try_from(ranks).expect("world sizes fit u32") {
        0 => record.ranks,
        ranks => ranks,
    }
}

/// An event as the wire shows it.
pub(crate) fn event(event: &EventRecord) -> v1::Event {
    v1::Event {
        id: event.id,
        at_ms: event.at_ms,
        job_id: event.job_id.clone(),
        kind: event.kind.clone(),
        message: event.message.clone(),
    }
}

/// A node as the wire shows it. `used` slots are seats and strays together.
pub(super) fn node(
    name: &str,
    node: &Node,
    used: u32,
    closure: Option<&Closure>,
    now: Instant,
) -> v1::Node {
    let connected = node.session.is_some() && !node.lease.is_expired(now);
    v1::Node {
        node: name.to_owned(),
        slots: node.slots,
        free_slots: node.slots.saturating_sub(used),
        accelerator: node.accelerator.clone(),
        connected,
        address: node.address.clone(),
        last_heartbeat_ms: node.last_heartbeat_ms,
        availability: availability(closure, connected),
    }
}

/// A node that is closed and was not seen since the coordinator started.
pub(super) fn unseen_node(name: &str, closure: Option<&Closure>) -> v1::Node {
    let availability = availability(closure, false);
    v1::Node { node: name.to_owned(), availability, ..v1::Node::default() }
}

fn availability(closure: Option<&Closure>, connected: bool) -> String {
    match closure {
        Some(Closure { kind, reason, .. }) => format!("{}: {reason}", kind.word()),
        None if connected => "ready".to_owned(),
        None => "not connected".to_owned(),
    }
}
