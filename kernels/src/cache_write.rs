//! Writing new keys or values behind the positions a cache already holds, in place.
//!
//! Contract: only the named positions change; the cache's memory is written where it lies when nobody else holds the tensor (else it is copied once,
//! and the result is the same). burn's `slice_assign` copies the whole tensor on the CPU backend even when it is the only owner.
//! Cost: B K n hd elements read and written, for n new positions a row.
use crate::{
    KernelOps,
    cpu::{CpuTensor, View, readable},
};
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorData, TensorMetadata, TensorPrimitive, backend::Backend, ops::FloatTensor};

/// Where the new positions of one row go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSpan {
    /// Row of the cache.
    pub slot: usize,
    /// First position written.
    pub start: usize,
    /// Number of positions written: the first `n` of the row's new ones (the rest is padding).
    pub n: usize,
}

/// Copies values\[b, :, ..n\] to the positions start..start+n of slot `spans[b].slot`, and returns the cache. Slots are distinct.
///
/// Not differentiable: the result is a constant.
/// # Shapes
/// values [B, K, T, hd]; cache [n_slots, K, capacity, hd] for `position_dim` 2, [n_slots, K, hd, capacity] for 3.
/// # Panics
/// When a span does not fit into the cache (a bug of the caller).
pub fn cache_write<B: KernelOps>(cache: Tensor<B, 4>, values: Tensor<B, 4>, spans: &[CacheSpan], position_dim: usize) -> Tensor<B, 4> {
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
    Tensor::from_primitive(TensorPrimitive::Float(B::cache_write(float(cache), float(values), spans, position_dim)))
}

/// One scatter into the flattened cache: whole vectors for `position_dim` 2, single elements for 3.
pub(crate) fn reference<B: Backend>(
    cache: FloatTensor<B>,
    values: FloatTensor<B>,
    spans: &[CacheSpan],
    position_dim: usize,
) -> FloatTensor<B> {
    let (cache, values) = (tensor::<B>(cache), tensor::<B>(values));
    let shape = cache.dims();
    let [_, n_heads, n_new, head_dim] = values.dims();
    let device = cache.device();
    let capacity = shape[position_dim];
    // Offsets of the written vectors (in vectors) or elements (in elements), and where they are found in `values`.
    let (mut from, mut to) = (Vec::new(), Vec::new());
    for (row, span) in spans.iter().enumerate() {
        for head in 0..n_heads {
            for t in 0..span.n {
                let vector = (row * n_heads + head) * n_new + t;
                let head_of_cache = span.slot * n_heads + head;
                if position_dim == 2 {
                    from.push(vector as i32);
                    to.push((head_of_cache * capacity + span.start + t) as i32);
                } else {
                    for d in 0..head_dim {
                        from.push((vector * head_dim + d) as i32);
                        to.push(((head_of_cache * head_dim + d) * capacity + span.start + t) as i32);
                    }
                }
            }
        }
    }
    let width = if position_dim == 2 { head_dim } else { 1 };
    let n_written = from.len();
    let ids = |ids: Vec<i32>| Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [n_written]), &device);
    let n_values: usize = values.dims().iter().product();
    let n_cache: usize = shape.iter().product();
    let written = values.reshape([n_values / width, width]).select(0, ids(from));
    let cache = cache.reshape([n_cache / width, width]);
    let cache = cache.scatter_nd(ids(to).reshape([n_written, 1]), written, IndexingUpdateOp::Assign);
    cache.reshape(shape).into_primitive().tensor()
}

/// Plain copies into the cache's own memory. Other dtypes than f32 go through the reference.
pub(crate) fn cpu(mut cache: CpuTensor, values: CpuTensor, spans: &[CacheSpan], position_dim: usize) -> CpuTensor {
    if cache.dtype() != DType::F32 || !cache.is_contiguous() || cache.layout().start_offset() != 0 {
        return reference::<burn::backend::Flex>(cache, values, spans, position_dim);
    }
    let values = readable(values);
    let values = View::<4>::new(&values);
    let [_, n_heads, _, head_dim] = values.shape;
    let capacity = cache.shape()[position_dim];
    let data = cache.storage_mut::<f32>();
    let (position_stride, dim_stride) = if position_dim == 2 { (head_dim, 1) } else { (1, capacity) };
    for (row, span) in spans.iter().enumerate() {
        for head in 0..n_heads {
            let to = (span.slot * n_heads + head) * capacity * head_dim;
            for t in 0..span.n {
                let from = row * values.strides[0] + head * values.strides[1] + t * values.strides[2];
                let to = to + (span.start + t) * position_stride;
                for d in 0..head_dim {
                    data[to + d * dim_stride] = values.data[from + d * values.strides[3]];
                }
            }
        }
    }
    cache
}

fn tensor<B: Backend>(primitive: FloatTensor<B>) -> Tensor<B, 4> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::{backend::Flex, tensor::s};

    const SPANS: [CacheSpan; 2] = [CacheSpan { slot: 2, start: 1, n: 3 }, CacheSpan { slot: 0, start: 4, n: 1 }];

    fn counting(shape: [usize; 4], first: f32) -> Tensor<Flex, 4> {
        let n: usize = shape.iter().product();
        Tensor::from_data(TensorData::new((0..n).map(|i| first + i as f32).collect(), shape), &Default::default())
    }

    /// Three slots of five positions, two heads of size four; two rows of three new tokens.
    fn cache_and_values() -> (Tensor<Flex, 4>, Tensor<Flex, 4>) {
        (counting([3, 2, 5, 4], 1000.0), counting([2, 2, 3, 4], 0.0))
    }

    fn expected() -> Vec<f32> {
        let (mut cache, values) = cache_and_values();
        for (row, span) in SPANS.iter().enumerate() {
            let new = values.clone().slice(s![row..row + 1, .., 0..span.n, ..]);
            cache = cache.slice_assign(s![span.slot..span.slot + 1, .., span.start..span.start + span.n, ..], new);
        }
        cache.into_data().to_vec().unwrap()
    }

    fn own(tensor: Tensor<Flex, 4>) -> Tensor<Flex, 4> {
        Tensor::from_primitive(TensorPrimitive::Float(tensor.into_primitive().tensor().to_contiguous()))
    }

    #[test]
    fn only_the_named_positions_change_in_either_layout() {
        for position_dim in [2, 3] {
            let (cache, values) = cache_and_values();
            let cache = own(cache.swap_dims(2, position_dim));
            let float = |tensor: &Tensor<Flex, 4>| tensor.clone().into_primitive().tensor();
            let plain = tensor::<Flex>(reference::<Flex>(float(&cache), float(&values), &SPANS, position_dim));
            let cpu = cache_write(cache, values, &SPANS, position_dim);
            for written in [plain, cpu] {
                assert_eq!(
                    written.swap_dims(2, position_dim).into_data().to_vec::<f32>().unwrap(),
                    expected(),
                    "position_dim {position_dim}"
                );
            }
        }
    }

    #[test]
    fn values_may_have_any_strides() {
        let (cache, values) = cache_and_values();
        let values = own(values.swap_dims(1, 2)).swap_dims(1, 2);
        assert_eq!(cache_write(cache, values, &SPANS, 2).into_data().to_vec::<f32>().unwrap(), expected());
    }

    #[test]
    fn a_cache_with_one_owner_is_written_in_place() {
        let (cache, values) = cache_and_values();
        let cache = cache.into_primitive().tensor();
        let address = cache.bytes().as_ptr();
        let cache = cpu(cache, values.into_primitive().tensor(), &SPANS, 2);
        assert_eq!(cache.bytes().as_ptr(), address);
    }

    #[test]
    fn other_holders_of_the_cache_keep_the_old_content() {
        let (cache, values) = cache_and_values();
        let before = cache.clone();
        cache_write(cache, values, &SPANS, 2);
        assert_eq!(before.into_data(), cache_and_values().0.into_data());
    }
}
