//! The whole row as one tile.
use crate::vocabulary::{Span, Tiles};
use burn::tensor::{
    TensorMetadata,
    ops::{FloatTensor, IntTensor},
};

pub(crate) fn forward<B: Tiles>(
    logits: FloatTensor<B>,
    labels: IntTensor<B>,
    temperature: f64,
) -> FloatTensor<B> {
    let span = Span::whole(logits.shape()[1]);
    B::fold_one(logits, labels, None, span, (1.0 / temperature) as f32)
}

pub(crate) fn backward<B: Tiles>(
    logits: FloatTensor<B>,
    packed: FloatTensor<B>,
    grad: FloatTensor<B>,
    labels: IntTensor<B>,
    temperature: f64,
) -> FloatTensor<B> {
    let (span, dtype) = (Span::whole(logits.shape()[1]), logits.dtype());
    B::grad_one(logits, labels, packed, grad, dtype, span, (1.0 / temperature) as f32)
}
