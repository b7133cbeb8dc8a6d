//! The backward pass of log-probabilities and divergences of logits. The teacher is a constant.
use super::{Divergence, LogSoftmaxKlOps};
use crate::graph::{Autodiff, CheckpointStrategy, FloatTensor, Gradient, IntTensor, node};

impl<B: LogSoftmaxKlOps, C: CheckpointStrategy> LogSoftmaxKlOps for Autodiff<B, C> {
    fn log_softmax_kl(
        student: FloatTensor<Self>,
        teacher: FloatTensor<Self>,
        labels: IntTensor<Self>,
        divergence: Divergence,
        temperature: f64,
    ) -> FloatTensor<Self> {
        let teacher = teacher.primitive;
        node::<Backward, B, C, _, _>(
            [student],
            |[student]| {
                B::log_softmax_kl(student, teacher.clone(), labels.clone(), divergence, temperature)
            },
            |packed| (teacher.clone(), packed.clone(), labels.clone(), divergence, temperature),
        )
    }
}

#[derive(Debug)]
struct Backward;

impl<B: LogSoftmaxKlOps> Gradient<B, 1, 1> for Backward {
    /// The teacher's logits, the packed result, labels, divergence, temperature.
    type Rest = (FloatTensor<B>, FloatTensor<B>, IntTensor<B>, Divergence, f64);

    fn gradients(
        [student]: [FloatTensor<B>; 1],
        grad: FloatTensor<B>,
        (teacher, packed, labels, divergence, temperature): Self::Rest,
    ) -> [FloatTensor<B>; 1] {
        [B::log_softmax_kl_backward(
            student,
            teacher,
            packed,
            grad,
            labels,
            divergence,
            temperature,
        )]
    }
}
