//! An operation as one node of an autodiff graph, with a hand-written backward pass that runs on
//! the inner backend.
//!
//! No autodiff runs inside a backward pass (burn would deadlock). A node keeps inputs by burn's
//! checkpointing, and beside them only what its [`Gradient`] names.
use burn::{
    backend::autodiff::{
        NodeId,
        checkpoint::base::Checkpointer,
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::backend::Backend,
};
use std::{fmt::Debug, marker::PhantomData};

pub use burn::{
    backend::autodiff::{Autodiff, checkpoint::strategy::CheckpointStrategy},
    tensor::ops::{FloatTensor, IntTensor},
};

/// The backward pass of an operation with N inputs that have gradients, the first K of which it
/// needs.
pub trait Gradient<B: Backend, const N: usize, const K: usize>: Debug + Send + 'static {
    /// State that it needs beside the inputs.
    type Rest: Clone + Debug + Send + 'static;

    /// Gradients of the inputs, given that of the result.
    fn gradients(
        inputs: [FloatTensor<B>; K],
        grad: FloatTensor<B>,
        rest: Self::Rest,
    ) -> [FloatTensor<B>; N];
}

/// `run` of the inputs; where one of them has a gradient, as a node whose backward pass is `G`.
/// `rest` is then asked for what `G` needs beside the inputs, given the result.
pub fn node<G, B, C, const N: usize, const K: usize>(
    inputs: [FloatTensor<Autodiff<B, C>>; N],
    run: impl FnOnce([FloatTensor<B>; N]) -> FloatTensor<B>,
    rest: impl FnOnce(&FloatTensor<B>) -> G::Rest,
) -> FloatTensor<Autodiff<B, C>>
where
    G: Gradient<B, N, K>,
    B: Backend,
    C: CheckpointStrategy,
{
    let nodes = inputs.each_ref().map(|input| input.node.clone());
    match Pass::<G, K>(PhantomData).prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut node) => {
            let kept: [NodeId; K] = std::array::from_fn(|i| node.checkpoint(&inputs[i]));
            let result = run(inputs.map(|input| input.primitive));
            let rest = rest(&result);
            node.finish((kept, rest), result)
        }
        OpsKind::UnTracked(node) => node.finish(run(inputs.map(|input| input.primitive))),
    }
}

/// A [`Gradient`] as burn wants it.
#[derive(Debug)]
struct Pass<G, const K: usize>(PhantomData<G>);

impl<G, B, const N: usize, const K: usize> Backward<B, N> for Pass<G, K>
where
    G: Gradient<B, N, K>,
    B: Backend,
{
    type State = ([NodeId; K], G::Rest);

    fn backward(
        self,
        ops: Ops<Self::State, N>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let (kept, rest) = ops.state;
        let inputs = kept.map(|id| checkpointer.retrieve_node_output(id));
        let gradients = G::gradients(inputs, grad, rest);
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}
