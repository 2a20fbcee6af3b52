//! The loss of the global batch, as the manifest asks for it and the numeric plan divides it.

use ringmaster_manifest::spec::{Exchange, LossKind, Positives};
use tch::{Device, Tensor};

use super::context::Context;
use crate::error::Error;
use crate::loss::{self, Inputs, infonce, siglip};
use crate::model::Clip;
use ringmaster_data::Batch;

/// Computes the loss and this rank's embedding gradients.
///
/// Shapes: image and text `[b_r, d]`, rows of unit length.
pub(crate) fn loss(
    context: &Context<'_>,
    clip: &Clip,
    batch: &Batch,
    image: &Tensor,
    text: &Tensor,
) -> Result<loss::Output, Error> {
    let settings = &context.job.loss;
    let mut inputs = Inputs::pairs(image, text, context.counts)
        .with_logits(clip.logit_scale(), clip.logit_bias().unwrap_or(0.0));
    let labels = match settings.positives {
        Positives::Pairs => None,
        Positives::Captions => Some(caption_labels(batch, context.device)),
    };
    if let Some(labels) = &labels {
        inputs.positives = loss::Positives::Labels { image: labels, text: labels };
    }
    let plan = context.plan;
    let (tiling, group) = (plan.tiling(), plan.ring_group);
    let infonce = infonce::Options { tiling, logits_budget: plan.logits_budget, group };
    let output = match (settings.kind, settings.exchange()) {
        (LossKind::Siglip, _) => {
            siglip::ring(&inputs, siglip::Options { tiling, group }, context.collective)
        }
        (LossKind::Infonce, Exchange::AllGather) => {
            infonce::all_gather(&inputs, infonce, context.collective)
        }
        (LossKind::Infonce, Exchange::Ring) => infonce::ring(&inputs, infonce, context.collective),
    };
    match output {
        Ok(output) => Ok(output),
        Err(loss::Error::Collective(error)) => Err(error.into()),
        Err(error) => Err(error.into()),
    }
}

/// One number per row that is the same for captions the text tower cannot tell apart: a hash of
/// their tokens. Shape `[b_r]`, i64.
fn caption_labels(batch: &Batch, device: Device) -> Tensor {
    let rows = batch.samples.len().max(1);
    let length = batch.tokens.len() / rows;
    let hash =
        |tokens: &[i64]| xxhash_rust::xxh3::xxh3_64(bytemuck::cast_slice::<i64, u8>(tokens)) as i64;
    let labels: Vec<i64> = batch.tokens.chunks_exact(length.max(1)).map(hash).collect();
    Tensor::from_slice(&labels).to_device(device)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ringmaster_data::corrupt::SampleKey;

    use super::*;

    #[test]
    fn captions_of_the_same_tokens_share_a_label_and_others_do_not() {
        let batch = Batch {
            samples: (1..4).map(|index| SampleKey { source: 0, index }).collect(),
            tokens: vec![5, 6, 0, 5, 7, 0, 5, 6, 0],
            ..Batch::default()
        };
        let labels: Vec<i64> = caption_labels(&batch, Device::Cpu).try_into().unwrap();
        assert_eq!(labels[0], labels[2]);
        assert_ne!(labels[0], labels[1]);
        let nothing = Batch::default();
        assert_eq!(caption_labels(&nothing, Device::Cpu).size(), [0]);
    }
}
