//! Log-probability of the label and entropy, row by row, from hidden states and the vocabulary head: the logits exist a tile at a time.
//!
//! ```text
//! logits = h W^T         then as [`crate::log_probs`]
//! g = d loss / d logits  d h = g W      d W = g^T h          each tile of g made from its logits, computed once more
//! ```
//!
//! Tiles are all rows by a part of the vocabulary, so each row and column of W is read once a pass and each part of d W is written once.
//!
//! | | forward | backward |
//! |---|---|---|
//! | multiply-adds | N D V | 3 N D V |
//! | exponentials | N V | N V |
//! | extra memory | one tile: N times the largest of V / 64 and 512 columns (less where that is above 16 MiB on the CPU, 128 MiB on GPUs, down to 512 columns) | two tiles, the gradients, and d h once more |
//!
//! Logits and sums are in f32; hidden and head may be f32, f16 or bf16, and the products take them as they are (on the CPU backend in f32). d h is
//! added up in f32.
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use crate::{
    KernelOps,
    log_probs::column,
    vocabulary::{ENTROPY, LOG_PROB},
};
use burn::tensor::{DType, Int, Tensor, backend::Backend, ops::FloatTensor};

/// How a vocabulary head lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadLayout {
    /// [V, D]: an embedding matrix, as tied models use it.
    VocabRows,
    /// [D, V]: the weight of burn's `Linear`.
    VocabColumns,
}

impl HeadLayout {
    /// The dimension of the weight along which the vocabulary runs.
    pub fn vocab_dim(self) -> usize {
        match self {
            Self::VocabRows => 0,
            Self::VocabColumns => 1,
        }
    }
}

/// One model's hidden states and vocabulary head, as [`KernelOps`] gets them.
#[derive(Clone, Debug)]
pub struct Linear<B: Backend> {
    /// [N, D]
    pub hidden: FloatTensor<B>,
    /// [V, D] or [D, V]
    pub weight: FloatTensor<B>,
    pub layout: HeadLayout,
}

/// One model's hidden states and vocabulary head.
#[derive(Clone, Debug)]
pub struct LinearHead<B: Backend> {
    /// [N, D]
    pub hidden: Tensor<B, 2>,
    /// [V, D] or [D, V], of the dtype of `hidden`
    pub weight: Tensor<B, 2>,
    pub layout: HeadLayout,
}

impl<B: Backend> LinearHead<B> {
    pub(crate) fn check(&self) {
        let d_model = self.weight.dims()[1 - self.layout.vocab_dim()];
        assert_eq!(self.hidden.dims()[1], d_model, "the head takes hidden states of its own width");
        assert_eq!(self.hidden.dtype(), self.weight.dtype(), "hidden states and head have one dtype");
    }

    pub(crate) fn into_primitive(self) -> Linear<B> {
        Linear { hidden: self.hidden.into_primitive().tensor(), weight: self.weight.into_primitive().tensor(), layout: self.layout }
    }
}

/// (log p(label), entropy) of each row in f32, differentiable in hidden and weight.
/// # Shapes
/// hidden [N, D], weight [V, D] or [D, V], labels [N] -> [N] twice.
/// # Panics
/// When widths or dtypes of hidden and head differ or a label is negative (bugs of the caller; labels are unchecked on GPU backends).
pub fn linear_log_probs<B: KernelOps>(head: LinearHead<B>, labels: Tensor<B, 1, Int>, temperature: f64) -> (Tensor<B, 1>, Tensor<B, 1>) {
    head.check();
    let n_rows = head.hidden.dims()[0];
    assert_eq!(labels.dims(), [n_rows], "one label a row");
    if n_rows == 0 {
        let none = Tensor::zeros([0], (&head.hidden.device(), DType::F32));
        return (none.clone(), none);
    }
    let packed = B::linear_log_probs(head.into_primitive(), labels.into_primitive(), temperature);
    (column::<B>(packed.clone(), LOG_PROB), column::<B>(packed, ENTROPY))
}
