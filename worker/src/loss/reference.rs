//! The losses as one dense matrix on one device, differentiated by autograd. Slow, obvious, for tests.

use tch::{Kind, Tensor};

use crate::loss::Output;

/// SigLIP: −(1/B) Σ_ij log σ(z_ij (t x_i·y_j + β)) (arXiv:2303.15343, §3.2).
///
/// Shapes: image `[B, d]`, text `[B, d]`, computed in their dtype.
pub fn siglip(image: &Tensor, text: &Tensor, log_scale: f64, bias: f64) -> Output {
    let positives = Tensor::eye(image.size()[0], (Kind::Bool, image.device()));
    sigmoid(image, text, &positives, log_scale, bias)
}

/// SigLIP with any set of positives. Shapes: image `[B, d]`, text `[C, d]`, positives `[B, C]`, bool.
pub fn sigmoid(
    image: &Tensor,
    text: &Tensor,
    positives: &Tensor,
    log_scale: f64,
    bias: f64,
) -> Output {
    differentiate(image, text, log_scale, bias, |image, text, log_scale, bias| {
        let logits = log_scale.exp() * image.matmul(&text.tr()) + bias; // [B, C]
        let labels = positives.to_kind(logits.kind()) * 2.0 - 1.0;
        -(labels * &logits).log_sigmoid().sum(logits.kind()) / image.size()[0] as f64
    })
}

/// The pairs with equal labels. Shapes: `[B]`, `[C]` → `[B, C]`, bool.
pub fn same_labels(image: &Tensor, text: &Tensor) -> Tensor {
    image.unsqueeze(1).eq_tensor(&text.unsqueeze(0))
}

/// InfoNCE: the mean of the cross-entropies over rows and over columns (arXiv:2103.00020, §2.3).
///
/// Shapes: image `[B, d]`, text `[B, d]`, computed in their dtype.
pub fn infonce(image: &Tensor, text: &Tensor, log_scale: f64) -> Output {
    differentiate(image, text, log_scale, 0.0, |image, text, log_scale, _| {
        let batch = image.size()[0];
        let logits = log_scale.exp() * image.matmul(&text.tr()); // [B, B]
        let labels = Tensor::arange(batch, (Kind::Int64, logits.device()));
        // tch's own cross entropy computes in f32 whatever the input.
        let cross_entropy = |l: &Tensor| l.log_softmax(-1, l.kind()).nll_loss(&labels);
        let rows = cross_entropy(&logits);
        let columns = cross_entropy(&logits.tr());
        (rows + columns) / 2.0
    })
}

fn differentiate(
    image: &Tensor,
    text: &Tensor,
    log_scale: f64,
    bias: f64,
    loss: impl Fn(&Tensor, &Tensor, &Tensor, &Tensor) -> Tensor,
) -> Output {
    let options = (image.kind(), image.device());
    let leaf = |t: Tensor| t.detach().copy().set_requires_grad(true);
    let (image, text) = (leaf(image.shallow_clone()), leaf(text.shallow_clone()));
    let log_scale = leaf(Tensor::full([1], log_scale, options));
    let bias = leaf(Tensor::full([1], bias, options));
    let loss = loss(&image, &text, &log_scale, &bias);
    // The zero keeps β in the graph of a loss that does not use it.
    let total = &loss + bias.sum(image.kind()) * 0.0;
    let grads = Tensor::run_backward(
        &[total.sum(image.kind())],
        &[&image, &text, &log_scale, &bias],
        false,
        false,
    );
    Output {
        loss: loss.sum(Kind::Double).double_value(&[]),
        grad_image: grads[0].copy(),
        grad_text: grads[1].copy(),
        grad_log_scale: grads[2].double_value(&[0]),
        grad_bias: grads[3].double_value(&[0]),
    }
}
