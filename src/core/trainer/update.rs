//! From a loss on hidden states to the gradients of a network.
//!
//! The heads are needed on the trained positions only (method §11.2). So the backward pass is cut
//! at the hidden states: the loss runs through the head on a detached copy of the gathered rows and
//! leaves their gradient, and a vector-Jacobian product carries it through the trunk:
//!
//! ```text
//! h = gather(trunk(ids))               [N, D]
//! g = d loss(head, h) / d h            the loss gets hidden rows and a head, never logits [N, V]
//! backward of sum(h · g)               trunk gradients, exact
//! ```
//!
//! The sum's value is meaningless; its gradient with respect to h is g. Gradients of the head, of
//! both uses of a tied matrix and of all micro-batches meet in one accumulator. Equal to the whole
//! backward pass up to rounding. A loss that also needs another model's logits (a teacher's, a
//! reference policy's) takes that model's hidden rows and head.
//!
//! With `model.recompute` the trunk is cut as well, at the input of every block: the first pass
//! records nothing but these inputs, and the backward pass runs each block again, from the last to
//! the first, with its own vector-Jacobian product. Activations of one block live at a time, for a
//! third more compute.
//!
//! Every loss handed in here is a *sum* over its tokens divided by the token count of the whole
//! optimizer step, so that adding up micro-batches gives the gradient of one big batch.
use crate::rollout::TokenIndex;
use burn::{
    module::AutodiffModule,
    optim::{GradientsAccumulator, GradientsParams},
    tensor::{Int, Tensor},
};
use dgpo_models::{
    TrainBackend,
    decoder::Decoder,
    heads::{Critic, LinearHead},
};

/// Activations of the forward pass that the backward pass through the trunk needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// Kept from the forward pass.
    Kept,
    /// Only the input of each block is kept, the rest computed again (`model.recompute`).
    Recomputed,
}

/// Adds the gradients of a loss on token distributions to `sums`; `loss` gets the hidden rows [N,
/// D] that `tokens` are predicted from with the vocabulary head, and returns a scalar.
/// # Shapes
/// ids `[R, T']`, tokens N of them
pub fn accumulate_decoder<B: TrainBackend>(
    model: &Decoder<B>,
    ids: Tensor<B, 2, Int>,
    tokens: &TokenIndex,
    activations: Activations,
    sums: &mut GradientsAccumulator<Decoder<B>>,
    loss: impl FnOnce(LinearHead<B>) -> Tensor<B, 1>,
) {
    accumulate(model, model, ids, tokens, activations, sums, |hidden| loss(model.head(hidden)));
}

/// Adds the gradients of a loss on values to `sums`; `loss` gets the values `[N]` before `tokens`.
/// # Shapes
/// ids `[R, T']`, tokens N of them
pub fn accumulate_critic<B: TrainBackend>(
    critic: &Critic<B>,
    ids: Tensor<B, 2, Int>,
    tokens: &TokenIndex,
    activations: Activations,
    sums: &mut GradientsAccumulator<Critic<B>>,
    loss: impl FnOnce(Tensor<B, 1>) -> Tensor<B, 1>,
) {
    accumulate(critic, &critic.trunk, ids, tokens, activations, sums, |hidden| {
        loss(critic.values(hidden))
    });
}

/// The backward pass described above; `trunk` is a part of `whole`, whose gradients are summed.
fn accumulate<B: TrainBackend, M: AutodiffModule<B>>(
    whole: &M,
    trunk: &Decoder<B>,
    ids: Tensor<B, 2, Int>,
    tokens: &TokenIndex,
    activations: Activations,
    sums: &mut GradientsAccumulator<M>,
    loss: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 1>,
) {
    let (pass, hidden) = TrunkPass::forward(trunk, ids, tokens, activations);
    let rows = leaf(hidden);
    let mut grads = loss(rows.clone()).backward();
    let hidden_grads = rows.grad_remove(&mut grads).expect("every loss depends on its hidden rows");
    sums.accumulate(whole, GradientsParams::from_grads(grads, whole));
    pass.backward(trunk, tokens, hidden_grads, whole, sums);
}

/// A forward pass of the trunk over one micro-batch, kept until the gradient of its hidden states
/// is known.
enum TrunkPass<B: TrainBackend> {
    /// hidden `[N, D]`, recorded
    Kept { hidden: Tensor<B, 2> },
    /// The input of every block and that of the final norm, each [R T', D].
    Recomputed {
        ids: Tensor<B, 2, Int>,
        inputs: Vec<Tensor<B::InnerBackend, 2>>,
        output: Tensor<B::InnerBackend, 2>,
    },
}

impl<B: TrainBackend> TrunkPass<B> {
    /// Also returns the hidden states of `tokens`, `[N, D]`.
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
    /// hidden_grads `[N, D]`
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
                let mut pull_back =
                    |x: Tensor<B::InnerBackend, 2>,
                     grad,
                     f: &mut dyn FnMut(Tensor<B, 2>) -> Tensor<B, 2>| {
                        let x = leaf(x);
                        let mut grads = (f(x.clone()) * Tensor::from_inner(grad)).sum().backward();
                        let grad =
                            x.grad_remove(&mut grads).expect("every block depends on its input");
                        sums.accumulate(whole, GradientsParams::from_grads(grads, whole));
                        grad
                    };
                let mut grad =
                    pull_back(output, hidden_grads, &mut |x| tokens.gather(blocks.norm(x)));
                for (layer, input) in inputs.into_iter().enumerate().rev() {
                    grad = pull_back(input, grad, &mut |x| blocks.block(layer, x));
                }
                let grads = (blocks.embed() * Tensor::from_inner(grad)).sum().backward();
                sums.accumulate(whole, GradientsParams::from_grads(grads, whole));
            }
        }
    }
}

/// A leaf of the graph: a constant whose gradient is wanted.
fn leaf<B: TrainBackend>(values: Tensor<B::InnerBackend, 2>) -> Tensor<B, 2> {
    Tensor::from_inner(values).require_grad()
}

#[cfg(test)]
mod tests;
