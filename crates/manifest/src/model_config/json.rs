//! Reading and writing `OpenCLIP`'s files.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Error, ModelConfig, PreprocessCfg, TextConfig, VisionConfig};

/// A key that `OpenCLIP` knows and this project supports with one value only.
struct Fixed {
    key: &'static str,
    /// The values that ask for nothing special.
    plain: fn() -> Vec<Value>,
    remedy: &'static str,
}

const CUSTOM_BLOCKS: &str =
    "custom attention blocks are not supported; leave the key out, or use a model without it";

fn off() -> Vec<Value> {
    vec![json!(false), Value::Null]
}

fn none() -> Vec<Value> {
    vec![Value::Null]
}

/// Keys of both sections.
const BOTH: [Fixed; 8] = [
    fixed("qk_norm", off, CUSTOM_BLOCKS),
    fixed("scaled_cosine_attn", off, CUSTOM_BLOCKS),
    fixed("scale_heads", off, CUSTOM_BLOCKS),
    fixed("scale_attn_inner", off, CUSTOM_BLOCKS),
    fixed("scale_attn", off, CUSTOM_BLOCKS),
    fixed("scale_fc", off, CUSTOM_BLOCKS),
    fixed("block_type", || vec![Value::Null, json!("default")], CUSTOM_BLOCKS),
    fixed("output_tokens", off, "CoCa models, which need tokens, are not supported yet"),
];
const VISION: [Fixed; 1] =
    [fixed("image_seq_len", none, "NaFlex models are not supported yet; give an image_size")];
const TEXT: [Fixed; 7] = [
    fixed("embed_cls", off, "CoCa's text towers are not supported yet"),
    fixed("tokenizer_mode", none, "only the tokenizer's own mode is supported"),
    fixed("text_arch", || vec![json!("clip")], "only \"clip\" is supported"),
    fixed("variable_text", off, "only captions of context_length tokens are supported"),
    fixed("tokenizer_type", || vec![json!(""), Value::Null], "tiktoken is not supported"),
    fixed("tiktoken_name", none, "tiktoken is not supported"),
    fixed("bos_id", || vec![Value::Null, json!(0), json!(1)], "leave it out: it shapes no tower"),
];
const TOP: [Fixed; 6] = [
    fixed("multimodal_cfg", none, "CoCa models are not supported yet; use a CLIP or SigLIP model"),
    fixed("nonscalar_logit_scale", off, "only a scalar logit_scale is supported"),
    fixed("audio_cfg", none, "audio models are not supported"),
    fixed("audio_naflex_cfg", none, "audio models are not supported"),
    fixed("genlip_cfg", none, "generative models are not supported"),
    fixed("genlap_cfg", none, "generative models are not supported"),
];

const fn fixed(key: &'static str, plain: fn() -> Vec<Value>, remedy: &'static str) -> Fixed {
    Fixed { key, plain, remedy }
}

/// Reads a configuration, or the `model_cfg` of an `open_clip_config.json`.
pub(super) fn read(text: &str) -> Result<ModelConfig, Error> {
    let mut document: Value = serde_json::from_str(text)?;
    if let Some(model) = document.get_mut("model_cfg") {
        document = model.take();
    }
    if let Some(object) = document.as_object_mut() {
        object.retain(|key, _| !matches!(key.as_str(), "_comment" | "model_type"));
        take_fixed(object, "", &TOP)?;
    }
    for (section, own) in [("vision_cfg", &VISION[..]), ("text_cfg", &TEXT[..])] {
        let Some(object) = document.get_mut(section).and_then(Value::as_object_mut) else {
            continue;
        };
        let place = format!("{section}.");
        take_fixed(object, &place, &BOTH)?;
        take_fixed(object, &place, own)?;
        refuse_values(object, &place)?;
        // By itself, so that the message says in which section a key is wrong.
        let alone = Value::Object(object.clone());
        match section {
            "vision_cfg" => serde_json::from_value::<VisionConfig>(alone).map(drop),
            _ => serde_json::from_value::<TextConfig>(alone).map(drop),
        }
        .map_err(|source| Error::Section { section, source })?;
    }
    Ok(serde_json::from_value(document)?)
}

/// Reads the `preprocess_cfg` of an `open_clip_config.json`. Keys that describe weights, which
/// OpenCLIP passes over, are passed over here.
pub(super) fn read_preprocess(text: &str) -> Result<Option<PreprocessCfg>, Error> {
    let mut document: Value = serde_json::from_str(text)?;
    let Some(Value::Object(given)) = document.get_mut("preprocess_cfg").map(Value::take) else {
        return Ok(None);
    };
    let known = object(&PreprocessCfg::default());
    let given =
        given.into_iter().filter(|(key, value)| known.contains_key(key) && !value.is_null());
    Ok(Some(serde_json::from_value(Value::Object(given.collect()))?))
}

/// Takes keys out that ask for nothing special, and refuses them where they do.
fn take_fixed(object: &mut Map<String, Value>, place: &str, keys: &[Fixed]) -> Result<(), Error> {
    for Fixed { key, plain, remedy } in keys {
        let Some(value) = object.remove(*key) else { continue };
        if !plain().contains(&value) {
            return Err(unsupported(format!("{place}{key}"), &value, remedy));
        }
    }
    Ok(())
}

/// Refuses values of supported keys that stand for something else.
fn refuse_values(object: &mut Map<String, Value>, place: &str) -> Result<(), Error> {
    if let Some(pool) = object.get("attentional_pool").filter(|pool| pool.is_string()) {
        let remedy = "CoCa's pooling is not supported yet; true or false is";
        return Err(unsupported(format!("{place}attentional_pool"), pool, remedy));
    }
    if object.get("pool_type") == Some(&json!("none")) {
        let remedy = "only models with one embedding are supported: tok and avg for images; \
                      first, last, argmax and eos for text";
        return Err(unsupported(format!("{place}pool_type"), &json!("none"), remedy));
    }
    // `null` and `{}` say nothing.
    for key in ["act_kwargs", "norm_kwargs", "tokenizer_kwargs"] {
        if object.get(key).is_some_and(|value| value.is_null() || *value == json!({})) {
            object.remove(key);
        }
    }
    Ok(())
}

fn unsupported(key: String, value: &Value, remedy: &str) -> Error {
    Error::Unsupported { key, value: value.to_string(), remedy: remedy.to_owned() }
}

/// Returns the document `OpenCLIP` reads: what has its default is left out, as it does.
pub(super) fn write(config: &ModelConfig) -> Value {
    let mut top = object(config);
    top.insert("vision_cfg".to_owned(), changed(&config.vision_cfg, &VisionConfig::default()));
    top.insert("text_cfg".to_owned(), changed(&config.text_cfg, &TextConfig::default()));
    for key in ["quick_gelu", "custom_text"] {
        if top.get(key) == Some(&json!(false)) {
            top.remove(key);
        }
    }
    Value::Object(top)
}

/// Returns the fields of `section` that differ from the default's.
fn changed(section: &impl Serialize, default: &impl Serialize) -> Value {
    let default = object(default);
    let mut fields = object(section);
    fields.retain(|key, value| default.get(key) != Some(value));
    Value::Object(fields)
}

fn object(value: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(object)) => object,
        other => unreachable!("a struct of plain data is an object, not {other:?}"),
    }
}
