//! The whole [N, V] logits, and then what `log_probs` does.
use super::{HeadLayout, Linear};
use crate::log_probs;
use burn::tensor::{
    DType, TensorMetadata,
    backend::Backend,
    ops::{FloatTensor, IntTensor},
};

/// [N, V] f32.
pub(crate) fn logits<B: Backend>(linear: &Linear<B>) -> FloatTensor<B> {
    let [hidden, weight] = [&linear.hidden, &linear.weight].map(f32_of::<B>);
    match linear.layout {
        HeadLayout::VocabRows => B::float_matmul(hidden, B::float_swap_dims(weight, 0, 1)),
        HeadLayout::VocabColumns => B::float_matmul(hidden, weight),
    }
}

/// (d hidden, d weight) from the gradient of the logits, [N, V] f32.
pub(crate) fn pull_back<B: Backend>(linear: Linear<B>, grad: FloatTensor<B>) -> [FloatTensor<B>; 2] {
    let [hidden, weight] = [&linear.hidden, &linear.weight].map(f32_of::<B>);
    let transposed = |tensor: FloatTensor<B>| B::float_swap_dims(tensor, 0, 1);
    let (d_hidden, d_weight) = match linear.layout {
        HeadLayout::VocabRows => (B::float_matmul(grad.clone(), weight), B::float_matmul(transposed(grad), hidden)),
        HeadLayout::VocabColumns => (B::float_matmul(grad.clone(), transposed(weight)), B::float_matmul(transposed(hidden), grad)),
    };
    [B::float_cast(d_hidden, linear.hidden.dtype().into()), B::float_cast(d_weight, linear.weight.dtype().into())]
}

fn f32_of<B: Backend>(tensor: &FloatTensor<B>) -> FloatTensor<B> {
    match tensor.dtype() {
        DType::F32 => tensor.clone(),
        _ => B::float_cast(tensor.clone(), DType::F32.into()),
    }
}

pub(crate) fn forward<B: Backend>(linear: Linear<B>, labels: IntTensor<B>, temperature: f64) -> FloatTensor<B> {
    log_probs::reference::forward::<B>(logits(&linear), labels, temperature)
}

pub(crate) fn backward<B: Backend>(
    linear: Linear<B>,
    labels: IntTensor<B>,
    packed: FloatTensor<B>,
    grad: FloatTensor<B>,
    temperature: f64,
) -> [FloatTensor<B>; 2] {
    let grad = log_probs::reference::backward::<B>(logits(&linear), labels, packed, grad, temperature);
    pull_back(linear, grad)
}
