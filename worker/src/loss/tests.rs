//! Both losses, over real sockets, against the dense f64 autograd reference.
#![allow(clippy::unwrap_used)]

use tch::{Device, Kind, Tensor};

use super::{Inputs, Output, Positives, Tiling, infonce, reference, siglip};
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

/// A way to compute a loss.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Loss {
    Siglip { group: usize },
    Gathered { budget: u64 },
    Travelling { group: usize },
}

/// Sizes that divide nothing, so that every kind of rest occurs.
const TILING: Tiling = Tiling { sub_chunk: 5, image_rows: 4 };
const DIM: i64 = 24;

fn compute(loss: Loss, inputs: &Inputs<'_>, collective: &dyn Collective) -> Output {
    let infonce = |logits_budget, group| infonce::Options { tiling: TILING, logits_budget, group };
    let output = match loss {
        Loss::Siglip { group } => {
            siglip::ring(inputs, siglip::Options { tiling: TILING, group }, collective)
        }
        Loss::Gathered { budget } => infonce::all_gather(inputs, infonce(budget, 1), collective),
        Loss::Travelling { group } => infonce::ring(inputs, infonce(0, group), collective),
    };
    output.unwrap()
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
    let share = |phase| embeddings(batch, DIM, phase).narrow(0, start, rows).to_kind(kind);
    let (image, text) = (share(0.0), share(0.4));
    let inputs = Inputs::pairs(&image, &text, counts).with_logits(log_scale, bias);
    Flat::of(&compute(loss, &inputs, collective))
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
    let seen = |phase| embeddings(batch, DIM, phase).to_kind(kind).to_kind(Kind::Double);
    let (image, text) = (seen(0.0), seen(0.4));
    let expected = Flat::of(&match loss {
        Loss::Siglip { .. } => reference::siglip(&image, &text, log_scale, bias),
        _ => reference::infonce(&image, &text, log_scale),
    });
    let ranks = on_ranks(counts.len(), |c| run(loss, counts, kind, log_scale, bias, c));
    let context = format!("{loss:?}, counts {counts:?}, {kind:?}, t' {log_scale}");
    assert_flat(&ranks, &expected, if kind == Kind::Double { 1e-10 } else { 1e-5 }, &context);
}

fn on_ranks(world_size: usize, run: impl Fn(&dyn Collective) -> Flat + Sync) -> Vec<Flat> {
    match world_size {
        1 => vec![run(&Solo::new())],
        _ => with_ring(world_size, run),
    }
}

fn assert_flat(ranks: &[Flat], expected: &Flat, tolerance: f64, context: &str) {
    let gather = |part: fn(&Flat) -> &Vec<f64>| -> Vec<f64> {
        ranks.iter().flat_map(|rank| part(rank).iter().copied()).collect()
    };
    for rank in ranks {
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
            let loss = Loss::Siglip { group: 1 };
            assert_equals_reference(loss, counts, kind, 10_f64.ln(), -10.0);
            assert_equals_reference(loss, counts, kind, 1.2, -0.7);
        }
    }
}

#[test]
fn infonce_equals_the_dense_reference_kept_recomputed_and_travelling() {
    let ways = [
        Loss::Gathered { budget: 0 },
        Loss::Gathered { budget: 1 << 20 },
        Loss::Travelling { group: 1 },
    ];
    for counts in WORLDS {
        for kind in [Kind::Double, Kind::Float] {
            for loss in ways {
                // One pair has loss 0: a relative error means nothing there.
                if counts.iter().sum::<usize>() > 1 {
                    assert_equals_reference(loss, counts, kind, (1.0_f64 / 0.07).ln(), 0.0);
                }
            }
        }
    }
}

#[test]
fn rings_over_groups_equal_the_dense_reference_as_the_flat_ring_does() {
    let worlds: [(&[usize], usize); 7] = [
        (&[4, 4, 4, 4], 2),
        (&[9, 0, 2, 6], 2),
        (&[9, 0, 2, 6], 4),
        (&[3, 7, 1, 6, 2, 5], 2),
        (&[3, 7, 1, 6, 2, 5], 3),
        (&[6; 6], 6),
        (&[11, 3], 2),
    ];
    for (counts, group) in worlds {
        for kind in [Kind::Double, Kind::Float] {
            assert_equals_reference(Loss::Siglip { group }, counts, kind, 10_f64.ln(), -10.0);
            assert_equals_reference(Loss::Travelling { group }, counts, kind, 2.6, 0.0);
        }
    }
}

#[test]
fn a_group_that_does_not_divide_the_ranks_is_refused() {
    let (image, text) = (embeddings(4, 8, 0.0), embeddings(4, 8, 0.1));
    let inputs = Inputs::pairs(&image, &text, &[4]);
    let options = siglip::Options { tiling: TILING, group: 2 };
    let error = siglip::ring(&inputs, options, &Solo::new()).unwrap_err();
    assert_eq!(error.to_string(), "groups of 2 ranks do not divide 1 ranks");
}

const EVERY_LOSS: [Loss; 4] = [
    Loss::Siglip { group: 1 },
    Loss::Gathered { budget: 0 },
    Loss::Gathered { budget: 1 << 20 },
    Loss::Travelling { group: 1 },
];

#[test]
fn every_loss_stays_exact_at_the_largest_logit_scale() {
    for loss in EVERY_LOSS {
        for kind in [Kind::Double, Kind::Float] {
            assert_equals_reference(loss, &[7, 9], kind, 100_f64.ln(), -10.0);
        }
    }
}

/// Softmax at a scale where nearly identical rows compete: exp overflows f32 without the maximum.
#[test]
fn nearly_identical_rows_at_the_largest_scale_stay_finite_and_exact() {
    let rows = |phase: f64| {
        let noise = embeddings(16, DIM, phase) * 1e-3;
        let raw = embeddings(1, DIM, 0.7) + noise;
        &raw / raw.norm_scalaropt_dim(2.0, [1_i64].as_slice(), true)
    };
    let (image, text) = (rows(0.0), rows(0.3));
    for loss in EVERY_LOSS {
        let log_scale = 100_f64.ln();
        let (f32_image, f32_text) = (image.to_kind(Kind::Float), text.to_kind(Kind::Float));
        let seen = |t: &Tensor| t.to_kind(Kind::Double);
        let expected = match loss {
            Loss::Siglip { .. } => {
                reference::siglip(&seen(&f32_image), &seen(&f32_text), log_scale, -10.0)
            }
            _ => reference::infonce(&seen(&f32_image), &seen(&f32_text), log_scale),
        };
        let inputs = Inputs::pairs(&f32_image, &f32_text, &[16]).with_logits(log_scale, -10.0);
        let ours = compute(loss, &inputs, &Solo::new());
        assert!(relative(&[ours.loss], &[expected.loss]) < 1e-5, "{loss:?} {}", ours.loss);
        // The gradients are differences of nearly equal numbers of size t: absolute, in units of t.
        for (ours, wanted) in
            [(&ours.grad_image, &expected.grad_image), (&ours.grad_text, &expected.grad_text)]
        {
            let error = (ours.to_kind(Kind::Double) - wanted).abs().max().double_value(&[]);
            assert!(error < 1e-5 * 100.0 / 16.0, "{loss:?} {error:e}");
        }
    }
}

#[test]
fn bf16_embeddings_are_multiplied_and_summed_in_f32() {
    let counts: &[usize] = &[11, 6, 7];
    for loss in EVERY_LOSS {
        // The reference sees the same rounded embeddings, in f64.
        let seen = |phase| embeddings(24, DIM, phase).to_kind(Kind::BFloat16).to_kind(Kind::Double);
        let (image, text) = (seen(0.0), seen(0.4));
        let expected = Flat::of(&match loss {
            Loss::Siglip { .. } => reference::siglip(&image, &text, 2.0, -3.0),
            _ => reference::infonce(&image, &text, 2.0),
        });
        let ranks = on_ranks(3, |c| run(loss, counts, Kind::BFloat16, 2.0, -3.0, c));
        assert_flat(&ranks, &expected, 1e-5, &format!("{loss:?} bf16"));
    }
}

/// Two captions for most images, captions shared by images, and rows that nothing belongs to.
#[test]
fn labelled_positives_equal_the_dense_reference_with_unequal_numbers_of_images_and_texts() {
    let image_labels: [i64; 8] = [5, 7, 5, 9, 11, 2, 3, 7];
    let text_labels: [i64; 12] = [7, 7, 5, 9, 9, 1, 11, 2, 3, 5, 5, 40];
    let cases: [(&[usize], &[usize], usize); 4] = [
        (&[8], &[12], 1),
        (&[5, 3], &[4, 8], 1),
        (&[2, 0, 6], &[7, 4, 1], 1),
        (&[1, 2, 2, 3], &[3, 3, 6, 0], 2),
    ];
    for (image_counts, text_counts, group) in cases {
        for kind in [Kind::Double, Kind::Float] {
            let seen = |n, phase| embeddings(n, DIM, phase).to_kind(kind).to_kind(Kind::Double);
            let positives = reference::same_labels(
                &Tensor::from_slice(&image_labels),
                &Tensor::from_slice(&text_labels),
            );
            let expected =
                Flat::of(&reference::sigmoid(&seen(8, 0.0), &seen(12, 0.4), &positives, 2.0, -3.0));
            let ranks = on_ranks(image_counts.len(), |collective| {
                let rank = collective.rank();
                let rows = |counts: &[usize]| {
                    let start = counts[..rank].iter().sum::<usize>();
                    start..start + counts[rank]
                };
                let (images, texts) = (rows(image_counts), rows(text_counts));
                let share = |n, phase, rows: &std::ops::Range<usize>| {
                    embeddings(n, DIM, phase).narrow(0, rows.start as i64, rows.len() as i64)
                };
                let inputs = Inputs {
                    image: &share(8, 0.0, &images).to_kind(kind),
                    text: &share(12, 0.4, &texts).to_kind(kind),
                    image_counts,
                    text_counts,
                    positives: Positives::Labels {
                        image: &Tensor::from_slice(&image_labels[images]),
                        text: &Tensor::from_slice(&text_labels[texts]),
                    },
                    log_scale: 2.0,
                    bias: -3.0,
                };
                Flat::of(&compute(Loss::Siglip { group }, &inputs, collective))
            });
            let tolerance = if kind == Kind::Double { 1e-10 } else { 1e-5 };
            assert_flat(&ranks, &expected, tolerance, &format!("labels {image_counts:?} {kind:?}"));
        }
    }
}

#[test]
fn infonce_refuses_labels_and_unpaired_texts() {
    let (image, text) = (embeddings(4, 8, 0.0), embeddings(4, 8, 0.1));
    let labels = Tensor::from_slice(&[1_i64, 2, 3, 4]);
    let mut inputs = Inputs::pairs(&image, &text, &[4]);
    inputs.positives = Positives::Labels { image: &labels, text: &labels };
    let options = infonce::Options { tiling: TILING, logits_budget: 0, group: 1 };
    for way in [infonce::all_gather, infonce::ring] {
        let error = way(&inputs, options, &Solo::new()).unwrap_err();
        assert!(error.to_string().contains("one positive per row"), "{error}");
    }
    let short = text.narrow(0, 0, 3);
    let unpaired = Inputs { text: &short, text_counts: &[3], ..Inputs::pairs(&image, &text, &[4]) };
    let error = infonce::ring(&unpaired, options, &Solo::new()).unwrap_err();
    assert_eq!(error.to_string(), "text counts: expected [4], as many as images, got [3]");
}

#[test]
fn the_result_does_not_depend_on_the_tiling_beyond_rounding() {
    let (image, text) = (embeddings(37, DIM, 0.0), embeddings(37, DIM, 0.4));
    let inputs = Inputs::pairs(&image, &text, &[37]).with_logits(2.0, -3.0);
    let ring = |sub_chunk, image_rows| {
        let options = siglip::Options { tiling: Tiling { sub_chunk, image_rows }, group: 1 };
        Flat::of(&siglip::ring(&inputs, options, &Solo::new()).unwrap())
    };
    let whole = ring(64, 64);
    for (sub_chunk, image_rows) in [(1, 1), (3, 50), (37, 8), (16, 16)] {
        assert_flat(&[ring(sub_chunk, image_rows)], &whole, 1e-12, "tiling");
    }
}

#[test]
fn rows_that_do_not_match_the_counts_are_refused() {
    let (image, text) = (embeddings(4, 8, 0.0), embeddings(3, 8, 0.1));
    let inputs = Inputs::pairs(&image, &text, &[4]);
    let options = siglip::Options { tiling: TILING, group: 1 };
    let error = siglip::ring(&inputs, options, &Solo::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "text embeddings: expected [4, 8] of Double, got [3, 8] of Double"
    );
}
