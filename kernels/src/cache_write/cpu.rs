//! Writing into a cache on the CPU backend.
use super::reference;
use crate::{
    cpu::{CpuTensor, stored, strides},
    types::CacheSpan,
};
use burn::{
    backend::Flex,
    tensor::{DType, TensorMetadata, ops::FloatTensorOps},
};
use half::{bf16, f16};

/// Plain copies into the cache's own memory, in its own type.
pub(super) fn forward(
    mut cache: CpuTensor,
    values: CpuTensor,
    spans: &[CacheSpan],
    position_dim: usize,
) -> CpuTensor {
    let dtype = cache.dtype();
    if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
        || !cache.is_contiguous()
        || cache.layout().start_offset() != 0
    {
        return reference::forward::<Flex>(cache, values, spans, position_dim);
    }
    let values =
        if values.dtype() == dtype { values } else { Flex::float_cast(values, dtype.into()) };
    let values = stored(values);
    let [_, n_heads, _, head_dim] = values.layout().shape().dims();
    let layout = Layout { n_heads, head_dim, capacity: cache.shape()[position_dim], position_dim };
    let (start, strides) = (values.layout().start_offset(), strides(&values));
    match dtype {
        DType::F32 => layout.write(
            cache.storage_mut::<f32>(),
            &values.storage::<f32>()[start..],
            strides,
            spans,
        ),
        DType::F16 => layout.write(
            cache.storage_mut::<f16>(),
            &values.storage::<f16>()[start..],
            strides,
            spans,
        ),
        _ => layout.write(
            cache.storage_mut::<bf16>(),
            &values.storage::<bf16>()[start..],
            strides,
            spans,
        ),
    }
    cache
}

/// Of a cache in row-major order.
struct Layout {
    n_heads: usize,
    head_dim: usize,
    capacity: usize,
    position_dim: usize,
}

impl Layout {
    fn write<T: Copy>(
        &self,
        cache: &mut [T],
        values: &[T],
        strides: [usize; 4],
        spans: &[CacheSpan],
    ) {
        let Self { n_heads, head_dim, capacity, position_dim } = *self;
        let (position_stride, dim_stride) =
            if position_dim == 2 { (head_dim, 1) } else { (1, capacity) };
        for (row, span) in spans.iter().enumerate() {
            for head in 0..n_heads {
                let to = (span.slot * n_heads + head) * capacity * head_dim;
                for t in 0..span.n {
                    let from = row * strides[0] + head * strides[1] + t * strides[2];
                    let to = to + (span.start + t) * position_stride;
                    for d in 0..head_dim {
                        cache[to + d * dim_stride] = values[from + d * strides[3]];
                    }
                }
            }
        }
    }
}
