//! A token is no function that has a gradient.
use super::{RowSampling, SampleOps};
use crate::graph::{Autodiff, CheckpointStrategy, FloatTensor};
use burn::tensor::backend::AutodiffBackend;

impl<B: SampleOps, C: CheckpointStrategy> SampleOps for Autodiff<B, C> {
    fn sample(logits: FloatTensor<Self>, rows: &[RowSampling]) -> FloatTensor<Self> {
        Self::from_inner(B::sample(logits.primitive, rows))
    }
}
