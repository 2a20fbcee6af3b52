//! `ringmaster ls`, `describe` and `nodes`: tables for people, JSON for scripts.

use comfy_table::{Table, presets};
use ringmaster_proto::v1::{Job, Node};

use super::client::Client;
use super::error::Error;
use super::summary::Summary;
use super::text::{ago, now_ms, phase_word, rate, state_word, timestamp};
use super::{args, json, output};
use ringmaster_words::thousands;

/// Lists jobs, newest first.
pub(crate) async fn ls(args: &args::Ls) -> Result<(), Error> {
    let mut jobs = Client::new(&args.remote.coordinator)?.list(args.all).await?;
    jobs.sort_by_key(|job| std::cmp::Reverse(job.submitted_at_ms));
    if args.json {
        return output::print_json(&jobs.iter().map(json::job).collect());
    }
    if jobs.is_empty() {
        let more = if args.all { "" } else { " that is not ended; --all shows the others" };
        output::error_line(&format!("no job{more}"));
        return Ok(());
    }
    output::print(&job_table(&jobs, now_ms()))
}

fn job_table(jobs: &[Job], now_ms: i64) -> String {
    let mut table =
        plain_table(["JOB", "STATE", "RANKS", "STEP", "LOSS", "SAMPLES/S", "SUBMITTED"]);
    for job in jobs {
        let metrics = job.metrics.as_ref();
        table.add_row([
            job.job_id.clone(),
            state_word(job.state()).to_owned(),
            ranks(job),
            metrics.map_or_else(
                || "–".to_owned(),
                |now| format!("{}/{}", thousands(now.step), thousands(now.total_steps)),
            ),
            metrics.map_or_else(|| "–".to_owned(), |now| format!("{:.4}", now.loss)),
            metrics.map_or_else(|| "–".to_owned(), |now| rate(now.samples_per_second)),
            ago(job.submitted_at_ms, now_ms),
        ]);
    }
    table.to_string()
}

/// Shows one job.
pub(crate) async fn describe(args: &args::Describe) -> Result<(), Error> {
    let client = Client::new(&args.remote.coordinator)?;
    let job = client.get(&args.job).await?;
    if args.json {
        return output::print_json(&json::job(&job));
    }
    let events = client.events(&args.job).await?;
    let mut text = description(&job);
    if !events.is_empty() {
        text.push_str("\n\nHistory");
        for event in &events {
            let line = format!("{}  {:<12} {}", timestamp(event.at_ms), event.kind, event.message);
            text.push_str("\n  ");
            text.push_str(line.trim_end());
        }
    }
    output::print(&text)
}

fn description(job: &Job) -> String {
    let mut lines = Vec::new();
    let mut field = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("{name:<12} {value}"));
        }
    };
    field("Job", job.job_id.clone());
    field("State", state_word(job.state()).to_owned());
    field("Reason", job.reason.clone());
    field("Ranks", ranks(job));
    if job.min_ranks < job.max_ranks {
        field("Elastic", format!("{} to {} ranks", job.min_ranks, job.max_ranks));
    }
    field("Priority", job.priority.to_string());
    field("Labels", labels(job));
    field("Generation", job.generation.as_ref().map_or_else(String::new, ToString::to_string));
    field("Recoveries", job.recoveries.to_string());
    field("Submitted", timestamp(job.submitted_at_ms));
    field("Started", timestamp(job.started_at_ms));
    field("Ended", timestamp(job.ended_at_ms));
    field("Resumed from", job.resume_from.clone());
    field("Rolled back", job.rolled_back_to.clone());
    if !job.checkpoint_url.is_empty() {
        let step = thousands(job.checkpoint_step);
        field("Checkpoint", format!("step {step}, {}", job.checkpoint_url));
    }
    if !job.checkpoint_trouble.is_empty() {
        field("Not saved", format!("checkpoints fail: {}", job.checkpoint_trouble));
    }
    if let Some(now) = &job.metrics {
        let (step, total) = (thousands(now.step), thousands(now.total_steps));
        field("Step", format!("{step}/{total}, {} samples", thousands(now.samples)));
        field("Loss", format!("{:.4}", now.loss));
        field("Speed", format!("{} samples/s", rate(now.samples_per_second)));
    }
    if !job.ranks.is_empty() {
        let mut table = plain_table(["RANK", "NODE", "PID", "PHASE", "STEP"]);
        for rank in &job.ranks {
            table.add_row([
                rank.rank.to_string(),
                rank.node.clone(),
                rank.pid.to_string(),
                phase_word(rank.phase()).to_owned(),
                thousands(rank.step),
            ]);
        }
        lines.push(format!("\n{table}"));
    }
    if let Some(summary) = Summary::from_json(&job.summary_json) {
        lines.push(format!("\n{}", summary.training_line()));
        lines.extend(summary.table());
    }
    lines.join("\n")
}

/// Ranks as they are, and how many it asks for if those are more.
fn ranks(job: &Job) -> String {
    if job.world_size < job.max_ranks {
        format!("{}/{}", job.world_size, job.max_ranks)
    } else {
        job.world_size.to_string()
    }
}

fn labels(job: &Job) -> String {
    let mut labels: Vec<String> =
        job.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.sort();
    labels.join(", ")
}

/// Lists the nodes.
pub(crate) async fn nodes(args: &args::ListNodes) -> Result<(), Error> {
    let mut nodes = Client::new(&args.remote.coordinator)?.nodes().await?;
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    if args.json {
        return output::print_json(&nodes.iter().map(json::node).collect());
    }
    if nodes.is_empty() {
        output::error_line("no node; start `ringmaster agent` on each machine");
        return Ok(());
    }
    output::print(&node_table(&nodes, now_ms()))
}

fn node_table(nodes: &[Node], now_ms: i64) -> String {
    let mut table = plain_table(["NODE", "STATE", "FREE", "SLOTS", "KIND", "ADDRESS", "HEARTBEAT"]);
    let mut closed = Vec::new();
    for node in nodes {
        table.add_row([
            node.node.clone(),
            node_word(node).to_owned(),
            node.free_slots.to_string(),
            node.slots.to_string(),
            node.accelerator.clone(),
            node.address.clone(),
            ago(node.last_heartbeat_ms, now_ms),
        ]);
        if node.availability.contains(':') {
            closed.push(format!("\n{} is {}", node.node, node.availability));
        }
        for out in &node.slots_out {
            closed.push(format!(
                "\nslot {} of {} takes no rank: {}",
                out.slot, node.node, out.reason
            ));
        }
        // Less is forgotten within the hour.
        if node.faults >= 1.0 && !node.availability.contains(':') {
            let faults = node.faults;
            closed.push(format!("\n{} is charged with {faults:.1} faults of late", node.node));
        }
    }
    format!("{table}{}", closed.concat())
}

/// A node's state as one word; JSON has the reason.
fn node_word(node: &Node) -> &str {
    let word = node.availability.split(':').next().unwrap_or_default();
    match (word, node.connected) {
        ("drained" | "excluded" | "unusable", true) => word,
        (_, true) => "connected",
        (_, false) => "lost",
    }
}

/// Returns a table without lines, as `ps` and `kubectl` print.
pub(crate) fn plain_table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

#[cfg(test)]
mod tests {
    use ringmaster_proto::v1::{JobState, RankInfo, SlotOut, StepMetrics};

    use super::*;

    fn example() -> Job {
        let mut job = Job {
            job_id: "emoji-siglip-abc234".to_owned(),
            world_size: 2,
            submitted_at_ms: 1_000,
            metrics: Some(StepMetrics {
                step: 504,
                total_steps: 1200,
                loss: 3.25,
                samples_per_second: 931.0,
                ..StepMetrics::default()
            }),
            ranks: vec![RankInfo {
                rank: 1,
                node: "n1".to_owned(),
                pid: 77,
                ..RankInfo::default()
            }],
            summary_json: crate::summary::tests::EXAMPLE.to_owned(),
            ..Job::default()
        };
        job.set_state(JobState::Running);
        job
    }

    #[test]
    fn a_row_has_state_step_loss_and_speed_and_fits_80_columns() {
        let table = job_table(&[example()], 61_000);
        let row = table.lines().nth(1).unwrap_or_default();
        for part in ["emoji-siglip-abc234", "running", "504/1,200", "3.2500", "931", "60s ago"] {
            assert!(row.contains(part), "{part} in {table}");
        }
        assert!(table.lines().all(|line| line.trim_end().chars().count() <= 80), "{table}");
    }

    #[test]
    fn a_shrunk_job_and_a_closed_node_show_it() {
        let mut job = example();
        (job.min_ranks, job.max_ranks) = (1, 4);
        assert!(job_table(&[job.clone()], 0).contains(" 2/4 "), "{}", job_table(&[job.clone()], 0));
        assert!(description(&job).contains("Elastic      1 to 4 ranks"), "{}", description(&job));
        let node = Node {
            node: "n0".to_owned(),
            connected: true,
            availability: "excluded: 3 faults".to_owned(),
            ..Node::default()
        };
        let table = node_table(&[node], 0);
        assert!(table.contains("n0    excluded"), "{table}");
        assert!(table.ends_with("n0 is excluded: 3 faults"), "{table}");
    }

    #[test]
    fn slots_that_take_no_rank_faults_and_checkpoints_that_fail_are_told_with_the_reason() {
        let reason = "rank 1 of job a survives SIGKILL".to_owned();
        let node = Node {
            node: "n0".to_owned(),
            availability: "ready".to_owned(),
            slots_out: vec![SlotOut { slot: 3, reason }],
            faults: 1.94,
            ..Node::default()
        };
        let table = node_table(&[node], 0);
        assert!(
            table.contains("\nslot 3 of n0 takes no rank: rank 1 of job a survives SIGKILL"),
            "{table}"
        );
        assert!(table.ends_with("\nn0 is charged with 1.9 faults of late"), "{table}");
        let mut job = example();
        job.checkpoint_trouble = "step 40: No space left on device".to_owned();
        let text = description(&job);
        let told = "Not saved    checkpoints fail: step 40: No space left on device";
        assert!(text.contains(told), "{text}");
    }

    #[test]
    fn a_description_has_the_ranks_and_the_scores() {
        let text = description(&example());
        for part in ["State        running", "n1", "77", "15.1 %", "1 recovery"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("Reason"), "{text}");
    }
}
