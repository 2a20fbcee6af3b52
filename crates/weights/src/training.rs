//! OpenCLIP's training checkpoints (`epoch_N.pt`): the optimizer's state beside the weights.
//!
//! PyTorch numbers the parameters of an optimizer through its groups and keeps no names, so names come
//! from how `open_clip_train` makes the groups: first what is not decayed, then what is, each in the
//! order of the model's state dict.

use std::collections::BTreeMap;

use crate::pickle::ValueRef;
use crate::{Error, Tensor, Weights};

/// What a checkpoint holds of a run beside its weights.
#[derive(Debug, Clone)]
pub struct Training {
    /// Epochs that were completed, if it says so.
    pub epoch: Option<i64>,
    /// Steps that the optimizer has made.
    pub step: u64,
    /// The optimizer's groups, in its order.
    pub groups: Vec<Group>,
    /// AdamW's running means by the names of the weights; a parameter that never had a gradient has
    /// none.
    pub moments: BTreeMap<String, Moments>,
}

/// Parameters that share their hyper-parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Learning rate of the last step.
    pub lr: Option<f64>,
    /// Decay of the two running means.
    pub betas: Option<[f64; 2]>,
    /// Added to the root of the second mean.
    pub eps: Option<f64>,
    /// λ.
    pub weight_decay: f64,
    /// Numbers of its parameters.
    params: Vec<i64>,
}

/// AdamW's two running means of one parameter.
#[derive(Debug, Clone)]
pub struct Moments {
    /// λ of its group.
    pub weight_decay: f64,
    /// Of the gradient.
    pub exp_avg: Tensor,
    /// Of its square.
    pub exp_avg_sq: Tensor,
}

/// Reads what a checkpoint holds of the run that wrote it. `is_learned` says which of its tensors are
/// parameters: the others are buffers, or never change.
///
/// # Errors
/// A file without an optimizer, one whose optimizer is no AdamW, and one whose parameters cannot be told
/// apart: of a run with locked towers or groups of its own.
pub fn training(weights: &Weights, is_learned: impl Fn(&str) -> bool) -> Result<Training, Error> {
    read(weights, is_learned)
        .map_err(|reason| Error::Training { path: weights.path().to_owned(), reason })
}

fn read(weights: &Weights, is_learned: impl Fn(&str) -> bool) -> Result<Training, String> {
    let none = "it holds weights and no optimizer; start a run from it with spec.model.pretrained";
    let root = weights.root().ok_or(none)?;
    let optimizer = root.get("optimizer").ok_or(none)?;
    let groups = optimizer.get("param_groups").ok_or("its optimizer has no param_groups")?;
    let groups = groups.elements().map(group).collect::<Result<Vec<_>, _>>()?;
    let state = optimizer.get("state").ok_or("its optimizer has no state")?;

    let names = ordered(weights, root);
    let learned = names.into_iter().filter(|name| is_learned(name)).collect::<Vec<_>>();
    let numbers = named(weights, &learned, &groups, state)?;
    let mut steps = Vec::new();
    let mut moments = BTreeMap::new();
    for (number, name) in numbers {
        let Some(own) = state.get_index(number) else { continue };
        steps.push((own.get("step").and_then(ValueRef::as_f64).unwrap_or(0.0), name));
        let group = groups.iter().find(|group| group.params.contains(&number));
        let weight_decay = group.map_or(0.0, |group| group.weight_decay);
        moments.insert(name.to_owned(), of_parameter(name, own, weight_decay)?);
    }
    let step = common_step(&steps)?;
    let epoch = root.get("epoch").and_then(ValueRef::as_i64);
    Ok(Training { epoch, step, groups, moments })
}

fn group(group: ValueRef<'_>) -> Result<Group, String> {
    let number = |key: &str| group.get(key).and_then(ValueRef::as_f64);
    let betas = group.get("betas").map(|betas| betas.elements().filter_map(ValueRef::as_f64));
    let betas: Vec<f64> = betas.into_iter().flatten().collect();
    let params = group.get("params").ok_or("a group of its optimizer has no params")?;
    Ok(Group {
        lr: number("lr"),
        betas: betas.try_into().ok(),
        eps: number("eps"),
        weight_decay: number("weight_decay").unwrap_or(0.0),
        params: params.elements().filter_map(ValueRef::as_i64).collect(),
    })
}

/// Returns the names of the weights in the order of the state dict, which is that of the modules.
fn ordered(weights: &Weights, root: ValueRef<'_>) -> Vec<String> {
    let entries = root.get("state_dict").into_iter().flat_map(ValueRef::entries);
    let plain = |(name, _): (&str, _)| {
        // What wrappers put before a name ends in a dot.
        let starts = std::iter::once(0).chain(name.match_indices('.').map(|(at, _)| at + 1));
        let mut suffixes = starts.map(|at| &name[at..]);
        suffixes.find(|suffix| weights.tensors().contains_key(*suffix)).map(str::to_owned)
    };
    entries.filter_map(plain).collect()
}

/// Returns which of the optimizer's numbers stands for which name.
fn named<'a>(
    weights: &Weights,
    learned: &'a [String],
    groups: &[Group],
    state: ValueRef<'_>,
) -> Result<Vec<(i64, &'a str)>, String> {
    let numbers: Vec<i64> = groups.iter().flat_map(|group| group.params.iter().copied()).collect();
    if numbers.len() != learned.len() {
        return Err(format!(
            "its optimizer has {} parameters and the model {}; a run with locked towers or another \
             model cannot be resumed here: start one from its weights with spec.model.pretrained",
            numbers.len(),
            learned.len()
        ));
    }
    let shape = |name: &str| weights.tensors()[name].shape();
    for is_decayed in [as_published, by_structure] {
        let (decayed, plain): (Vec<_>, Vec<_>) =
            learned.iter().map(String::as_str).partition(|name| is_decayed(name, shape(name)));
        let order = match groups {
            [_] => [learned.iter().map(String::as_str).collect(), Vec::new()],
            [first, second] if first.weight_decay > second.weight_decay => [decayed, plain],
            [_, _] => [plain, decayed],
            _ => break,
        };
        let names = order.concat();
        let paired: Vec<(i64, &str)> = numbers.iter().copied().zip(names).collect();
        let fits = |(number, name): &(i64, &str)| fits(*number, shape(name), state);
        if groups[0].params.len() == order[0].len() && paired.iter().all(fits) {
            return Ok(paired);
        }
    }
    Err("its optimizer has other groups than those known of open_clip_train, so its parameters cannot be \
         told apart; start a run from its weights with spec.model.pretrained"
        .to_owned())
}

/// What OpenCLIP up to 3 decays, with which all published models were trained.
fn as_published(name: &str, shape: &[usize]) -> bool {
    let plain = ["bn", "ln", "bias", "logit_scale"].iter().any(|part| name.contains(part));
    shape.len() >= 2 && !plain
}

/// What later versions decay: matrices but for positions and class tokens.
fn by_structure(name: &str, shape: &[usize]) -> bool {
    let embeddings = [
        "positional_embedding",
        "class_embedding",
        "cls_emb",
        "pos_embed",
        "cls_token",
        "reg_token",
        "dist_token",
        "position_embeddings.weight",
        "token_type_embeddings.weight",
    ];
    shape.len() >= 2 && !embeddings.iter().any(|end| name.ends_with(end))
}

fn fits(number: i64, shape: &[usize], state: ValueRef<'_>) -> bool {
    let mean = state.get_index(number).and_then(|own| own.get("exp_avg"));
    let mean = mean.and_then(ValueRef::as_tensor);
    mean.is_none_or(|mean| mean.shape() == shape)
}

fn of_parameter(name: &str, own: ValueRef<'_>, weight_decay: f64) -> Result<Moments, String> {
    let mean = |key: &str| {
        let tensor = own.get(key).and_then(ValueRef::as_tensor).cloned();
        tensor.ok_or_else(|| {
            let keys = own.entries().map(|(key, _)| key).collect::<Vec<_>>().join(", ");
            format!("its optimizer holds {keys} of {name}; expected AdamW's exp_avg and exp_avg_sq")
        })
    };
    Ok(Moments { weight_decay, exp_avg: mean("exp_avg")?, exp_avg_sq: mean("exp_avg_sq")? })
}

/// Returns the step that all parameters are at.
fn common_step(steps: &[(f64, &str)]) -> Result<u64, String> {
    let Some((first, name)) = steps.first() else {
        return Err("its optimizer has made no step; start a run from its weights with \
                    spec.model.pretrained"
            .to_owned());
    };
    match steps.iter().find(|(step, _)| step != first) {
        Some((step, other)) => Err(format!(
            "its optimizer is at step {first} for {name} and at {step} for {other}; expected one step \
             for all"
        )),
        None if (1.0..1e15).contains(first) => Ok(*first as u64),
        None => Err(format!("its optimizer is at step {first}; expected a count of steps")),
    }
}
