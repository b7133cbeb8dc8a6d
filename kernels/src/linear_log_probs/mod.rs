//! Log-probability of the label and entropy, row by row, from hidden states and the vocabulary
//! head: the logits exist a tile at a time.
//!
//! ```text
//! logits = h W^T         then as [`crate::log_probs`]
//! g = d loss / d logits  d h = g W      d W = g^T h          each tile of g made from its logits, computed once more
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
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use crate::{
    KernelOps,
    log_probs::{column, log_probs},
    vocabulary::{ENTROPY, LOG_PROB, budget},
};
use burn::tensor::{
    DType, Int, Tensor,
    backend::{AutodiffBackend, Backend},
    ops::FloatTensor,
};

pub use crate::vocabulary::budget::most_logits;

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
    /// Entries that have a logit: the first so many of the V.
    pub n_logits: usize,
}

/// One model's hidden states and vocabulary head.
#[derive(Clone, Debug)]
pub struct LinearHead<B: Backend> {
    /// [N, D]
    pub hidden: Tensor<B, 2>,
    /// [V, D] or [D, V], of the dtype of `hidden`
    pub weight: Tensor<B, 2>,
    pub layout: HeadLayout,
    /// Entries that have a logit: the first so many of the V. The others get no probability and no
    /// gradient.
    pub n_logits: usize,
}

impl<B: AutodiffBackend> LinearHead<B> {
    /// The same as constants of a graph.
    pub fn from_inner(head: LinearHead<B::InnerBackend>) -> Self {
        let LinearHead { hidden, weight, layout, n_logits } = head;
        Self {
            hidden: Tensor::from_inner(hidden),
            weight: Tensor::from_inner(weight),
            layout,
            n_logits,
        }
    }
}

impl<B: Backend> LinearHead<B> {
    /// A head whose every entry has a logit.
    pub fn new(hidden: Tensor<B, 2>, weight: Tensor<B, 2>, layout: HeadLayout) -> Self {
        let n_logits = weight.dims()[layout.vocab_dim()];
        Self { hidden, weight, layout, n_logits }
    }

    /// No logits for entries from `n_logits` on. Nothing is copied.
    pub fn cut_to(self, n_logits: usize) -> Self {
        Self { n_logits: n_logits.min(self.n_logits), ..self }
    }

    /// The logits, whole: [N, n_logits] f32, a product in the dtype of hidden states and head.
    pub fn logits(self) -> Tensor<B, 2> {
        let is_cut = self.n_logits < self.n_entries();
        let weight = match self.layout {
            HeadLayout::VocabRows => self.weight.transpose(),
            HeadLayout::VocabColumns => self.weight,
        };
        let logits = self.hidden.matmul(weight);
        let logits = if is_cut { logits.narrow(1, 0, self.n_logits) } else { logits };
        logits.cast(DType::F32)
    }

    /// V, with or without a logit.
    pub(crate) fn n_entries(&self) -> usize {
        self.weight.dims()[self.layout.vocab_dim()]
    }

    pub(crate) fn check(&self) {
        let d_model = self.weight.dims()[1 - self.layout.vocab_dim()];
        assert_eq!(self.hidden.dims()[1], d_model, "the head takes hidden states of its own width");
        assert_eq!(
            self.hidden.dtype(),
            self.weight.dtype(),
            "hidden states and head have one dtype"
        );
        assert!(
            (1..=self.n_entries()).contains(&self.n_logits),
            "some entries have a logit, and none that is not there"
        );
    }

    pub(crate) fn into_primitive(self) -> Linear<B> {
        let Self { hidden, weight, layout, n_logits } = self;
        Linear {
            hidden: hidden.into_primitive().tensor(),
            weight: weight.into_primitive().tensor(),
            layout,
            n_logits,
        }
    }
}

/// (log p(label), entropy) of each row in f32, differentiable in hidden and weight.
/// # Shapes
/// hidden [N, D], weight [V, D] or [D, V], labels [N] -> [N] twice.
/// # Panics
/// When widths or dtypes of hidden and head differ, no entry has a logit or a label is negative
/// (bugs of the caller; labels are unchecked on GPU backends).
pub fn linear_log_probs<B: KernelOps>(
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
pub(crate) fn by_tiles<B: KernelOps>(
    head: LinearHead<B>,
    labels: Tensor<B, 1, Int>,
    temperature: f64,
) -> (Tensor<B, 1>, Tensor<B, 1>) {
    let packed = B::linear_log_probs(head.into_primitive(), labels.into_primitive(), temperature);
    (column::<B>(packed.clone(), LOG_PROB), column::<B>(packed, ENTROPY))
}
