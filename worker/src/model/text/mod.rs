//! Text towers.

mod native;
mod roberta;

use ringmaster_manifest::model_config::ModelConfig;
use tch::{Kind, Tensor};

use super::clip::Mode;
use super::compute::Compute;
use super::vars::Vars;
use super::{Error, Tower};

/// The text tower a configuration describes.
#[derive(Debug)]
pub(super) struct TextTower {
    context_length: i64,
    vocab_size: i64,
    family: Family,
}

#[derive(Debug)]
enum Family {
    Native(native::TextTransformer),
    Roberta(roberta::Roberta),
}

impl TextTower {
    /// Takes the parameters at the root, or under `text.`, for a configuration that has been
    /// checked.
    pub(super) fn new(config: &ModelConfig, vars: &Vars<'_>) -> Self {
        let root = vars.of(Tower::Text);
        let vars = if config.has_text_prefix() { root.sub("text") } else { root };
        let (text, embed_dim) = (&config.text_cfg, config.embed_dim);
        let hugging_face = text
            .hugging_face()
            .map(|tower| tower.expect("a checked configuration names a known tower"));
        let (vocab_size, family) = match hugging_face {
            Some(tower) => {
                let roberta = roberta::Roberta::new(&tower, text, embed_dim, &vars);
                (tower.vocab_size, Family::Roberta(roberta))
            }
            None => {
                let native = native::TextTransformer::new(config, &vars);
                (text.vocab_size, Family::Native(native))
            }
        };
        Self { context_length: text.context_length, vocab_size, family }
    }

    /// Shapes: tokens [N, L] i64 -> [N, E].
    pub(super) fn forward(
        &self,
        tokens: &Tensor,
        mode: &Mode<'_>,
        compute: &Compute,
    ) -> Result<Tensor, Error> {
        let length = self.context_length;
        let shape = tokens.size();
        if shape.len() != 2 || shape[1] != length || tokens.kind() != Kind::Int64 {
            let expected = format!("[N, {length}] of i64");
            return Err(Error::InputShape { input: "tokens", expected, found: shape });
        }
        let length = length as usize;
        let ids = self.checked_ids(tokens, length)?;
        match &self.family {
            Family::Native(tower) => Ok(tower.forward(&ids, length, compute)),
            Family::Roberta(tower) => {
                mode.check_rows(shape[0])?;
                tower.forward(&ids, length, mode, compute)
            }
        }
    }

    /// Copies the ids to the host, where captions are packed.
    fn checked_ids(&self, tokens: &Tensor, length: usize) -> Result<Vec<i64>, Error> {
        let mut ids = vec![0_i64; tokens.numel()];
        tokens.contiguous().copy_data(&mut ids, tokens.numel());
        let vocab_size = self.vocab_size;
        let outside = ids.iter().position(|id| !(0..vocab_size).contains(id));
        match outside {
            None => Ok(ids),
            Some(at) => {
                let (row, position) = (at / length, at % length);
                Err(Error::Token { row, position, id: ids[at], vocab_size })
            }
        }
    }
}

/// Returns the rows of `table` at `places`. With `sparse`, the table's gradient lists rows.
pub(super) fn look_up(table: &Tensor, places: &Tensor, sparse: bool) -> Tensor {
    Tensor::embedding(table, places, -1, false, sparse)
}
