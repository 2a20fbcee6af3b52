//! The parameters of a model: OpenCLIP's names, shapes, initial values and decay groups.

use ringmaster_manifest::model_config::{ModelConfig, TextConfig, VisionConfig};

use super::clip::LogitInit;
use super::init::Init;
use super::params::{Spec, Tower};

/// Lists every parameter of the model that `config` describes.
pub(super) fn specs(config: &ModelConfig, logits: LogitInit) -> Vec<Spec> {
    let mut list = List { specs: Vec::new(), tower: Tower::Image, prefix: "visual.".to_owned() };
    image_tower(&mut list, &config.vision_cfg, config.embed_dim);
    list.tower = Tower::Text;
    list.prefix = text_prefix(config).to_owned();
    text_tower(&mut list, &config.text_cfg, config.embed_dim);
    list.tower = Tower::Head;
    list.prefix.clear();
    list.add("logit_scale", &[], Init::Constant(logits.scale));
    if let Some(bias) = logits.bias {
        list.add("logit_bias", &[], Init::Constant(bias));
    }
    list.specs
}

/// Returns what text keys begin with: `text.` with `custom_text`, else nothing.
pub(super) fn text_prefix(config: &ModelConfig) -> &'static str {
    if config.custom_text { "text." } else { "" }
}

/// Returns the hidden width of an MLP, rounded down as OpenCLIP does.
pub(super) fn mlp_width(width: i64, ratio: f64) -> i64 {
    (width as f64 * ratio) as i64
}

/// Returns the patches along one side of the image.
pub(super) fn grid(vision: &VisionConfig) -> i64 {
    vision.image_size / vision.patch_size
}

struct List {
    specs: Vec<Spec>,
    tower: Tower,
    prefix: String,
}

impl List {
    /// Adds a parameter. OpenCLIP's decay rule: every matrix and filter but the position
    /// embeddings, so the token table and the projections do decay.
    fn add(&mut self, name: &str, shape: &[i64], init: Init) {
        self.specs.push(Spec {
            name: format!("{}{name}", self.prefix),
            shape: shape.to_vec(),
            tower: self.tower,
            decay: shape.len() > 1 && name != "positional_embedding",
            init,
        });
    }

    fn layer_norm(&mut self, name: &str, width: i64) {
        self.add(&format!("{name}.weight"), &[width], Init::Constant(1.0));
        self.add(&format!("{name}.bias"), &[width], Init::Constant(0.0));
    }

    fn block(&mut self, index: i64, width: i64, hidden: i64, weights: &BlockInit) {
        let name = |part: &str| format!("transformer.resblocks.{index}.{part}");
        self.layer_norm(&name("ln_1"), width);
        self.add(&name("attn.in_proj_weight"), &[3 * width, width], weights.in_proj);
        self.add(&name("attn.in_proj_bias"), &[3 * width], Init::Constant(0.0));
        self.add(&name("attn.out_proj.weight"), &[width, width], weights.out_proj);
        self.add(&name("attn.out_proj.bias"), &[width], Init::Constant(0.0));
        self.layer_norm(&name("ln_2"), width);
        self.add(&name("mlp.c_fc.weight"), &[hidden, width], weights.c_fc);
        self.add(&name("mlp.c_fc.bias"), &[hidden], Init::torch_default(width));
        self.add(&name("mlp.c_proj.weight"), &[width, hidden], weights.c_proj);
        self.add(&name("mlp.c_proj.bias"), &[width], Init::torch_default(hidden));
    }
}

/// Initial values of a block's matrices.
struct BlockInit {
    in_proj: Init,
    out_proj: Init,
    c_fc: Init,
    c_proj: Init,
}

fn image_tower(list: &mut List, vision: &VisionConfig, embed_dim: i64) {
    let width = vision.width;
    let hidden = mlp_width(width, vision.mlp_ratio);
    let scale = Init::Normal((width as f64).powf(-0.5));
    let patch = vision.patch_size;
    list.add("class_embedding", &[width], scale);
    list.add("positional_embedding", &[grid(vision).pow(2) + 1, width], scale);
    list.add("proj", &[width, embed_dim], scale);
    list.add("conv1.weight", &[width, 3, patch, patch], Init::torch_default(3 * patch * patch));
    if !vision.no_ln_pre {
        list.layer_norm("ln_pre", width);
    }
    let weights = BlockInit {
        in_proj: Init::xavier_uniform(3 * width, width),
        out_proj: Init::torch_default(width),
        c_fc: Init::torch_default(width),
        c_proj: Init::torch_default(hidden),
    };
    for index in 0..vision.layers {
        list.block(index, width, hidden, &weights);
    }
    list.layer_norm("ln_post", width);
}

fn text_tower(list: &mut List, text: &TextConfig, embed_dim: i64) {
    let width = text.width;
    let hidden = mlp_width(width, text.mlp_ratio);
    let scale = (width as f64).powf(-0.5);
    let depth = (2.0 * text.layers as f64).powf(-0.5);
    list.add("positional_embedding", &[text.context_length, width], Init::Normal(0.01));
    list.add("text_projection", &[width, embed_dim], Init::Normal(scale));
    list.add("token_embedding.weight", &[text.vocab_size, width], Init::Normal(0.02));
    let weights = BlockInit {
        in_proj: Init::Normal(scale),
        out_proj: Init::Normal(scale * depth),
        c_fc: Init::Normal((2.0 * width as f64).powf(-0.5)),
        c_proj: Init::Normal(scale * depth),
    };
    for index in 0..text.layers {
        list.block(index, width, hidden, &weights);
    }
    list.layer_norm("ln_final", width);
}
