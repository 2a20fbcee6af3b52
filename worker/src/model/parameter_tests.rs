//! Tests of the model's parameters: names, shapes, layout and initial values.

use std::collections::{BTreeMap, BTreeSet};

use ringmaster_manifest::model_config::ModelConfig;
use ringmaster_manifest::spec::Precision;
use sha2::Digest as _;
use tch::{Device, Kind};

use super::clip::specs;
use super::init::Init;
use super::params::Spec;
use super::tests::{LOGITS, double, tiny};
use super::*;

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
    let specs = specs(&vit_b_32_config(), logits).unwrap();
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
        specs(config, LOGITS).unwrap().into_iter().map(|spec| spec.name).collect()
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
    for Spec { name, shape, decay, .. } in specs(&tiny(), LOGITS).unwrap() {
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
        let mut specs = specs(&tiny(), LOGITS).unwrap();
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

/// What `tests/parity/model_shapes.py` writes of a model.
#[derive(serde::Deserialize)]
struct Shapes {
    image: i64,
    text: i64,
    digest: String,
}

fn digest(specs: &[Spec]) -> String {
    let mut lines: Vec<String> =
        specs.iter().map(|spec| format!("{} {:?}", spec.name, spec.shape)).collect();
    lines.sort();
    hex::encode(sha2::Sha256::digest(lines.join("\n")))
}

#[test]
fn every_named_model_has_open_clips_names_shapes_and_number_of_parameters() {
    let golden = include_str!("../../../tests/parity/golden/shapes-of-models.json");
    let golden: BTreeMap<String, Shapes> = serde_json::from_str(golden).unwrap();
    let catalogue = ringmaster_manifest::ModelCatalogue::builtin();
    let ours: BTreeSet<&str> = catalogue.names().filter(|name| *name != "emoji-vit").collect();
    assert_eq!(ours, golden.keys().map(String::as_str).collect());
    for (name, expected) in &golden {
        let config = catalogue.get(name).unwrap();
        let logits = LogitInit { scale: 0.0, bias: config.init_logit_bias };
        let specs = specs(config, logits).unwrap();
        assert_eq!(digest(&specs), expected.digest, "{name}");
        assert_eq!(config.image_size().parameters, expected.image, "{name}: image");
        assert_eq!(config.text_size().parameters, expected.text, "{name}: text");
        let counted = Clip::count_parameters(config).unwrap() as i64;
        let bias = i64::from(config.init_logit_bias.is_none());
        assert_eq!(counted, config.parameters() + bias, "{name}");
    }
}

#[test]
fn the_row_of_padding_starts_at_zero_and_truncated_draws_stay_near() {
    let table = Init::NormalWithZeroRow { deviation: 0.02, row: 1, width: 4 };
    let values = table.values(0, "table", 12);
    assert_eq!(values[4..8], [0.0; 4]);
    assert!(values[..4].iter().chain(&values[8..]).all(|value| *value != 0.0));
    let values = Init::TruncatedNormal(0.5).values(0, "latent", 4000);
    assert!(values.iter().all(|value| value.abs() <= 1.0));
    // Of a normal cut off at two deviations the deviation is 0.88 of what it was.
    let square: f32 = values.iter().map(|value| value * value).sum::<f32>() / 4000.0;
    assert!((square.sqrt() - 0.44).abs() < 0.02, "{}", square.sqrt());
}

#[test]
fn paths_are_kept_by_row_and_block_and_make_up_for_those_that_are_not() {
    let kept =
        |rows: &[u64], block, rate| Mode::Train { seed: 1, step: 2, rows }.kept_paths(block, rate);
    let rows: Vec<u64> = (0..4000).collect();
    let factors = kept(&rows, 3, 0.25).unwrap();
    assert!(factors.iter().all(|factor| *factor == 0.0 || *factor == 1.0 / 0.75));
    let dropped = factors.iter().filter(|factor| **factor == 0.0).count();
    assert!((900..1100).contains(&dropped), "{dropped} of 4000");
    assert_eq!(kept(&rows[7..9], 3, 0.25).unwrap(), factors[7..9], "whatever the batch");
    assert_ne!(kept(&rows, 4, 0.25).unwrap(), factors, "another block draws anew");
    assert!(kept(&rows, 3, 0.0).is_none() && Mode::Eval.kept_paths(3, 0.25).is_none());
}
