//! One token a row: greedy, temperature, top-k, top-p. The same bits give the same token on every
//! backend.
//!
//! The logits stay on the device; two numbers a row come back. The draw inverts the cumulative
//! distribution **in vocabulary order**, and all of it that decides about the token is integer
//! arithmetic, so that no backend's order of additions or exponential can move a border between two
//! tokens:
//!
//! ```text
//! m = max z        x = (m - z) * (log2 e / T)        w = 2^31 2^-x, an integer        W = sum w
//! token = the first id with w_0 + ... + w_id > floor(W bits / 2^64)
//! ```
//!
//! x is the result of one f32 subtraction and one f32 multiplication, in this order, which nothing
//! can be contracted with (a backend must round both to nearest, as all of them do); it is cut to
//! 25 fractional bits, and `weight.rs` makes w of it. w is the real number within 3.2e-8 + 8.3e-8 x
//! of it (a test says so) and half a unit, so that tokens down to 2^-32 = 2.3e-10 of the most
//! probable one can be drawn.
//!
//! Top-k and top-p narrow what may be drawn, top-k first, top-p on what top-k left: the k largest
//! logits, then the smallest set of the largest ones whose weight reaches `top_p`. Logits are
//! compared as ordered integers (-0 = +0), not weights, which may be equal where logits are not;
//! among equal logits the lower id comes first. Greedy is the first in that order.
//!
//! The log-prob is `log_softmax(logits / T)[id]` of the whole vocabulary whatever top-k and top-p
//! let through (T = 1 where the choice is greedy), which is what training recomputes. It is f32 and
//! may differ between backends in its last digits. Logits of f16 and bf16 are widened first.
//!
//! Bytes: the logits are read twice (maximum; weights), and a small part of them (the section or
//! block that the draw falls into) once more. Top-k and top-p cost the CPU one or two passes more
//! and a sort of what may lie above the threshold. GPU runtimes read the logits back for them:
//! training never asks for either, since its updates need the whole distribution.
//!
//! # Why integers, and not Gumbel noise and an argmax
//!
//! An argmax of z + noise(bits, id) is a tenth of this code, but its token hangs on the last bit of
//! a logarithm of a logarithm, which no two drivers give alike: rollouts on the CPU and on a card
//! could be compared in distribution alone. Here one recorded token is a test of every backend, a
//! run can be followed from one device to another until a *logit* differs, and top-k and top-p need
//! no second sampler. And every figure recorded so far was drawn this way.
mod autodiff;
mod cpu;
mod host;
#[cfg(feature = "cube")]
mod kernel;
#[cfg(feature = "cube")]
mod kernel_numbers;
#[cfg(feature = "cube")]
mod kernel_search;
mod plan;
pub(crate) mod reference;
#[cfg(test)]
mod tests;
mod weight;

pub use crate::types::{Draw, RowSampling};

use crate::host::to_host;
use crate::operation::*;
use burn::tensor::{DType, Tensor, TensorPrimitive};
use plan::COLUMNS;

/// Ids from here on are not all numbers of f32.
const MAX_VOCABULARY: usize = 1 << 24;

operation! {
    /// Sampling on a backend's own tensors.
    SampleOps: Backend, own;

    /// See [`sample`]: `[R, 2]` f32.
    forward sample([logits], [], &rows: [RowSampling]) -> (packed_rows(&logits, COLUMNS));
}

/// Chooses one token a row: a packed row of results each, for [`read`].
/// # Shapes
/// logits `[R, V]` of any float type, rows `[R]` -> `[R, 2]` f32
/// # Panics
/// If there are not as many logits rows as `rows`, V is 0 or above 2^24, or a temperature is
/// NaN.
pub fn sample<B: SampleOps>(logits: Tensor<B, 2>, rows: &[RowSampling]) -> Tensor<B, 2> {
    let [n_rows, vocab_size] = logits.dims();
    assert_eq!(n_rows, rows.len(), "one sampling a row of logits");
    assert!(
        (1..=MAX_VOCABULARY).contains(&vocab_size) || n_rows == 0,
        "a vocabulary of {vocab_size}"
    );
    assert!(rows.iter().all(|row| !row.temperature.is_nan()), "a temperature is NaN");
    if n_rows == 0 {
        return Tensor::empty([0, COLUMNS], (&logits.device(), DType::F32));
    }
    Tensor::from_primitive(TensorPrimitive::Float(B::sample(
        logits.into_primitive().tensor(),
        rows,
    )))
}

/// The results of [`sample`], on the host. `None` where a row's logits hold NaN, +infinity or
/// nothing finite: there is no distribution to draw from.
/// # Shapes
/// `[R, 2]` -> `[R]`
pub fn read<B: Backend>(packed: Tensor<B, 2>) -> Vec<Option<Draw>> {
    let packed = to_host(packed);
    packed
        .as_chunks::<COLUMNS>()
        .0
        .iter()
        .map(|&[id, log_prob]| (id >= 0.0).then_some(Draw { id: id as u32, log_prob }))
        .collect()
}
