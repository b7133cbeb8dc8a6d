//! Every equation, as pure functions: no I/O, no model, no tokenizer.
//!
//! Per-token bookkeeping (rewards, KL, advantages) runs on the host over `f32` slices with `f64`
//! sums; what needs gradients (policy, value and distillation losses) runs on burn tensors of any
//! backend. Every mean over tokens is a sum over masked tokens divided by a normaliser that the
//! *caller* gives: the token count of the whole optimizer step. That is why splitting a batch into
//! micro-batches cannot change a gradient.
pub mod advantage;
pub mod distill;
pub mod kl;
pub mod ppo;
pub mod schedule;
pub mod student_outputs;

use burn::tensor::Tensor;
use dgpo_kernels::rows::{WHOLE_ROWS, sum_rows};
use dgpo_models::Backend;

/// Sum of `values` where `mask` is 1, divided by `normaliser`.
///
/// With `normaliser` = the masked tokens of the whole optimizer step, the results of all
/// micro-batches add up to the mean over the step. Masked-out entries are replaced before the sum,
/// so infinities there do no harm. A normaliser below 1 (a step without any token) counts as 1.
/// # Shapes
/// values, mask `[N]` (mask 1 or 0) -> `[1]`
/// # Source
/// The means of `method §3.2, paper Eq. 1` and `method §4.6, paper Eq. 2`.
pub fn masked_mean<B: Backend>(
    values: Tensor<B, 1>,
    mask: Tensor<B, 1>,
    normaliser: f64,
) -> Tensor<B, 1> {
    total(values.mask_fill(mask.equal_elem(0.0), 0.0)) / normaliser.max(1.0)
}

/// The sum of all values, always in the same order: `Tensor::sum` adds up with atomics where a GPU
/// has them, in the order in which its blocks finish, and two runs of one seed would report losses
/// that differ in the last digits. Long ones in blocks ([`sum_rows`]).
/// # Shapes
/// `[N]` -> `[1]`
pub fn total<B: Backend>(values: Tensor<B, 1>) -> Tensor<B, 1> {
    let n = values.dims()[0];
    if n <= WHOLE_ROWS { values.sum_dim(0) } else { sum_rows(values.reshape([n, 1])).reshape([1]) }
}

/// Detached scalars `[1]` read from the device in one transfer.
fn read_scalars<B: Backend>(scalars: Vec<Tensor<B, 1>>) -> Vec<f64> {
    Tensor::cat(scalars, 0).detach().into_data().iter::<f64>().collect()
}
