//! Where the time between a fault and the next step went.

use serde_json::Value;

use crate::steps::Step;

/// The parts of a recovery, in order.
pub const PARTS: [&str; 5] = ["detect", "abort", "rejoin", "state", "first_step"];

/// A recovery, in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Timeline {
    /// From the fault to the first step completed in a newer generation.
    pub total: f64,
    /// Until the coordinator knew, until the last survivor had left its ring, until the new ring was
    /// formed, until everybody had the state, until the step was complete. They add up to the
    /// total: what was over before the part ahead of it counts as nothing.
    pub parts: [f64; 5],
}

/// Works out the parts from a job's history and its ranks' log lines, both as the client prints them
/// as JSON.
pub fn timeline(struck: f64, first: &Step, events: &Value, logs: &Value) -> Timeline {
    let within = |at: f64| at >= struck - 0.001 && at <= first.at + 0.001;
    let event = |kinds: &[&str], newest: bool| {
        let times = items(events)
            .filter(|event| kinds.contains(&event["kind"].as_str().unwrap_or_default()))
            .filter_map(|event| Some(event["at_ms"].as_f64()? / 1000.0))
            .filter(|at| within(*at));
        if newest { times.reduce(f64::max) } else { times.reduce(f64::min) }
    };
    let logged = |words: &str| {
        items(logs)
            .filter(|line| line["text"].as_str().is_some_and(|text| text.contains(words)))
            .filter_map(|line| Some(line["at_ms"].as_f64()? / 1000.0))
            .filter(|at| within(*at))
            .reduce(f64::max)
    };
    let ends = [
        event(&["rank_lost", "rank_hung"], false),
        logged("ring lost"),
        event(&["running"], true),
        logged("state received"),
        Some(first.at),
    ];
    let mut parts = [0.0; 5];
    let mut reached = struck;
    for (part, end) in parts.iter_mut().zip(ends) {
        let end = end.unwrap_or(reached).max(reached);
        *part = end - reached;
        reached = end;
    }
    Timeline { total: first.at - struck, parts }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_parts_follow_one_another_and_add_up() {
        let events = json!([
            {"kind": "rank_lost", "at_ms": 9_000},
            {"kind": "rank_lost", "at_ms": 10_200},
            {"kind": "running", "at_ms": 11_000},
        ]);
        // The ring broke before the coordinator heard of it; no state was sent.
        let logs = json!([{"text": "ring lost, waiting", "at_ms": 10_100}]);
        let first = Step { step: 8, generation: "g1.2".to_owned(), at: 11.5 };
        let timeline = timeline(10.0, &first, &events, &logs);
        assert!((timeline.total - 1.5).abs() < 1e-9);
        for (part, wanted) in timeline.parts.iter().zip([0.2, 0.0, 0.8, 0.0, 0.5]) {
            assert!((part - wanted).abs() < 1e-9, "{timeline:?}");
        }
    }
}
