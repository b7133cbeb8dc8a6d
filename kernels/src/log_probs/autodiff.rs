//! The backward pass of log-probabilities of logits.
use super::LogProbsOps;
use crate::graph::{Autodiff, CheckpointStrategy, FloatTensor, Gradient, IntTensor, node};

impl<B: LogProbsOps, C: CheckpointStrategy> LogProbsOps for Autodiff<B, C> {
    fn log_probs(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
        temperature: f64,
    ) -> FloatTensor<Self> {
        node::<Backward, B, C, _, _>(
            [logits],
            |[logits]| B::log_probs(logits, labels.clone(), temperature),
            |packed| (packed.clone(), labels.clone(), temperature),
        )
    }
}

#[derive(Debug)]
struct Backward;

impl<B: LogProbsOps> Gradient<B, 1, 1> for Backward {
    /// The packed result, labels, temperature.
    type Rest = (FloatTensor<B>, IntTensor<B>, f64);

    fn gradients(
        [logits]: [FloatTensor<B>; 1],
        grad: FloatTensor<B>,
        (packed, labels, temperature): Self::Rest,
    ) -> [FloatTensor<B>; 1] {
        [B::log_probs_backward(logits, packed, grad, labels, temperature)]
    }
}
