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
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use crate::{
    KernelOps,
    divergence::Divergence,
    linear_log_probs::LinearHead,
    log_softmax_kl::{DivergenceRows, log_softmax_kl},
    vocabulary::budget,
};
use burn::tensor::{Int, Tensor};

/// Log p(label), entropy and divergence of each row, all at one temperature; differentiable in the
/// student's hidden states and head (`method §3.2, paper Eq. 1`).
/// # Shapes
/// student hidden [N, D_s], teacher hidden [N, D_t]; vocabularies may differ in size and are cut to
/// their shared prefix for the divergence; labels [N] -> [N] each.
/// # Panics
/// When widths or dtypes of hidden states and head differ, no entry has a logit or a label is
/// negative (bugs of the caller; labels are unchecked on GPU backends).
pub fn linear_kl<B: KernelOps>(
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
pub(crate) fn by_tiles<B: KernelOps>(
    student: LinearHead<B>,
    teacher: LinearHead<B>,
    labels: Tensor<B, 1, Int>,
    divergence: Divergence,
    temperature: f64,
) -> DivergenceRows<B> {
    let packed = B::linear_kl(
        student.into_primitive(),
        teacher.into_primitive(),
        labels.into_primitive(),
        divergence,
        temperature,
    );
    DivergenceRows::unpack(packed)
}
