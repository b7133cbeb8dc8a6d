//! A cache is a constant of any graph.
use super::{CacheSpan, CacheWriteOps};
use crate::graph::{Autodiff, CheckpointStrategy, FloatTensor};
use burn::tensor::backend::AutodiffBackend;

impl<B: CacheWriteOps, C: CheckpointStrategy> CacheWriteOps for Autodiff<B, C> {
    fn cache_write(
        cache: FloatTensor<Self>,
        values: FloatTensor<Self>,
        spans: &[CacheSpan],
        position_dim: usize,
    ) -> FloatTensor<Self> {
        Self::from_inner(B::cache_write(cache.primitive, values.primitive, spans, position_dim))
    }
}
