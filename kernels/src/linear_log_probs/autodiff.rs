//! The backward pass of log-probabilities of hidden states.
use super::{HeadShape, LinearLogProbsOps};
use crate::graph::{Autodiff, CheckpointStrategy, FloatTensor, Gradient, IntTensor, node};

impl<B: LinearLogProbsOps, C: CheckpointStrategy> LinearLogProbsOps for Autodiff<B, C> {
    fn linear_log_probs(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        labels: IntTensor<Self>,
        head: HeadShape,
        temperature: f64,
    ) -> FloatTensor<Self> {
        node::<Backward, B, C, _, _>(
            [hidden, weight],
            |[hidden, weight]| {
                B::linear_log_probs(hidden, weight, labels.clone(), head, temperature)
            },
            |packed| (packed.clone(), labels.clone(), head, temperature),
        )
    }
}

#[derive(Debug)]
struct Backward;

impl<B: LinearLogProbsOps> Gradient<B, 2, 2> for Backward {
    /// The packed result, labels, head, temperature.
    type Rest = (FloatTensor<B>, IntTensor<B>, HeadShape, f64);

    fn gradients(
        [hidden, weight]: [FloatTensor<B>; 2],
        grad: FloatTensor<B>,
        (packed, labels, head, temperature): Self::Rest,
    ) -> [FloatTensor<B>; 2] {
        B::linear_log_probs_backward(hidden, weight, packed, grad, labels, head, temperature)
    }
}
