//! Whether anything was taken for lost, by what people are shown.

use serde_json::Value;

/// Events of a job that something was taken for lost, or was put right again.
const LOSSES: [&str; 10] = [
    "rank_lost",
    "rank_hung",
    "rank_ended",
    "rank_back",
    "ring_lost",
    "unreachable",
    "node_lost",
    "recovering",
    "recovered",
    "failed",
];

/// Returns what speaks of a loss, a sentence each: in the job as `describe` shows it and in its history. What
/// could not be asked (null) says nothing.
pub(super) fn losses(generation: &str, job: &Value, events: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for event in events.as_array().into_iter().flatten() {
        let text = |key: &str| event[key].as_str().unwrap_or_default();
        if LOSSES.contains(&text("kind")) {
            found.push(format!("{}: {}", text("kind"), text("message")));
        }
    }
    if job.is_null() {
        return found;
    }
    let now = job["generation"].as_str().unwrap_or_default();
    if now != generation {
        found.push(format!("generation {now} instead of {generation}"));
    }
    if job["recoveries"].as_u64() != Some(0) {
        found.push(format!("{} recoveries were counted", job["recoveries"]));
    }
    if job["state"] != "running" {
        found.push(format!("the job is {}: {}", job["state"], job["reason"]));
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_calm_job_has_lost_nothing_and_every_sign_of_a_loss_is_found() {
        let job = json!({"generation": "g1.1", "recoveries": 0, "state": "running", "reason": ""});
        let calm = json!([
            {"kind": "placed", "message": ""}, {"kind": "running", "message": ""},
            {"kind": "checkpoint", "message": ""}, {"kind": "slow_link", "message": ""},
        ]);
        assert_eq!(losses("g1.1", &job, &calm), [""; 0]);
        assert_eq!(losses("g1.1", &Value::Null, &Value::Null), [""; 0]);
        let lost = json!([{"kind": "rank_lost", "message": "rank 1 on node-0"}]);
        assert_eq!(losses("g1.1", &job, &lost), ["rank_lost: rank 1 on node-0"]);
        let mut moved = job.clone();
        (moved["generation"], moved["recoveries"]) = (json!("g1.2"), json!(1));
        moved["state"] = json!("recovering");
        assert_eq!(losses("g1.1", &moved, &calm).len(), 3);
    }
}
