//! Writing new keys or values behind the positions a cache already holds, in place.
//!
//! Contract: only the named positions change; the cache's memory is written where it lies when
//! nobody else holds the tensor (else it is copied once, and the result is the same). burn's
//! `slice_assign` copies the whole tensor on the CPU backend even when it is the only owner. Cost:
//! B K n hd elements read and written, for n new positions a row.
mod autodiff;
mod cpu;
#[cfg(feature = "cube")]
mod kernel;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

pub use crate::types::CacheSpan;

use crate::operation::*;
use burn::tensor::{Tensor, TensorPrimitive};

operation! {
    /// Writing into a cache on a backend's own tensors.
    CacheWriteOps: Backend, own;

    /// See [`cache_write`].
    forward cache_write([cache, values], [], &spans: [CacheSpan], position_dim: usize)
        -> (like(&cache));
}

/// Copies values\[b, :, ..n\] to the positions start..start+n of slot `spans[b].slot`, and returns
/// the cache. Slots are distinct.
///
/// Not differentiable: the result is a constant.
/// # Shapes
/// values `[B, K, T, hd]`; cache [n_slots, K, capacity, hd] for `position_dim` 2, [n_slots, K, hd,
/// capacity] for 3.
/// # Panics
/// When a span does not fit into the cache (a bug of the caller).
pub fn cache_write<B: CacheWriteOps>(
    cache: Tensor<B, 4>,
    values: Tensor<B, 4>,
    spans: &[CacheSpan],
    position_dim: usize,
) -> Tensor<B, 4> {
    let (n_slots, capacity) = (cache.dims()[0], cache.dims()[position_dim]);
    let [n_rows, _, n_new, _] = values.dims();
    assert_eq!(spans.len(), n_rows, "one span a row");
    for span in spans {
        assert!(
            span.slot < n_slots && span.n <= n_new && span.start + span.n <= capacity,
            "{span:?} does not fit {n_slots} slots of {capacity} positions and {n_new} new ones"
        );
    }
    let float = |tensor: Tensor<B, 4>| tensor.into_primitive().tensor();
    Tensor::from_primitive(TensorPrimitive::Float(B::cache_write(
        float(cache),
        float(values),
        spans,
        position_dim,
    )))
}
