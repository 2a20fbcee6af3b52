//! From the file's types to the specification: defaults, units, absolute places, the model.

use std::path::Path as FilePath;

use crate::catalogue::ModelCatalogue;
use crate::error::Problem;
use crate::file::{self, File, OneOrMany};
use crate::model_config::{ModelConfig, PreprocessCfg};
use crate::number::Count;
use crate::source::Path;
use crate::urls::Budget;
use crate::{spec, words};

/// A mistake that only shows when a value is used, with the field it is in.
pub(crate) type Finding = (Path, Problem);

/// Returns the job that `file` describes and the mistakes met on the way.
///
/// Where a required field is missing (and so was reported by [`crate::check`]) or wrong, a
/// placeholder stands in: the job may only be used if there was no mistake at all.
pub(crate) fn assemble(
    file: File,
    base_dir: &FilePath,
    models: &ModelCatalogue,
) -> (spec::TrainJob, Vec<Finding>) {
    let mut builder = Builder { base_dir, models, budget: Budget::default(), findings: Vec::new() };
    let job = builder.job(file);
    (job, builder.findings)
}

struct Builder<'a> {
    base_dir: &'a FilePath,
    models: &'a ModelCatalogue,
    /// What lists of shards may still expand to.
    budget: Budget,
    findings: Vec<Finding>,
}

impl Builder<'_> {
    fn job(&mut self, file: File) -> spec::TrainJob {
        let metadata = file.metadata.unwrap_or_default();
        let spec = file.spec.unwrap_or_default();
        let batch = batch(&spec.batch.unwrap_or_default());
        spec::TrainJob {
            name: metadata.name.unwrap_or_default(),
            labels: metadata.labels.unwrap_or_default(),
            resources: resources(&spec.resources.unwrap_or_default()),
            model: self.model(spec.model.unwrap_or_default()),
            data: self.data(spec.data.unwrap_or_default()),
            loss: loss(&spec.loss.unwrap_or_default()),
            optimizer: optimizer(&spec.optimizer.unwrap_or_default()),
            schedule: self.schedule(&spec.schedule.unwrap_or_default(), batch.global),
            batch,
            checkpoint: self.checkpoint(spec.checkpoint.unwrap_or_default()),
            eval: self.eval(spec.eval.unwrap_or_default()),
            report_to: spec.report_to.unwrap_or_default(),
            restart: spec::Restart {
                max_without_progress: spec
                    .restart
                    .and_then(|restart| restart.max_without_progress)
                    .unwrap_or(3),
            },
        }
    }

    fn model(&mut self, model: file::Model) -> spec::Model {
        let name = model.name.unwrap_or_default();
        let config = self.models.get(&name).cloned().unwrap_or_else(|| {
            self.unknown_model(&name);
            ModelConfig { embed_dim: 1, ..ModelConfig::default() }
        });
        if let Some(share) = model.force_patch_dropout.filter(|share| (0.0..1.0).contains(share)) {
            self.check_patch_dropout(&config, share);
        }
        let of_model = self.models.preprocess(&name).unwrap_or_default();
        let preprocess = PreprocessCfg {
            mean: model.image_mean.unwrap_or(of_model.mean),
            std: model.image_std.unwrap_or(of_model.std),
            interpolation: model.image_interpolation.unwrap_or(of_model.interpolation),
            resize_mode: model.image_resize_mode.unwrap_or(of_model.resize_mode),
            ..of_model
        };
        spec::Model {
            name,
            config,
            preprocess: Some(preprocess),
            tokenizer: self.place("spec.model.tokenizer", model.tokenizer, crate::urls::tokenizer),
            precision: model.precision.unwrap_or(spec::Precision::Fp32),
            force_patch_dropout: model.force_patch_dropout,
            pretrained: self.weights("pretrained", model.pretrained),
            pretrained_image: self.weights("pretrained_image", model.pretrained_image),
            pretrained_text: self.weights("pretrained_text", model.pretrained_text),
        }
    }

    /// Refuses a patch dropout that the model's image tower does not have.
    fn check_patch_dropout(&mut self, config: &ModelConfig, share: f64) {
        let mut config = config.clone();
        config.vision_cfg.patch_dropout = share;
        let Err(reason) = config.check() else { return };
        let expected = reason.split_once("expected ").map_or(reason.as_str(), |(_, end)| end);
        let field = Path::of("spec.model.force_patch_dropout");
        let problem = Problem::Value {
            field: field.to_string(),
            value: share.to_string(),
            expected: expected.to_owned(),
            nearest: Vec::new(),
        };
        self.findings.push((field, problem));
    }

    /// Returns where weights come from, if that is given and can be a place.
    fn weights(&mut self, key: &str, given: Option<String>) -> Option<String> {
        self.place(&format!("spec.model.{key}"), given, crate::urls::weights)
    }

    /// Returns what `read` makes of a place, if one is given and can be one.
    fn place(
        &mut self,
        field: &str,
        given: Option<String>,
        read: impl Fn(&str, &std::path::Path) -> Result<String, String>,
    ) -> Option<String> {
        let given = given?;
        match read(&given, self.base_dir) {
            Ok(url) => Some(url),
            Err(expected) => {
                self.refuse(Path::of(field), &given, expected);
                None
            }
        }
    }

    fn unknown_model(&mut self, name: &str) {
        let known = self.models.names().count();
        let problem = Problem::Value {
            field: "spec.model.name".to_owned(),
            value: words::quoted(name),
            expected: format!(
                "one of the {known} models that `ringmaster models` lists, or one of the folder that \
                 {} names",
                crate::catalogue::FOLDER_VARIABLE
            ),
            nearest: self.models.nearest(name).into_iter().map(str::to_owned).collect(),
        };
        self.findings.push((Path::of("spec.model.name"), problem));
    }

    fn data(&mut self, data: file::Data) -> spec::Data {
        spec::Data {
            train: self.shards(&Path::of("spec.data.train"), data.train),
            seed: data.seed.unwrap_or(0),
            image_key: self.image_key(data.image_key),
            text_key: data.text_key.unwrap_or_else(|| "txt".to_owned()),
            json_text_key: data.json_text_key,
            lanes: data.lanes.unwrap_or(64),
            block_samples: data.block_samples,
            shuffle_window: data.shuffle_window.unwrap_or(1024),
            readers: data.readers.unwrap_or(1),
            max_corrupt: data.max_corrupt.unwrap_or(0.01),
            aug_cfg: aug_cfg(data.aug_cfg.unwrap_or_default()),
        }
    }

    /// Expands what a field of shards names.
    fn shards(&mut self, field: &Path, given: Option<OneOrMany>) -> Vec<String> {
        let (texts, one) = match given {
            Some(OneOrMany::One(text)) => (vec![text], true),
            Some(OneOrMany::Many(texts)) => (texts, false),
            None => return Vec::new(),
        };
        let mut shards = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            let place = if one { field.clone() } else { field.index(index) };
            match crate::urls::expand(text, self.base_dir, &mut self.budget) {
                Ok(more) => shards.extend(more),
                Err(expected) => self.refuse(place, text, expected),
            }
        }
        shards
    }

    fn image_key(&mut self, given: Option<OneOrMany>) -> Vec<String> {
        let texts = match given {
            Some(OneOrMany::One(text)) => vec![text],
            Some(OneOrMany::Many(texts)) => texts,
            None => vec!["png;jpg;jpeg;webp".to_owned()],
        };
        let keys: Vec<String> = texts
            .iter()
            .flat_map(|text| text.split(';'))
            .map(|key| key.trim().trim_start_matches('.').to_owned())
            .filter(|key| !key.is_empty())
            .collect();
        if keys.is_empty() {
            let expected = "member extensions, as in png;jpg".to_owned();
            self.refuse(Path::of("spec.data.image_key"), &texts.join(";"), expected);
        }
        keys
    }

    /// Steps come first; samples are rounded down to whole global batches, as big_vision does.
    fn schedule(&mut self, schedule: &file::Schedule, global: u32) -> spec::Schedule {
        let total = self.steps(schedule.steps, schedule.samples, "steps", "samples", global);
        if schedule.steps.is_none() && schedule.samples.is_none() {
            let problem = Problem::Missing {
                key: "samples".to_owned(),
                within: "spec.schedule".to_owned(),
                present: String::new(),
                expected: "the length of the run, as samples (20M) or as steps".to_owned(),
            };
            self.findings.push((Path::of("spec.schedule.samples"), problem));
        }
        let (steps, samples) = (schedule.warmup_steps, schedule.warmup_samples);
        spec::Schedule {
            kind: schedule.kind.unwrap_or(spec::ScheduleKind::Cosine),
            warmup_steps: self.steps(steps, samples, "warmup_steps", "warmup_samples", global),
            total_steps: total,
        }
    }

    fn steps(
        &mut self,
        steps: Option<Count>,
        samples: Option<Count>,
        steps_key: &str,
        samples_key: &str,
        global: u32,
    ) -> u64 {
        if let (Some(_), Some(samples)) = (steps, samples) {
            let field = format!("spec.schedule.{samples_key}");
            let problem = Problem::Conflict {
                field: field.clone(),
                value: samples.0.to_string(),
                reason: format!("{steps_key} says the same in steps; keep one of the two"),
            };
            self.findings.push((Path::of(&field), problem));
        }
        let whole_batches = samples.map(|count| count.0 / u64::from(global));
        steps.map(|count| count.0).or(whole_batches).unwrap_or(0)
    }

    fn checkpoint(&mut self, checkpoint: file::Checkpoint) -> spec::Checkpoint {
        spec::Checkpoint {
            uri: self
                .place("spec.checkpoint.uri", checkpoint.uri, crate::urls::folder_url)
                .unwrap_or_default(),
            every_steps: checkpoint.every_steps.map_or(1000, |count| count.0),
            keep_last: checkpoint.keep_last.unwrap_or(3),
            keep_every: checkpoint.keep_every.map(|count| count.0),
            when_busy: checkpoint.when_busy.unwrap_or_default(),
        }
    }

    fn eval(&mut self, eval: file::Eval) -> spec::Eval {
        let mut sets: Vec<spec::EvalSet> = Vec::new();
        let list = Path::of("spec.eval.zero_shot");
        for (index, set) in eval.zero_shot.unwrap_or_default().into_iter().enumerate() {
            let place = list.index(index);
            let name = set.name.unwrap_or_default();
            if !name.is_empty() && sets.iter().any(|other| other.name == name) {
                let reason = "another set has this name, and metrics are kept by name; expected \
                              a name of its own";
                let field = place.key("name");
                let problem = Problem::Conflict {
                    field: field.to_string(),
                    value: words::quoted(&name),
                    reason: reason.to_owned(),
                };
                self.findings.push((field, problem));
            }
            sets.push(spec::EvalSet { name, data: self.shards(&place.key("data"), set.data) });
        }
        spec::Eval { every_steps: eval.every_steps.map(|count| count.0), zero_shot: sets }
    }

    fn refuse(&mut self, field: Path, text: &str, expected: String) {
        let problem = Problem::Value {
            field: field.to_string(),
            value: words::quoted(text),
            expected,
            nearest: Vec::new(),
        };
        self.findings.push((field, problem));
    }
}

fn resources(resources: &file::Resources) -> spec::Resources {
    let ranks = resources.ranks.unwrap_or(1);
    spec::Resources {
        ranks,
        min_ranks: resources.min_ranks.unwrap_or(ranks),
        accelerator: resources.accelerator.unwrap_or(spec::Accelerator::Cpu),
        priority: resources.priority.unwrap_or(0),
        threads_per_rank: resources.threads_per_rank,
    }
}

fn aug_cfg(given: file::AugCfg) -> spec::AugCfg {
    spec::AugCfg {
        scale: given.scale.map_or([0.9, 1.0], |range| range.map(|share| share.0)),
        ratio: given.ratio.map_or([0.75, 4.0 / 3.0], |range| range.map(|ratio| ratio.0)),
        color_jitter: given.color_jitter.unwrap_or([0.0; 4]),
        color_jitter_prob: given.color_jitter_prob.unwrap_or(0.0),
        gray_scale_prob: given.gray_scale_prob.unwrap_or(0.0),
        hflip_prob: given.hflip_prob.unwrap_or(0.0),
        affine: given.affine.map(|affine| spec::Affine {
            degrees: affine.degrees.unwrap_or(0.0),
            zoom: affine.zoom.map_or([1.0, 1.0], |range| range.map(|factor| factor.0)),
            translate: affine.translate.unwrap_or(0.0),
        }),
        re_prob: given.re_prob.unwrap_or(0.0),
    }
}

fn loss(loss: &file::Loss) -> spec::Loss {
    spec::Loss {
        kind: loss.kind.unwrap_or(spec::LossKind::Siglip),
        init_logit_scale: loss.init_logit_scale,
        init_logit_bias: loss.init_logit_bias,
        clamp_logit_scale: loss.clamp_logit_scale.unwrap_or(true),
        positives: loss.positives.unwrap_or(spec::Positives::Pairs),
        exchange: loss.exchange,
        ring_group: match loss.ring.as_ref().and_then(|ring| ring.group) {
            Some(file::RingGroup::Ranks(ranks)) => Some(ranks),
            Some(file::RingGroup::Auto(_)) | None => None,
        },
        sub_chunk: loss.sub_chunk,
        tile_rows: loss.tile_rows,
        logits_budget: loss.logits_budget.map_or(256 << 20, |bytes| bytes.0),
    }
}

fn optimizer(optimizer: &file::Optimizer) -> spec::Optimizer {
    spec::Optimizer {
        lr: optimizer.lr.unwrap_or(1.0e-3),
        beta1: optimizer.beta1.unwrap_or(0.9),
        beta2: optimizer.beta2.unwrap_or(0.95),
        eps: optimizer.eps.unwrap_or(1.0e-6),
        weight_decay: optimizer.weight_decay.unwrap_or(0.1),
        grad_clip_norm: optimizer.grad_clip_norm,
    }
}

fn batch(batch: &file::Batch) -> spec::Batch {
    spec::Batch { global: batch.global.unwrap_or(1), micro_per_rank: batch.micro_per_rank }
}
