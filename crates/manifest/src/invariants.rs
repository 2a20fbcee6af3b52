//! What must hold between the fields of a [`TrainJob`], whoever made it.
//!
//! [`crate::parse`] places each violation in the user's file; [`crate::from_validated_json`] uses
//! the same list against what arrives over the wire.

use crate::limits::{MAX_COUNT, MAX_GLOBAL_BATCH, MAX_LANES, MAX_RANKS, MAX_THREADS};
use crate::spec::{Accelerator, Exchange, LossKind, Positives, Precision, TrainJob};
use crate::words;

/// ln 100: what t' is clamped to, as in `OpenCLIP`.
pub const MAX_LOGIT_SCALE: f64 = 4.605_170_185_988_092;

/// A field that does not go with others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// The field to blame, dotted.
    pub(crate) field: &'static str,
    /// The other fields it is held against.
    pub(crate) others: &'static [&'static str],
    /// Why, and what is allowed.
    pub(crate) reason: String,
}

/// Returns the first number or text of a job that arrived as JSON that no manifest gives, and what is
/// allowed: what [`crate::check`] sees to in a manifest.
pub(crate) fn out_of_range(job: &TrainJob) -> Option<(&'static str, String)> {
    let counts = [
        ("spec.resources.ranks", job.resources.ranks.into(), MAX_RANKS.into()),
        ("spec.resources.min_ranks", job.resources.min_ranks.into(), MAX_RANKS.into()),
        ("spec.data.lanes", job.data.lanes.into(), MAX_LANES.into()),
        ("spec.data.readers", job.data.readers.into(), MAX_THREADS.into()),
        ("spec.batch.global", job.batch.global.into(), MAX_GLOBAL_BATCH.into()),
        ("spec.checkpoint.every_steps", job.checkpoint.every_steps, MAX_COUNT),
        ("spec.checkpoint.keep_last", job.checkpoint.keep_last.into(), u32::MAX.into()),
    ];
    for (field, value, most) in counts {
        if !(1..=most).contains(&value) {
            return Some((field, format!("expected a whole number from 1 to {most}, not {value}")));
        }
    }
    if let Err(reason) = job.model.config.check() {
        return Some(("spec.model.config", reason));
    }
    let model = &job.model;
    let weights = [&model.pretrained, &model.pretrained_image, &model.pretrained_text];
    let sets = job.eval.zero_shot.iter().flat_map(|set| &set.data);
    let places = [("spec.checkpoint.uri", &job.checkpoint.uri)]
        .into_iter()
        .chain(weights.into_iter().flatten().map(|url| ("spec.model.pretrained", url)))
        .chain(model.tokenizer.iter().map(|url| ("spec.model.tokenizer", url)))
        .chain(job.data.train.iter().map(|url| ("spec.data.train", url)))
        .chain(sets.map(|url| ("spec.eval.zero_shot", url)));
    let secret = places.into_iter().find(|(_, url)| words::has_secrets(url))?;
    let reason =
        "expected URLs without names, passwords and what follows a ?: a job is stored and shown";
    Some((secret.0, reason.to_owned()))
}

/// Returns everything about `job` that cannot be, in the order of the specification.
pub(crate) fn violations(job: &TrainJob) -> Vec<Violation> {
    let mut found = Vec::new();
    resources(job, &mut found);
    precision(job, &mut found);
    batch_norm(job, &mut found);
    preprocess(job, &mut found);
    batch(job, &mut found);
    augmentation(job, &mut found);
    loss(job, &mut found);
    schedule(job, &mut found);
    checkpoint(job, &mut found);
    eval(job, &mut found);
    found
}

fn resources(job: &TrainJob, found: &mut Vec<Violation>) {
    let gathers = job.loss.exchange() == Exchange::AllGather;
    if job.loss.ring_group.is_some() && job.loss.kind == LossKind::Infonce && gathers {
        found.push(Violation {
            field: "spec.loss.ring.group",
            others: &["spec.loss.exchange"],
            reason:
                "infonce gathers its text, there is no ring; remove it, or set loss.exchange to \
                     ring"
                    .to_owned(),
        });
    }
    let ranks = job.resources.ranks;
    if job.resources.min_ranks > ranks {
        found.push(Violation {
            field: "spec.resources.min_ranks",
            others: &["spec.resources.ranks"],
            reason: format!("the job wants fewer ranks; expected at most resources.ranks, {ranks}"),
        });
    }
    let lanes = job.data.lanes;
    if ranks > lanes {
        found.push(Violation {
            field: "spec.resources.ranks",
            others: &["spec.data.lanes"],
            reason: format!(
                "every rank owns whole lanes of the data order; expected at most data.lanes, {lanes}"
            ),
        });
    }
}

fn precision(job: &TrainJob, found: &mut Vec<Violation>) {
    if job.model.precision == Precision::Fp64 && job.resources.accelerator == Accelerator::Cuda {
        found.push(Violation {
            field: "spec.model.precision",
            others: &["spec.resources.accelerator"],
            reason: "f64 is computed on the CPU only; use fp32 or amp_bf16, or set \
                     resources.accelerator to cpu"
                .to_owned(),
        });
    }
}

fn preprocess(job: &TrainJob, found: &mut Vec<Violation>) {
    if job.model.preprocess().std.iter().any(|value| !(value.is_finite() && *value > 0.0)) {
        found.push(Violation {
            field: "spec.model.image_std",
            others: &[],
            reason: "colours are divided by it; expected three numbers above 0".to_owned(),
        });
    }
}

/// Batch norms take their statistics over the batch that one forward pass sees. The global batch's
/// are what a run on one device has; parts of it would train another model.
fn batch_norm(job: &TrainJob, found: &mut Vec<Violation>) {
    if !job.model.config.has_batch_norm() {
        return;
    }
    let name = &job.model.name;
    if job.resources.ranks > 1 {
        found.push(Violation {
            field: "spec.resources.ranks",
            others: &["spec.model.name"],
            reason: format!(
                "{name} has batch norms, whose statistics are taken over the whole global batch; \
                 expected 1 rank, or a model without them (ViT, ConvNeXt)"
            ),
        });
    }
    let (micro, global) = (job.batch.micro_per_rank, job.batch.global);
    if micro.is_some_and(|micro| micro < global) {
        found.push(Violation {
            field: "spec.batch.micro_per_rank",
            others: &["spec.model.name"],
            reason: format!(
                "{name} has batch norms, whose statistics are taken over the whole global batch; \
                 leave micro_per_rank out, or use a model without them (ViT, ConvNeXt)"
            ),
        });
    }
}

fn batch(job: &TrainJob, found: &mut Vec<Violation>) {
    let (global, lanes, ranks) = (job.batch.global, job.data.lanes, job.resources.ranks);
    if global < ranks {
        found.push(Violation {
            field: "spec.batch.global",
            others: &["spec.resources.ranks"],
            reason: format!(
                "every rank takes at least one sample; expected at least resources.ranks, {ranks}"
            ),
        });
    } else if !global.is_multiple_of(lanes) {
        let below = global / lanes * lanes;
        let above = below.saturating_add(lanes);
        let nearest = match below {
            0 => format!("{above}, or set data.lanes to a divisor of {global}"),
            below => format!("{below} or {above}, or set data.lanes to a divisor of {global}"),
        };
        found.push(Violation {
            field: "spec.batch.global",
            others: &["spec.data.lanes"],
            reason: format!(
                "a step takes equally many samples of every lane; expected a multiple of \
                 data.lanes, {lanes}: {nearest}"
            ),
        });
    }
}

fn augmentation(job: &TrainJob, found: &mut Vec<Violation>) {
    let augmentation = &job.data.aug_cfg;
    let zoom = augmentation.affine.as_ref().map_or([1.0, 1.0], |affine| affine.zoom);
    for (field, [low, high]) in [
        ("spec.data.aug_cfg.scale", augmentation.scale),
        ("spec.data.aug_cfg.ratio", augmentation.ratio),
        ("spec.data.aug_cfg.affine.zoom", zoom),
    ] {
        if low > high {
            let reason = format!("a range starts at its smaller end; expected [{high}, {low}]");
            found.push(Violation { field, others: &[], reason });
        }
    }
}

fn loss(job: &TrainJob, found: &mut Vec<Violation>) {
    if job.loss.kind == LossKind::Infonce && job.loss.init_logit_bias.is_some() {
        found.push(Violation {
            field: "spec.loss.init_logit_bias",
            others: &["spec.loss.kind"],
            reason: "infonce has no bias; remove it, or set loss.kind to siglip".to_owned(),
        });
    }
    if job.loss.kind == LossKind::Infonce && job.loss.positives == Positives::Captions {
        found.push(Violation {
            field: "spec.loss.positives",
            others: &["spec.loss.kind"],
            reason: "infonce has one positive per row; use pairs, or set loss.kind to siglip"
                .to_owned(),
        });
    }
    if job.loss.kind == LossKind::Siglip && job.loss.exchange() == Exchange::AllGather {
        found.push(Violation {
            field: "spec.loss.exchange",
            others: &["spec.loss.kind"],
            reason: "siglip's text travels round the ring; remove it, or use ring".to_owned(),
        });
    }
    let ranks = job.resources.ranks;
    if let Some(group) = job.loss.ring_group.filter(|group| !ranks.is_multiple_of(*group)) {
        found.push(Violation {
            field: "spec.loss.ring.group",
            others: &["spec.resources.ranks"],
            reason: format!("groups of {group} do not divide {ranks} ranks; use auto or a divisor"),
        });
    }
    let outside = |scale: f64| !(0.0..=MAX_LOGIT_SCALE).contains(&scale);
    if job.loss.clamp_logit_scale && job.loss.init_logit_scale.is_some_and(outside) {
        found.push(Violation {
            field: "spec.loss.init_logit_scale",
            others: &["spec.loss.clamp_logit_scale"],
            reason: "this is the logarithm of the scale, and it is clamped to [0, ln 100] after \
                     each step; expected 0 to 4.605, or set loss.clamp_logit_scale to false"
                .to_owned(),
        });
    }
}

fn schedule(job: &TrainJob, found: &mut Vec<Violation>) {
    let global = u64::from(job.batch.global);
    let (warmup, total) = (job.schedule.warmup_steps, job.schedule.total_steps);
    if total == 0 {
        found.push(Violation {
            field: "spec.schedule.total_steps",
            others: &["spec.batch.global"],
            reason: format!("the run has no whole step; expected at least batch.global, {global}"),
        });
    } else if job.total_samples() > MAX_COUNT {
        found.push(Violation {
            field: "spec.schedule.total_steps",
            others: &["spec.batch.global"],
            reason: format!(
                "a run has at most 2^53 samples; with batch.global at {global}, expected at most {} \
                 steps",
                MAX_COUNT / global.max(1)
            ),
        });
    } else if warmup > total {
        let of = |steps: u64| format!("{steps} steps ({} samples)", job.samples(steps));
        found.push(Violation {
            field: "spec.schedule.warmup_steps",
            others: &["spec.schedule.total_steps", "spec.batch.global"],
            reason: format!(
                "a warm-up of {} is longer than the run; expected at most {}",
                of(warmup),
                of(total)
            ),
        });
    }
}

fn checkpoint(job: &TrainJob, found: &mut Vec<Violation>) {
    let (every, keep) = (job.checkpoint.every_steps, job.checkpoint.keep_every);
    let unreachable = |keep: &u64| *keep == 0 || !keep.is_multiple_of(every);
    if let Some(keep) = keep.filter(unreachable) {
        let near = keep.max(1).checked_next_multiple_of(every.max(1)).unwrap_or(every);
        found.push(Violation {
            field: "spec.checkpoint.keep_every",
            others: &["spec.checkpoint.every_steps"],
            reason: format!(
                "checkpoints are written every {every} steps; expected a multiple of \
                 checkpoint.every_steps, as {near}"
            ),
        });
    }
}

fn eval(job: &TrainJob, found: &mut Vec<Violation>) {
    if job.eval.every_steps.is_some() && job.eval.zero_shot.is_empty() {
        found.push(Violation {
            field: "spec.eval.every_steps",
            others: &["spec.eval.zero_shot"],
            reason: "there is nothing to evaluate; list a set under eval.zero_shot".to_owned(),
        });
    }
}
