//! Tests of the whole model: names, initial values, forward and gradients against
//! [`super::reference`].

use std::collections::BTreeMap;

use ringmaster_manifest::model_config::{
    ModelConfig, TextConfig, TextPool, VisionConfig, VisionPool,
};
use ringmaster_manifest::spec::Precision;
use tch::{Device, Kind, Tensor};

use super::params::Spec;
use super::reference::Reference;
use super::*;
use crate::rng::{Site, Stream};

const LOGITS: LogitInit = LogitInit { scale: 2.3, bias: Some(-10.0) };

fn tiny() -> ModelConfig {
    ModelConfig {
        embed_dim: 12,
        vision_cfg: VisionConfig {
            layers: 2,
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
        quick_gelu: false,
        custom_text: false,
        init_logit_scale: None,
        init_logit_bias: None,
    }
}

fn double(config: &ModelConfig) -> Clip {
    let clip =
        Clip::with_kinds(config, Kind::Double, Kind::Double, Device::Cpu, 5, LOGITS).unwrap();
    // Initial ones and zeros would hide mistakes in scales and biases.
    let mut stream = Stream::new(9, Site::Init, &[1]);
    for entry in clip.params().entries().to_vec() {
        if entry.tower != Tower::Head && entry.shape.len() == 1 {
            let values: Vec<f32> =
                (0..entry.len).map(|_| (0.3 * stream.normal() + 0.5) as f32).collect();
            clip.params().load(&entry.name, &entry.shape, &values).unwrap();
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
        ("one layer", |c| (c.vision_cfg.layers, c.text_cfg.layers) = (1, 1)),
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

/// The state-dict keys and shapes of OpenCLIP's ViT-B-32, by its own module structure.
fn vit_b_32() -> BTreeMap<String, Vec<i64>> {
    let mut keys = BTreeMap::from([
        ("logit_scale".to_owned(), vec![]),
        ("positional_embedding".to_owned(), vec![77, 512]),
        ("text_projection".to_owned(), vec![512, 512]),
        ("token_embedding.weight".to_owned(), vec![49_408, 512]),
        ("visual.class_embedding".to_owned(), vec![768]),
        ("visual.conv1.weight".to_owned(), vec![768, 3, 32, 32]),
        ("visual.positional_embedding".to_owned(), vec![50, 768]),
        ("visual.proj".to_owned(), vec![768, 512]),
    ]);
    for (norm, width) in [("ln_final", 512), ("visual.ln_pre", 768), ("visual.ln_post", 768)] {
        keys.insert(format!("{norm}.weight"), vec![width]);
        keys.insert(format!("{norm}.bias"), vec![width]);
    }
    for (prefix, w) in [("", 512), ("visual.", 768)] {
        for layer in 0..12 {
            for (name, shape) in [
                ("ln_1.weight", vec![w]),
                ("ln_1.bias", vec![w]),
                ("attn.in_proj_weight", vec![3 * w, w]),
                ("attn.in_proj_bias", vec![3 * w]),
                ("attn.out_proj.weight", vec![w, w]),
                ("attn.out_proj.bias", vec![w]),
                ("ln_2.weight", vec![w]),
                ("ln_2.bias", vec![w]),
                ("mlp.c_fc.weight", vec![4 * w, w]),
                ("mlp.c_fc.bias", vec![4 * w]),
                ("mlp.c_proj.weight", vec![w, 4 * w]),
                ("mlp.c_proj.bias", vec![w]),
            ] {
                keys.insert(format!("{prefix}transformer.resblocks.{layer}.{name}"), shape);
            }
        }
    }
    keys
}

fn vit_b_32_config() -> ModelConfig {
    serde_json::from_str(
        r#"{"embed_dim": 512,
            "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8,
                         "layers": 12}}"#,
    )
    .unwrap()
}

#[test]
fn names_and_shapes_are_those_of_open_clips_vit_b_32() {
    let logits = LogitInit { scale: 2.6593, bias: None };
    let specs = shapes::specs(&vit_b_32_config(), logits);
    let listed: BTreeMap<String, Vec<i64>> =
        specs.iter().map(|spec| (spec.name.clone(), spec.shape.clone())).collect();
    assert_eq!(listed, vit_b_32());
    assert_eq!(specs.len(), 302);
    // The number OpenCLIP's documentation gives for this model.
    let parameters: i64 = listed.values().map(|shape| shape.iter().product::<i64>()).sum();
    assert_eq!(parameters, 151_277_313);
}

#[test]
fn custom_text_moves_the_text_keys_and_nothing_else() {
    let mut config = tiny();
    let names = |config: &ModelConfig| -> Vec<String> {
        shapes::specs(config, LOGITS).into_iter().map(|spec| spec.name).collect()
    };
    let plain = names(&config);
    config.custom_text = true;
    for (plain, custom) in plain.iter().zip(names(&config)) {
        let moves = !plain.starts_with("visual.") && !plain.starts_with("logit_");
        assert_eq!(custom, if moves { format!("text.{plain}") } else { plain.clone() });
    }
}

#[test]
fn decay_skips_vectors_and_position_embeddings_only() {
    for Spec { name, shape, decay, .. } in shapes::specs(&tiny(), LOGITS) {
        let expected = shape.len() > 1 && !name.ends_with("positional_embedding");
        assert_eq!(decay, expected, "{name}");
    }
}

#[test]
fn the_flat_layout_is_aligned_grouped_and_without_overlap() {
    let clip = double(&tiny());
    let params = clip.params();
    let mut end = 0;
    let group = |entry: &Entry| (entry.tower, !entry.decay);
    for pair in params.entries().windows(2) {
        assert!(group(&pair[0]) <= group(&pair[1]));
    }
    for entry in params.entries() {
        assert_eq!(entry.offset, end);
        end = (entry.offset + entry.len).next_multiple_of(ALIGNMENT);
        let leaf = params.get(&entry.name).unwrap();
        assert_eq!(leaf.size(), entry.shape);
        assert!(leaf.requires_grad() && leaf.is_leaf());
        let address = leaf.data_ptr() as usize - params.flat().data_ptr() as usize;
        assert_eq!(address, entry.offset * 8); // f64
    }
    assert_eq!(params.flat().size(), [end as i64]);
    let towers = [Tower::Image, Tower::Text, Tower::Head].map(|tower| params.range(tower));
    assert_eq!((towers[0].start, towers[2].end), (0, end));
    assert!(towers.windows(2).all(|pair| pair[0].end == pair[1].start));
    let decay = params.decay_ranges();
    assert_eq!(
        decay.iter().map(|(_, decay)| *decay).collect::<Vec<_>>(),
        [true, false, true, false, false]
    );
    assert!(decay.windows(2).all(|pair| pair[0].0.end == pair[1].0.start));
    assert_eq!((decay[0].0.start, decay[4].0.end), (0, end));
}

#[test]
fn initial_values_depend_on_seed_and_name_not_on_order() {
    let build = |seed, reverse: bool| {
        let mut specs = shapes::specs(&tiny(), LOGITS);
        if reverse {
            specs.reverse();
        }
        Params::new(specs, Kind::Float, Device::Cpu, seed)
    };
    let (one, reversed, other) = (build(5, false), build(5, true), build(6, false));
    for entry in one.entries() {
        let value = |params: &Params| params.get(&entry.name).unwrap().detach();
        assert_eq!(value(&one), value(&reversed), "{}", entry.name);
    }
    assert_ne!(one.get("visual.proj"), other.get("visual.proj"));
    assert_ne!(
        one.get("visual.transformer.resblocks.0.mlp.c_fc.weight"),
        one.get("visual.transformer.resblocks.1.mlp.c_fc.weight")
    );
}

#[test]
fn initial_standard_deviations_are_open_clips() {
    let mut config = tiny();
    (config.vision_cfg.width, config.vision_cfg.head_width) = (192, 64);
    (config.text_cfg.width, config.text_cfg.layers) = (192, 3);
    (config.vision_cfg.image_size, config.text_cfg.vocab_size) = (32, 500);
    config.embed_dim = 160;
    let clip = Clip::new(&config, Precision::Fp32, Device::Cpu, 1, LOGITS).unwrap();
    let w: f64 = 192.0;
    let uniform = |bound: f64| bound / 3.0_f64.sqrt();
    let proj = w.powf(-0.5) * 6.0_f64.powf(-0.5);
    for (name, expected) in [
        ("visual.class_embedding", w.powf(-0.5)),
        ("visual.positional_embedding", w.powf(-0.5)),
        ("visual.proj", w.powf(-0.5)),
        ("visual.conv1.weight", uniform(48.0_f64.powf(-0.5))),
        ("visual.transformer.resblocks.1.attn.in_proj_weight", uniform((6.0 / (4.0 * w)).sqrt())),
        ("visual.transformer.resblocks.1.attn.out_proj.weight", uniform(w.powf(-0.5))),
        ("visual.transformer.resblocks.1.mlp.c_fc.weight", uniform(w.powf(-0.5))),
        ("visual.transformer.resblocks.1.mlp.c_fc.bias", uniform(w.powf(-0.5))),
        ("visual.transformer.resblocks.1.mlp.c_proj.weight", uniform((2.0 * w).powf(-0.5))),
        ("token_embedding.weight", 0.02),
        ("positional_embedding", 0.01),
        ("transformer.resblocks.2.attn.in_proj_weight", w.powf(-0.5)),
        ("transformer.resblocks.2.attn.out_proj.weight", proj),
        ("transformer.resblocks.2.mlp.c_fc.weight", (2.0 * w).powf(-0.5)),
        ("transformer.resblocks.2.mlp.c_proj.weight", proj),
        ("transformer.resblocks.2.mlp.c_proj.bias", uniform((4.0 * w).powf(-0.5))),
        ("text_projection", w.powf(-0.5)),
        ("visual.ln_pre.weight", 0.0),
        ("transformer.resblocks.0.attn.in_proj_bias", 0.0),
    ] {
        let value = clip.params().get(name).unwrap();
        let found = value.std(true).double_value(&[]);
        let tolerance = 4.0 * expected / (value.numel() as f64).sqrt();
        assert!((found - expected).abs() <= tolerance, "{name}: {found}, expected {expected}");
    }
    assert_eq!(
        clip.params().get("visual.ln_pre.weight").unwrap().mean(None).double_value(&[]),
        1.0
    );
    assert!((clip.logit_scale() - 2.3).abs() < 1e-6);
    assert_eq!(clip.logit_bias(), Some(-10.0));
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
    let error = clip.params().load("visual.proj", &[12, 16], &[0.0; 192]).unwrap_err();
    assert!(matches!(error, Error::ParameterShape { .. }), "{error}");
    assert!(clip.params().load("nothing", &[], &[0.0]).is_err());
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
        assert!(matches!(&error, Error::Config { field, .. } if *field == expected), "{error}");
    }
}
