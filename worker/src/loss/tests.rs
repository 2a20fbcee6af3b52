//! Both losses, over real sockets, against the dense f64 autograd reference.
#![allow(clippy::unwrap_used)]

use tch::{Device, Kind, Tensor};

use super::{Inputs, Output, infonce, reference, siglip};
use crate::collective::testing::with_ring;
use crate::collective::{Collective, Solo};

/// A rank's result in a form that crosses threads: loss, dX, dY, dt′, dβ.
struct Flat {
    loss: f64,
    grad_image: Vec<f64>,
    grad_text: Vec<f64>,
    grad_log_scale: f64,
    grad_bias: f64,
}

impl Flat {
    fn of(output: &Output) -> Self {
        Self {
            loss: output.loss,
            grad_image: values(&output.grad_image),
            grad_text: values(&output.grad_text),
            grad_log_scale: output.grad_log_scale,
            grad_bias: output.grad_bias,
        }
    }
}

fn values(t: &Tensor) -> Vec<f64> {
    Vec::try_from(t.to_kind(Kind::Double).contiguous().view(-1)).unwrap()
}

/// Unit rows that are the same on every rank and in every run.
fn embeddings(batch: i64, dim: i64, phase: f64) -> Tensor {
    let options = (Kind::Double, Device::Cpu);
    let i = Tensor::arange(batch, options).unsqueeze(1);
    let j = Tensor::arange(dim, options).unsqueeze(0);
    let raw = (&i * (0.37 + phase) + &j * 1.3 + &i * &j * 0.11 + phase).sin(); // [B, d]
    let norm = raw.norm_scalaropt_dim(2.0, [1_i64].as_slice(), true);
    raw / norm
}

#[derive(Clone, Copy, PartialEq)]
enum Loss {
    Siglip,
    Infonce { budget: u64 },
}

fn run(
    loss: Loss,
    counts: &[usize],
    kind: Kind,
    log_scale: f64,
    bias: f64,
    collective: &dyn Collective,
) -> Flat {
    let batch = counts.iter().sum::<usize>() as i64;
    let start = counts[..collective.rank()].iter().sum::<usize>() as i64;
    let rows = counts[collective.rank()] as i64;
    let share = |phase| embeddings(batch, 24, phase).narrow(0, start, rows).to_kind(kind);
    let (image, text) = (share(0.0), share(0.4));
    let inputs = Inputs { image: &image, text: &text, counts, log_scale, bias };
    let output = match loss {
        Loss::Siglip => siglip::ring(&inputs, siglip::Options { sub_chunk: 5 }, collective),
        Loss::Infonce { budget } => {
            infonce::all_gather(&inputs, infonce::Options { logits_budget: budget }, collective)
        }
    };
    Flat::of(&output.unwrap())
}

fn relative(actual: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut actual.iter().zip(expected).map(|(a, e)| a - e));
    difference / norm(&mut expected.iter().copied()).max(1e-300)
}

fn assert_equals_reference(loss: Loss, counts: &[usize], kind: Kind, log_scale: f64, bias: f64) {
    let batch = counts.iter().sum::<usize>() as i64;
    // The reference sees the inputs as the ranks do (rounded to f32 where they are) but computes in f64.
    let seen = |phase| embeddings(batch, 24, phase).to_kind(kind).to_kind(Kind::Double);
    let (image, text) = (seen(0.0), seen(0.4));
    let expected = Flat::of(&match loss {
        Loss::Siglip => reference::siglip(&image, &text, log_scale, bias),
        Loss::Infonce { .. } => reference::infonce(&image, &text, log_scale),
    });
    let ranks = match counts.len() {
        1 => vec![run(loss, counts, kind, log_scale, bias, &Solo::new())],
        w => with_ring(w, |ring| run(loss, counts, kind, log_scale, bias, ring)),
    };
    let tolerance = if kind == Kind::Double { 1e-10 } else { 1e-5 };
    let context = format!("counts {counts:?}, {kind:?}, t' {log_scale}");
    let gather = |part: fn(&Flat) -> &Vec<f64>| -> Vec<f64> {
        ranks.iter().flat_map(|rank| part(rank).iter().copied()).collect()
    };
    for rank in &ranks {
        assert!(relative(&[rank.loss], &[expected.loss]) < tolerance, "loss, {context}");
        let (actual, wanted) = (rank.grad_log_scale, expected.grad_log_scale);
        assert!(relative(&[actual], &[wanted]) < tolerance, "dt' {actual} {wanted}, {context}");
        let (actual, wanted) = (rank.grad_bias, expected.grad_bias);
        assert!(relative(&[actual], &[wanted]) < tolerance, "dβ {actual} {wanted}, {context}");
    }
    let grad_image = relative(&gather(|f| &f.grad_image), &expected.grad_image);
    assert!(grad_image < tolerance, "dX {grad_image:e}, {context}");
    let grad_text = relative(&gather(|f| &f.grad_text), &expected.grad_text);
    assert!(grad_text < tolerance, "dY {grad_text:e}, {context}");
}

const WORLDS: [&[usize]; 9] = [
    &[1],
    &[13],
    &[8, 8],
    &[11, 3],
    &[5, 0],
    &[6, 6, 6],
    &[1, 12, 7],
    &[4, 4, 4, 4],
    &[9, 0, 2, 6],
];

#[test]
fn siglip_ring_equals_the_dense_reference_for_even_uneven_and_empty_shards() {
    for counts in WORLDS {
        for kind in [Kind::Double, Kind::Float] {
            assert_equals_reference(Loss::Siglip, counts, kind, 10_f64.ln(), -10.0);
            assert_equals_reference(Loss::Siglip, counts, kind, 1.2, -0.7);
        }
    }
}

#[test]
fn infonce_equals_the_dense_reference_with_kept_and_with_recomputed_logits() {
    for counts in WORLDS {
        for kind in [Kind::Double, Kind::Float] {
            for budget in [0, 1 << 20] {
                let scale = (1.0_f64 / 0.07).ln();
                // One pair has loss 0: a relative error means nothing there.
                if counts.iter().sum::<usize>() > 1 {
                    assert_equals_reference(Loss::Infonce { budget }, counts, kind, scale, 0.0);
                }
            }
        }
    }
}

#[test]
fn both_losses_stay_exact_at_the_largest_logit_scale() {
    for loss in [Loss::Siglip, Loss::Infonce { budget: 0 }] {
        assert_equals_reference(loss, &[7, 9], Kind::Double, 100_f64.ln(), -10.0);
    }
}

#[test]
fn rows_that_do_not_match_the_counts_are_refused() {
    let (image, text) = (embeddings(4, 8, 0.0), embeddings(3, 8, 0.1));
    let inputs = Inputs { image: &image, text: &text, counts: &[4], log_scale: 1.0, bias: 0.0 };
    let error = siglip::ring(&inputs, siglip::Options { sub_chunk: 4 }, &Solo::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "text embeddings: expected [4, 8] of Double, got [3, 8] of Double"
    );
}
