//! Hidden states and the vocabulary head that makes logits of them.
use burn::tensor::{
    DType, Tensor,
    backend::{AutodiffBackend, Backend},
    ops::FloatTensor,
};

/// Layout of a vocabulary head in memory.
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

/// Which of a head's entries have a logit, and how it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// Layout of the weight.
    pub layout: HeadLayout,
    /// Entries that have a logit: the first so many of the V.
    pub n_logits: usize,
}

/// One model's hidden states and vocabulary head on a backend's own tensors.
#[derive(Clone, Debug)]
pub(crate) struct Linear<B: Backend> {
    /// `[N, D]`
    pub hidden: FloatTensor<B>,
    /// `[V, D]` or `[D, V]`
    pub weight: FloatTensor<B>,
    pub shape: HeadShape,
}

/// One model's hidden states and vocabulary head.
#[derive(Clone, Debug)]
pub struct LinearHead<B: Backend> {
    /// `[N, D]`
    pub hidden: Tensor<B, 2>,
    /// `[V, D]` or `[D, V]`, of the dtype of `hidden`
    pub weight: Tensor<B, 2>,
    /// Layout of `weight`.
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
            shape: HeadShape { layout, n_logits },
        }
    }
}
