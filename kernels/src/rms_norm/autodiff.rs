//! The backward pass of RMSNorm.
use super::RmsNormOps;
use crate::graph::{Autodiff, CheckpointStrategy, FloatTensor, Gradient, node};

impl<B: RmsNormOps, C: CheckpointStrategy> RmsNormOps for Autodiff<B, C> {
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
        node::<Backward, B, C, _, _>(
            [x, weight],
            |[x, weight]| B::rms_norm(x, weight, eps),
            |_| eps,
        )
    }
}

#[derive(Debug)]
struct Backward;

impl<B: RmsNormOps> Gradient<B, 2, 2> for Backward {
    type Rest = f64;

    fn gradients(
        [x, weight]: [FloatTensor<B>; 2],
        grad: FloatTensor<B>,
        eps: f64,
    ) -> [FloatTensor<B>; 2] {
        B::rms_norm_backward(x, weight, grad, eps)
    }
}
