//! OpenCLIP's training checkpoints: a run goes on here with the moments of its AdamW.

use std::collections::BTreeMap;

use ringmaster_weights::{self as weights, Group, Training, Weights};
use tch::{Kind, Tensor};

use crate::factory::load::{self, Misfit, MissingBias, Renaming};
use crate::factory::{Error, misfit_of};
use crate::model::{Clip, Entry, Role};
use crate::optim::adamw::AdamW;

/// Where a run goes on.
#[derive(Debug, Clone)]
pub(crate) struct Resumed {
    /// Steps that were made.
    pub step: u64,
    /// Epochs that OpenCLIP counted.
    pub epoch: Option<i64>,
    /// What the optimizer was told, group by group.
    pub groups: Vec<Group>,
    /// What was done to make the weights fit, in sentences.
    pub notes: Vec<String>,
}

/// Loads weights and moments of an `epoch_N.pt`; nothing is changed unless everything fits. Moments that
/// the file does not have, of parameters that never had a gradient, become zero.
///
/// # Errors
/// A file without an optimizer, an optimizer other than AdamW, and parameters that are not the model's.
pub(crate) fn resume(clip: &Clip, adamw: &AdamW, file: &Weights) -> Result<Resumed, Error> {
    let misfit = |misfit| misfit_of(file, misfit);
    let trains = file.root().is_some_and(|root| root.get("optimizer").is_some());
    let there = file.tensors().contains_key("logit_bias");
    if trains && there != clip.logit_bias().is_some() {
        return Err(Error::OtherLoss { path: file.path().to_owned(), has_bias: there });
    }
    let renaming = Renaming::new(clip, file.tensors());
    let entry = |name: &str| clip.params().entry(&renaming.apply(name));
    let is_learned = |name: &str| entry(name).is_some_and(|entry| entry.role == Role::Parameter);
    let training = weights::training(file, is_learned)?;
    let moments = training.moments.iter().filter_map(|(name, moments)| {
        entry(name).map(|entry| (entry, [&moments.exp_avg, &moments.exp_avg_sq]))
    });
    let moments: Vec<(&Entry, [&weights::Tensor; 2])> = moments.collect();
    let misshaped = moments.iter().filter_map(|(entry, moments)| misshaped(entry, moments[0]));
    let misshaped: Vec<String> = misshaped.collect();
    if !misshaped.is_empty() {
        return Err(misfit(Misfit { misshaped, ..Misfit::default() }));
    }
    let mut notes = load::load(clip, file.tensors(), MissingBias::Kept).map_err(misfit)?;
    notes.extend(other_decay(&training, entry));
    for (index, mut buffer) in
        [adamw.exp_avg.shallow_clone(), adamw.exp_avg_sq.shallow_clone()].into_iter().enumerate()
    {
        let _ = buffer.zero_();
        for (entry, moments) in &moments {
            let values = Tensor::from_slice(&moments[index].to_f32()).to_kind(Kind::Float);
            buffer.narrow(0, entry.offset as i64, entry.len as i64).copy_(&values);
        }
    }
    let Training { epoch, step, groups, .. } = training;
    Ok(Resumed { step, epoch, groups, notes })
}

/// Says what is wrong with a moment's shape; positions of another number have none to go on with.
fn misshaped(entry: &Entry, moment: &weights::Tensor) -> Option<String> {
    let shape: Vec<i64> = moment.shape().iter().map(|size| *size as i64).collect();
    let scalar = entry.shape.is_empty() && moment.len() == 1;
    (shape != entry.shape && !scalar).then(|| {
        format!("the moments of {} are {shape:?}, the model's {:?}", entry.name, entry.shape)
    })
}

/// Says which parameters were decayed and are not, or the other way round.
fn other_decay<'a>(
    training: &Training,
    entry: impl Fn(&str) -> Option<&'a Entry>,
) -> Option<String> {
    let any = training.groups.iter().any(|group| group.weight_decay > 0.0);
    let other = training.moments.iter().filter(|(name, moments)| {
        let now = entry(name).map(|entry| entry.decay);
        any && now.is_some_and(|now| now != (moments.weight_decay > 0.0))
    });
    let other: Vec<&str> = other.map(|(name, _)| name.as_str()).collect();
    (!other.is_empty())
        .then(|| format!("weight decay is no longer as it was for {}", other.join(", ")))
}

/// Says where a job's optimizer is not the one whose moments it goes on with.
pub(crate) fn departures(
    groups: &[Group],
    optimizer: &ringmaster_manifest::spec::Optimizer,
) -> Vec<String> {
    let mut found = BTreeMap::new();
    for group in groups {
        let [beta1, beta2] = group.betas.map_or([None; 2], |betas| betas.map(Some));
        let decay = Some(group.weight_decay).filter(|decay| *decay != 0.0);
        for (key, there, here) in [
            ("beta1", beta1, optimizer.beta1),
            ("beta2", beta2, optimizer.beta2),
            ("eps", group.eps, optimizer.eps),
            ("weight_decay", decay, optimizer.weight_decay),
        ] {
            if let Some(there) = there.filter(|there| *there != here) {
                found.insert(key, format!("spec.optimizer.{key} is {here}, it was {there}"));
            }
        }
    }
    found.into_values().collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ringmaster_manifest::model_config::ModelConfig;

    use super::*;
    use crate::factory::tests::golden;
    use crate::factory::{Options, blank};
    use crate::optim::adamw::Update;

    fn tensor(file: &Weights, name: &str) -> Vec<f32> {
        file.get(name).unwrap().to_f32()
    }

    fn fresh(prefixed: bool) -> (Weights, Clip, AdamW) {
        let expected = Weights::open(&golden("training-epoch.safetensors")).unwrap();
        let config = ModelConfig::from_json(&expected.metadata()["config"]).unwrap();
        let config = ModelConfig { custom_text: prefixed, ..config };
        let clip = blank(&config, &Options::default()).unwrap();
        let adamw = AdamW::like(clip.params().flat());
        (expected, clip, adamw)
    }

    /// `tests/parity/training_golden.py` made three steps with PyTorch, saved, and made a fourth.
    #[test]
    fn the_step_after_an_open_clip_checkpoint_is_the_one_pytorch_makes() {
        for prefixed in [false, true] {
            let (expected, clip, mut adamw) = fresh(prefixed);
            let file = Weights::open(&golden("training-epoch.pt")).unwrap();
            let resumed = resume(&clip, &adamw, &file).unwrap();
            assert_eq!((resumed.step, resumed.epoch), (3, Some(2)));
            let [plain, decayed] = &resumed.groups[..] else { panic!("{resumed:?}") };
            assert_eq!((plain.weight_decay, decayed.weight_decay), (0.0, 0.2));
            assert_eq!((decayed.betas, decayed.eps), (Some([0.9, 0.95]), Some(1e-6)));

            let params = clip.params();
            let theirs = |name: &str| name.strip_prefix("text.").unwrap_or(name).to_owned();
            for entry in params.entries() {
                let gradient = tensor(&expected, &format!("grad.{}", theirs(&entry.name)));
                let place = params.grad().narrow(0, entry.offset as i64, entry.len as i64);
                place.shallow_clone().copy_(&Tensor::from_slice(&gradient));
            }
            let update = Update {
                lr: 3e-3,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-6,
                weight_decay: 0.2,
                grad_factor: 1.0,
                step: resumed.step + 1,
            };
            let before = params.flat().copy();
            adamw.apply(params.flat(), params.grad(), &params.decay_ranges(), update).unwrap();
            // OpenCLIP up to 3 decays positions, too; later versions and this one do not.
            let positions = |name: &str| name.ends_with("positional_embedding");
            let note = resumed.notes.last().unwrap();
            assert!(note.starts_with("weight decay is no longer as it was for"), "{note}");
            assert_eq!(note.matches("positional_embedding").count(), 2, "{note}");
            for entry in params.entries() {
                let kept = if positions(&entry.name) { 3e-3 * 0.2 } else { 0.0 };
                let before = before.narrow(0, entry.offset as i64, entry.len as i64);
                let before = Vec::<f32>::try_from(before).unwrap();
                let got =
                    Vec::<f32>::try_from(params.get(&entry.name).unwrap().view([-1])).unwrap();
                let next = tensor(&expected, &format!("next.{}", theirs(&entry.name)));
                let next = next.iter().zip(&before).map(|(next, before)| next + kept * before);
                let worst = got.iter().zip(next).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst <= 2e-6, "{}: {worst}", entry.name);
            }
        }
    }

    #[test]
    fn every_moment_is_found_under_its_name() {
        let (expected, clip, adamw) = fresh(false);
        let file = Weights::open(&golden("training-epoch.pt")).unwrap();
        resume(&clip, &adamw, &file).unwrap();
        for entry in clip.params().entries() {
            for (mean, buffer) in [("exp_avg", &adamw.exp_avg), ("exp_avg_sq", &adamw.exp_avg_sq)] {
                let got = buffer.narrow(0, entry.offset as i64, entry.len as i64);
                let got = Vec::<f32>::try_from(got).unwrap();
                assert_eq!(got, tensor(&expected, &format!("{mean}.{}", entry.name)), "{mean}");
            }
        }
    }

    #[test]
    fn what_holds_no_optimizer_of_this_model_is_refused_and_changes_nothing() {
        let (_, clip, _) = fresh(false);
        let refuse = |clip: &Clip, name: &str| {
            let adamw = AdamW::like(clip.params().flat());
            let before = clip.params().flat().copy();
            let file = Weights::open(&golden(name)).unwrap();
            let error = resume(clip, &adamw, &file).unwrap_err().to_string();
            assert_eq!(clip.params().flat(), &before);
            error
        };
        let text = refuse(&clip, "weights-zip.pt");
        assert!(text.contains("it holds weights and no optimizer; start a run from it"), "{text}");
        let text = refuse(&clip, "model-clip-tok.safetensors");
        assert!(text.contains("it holds weights and no optimizer"), "{text}");
        let text = refuse(&clip, "weights-epoch.pt");
        assert!(text.contains("holds no logit_bias, which the loss siglip trains"), "{text}");
        let plain = ModelConfig { init_logit_bias: None, ..clip.config().clone() };
        let plain = blank(&plain, &Options::default()).unwrap();
        let text = refuse(&plain, "weights-epoch.pt");
        assert!(text.contains("has 2 parameters and the model 0"), "{text}");
        let text = refuse(&plain, "training-epoch.pt");
        assert!(
            text.contains("holds a logit_bias, which the loss infonce does not have"),
            "{text}"
        );
        let mut config = clip.config().clone();
        config.vision_cfg.image_size *= 2;
        let larger = blank(&config, &Options::default()).unwrap();
        let text = refuse(&larger, "training-epoch.pt");
        assert!(text.contains("the moments of visual.positional_embedding are [5, 8]"), "{text}");
    }
}
