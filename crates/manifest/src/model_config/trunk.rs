//! What a `timm_model_name` stands for: the towers of timm that CLIP models are made with.
//!
//! Shapes are facts of timm 1.0 (`vision_transformer.py`, `convnext.py`).

use serde::{Deserialize, Serialize};

use super::{Approximate, VisionConfig};

/// timm's LayerNorm eps, unless a model says otherwise.
const TIMM_EPS: f64 = 1e-6;

/// A tower of timm's.
#[derive(Debug, Clone, PartialEq)]
pub enum Trunk {
    /// A vision transformer.
    Vit(TrunkVit),
    /// A ConvNeXt (arXiv:2201.03545).
    ConvNext(ConvNext),
}

/// timm's `VisionTransformer`.
#[derive(Debug, Clone, PartialEq)]
pub struct TrunkVit {
    /// Side of a patch, in pixels.
    pub patch_size: i64,
    /// Width of the residual stream.
    pub width: i64,
    /// Blocks.
    pub depth: i64,
    /// Attention heads.
    pub heads: i64,
    /// Hidden width of the MLP over `width`.
    pub mlp_ratio: f64,
    /// Formula of GELU.
    pub act: Approximate,
    /// A class token before the patches.
    pub class_token: bool,
    /// How tokens become one vector.
    pub pool: TrunkPool,
}

/// How a [`TrunkVit`] pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrunkPool {
    /// Attention of one learned query, then an MLP: SigLIP's MAP head (arXiv:2106.04560).
    Map,
    /// The class token.
    Token,
    /// The mean of the patches.
    Avg,
}

/// timm's `ConvNeXt`.
#[derive(Debug, Clone, PartialEq)]
pub struct ConvNext {
    /// Blocks of each stage.
    pub depths: [i64; 4],
    /// Channels of each stage.
    pub dims: [i64; 4],
    /// Eps of its LayerNorms.
    pub eps: f64,
}

/// `timm_model_kwargs`: numbers that replace those of the named model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrunkKwargs {
    /// Width of a ViT.
    pub embed_dim: Option<i64>,
    /// Blocks of a ViT.
    pub depth: Option<i64>,
    /// Heads of a ViT.
    pub num_heads: Option<i64>,
    /// Hidden width of a ViT's MLP over its width.
    pub mlp_ratio: Option<f64>,
    /// Side of a ViT's patch.
    pub patch_size: Option<i64>,
    /// Activation of a ViT: `gelu` or `gelu_tanh`.
    pub act_layer: Option<TrunkAct>,
    /// Blocks of each stage of a ConvNeXt.
    pub depths: Option<[i64; 4]>,
    /// Channels of each stage of a ConvNeXt.
    pub dims: Option<[i64; 4]>,
}

/// `timm_model_kwargs.act_layer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrunkAct {
    /// Exact GELU.
    Gelu,
    /// GELU by a hyperbolic tangent.
    GeluTanh,
}

impl VisionConfig {
    /// Returns the timm tower, if the configuration names one.
    ///
    /// # Errors
    /// A name that is not among those supported, and a pooling the tower does not have.
    pub fn trunk(&self) -> Option<Result<Trunk, String>> {
        let name = self.timm_model_name.as_deref()?;
        let kwargs = self.timm_model_kwargs.clone().unwrap_or_default();
        Some(named(name, &self.timm_pool).and_then(|trunk| trunk.with(&kwargs)))
    }
}

impl Trunk {
    /// Returns the width of the pooled vector.
    pub fn features(&self) -> i64 {
        match self {
            Self::Vit(vit) => vit.width,
            Self::ConvNext(net) => net.dims[3],
        }
    }

    fn with(mut self, kwargs: &TrunkKwargs) -> Result<Self, String> {
        kwargs.refuse_foreign(&self)?;
        match &mut self {
            Self::Vit(vit) => {
                vit.width = kwargs.embed_dim.unwrap_or(vit.width);
                vit.depth = kwargs.depth.unwrap_or(vit.depth);
                vit.heads = kwargs.num_heads.unwrap_or(vit.heads);
                vit.mlp_ratio = kwargs.mlp_ratio.unwrap_or(vit.mlp_ratio);
                vit.patch_size = kwargs.patch_size.unwrap_or(vit.patch_size);
                vit.act = match kwargs.act_layer {
                    None => vit.act,
                    Some(TrunkAct::Gelu) => Approximate::None,
                    Some(TrunkAct::GeluTanh) => Approximate::Tanh,
                };
            }
            Self::ConvNext(net) => {
                net.depths = kwargs.depths.unwrap_or(net.depths);
                net.dims = kwargs.dims.unwrap_or(net.dims);
            }
        }
        Ok(self)
    }
}

impl TrunkKwargs {
    /// Refuses what the tower has no use for, as timm does.
    fn refuse_foreign(&self, trunk: &Trunk) -> Result<(), String> {
        let (foreign, family) = match trunk {
            Trunk::Vit(_) => (
                [("depths", self.depths.is_some()), ("dims", self.dims.is_some())].to_vec(),
                "a vision transformer",
            ),
            Trunk::ConvNext(_) => (
                vec![
                    ("embed_dim", self.embed_dim.is_some()),
                    ("depth", self.depth.is_some()),
                    ("num_heads", self.num_heads.is_some()),
                    ("mlp_ratio", self.mlp_ratio.is_some()),
                    ("patch_size", self.patch_size.is_some()),
                    ("act_layer", self.act_layer.is_some()),
                ],
                "a ConvNeXt",
            ),
        };
        match foreign.iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((key, _)) => {
                Err(format!("vision_cfg.timm_model_kwargs.{key} is given; {family} has none"))
            }
        }
    }
}

/// Names that are understood, for messages.
const KNOWN: &str = "vit_{base,large,so400m,giantopt}_patch{14,16,32}_siglip_SIZE, \
    vit_{tiny,small,base,large}_patch{16,32}_SIZE and \
    convnext_{tiny,small,base,large,xlarge,xxlarge}";

fn named(name: &str, pool: &str) -> Result<Trunk, String> {
    // What follows a dot is the tag of pretrained weights and shapes nothing.
    let name = name.split_once('.').map_or(name, |(name, _)| name);
    let unknown = || {
        let naflex = if name.contains("naflex") { "NaFlex is not supported yet; " } else { "" };
        format!("vision_cfg.timm_model_name is {name:?}; {naflex}expected one of {KNOWN}")
    };
    let wrong_pool = |expected: &str| {
        format!("vision_cfg.timm_pool is {pool:?}; expected {expected} for {name}")
    };
    if let Some(net) = name.strip_prefix("convnext_") {
        let net = conv_next(net).ok_or_else(unknown)?;
        return match pool {
            "" | "avg" => Ok(Trunk::ConvNext(net)),
            _ => Err(wrong_pool("\"avg\" or \"\"")),
        };
    }
    let mut vit = vit(name).ok_or_else(unknown)?;
    vit.pool = match (pool, vit.class_token) {
        ("map" | "", false) => TrunkPool::Map,
        ("token" | "", true) => TrunkPool::Token,
        ("avg", _) => TrunkPool::Avg,
        (_, true) => return Err(wrong_pool("\"token\", \"avg\" or \"\"")),
        (_, false) => return Err(wrong_pool("\"map\", \"avg\" or \"\"")),
    };
    Ok(Trunk::Vit(vit))
}

/// Reads `vit_SIZE_patchP_[siglip_]PIXELS`.
fn vit(name: &str) -> Option<TrunkVit> {
    let (size, rest) = name.strip_prefix("vit_")?.split_once("_patch")?;
    let (patch, rest) = rest.split_once('_')?;
    let patch_size: i64 = patch.parse().ok().filter(|side| [14, 16, 32].contains(side))?;
    let (siglip, pixels) = match rest.strip_prefix("siglip_") {
        Some(pixels) => (true, pixels),
        None => (false, rest),
    };
    let pixels: i64 = pixels.parse().ok()?;
    let (width, depth, heads, mlp_ratio) = match (size, siglip) {
        ("tiny", false) => (192, 12, 3, 4.0),
        ("small", false) => (384, 12, 6, 4.0),
        ("base", _) => (768, 12, 12, 4.0),
        ("large", _) => (1024, 24, 16, 4.0),
        ("so400m", true) => (1152, 27, 16, 3.7362),
        ("giantopt", true) => (1536, 40, 16, 4.0),
        _ => return None,
    };
    let act = match (size, siglip && tanh(size, patch_size, pixels)) {
        (_, true) => Approximate::Tanh,
        (_, false) => Approximate::None,
    };
    let pool = if siglip { TrunkPool::Map } else { TrunkPool::Token };
    Some(TrunkVit { patch_size, width, depth, heads, mlp_ratio, act, class_token: !siglip, pool })
}

/// Which SigLIP towers timm gives the tanh formula: those that came with SigLIP 2.
fn tanh(size: &str, patch_size: i64, pixels: i64) -> bool {
    match size {
        "base" => patch_size == 32,
        "large" => pixels == 512,
        "so400m" => patch_size == 16,
        _ => size == "giantopt",
    }
}

fn conv_next(size: &str) -> Option<ConvNext> {
    let (depths, dims, eps) = match size {
        "tiny" => ([3, 3, 9, 3], [96, 192, 384, 768], TIMM_EPS),
        "small" => ([3, 3, 27, 3], [96, 192, 384, 768], TIMM_EPS),
        "base" => ([3, 3, 27, 3], [128, 256, 512, 1024], TIMM_EPS),
        "large" => ([3, 3, 27, 3], [192, 384, 768, 1536], TIMM_EPS),
        "xlarge" => ([3, 3, 27, 3], [256, 512, 1024, 2048], TIMM_EPS),
        "xxlarge" => ([3, 4, 30, 3], [384, 768, 1536, 3072], 1e-5),
        _ => return None,
    };
    Some(ConvNext { depths, dims, eps })
}
