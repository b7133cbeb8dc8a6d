//! A tile of the vocabulary at a time.
use crate::{
    types::{HeadShape, Linear},
    vocabulary::{
        Tiles,
        linear::{LinearGradients, logits, n_rows, tiles},
    },
};
use burn::tensor::{
    TensorMetadata,
    ops::{FloatTensor, IntTensor},
};

pub(crate) fn forward<B: Tiles>(
    hidden: FloatTensor<B>,
    weight: FloatTensor<B>,
    labels: IntTensor<B>,
    head: HeadShape,
    temperature: f64,
) -> FloatTensor<B> {
    let linear = Linear::<B> { hidden, weight, shape: head };
    let mut packed = None;
    for span in tiles::<B>(n_rows(&linear), 0, head.n_logits) {
        let tile = logits(&linear, span.offset, span.offset + span.end);
        packed = Some(B::fold_one(tile, labels.clone(), packed, span, (1.0 / temperature) as f32));
    }
    packed.expect("a vocabulary has a tile")
}

pub(crate) fn backward<B: Tiles>(
    hidden: FloatTensor<B>,
    weight: FloatTensor<B>,
    packed: FloatTensor<B>,
    grad: FloatTensor<B>,
    labels: IntTensor<B>,
    head: HeadShape,
    temperature: f64,
) -> [FloatTensor<B>; 2] {
    let linear = Linear::<B> { hidden, weight, shape: head };
    let mut sums = LinearGradients::new(&linear);
    for span in tiles::<B>(n_rows(&linear), 0, head.n_logits) {
        let (start, end) = (span.offset, span.offset + span.end);
        let (scale, dtype) = ((1.0 / temperature) as f32, linear.weight.dtype());
        let tile = B::grad_one(
            logits(&linear, start, end),
            labels.clone(),
            packed.clone(),
            grad.clone(),
            dtype,
            span,
            scale,
        );
        sums.add(&linear, start, end, tile);
    }
    sums.finish(&linear)
}
