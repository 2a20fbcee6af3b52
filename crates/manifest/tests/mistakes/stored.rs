//! Jobs as each version stored them: `stored/TrainJob-<schema>….json`. Once released, none is made anew.
//!
//! `TrainJob-1.json` is what commit f17f4a4 stored, without an envelope: that of the golden manifest with every
//! key. `TrainJob-1-before-weights.json` is older; it lacks the keys that came with files of weights.
//! `TrainJob-2.json` is the first with an envelope, `TrainJob-3.json` the first with `checkpoint.stop_within`.

use std::fs;

use ringmaster_manifest::model_config::PreprocessCfg;
use ringmaster_manifest::spec::{TrainJob, WhenBusy};
use ringmaster_manifest::{from_validated_json, to_json};
use serde_json::Value;

use crate::{fixture, parse, project};

fn stored(name: &str) -> Result<TrainJob, String> {
    let path = project().join("crates/manifest/tests/mistakes/stored").join(name);
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    from_validated_json(&text).map_err(|error| format!("{name}: {error}"))
}

fn newest_schema() -> u64 {
    let job = parse(&fixture("good.yaml")).unwrap();
    let written: Value = serde_json::from_str(&to_json(&job)).unwrap();
    written["schema"].as_u64().unwrap()
}

/// A field that is added, renamed or dropped without a schema of its own fails here: the newest fixture lacks
/// it, or has a key too many.
#[test]
fn a_job_of_every_schema_is_read_and_means_the_same() {
    let first = stored("TrainJob-1.json").unwrap();
    assert_eq!((first.name.as_str(), first.checkpoint.when_busy), ("every-key", WhenBusy::Wait));
    for schema in 2..=newest_schema() {
        assert_eq!(stored(&format!("TrainJob-{schema}.json")).unwrap(), first, "{schema}");
    }
}

#[test]
fn what_a_job_did_before_a_key_is_what_it_does_since() {
    let job = stored("TrainJob-1-before-weights.json").unwrap();
    assert_eq!((job.checkpoint.when_busy, job.checkpoint.keep_every), (WhenBusy::Skip, None));
    assert_eq!((job.model.pretrained, job.model.tokenizer), (None, None));
    assert_eq!(job.model.preprocess, PreprocessCfg { size: 224, ..PreprocessCfg::default() });
}
