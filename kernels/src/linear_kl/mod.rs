//! Log-probability of the label, entropy and a divergence from a teacher, row by row, from hidden
//! states and vocabulary heads of both models.
//!
//! ```text
//! z_s = h_s W_s^T, z_t = h_t W_t^T          then as [`crate::log_softmax_kl`]
//! g = d loss / d z_s                         d h_s = g W_s      d W_s = g^T h_s
//! ```
//!
//! Logits of either model exist a tile of the vocabulary at a time and are computed once more
//! backwards. Mixtures and total variation need the normalisers before the sums: they compute the
//! tiles twice forwards.
//!
//! | multiply-adds | forward | backward |
//! |---|---|---|
//! | KL and cross-entropy forms, TAID | N V (D_s + D_t) | N V (3 D_s + D_t) |
//! | mixtures, total variation | 2 N V (D_s + D_t) | N V (3 D_s + D_t) |
//!
//! That much where the logits of either model are larger than a tile; otherwise both are kept
//! instead of computed once more. Extra memory: two tiles forwards, three backwards (sizes:
//! [`crate::linear_log_probs`]), and the gradients.
mod autodiff;
pub(crate) mod reference;
#[cfg(test)]
mod tests;
mod tiles;

use crate::{
    linear_log_probs::{HeadShape, LinearHead},
    log_softmax_kl::{Divergence, DivergenceRows, LogSoftmaxKlOps, log_softmax_kl},
    operation::*,
    types::Linear,
    vocabulary::budget,
};
use burn::tensor::{Int, Tensor};

operation! {
    /// Log-probabilities and divergences of hidden states on a backend's own tensors. `heads` are
    /// the student's and the teacher's.
    LinearKlOps: LogSoftmaxKlOps, tiles;

    /// See [`linear_kl`]: `[N, 14]`, as `log_softmax_kl`.
    forward linear_kl(
        [hidden, weight, teacher_hidden, teacher_weight], [labels],
        heads: [HeadShape; 2], divergence: Divergence, temperature: f64
    ) -> (packed_rows(&hidden, crate::vocabulary::COLUMNS));
    /// Gradients of the student's hidden states and head, given the packed result and its gradient.
    backward linear_kl_backward(
        [hidden, weight, teacher_hidden, teacher_weight, packed, grad], [labels],
        heads: [HeadShape; 2], divergence: Divergence, temperature: f64
    ) -> [like(&hidden), like(&weight)];
}

/// Log p(label), entropy and divergence of each row, all at one temperature; differentiable in the
/// student's hidden states and head (`method §3.2, paper Eq. 1`).
/// # Shapes
/// student hidden `[N, D_s]`, teacher hidden `[N, D_t]`; vocabularies may differ in size and are
/// cut to their shared prefix for the divergence; labels `[N]` -> `[N]` each.
/// # Panics
/// When widths or dtypes of hidden states and head differ, no entry has a logit or a label is
/// negative (bugs of the caller; labels are unchecked on GPU backends).
pub fn linear_kl<B: LinearKlOps>(
    student: LinearHead<B>,
    teacher: LinearHead<B>,
    labels: Tensor<B, 1, Int>,
    divergence: Divergence,
    temperature: f64,
) -> DivergenceRows<B> {
    student.check();
    teacher.check();
    let n_rows = student.hidden.dims()[0];
    assert_eq!(
        (labels.dims(), teacher.hidden.dims()[0]),
        ([n_rows], n_rows),
        "one label and one row of the teacher a row"
    );
    if n_rows == 0 {
        return DivergenceRows::none(&student.hidden.device());
    }
    match budget::are_kept(&student) && budget::are_kept(&teacher) {
        true => log_softmax_kl(student.logits(), teacher.logits(), labels, divergence, temperature),
        false => by_tiles(student, teacher, labels, divergence, temperature),
    }
}

/// The operation on at least one row, whatever its size.
pub(crate) fn by_tiles<B: LinearKlOps>(
    student: LinearHead<B>,
    teacher: LinearHead<B>,
    labels: Tensor<B, 1, Int>,
    divergence: Divergence,
    temperature: f64,
) -> DivergenceRows<B> {
    let Linear { hidden, weight, shape } = student.into_primitive();
    let teacher = teacher.into_primitive();
    let packed = B::linear_kl(
        hidden,
        weight,
        teacher.hidden,
        teacher.weight,
        labels.into_primitive(),
        [shape, teacher.shape],
        divergence,
        temperature,
    );
    DivergenceRows::unpack(packed)
}
