//! The whole `[N, V]` logits, and then what `log_probs` does.
use crate::{
    log_probs,
    types::{HeadLayout, HeadShape, Linear},
};
use burn::tensor::{
    DType, Slice, TensorMetadata,
    backend::Backend,
    ops::{FloatTensor, IntTensor},
};

/// [N, n_logits] f32.
pub(crate) fn logits<B: Backend>(linear: &Linear<B>) -> FloatTensor<B> {
    let (hidden, weight) = (
        f32_of::<B>(&linear.hidden),
        f32_of::<B>(&B::float_slice(linear.weight.clone(), &entries(linear))),
    );
    match linear.shape.layout {
        HeadLayout::VocabRows => B::float_matmul(hidden, B::float_swap_dims(weight, 0, 1)),
        HeadLayout::VocabColumns => B::float_matmul(hidden, weight),
    }
}

/// (d hidden, d weight) from the gradient of the logits, [N, n_logits] f32.
pub(crate) fn pull_back<B: Backend>(
    linear: Linear<B>,
    grad: FloatTensor<B>,
) -> [FloatTensor<B>; 2] {
    let (hidden, weight) = (
        f32_of::<B>(&linear.hidden),
        f32_of::<B>(&B::float_slice(linear.weight.clone(), &entries(&linear))),
    );
    let transposed = |tensor: FloatTensor<B>| B::float_swap_dims(tensor, 0, 1);
    let (d_hidden, d_weight) = match linear.shape.layout {
        HeadLayout::VocabRows => {
            (B::float_matmul(grad.clone(), weight), B::float_matmul(transposed(grad), hidden))
        }
        HeadLayout::VocabColumns => (
            B::float_matmul(grad.clone(), transposed(weight)),
            B::float_matmul(transposed(hidden), grad),
        ),
    };
    let dtype = linear.weight.dtype();
    let none =
        B::float_zeros(linear.weight.shape(), &B::float_device(&linear.weight), dtype.into());
    let d_weight =
        B::float_slice_assign(none, &entries(&linear), B::float_cast(d_weight, dtype.into()));
    [B::float_cast(d_hidden, linear.hidden.dtype().into()), d_weight]
}

/// Range of the weight whose entries have a logit.
fn entries<B: Backend>(linear: &Linear<B>) -> [Slice; 2] {
    let mut ranges = [0, 1].map(|dim| 0..linear.weight.shape()[dim]);
    ranges[linear.shape.layout.vocab_dim()] = 0..linear.shape.n_logits;
    ranges.map(Slice::from)
}

fn f32_of<B: Backend>(tensor: &FloatTensor<B>) -> FloatTensor<B> {
    match tensor.dtype() {
        DType::F32 => tensor.clone(),
        _ => B::float_cast(tensor.clone(), DType::F32.into()),
    }
}

pub(crate) fn forward<B: Backend>(
    hidden: FloatTensor<B>,
    weight: FloatTensor<B>,
    labels: IntTensor<B>,
    head: HeadShape,
    temperature: f64,
) -> FloatTensor<B> {
    let logits = logits(&Linear::<B> { hidden, weight, shape: head });
    log_probs::reference::forward::<B>(logits, labels, temperature)
}

pub(crate) fn backward<B: Backend>(
    hidden: FloatTensor<B>,
    weight: FloatTensor<B>,
    packed: FloatTensor<B>,
    grad: FloatTensor<B>,
    labels: IntTensor<B>,
    head: HeadShape,
    temperature: f64,
) -> [FloatTensor<B>; 2] {
    let linear = Linear::<B> { hidden, weight, shape: head };
    let grad =
        log_probs::reference::backward::<B>(logits(&linear), packed, grad, labels, temperature);
    pull_back(linear, grad)
}
