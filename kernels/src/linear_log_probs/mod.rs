//! Log-probability of the label and entropy, row by row, from hidden states and the vocabulary
//! head: the logits exist a tile at a time.
//!
//! ```text
//! logits = h W^T         then as [`crate::log_probs`]
//! g = d loss / d logits  d h = g W      d W = g^T h
//!                        each tile of g made from its logits, computed once more
//! ```
//!
//! That much where the logits are larger than a tile; smaller ones are kept instead of computed
//! once more (`vocabulary/budget.rs` has the rule and its bound). Tiles are all rows by a part of
//! the vocabulary, so each row and column of W is read once a pass and each part of d W is written
//! once.
//!
//! | | forward | backward |
//! |---|---|---|
//! | multiply-adds | N D V | 3 N D V |
//! | exponentials | N V | N V |
//! | extra memory | one tile: N times the largest of V / 64 and 512 columns (less where that is above 16 MiB on the CPU, 128 MiB on GPUs, down to 512 columns) | two tiles, the gradients, and d h once more |
//!
//! Logits and sums are in f32; hidden and head may be f32, f16 or bf16, and the products take them
//! as they are (on the CPU backend in f32). d h is added up in f32.
mod autodiff;
pub(crate) mod reference;
mod tiles;

pub use crate::{
    types::{HeadLayout, HeadShape, LinearHead},
    vocabulary::budget::most_logits,
};

use crate::{
    log_probs::{LogProbsOps, column, log_probs},
    operation::*,
    types::Linear,
    vocabulary::{ENTROPY, LOG_PROB, budget},
};
use burn::tensor::{DType, Int, Tensor};

operation! {
    /// Log-probabilities of hidden states on a backend's own tensors.
    LinearLogProbsOps: LogProbsOps, tiles;

    /// See [`linear_log_probs`]: `[N, 7]`, as `log_probs`.
    forward linear_log_probs([hidden, weight], [labels], head: HeadShape, temperature: f64)
        -> (packed_rows(&hidden, crate::vocabulary::ONE_COLUMNS));
    /// Gradients of the hidden states and the head, given the packed result and its gradient.
    backward linear_log_probs_backward(
        [hidden, weight, packed, grad], [labels], head: HeadShape, temperature: f64
    ) -> [like(&hidden), like(&weight)];
}

/// (log p(label), entropy) of each row in f32, differentiable in hidden and weight.
/// # Shapes
/// hidden `[N, D]`, weight `[V, D]` or `[D, V]`, labels `[N]` -> `[N]` twice.
/// # Panics
/// When widths or dtypes of hidden and head differ, no entry has a logit or a label is negative
/// (bugs of the caller; labels are unchecked on GPU backends).
pub fn linear_log_probs<B: LinearLogProbsOps>(
    head: LinearHead<B>,
    labels: Tensor<B, 1, Int>,
    temperature: f64,
) -> (Tensor<B, 1>, Tensor<B, 1>) {
    head.check();
    let n_rows = head.hidden.dims()[0];
    assert_eq!(labels.dims(), [n_rows], "one label a row");
    if n_rows == 0 {
        let none = Tensor::zeros([0], (&head.hidden.device(), DType::F32));
        return (none.clone(), none);
    }
    match budget::are_kept(&head) {
        true => log_probs(head.logits(), labels, temperature),
        false => by_tiles(head, labels, temperature),
    }
}

/// The operation on at least one row, whatever its size.
pub(crate) fn by_tiles<B: LinearLogProbsOps>(
    head: LinearHead<B>,
    labels: Tensor<B, 1, Int>,
    temperature: f64,
) -> (Tensor<B, 1>, Tensor<B, 1>) {
    let Linear { hidden, weight, shape } = head.into_primitive();
    let packed = B::linear_log_probs(hidden, weight, labels.into_primitive(), shape, temperature);
    (column::<B>(packed.clone(), LOG_PROB), column::<B>(packed, ENTROPY))
}
