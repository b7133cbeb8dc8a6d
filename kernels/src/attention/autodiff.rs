//! The backward pass of attention.
use super::{AttentionOps, CausalRows};
use crate::graph::{Autodiff, CheckpointStrategy, FloatTensor, Gradient, node};
use burn::tensor::backend::AutodiffBackend;

impl<B: AttentionOps, C: CheckpointStrategy> AttentionOps for Autodiff<B, C> {
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        rows: &CausalRows,
    ) -> FloatTensor<Self> {
        if rows.slots.is_some() {
            // A cache is a constant.
            let [q, k, v] = [q, k, v].map(|tensor| tensor.primitive);
            return Self::from_inner(B::causal_attention(q, k, v, rows));
        }
        node::<Backward, B, C, _, _>(
            [q, k, v],
            |[q, k, v]| B::causal_attention(q, k, v, rows),
            |_| rows.clone(),
        )
    }
}

#[derive(Debug)]
struct Backward;

impl<B: AttentionOps> Gradient<B, 3, 3> for Backward {
    type Rest = CausalRows;

    fn gradients(
        [q, k, v]: [FloatTensor<B>; 3],
        grad: FloatTensor<B>,
        rows: CausalRows,
    ) -> [FloatTensor<B>; 3] {
        B::causal_attention_backward(q, k, v, grad, &rows)
    }
}
