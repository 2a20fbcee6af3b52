//! Which numbers go together.

use super::hugging_face::HfConfig;
use super::preprocess::MAX_IMAGE_SIZE;
use super::trunk::{ConvNext, Trunk, TrunkVit};
use super::vision::TrunkProjection;
use super::{Layers, ModelConfig, TextConfig, TextProjection, VisionConfig};

type Checked = Result<(), String>;

/// Largest width, table or patch: far above what is trained, and sums and products of a few stay in 64 bits.
const MAX_SIZE: i64 = 1 << 24;

/// Most layers of a tower or stage.
const MAX_LAYERS: i64 = 1 << 12;

impl ModelConfig {
    /// Checks that the numbers go together.
    ///
    /// # Errors
    /// The first field that does not, its value, and what is allowed.
    pub fn check(&self) -> Result<(), String> {
        positive("embed_dim", self.embed_dim)?;
        vision(&self.vision_cfg, self.embed_dim)?;
        text(&self.text_cfg, self.embed_dim)?;
        if self.quick_gelu {
            let towers = [
                ("vision_cfg", self.vision_cfg.act_kwargs.is_some()),
                ("text_cfg", self.text_cfg.act_kwargs.is_some()),
            ];
            if let Some((section, _)) = towers.iter().find(|(_, given)| *given) {
                return Err(format!(
                    "{section}.act_kwargs is given beside quick_gelu; QuickGELU takes no arguments"
                ));
            }
        }
        Ok(())
    }
}

fn vision(vision: &VisionConfig, embed_dim: i64) -> Checked {
    positive("vision_cfg.image_size", vision.image_size)?;
    at_most("vision_cfg.image_size", vision.image_size, i64::from(MAX_IMAGE_SIZE))?;
    share("vision_cfg.patch_dropout", vision.patch_dropout)?;
    share("vision_cfg.timm_drop_path", vision.timm_drop_path.unwrap_or(0.0))?;
    if vision.timm_drop != 0.0 {
        return Err(format!("vision_cfg.timm_drop is {}; expected 0", vision.timm_drop));
    }
    if let Some(trunk) = vision.trunk() {
        let trunk = trunk?;
        no_projection(vision, trunk.features(), embed_dim)?;
        return match trunk {
            Trunk::Vit(vit) => trunk_vit(&vit, vision),
            Trunk::ConvNext(net) => conv_next(&net, vision),
        };
    }
    match vision.layers {
        Layers::Blocks(layers) => native(vision, layers, embed_dim),
        Layers::Stages(stages) => residual(vision, stages),
    }
}

fn native(vision: &VisionConfig, layers: i64, embed_dim: i64) -> Checked {
    depth("vision_cfg.layers", layers)?;
    for (field, value) in [
        ("vision_cfg.width", vision.width),
        ("vision_cfg.head_width", vision.head_width),
        ("vision_cfg.patch_size", vision.patch_size),
        ("vision_cfg.attn_pooler_queries", vision.attn_pooler_queries),
        ("vision_cfg.attn_pooler_heads", vision.attn_pooler_heads),
    ] {
        positive(field, value)?;
    }
    multiple("vision_cfg.width", vision.width, "vision_cfg.head_width", vision.head_width)?;
    ratio("vision_cfg.mlp_ratio", vision.mlp_ratio, vision.width)?;
    patches("vision_cfg.patch_size", vision.patch_size, vision)?;
    if vision.pos_embed_type == super::PositionEmbedding::SinCos2d {
        multiple("vision_cfg.width", vision.width, "what pos_embed_type sin_cos_2d needs", 4)?;
    }
    if vision.attentional_pool {
        let heads = vision.attn_pooler_heads;
        multiple("embed_dim", embed_dim, "vision_cfg.attn_pooler_heads", heads)?;
    }
    eps("vision_cfg.norm_kwargs.eps", vision.norm_kwargs.map(|kwargs| kwargs.eps))
}

fn residual(vision: &VisionConfig, stages: [i64; 4]) -> Checked {
    for blocks in stages {
        depth("vision_cfg.layers", blocks)?;
    }
    positive("vision_cfg.width", vision.width)?;
    positive("vision_cfg.head_width", vision.head_width)?;
    multiple("vision_cfg.width", vision.width, "what the stem needs", 2)?;
    let features = vision.width * 32;
    multiple("vision_cfg.width × 32", features, "vision_cfg.head_width", vision.head_width)?;
    at_least_a_stride(vision)?;
    // The stem rounds half a side up and the stages round down; the pool counts positions by 32.
    if (vision.image_size + 1) / 2 / 16 == vision.image_size / 32 {
        Ok(())
    } else {
        Err(format!(
            "vision_cfg.image_size is {}; expected a multiple of 32 for a ResNet, or at most 30 more",
            vision.image_size
        ))
    }
}

fn trunk_vit(vit: &TrunkVit, vision: &VisionConfig) -> Checked {
    depth("vision_cfg.timm_model_kwargs.depth", vit.depth)?;
    for (field, value) in [
        ("vision_cfg.timm_model_kwargs.embed_dim", vit.width),
        ("vision_cfg.timm_model_kwargs.num_heads", vit.heads),
        ("vision_cfg.timm_model_kwargs.patch_size", vit.patch_size),
    ] {
        positive(field, value)?;
    }
    multiple("the width of the timm tower", vit.width, "its heads", vit.heads)?;
    ratio("vision_cfg.timm_model_kwargs.mlp_ratio", vit.mlp_ratio, vit.width)?;
    if let Some(share) = vision.timm_drop_path.filter(|share| *share != 0.0) {
        return Err(format!(
            "vision_cfg.timm_drop_path is {share}; expected 0 for a vision transformer, whose blocks \
             are not dropped yet"
        ));
    }
    patches("the patch of the timm tower", vit.patch_size, vision)
}

fn conv_next(net: &ConvNext, vision: &VisionConfig) -> Checked {
    for value in net.depths {
        depth("vision_cfg.timm_model_kwargs.depths", value)?;
    }
    for value in net.dims {
        positive("vision_cfg.timm_model_kwargs.dims", value)?;
    }
    if vision.patch_dropout != 0.0 {
        let share = vision.patch_dropout;
        return Err(format!("vision_cfg.patch_dropout is {share}; expected 0 for a ConvNeXt"));
    }
    at_least_a_stride(vision)
}

/// Both convolutional families divide sides by 32.
fn at_least_a_stride(vision: &VisionConfig) -> Checked {
    if vision.image_size >= 32 {
        Ok(())
    } else {
        Err(format!(
            "vision_cfg.image_size is {}; expected at least 32 for this tower",
            vision.image_size
        ))
    }
}

fn no_projection(vision: &VisionConfig, features: i64, embed_dim: i64) -> Checked {
    if vision.timm_proj == TrunkProjection::None && features != embed_dim {
        Err(format!(
            "embed_dim is {embed_dim}; expected the tower's width {features}, because \
             vision_cfg.timm_proj is \"none\""
        ))
    } else {
        Ok(())
    }
}

fn text(text: &TextConfig, embed_dim: i64) -> Checked {
    positive("text_cfg.context_length", text.context_length)?;
    if text.context_length < 2 {
        let length = text.context_length;
        return Err(format!(
            "text_cfg.context_length is {length}; expected at least 2, for start and end"
        ));
    }
    let kwargs = text.tokenizer_kwargs.unwrap_or_default();
    if kwargs.strip_sep_token && text.hf_tokenizer_name.is_none() {
        return Err("text_cfg.tokenizer_kwargs.strip_sep_token is true; expected \
                    text_cfg.hf_tokenizer_name beside it: CLIP's own tokenizer has no separator"
            .to_owned());
    }
    if let Some(tower) = text.hugging_face() {
        return hugging_face(&tower?, text, embed_dim);
    }
    for (field, value) in [
        ("text_cfg.vocab_size", text.vocab_size),
        ("text_cfg.width", text.width),
        ("text_cfg.heads", text.heads),
    ] {
        positive(field, value)?;
    }
    depth("text_cfg.layers", text.layers)?;
    multiple("text_cfg.width", text.width, "text_cfg.heads", text.heads)?;
    ratio("text_cfg.mlp_ratio", text.mlp_ratio, text.width)?;
    if text.proj_type == TextProjection::None && text.width != embed_dim {
        let width = text.width;
        return Err(format!(
            "embed_dim is {embed_dim}; expected text_cfg.width, {width}, because \
             text_cfg.proj_type is \"none\""
        ));
    }
    eps("text_cfg.norm_kwargs.eps", text.norm_kwargs.map(|kwargs| kwargs.eps))
}

fn hugging_face(tower: &HfConfig, text: &TextConfig, embed_dim: i64) -> Checked {
    for (field, value) in [
        ("text_cfg.hf_model_config.vocab_size", tower.vocab_size),
        ("text_cfg.hf_model_config.hidden_size", tower.hidden_size),
        ("text_cfg.hf_model_config.num_attention_heads", tower.num_attention_heads),
        ("text_cfg.hf_model_config.intermediate_size", tower.intermediate_size),
        ("text_cfg.hf_model_config.max_position_embeddings", tower.max_position_embeddings),
        ("text_cfg.hf_model_config.type_vocab_size", tower.type_vocab_size),
    ] {
        positive(field, value)?;
    }
    depth("text_cfg.hf_model_config.num_hidden_layers", tower.num_hidden_layers)?;
    let heads = tower.num_attention_heads;
    multiple("text_cfg.hf_model_config.hidden_size", tower.hidden_size, "its heads", heads)?;
    if !(0..tower.vocab_size).contains(&tower.pad_token_id) {
        return Err(format!(
            "text_cfg.hf_model_config.pad_token_id is {}; expected an id of the {} tokens",
            tower.pad_token_id, tower.vocab_size
        ));
    }
    share("text_cfg.hf_model_config.hidden_dropout_prob", tower.hidden_dropout_prob)?;
    let attention = tower.attention_probs_dropout_prob;
    share("text_cfg.hf_model_config.attention_probs_dropout_prob", attention)?;
    // Positions are counted from the one behind the padding's.
    let longest = tower.max_position_embeddings - tower.pad_token_id - 1;
    if text.context_length > longest {
        return Err(format!(
            "text_cfg.context_length is {}; expected at most {longest}, the positions the tower has",
            text.context_length
        ));
    }
    let width = tower.hidden_size;
    if text.hf_proj_type.is_none() && width != embed_dim {
        return Err(format!(
            "text_cfg.hf_proj_type is null; expected \"linear\" or \"mlp\", because the tower's \
             width {width} is not embed_dim, {embed_dim}"
        ));
    }
    eps("text_cfg.hf_model_config.layer_norm_eps", Some(tower.layer_norm_eps))
}

fn positive(field: &str, value: i64) -> Checked {
    if value >= 1 {
        at_most(field, value, MAX_SIZE)
    } else {
        Err(format!("{field} is {value}; expected a whole number of at least 1"))
    }
}

fn depth(field: &str, layers: i64) -> Checked {
    positive(field, layers)?;
    at_most(field, layers, MAX_LAYERS)
}

fn at_most(field: &str, value: i64, most: i64) -> Checked {
    if value <= most { Ok(()) } else { Err(format!("{field} is {value}; expected at most {most}")) }
}

fn multiple(field: &str, value: i64, of: &str, divisor: i64) -> Checked {
    if value % divisor == 0 {
        Ok(())
    } else {
        Err(format!("{field} is {value}; expected a multiple of {of}, {divisor}"))
    }
}

fn ratio(field: &str, value: f64, width: i64) -> Checked {
    if value.is_finite() && value > 0.0 && (width as f64 * value) as i64 >= 1 {
        at_most(&format!("the width times {field}"), (width as f64 * value) as i64, MAX_SIZE)
    } else {
        Err(format!("{field} is {value}; expected a number above 0"))
    }
}

fn patches(field: &str, patch_size: i64, vision: &VisionConfig) -> Checked {
    let side = vision.image_size;
    if side >= patch_size {
        Ok(())
    } else {
        Err(format!("vision_cfg.image_size is {side}; expected at least {field}, {patch_size}"))
    }
}

fn share(field: &str, value: f64) -> Checked {
    if (0.0..1.0).contains(&value) {
        Ok(())
    } else {
        Err(format!("{field} is {value}; expected at least 0 and below 1"))
    }
}

fn eps(field: &str, value: Option<f64>) -> Checked {
    match value {
        Some(eps) if !(eps.is_finite() && eps > 0.0) => {
            Err(format!("{field} is {eps}; expected a number above 0"))
        }
        _ => Ok(()),
    }
}
