//! The backward pass of GELU.
use super::ErfGeluOps;
use crate::graph::{Autodiff, CheckpointStrategy, FloatTensor, Gradient, node};

impl<B: ErfGeluOps, C: CheckpointStrategy> ErfGeluOps for Autodiff<B, C> {
    fn erf_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        node::<Backward, B, C, _, _>([x], |[x]| B::erf_gelu(x), |_| ())
    }
}

#[derive(Debug)]
struct Backward;

impl<B: ErfGeluOps> Gradient<B, 1, 1> for Backward {
    type Rest = ();

    fn gradients([x]: [FloatTensor<B>; 1], grad: FloatTensor<B>, (): ()) -> [FloatTensor<B>; 1] {
        [B::erf_gelu_backward(x, grad)]
    }
}
