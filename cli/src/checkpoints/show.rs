//! `ringmaster checkpoints ls` and `describe`.

use futures::StreamExt as _;
use ringmaster_checkpoint::State;
use ringmaster_checkpoint::browse::{Checkpoint, JobFolder, Status, Target, TensorInfo};
use ringmaster_manifest::spec::{LossKind, TrainJob};
use serde_json::{Value, json};

use super::{bytes, one, open, shown};
use crate::error::Error;
use crate::listing::plain_table;
use crate::text::{ago, now_ms, timestamp};
use crate::{args, output};
use ringmaster_words::thousands;

/// Checkpoints whose state is read at once.
const READS_AT_ONCE: usize = 16;

/// Lists checkpoints, newest first, or the jobs that have some.
pub(super) async fn ls(args: &args::LsCheckpoints) -> Result<(), Error> {
    let target = open(&args.url).await?;
    let mut jobs = Vec::new();
    for job in target.jobs() {
        let checkpoints = match &target {
            Target::One(_, checkpoint) => vec![Checkpoint::clone(checkpoint)],
            _ => job.checkpoints().await?,
        };
        let rows = futures::stream::iter(checkpoints.into_iter().map(Row::read));
        let rows: Vec<Row> = rows.buffered(READS_AT_ONCE).collect().await;
        jobs.push((job, job.latest().await?, rows));
    }
    if args.json {
        let jobs = jobs.iter().map(|(job, latest, rows)| {
            let rows: Vec<Value> = rows.iter().map(Row::json).collect();
            json!({"job": job.name(), "url": job.url(), "latest": latest, "checkpoints": rows})
        });
        return output::print_json(&jobs.collect());
    }
    match &target {
        Target::Jobs(_) => output::print(&table_of_jobs(&jobs)),
        Target::Job(_) | Target::One(..) => {
            let (job, latest, rows) = &jobs[0];
            output::print(&format!("{}\n{}", shown(job.url()), table(latest.as_deref(), rows)))
        }
    }
}

/// A checkpoint with what its state says.
struct Row {
    checkpoint: Checkpoint,
    /// None where it cannot be read.
    state: Option<State>,
}

impl Row {
    async fn read(checkpoint: Checkpoint) -> Self {
        // What cannot be read is shown as a dash here, and explained by `verify`.
        let state = checkpoint.state().await.ok().flatten();
        Self { checkpoint, state }
    }

    /// When it was saved, by what it says itself: the files of a copy are younger.
    fn written_at_ms(&self) -> Option<i64> {
        let saved = self.state.as_ref().and_then(|state| state.saved_at_ms);
        saved.or(self.checkpoint.written_at_ms)
    }

    fn json(&self) -> Value {
        let Self { checkpoint, state } = self;
        let reason = match &checkpoint.status {
            Status::Damaged { reason } => Some(reason),
            _ => None,
        };
        json!({
            "name": checkpoint.name(), "url": checkpoint.url(),
            "step": checkpoint.step(), "generation": checkpoint.generation().to_string(),
            "state": checkpoint.status.word(), "reason": reason,
            "samples": state.as_ref().map(|state| state.samples),
            "world_size": checkpoint.world_size(), "size": checkpoint.size(),
            "written_at_ms": self.written_at_ms(),
        })
    }
}

fn table(latest: Option<&str>, rows: &[Row]) -> String {
    let mut table =
        plain_table(["CHECKPOINT", "STEP", "SAMPLES", "RANKS", "SIZE", "WRITTEN", "STATE"]);
    for row in rows {
        let Row { checkpoint, state } = row;
        let dash = || "–".to_owned();
        let named = latest == Some(checkpoint.name().as_str());
        table.add_row([
            checkpoint.name(),
            thousands(checkpoint.step()),
            state.as_ref().map_or_else(dash, |state| thousands(state.samples)),
            checkpoint.world_size().map_or_else(dash, |ranks| ranks.to_string()),
            bytes(checkpoint.size()),
            ago(row.written_at_ms().unwrap_or(0), now_ms()),
            format!("{}{}", checkpoint.status.word(), if named { ", latest" } else { "" }),
        ]);
    }
    table.to_string()
}

fn table_of_jobs(jobs: &[(&JobFolder, Option<String>, Vec<Row>)]) -> String {
    let mut table = plain_table(["JOB", "COMPLETE", "NEWEST", "SAMPLES", "SIZE", "WRITTEN"]);
    for (job, _, rows) in jobs {
        let complete: Vec<&Row> =
            rows.iter().filter(|row| row.checkpoint.status == Status::Complete).collect();
        let newest = complete.first();
        let dash = || "–".to_owned();
        let samples = newest.and_then(|row| row.state.as_ref()).map(|state| state.samples);
        let written = newest.and_then(|row| row.written_at_ms());
        table.add_row([
            shown(job.url()),
            format!("{} of {}", complete.len(), rows.len()),
            newest.map_or_else(dash, |row| format!("step {}", thousands(row.checkpoint.step()))),
            samples.map_or_else(dash, thousands),
            bytes(rows.iter().map(|row| row.checkpoint.size()).sum()),
            ago(written.unwrap_or(0), now_ms()),
        ]);
    }
    table.to_string()
}

/// Shows everything that can be known of a checkpoint without reading its values.
pub(super) async fn describe(args: &args::DescribeCheckpoint) -> Result<(), Error> {
    let (job, checkpoint) = one(&args.url).await?;
    let latest = job.latest().await?;
    let state = checkpoint.state().await;
    let tensors = if args.tensors { checkpoint.tensors().await? } else { Default::default() };
    if args.json {
        let state = state?;
        let row = Row { checkpoint: checkpoint.clone(), state: state.clone() };
        let mut value = row.json();
        value["digest"] = json!(checkpoint.digest.map(|digest| format!("{digest:016x}")));
        value["objects"] = json!(checkpoint.objects);
        value["state_json"] = json!(state);
        if args.tensors {
            let files = tensors.iter().map(|(file, tensors)| {
                let all = tensors
                    .iter()
                    .map(|t| json!({"name": t.name, "dtype": t.dtype, "shape": t.shape}));
                (file.clone(), all.collect::<Value>())
            });
            value["tensors"] = Value::Object(files.collect());
        }
        return output::print_json(&value);
    }
    let saved = state.as_ref().ok().and_then(|state| state.as_ref()?.saved_at_ms);
    let written = saved.or(checkpoint.written_at_ms).unwrap_or(0);
    let mut lines = heading(&checkpoint, latest.as_deref(), written);
    match state {
        Ok(Some(state)) => lines.extend(contents(&state, &checkpoint)),
        Ok(None) => lines.push(field("State", "there is no state.json".to_owned())),
        Err(error) => {
            lines.push(field("Contents", "cannot be read; the reason is below".to_owned()));
            output::error_chain(&error);
        }
    }
    lines.push(format!("\n{}", table_of_objects(&checkpoint)));
    for (file, tensors) in &tensors {
        lines.push(format!("\n{file}: {} tensors\n{}", tensors.len(), table_of_tensors(tensors)));
    }
    output::print(&lines.join("\n"))
}

fn field(name: &str, value: String) -> String {
    format!("{name:<12} {value}")
}

fn heading(checkpoint: &Checkpoint, latest: Option<&str>, written: i64) -> Vec<String> {
    let named = latest == Some(checkpoint.name().as_str());
    let mut state = checkpoint.status.word().to_owned();
    if let Status::Damaged { reason } = &checkpoint.status {
        state.push_str(&format!(": {reason}"));
    }
    if named {
        state.push_str(", named by latest.json");
    }
    let digest =
        checkpoint.digest.map_or_else(|| "–".to_owned(), |digest| format!("{digest:016x}"));
    vec![
        field("Checkpoint", checkpoint.url()),
        field("State", state),
        field("Written", format!("{} UTC ({})", timestamp(written), ago(written, now_ms()))),
        field("Generation", checkpoint.generation().to_string()),
        field("Size", bytes(checkpoint.size())),
        field("Digest", digest),
    ]
}

fn contents(state: &State, checkpoint: &Checkpoint) -> Vec<String> {
    let job: &TrainJob = &state.manifest;
    let step = thousands(state.step);
    let mut samples = format!("{} samples", thousands(state.samples));
    if state.resumed_samples > 0 {
        let resumed = thousands(state.resumed_samples);
        samples.push_str(&format!(", {resumed} of them by the run it went on from"));
    }
    let ranks = checkpoint.world_size().unwrap_or(state.world_size);
    let versions: Vec<String> =
        state.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    vec![
        field("Job", job.name.clone()),
        field("Model", format!("{} · {}", job.model.name, word(&job.model.precision))),
        field("Loss", loss(job)),
        field("Step", format!("{step} of {}, {samples}", thousands(job.schedule.total_steps))),
        field("Data", data(state)),
        field("Optimizer", optimizer(job)),
        field("Written by", format!("{ranks} rank(s); any number of ranks can load it")),
        field("Versions", versions.join(", ")),
    ]
}

fn loss(job: &TrainJob) -> String {
    match job.loss.kind {
        LossKind::Siglip => "siglip".to_owned(),
        LossKind::Infonce => "infonce".to_owned(),
    }
}

fn data(state: &State) -> String {
    let job = &state.manifest;
    let mut text = format!(
        "next is global batch {} of {} samples · seed {} · {} shards · fingerprint {}",
        thousands(state.step),
        thousands(u64::from(job.batch.global)),
        state.seed,
        thousands(job.data.shards().count() as u64),
        state.data.fingerprint
    );
    let ledger = &state.data.ledger;
    if !ledger.is_empty() {
        let (corrupt, replaced) = (thousands(ledger.len() as u64), thousands(ledger.replaced()));
        text.push_str(&format!(" · {corrupt} samples corrupt, {replaced} rows replaced"));
    }
    text
}

fn optimizer(job: &TrainJob) -> String {
    let given = &job.optimizer;
    let clip = given.grad_clip_norm.map_or_else(String::new, |norm| format!(" · clip {norm}"));
    format!(
        "AdamW · lr {} · betas {}, {} · eps {} · weight decay {}{clip} · {} schedule",
        given.lr,
        given.beta1,
        given.beta2,
        given.eps,
        given.weight_decay,
        word(&job.schedule.kind)
    )
}

/// A word as the manifest spells it.
fn word(value: &impl serde::Serialize) -> String {
    let text = serde_json::to_value(value).ok();
    text.as_ref().and_then(Value::as_str).unwrap_or("–").to_owned()
}

fn table_of_objects(checkpoint: &Checkpoint) -> String {
    let mut table = plain_table(["OBJECT", "SIZE"]);
    for (name, size) in &checkpoint.objects {
        table.add_row([name.clone(), bytes(*size)]);
    }
    table.to_string()
}

fn table_of_tensors(tensors: &[TensorInfo]) -> String {
    let mut table = plain_table(["TENSOR", "TYPE", "SHAPE", "VALUES"]);
    for tensor in tensors {
        let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
        let shape = format!("[{}]", shape.join(", "));
        table.add_row([
            tensor.name.clone(),
            tensor.dtype.clone(),
            shape,
            thousands(tensor.numel()),
        ]);
    }
    table.to_string()
}
