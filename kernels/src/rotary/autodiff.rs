//! The backward pass of the rotation. It needs the angles alone, so the input is not kept and a
//! backend may write where it lies.
use super::RotaryOps;
use crate::graph::{Autodiff, CheckpointStrategy, FloatTensor, Gradient, node};

impl<B: RotaryOps, C: CheckpointStrategy> RotaryOps for Autodiff<B, C> {
    fn rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        // The tables are constants of this operation.
        let (cos, sin) = (cos.primitive, sin.primitive);
        node::<Backward, B, C, _, _>(
            [x],
            |[x]| B::rotary(x, cos.clone(), sin.clone()),
            |_| [cos.clone(), sin.clone()],
        )
    }
}

#[derive(Debug)]
struct Backward;

impl<B: RotaryOps> Gradient<B, 1, 0> for Backward {
    /// Cosines and sines.
    type Rest = [FloatTensor<B>; 2];

    fn gradients(
        []: [FloatTensor<B>; 0],
        grad: FloatTensor<B>,
        [cos, sin]: [FloatTensor<B>; 2],
    ) -> [FloatTensor<B>; 1] {
        [B::rotary(grad, cos, B::float_neg(sin))]
    }
}
