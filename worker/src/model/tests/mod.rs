//! Tests of the whole model: forward and gradients against [`reference`].

mod reference;

use ringmaster_manifest::model_config::{
    Layers, ModelConfig, TextConfig, TextPool, VisionConfig, VisionPool,
};
use ringmaster_manifest::spec::Precision;
use tch::{Device, Kind, Tensor};

use self::reference::Reference;
use super::*;
use ringmaster_inputs::rng::{Site, Stream};

pub(super) const LOGITS: LogitInit = LogitInit { scale: 2.3, bias: Some(-10.0) };

pub(super) fn tiny() -> ModelConfig {
    ModelConfig {
        embed_dim: 12,
        vision_cfg: VisionConfig {
            layers: Layers::Blocks(2),
            width: 16,
            head_width: 8,
            mlp_ratio: 2.0,
            patch_size: 4,
            image_size: 13, // not a multiple: the rest is ignored, as a strided convolution does
            ..VisionConfig::default()
        },
        text_cfg: TextConfig {
            context_length: 9,
            vocab_size: 50,
            width: 24,
            heads: 3,
            layers: 2,
            ..TextConfig::default()
        },
        ..ModelConfig::default()
    }
}

/// Gives a parameter other values, in its own order.
pub(super) fn overwrite(clip: &Clip, name: &str, values: &[f32]) {
    let parameter = clip.params().get(name).unwrap();
    let values = Tensor::from_slice(values).view(parameter.size().as_slice());
    tch::no_grad(|| parameter.shallow_clone().copy_(&values));
}

pub(super) fn double(config: &ModelConfig) -> Clip {
    let clip =
        Clip::with_kinds(config, Kind::Double, Kind::Double, Device::Cpu, 5, LOGITS).unwrap();
    // Initial ones and zeros would hide mistakes in scales and biases.
    let mut stream = Stream::new(9, Site::Init, &[1]);
    for entry in clip.params().entries().to_vec() {
        if entry.tower != Tower::Head && entry.shape.len() == 1 {
            let values: Vec<f32> =
                (0..entry.len).map(|_| (0.3 * stream.normal() + 0.5) as f32).collect();
            overwrite(&clip, &entry.name, &values);
        }
    }
    clip
}

fn random(seed: u64, shape: &[i64], kind: Kind) -> Tensor {
    let mut stream = Stream::new(seed, Site::Init, &[2]);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| stream.normal()).collect();
    Tensor::from_slice(&values).view(shape).to_kind(kind)
}

/// Captions of many lengths: random ids, the end token 49, zeros.
fn captions(rows: i64, length: i64) -> Tensor {
    let mut stream = Stream::new(1, Site::Init, &[3]);
    let mut ids = Vec::new();
    for row in 0..rows {
        let end = 1 + (row * 3) % (length - 1);
        ids.extend((0..end).map(|_| 1 + stream.below(47) as i64));
        ids.push(49);
        ids.extend((end + 1..length).map(|_| 0));
    }
    Tensor::from_slice(&ids).view([rows, length])
}

fn greatest_difference(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

/// Compares outputs and every gradient with the reference.
fn assert_equals_reference(what: &str, clip: &Clip, mode: &Mode<'_>, batch: i64) {
    let config = clip.config();
    let reference = Reference { config, params: clip.params() };
    let size = config.vision_cfg.image_size;
    let images = random(7, &[batch, 3, size, size], Kind::Double);
    let tokens = captions(batch, config.text_cfg.context_length);
    let weight = random(8, &[batch, config.embed_dim], Kind::Double);
    let pairs = [
        (Tower::Image, clip.encode_image(&images, mode), reference.encode_image(&images, mode)),
        (Tower::Text, clip.encode_text(&tokens, mode), reference.encode_text(&tokens)),
    ];
    for (tower, got, expected) in pairs {
        let got = got.unwrap();
        assert_eq!(got.size(), [batch, config.embed_dim], "{what} {tower:?}");
        let difference = greatest_difference(&got, &expected);
        assert!(difference < 1e-10, "{what} {tower:?}: outputs differ by {difference}");
        clip.params().backward(tower, &(got * &weight).sum(Kind::Double), false).unwrap();
        let entries: Vec<&Entry> =
            clip.params().entries().iter().filter(|entry| entry.tower == tower).collect();
        let leaves: Vec<&Tensor> =
            entries.iter().map(|entry| clip.params().get(&entry.name).unwrap()).collect();
        let surrogate = (expected * &weight).sum(Kind::Double);
        let expected = Tensor::run_backward(&[surrogate], &leaves, false, false);
        for (entry, expected) in entries.iter().zip(expected) {
            let got = clip.params().grad().narrow(0, entry.offset as i64, entry.len as i64);
            let difference = greatest_difference(&got, &expected.reshape([-1]));
            let scale = expected.abs().max().double_value(&[]).max(1.0);
            let name = &entry.name;
            assert!(
                difference < 1e-10 * scale,
                "{what}: gradient of {name} differs by {difference}"
            );
            // Adding the same to a key's score everywhere changes nothing, so only in_proj_bias
            // has zeros; any gradient that is zero throughout would be a tensor left out.
            assert!(expected.abs().max().double_value(&[]) > 1e-12, "{what}: {name} is not used");
        }
    }
}

#[test]
fn outputs_and_gradients_equal_the_plain_computation() {
    let eval = Mode::Eval;
    assert_equals_reference("as configured", &double(&tiny()), &eval, 7);
    type Change = fn(&mut ModelConfig);
    let changes: [(&str, Change); 11] = [
        ("avg", |c| c.vision_cfg.pool_type = VisionPool::Avg),
        ("avg, final_ln_after_pool", |c| {
            c.vision_cfg.pool_type = VisionPool::Avg;
            c.vision_cfg.final_ln_after_pool = true;
        }),
        ("final_ln_after_pool", |c| c.vision_cfg.final_ln_after_pool = true),
        ("no_ln_pre", |c| c.vision_cfg.no_ln_pre = true),
        ("quick_gelu", |c| c.quick_gelu = true),
        ("custom_text", |c| c.custom_text = true),
        ("one layer", |c| (c.vision_cfg.layers, c.text_cfg.layers) = (Layers::Blocks(1), 1)),
        ("no_causal_mask", |c| c.text_cfg.no_causal_mask = true),
        ("last", |c| c.text_cfg.pool_type = TextPool::Last),
        ("first, no_causal_mask", |c| {
            c.text_cfg.pool_type = TextPool::First;
            c.text_cfg.no_causal_mask = true;
        }),
        ("long context", |c| c.text_cfg.context_length = 40),
    ];
    for (what, change) in changes {
        let mut config = tiny();
        change(&mut config);
        assert_equals_reference(what, &double(&config), &eval, 7);
    }
    assert_equals_reference("one row", &double(&tiny()), &eval, 1);
}

#[test]
fn with_dropped_patches_too() {
    let mut config = tiny();
    config.vision_cfg.patch_dropout = 0.5;
    let clip = double(&config);
    let train = train(&[9, 4, 6]);
    assert_equals_reference("patch_dropout", &clip, &train, 3);
    config.vision_cfg.pool_type = VisionPool::Avg;
    assert_equals_reference("patch_dropout, avg", &double(&config), &train, 3);
}

fn train(rows: &[u64]) -> Mode<'_> {
    Mode::Train { seed: 1, step: 2, rows }
}

#[test]
fn a_row_with_its_dropped_patches_does_not_depend_on_the_batch() {
    let mut config = tiny();
    config.vision_cfg.patch_dropout = 0.5;
    let clip = Clip::new(&config, Precision::Fp32, Device::Cpu, 5, LOGITS).unwrap();
    let _guard = tch::no_grad_guard();
    let images = random(7, &[6, 3, 13, 13], Kind::Float);
    let tokens = captions(6, 9);
    let all = train(&[10, 11, 12, 13, 14, 15]);
    let (image, text) =
        (clip.encode_image(&images, &all).unwrap(), clip.encode_text(&tokens, &all).unwrap());
    for row in 0..6 {
        let rows = [10 + row as u64];
        let image_alone = clip.encode_image(&images.narrow(0, row, 1), &train(&rows)).unwrap();
        let text_alone = clip.encode_text(&tokens.narrow(0, row, 1), &train(&rows)).unwrap();
        assert!(greatest_difference(&image_alone.select(0, 0), &image.select(0, row)) < 1e-5);
        assert!(greatest_difference(&text_alone.select(0, 0), &text.select(0, row)) < 1e-5);
    }
}

#[test]
fn two_runs_are_equal_bit_by_bit() {
    let mut config = tiny();
    config.vision_cfg.patch_dropout = 0.25;
    for precision in [Precision::Fp32, Precision::AmpBf16] {
        let run = || {
            let clip = Clip::new(&config, precision, Device::Cpu, 5, LOGITS).unwrap();
            let rows: Vec<u64> = (0..5).collect();
            let mode = Mode::Train { seed: 0, step: 3, rows: &rows };
            let image = clip.encode_image(&random(7, &[5, 3, 13, 13], Kind::Float), &mode).unwrap();
            let text = clip.encode_text(&captions(5, 9), &mode).unwrap();
            for (tower, embeddings) in [(Tower::Image, image), (Tower::Text, text)] {
                let surrogate =
                    normalize(&embeddings).square().sum(Kind::Float) + embeddings.sum(Kind::Float);
                clip.params().backward(tower, &surrogate, false).unwrap();
            }
            Vec::<f32>::try_from(clip.params().grad()).unwrap()
        };
        let (first, second) = (run(), run());
        assert!(first.iter().zip(&second).all(|(a, b)| a.to_bits() == b.to_bits()));
        assert!(first.iter().any(|value| *value != 0.0));
    }
}

#[test]
fn bf16_products_stay_close_to_f32_and_results_are_f32() {
    let build = |precision| Clip::new(&tiny(), precision, Device::Cpu, 5, LOGITS).unwrap();
    let (exact, rounded) = (build(Precision::Fp32), build(Precision::AmpBf16));
    let images = random(7, &[4, 3, 13, 13], Kind::Float);
    let tokens = captions(4, 9);
    let close = |a: &Tensor, b: &Tensor, what: &str| {
        let relative = (a - b).norm().double_value(&[]) / b.norm().double_value(&[]);
        assert!(relative > 0.0 && relative < 0.05, "{what}: {relative}");
    };
    for tower in [Tower::Image, Tower::Text] {
        let encode = |clip: &Clip| match tower {
            Tower::Image => clip.encode_image(&images, &Mode::Eval).unwrap(),
            _ => clip.encode_text(&tokens, &Mode::Eval).unwrap(),
        };
        let (a, b) = (encode(&rounded), encode(&exact));
        assert_eq!(a.kind(), Kind::Float);
        close(&a, &b, "embeddings");
        let weight = random(8, &a.size(), Kind::Float);
        rounded.params().backward(tower, &(a * &weight).sum(Kind::Float), false).unwrap();
        exact.params().backward(tower, &(b * &weight).sum(Kind::Float), false).unwrap();
        let range = exact.params().range(tower);
        let slice =
            |clip: &Clip| clip.params().grad().narrow(0, range.start as i64, range.len() as i64);
        close(&slice(&rounded), &slice(&exact), "gradients");
    }
}

#[test]
fn gradients_accumulate_and_gaps_stay_zero() {
    let clip = double(&tiny());
    let params = clip.params();
    let images = random(7, &[4, 3, 13, 13], Kind::Double);
    let tokens = captions(4, 9);
    let backward = |from: i64, rows: i64, accumulate: bool| {
        let image = clip.encode_image(&images.narrow(0, from, rows), &Mode::Eval).unwrap();
        let text = clip.encode_text(&tokens.narrow(0, from, rows), &Mode::Eval).unwrap();
        params.backward(Tower::Image, &image.square().sum(Kind::Double), accumulate).unwrap();
        params.backward(Tower::Text, &text.square().sum(Kind::Double), accumulate).unwrap();
    };
    backward(0, 4, false);
    let whole = params.grad().copy();
    backward(2, 1, false); // overwritten by the next
    backward(0, 3, false);
    backward(3, 1, true);
    assert!(greatest_difference(params.grad(), &whole) < 1e-10);
    let mut covered = vec![false; params.grad().numel()];
    for entry in params.entries() {
        covered[entry.offset..entry.offset + entry.len].fill(true);
    }
    for buffer in [params.flat(), params.grad()] {
        let values: Vec<f64> = buffer.try_into().unwrap();
        assert!(values.iter().zip(&covered).all(|(value, covered)| *covered || *value == 0.0));
    }
    assert!(covered.contains(&false));
}

#[test]
fn parameters_the_surrogate_does_not_reach_get_zero() {
    let clip = double(&tiny());
    let params = clip.params();
    let _ = params.grad().shallow_clone().fill_(1.0);
    let only = params.get("text_projection").unwrap().square().sum(Kind::Double);
    params.backward(Tower::Text, &only, false).unwrap();
    let range = params.range(Tower::Text);
    let text = params.grad().narrow(0, range.start as i64, range.len() as i64);
    let entry = params.entry("text_projection").unwrap();
    let of_entry: i64 = params
        .grad()
        .narrow(0, entry.offset as i64, entry.len as i64)
        .count_nonzero(None)
        .int64_value(&[]);
    assert_eq!(of_entry, entry.len as i64);
    let gaps: usize = range.len()
        - params.entries().iter().filter(|e| e.tower == Tower::Text).map(|e| e.len).sum::<usize>();
    assert_eq!(text.count_nonzero(None).int64_value(&[]), of_entry + gaps as i64);
}

#[test]
fn an_update_of_the_flat_buffer_is_an_update_of_the_model() {
    let clip = double(&tiny());
    let images = random(7, &[2, 3, 13, 13], Kind::Double);
    let before = clip.encode_image(&images, &Mode::Eval).unwrap();
    let entry = clip.params().entry("visual.proj").unwrap();
    let mut slice = clip.params().flat().narrow(0, entry.offset as i64, entry.len as i64);
    let _ = slice.g_mul_scalar_(2.0);
    let after = clip.encode_image(&images, &Mode::Eval).unwrap();
    assert!(greatest_difference(&(before * 2.0), &after) < 1e-12);
    assert!(after.requires_grad());
}

#[test]
fn normalize_divides_by_the_norm_but_never_by_zero() {
    let x = Tensor::from_slice(&[3.0_f32, 4.0, 0.0, 0.0]).view([2, 2]);
    let rows: Vec<f32> = normalize(&x).flatten(0, 1).try_into().unwrap();
    assert_eq!(rows, [0.6, 0.8, 0.0, 0.0]);
}

#[test]
fn wrong_inputs_are_refused_by_name() {
    let clip = Clip::new(&tiny(), Precision::Fp32, Device::Cpu, 5, LOGITS).unwrap();
    let images = Tensor::zeros([2, 3, 12, 12], (Kind::Float, Device::Cpu));
    let error = clip.encode_image(&images, &Mode::Eval).unwrap_err();
    assert_eq!(error.to_string(), "images has shape [2, 3, 12, 12], expected [N, 3, 13, 13]");
    let tokens = Tensor::from_slice(&[0_i64, 1, 2, 3, 50, 0, 0, 0, 0]).view([1, 9]);
    let error = clip.encode_text(&tokens, &Mode::Eval).unwrap_err();
    assert!(matches!(error, Error::Token { row: 0, position: 4, id: 50, vocab_size: 50 }));
}

#[test]
fn configurations_that_describe_no_model_are_refused() {
    type Change = fn(&mut ModelConfig);
    let changes: [(&str, Change); 5] = [
        ("vision_cfg.head_width", |c| c.vision_cfg.head_width = 5),
        ("text_cfg.heads", |c| c.text_cfg.heads = 5),
        ("vision_cfg.patch_size", |c| c.vision_cfg.patch_size = 14),
        ("vision_cfg.patch_dropout", |c| c.vision_cfg.patch_dropout = 1.0),
        ("text_cfg.layers", |c| c.text_cfg.layers = 0),
    ];
    for (expected, change) in changes {
        let mut config = tiny();
        change(&mut config);
        let error = Clip::new(&config, Precision::Fp32, Device::Cpu, 5, LOGITS).unwrap_err();
        assert!(matches!(&error, Error::Config { reason } if reason.contains(expected)), "{error}");
    }
}
