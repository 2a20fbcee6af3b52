//! From a document that is right by itself to the job it describes: what is written otherwise than a job
//! stores it, absolute places, the model.

use std::collections::HashSet;
use std::mem;
use std::path::Path as FilePath;

use serde::Deserialize;
use serde_yaml::Value;

use crate::catalogue::ModelCatalogue;
use crate::check;
use crate::error::Problem;
use crate::limits::MAX_COUNT;
use crate::model_config::ModelConfig;
use crate::source::Path;
use crate::spec::written::{self, ImageKeys};
use crate::spec::{self, DatasetType, Model, SYNTHETIC, Schedule, Source, TrainJob};
use crate::urls::{self, Budget};
use crate::words;

/// `data.pool_samples` where a manifest says nothing: as big_vision's shuffle buffers.
const POOL_SAMPLES: u64 = 250_000;

/// A mistake that only shows when a value is used, with the field it is in.
pub(crate) type Finding = (Path, Problem);

/// Returns the job that `document` describes and the mistakes met on the way.
///
/// The document was checked and filled by [`crate::check`]; `written` is what it was before. Where a
/// placeholder stands in it, or a mistake is met here, the job may not be used.
///
/// # Errors
/// A document that the types do not take: the schema should have refused it.
pub(crate) fn resolve(
    mut document: Value,
    written: &Value,
    base_dir: &FilePath,
    models: &ModelCatalogue,
) -> Result<(TrainJob, Vec<Finding>), serde_yaml::Error> {
    let budget = Budget::default();
    let mut resolver = Resolver { written, base_dir, models, budget, findings: Vec::new() };
    let mut spec = mem::take(&mut document["spec"]);
    for key in ["name", "labels"] {
        spec[key] = mem::take(&mut document["metadata"][key]);
    }
    resolver.sections(&mut spec)?;
    let mut job: TrainJob = serde_yaml::from_value(spec)?;
    resolver.places(&mut job);
    Ok((job, resolver.findings))
}

struct Resolver<'a> {
    /// The document as people wrote it.
    written: &'a Value,
    base_dir: &'a FilePath,
    models: &'a ModelCatalogue,
    /// What lists of shards may still expand to.
    budget: Budget,
    findings: Vec<Finding>,
}

impl Resolver<'_> {
    /// Brings into the form of a job what a manifest writes otherwise.
    fn sections(&mut self, spec: &mut Value) -> Result<(), serde_yaml::Error> {
        if spec["resources"]["min_ranks"].is_null() {
            spec["resources"]["min_ranks"] = spec["resources"]["ranks"].clone();
        }
        self.model(&mut spec["model"])?;
        self.data(&mut spec["data"])?;
        for key in ["image_key", "parquet_img_key", "parquet_caption_key"] {
            make_list(&mut spec["data"][key]);
        }
        write_out_jitter(&mut spec["data"]["aug_cfg"]);
        for set in spec["eval"]["zero_shot"].as_sequence_mut().into_iter().flatten() {
            make_list(&mut set["data"]);
        }
        let group = spec["loss"].get("ring").and_then(|ring| ring.get("group"));
        spec["loss"]["ring_group"] =
            group.filter(|group| group.is_u64()).cloned().unwrap_or_default();
        let schedule = written::Schedule::deserialize(&spec["schedule"])?;
        let global = spec["batch"]["global"].as_u64().unwrap_or(1);
        spec["schedule"] = serde_yaml::to_value(self.schedule(&schedule, global))?;
        Ok(())
    }

    /// Makes a list of sources of what is read, and a pool of a window.
    fn data(&mut self, data: &mut Value) -> Result<(), serde_yaml::Error> {
        let section = Path::of("spec.data");
        let (mut train, mut sources) =
            (mem::take(&mut data["train"]), mem::take(&mut data["sources"]));
        if !train.is_null() && !sources.is_null() {
            let reason = "data.sources says what is read; keep one of the two".to_owned();
            self.conflict(section.key("train"), reason);
        } else if train.is_null() && sources.is_null() {
            let present = section.find(self.written).and_then(Value::as_mapping);
            let problem = Problem::Missing {
                key: "train".to_owned(),
                within: section.to_string(),
                present: present.map(check::present).unwrap_or_default(),
                expected: "the training data, as shards or as a list of sources".to_owned(),
            };
            self.findings.push((section.key("train"), problem));
        }
        if sources.is_null() {
            make_list(&mut train);
            let shards = Deserialize::deserialize(train).unwrap_or_default();
            sources = serde_yaml::to_value([Source::train(shards)])?;
        }
        for source in sources.as_sequence_mut().into_iter().flatten() {
            make_list(&mut source["data"]);
        }
        data["sources"] = sources;
        if data["readers"].is_string() {
            data["readers"] = Value::Null;
        }
        let keys = written::PoolKeys::deserialize(&*data)?;
        if keys.pool_samples.is_some() && keys.shuffle_window.is_some() {
            let reason = "data.pool_samples says the same for all lanes; keep one of the two";
            self.conflict(section.key("shuffle_window"), reason.to_owned());
        }
        let lanes = data["lanes"].as_u64().unwrap_or(1);
        let pool = keys.shuffle_window.map(|window| window.saturating_mul(lanes).min(MAX_COUNT));
        data["pool_samples"] = pool.or(keys.pool_samples).unwrap_or(POOL_SAMPLES).into();
        Ok(())
    }

    /// Adds the configuration that the model's name stands for, and how images are prepared for it.
    fn model(&mut self, model: &mut Value) -> Result<(), serde_yaml::Error> {
        let name = model["name"].as_str().unwrap_or_default();
        let config = self.models.get(name).cloned().unwrap_or_else(|| {
            self.unknown_model(name);
            ModelConfig { embed_dim: 1, ..ModelConfig::default() }
        });
        let preprocess = self.models.preprocess(name).unwrap_or_default();
        let preprocess = ImageKeys::deserialize(&*model)?.over(preprocess);
        model["config"] = serde_yaml::to_value(config)?;
        model["preprocess"] = serde_yaml::to_value(preprocess)?;
        Ok(())
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

    /// Steps come first; samples are rounded down to whole global batches, as big_vision does.
    fn schedule(&mut self, schedule: &written::Schedule, global: u64) -> Schedule {
        let total_steps = self.steps(schedule.steps, schedule.samples, "", global);
        if schedule.steps.is_none() && schedule.samples.is_none() {
            let section = Path::of("spec.schedule");
            let present = section.find(self.written).and_then(Value::as_mapping);
            let problem = Problem::Missing {
                key: "samples".to_owned(),
                within: section.to_string(),
                present: present.map(check::present).unwrap_or_default(),
                expected: "the length of the run, as samples (20M) or as steps".to_owned(),
            };
            self.findings.push((section.key("samples"), problem));
        }
        let warmup_steps =
            self.steps(schedule.warmup_steps, schedule.warmup_samples, "warmup_", global);
        Schedule { kind: schedule.kind, warmup_steps, total_steps }
    }

    fn steps(
        &mut self,
        steps: Option<u64>,
        samples: Option<u64>,
        prefix: &str,
        global: u64,
    ) -> u64 {
        if steps.is_some() && samples.is_some() {
            let reason = format!("{prefix}steps says the same in steps; keep one of the two");
            self.conflict(Path::of("spec.schedule").key(&format!("{prefix}samples")), reason);
        }
        steps.or(samples.map(|samples| samples / global)).unwrap_or(0)
    }

    /// Makes every place absolute, expands lists of shards, and checks what only shows then.
    fn places(&mut self, job: &mut TrainJob) {
        let model = &mut job.model;
        self.check_patch_dropout(model);
        for (key, place) in [
            ("pretrained", &mut model.pretrained),
            ("pretrained_image", &mut model.pretrained_image),
            ("pretrained_text", &mut model.pretrained_text),
        ] {
            self.place(&format!("spec.model.{key}"), place.as_mut(), urls::weights);
        }
        self.place("spec.model.tokenizer", model.tokenizer.as_mut(), urls::tokenizer);
        self.sources(job);
        let data = &mut job.data;
        self.keys("image_key", &mut data.image_key, "member extensions, as in png;jpg", ".");
        self.keys("parquet_img_key", &mut data.parquet_img_key, "columns, as in image;url", "");
        self.keys(
            "parquet_caption_key",
            &mut data.parquet_caption_key,
            "columns, as in caption;text",
            "",
        );
        if !data.csv_separator.is_ascii() {
            let expected = "one ASCII character, as in \",\" or \"\\t\"".to_owned();
            let written = words::quoted(&data.csv_separator.to_string());
            self.refuse(Path::of("spec.data.csv_separator"), written, expected);
        }
        self.place("spec.checkpoint.uri", Some(&mut job.checkpoint.uri), urls::folder_url);
        let (list, mut names) = (Path::of("spec.eval.zero_shot"), HashSet::new());
        for (index, set) in job.eval.zero_shot.iter_mut().enumerate() {
            let place = list.index(index);
            if !names.insert(set.name.clone()) {
                let reason = "another set has this name, and metrics are kept by name; expected a \
                              name of its own";
                self.conflict(place.key("name"), reason.to_owned());
            }
            self.shards(&place.key("data"), &mut set.data);
        }
    }

    fn sources(&mut self, job: &mut TrainJob) {
        let list = Path::of("spec.data.sources");
        let mixture = list.find(self.written).is_some();
        let (mut names, stated) = (HashSet::new(), job.data.dataset_type);
        for (index, source) in job.data.sources.iter_mut().enumerate() {
            if !mixture {
                let field = Path::of("spec.data.train");
                self.shards(&field, &mut source.data);
                self.check_form(field, source, stated);
                continue;
            }
            let place = list.index(index);
            if !names.insert(source.name.clone()) {
                let reason = "another source has this name; expected a name of its own";
                self.conflict(place.key("name"), reason.to_owned());
            }
            self.shards(&place.key("data"), &mut source.data);
            self.check_form(place.key("data"), source, stated);
        }
    }

    /// Refuses a source of several forms.
    fn check_form(&mut self, field: Path, source: &Source, stated: DatasetType) {
        let form = source.form(stated);
        let other = source.data.iter().find(|name| match (stated, spec::form(name)) {
            (DatasetType::Auto, said) => said != form,
            // The name alone says how many samples it has.
            (_, said) => (said == DatasetType::Synthetic) != (form == DatasetType::Synthetic),
        });
        let Some(other) = other else { return };
        let expected = match (stated, form) {
            (DatasetType::Auto, _) => {
                "names of one form, as the first, or data.dataset_type, which says the form of all"
                    .to_owned()
            }
            (_, DatasetType::Synthetic) => format!("{SYNTHETIC}1000000, as data.dataset_type says"),
            _ => "files, as data.dataset_type says".to_owned(),
        };
        self.refuse(field, words::quoted(other), expected);
    }

    /// Refuses a patch dropout that the model's image tower does not have.
    fn check_patch_dropout(&mut self, model: &Model) {
        let Some(share) = model.force_patch_dropout else { return };
        let mut config = model.config.clone();
        config.vision_cfg.patch_dropout = share;
        let Err(reason) = config.check() else { return };
        let expected = reason.split_once("expected ").map_or(reason.as_str(), |(_, end)| end);
        let field = Path::of("spec.model.force_patch_dropout");
        self.refuse(field, share.to_string(), expected.to_owned());
    }

    /// Puts what `read` makes of a place there.
    fn place(
        &mut self,
        field: &str,
        place: Option<&mut String>,
        read: impl Fn(&str, &FilePath) -> Result<String, String>,
    ) {
        let Some(place) = place else { return };
        match read(place, self.base_dir) {
            Ok(url) => *place = url,
            Err(expected) => self.refuse(Path::of(field), words::quoted(place), expected),
        }
    }

    /// Expands what a field of shards names.
    fn shards(&mut self, field: &Path, shards: &mut Vec<String>) {
        let one = field.find(self.written).is_some_and(Value::is_string);
        for (index, text) in mem::take(shards).iter().enumerate() {
            let place = if one { field.clone() } else { field.index(index) };
            match urls::expand(text, self.base_dir, &mut self.budget) {
                Ok(more) => shards.extend(more),
                Err(expected) => self.refuse(place, words::quoted(text), expected),
            }
        }
    }

    /// Splits a list of names, each of which may begin with `prefix`.
    fn keys(&mut self, key: &str, names: &mut Vec<String>, expected: &str, prefix: &str) {
        let written = names.join(";");
        let split =
            written.split(';').map(|name| name.trim().trim_start_matches(prefix).to_owned());
        *names = split.filter(|name| !name.is_empty()).collect();
        if names.is_empty() {
            let field = Path::of("spec.data").key(key);
            self.refuse(field, words::quoted(&written), expected.to_owned());
        }
    }

    fn refuse(&mut self, field: Path, value: String, expected: String) {
        let problem = Problem::value(field.to_string(), value, expected);
        self.findings.push((field, problem));
    }

    /// Adds a field that does not go with others.
    fn conflict(&mut self, field: Path, reason: String) {
        let value = field.find(self.written).map(check::shown).unwrap_or_default();
        let problem = Problem::Conflict { field: field.to_string(), value, reason };
        self.findings.push((field, problem));
    }
}

/// Gives a colour jitter all four strengths, and its probability.
fn write_out_jitter(augmentation: &mut Value) {
    let strengths = &mut augmentation["color_jitter"];
    if strengths.is_number() {
        *strengths = Value::Sequence(vec![mem::take(strengths); 3]);
    }
    if let Some(three) = strengths.as_sequence_mut().filter(|all| all.len() == 3) {
        three.push(Value::from(0));
    }
    if augmentation["color_jitter_prob"].is_null() {
        let certain = augmentation["use_timm"].as_bool().unwrap_or(false);
        augmentation["color_jitter_prob"] = Value::from(u8::from(certain));
    }
}

/// Makes a list of one text.
fn make_list(value: &mut Value) {
    if value.is_string() {
        *value = Value::Sequence(vec![mem::take(value)]);
    }
}
