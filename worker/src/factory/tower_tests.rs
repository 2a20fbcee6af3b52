//! Towers by themselves, from every layout they come in.

use std::path::Path;

use ringmaster_manifest::model_config::ModelConfig;
use ringmaster_weights::Weights;
use tch::Tensor;

use super::load::Named;
use super::tests::{golden, loaded, model};
use super::*;
use crate::model::Tower;

/// Saves tensors under the names that `rename` gives, those it gives.
fn file(folder: &Path, named: &Named, rename: impl Fn(&str) -> Option<String>) -> Weights {
    let renamed = named.iter().filter_map(|(name, tensor)| {
        let shape: Vec<i64> = tensor.shape().iter().map(|size| *size as i64).collect();
        rename(name).map(|name| (name, export::Stored::f32(&shape, &tensor.to_f32())))
    });
    let path = folder.join("tower.safetensors");
    export::save(&path, &renamed.collect()).unwrap();
    Weights::open(&path).unwrap()
}

/// A model of this configuration as it is drawn.
fn drawn(config: &ModelConfig) -> Clip {
    super::drawn(config, &Options::default()).unwrap().0
}

fn value(clip: &Clip, name: &str) -> Tensor {
    clip.params().get(name).unwrap().copy()
}

fn assert_same(a: &Clip, b: &Clip, tower: Tower, but: &str) {
    for entry in a.params().entries().iter().filter(|entry| entry.tower == tower) {
        let same = value(a, &entry.name) == value(b, &entry.name);
        assert_eq!(same, !entry.name.starts_with(but), "{}", entry.name);
    }
}

#[test]
fn an_image_tower_is_taken_from_a_model_a_tower_and_timms_own_file() {
    let (_, config, named) = model("timm-vit-token");
    let (whole, _) = loaded(&config, &named);
    let folder = tempfile::tempdir().unwrap();
    let own = |name: &str| name.strip_prefix("visual.").map(str::to_owned);
    let timms = |name: &str| {
        let classifier = name.strip_prefix("visual.head.proj.").map(|kind| format!("head.{kind}"));
        classifier.or_else(|| name.strip_prefix("visual.trunk.").map(str::to_owned))
    };
    let before = drawn(&config);
    for (what, but, file) in [
        ("whole", "nothing", file(folder.path(), &named, |name| Some(name.to_owned()))),
        ("tower", "nothing", file(folder.path(), &named, own)),
        ("timm", "visual.head.", file(folder.path(), &named, timms)),
    ] {
        let clip = drawn(&config);
        let notes = tower::from_file(&clip, Tower::Image, &file).unwrap();
        assert_same(&clip, &whole, Tower::Image, but);
        assert_same(&clip, &before, Tower::Text, "nothing");
        assert_eq!(notes.len(), if what == "timm" { 2 } else { 0 }, "{what}: {notes:?}");
    }
}

#[test]
fn googles_vision_transformer_starts_an_image_tower() {
    let json = r#"{"embed_dim": 12, "vision_cfg": {"timm_model_name": "vit_base_patch16_224",
        "image_size": 42, "timm_model_kwargs": {"embed_dim": 8, "depth": 2, "num_heads": 2,
        "mlp_ratio": 1.5, "patch_size": 14}, "timm_pool": "token"},
        "text_cfg": {"context_length": 7, "vocab_size": 40, "width": 16, "heads": 2, "layers": 1}}"#;
    let clip = drawn(&ModelConfig::from_json(json).unwrap());
    let file = Weights::open(&golden("weights-augreg.npz")).unwrap();
    let notes = tower::from_file(&clip, Tower::Image, &file).unwrap();
    let resized = "visual.trunk.pos_embed was resized from [1, 5, 8] to [1, 10, 8]";
    assert_eq!(notes, ["visual.head.proj.weight is missing and stays", resized]);
    let expected = Weights::open(&golden("weights-augreg.safetensors")).unwrap();
    for (name, tensor) in expected.tensors().iter().filter(|(name, _)| *name != "pos_embed") {
        let got = value(&clip, &format!("visual.trunk.{name}"));
        assert_eq!(Vec::<f32>::try_from(got.view([-1])).unwrap(), tensor.to_f32(), "{name}");
    }
}

#[test]
fn a_text_tower_is_taken_from_a_model_and_from_transformers() {
    let (_, config, named) = model("roberta-mean-mlp");
    let (whole, _) = loaded(&config, &named);
    let folder = tempfile::tempdir().unwrap();
    let theirs = |prefix: &'static str| {
        move |name: &str| match name {
            // The head of another task, which no tower has.
            "logit_scale" => Some("lm_head.bias".to_owned()),
            name => name.strip_prefix("text.transformer.").map(|name| format!("{prefix}{name}")),
        }
    };
    let before = drawn(&config);
    for (but, notes, file) in [
        ("nothing", 0, file(folder.path(), &named, |name| Some(name.to_owned()))),
        ("text.proj.", 2, file(folder.path(), &named, theirs("roberta."))),
        ("text.proj.", 2, file(folder.path(), &named, theirs(""))),
    ] {
        let clip = drawn(&config);
        let said = tower::from_file(&clip, Tower::Text, &file).unwrap();
        assert_same(&clip, &whole, Tower::Text, but);
        assert_same(&clip, &before, Tower::Image, "nothing");
        assert_eq!(said.len(), notes, "{said:?}");
    }

    let (_, config, named) = model("clip-tok");
    let (whole, _) = loaded(&config, &named);
    let clip = drawn(&ModelConfig { custom_text: true, ..config.clone() });
    let file = file(folder.path(), &named, |name| Some(name.to_owned()));
    tower::from_file(&clip, Tower::Text, &file).unwrap();
    assert_eq!(value(&clip, "text.ln_final.weight"), value(&whole, "ln_final.weight"));
}

#[test]
fn the_weights_of_another_tower_are_refused_with_names_and_change_nothing() {
    let (_, config, _) = model("timm-vit-token");
    let (_, _, other) = model("siglip");
    let folder = tempfile::tempdir().unwrap();
    let file = file(folder.path(), &other, |name| Some(name.to_owned()));
    let clip = drawn(&config);
    let error = tower::from_file(&clip, Tower::Image, &file).unwrap_err().to_string();
    for part in ["1 missing: visual.trunk.cls_token", "unexpected: visual.trunk.attn_pool."] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(clip.params().flat(), drawn(&config).params().flat());
}

#[test]
fn a_hugging_face_tower_begins_with_its_repository_unless_told_otherwise() {
    let (_, mut config, _) = model("roberta-mean-mlp");
    let wanted = |config: &ModelConfig, options: &Options, whole| {
        let text = options.pretrained_text.as_deref();
        let wanted = tower::wanted(config, options.pretrained_image.as_deref(), text, whole);
        wanted.into_iter().map(|(_, given)| given).collect::<Vec<_>>()
    };
    let plain = Options::default();
    assert!(wanted(&config, &plain, false).is_empty(), "its numbers are its own");
    config.text_cfg.hf_model_config = None;
    assert_eq!(wanted(&config, &plain, false), ["hf-hub:roberta-base"]);
    assert!(wanted(&config, &plain, true).is_empty(), "a whole model's weights hold it");
    let none = Options { pretrained_text: Some("none".to_owned()), ..Options::default() };
    assert!(wanted(&config, &none, false).is_empty());
    let given = Options { pretrained_text: Some("a.pt".to_owned()), ..Options::default() };
    assert_eq!(wanted(&config, &given, true), ["a.pt"]);
    config.text_cfg.hf_model_pretrained = false;
    assert!(wanted(&config, &plain, false).is_empty());
}
