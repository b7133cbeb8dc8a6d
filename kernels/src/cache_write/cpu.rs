//! Writing into a cache on the CPU backend.
use super::{CacheSpan, reference};
use crate::cpu::{CpuTensor, View, readable};
use burn::{
    backend::Flex,
    tensor::{DType, TensorMetadata},
};

/// Plain copies into the cache's own memory. Other dtypes than f32 go through the reference.
pub fn forward(mut cache: CpuTensor, values: CpuTensor, spans: &[CacheSpan], position_dim: usize) -> CpuTensor {
    if cache.dtype() != DType::F32 || !cache.is_contiguous() || cache.layout().start_offset() != 0 {
        return reference::forward::<Flex>(cache, values, spans, position_dim);
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
