//! From a loss on logits to the gradients of a decoder, without the [B, T, V] logits.
//!
//! The vocabulary head is needed on the trained positions only, and its logits only a few rows at a time. So the backward pass is cut at the
//! hidden states: the loss of each chunk of rows runs through the head on a detached copy of its hidden states and leaves their gradient, and
//! vector-Jacobian products carry all of those through the trunk:
//!
//! ```text
//! h = gather(trunk(ids))               [N, D]
//! for chunk c:   g_c = d loss(head(h_c)) / d h_c   logits [chunk, V] live only here
//! backward of sum(h · concat(g_c))                 trunk gradients, exact
//! ```
//!
//! The sum's value is meaningless; its gradient with respect to h is g. Gradients of the head, of both uses of a tied matrix and of all
//! micro-batches meet in one accumulator. Equal to the whole backward pass up to rounding.
//!
//! With `model.recompute` the trunk is cut as well, at the input of every block: the first pass records nothing but these inputs, and the backward
//! pass runs each block again, from the last to the first, with its own vector-Jacobian product. Activations of one block live at a time, for a
//! third more compute.
//!
//! Every loss handed in here is a *sum* over its tokens divided by the token count of the whole optimizer step, so that adding up micro-batches
//! gives the gradient of one big batch.
use crate::{config::ModelRecipe, rollout::TokenIndex};
use burn::{
    module::AutodiffModule,
    optim::{GradientsAccumulator, GradientsParams},
    tensor::{Int, Tensor},
};
use dgpo_models::{TrainBackend, decoder::Decoder, heads::Critic};
use std::ops::Range;

/// Rows of logits that exist at once: 256 rows of Qwen2.5's 151,936 entries are 156 MB in f32.
pub const HEAD_ROWS: usize = 256;

/// What the backward pass through the trunk needs from the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// Kept from the forward pass.
    Kept,
    /// Only the input of each block is kept, the rest computed again (`model.recompute`).
    Recomputed,
}

impl Activations {
    /// What the recipe says.
    pub fn of(model: &ModelRecipe) -> Self {
        if model.recompute { Self::Recomputed } else { Self::Kept }
    }
}

/// Adds the gradients of a loss on logits to `sums`.
///
/// `loss` gets the logits [n, V] in front of tokens `range` of `tokens` and returns their share of the loss, a scalar; it may keep statistics.
/// # Shapes
/// ids [R, T'], tokens N of them
pub fn accumulate_decoder<B: TrainBackend>(
    model: &Decoder<B>,
    ids: Tensor<B, 2, Int>,
    tokens: &TokenIndex,
    activations: Activations,
    sums: &mut GradientsAccumulator<Decoder<B>>,
    mut loss: impl FnMut(Tensor<B, 2>, Range<usize>) -> Tensor<B, 1>,
) {
    let (trunk, hidden) = TrunkPass::forward(model, ids, tokens, activations);
    let [n_tokens, width] = hidden.dims();
    let mut hidden_grads = Vec::new();
    for range in chunks(n_tokens, HEAD_ROWS) {
        let rows = leaf(hidden.clone().slice([range.clone(), 0..width]));
        let mut grads = loss(model.logits(rows.clone()), range).backward();
        hidden_grads.push(rows.grad_remove(&mut grads).expect("every loss depends on its logits"));
        sums.accumulate(model, GradientsParams::from_grads(grads, model));
    }
    drop(hidden);
    trunk.backward(model, tokens, Tensor::cat(hidden_grads, 0), model, sums);
}

/// Adds the gradients of a loss on values to `sums`; `loss` gets the values [N] in front of `tokens`.
/// # Shapes
/// ids [R, T'], tokens N of them
pub fn accumulate_critic<B: TrainBackend>(
    critic: &Critic<B>,
    ids: Tensor<B, 2, Int>,
    tokens: &TokenIndex,
    activations: Activations,
    sums: &mut GradientsAccumulator<Critic<B>>,
    loss: impl FnOnce(Tensor<B, 1>) -> Tensor<B, 1>,
) {
    let (trunk, hidden) = TrunkPass::forward(&critic.trunk, ids, tokens, activations);
    let rows = leaf(hidden);
    let mut grads = loss(critic.values(rows.clone())).backward();
    let hidden_grads = rows.grad_remove(&mut grads).expect("every loss depends on its values");
    sums.accumulate(critic, GradientsParams::from_grads(grads, critic));
    trunk.backward(&critic.trunk, tokens, hidden_grads, critic, sums);
}

/// A forward pass of the trunk over one micro-batch, waiting for the gradient of its hidden states.
enum TrunkPass<B: TrainBackend> {
    /// hidden [N, D], recorded
    Kept { hidden: Tensor<B, 2> },
    /// The input of every block and that of the final norm, each [R T', D].
    Recomputed { ids: Tensor<B, 2, Int>, inputs: Vec<Tensor<B::InnerBackend, 2>>, output: Tensor<B::InnerBackend, 2> },
}

impl<B: TrainBackend> TrunkPass<B> {
    /// Also returns the hidden states of `tokens`, [N, D].
    fn forward(
        model: &Decoder<B>,
        ids: Tensor<B, 2, Int>,
        tokens: &TokenIndex,
        activations: Activations,
    ) -> (Self, Tensor<B::InnerBackend, 2>) {
        match activations {
            Activations::Kept => {
                let hidden = tokens.gather(model.hidden(ids, None, None));
                let values = hidden.clone().inner();
                (Self::Kept { hidden }, values)
            }
            Activations::Recomputed => {
                let inner = model.valid();
                let mut blocks = inner.blocks(ids.clone().inner(), None);
                let mut x = blocks.embed();
                let mut inputs = Vec::new();
                for layer in 0..inner.model.layers.len() {
                    inputs.push(x.clone());
                    x = blocks.block(layer, x);
                }
                let hidden = tokens.gather(blocks.norm(x.clone()));
                (Self::Recomputed { ids, inputs, output: x }, hidden)
            }
        }
    }

    /// Adds the trunk's gradients to those of `whole`, the module it is a part of.
    /// # Shapes
    /// hidden_grads [N, D]
    fn backward<M: AutodiffModule<B>>(
        self,
        model: &Decoder<B>,
        tokens: &TokenIndex,
        hidden_grads: Tensor<B::InnerBackend, 2>,
        whole: &M,
        sums: &mut GradientsAccumulator<M>,
    ) {
        match self {
            Self::Kept { hidden } => {
                let grads = (hidden * Tensor::from_inner(hidden_grads)).sum().backward();
                sums.accumulate(whole, GradientsParams::from_grads(grads, whole));
            }
            Self::Recomputed { ids, inputs, output } => {
                let mut blocks = model.blocks(ids, None);
                let mut pull_back = |x: Tensor<B::InnerBackend, 2>, grad, f: &mut dyn FnMut(Tensor<B, 2>) -> Tensor<B, 2>| {
                    let x = leaf(x);
                    let mut grads = (f(x.clone()) * Tensor::from_inner(grad)).sum().backward();
                    let grad = x.grad_remove(&mut grads).expect("every block depends on its input");
                    sums.accumulate(whole, GradientsParams::from_grads(grads, whole));
                    grad
                };
                let mut grad = pull_back(output, hidden_grads, &mut |x| tokens.gather(blocks.norm(x)));
                for (layer, input) in inputs.into_iter().enumerate().rev() {
                    grad = pull_back(input, grad, &mut |x| blocks.block(layer, x));
                }
                let grads = (blocks.embed() * Tensor::from_inner(grad)).sum().backward();
                sums.accumulate(whole, GradientsParams::from_grads(grads, whole));
            }
        }
    }
}

/// A constant whose gradient is asked for.
fn leaf<B: TrainBackend>(values: Tensor<B::InnerBackend, 2>) -> Tensor<B, 2> {
    Tensor::from_inner(values).require_grad()
}

/// `0..n` in pieces of at most `size`.
pub fn chunks(n: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(size).map(move |start| start..(start + size).min(n))
}
