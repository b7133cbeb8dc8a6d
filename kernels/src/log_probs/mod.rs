//! Log-probability of one label a row and entropy of the row, from logits.
//!
//! With z = logits / temperature:
//!
//! ```text
//! log p = z_y - ln sum_v e^(z_v)      H = -sum_v p_v ln p_v
//! d log p / d z_v = [v = y] - p_v     d H / d z_v = -p_v (ln p_v + H)
//!                                     (and 1 / temperature for the logits)
//! ```
//!
//! One pass over a row forwards and one backwards instead of ten over `[N, V]`; kept are the logits
//! and seven numbers a row. In f32 whatever the dtype of the logits. Bytes (f32): 4 N V forwards, 8
//! N V backwards; half of it in 16 bits. One exponential an element each way, ten flops beside it.
//! Sums, and -inf, NaN and +inf: `vocabulary/mod.rs`. Where the logits
//! are only made to be reduced, use [`crate::linear_log_probs`].
mod autodiff;
pub(crate) mod reference;
mod tiles;

use crate::{
    device::Hardware,
    operation::*,
    vocabulary::{ENTROPY, LOG_PROB},
};
use burn::tensor::{DType, Int, Tensor, TensorPrimitive, s};

operation! {
    /// Log-probabilities of logits on a backend's own tensors.
    LogProbsOps: Hardware, tiles;

    /// See [`log_probs`]: `[N, 7]`, log p(label) and entropy first.
    forward log_probs([logits], [labels], temperature: f64)
        -> (packed_rows(&logits, crate::vocabulary::ONE_COLUMNS));
    /// Gradient of the logits, given the packed result and its gradient.
    backward log_probs_backward([logits, packed, grad], [labels], temperature: f64)
        -> (like(&logits));
}

/// (log p(label), entropy) of each row in f32, differentiable in the logits.
///
/// A label whose logit is -inf has log p of about -1e30, a finite stand-in whose gradient is finite
/// too.
/// # Shapes
/// logits `[N, V]` f32, f16 or bf16, labels `[N]` -> `[N]` twice.
/// # Panics
/// When a label is negative (a bug of the caller; unchecked on GPU backends). A label that is not
/// below V has log p of about -1e30.
pub fn log_probs<B: LogProbsOps>(
    logits: Tensor<B, 2>,
    labels: Tensor<B, 1, Int>,
    temperature: f64,
) -> (Tensor<B, 1>, Tensor<B, 1>) {
    let n_rows = logits.dims()[0];
    assert_eq!(labels.dims(), [n_rows], "one label a row");
    if n_rows == 0 {
        let none = Tensor::zeros([0], (&logits.device(), DType::F32));
        return (none.clone(), none);
    }
    let packed =
        B::log_probs(logits.into_primitive().tensor(), labels.into_primitive(), temperature);
    (column::<B>(packed.clone(), LOG_PROB), column::<B>(packed, ENTROPY))
}

/// One of the packed columns, `[N, C]` -> `[N]`.
pub(crate) fn column<B: Backend>(packed: FloatTensor<B>, column: usize) -> Tensor<B, 1> {
    let packed = Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(packed));
    packed.slice(s![.., column..column + 1]).squeeze_dim(1)
}
