//! Writing into the cache in CubeCL: one unit an element, no copy of the cache when its buffer has
//! one holder.
use crate::{
    cube::{ElementCubes, addresses, table},
    types::CacheSpan,
};
use burn::tensor::TensorMetadata;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

/// Integers of a span in the table `spans` of the kernel: slot, start, n.
const SPAN_NUMBERS: usize = 3;

/// Neighbouring units take neighbouring positions with `is_position_inner` (as the cache then has
/// them), else neighbouring elements of a vector. values `[B, K, T, hd]`; cache [n_slots, K,
/// capacity, hd] in any order of memory.
#[cube(launch, address_type = "dynamic")]
fn write<F: Float, V: Float>(
    cache: &mut Tensor<F>,
    values: &Tensor<V>,
    spans: &Tensor<u32>,
    n: usize,
    #[comptime] is_position_inner: bool,
    #[define(F, V)] _types: [StorageType; 2],
) {
    let i = ABSOLUTE_POS;
    if i < n {
        let (n_heads, n_new, head_dim) = (values.shape(1), values.shape(2), values.shape(3));
        let pair = i / (n_new * head_dim);
        let rest = i % (n_new * head_dim);
        let (b, head) = (pair / n_heads, pair % n_heads);
        let t = if comptime![is_position_inner] { rest % n_new } else { rest / head_dim };
        let d = if comptime![is_position_inner] { rest / n_new } else { rest % head_dim };
        if t < usize::cast_from(spans[b * SPAN_NUMBERS + 2]) {
            let slot = usize::cast_from(spans[b * SPAN_NUMBERS]);
            let position = usize::cast_from(spans[b * SPAN_NUMBERS + 1]) + t;
            let from = b * values.stride(0)
                + head * values.stride(1)
                + t * values.stride(2)
                + d * values.stride(3);
            let to = slot * cache.stride(0)
                + head * cache.stride(1)
                + position * cache.stride(2)
                + d * cache.stride(3);
            cache[to] = F::cast_from(values[from]);
        }
    }
}

pub(crate) fn forward<R: CubeRuntime>(
    cache: CubeTensor<R>,
    values: CubeTensor<R>,
    spans: &[CacheSpan],
    position_dim: usize,
) -> CubeTensor<R> {
    let cache = if cache.can_mut() && cache.is_nonoverlapping() { cache } else { cache.copy() };
    let n = values.shape().num_elements();
    if n > 0 {
        let numbers: Vec<u32> = spans
            .iter()
            .flat_map(|span| [span.slot, span.start, span.n])
            .map(|number| number as u32)
            .collect();
        let spans = table(&cache, &numbers);
        let cubes = ElementCubes::new(&cache, n);
        let types = [cache.dtype.into(), values.dtype.into()];
        // The kernel sees [n_slots, K, capacity, hd] whatever the order of memory.
        let mut logical = cache.clone();
        logical.meta.swap(2, position_dim);
        write::launch::<R>(
            &cache.client,
            cubes.count,
            cubes.dim,
            addresses(&[&logical, &values]),
            logical.into_tensor_arg(),
            values.into_tensor_arg(),
            spans.into_tensor_arg(),
            n,
            position_dim == 3,
            types,
        );
    }
    cache
}
