//! Models from files and back, with what open_clip wrote (`tests/parity/*_golden.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ringmaster_manifest::model_config::{ModelConfig, PreprocessCfg};
use ringmaster_weights::Weights;
use tch::{Kind, Tensor};

use super::export::{Layout, export};
use super::load::{Misfit, Named};
use super::loadable::Loadable;
use super::*;
use crate::model::Mode;

pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/golden").join(name)
}

fn tensor(weights: &Weights, name: &str) -> Tensor {
    let tensor = weights.get(name).unwrap();
    let shape: Vec<i64> = tensor.shape().iter().map(|size| *size as i64).collect();
    Tensor::from_slice(&tensor.to_f32()).view(shape.as_slice())
}

/// A golden model: its file, its configuration and its parameters.
pub(super) fn model(name: &str) -> (Weights, ModelConfig, Named) {
    let weights = Weights::open(&golden(&format!("model-{name}.safetensors"))).unwrap();
    let config = ModelConfig::from_json(&weights.metadata()["config"]).unwrap();
    let parameters = weights.tensors().iter().filter_map(|(name, tensor)| {
        name.strip_prefix("param.").map(|name| (name.to_owned(), tensor.clone()))
    });
    let parameters = parameters.collect();
    (weights, config, parameters)
}

pub(super) fn loaded(config: &ModelConfig, named: &Named) -> (Clip, Vec<String>) {
    let clip = blank(config, &Options::default()).unwrap();
    let notes =
        load::load(&clip, named, MissingBias::Zero).unwrap_or_else(|misfit| panic!("{misfit}"));
    (clip, notes)
}

fn misfit(config: &ModelConfig, named: &Named) -> Misfit {
    load::load(&blank(config, &Options::default()).unwrap(), named, MissingBias::Zero).unwrap_err()
}

fn assert_near(got: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(got.size(), expected.size(), "{what}");
    let difference = (got - expected).norm().double_value(&[]);
    assert!(difference <= 1e-5 * expected.norm().double_value(&[]), "{what}: {difference}");
}

#[test]
fn a_folder_that_was_exported_is_the_same_model_again() {
    for name in ["clip-tok", "siglip", "resnet", "roberta-mean-mlp", "convnext-mlp", "clipa"] {
        let (weights, config, named) = model(name);
        let (clip, notes) = loaded(&config, &named);
        assert!(notes.is_empty(), "{name}: {notes:?}");
        let folder = tempfile::tempdir().unwrap();
        let preprocess =
            PreprocessCfg { size: config.vision_cfg.image_size as u32, ..PreprocessCfg::default() };
        export(&clip, &preprocess, Layout::OpenClip, folder.path()).unwrap();
        let place = format!("local-dir:{}", folder.path().display());
        let again = create_model_and_transforms(&place, None, &Options::default()).unwrap();
        assert_eq!(again.clip.config(), &config, "{name}");
        assert_eq!(again.preprocess, preprocess);
        assert_eq!(again.clip.params().flat(), clip.params().flat(), "{name}: bit for bit");
        let image = again.clip.encode_image(&tensor(&weights, "images"), &Mode::Eval).unwrap();
        assert_near(&image, &tensor(&weights, "image"), name);
    }
}

/// Writes a model as transformers writes large ones: two parts and an index.
fn write_parts(folder: &Path, config: &ModelConfig, named: &Named) {
    let json = serde_json::json!({"model_cfg": config.to_json()});
    std::fs::write(folder.join("open_clip_config.json"), json.to_string()).unwrap();
    let (mut map, mut parts) = (serde_json::Map::new(), [Named::new(), Named::new()]);
    for (number, (name, tensor)) in named.iter().enumerate() {
        map.insert(name.clone(), PARTS[number % 2].into());
        parts[number % 2].insert(name.clone(), tensor.clone());
    }
    for (file, tensors) in PARTS.iter().zip(parts) {
        let stored = tensors.iter().map(|(name, tensor)| {
            let shape: Vec<i64> = tensor.shape().iter().map(|size| *size as i64).collect();
            (name.clone(), export::Stored::f32(&shape, &tensor.to_f32()))
        });
        export::save(&folder.join(file), &stored.collect()).unwrap();
    }
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

const PARTS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// "43 missing": the first part was taken for the whole.
#[test]
fn a_model_in_parts_is_loaded_from_its_folder_and_from_its_index() {
    let (_, config, named) = model("clip-tok");
    let (clip, _) = loaded(&config, &named);
    let folder = tempfile::tempdir().unwrap();
    write_parts(folder.path(), &config, &named);
    let place = format!("local-dir:{}", folder.path().display());
    let index = folder.path().join("model.safetensors.index.json");
    for pretrained in [None, Some(index.to_str().unwrap()), Some(folder.path().to_str().unwrap())] {
        let again = create_model_and_transforms(&place, pretrained, &Options::default()).unwrap();
        assert_eq!(again.clip.params().flat(), clip.params().flat(), "{pretrained:?}");
        let note = &again.notes[0];
        assert!(note.ends_with("model.safetensors.index.json says 1"), "{note}");
    }
    let part = folder.path().join(PARTS[0]);
    let error =
        create_model_and_transforms(&place, Some(part.to_str().unwrap()), &Options::default());
    let text = error.unwrap_err().to_string();
    assert!(text.contains("the file is one of 2 parts; name "), "{text}");
    assert!(text.contains("model.safetensors.index.json or its folder for all of them"), "{text}");
}

#[test]
fn what_is_missing_because_it_is_stored_in_another_form_is_said_to_be() {
    let (_, config, named) = model("clip-tok");
    let file = tempfile::NamedTempFile::new().unwrap();
    let header = r#"{"visual.proj":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}"#;
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
    std::fs::write(file.path(), bytes).unwrap();
    let mut short = named;
    short.remove("visual.proj").unwrap();
    let found = misfit(&config, &short).explained_by(&Weights::open(file.path()).unwrap());
    assert_eq!(
        found.missing,
        ["visual.proj (stored as a tensor of F8_E4M3, which is not read here)"]
    );
}

#[test]
fn everything_that_does_not_fit_is_listed_at_once_and_nothing_is_loaded() {
    let (_, config, named) = model("clip-tok");
    let mut broken = named.clone();
    broken.remove("ln_final.bias").unwrap();
    let moved = broken.remove("visual.proj").unwrap();
    broken.insert("visual.projection".to_owned(), moved);
    broken.insert("logit_scale".to_owned(), named["ln_final.weight"].clone());
    let found = misfit(&config, &broken);
    assert_eq!(found.missing, ["visual.proj", "ln_final.bias"]);
    assert_eq!(found.unexpected, ["visual.projection"]);
    assert_eq!(found.misshaped, ["logit_scale is [24], the model's is []"]);
    let text = found.to_string();
    assert!(text.contains("2 missing: visual.proj, ln_final.bias; 1 unexpected"), "{text}");

    let clip = blank(&config, &Options::default()).unwrap();
    let before = clip.params().flat().copy();
    load::load(&clip, &broken, MissingBias::Zero).unwrap_err();
    assert_eq!(clip.params().flat(), &before);
}

/// A tensor of a run in double precision.
struct Doubles {
    shape: Vec<i64>,
    values: Vec<f64>,
}

impl Loadable for Doubles {
    fn extents(&self) -> Vec<i64> {
        self.shape.clone()
    }

    fn rounded(&self) -> Vec<f32> {
        self.values.iter().map(|value| *value as f32).collect()
    }

    fn put(&self, buffer: &Tensor, offset: usize) {
        let mut place = buffer.narrow(0, offset as i64, self.values.len() as i64);
        place.copy_(&Tensor::from_slice(&self.values));
    }
}

#[test]
fn what_is_stored_in_double_precision_is_not_rounded_on_its_way_into_a_model_of_doubles() {
    let (_, config, named) = model("clip-tok");
    let options = Options { precision: Precision::Fp64, ..Options::default() };
    let clip = blank(&config, &options).unwrap();
    // No f32 lies between this and 1.
    let value = 1.0 + 1e-12;
    let doubles = named.iter().map(|(name, tensor)| {
        (name.clone(), Doubles { shape: tensor.extents(), values: vec![value; tensor.len()] })
    });
    let doubles: BTreeMap<String, Doubles> = doubles.collect();
    load::load(&clip, &doubles, MissingBias::Zero).unwrap();
    for entry in clip.params().entries() {
        let got = clip.params().flat().narrow(0, entry.offset as i64, entry.len as i64);
        let got = Vec::<f64>::try_from(got).unwrap();
        assert!(got.iter().all(|got| *got == value), "{}", entry.name);
    }
}

#[test]
fn text_keys_move_where_the_model_has_them_and_a_missing_bias_is_zero() {
    let (_, config, mut named) = model("clip-tok");
    let prefixed = ModelConfig { custom_text: true, ..config.clone() };
    named.remove("logit_bias").unwrap();
    let (clip, notes) = loaded(&prefixed, &named);
    assert_eq!(notes, ["text keys were moved under text.", "logit_bias is missing and becomes 0"]);
    assert_eq!(clip.logit_bias(), Some(0.0));
    let under: Named = load_names(&clip);
    let (back, notes) = loaded(&config, &under);
    assert_eq!(notes, ["text keys were moved from under text."]);
    let weight = |clip: &Clip, name: &str| clip.params().get(name).unwrap().copy();
    assert_eq!(weight(&clip, "text.ln_final.weight"), weight(&back, "ln_final.weight"));
}

fn load_names(clip: &Clip) -> Named {
    let entries = clip.params().entries().iter();
    entries
        .map(|entry| {
            let shape = entry.shape.iter().map(|size| *size as usize).collect();
            let values = export::values(clip, entry);
            (entry.name.clone(), ringmaster_weights::Tensor::from_f32(shape, &values).unwrap())
        })
        .collect()
}

#[test]
fn positions_are_resized_as_open_clip_resizes_them() {
    let file = Weights::open(&golden("weights-positions.safetensors")).unwrap();
    for grid in [2, 3, 7] {
        let given = tensor(&file, &format!("image.{grid}.given"));
        let resized = positions::of_image(&given, 1, grid).unwrap();
        assert_near(&resized, &tensor(&file, &format!("image.{grid}.resized")), "image");
    }
    for length in [11, 4] {
        let given = tensor(&file, &format!("text.{length}.given"));
        let resized = positions::of_text(&given, length).unwrap();
        assert_near(&resized, &tensor(&file, &format!("text.{length}.resized")), "text");
    }
    assert!(
        positions::of_image(&Tensor::zeros([6, 8], (Kind::Float, Device::Cpu)), 1, 2).is_none()
    );
}

#[test]
fn a_model_for_larger_images_and_longer_captions_takes_resized_positions() {
    for name in ["clip-tok", "siglip"] {
        let (_, mut config, named) = model(name);
        config.vision_cfg.image_size *= 2;
        config.text_cfg.context_length += 3;
        let (_, notes) = loaded(&config, &named);
        assert_eq!(notes.len(), 2, "{name}: {notes:?}");
        assert!(notes.iter().all(|note| note.contains("was resized from")), "{notes:?}");
    }
}

#[test]
fn positions_without_a_position_are_misshaped_and_no_crash() {
    let (_, config, mut named) = model("clip-tok");
    let empty = ringmaster_weights::Tensor::from_f32(vec![0, 24], &[]).unwrap();
    named.insert("positional_embedding".to_owned(), empty);
    assert_eq!(
        misfit(&config, &named).misshaped,
        ["positional_embedding is [0, 24], the model's is [9, 24]"]
    );
}

#[test]
fn names_that_lead_nowhere_say_what_would() {
    let fail = |name: &str, pretrained: Option<&str>| {
        create_model_and_transforms(name, pretrained, &Options::default()).unwrap_err().to_string()
    };
    let text = fail("ViT-B-33", None);
    assert!(text.contains("no model is called \"ViT-B-33\", did you mean ViT-B-32"), "{text}");
    assert!(fail("hf-hub:nobody", None).contains("nobody"), "no repository's name");
    assert!(fail("local-dir:/nowhere", None).contains("/nowhere"));
    let text = fail("ViT-B-32", Some("laion3b"));
    assert!(text.contains("laion2b_s34b_b79k"), "the model's tags: {text}");
    assert!(fail("RN50", Some("/nowhere.pt")).contains("cannot read /nowhere.pt"));
    let malice = golden("weights-malice.pt");
    let text = fail("RN50", Some(malice.to_str().unwrap()));
    assert!(text.contains("posix.system"), "{text}");
    // A TorchScript archive is OpenAI's, and OpenAI's models need QuickGELU.
    let archive = golden("weights-script.pt");
    let text = fail("ViT-B-32", Some(archive.to_str().unwrap()));
    assert!(text.contains("use ViT-B-32-quickgelu or --force-quick-gelu"), "{text}");
    let text = fail("ViT-B-32-quickgelu", Some(archive.to_str().unwrap()));
    assert!(text.contains("missing: "), "{text}");
}

#[test]
fn what_transformers_lacks_is_refused_with_the_reason() {
    for (name, expected) in [
        ("resnet", "its image tower is a ResNet"),
        ("convnext", "its image tower is no vision transformer"),
        ("clipa", "does not pool the class token"),
        ("timm-vit-token", "does not end in SigLIP's head"),
        ("roberta-mean-mlp", "its text tower or its bias is not as CLIP's"),
    ] {
        let (_, config, _) = model(name);
        let clip = blank(&config, &Options::default()).unwrap();
        let error = transformers::convert(&clip).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}

/// What open_clip pushes to the hub says how images are normalised and not how large they are.
#[test]
fn a_folder_that_says_nothing_of_the_size_has_the_models() {
    let folder = tempfile::tempdir().unwrap();
    let (_, config, named) = model("clip-tok");
    let (clip, _) = loaded(&config, &named);
    export(&clip, &PreprocessCfg::default(), Layout::OpenClip, folder.path()).unwrap();
    let path = folder.path().join("open_clip_config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut document: serde_json::Value = serde_json::from_str(&text).unwrap();
    document["preprocess_cfg"].as_object_mut().unwrap().remove("size").unwrap();
    std::fs::write(&path, document.to_string()).unwrap();
    let place = format!("local-dir:{}", folder.path().display());
    let found = lookup::find(&place, None).unwrap();
    assert_eq!(i64::from(found.preprocess.size), config.vision_cfg.image_size);
}

#[test]
fn a_bias_that_the_model_does_not_have_is_not_dropped_in_silence() {
    let (_, mut config, named) = model("clip-tok");
    config.init_logit_bias = None;
    let (clip, notes) = loaded(&config, &named);
    assert_eq!(clip.logit_bias(), None);
    assert_eq!(notes, ["logit_bias is left out: the model has none, so logits are shifted"]);
}

/// roberta-ViT-B-32 has QuickGELU in OpenCLIP without saying so in its name.
#[test]
fn every_tag_fits_the_gelu_of_a_model_of_its_name() {
    let catalogue = ringmaster_manifest::ModelCatalogue::builtin();
    let uses = |name: &str, tag: &ringmaster_weights::hub::Tag| {
        catalogue.get(name).is_some_and(|config| config.quick_gelu == tag.quick_gelu)
    };
    let mut compared = 0;
    for name in catalogue.names().filter(|name| !name.ends_with("-quickgelu")) {
        for tag in ringmaster_weights::hub::tags(name) {
            let fits = uses(name, tag) || uses(&format!("{name}-quickgelu"), tag);
            assert!(fits, "{name} {}", tag.name);
            compared += 1;
        }
    }
    assert!(compared > 60, "{compared}");
}

/// A full disk while parts of weights were linked ended the job, whatever its restart budget.
#[test]
fn a_cache_that_cannot_be_written_may_be_written_later() {
    let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
    let error = Error::Lookup(lookup::Error::Cache { path: "/cache/part".into(), source });
    assert!(error.may_pass());
}
