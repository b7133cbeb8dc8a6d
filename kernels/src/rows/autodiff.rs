//! The backward pass of one row for all.
use super::{ExpandRowsOps, sum};
use crate::graph::{Autodiff, CheckpointStrategy, FloatTensor, Gradient, node};

impl<B: ExpandRowsOps, C: CheckpointStrategy> ExpandRowsOps for Autodiff<B, C> {
    fn expand_rows(row: FloatTensor<Self>, n_rows: usize) -> FloatTensor<Self> {
        node::<Backward, B, C, _, _>([row], |[row]| B::expand_rows(row, n_rows), |_| ())
    }
}

#[derive(Debug)]
struct Backward;

impl<B: ExpandRowsOps> Gradient<B, 1, 0> for Backward {
    type Rest = ();

    fn gradients([]: [FloatTensor<B>; 0], grad: FloatTensor<B>, (): ()) -> [FloatTensor<B>; 1] {
        [sum::<B>(grad)]
    }
}
