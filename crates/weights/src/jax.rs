//! Google's checkpoints: flax names and layouts to those of OpenCLIP and timm.
//!
//! A flax kernel is [inputs, outputs] where torch's weight is [outputs, inputs], and attention's
//! kernels keep heads apart: [width, heads, head_width] on the way in, [heads, head_width, width]
//! on the way out. Layers lie under numbered names, or stacked in one array.

use std::collections::BTreeMap;

use crate::{Error, Tensor, Weights};

/// Tensors under torch's names.
type Named = BTreeMap<String, Tensor>;

/// Returns a SigLIP checkpoint of big_vision under OpenCLIP's names, or none where the file holds
/// no such thing: timm's names under `visual.trunk.`, OpenCLIP's under `text.`.
///
/// # Errors
/// A tensor that is missing or has an impossible shape.
pub fn big_vision(weights: &Weights) -> Result<Option<Named>, Error> {
    let root = if weights.tensors().contains_key("params/b") { "params/" } else { "" };
    let (img, txt) = (format!("{root}img/"), format!("{root}txt/"));
    if !weights.tensors().contains_key(&format!("{img}embedding/kernel")) {
        return Ok(None);
    }
    let mut converter = Converter { weights, named: Named::new() };
    converter.image(&img, "visual.trunk.", true)?;
    converter.text(&txt)?;
    for (from, to) in [("t", "logit_scale"), ("b", "logit_bias")] {
        let scalar = converter.take(&format!("{root}{from}"))?;
        let value = scalar.to_f32();
        converter.values(to, vec![], &value[..value.len().min(1)], from)?;
    }
    Ok(Some(converter.named))
}

/// Returns a vision transformer of big_vision or AugReg (arXiv:2106.10270) under timm's names, or
/// none where the file holds no such thing. Classifier heads are left out.
///
/// # Errors
/// A tensor that is missing or has an impossible shape.
pub fn vision_transformer(weights: &Weights) -> Result<Option<Named>, Error> {
    let prefixes = ["", "opt/target/", "params/", "params/img/"];
    let prefix = prefixes
        .into_iter()
        .find(|prefix| weights.tensors().contains_key(&format!("{prefix}embedding/kernel")));
    let Some(prefix) = prefix else { return Ok(None) };
    let big_vision = prefix.starts_with("params/")
        || weights.tensors().contains_key(&format!("{prefix}pos_embedding"));
    let mut converter = Converter { weights, named: Named::new() };
    converter.image(prefix, "", big_vision)?;
    Ok(Some(converter.named))
}

struct Converter<'a> {
    weights: &'a Weights,
    named: Named,
}

/// Names of the parts of a block in a checkpoint.
struct BlockNames {
    attention: &'static str,
    second_norm: &'static str,
    mlp: &'static str,
}

const BIG_VISION: BlockNames = BlockNames {
    attention: "MultiHeadDotProductAttention_0",
    second_norm: "LayerNorm_1",
    mlp: "MlpBlock_0",
};
const AUGREG: BlockNames = BlockNames {
    attention: "MultiHeadDotProductAttention_1",
    second_norm: "LayerNorm_2",
    mlp: "MlpBlock_3",
};

/// Names of the parts of a block under torch: attention's fused weights, its output, the norms and
/// the two layers of the MLP.
struct TorchNames {
    qkv_weight: &'static str,
    qkv_bias: &'static str,
    out: &'static str,
    norms: [&'static str; 2],
    mlp: [&'static str; 2],
}

const TIMM: TorchNames = TorchNames {
    qkv_weight: "attn.qkv.weight",
    qkv_bias: "attn.qkv.bias",
    out: "attn.proj",
    norms: ["norm1", "norm2"],
    mlp: ["mlp.fc1", "mlp.fc2"],
};
const OPEN_CLIP: TorchNames = TorchNames {
    qkv_weight: "attn.in_proj_weight",
    qkv_bias: "attn.in_proj_bias",
    out: "attn.out_proj",
    norms: ["ln_1", "ln_2"],
    mlp: ["mlp.c_fc", "mlp.c_proj"],
};

impl Converter<'_> {
    /// Converts an image tower.
    fn image(&mut self, from: &str, to: &str, big_vision: bool) -> Result<(), Error> {
        let filters = self.take(&format!("{from}embedding/kernel"))?; // [h, w, 3, W]
        self.keep(format!("{to}patch_embed.proj.weight"), &filters, &[3, 2, 0, 1])?;
        self.copy(&format!("{from}embedding/bias"), format!("{to}patch_embed.proj.bias"))?;
        if self.has(&format!("{from}cls")) {
            self.copy(&format!("{from}cls"), format!("{to}cls_token"))?;
        }
        let (positions, names) = if big_vision {
            (format!("{from}pos_embedding"), BIG_VISION)
        } else {
            (format!("{from}Transformer/posembed_input/pos_embedding"), AUGREG)
        };
        self.copy(&positions, format!("{to}pos_embed"))?;
        let blocks = format!("{from}Transformer/");
        self.blocks(&blocks, &format!("{to}blocks."), &names, &TIMM)?;
        self.norm(&format!("{blocks}encoder_norm"), &format!("{to}norm"), None)?;
        let map = format!("{from}MAPHead_0/");
        if self.has(&format!("{map}probe")) {
            self.map_head(&map, &format!("{to}attn_pool."))
        } else {
            Ok(())
        }
    }

    /// Converts a text tower.
    fn text(&mut self, from: &str) -> Result<(), Error> {
        self.copy(&format!("{from}Embed_0/embedding"), "text.token_embedding.weight".to_owned())?;
        let positions = self.take(&format!("{from}pos_embedding"))?; // [1, L, W]
        let positions = positions.select(0).unwrap_or(positions);
        self.keep("text.positional_embedding".to_owned(), &positions, &[0, 1])?;
        let blocks = format!("{from}Encoder_0/");
        self.blocks(&blocks, "text.transformer.resblocks.", &BIG_VISION, &OPEN_CLIP)?;
        self.norm(&format!("{blocks}encoder_norm"), "text.ln_final", None)?;
        if self.has(&format!("{from}head/kernel")) {
            self.linear(&format!("{from}head"), "text.text_projection", None)
        } else {
            Ok(())
        }
    }

    fn blocks(
        &mut self,
        from: &str,
        to: &str,
        names: &BlockNames,
        torch: &TorchNames,
    ) -> Result<(), Error> {
        let stacked = format!("{from}encoderblock/");
        if self.has(&format!("{stacked}LayerNorm_0/scale")) {
            let name = format!("{stacked}LayerNorm_0/scale");
            let scales = self.take(&name)?; // [depth, W]
            let &[depth, _, ..] = scales.shape() else {
                return Err(self.shape(&name, &scales, "[depth, width]"));
            };
            for index in 0..depth {
                self.block(&stacked, &format!("{to}{index}."), names, torch, Some(index))?;
            }
            return Ok(());
        }
        let block = |index: usize| format!("{from}encoderblock_{index}/");
        for index in (0..)
            .take_while(|index| self.has(&format!("{}LayerNorm_0/scale", block(*index))))
            .collect::<Vec<_>>()
        {
            self.block(&block(index), &format!("{to}{index}."), names, torch, None)?;
        }
        Ok(())
    }

    fn block(
        &mut self,
        from: &str,
        to: &str,
        names: &BlockNames,
        torch: &TorchNames,
        layer: Option<usize>,
    ) -> Result<(), Error> {
        let attention = format!("{from}{}/", names.attention);
        self.norm(&format!("{from}LayerNorm_0"), &format!("{to}{}", torch.norms[0]), layer)?;
        let parts = ["query", "key", "value"];
        let qkv = [torch.qkv_weight, torch.qkv_bias].map(|name| format!("{to}{name}"));
        self.heads(&attention, &parts, &qkv, layer)?;
        self.out(&format!("{attention}out"), &format!("{to}{}", torch.out), layer)?;
        let second = format!("{from}{}", names.second_norm);
        self.norm(&second, &format!("{to}{}", torch.norms[1]), layer)?;
        for (dense, name) in ["Dense_0", "Dense_1"].into_iter().zip(torch.mlp) {
            self.linear(&format!("{from}{}/{dense}", names.mlp), &format!("{to}{name}"), layer)?;
        }
        Ok(())
    }

    fn map_head(&mut self, from: &str, to: &str) -> Result<(), Error> {
        let attention = format!("{from}MultiHeadDotProductAttention_0/");
        self.copy(&format!("{from}probe"), format!("{to}latent"))?;
        let names = |part: &str| ["weight", "bias"].map(|name| format!("{to}{part}.{name}"));
        self.heads(&attention, &["query"], &names("q"), None)?;
        self.heads(&attention, &["key", "value"], &names("kv"), None)?;
        self.out(&format!("{attention}out"), &format!("{to}proj"), None)?;
        self.norm(&format!("{from}LayerNorm_0"), &format!("{to}norm"), None)?;
        for (dense, name) in [("Dense_0", "fc1"), ("Dense_1", "fc2")] {
            self.linear(&format!("{from}MlpBlock_0/{dense}"), &format!("{to}mlp.{name}"), None)?;
        }
        Ok(())
    }

    fn norm(&mut self, from: &str, to: &str, layer: Option<usize>) -> Result<(), Error> {
        for (flax, torch) in [("scale", "weight"), ("bias", "bias")] {
            let tensor = self.layer(&format!("{from}/{flax}"), layer)?;
            self.keep(format!("{to}.{torch}"), &tensor, &[0])?;
        }
        Ok(())
    }

    fn linear(&mut self, from: &str, to: &str, layer: Option<usize>) -> Result<(), Error> {
        let kernel = self.layer(&format!("{from}/kernel"), layer)?;
        self.keep(format!("{to}.weight"), &kernel, &[1, 0])?;
        let bias = self.layer(&format!("{from}/bias"), layer)?;
        self.keep(format!("{to}.bias"), &bias, &[0])
    }

    /// Fuses projections into heads: kernels [W, H, D] one below the other as [n·H·D, W].
    fn heads(
        &mut self,
        from: &str,
        parts: &[&str],
        to: &[String; 2],
        layer: Option<usize>,
    ) -> Result<(), Error> {
        let (mut weight, mut bias, mut inputs) = (Vec::new(), Vec::new(), 0);
        for part in parts {
            let name = format!("{from}{part}/kernel");
            let kernel = self.layer(&name, layer)?;
            let [width, _, _] = *kernel.shape() else {
                return Err(self.shape(&name, &kernel, "[width, heads, head width]"));
            };
            inputs = width;
            weight.extend(kernel.permute(&[1, 2, 0]).to_f32());
            bias.extend(self.layer(&format!("{from}{part}/bias"), layer)?.to_f32());
        }
        self.values(&to[0], vec![bias.len(), inputs], &weight, from)?;
        self.values(&to[1], vec![bias.len()], &bias, from)
    }

    /// Converts what joins heads: a kernel [H, D, W] to [W, H·D].
    fn out(&mut self, from: &str, to: &str, layer: Option<usize>) -> Result<(), Error> {
        let name = format!("{from}/kernel");
        let kernel = self.layer(&name, layer)?;
        let [heads, head_width, width] = *kernel.shape() else {
            return Err(self.shape(&name, &kernel, "[heads, head width, width]"));
        };
        let weight = kernel.permute(&[2, 0, 1]).to_f32();
        self.values(&format!("{to}.weight"), vec![width, heads * head_width], &weight, from)?;
        let bias = self.layer(&format!("{from}/bias"), layer)?;
        self.keep(format!("{to}.bias"), &bias, &[0])
    }

    fn has(&self, name: &str) -> bool {
        self.weights.tensors().contains_key(name)
    }

    fn take(&self, name: &str) -> Result<Tensor, Error> {
        self.weights.get(name).cloned()
    }

    /// Returns a tensor, or its part of one layer where layers are stacked.
    fn layer(&self, name: &str, layer: Option<usize>) -> Result<Tensor, Error> {
        let tensor = self.take(name)?;
        let Some(index) = layer else { return Ok(tensor) };
        tensor.select(index).ok_or_else(|| self.shape(name, &tensor, "one part for every layer"))
    }

    fn copy(&mut self, from: &str, to: String) -> Result<(), Error> {
        let tensor = self.take(from)?;
        self.named.insert(to, tensor);
        Ok(())
    }

    /// Keeps a tensor with its dimensions in another order.
    fn keep(&mut self, to: String, tensor: &Tensor, order: &[usize]) -> Result<(), Error> {
        if tensor.shape().len() != order.len() {
            return Err(self.shape(&to, tensor, &format!("{} dimensions", order.len())));
        }
        self.named.insert(to, tensor.permute(order));
        Ok(())
    }

    fn values(
        &mut self,
        to: &str,
        shape: Vec<usize>,
        values: &[f32],
        from: &str,
    ) -> Result<(), Error> {
        let tensor = Tensor::from_f32(shape, values).map_err(|reason| Error::Corrupt {
            path: self.weights.path().to_owned(),
            format: "npz of a vision transformer",
            reason: format!("{from}: {reason}"),
        })?;
        self.named.insert(to.to_owned(), tensor);
        Ok(())
    }

    fn shape(&self, name: &str, tensor: &Tensor, expected: &str) -> Error {
        Error::Shape {
            path: self.weights.path().to_owned(),
            name: name.to_owned(),
            found: tensor.shape().to_vec(),
            expected: expected.to_owned(),
        }
    }
}
