//! Models as Hugging Face's `transformers` has them: `CLIPModel` and `SiglipModel`.
//!
//! Names and configuration keys are those of transformers 4.30 and later. It keeps queries, keys
//! and values in matrices of their own.

use std::collections::BTreeMap;

use ringmaster_manifest::model_config::preprocess::{Interpolation, ResizeMode};
use ringmaster_manifest::model_config::trunk::{Trunk, TrunkPool, TrunkVit};
use ringmaster_manifest::model_config::vision::TrunkProjection;
use ringmaster_manifest::model_config::{
    ActKwargs, Approximate, DEFAULT_EPS, Layers, ModelConfig, NormKwargs, PositionEmbedding,
    PreprocessCfg, TextPool, TextProjection, VisionPool,
};
use serde_json::{Value, json};

use super::export::{Error, Stored, values};
use crate::model::Clip;

type Tensors = BTreeMap<String, Stored>;

/// Returns `config.json` and the tensors.
pub(super) fn convert(clip: &Clip) -> Result<(Value, Tensors), Error> {
    let config = clip.config();
    match config.vision_cfg.trunk() {
        Some(Ok(Trunk::Vit(vit))) => siglip(clip, config, &vit),
        None => clip_model(clip, config),
        Some(_) => no_counterpart("its image tower is no vision transformer"),
    }
}

fn no_counterpart<T>(reason: &str) -> Result<T, Error> {
    Err(Error::NoCounterpart { reason: reason.to_owned() })
}

/// Returns `preprocessor_config.json`.
///
/// # Errors
/// A resize that neither library's processor knows.
pub(super) fn preprocessor(clip: &Clip, preprocess: &PreprocessCfg) -> Result<Value, Error> {
    if preprocess.resize_mode == ResizeMode::Longest {
        return no_counterpart("no image processor fits the longer side and fills the rest");
    }
    let side = preprocess.size;
    let squash = preprocess.resize_mode == ResizeMode::Squash;
    let size = if squash {
        json!({"height": side, "width": side})
    } else {
        json!({"shortest_edge": side})
    };
    // SigLIP's reads a height and a width and never crops.
    let siglip = squash && clip.config().vision_cfg.timm_model_name.is_some();
    Ok(json!({
        "image_processor_type": if siglip { "SiglipImageProcessor" } else { "CLIPImageProcessor" },
        "do_resize": true,
        "size": size,
        // PIL's numbers of its filters.
        "resample": if preprocess.interpolation == Interpolation::Bilinear { 2 } else { 3 },
        "do_center_crop": !squash,
        "crop_size": {"height": side, "width": side},
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": preprocess.mean,
        "image_std": preprocess.std,
        "do_convert_rgb": true,
    }))
}

/// Moves tensors from a model to another's names.
struct Mover<'a> {
    clip: &'a Clip,
    tensors: Tensors,
}

impl Mover<'_> {
    fn take(&self, name: &str) -> (Vec<i64>, Vec<f32>) {
        let entry = self.clip.params().entry(name);
        let entry = entry.expect("the configuration says that the model has this parameter");
        (entry.shape.clone(), values(self.clip, entry))
    }

    fn put(&mut self, name: impl Into<String>, shape: &[i64], values: &[f32]) {
        self.tensors.insert(name.into(), Stored::f32(shape, values));
    }

    fn copy(&mut self, from: &str, to: &str) {
        let (shape, values) = self.take(from);
        self.put(to, &shape, &values);
    }

    /// Weight and bias.
    fn pair(&mut self, from: &str, to: &str) {
        for part in ["weight", "bias"] {
            self.copy(&format!("{from}.{part}"), &format!("{to}.{part}"));
        }
    }

    /// A matrix, transposed.
    fn transposed(&mut self, from: &str, to: &str) {
        let (shape, values) = self.take(from);
        let (rows, columns) = (shape[0] as usize, shape[1] as usize);
        let turned: Vec<f32> = (0..columns)
            .flat_map(|column| (0..rows).map(move |row| row * columns + column))
            .map(|at| values[at])
            .collect();
        self.put(to, &[shape[1], shape[0]], &turned);
    }

    /// Fused projections, cut into one for each of `parts`.
    fn cut(&mut self, weight: &str, bias: &str, to: &str, parts: &[&str]) {
        for (name, kind) in [(weight, "weight"), (bias, "bias")] {
            let (mut shape, values) = self.take(name);
            shape[0] /= parts.len() as i64;
            let size = values.len() / parts.len();
            for (part, values) in parts.iter().zip(values.chunks(size)) {
                self.put(format!("{to}{part}_proj.{kind}"), &shape, values);
            }
        }
    }

    /// Every block of a tower with OpenCLIP's names.
    fn native_blocks(&mut self, from: &str, to: &str, layers: i64) {
        for layer in 0..layers {
            let (from, to) =
                (format!("{from}transformer.resblocks.{layer}."), format!("{to}.{layer}."));
            self.pair(&format!("{from}ln_1"), &format!("{to}layer_norm1"));
            let weight = format!("{from}attn.in_proj_weight");
            let bias = format!("{from}attn.in_proj_bias");
            self.cut(&weight, &bias, &format!("{to}self_attn."), &["q", "k", "v"]);
            self.pair(&format!("{from}attn.out_proj"), &format!("{to}self_attn.out_proj"));
            self.pair(&format!("{from}ln_2"), &format!("{to}layer_norm2"));
            self.pair(&format!("{from}mlp.c_fc"), &format!("{to}mlp.fc1"));
            self.pair(&format!("{from}mlp.c_proj"), &format!("{to}mlp.fc2"));
        }
    }
}

fn clip_model(clip: &Clip, config: &ModelConfig) -> Result<(Value, Tensors), Error> {
    let (vision, text) = (&config.vision_cfg, &config.text_cfg);
    let Layers::Blocks(layers) = vision.layers else {
        return no_counterpart("its image tower is a ResNet");
    };
    let plain_vision = !vision.no_ln_pre
        && !vision.attentional_pool
        && vision.pool_type == VisionPool::Tok
        && vision.pos_embed_type == PositionEmbedding::Learnable
        && vision.ls_init_value.is_none();
    if !plain_vision {
        return no_counterpart("its image tower does not pool the class token as CLIP's does");
    }
    let plain_text = !text.no_causal_mask
        && text.pool_type == TextPool::Argmax
        && text.proj_type == TextProjection::Linear
        && !text.proj_bias
        && text.ls_init_value.is_none()
        && text.hf_model_name.is_none();
    if !plain_text || config.init_logit_bias.is_some() {
        return no_counterpart("its text tower or its bias is not as CLIP's");
    }
    let prefix = if config.has_text_prefix() { "text." } else { "" };
    let mut mover = Mover { clip, tensors: Tensors::new() };
    mover.copy("logit_scale", "logit_scale");
    let embeddings = "vision_model.embeddings.";
    mover.copy("visual.class_embedding", &format!("{embeddings}class_embedding"));
    mover.copy("visual.conv1.weight", &format!("{embeddings}patch_embedding.weight"));
    mover.copy("visual.positional_embedding", &format!("{embeddings}position_embedding.weight"));
    // The library spells it so.
    mover.pair("visual.ln_pre", "vision_model.pre_layrnorm");
    mover.native_blocks("visual.", "vision_model.encoder.layers", layers);
    mover.pair("visual.ln_post", "vision_model.post_layernorm");
    mover.transposed("visual.proj", "visual_projection.weight");
    text_embeddings(&mut mover, prefix);
    mover.native_blocks(prefix, "text_model.encoder.layers", text.layers);
    mover.pair(&format!("{prefix}ln_final"), "text_model.final_layer_norm");
    mover.transposed(&format!("{prefix}text_projection"), "text_projection.weight");
    let document = json!({
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "logit_scale_init_value": config.init_logit_scale.unwrap_or((1.0_f64 / 0.07).ln()),
        "text_config": text_config(config, json!({
            "model_type": "clip_text_model",
            "projection_dim": config.embed_dim,
            "pad_token_id": 1,
            "bos_token_id": 0,
            // With 2 the library pools at the largest id, as OpenCLIP's argmax.
            "eos_token_id": 2,
        })),
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": vision.width,
            "intermediate_size": hidden(vision.width, vision.mlp_ratio),
            "num_hidden_layers": layers,
            "num_attention_heads": vision.width / vision.head_width,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": activation(config.quick_gelu, vision.act_kwargs),
            "layer_norm_eps": eps(vision.norm_kwargs),
            "projection_dim": config.embed_dim,
        },
    });
    Ok((document, mover.tensors))
}

fn siglip(clip: &Clip, config: &ModelConfig, vit: &TrunkVit) -> Result<(Value, Tensors), Error> {
    let (vision, text) = (&config.vision_cfg, &config.text_cfg);
    if vit.pool != TrunkPool::Map || vision.timm_proj != TrunkProjection::None {
        return no_counterpart("its image tower does not end in SigLIP's head");
    }
    let plain_text = text.no_causal_mask
        && text.pool_type == TextPool::Last
        && text.proj_bias
        && text.proj_type == TextProjection::Linear
        && text.ls_init_value.is_none()
        && text.hf_model_name.is_none();
    if !plain_text || clip.params().entry("logit_bias").is_none() {
        return no_counterpart("its text tower or its bias is not as SigLIP's");
    }
    let prefix = if config.has_text_prefix() { "text." } else { "" };
    let mut mover = Mover { clip, tensors: Tensors::new() };
    for scalar in ["logit_scale", "logit_bias"] {
        let (_, values) = mover.take(scalar);
        mover.put(scalar, &[1], &values);
    }
    siglip_vision(&mut mover, vit);
    text_embeddings(&mut mover, prefix);
    mover.native_blocks(prefix, "text_model.encoder.layers", text.layers);
    mover.pair(&format!("{prefix}ln_final"), "text_model.final_layer_norm");
    mover.pair(&format!("{prefix}text_projection"), "text_model.head");
    let document = json!({
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "text_config": text_config(config, json!({
            "model_type": "siglip_text_model",
            "projection_size": config.embed_dim,
        })),
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": vit.width,
            "intermediate_size": hidden(vit.width, vit.mlp_ratio),
            "num_hidden_layers": vit.depth,
            "num_attention_heads": vit.heads,
            "image_size": vision.image_size,
            "patch_size": vit.patch_size,
            "hidden_act": activation(false, Some(ActKwargs { approximate: vit.act })),
            "layer_norm_eps": 1e-6,
        },
    });
    Ok((document, mover.tensors))
}

/// Returns what both libraries' text towers are described by, and `more`.
fn text_config(config: &ModelConfig, more: Value) -> Value {
    let text = &config.text_cfg;
    let mut described = json!({
        "vocab_size": text.vocab_size,
        "hidden_size": text.width,
        "intermediate_size": hidden(text.width, text.mlp_ratio),
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "max_position_embeddings": text.context_length,
        "hidden_act": activation(config.quick_gelu, text.act_kwargs),
        "layer_norm_eps": eps(text.norm_kwargs),
    });
    if let (Value::Object(described), Value::Object(more)) = (&mut described, more) {
        described.extend(more);
    }
    described
}

fn eps(kwargs: Option<NormKwargs>) -> f64 {
    kwargs.map_or(DEFAULT_EPS, |kwargs| kwargs.eps)
}

fn siglip_vision(mover: &mut Mover<'_>, vit: &TrunkVit) {
    let (from, to) = ("visual.trunk.", "vision_model.");
    mover.pair(&format!("{from}patch_embed.proj"), &format!("{to}embeddings.patch_embedding"));
    let (shape, values) = mover.take(&format!("{from}pos_embed"));
    mover.put(format!("{to}embeddings.position_embedding.weight"), &shape[1..], &values);
    for layer in 0..vit.depth {
        let (from, to) = (format!("{from}blocks.{layer}."), format!("{to}encoder.layers.{layer}."));
        mover.pair(&format!("{from}norm1"), &format!("{to}layer_norm1"));
        let (weight, bias) = (format!("{from}attn.qkv.weight"), format!("{from}attn.qkv.bias"));
        mover.cut(&weight, &bias, &format!("{to}self_attn."), &["q", "k", "v"]);
        mover.pair(&format!("{from}attn.proj"), &format!("{to}self_attn.out_proj"));
        mover.pair(&format!("{from}norm2"), &format!("{to}layer_norm2"));
        mover.pair(&format!("{from}mlp.fc1"), &format!("{to}mlp.fc1"));
        mover.pair(&format!("{from}mlp.fc2"), &format!("{to}mlp.fc2"));
    }
    mover.pair(&format!("{from}norm"), &format!("{to}post_layernorm"));
    let (pool, head) = (format!("{from}attn_pool."), format!("{to}head."));
    mover.copy(&format!("{pool}latent"), &format!("{head}probe"));
    for (kind, fused) in [("weight", "in_proj_weight"), ("bias", "in_proj_bias")] {
        let (mut shape, mut values) = mover.take(&format!("{pool}q.{kind}"));
        let (_, rest) = mover.take(&format!("{pool}kv.{kind}"));
        values.extend(rest);
        shape[0] *= 3;
        mover.put(format!("{head}attention.{fused}"), &shape, &values);
    }
    mover.pair(&format!("{pool}proj"), &format!("{head}attention.out_proj"));
    mover.pair(&format!("{pool}norm"), &format!("{head}layernorm"));
    mover.pair(&format!("{pool}mlp.fc1"), &format!("{head}mlp.fc1"));
    mover.pair(&format!("{pool}mlp.fc2"), &format!("{head}mlp.fc2"));
}

fn text_embeddings(mover: &mut Mover<'_>, prefix: &str) {
    let to = "text_model.embeddings.";
    mover.copy(&format!("{prefix}token_embedding.weight"), &format!("{to}token_embedding.weight"));
    mover.copy(&format!("{prefix}positional_embedding"), &format!("{to}position_embedding.weight"));
}

fn hidden(width: i64, ratio: f64) -> i64 {
    (width as f64 * ratio) as i64
}

fn activation(quick_gelu: bool, kwargs: Option<ActKwargs>) -> &'static str {
    match (quick_gelu, kwargs.unwrap_or_default().approximate) {
        (true, _) => "quick_gelu",
        (false, Approximate::None) => "gelu",
        (false, Approximate::Tanh) => "gelu_pytorch_tanh",
    }
}
