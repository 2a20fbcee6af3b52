//! Whether a job can go on from what another job saved.

use serde_json::Value;

use crate::model_config::ModelConfig;
use crate::spec::{Data, LossKind, Source, TrainJob};

/// Returns why `wanted` cannot resume from a checkpoint of `saved`, with both values and a remedy;
/// none when it can. Schedule and batch may change, and data if the job says so: only what gives the
/// tensors their meaning has to be the same.
pub fn resume_conflict(saved: &TrainJob, wanted: &TrainJob) -> Option<String> {
    if saved.loss.kind != wanted.loss.kind {
        return Some(format!(
            "the checkpoint was trained with spec.loss.kind {} and the manifest says {}; use the \
             checkpoint's loss, or leave --resume out to start anew",
            loss_word(saved.loss.kind),
            loss_word(wanted.loss.kind)
        ));
    }
    let (path, before, now) = config_difference(&saved.model.config, &wanted.model.config)?;
    let name = |job: &TrainJob| job.model.name.clone();
    let what = if name(saved) == name(wanted) {
        format!("another configuration of model {}", name(saved))
    } else {
        format!("model {} and the manifest says {}", name(saved), name(wanted))
    };
    Some(format!(
        "the checkpoint holds {what} ({path} is {before} in the checkpoint and {now} in the \
         manifest's model); use the checkpoint's model, or leave --resume out to start anew"
    ))
}

/// Returns what of the order of samples differs between two jobs, as far as manifests tell, with both values: places
/// may differ, the same shards may lie elsewhere. Shards of other lengths show only when they are opened.
pub fn order_differences(saved: &Data, wanted: &Data) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |key: &str, before: String, now: String| {
        if before != now {
            found.push(format!("{key} was {before} and is {now}"));
        }
    };
    compare("data.seed", saved.seed.to_string(), wanted.seed.to_string());
    compare("data.lanes", saved.lanes.to_string(), wanted.lanes.to_string());
    compare(
        "data.block_samples",
        saved.block_samples.to_string(),
        wanted.block_samples.to_string(),
    );
    let form = |data: &Data| {
        let forms = data
            .sources
            .iter()
            .map(|source| format!("{:?}", source.form(data.dataset_type)).to_lowercase());
        forms.collect::<Vec<_>>().join(", ")
    };
    compare("the form of the sources", form(saved), form(wanted));
    compare("data.pool_samples", saved.pool_samples.to_string(), wanted.pool_samples.to_string());
    compare(
        "the number of sources",
        saved.sources.len().to_string(),
        wanted.sources.len().to_string(),
    );
    // Of the sum: weights are relative to one another.
    let share = |data: &Data, source: &Source| -> String {
        let sum: f64 = data.sources.iter().filter_map(|source| source.weight).sum();
        match (source.weight, data.sources.len()) {
            (Some(weight), 2..) => format!("{:.6} of all", weight / sum),
            _ => "that of its samples".to_owned(),
        }
    };
    for (before, now) in saved.sources.iter().zip(&wanted.sources) {
        let name = &now.name;
        let shards = |count: usize| count.to_string();
        compare(
            &format!("the number of shards of {name}"),
            shards(before.data.len()),
            shards(now.data.len()),
        );
        compare(&format!("the share of {name}"), share(saved, before), share(wanted, now));
        if wanted.sources.len() > 1 {
            let factor = |source: &Source| source.upsample.unwrap_or(1.0).to_string();
            compare(&format!("upsample of {name}"), factor(before), factor(now));
        }
    }
    found
}

/// Returns the first field in which two models' configurations differ, and both values.
pub fn config_difference(a: &ModelConfig, b: &ModelConfig) -> Option<(String, Value, Value)> {
    let value = |config: &ModelConfig| {
        serde_json::to_value(config).expect("a model configuration is plain data")
    };
    first_difference("", &value(a), &value(b))
}

fn loss_word(kind: LossKind) -> &'static str {
    match kind {
        LossKind::Siglip => "siglip",
        LossKind::Infonce => "infonce",
    }
}

/// Returns path and both values of the first leaf in which two documents differ.
fn first_difference(path: &str, a: &Value, b: &Value) -> Option<(String, Value, Value)> {
    let (Value::Object(left), Value::Object(right)) = (a, b) else {
        return (a != b).then(|| (path.to_owned(), a.clone(), b.clone()));
    };
    let keys = left.keys().chain(right.keys().filter(|key| !left.contains_key(*key)));
    for key in keys {
        let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let side = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
        if let Some(found) = first_difference(&below, &side(left), &side(right)) {
            return Some(found);
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::ModelCatalogue;

    fn job(model: &str, loss: &str) -> TrainJob {
        let yaml = format!(
            "apiVersion: ringmaster/v1\nkind: TrainJob\nmetadata: {{name: tiny}}\nspec:\n  \
             resources: {{ranks: 2}}\n  model: {{name: {model}}}\n  \
             data: {{train: [/data/a.tar], lanes: 8}}\n  loss: {{kind: {loss}}}\n  \
             optimizer: {{lr: 1.0e-3}}\n  schedule: {{warmup_steps: 2, steps: 40}}\n  \
             batch: {{global: 64}}\n  checkpoint: {{uri: /data/checkpoints}}\n"
        );
        let models = ModelCatalogue::builtin();
        crate::parse(&yaml, "tiny.yaml", Path::new("/data"), &models).unwrap()
    }

    #[test]
    fn another_loss_or_model_is_refused_with_both_values() {
        let saved = job("ViT-B-32", "siglip");
        assert_eq!(resume_conflict(&saved, &saved), None);
        let loss = resume_conflict(&saved, &job("ViT-B-32", "infonce")).unwrap();
        assert!(loss.contains("kind siglip and the manifest says infonce"), "{loss}");
        let model = resume_conflict(&saved, &job("ViT-B-16", "siglip")).unwrap();
        assert!(model.contains("model ViT-B-32 and the manifest says ViT-B-16"), "{model}");
        assert!(model.contains("vision_cfg.patch_size is 32 in the checkpoint and 16"), "{model}");
    }

    #[test]
    fn a_model_of_the_same_name_and_other_sizes_is_refused() {
        let saved = job("ViT-B-32", "siglip");
        let mut wanted = saved.clone();
        wanted.model.config.embed_dim = 7;
        let conflict = resume_conflict(&saved, &wanted).unwrap();
        assert!(conflict.contains("another configuration of model ViT-B-32"), "{conflict}");
        assert!(conflict.contains("embed_dim is 512 in the checkpoint and 7"), "{conflict}");
    }

    #[test]
    fn what_changes_the_order_of_samples_is_told_with_both_values_and_places_are_not() {
        let saved = job("ViT-B-32", "siglip").data;
        let mut wanted = saved.clone();
        wanted.sources[0].data = vec!["/elsewhere/a.tar".to_owned()];
        assert_eq!(order_differences(&saved, &wanted), Vec::<String>::new());
        wanted.seed = 7;
        wanted.sources[0].data.push("/elsewhere/b.tar".to_owned());
        wanted.sources[0].weight = Some(0.5);
        let expected = ["data.seed was 0 and is 7", "the number of shards of train was 1 and is 2"];
        assert_eq!(order_differences(&saved, &wanted), expected);
        // Weights are relative, and those of a mixture only.
        let mixture = |weights: [f64; 2]| {
            let mut data = saved.clone();
            data.sources = weights
                .map(|weight| Source { weight: Some(weight), ..saved.sources[0].clone() })
                .to_vec();
            data
        };
        let told = |now| order_differences(&mixture([2.0, 1.0]), &mixture(now));
        assert_eq!(told([4.0, 2.0]), Vec::<String>::new());
        assert_eq!(
            told([3.0, 1.0])[0],
            "the share of train was 0.666667 of all and is 0.750000 of all"
        );
    }

    #[test]
    fn another_schedule_batch_or_seed_is_no_conflict() {
        let saved = job("ViT-B-32", "siglip");
        let mut wanted = saved.clone();
        wanted.schedule.total_steps = 80;
        wanted.batch.global = 128;
        assert_eq!(resume_conflict(&saved, &wanted), None);
    }
}
