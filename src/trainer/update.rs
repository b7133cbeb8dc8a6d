//! From a loss on logits to the gradients of a decoder, without the [B, T, V] logits.
//!
//! The vocabulary head is needed on the trained positions only, and its logits only a few rows at a time. So the backward pass is cut at the
//! hidden states: the loss of each chunk of rows runs through the head on a detached copy of its hidden states and leaves their gradient, and one
//! vector-Jacobian product carries all of those through the trunk:
//!
//! ```text
//! h = gather(trunk(ids))               [N, D]     recorded
//! for chunk c:   g_c = d loss(head(h_c)) / d h_c   logits [chunk, V] live only here
//! backward of sum(h · concat(g_c))                 trunk gradients, exact
//! ```
//!
//! The sum's value is meaningless; its gradient with respect to h is g. Gradients of the head, of both uses of a tied matrix and of all
//! micro-batches meet in one accumulator. Equal to the whole backward pass up to rounding.
//!
//! Every loss handed in here is a *sum* over its tokens divided by the token count of the whole optimizer step, so that adding up micro-batches
//! gives the gradient of one big batch.
use crate::rollout::TokenIndex;
use burn::{
    optim::{GradientsAccumulator, GradientsParams},
    tensor::{Int, Tensor},
};
use dgpo_models::{TrainBackend, decoder::Decoder, heads::Critic};
use std::ops::Range;

/// Rows of logits that exist at once: 256 rows of Qwen2.5's 151,936 entries are 156 MB in f32.
pub const HEAD_ROWS: usize = 256;

/// Adds the gradients of a loss on logits to `sums`.
///
/// `loss` gets the logits [n, V] in front of tokens `range` of `tokens` and returns their share of the loss, a scalar; it may keep statistics.
/// # Shapes
/// ids [R, T'], tokens N of them
pub fn accumulate_decoder<B: TrainBackend>(
    model: &Decoder<B>,
    ids: Tensor<B, 2, Int>,
    tokens: &TokenIndex,
    sums: &mut GradientsAccumulator<Decoder<B>>,
    mut loss: impl FnMut(Tensor<B, 2>, Range<usize>) -> Tensor<B, 1>,
) {
    let hidden = tokens.gather(model.hidden(ids, None, None));
    let [n_tokens, width] = hidden.dims();
    let detached = hidden.clone().inner();
    let mut hidden_grads = Vec::new();
    for range in chunks(n_tokens, HEAD_ROWS) {
        let rows = detached.clone().slice([range.clone(), 0..width]);
        let rows = Tensor::<B, 2>::from_inner(rows).require_grad();
        let mut grads = loss(model.logits(rows.clone()), range).backward();
        hidden_grads.push(rows.grad_remove(&mut grads).expect("every loss depends on its logits"));
        sums.accumulate(model, GradientsParams::from_grads(grads, model));
    }
    let hidden_grads = Tensor::from_inner(Tensor::cat(hidden_grads, 0));
    let grads = (hidden * hidden_grads).sum().backward();
    sums.accumulate(model, GradientsParams::from_grads(grads, model));
}

/// Adds the gradients of a loss on values to `sums`; `loss` gets the values [N] in front of `tokens`.
/// # Shapes
/// ids [R, T'], tokens N of them
pub fn accumulate_critic<B: TrainBackend>(
    critic: &Critic<B>,
    ids: Tensor<B, 2, Int>,
    tokens: &TokenIndex,
    sums: &mut GradientsAccumulator<Critic<B>>,
    loss: impl FnOnce(Tensor<B, 1>) -> Tensor<B, 1>,
) {
    let values = critic.values(tokens.gather(critic.trunk.hidden(ids, None, None)));
    let grads = loss(values).backward();
    sums.accumulate(critic, GradientsParams::from_grads(grads, critic));
}

/// `0..n` in pieces of at most `size`.
pub fn chunks(n: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(size).map(move |start| start..(start + size).min(n))
}
