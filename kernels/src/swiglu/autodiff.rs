//! The backward pass of SwiGLU.
use super::SwigluOps;
use crate::graph::{Autodiff, CheckpointStrategy, FloatTensor, Gradient, node};

impl<B: SwigluOps, C: CheckpointStrategy> SwigluOps for Autodiff<B, C> {
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        node::<Backward, B, C, _, _>([gate, up], |[gate, up]| B::swiglu(gate, up), |_| ())
    }
}

#[derive(Debug)]
struct Backward;

impl<B: SwigluOps> Gradient<B, 2, 2> for Backward {
    type Rest = ();

    fn gradients(
        [gate, up]: [FloatTensor<B>; 2],
        grad: FloatTensor<B>,
        (): (),
    ) -> [FloatTensor<B>; 2] {
        B::swiglu_backward(gate, up, grad)
    }
}
