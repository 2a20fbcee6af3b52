//! What must hold of a [`TrainJob`], whoever made it.
//!
//! [`validate`] is used at both ends: [`crate::parse`] places what it finds in the user's file, and
//! [`crate::from_validated_json`] refuses what arrives over the wire.

use serde_json::Value as Json;
use serde_yaml::Value;

use crate::check::shown;
use crate::limits::MAX_COUNT;
use crate::schema::{self, alternatives, describe_all, type_names};
use crate::source::Path;
use crate::spec::{Accelerator, Exchange, LossKind, Positives, Precision, TrainJob};
use crate::words;

/// ln 100: what t' is clamped to, as in `OpenCLIP`.
pub const MAX_LOGIT_SCALE: f64 = 4.605_170_185_988_092;

/// A field whose value cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// The field to blame.
    pub(crate) field: Path,
    /// The other fields it is held against, dotted.
    pub(crate) others: &'static [&'static str],
    /// Why, and what is allowed.
    pub(crate) reason: String,
}

/// Returns everything about `job` that cannot be: values out of the bounds that the schema of a manifest sets,
/// then fields that do not go together.
pub(crate) fn validate(job: &TrainJob) -> Vec<Violation> {
    let mut found = Found::default();
    let values = serde_yaml::to_value(job).expect("a job is plain data with names for keys");
    for part in ["metadata", "spec"] {
        bounds(&Path::of(part), &values, &schema::of_file()["properties"][part], &mut found);
    }
    if let Err(reason) = job.model.config.check() {
        found.add("spec.model.config", &["spec.model.name"], reason);
    }
    secrets(job, &mut found);
    violations(job, &mut found);
    found.0
}

#[derive(Default)]
struct Found(Vec<Violation>);

impl Found {
    fn add(&mut self, field: &str, others: &'static [&'static str], reason: impl Into<String>) {
        self.add_at(Path::of(field), others, reason);
    }

    fn add_at(&mut self, field: Path, others: &'static [&'static str], reason: impl Into<String>) {
        self.0.push(Violation { field, others, reason: reason.into() });
    }
}

/// Holds values against the schema of a manifest. Keys that only a job has are passed over.
fn bounds(path: &Path, value: &Value, schema: &'static Json, found: &mut Found) {
    let alternatives = alternatives(schema);
    let kept = match value {
        // Left out, where the types let it be.
        Value::Null => true,
        Value::Mapping(entries) => {
            for (key, child) in entries {
                let key = key.as_str().unwrap_or_default();
                let keys = alternatives.iter().find_map(|one| one["properties"].get(key));
                if let Some(schema) = keys {
                    bounds(&path.key(key), child, schema, found);
                }
            }
            true
        }
        Value::Sequence(items) => {
            let Some(list) = alternatives.iter().find(|one| one["items"].is_object()) else {
                return;
            };
            // The schema says nothing of single texts, and there may be a million.
            for (index, item) in items.iter().enumerate().filter(|(_, item)| !item.is_string()) {
                bounds(&path.index(index), item, &list["items"], found);
            }
            schema::length_fits(items, list)
        }
        scalar => alternatives
            .iter()
            .any(|one| schema::takes_kind(one, scalar) && schema::scalar_fits(scalar, one)),
    };
    if !kept {
        let expected = match alternatives[..] {
            [one] if type_names(one) == ["integer"] && one["maximum"].is_u64() => {
                format!("a whole number from {} to {}", one["minimum"], one["maximum"])
            }
            _ => describe_all(&alternatives),
        };
        let reason = format!("expected {expected}, not {}", shown(value));
        found.0.push(Violation { field: path.clone(), others: &[], reason });
    }
}

/// A job is stored and shown, and its URLs with it.
fn secrets(job: &TrainJob, found: &mut Found) {
    let model = &job.model;
    let weights = [
        ("spec.model.pretrained", &model.pretrained),
        ("spec.model.pretrained_image", &model.pretrained_image),
        ("spec.model.pretrained_text", &model.pretrained_text),
        ("spec.model.tokenizer", &model.tokenizer),
    ];
    let sets = job.eval.zero_shot.iter().flat_map(|set| &set.data);
    let mut places = weights
        .into_iter()
        .filter_map(|(field, place)| Some((field.to_owned(), place.as_ref()?)))
        .chain(job.data.shards())
        .chain(sets.map(|url| ("spec.eval.zero_shot".to_owned(), url)))
        .chain([("spec.checkpoint.uri".to_owned(), &job.checkpoint.uri)]);
    if let Some((field, _)) = places.find(|(_, url)| words::has_secrets(url)) {
        let reason = "expected URLs without names, passwords and what follows a ?: a job is stored \
                      and shown";
        found.add(&field, &[], reason);
    }
}

/// Adds every field that does not go with others, in the order of the specification.
fn violations(job: &TrainJob, found: &mut Found) {
    resources(job, found);
    precision(job, found);
    batch_norm(job, found);
    preprocess(job, found);
    batch(job, found);
    mixture(job, found);
    augmentation(job, found);
    loss(job, found);
    schedule(job, found);
    checkpoint(job, found);
    eval(job, found);
}

fn resources(job: &TrainJob, found: &mut Found) {
    let ranks = job.resources.ranks;
    if job.resources.min_ranks > ranks {
        let reason =
            format!("the job wants fewer ranks; expected at most resources.ranks, {ranks}");
        found.add("spec.resources.min_ranks", &["spec.resources.ranks"], reason);
    }
}

fn precision(job: &TrainJob, found: &mut Found) {
    if job.model.precision == Precision::Fp64 && job.resources.accelerator == Accelerator::Cuda {
        let reason = "f64 is computed on the CPU only; use fp32 or amp_bf16, or set \
                      resources.accelerator to cpu";
        found.add("spec.model.precision", &["spec.resources.accelerator"], reason);
    }
}

fn preprocess(job: &TrainJob, found: &mut Found) {
    if job.model.preprocess.std.iter().any(|value| !(value.is_finite() && *value > 0.0)) {
        let reason = "colours are divided by it; expected three numbers above 0";
        found.add("spec.model.image_std", &[], reason);
    }
}

/// Batch norms take their statistics over the batch that one forward pass sees. The global batch's
/// are what a run on one device has; parts of it would train another model.
fn batch_norm(job: &TrainJob, found: &mut Found) {
    if !job.model.config.has_batch_norm() {
        return;
    }
    let mut refuse = |field, remedy| {
        let reason = format!(
            "{} has batch norms, whose statistics are taken over the whole global batch; {remedy} a \
             model without them (ViT, ConvNeXt)",
            job.model.name
        );
        found.add(field, &["spec.model.name"], reason);
    };
    if job.resources.ranks > 1 {
        refuse("spec.resources.ranks", "expected 1 rank, or");
    }
    if job.batch.micro_per_rank.is_some_and(|micro| micro < job.batch.global) {
        refuse("spec.batch.micro_per_rank", "leave micro_per_rank out, or use");
    }
}

fn batch(job: &TrainJob, found: &mut Found) {
    let (global, ranks) = (job.batch.global, job.resources.ranks);
    if global < ranks {
        let reason = format!(
            "every rank takes at least one sample; expected at least resources.ranks, {ranks}"
        );
        found.add("spec.batch.global", &["spec.resources.ranks"], reason);
    }
}

/// Weights are relative to one another, and so are factors: one of each kind says nothing.
fn mixture(job: &TrainJob, found: &mut Found) {
    let sources = &job.data.sources;
    if sources.is_empty() {
        found.add("spec.data.sources", &[], "there is nothing to train on; expected a source");
    }
    let weighted = sources.iter().filter(|source| source.weight.is_some()).count();
    for (index, source) in sources.iter().enumerate() {
        let source_path = Path::of("spec.data.sources").index(index);
        if source.weight.is_some() && source.upsample.is_some() {
            let reason = "weight says which share of a batch it gets; keep one of the two";
            found.add_at(source_path.key("upsample"), &[], reason);
        } else if source.weight.is_none() && weighted > 0 {
            let reason = format!(
                "{weighted} of {} sources have one; expected one for this, too, or for none",
                sources.len()
            );
            found.add_at(source_path.key("weight"), &[], reason);
        }
    }
}

fn augmentation(job: &TrainJob, found: &mut Found) {
    let augmentation = &job.data.aug_cfg;
    let zoom = augmentation.affine.as_ref().map_or([1.0, 1.0], |affine| affine.zoom);
    for (field, [low, high]) in [
        ("spec.data.aug_cfg.scale", augmentation.scale),
        ("spec.data.aug_cfg.ratio", augmentation.ratio),
        ("spec.data.aug_cfg.affine.zoom", zoom),
    ] {
        if low > high {
            let reason = format!("a range starts at its smaller end; expected [{high}, {low}]");
            found.add(field, &[], reason);
        }
    }
}

fn loss(job: &TrainJob, found: &mut Found) {
    let gathers = job.loss.exchange() == Exchange::AllGather;
    if job.loss.kind == LossKind::Infonce && job.loss.ring_group.is_some() && gathers {
        let reason = "infonce gathers its text, there is no ring; remove it, or set loss.exchange \
                      to ring";
        found.add("spec.loss.ring.group", &["spec.loss.exchange"], reason);
    }
    if job.loss.kind == LossKind::Infonce && job.loss.init_logit_bias.is_some() {
        let reason = "infonce has no bias; remove it, or set loss.kind to siglip";
        found.add("spec.loss.init_logit_bias", &["spec.loss.kind"], reason);
    }
    if job.loss.kind == LossKind::Infonce && job.loss.positives == Positives::Captions {
        let reason = "infonce has one positive per row; use pairs, or set loss.kind to siglip";
        found.add("spec.loss.positives", &["spec.loss.kind"], reason);
    }
    if job.loss.kind == LossKind::Siglip && gathers {
        let reason = "siglip's text travels round the ring; remove it, or use ring";
        found.add("spec.loss.exchange", &["spec.loss.kind"], reason);
    }
    let ranks = job.resources.ranks;
    if let Some(group) = job.loss.ring_group.filter(|group| !ranks.is_multiple_of(*group)) {
        let reason =
            format!("groups of {group} do not divide {ranks} ranks; use auto or a divisor");
        found.add("spec.loss.ring.group", &["spec.resources.ranks"], reason);
    }
    let outside = |scale: f64| !(0.0..=MAX_LOGIT_SCALE).contains(&scale);
    if job.loss.clamp_logit_scale && job.loss.init_logit_scale.is_some_and(outside) {
        let reason = "this is the logarithm of the scale, and it is clamped to [0, ln 100] after \
                      each step; expected 0 to 4.605, or set loss.clamp_logit_scale to false";
        found.add("spec.loss.init_logit_scale", &["spec.loss.clamp_logit_scale"], reason);
    }
}

fn schedule(job: &TrainJob, found: &mut Found) {
    let global = u64::from(job.batch.global);
    let (warmup, total) = (job.schedule.warmup_steps, job.schedule.total_steps);
    if total == 0 {
        let reason = format!("the run has no whole step; expected at least batch.global, {global}");
        found.add("spec.schedule.total_steps", &["spec.batch.global"], reason);
    } else if job.total_samples() > MAX_COUNT {
        let most = MAX_COUNT / global.max(1);
        let reason = format!(
            "a run has at most 2^53 samples; with batch.global at {global}, expected at most {most} steps"
        );
        found.add("spec.schedule.total_steps", &["spec.batch.global"], reason);
    } else if warmup > total {
        let of = |steps: u64| format!("{steps} steps ({} samples)", job.samples(steps));
        let (warmup, total) = (of(warmup), of(total));
        let reason =
            format!("a warm-up of {warmup} is longer than the run; expected at most {total}");
        let others = &["spec.schedule.total_steps", "spec.batch.global"];
        found.add("spec.schedule.warmup_steps", others, reason);
    }
}

fn checkpoint(job: &TrainJob, found: &mut Found) {
    let (every, keep) = (job.checkpoint.every_steps, job.checkpoint.keep_every);
    let unreachable = |keep: &u64| *keep == 0 || !keep.is_multiple_of(every);
    if let Some(keep) = keep.filter(unreachable) {
        let near = keep.max(1).checked_next_multiple_of(every.max(1)).unwrap_or(every);
        let reason = format!(
            "checkpoints are written every {every} steps; expected a multiple of \
             checkpoint.every_steps, as {near}"
        );
        found.add("spec.checkpoint.keep_every", &["spec.checkpoint.every_steps"], reason);
    }
}

fn eval(job: &TrainJob, found: &mut Found) {
    if job.eval.every_steps.is_some() && job.eval.zero_shot.is_empty() {
        let reason = "there is nothing to evaluate; list a set under eval.zero_shot";
        found.add("spec.eval.every_steps", &["spec.eval.zero_shot"], reason);
    }
}
