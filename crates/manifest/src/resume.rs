//! Whether a job can go on from what another job saved.

use serde_json::Value;

use crate::model_config::ModelConfig;
use crate::spec::{LossKind, TrainJob};

/// Returns why `wanted` cannot resume from a checkpoint of `saved`, with both values and a remedy;
/// none when it can. Data, schedule and batch may change: only what gives the tensors their meaning
/// has to be the same.
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
    fn another_schedule_batch_or_seed_is_no_conflict() {
        let saved = job("ViT-B-32", "siglip");
        let mut wanted = saved.clone();
        wanted.schedule.total_steps = 80;
        wanted.batch.global = 128;
        assert_eq!(resume_conflict(&saved, &wanted), None);
    }
}
