//! The backward pass of log-probabilities and divergences of hidden states. The teacher is a
//! constant.
use super::{Divergence, HeadShape, LinearKlOps};
use crate::graph::{Autodiff, CheckpointStrategy, FloatTensor, Gradient, IntTensor, node};

impl<B: LinearKlOps, C: CheckpointStrategy> LinearKlOps for Autodiff<B, C> {
    fn linear_kl(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        teacher_hidden: FloatTensor<Self>,
        teacher_weight: FloatTensor<Self>,
        labels: IntTensor<Self>,
        heads: [HeadShape; 2],
        divergence: Divergence,
        temperature: f64,
    ) -> FloatTensor<Self> {
        let teacher = [teacher_hidden.primitive, teacher_weight.primitive];
        node::<Backward, B, C, _, _>(
            [hidden, weight],
            |[hidden, weight]| {
                let ([t_hidden, t_weight], labels) = (teacher.clone(), labels.clone());
                B::linear_kl(
                    hidden,
                    weight,
                    t_hidden,
                    t_weight,
                    labels,
                    heads,
                    divergence,
                    temperature,
                )
            },
            |packed| {
                (teacher.clone(), packed.clone(), labels.clone(), heads, divergence, temperature)
            },
        )
    }
}

#[derive(Debug)]
struct Backward;

impl<B: LinearKlOps> Gradient<B, 2, 2> for Backward {
    /// The teacher's hidden states and head, the packed result, labels, heads, divergence,
    /// temperature.
    type Rest =
        ([FloatTensor<B>; 2], FloatTensor<B>, IntTensor<B>, [HeadShape; 2], Divergence, f64);

    fn gradients(
        [hidden, weight]: [FloatTensor<B>; 2],
        grad: FloatTensor<B>,
        ([t_hidden, t_weight], packed, labels, heads, divergence, temperature): Self::Rest,
    ) -> [FloatTensor<B>; 2] {
        B::linear_kl_backward(
            hidden,
            weight,
            t_hidden,
            t_weight,
            packed,
            grad,
            labels,
            heads,
            divergence,
            temperature,
        )
    }
}
