//! The way from text to [`TrainJob`].

use std::path::Path as FilePath;

use serde_yaml::Value;

use crate::catalogue::ModelCatalogue;
use crate::check::{self, Findings};
use crate::error::{Error, Errors, Problem};
use crate::invariants::{Violation, validate};
use crate::overrides::Overrides;
use crate::source::{self, Path, Position, Source};
use crate::spec::TrainJob;
use crate::{resolve, text};

/// What [`read`] found wrong, and how much more there is of it.
type Mistakes = (Vec<(Position, Problem)>, usize);

/// Reads a manifest.
///
/// `file_name` is what messages call it; relative paths in it start at `base_dir`, usually the
/// manifest's folder: an absolute path, or an empty one, with which a relative path is a mistake.
/// Nothing outside `text` is read: whether the data exists is the caller's question. A file's bytes
/// become text by [`crate::decode`].
///
/// # Errors
/// Every mistake of the file, each with its line and column, its value and what is allowed. What a URL
/// holds of a secret is not repeated.
pub fn parse(
    text: &str,
    file_name: &str,
    base_dir: &FilePath,
    models: &ModelCatalogue,
) -> Result<TrainJob, Errors> {
    parse_with(text, file_name, base_dir, Overrides::default(), models)
}

/// Reads a manifest as [`parse`] does, with some values in the place of its own.
///
/// # Errors
/// As [`parse`]. A mistake that an override makes is told with the override's name in the place of the file's.
pub fn parse_with(
    text: &str,
    file_name: &str,
    base_dir: &FilePath,
    mut overrides: Overrides,
    models: &ModelCatalogue,
) -> Result<TrainJob, Errors> {
    let job = read(text::without_mark(text), base_dir, &mut overrides, models);
    job.map_err(|(problems, left_out)| {
        let place = |(position, problem)| match overrides.responsible_for(&problem) {
            Some(file) => Error { file, position: Position::START, problem },
            None => Error { file: file_name.to_owned(), position, problem },
        };
        Errors::new(problems.into_iter().map(place).collect()).and_more(left_out)
    })
}

fn read(
    text: &str,
    base_dir: &FilePath,
    overrides: &mut Overrides,
    models: &ModelCatalogue,
) -> Result<TrainJob, Mistakes> {
    text::check_length(text.len()).map_err(|problem| (vec![problem], 0))?;
    let (source, mut original) = Source::read(text).map_err(|faults| (faults, 0))?;
    overrides.apply(&mut original);

    // Structure: unknown and missing keys, kinds, ranges. What is wrong is cut out, and what is left
    // out is filled in.
    let mut document = original.clone();
    let mut findings = check::check(&mut document, &source);

    // Meaning: what only shows when values are used, then what must hold of every job.
    let (job, found) = match resolve::resolve(document, &original, base_dir, models) {
        Ok(resolved) => resolved,
        Err(error) => {
            // Only reachable if the schema takes something that the types do not.
            findings.problems.push(source::syntax(&error));
            return Err((findings.problems, findings.left_out));
        }
    };
    for (field, problem) in found {
        let missing = matches!(problem, Problem::Missing { .. });
        if !(findings.is_broken(&field) || missing && is_given_wrong(&field, &findings)) {
            let place = || if missing { source.key(&field) } else { source.value(&field) };
            findings.add(place, || problem);
            findings.broken.insert(field);
        }
    }
    for violation in validate(&job) {
        relate(&violation, &original, &source, &mut findings);
    }
    if findings.problems.is_empty() { Ok(job) } else { Err((findings.problems, findings.left_out)) }
}

/// Returns whether what seems to be missing was given under its other name, and cut out.
fn is_given_wrong(field: &Path, findings: &Findings) -> bool {
    ["spec.schedule.total_steps", "spec.data.sources"].iter().any(|one| {
        let names = written_as(&Path::of(one));
        names.contains(field) && names.iter().any(|name| findings.is_broken(name))
    })
}

/// Places a violation at the field that the file has, unless a field it depends on is already
/// reported.
fn relate(violation: &Violation, original: &Value, source: &Source, findings: &mut Findings) {
    let names = written_as(&violation.field);
    let others = violation.others.iter().flat_map(|field| written_as(&Path::of(field)));
    let within = |broken: &Path| names.iter().any(|name| broken.starts_with(name));
    if names.iter().cloned().chain(others).any(|field| findings.is_broken(&field))
        || findings.broken.iter().any(within)
    {
        return;
    }
    let given = |field: &&Path| field.find(original).is_some_and(|value| !value.is_null());
    let blamed = names.iter().find(given);
    let field = blamed.unwrap_or(&violation.field);
    let value = blamed.and_then(|field| field.find(original)).map(check::shown);
    let problem = || Problem::Conflict {
        field: field.to_string(),
        value: value.unwrap_or_else(|| "left at its default".to_owned()),
        reason: violation.reason.clone(),
    };
    findings.add(|| source.value(field), problem);
}

/// Returns the names that a field of the specification may have in the file.
fn written_as(field: &Path) -> Vec<Path> {
    let (schedule, data) = (Path::of("spec.schedule"), Path::of("spec.data"));
    let sources = data.key("sources");
    if *field == schedule.key("total_steps") {
        vec![schedule.key("steps"), schedule.key("samples")]
    } else if *field == schedule.key("warmup_steps") {
        vec![field.clone(), schedule.key("warmup_samples")]
    } else if *field == sources || *field == sources.index(0).key("data") {
        vec![data.key("train"), field.clone()]
    } else if *field == data.key("pool_samples") {
        vec![field.clone(), data.key("shuffle_window")]
    } else {
        vec![field.clone()]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::spec::WhenBusy;
    use crate::{from_validated_json, to_json};

    const MINIMAL: &str = "
apiVersion: ringmaster/v1
kind: TrainJob
metadata: {name: tiny}
spec:
  model: {name: ViT-B-32}
  data: {train: 'shards/{00..01}.tar'}
  loss: {kind: siglip}
  optimizer: {lr: 1e-3}
  schedule: {samples: 1M, warmup_samples: 100K}
  batch: {global: 256}
  checkpoint: {uri: runs}
";

    fn minimal() -> TrainJob {
        parse(MINIMAL, "tiny.yaml", FilePath::new("/jobs"), &ModelCatalogue::builtin()).unwrap()
    }

    #[test]
    fn defaults_units_and_places_are_filled_in() {
        let job = minimal();
        assert_eq!(job.resources.ranks, 1);
        assert_eq!(job.resources.min_ranks, 1);
        assert_eq!(job.data.sources[0].data, ["/jobs/shards/00.tar", "/jobs/shards/01.tar"]);
        assert_eq!(job.data.image_key, ["png", "jpg", "jpeg", "webp"]);
        assert_eq!((job.schedule.total_steps, job.schedule.warmup_steps), (3906, 390));
        assert_eq!(job.optimizer.beta2, 0.95);
        assert_eq!(job.loss.logits_budget, 256 << 20);
        assert_eq!(job.checkpoint.uri, "file:///jobs/runs");
        assert_eq!((job.checkpoint.keep_every, job.checkpoint.when_busy), (None, WhenBusy::Skip));
        assert_eq!(job.checkpoint.stop_within, None);
        assert_eq!(job.model.config.vision_cfg.patch_size, 32);
        assert!(job.eval.zero_shot.is_empty());
    }

    #[test]
    fn a_job_survives_the_wire_exactly() {
        let job = minimal();
        assert_eq!(from_validated_json(&to_json(&job)).unwrap(), job);
    }

    #[test]
    fn a_job_that_an_earlier_version_wrote_is_read() {
        let mut json: serde_json::Value = serde_json::from_str(&to_json(&minimal())).unwrap();
        let mut json = json["job"].take();
        for (part, key) in
            [("checkpoint", "keep_every"), ("checkpoint", "when_busy"), ("model", "pretrained")]
        {
            json[part].as_object_mut().unwrap().remove(key).unwrap();
        }
        assert_eq!(from_validated_json(&json.to_string()).unwrap(), minimal());
    }

    /// `--aug-cfg use_timm=True color_jitter=0.4 re_prob=0.25 re_count=2 'scale=(0.4, 1.0)'`, and others.
    #[test]
    fn the_words_of_open_clips_aug_cfg_mean_the_same_here() {
        let read = |words: &str| {
            let text = MINIMAL.replace(".tar'}", &format!(".tar', aug_cfg: {{{words}}}}}"));
            let models = ModelCatalogue::builtin();
            parse(&text, "tiny.yaml", FilePath::new("/jobs"), &models).map(|job| job.data.aug_cfg)
        };
        let plain = read("").unwrap();
        let written_out = crate::spec::AugCfg {
            scale: [0.4, 1.0],
            color_jitter: [0.4, 0.4, 0.4, 0.0],
            color_jitter_prob: 1.0,
            re_prob: 0.25,
            re_count: 2,
            use_timm: true,
            ..plain.clone()
        };
        let timm =
            "use_timm: true, color_jitter: 0.4, re_prob: 0.25, re_count: 2, scale: [0.4, 1.0]";
        assert_eq!(read(timm).unwrap(), written_out);

        assert_eq!((plain.color_jitter_prob, plain.re_count, plain.use_timm), (0.0, 1, false));
        assert_eq!(read("color_jitter: 0.4").unwrap().color_jitter_prob, 0.0);
        let own = read("use_timm: true, color_jitter: [0.1, 0.2, 0.3], color_jitter_prob: 0.5");
        let own = own.unwrap();
        assert_eq!((own.color_jitter, own.color_jitter_prob), ([0.1, 0.2, 0.3, 0.0], 0.5));
        let four = read("color_jitter: [0.1, 0.2, 0.3, 0.05], color_jitter_prob: 0.8").unwrap();
        assert_eq!((four.color_jitter, four.color_jitter_prob), ([0.1, 0.2, 0.3, 0.05], 0.8));
        for (wrong, told) in [
            ("[0.1, 0.2]", "is [0.1, 0.2]; expected a list of 3 to 4 numbers of at least 0"),
            ("-1", "is -1; expected a number of at least 0"),
            ("some", "is \"some\"; expected a number of at least 0 or a list of 3 to 4 numbers"),
        ] {
            let error = read(&format!("color_jitter: {wrong}")).unwrap_err().to_string();
            assert!(error.contains(&format!("spec.data.aug_cfg.color_jitter {told}")), "{error}");
        }
    }

    #[test]
    fn json_that_no_manifest_gives_is_refused() {
        let mut job = minimal();
        job.schedule.warmup_steps = job.schedule.total_steps + 1;
        let error = from_validated_json(&to_json(&job)).unwrap_err();
        assert!(error.to_string().starts_with("spec.schedule.warmup_steps: a warm-up of 3907"));
        assert!(from_validated_json("{}").is_err());
    }

    /// What the schema does not know is checked by itself.
    #[test]
    fn every_value_of_a_job_is_held_against_the_schema_but_for_what_only_a_job_has() {
        let job = serde_json::to_value(minimal()).unwrap();
        let spec = &crate::schema::of_file()["properties"]["spec"];
        let mut passed_over = Vec::new();
        for (section, value) in job.as_object().unwrap() {
            let Some(schema) = property(spec, section) else {
                passed_over.push(section.clone());
                continue;
            };
            for key in value.as_object().into_iter().flat_map(|keys| keys.keys()) {
                if property(schema, key).is_none() {
                    passed_over.push(format!("{section}.{key}"));
                }
            }
        }
        let metadata = ["name", "labels"];
        let own = ["model.config", "model.preprocess", "loss.ring_group", "schedule.total_steps"];
        assert_eq!(passed_over, [&metadata[..], &own[..]].concat());
    }

    fn property(
        schema: &'static serde_json::Value,
        key: &str,
    ) -> Option<&'static serde_json::Value> {
        crate::schema::alternatives(schema).iter().find_map(|one| one["properties"].get(key))
    }

    #[test]
    fn json_with_a_value_that_no_manifest_may_have_is_refused() {
        let sent: serde_json::Value = serde_json::from_str(&to_json(&minimal())).unwrap();
        for (field, value, reason) in [
            ("/optimizer/lr", 0.into(), "spec.optimizer.lr: expected a number above 0, not 0.0"),
            (
                "/optimizer/beta2",
                1.into(),
                "spec.optimizer.beta2: expected a number of at least 0 and below 1, not 1.0",
            ),
            (
                "/data/lanes",
                0.into(),
                "spec.data.lanes: expected a whole number from 1 to 1048576, not 0",
            ),
            (
                "/data/aug_cfg/scale",
                serde_json::json!([0.5, 2]),
                "spec.data.aug_cfg.scale[1]: expected a number above 0 and at most 1, not 2.0",
            ),
            (
                "/data/sources/0/data",
                serde_json::json!([]),
                "spec.data.sources[0].data: expected text or a list of texts",
            ),
            ("/name", "../evil".into(), "metadata.name: expected lower-case letters, digits and"),
            (
                "/checkpoint/uri",
                "s3://key:secret@bucket".into(),
                "spec.checkpoint.uri: expected URLs without names, passwords",
            ),
        ] {
            let mut changed = sent.clone();
            *changed["job"].pointer_mut(field).unwrap() = value;
            let error = from_validated_json(&changed.to_string()).unwrap_err().to_string();
            assert!(error.starts_with(reason), "{error}");
        }
    }
}
