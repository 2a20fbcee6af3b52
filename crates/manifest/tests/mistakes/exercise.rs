//! What is done with every input of the fuzz targets, and by the tests with every input that was kept.

use std::path::Path;
use std::sync::LazyLock;

use ringmaster_manifest::spec::TrainJob;
use ringmaster_manifest::{
    Errors, MAX_COUNT, MAX_NAMES, ModelCatalogue, decode, from_validated_json, parse,
    resume_conflict, to_json,
};

/// One model is enough: which ones there are is no input.
static MODELS: LazyLock<ModelCatalogue> = LazyLock::new(|| {
    let all = ModelCatalogue::builtin();
    let pick = |name: &str| Some((name.to_owned(), all.get(name)?.clone()));
    pick("ViT-B-16").into_iter().collect()
});

/// Reads bytes as a manifest file.
pub(crate) fn manifest(bytes: &[u8]) {
    match decode(bytes, "job.yaml") {
        Ok(text) => read(&text),
        Err(errors) => told(&errors, &String::from_utf8_lossy(bytes)),
    }
}

/// Reads bytes as the places that a manifest names.
pub(crate) fn braces(bytes: &[u8]) {
    let place = serde_json::Value::from(String::from_utf8_lossy(bytes));
    let other = serde_json::Value::from("/data/a.tar");
    for [data, uri, weights] in [[&place, &other, &other], [&other, &place, &place]] {
        read(&format!(
            "{{apiVersion: ringmaster/v1, kind: TrainJob, metadata: {{name: a}}, spec: {{\
             model: {{name: ViT-B-16, pretrained: {weights}}}, data: {{train: {data}}}, \
             loss: {{kind: siglip}}, optimizer: {{lr: 1}}, schedule: {{steps: 1}}, \
             batch: {{global: 64}}, checkpoint: {{uri: {uri}}}}}}}"
        ));
    }
}

fn read(text: &str) {
    match parse(text, "job.yaml", Path::new("/jobs"), &MODELS) {
        Ok(job) => holds(&job),
        Err(errors) => told(&errors, text),
    }
}

/// What is taken can be computed with and sent.
fn holds(job: &TrainJob) {
    let sent = to_json(job);
    let received = from_validated_json(&sent).expect("what is valid in YAML is valid as JSON");
    assert_eq!(to_json(&received), sent);
    assert!(resume_conflict(job, &received).is_none());

    assert!(job.total_samples() <= MAX_COUNT);
    let (global, ranks) = (u64::from(job.batch.global), u64::from(job.resources.ranks));
    assert_eq!(job.total_samples(), job.schedule.total_steps * global);
    assert!(job.schedule.warmup_steps <= job.schedule.total_steps);
    assert!(global >= ranks);
    assert!(job.checkpoint.every_steps >= 1);
    for number in [job.optimizer.lr, job.optimizer.eps, job.optimizer.weight_decay] {
        assert!(number.is_finite() && number >= 0.0);
    }

    let sets = job.eval.zero_shot.iter().flat_map(|set| &set.data);
    let names = job.data.sources.iter().flat_map(|source| &source.data).chain(sets);
    assert!(names.clone().map(String::len).sum::<usize>() <= MAX_NAMES);
    for name in names.chain([&job.checkpoint.uri]) {
        assert!(name.starts_with('/') || name.contains("://"), "{name:?}");
        assert!(!name.contains(|c: char| c.is_ascii_control() && !name.starts_with("http")));
    }
}

/// Mistakes are short, few, and stand in the file.
fn told(errors: &Errors, text: &str) {
    // YAML knows further line breaks than `lines`.
    let breaks = text.matches(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count();
    let mut mistakes = 0;
    for error in errors {
        mistakes += 1;
        assert!((1..=breaks + 2).contains(&error.position.line), "{error}");
        assert!(error.position.column >= 1, "{error}");
        let words = error.to_string();
        assert!(words.len() < 4096, "{} bytes: {words:.200}", words.len());
    }
    assert!((1..=100).contains(&mistakes));
}
