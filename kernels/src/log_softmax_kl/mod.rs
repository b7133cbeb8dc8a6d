//! Log-probability of the label, entropy and a divergence from a teacher, row by row, from the
//! logits of both models.
//!
//! With z = logits / temperature, p_s and p_t the softmax of both over the *shared* prefix of their
//! vocabularies (padded vocabularies differ in size although the tokenizer is the same; nothing is
//! padded or copied):
//!
//! ```text
//! D = one of [`Divergence`]                           of the shared prefix
//! log p = z_y - ln sum_v e^(z_v)       H               of the student, over its whole vocabulary
//! d D / d z_v = a_v - p_v sum_u a_u,   a_v = dD / d ln p_s(v)
//! ```
//!
//! The teacher is a constant. Everything in f32 whatever the dtypes, which may differ. What -inf,
//! NaN and +inf do: `vocabulary/mod.rs`.
//!
//! | | KL and cross-entropy forms, TAID | mixtures, total variation |
//! |---|---|---|
//! | bytes forwards (f32) | 8 N V: both rows once | 16 N V: the normalisers first |
//! | bytes backwards (f32) | 12 N V | 12 N V |
//! | exponentials an element, forwards / backwards | 2 / 2 | 5 and a logarithm / 4 and a logarithm |
//! | kept | both logits, 14 numbers a row | the same |
//!
//! About 25 flops an element beside the exponentials. No temporary of size `[N, V]` forwards; the
//! gradient is the only one backwards (on the CPU backend a gradient in 16 bits is made in f32
//! first).
//!
//! `reference.rs` is each divergence by its definition in plain tensors; the loops and kernels are
//! those of `vocabulary/`, with the whole row as one tile.
mod autodiff;
pub(crate) mod reference;
#[cfg(test)]
mod tests;
mod tiles;

pub use crate::types::Divergence;

use crate::{
    device::Hardware,
    log_probs::column,
    operation::*,
    vocabulary::{ENTROPY, LOG_PROB, VALUE},
};
use burn::tensor::{DType, Device, Int, Tensor};

operation! {
    /// Log-probabilities and divergences of logits on a backend's own tensors.
    LogSoftmaxKlOps: Hardware, tiles;

    /// See [`log_softmax_kl`]: `[N, 14]`, log p(label), entropy and divergence first.
    forward log_softmax_kl([student, teacher], [labels], divergence: Divergence, temperature: f64)
        -> (packed_rows(&student, crate::vocabulary::COLUMNS));
    /// Gradient of the student's logits, given the packed result and its gradient.
    backward log_softmax_kl_backward(
        [student, teacher, packed, grad], [labels], divergence: Divergence, temperature: f64
    ) -> (like(&student));
}

/// Results of one pass over both models' rows, f32, differentiable in what belongs to the student.
#[derive(Clone, Debug)]
pub struct DivergenceRows<B: Backend> {
    /// `[N]` log p of the label, over the student's whole vocabulary.
    pub log_probs: Tensor<B, 1>,
    /// `[N]` entropy of the student, over its whole vocabulary.
    pub entropy: Tensor<B, 1>,
    /// `[N]` the divergence, over the shared prefix of both vocabularies.
    pub divergence: Tensor<B, 1>,
}

impl<B: Backend> DivergenceRows<B> {
    pub(crate) fn unpack(packed: FloatTensor<B>) -> Self {
        let [log_probs, entropy, divergence] =
            [LOG_PROB, ENTROPY, VALUE].map(|at| column::<B>(packed.clone(), at));
        Self { log_probs, entropy, divergence }
    }

    pub(crate) fn none(device: &Device<B>) -> Self {
        let none = Tensor::zeros([0], (device, DType::F32));
        Self { log_probs: none.clone(), entropy: none.clone(), divergence: none }
    }
}

/// Log p(label), entropy and divergence of each row, all at one temperature.
/// # Shapes
/// student `[N, V_s]`, teacher `[N, V_t]`, each f32, f16 or bf16; labels `[N]` -> `[N]` each.
/// # Panics
/// When a label is negative (a bug of the caller; unchecked on GPU backends).
pub fn log_softmax_kl<B: LogSoftmaxKlOps>(
    student: Tensor<B, 2>,
    teacher: Tensor<B, 2>,
    labels: Tensor<B, 1, Int>,
    divergence: Divergence,
    temperature: f64,
) -> DivergenceRows<B> {
    let n_rows = student.dims()[0];
    assert_eq!(
        (labels.dims(), teacher.dims()[0]),
        ([n_rows], n_rows),
        "one label and one row of the teacher a row"
    );
    if n_rows == 0 {
        return DivergenceRows::none(&student.device());
    }
    let (student, teacher) = (student.into_primitive().tensor(), teacher.into_primitive().tensor());
    DivergenceRows::unpack(B::log_softmax_kl(
        student,
        teacher,
        labels.into_primitive(),
        divergence,
        temperature,
    ))
}

/// The divergence alone. Shapes as [`log_softmax_kl`], without labels.
pub fn row_divergence<B: LogSoftmaxKlOps>(
    student: Tensor<B, 2>,
    teacher: Tensor<B, 2>,
    divergence: Divergence,
    temperature: f64,
) -> Tensor<B, 1> {
    let labels = Tensor::zeros([student.dims()[0]], &student.device());
    log_softmax_kl(student, teacher, labels, divergence, temperature).divergence
}
