//! Messages as JSON for scripts. Field names are those of the wire messages.

use ringmaster_proto::v1::{Event, Job, LogLine, Node, StepMetrics, Worker};
use serde_json::{Value, json};

use super::text::{phase_word, state_word};

/// Returns a job with everything known about it. Absent values are null.
pub(crate) fn job(job: &Job) -> Value {
    let ranks: Vec<Value> = job
        .ranks
        .iter()
        .map(|rank| {
            json!({
                "rank": rank.rank, "node": rank.node, "pid": rank.pid,
                "phase": phase_word(rank.phase()), "step": rank.step,
            })
        })
        .collect();
    let summary: Value = serde_json::from_str(&job.summary_json).unwrap_or(Value::Null);
    let checkpoint = (!job.checkpoint_url.is_empty())
        .then(|| json!({"step": job.checkpoint_step, "url": job.checkpoint_url}));
    json!({
        "job_id": job.job_id,
        "name": job.name,
        "state": state_word(job.state()),
        "reason": job.reason,
        "generation": job.generation.as_ref().map(ToString::to_string),
        "world_size": job.world_size,
        "max_ranks": job.max_ranks,
        "min_ranks": job.min_ranks,
        "priority": job.priority,
        "labels": sorted(&job.labels),
        "submitted_at_ms": time(job.submitted_at_ms),
        "started_at_ms": time(job.started_at_ms),
        "ended_at_ms": time(job.ended_at_ms),
        "recoveries": job.recoveries,
        "metrics": job.metrics.as_ref().map(metrics),
        "ranks": ranks,
        "checkpoint": checkpoint,
        "resume_from": (!job.resume_from.is_empty()).then_some(&job.resume_from),
        "rolled_back_to": (!job.rolled_back_to.is_empty()).then_some(&job.rolled_back_to),
        "checkpoint_trouble":
            (!job.checkpoint_trouble.is_empty()).then_some(&job.checkpoint_trouble),
        "summary": summary,
    })
}

fn sorted(labels: &std::collections::HashMap<String, String>) -> Value {
    let labels: std::collections::BTreeMap<_, _> = labels.iter().collect();
    json!(labels)
}

fn time(unix_ms: i64) -> Option<i64> {
    (unix_ms != 0).then_some(unix_ms)
}

fn metrics(metrics: &StepMetrics) -> Value {
    json!({
        "step": metrics.step,
        "total_steps": metrics.total_steps,
        "samples": metrics.samples,
        "loss": metrics.loss,
        "logit_scale": metrics.logit_scale,
        "logit_bias": metrics.logit_bias,
        "lr": metrics.lr,
        "grad_norm": metrics.grad_norm,
        "samples_per_second": metrics.samples_per_second,
        "data_share": metrics.data_share,
        "compute_share": metrics.compute_share,
        "comm_share": metrics.comm_share,
        "substituted": metrics.substituted,
        "slowest_rank": metrics.slowest_rank,
        "slowest_over_median": metrics.slowest_over_median,
    })
}

/// Returns a node.
pub(crate) fn node(node: &Node) -> Value {
    let out = node.slots_out.iter().map(|out| json!({"slot": out.slot, "reason": out.reason}));
    let slots_out: Vec<Value> = out.collect();
    json!({
        "node": node.node, "slots": node.slots, "free_slots": node.free_slots,
        "accelerator": node.accelerator, "connected": node.connected,
        "availability": node.availability,
        "address": node.address, "last_heartbeat_ms": time(node.last_heartbeat_ms),
        "slots_out": slots_out, "faults": node.faults,
        "worker": node.worker.as_ref().map(worker),
    })
}

fn worker(worker: &Worker) -> Value {
    let devices = worker.devices.iter().map(|device| {
        json!({
            "uuid": device.uuid, "name": device.name, "memory_bytes": device.memory_bytes,
        })
    });
    json!({
        "version": worker.version, "build_id": worker.build_id, "features": worker.features,
        "protocol": worker.protocol, "libtorch": worker.libtorch,
        "devices": devices.collect::<Vec<_>>(),
        "unusable": Some(&worker.unusable).filter(|why| !why.is_empty()),
    })
}

/// Returns an event.
pub(crate) fn event(event: &Event) -> Value {
    json!({
        "id": event.id, "at_ms": event.at_ms, "job_id": event.job_id,
        "kind": event.kind, "message": event.message,
    })
}

/// Returns a log line.
pub(crate) fn log_line(line: &LogLine) -> Value {
    json!({
        "job_id": line.job_id, "rank": line.rank, "at_ms": line.at_ms, "text": line.text,
        "generation": line.generation.as_ref().map(ToString::to_string),
    })
}

#[cfg(test)]
mod tests {
    use ringmaster_proto::v1::{Generation, JobState};

    use super::*;

    #[test]
    fn a_job_reads_back_with_words_for_states_and_null_for_what_is_not_yet() {
        let mut message = Job {
            job_id: "emoji-abc234".to_owned(),
            generation: Some(Generation::new(1, 7)),
            ..Job::default()
        };
        message.set_state(JobState::Recovering);
        let value = job(&message);
        assert_eq!(value["state"], "recovering");
        assert_eq!(value["generation"], "g1.7");
        assert!(value["metrics"].is_null() && value["ended_at_ms"].is_null());
        assert!(value["summary"].is_null() && value["checkpoint"].is_null());
    }
}
