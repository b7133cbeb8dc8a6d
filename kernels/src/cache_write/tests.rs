//! Writing into a cache on every backend and for every float type it has, and that it happens in
//! place where burn fuses operations.
use super::{CacheSpan, cache_write, cpu};
use crate::{
    KernelOps,
    testing::{dtypes, on_every_backend, tensor, values},
};
use burn::{
    backend::Flex,
    tensor::{DType, Tensor},
};

on_every_backend!(only_the_named_positions_change, other_holders_of_the_cache_keep_the_old_content);

/// Two rows of up to three new tokens, two heads of size four; slots of five positions.
const SPANS: [CacheSpan; 2] =
    [CacheSpan { slot: 2, start: 1, n: 3 }, CacheSpan { slot: 0, start: 4, n: 1 }];
const VALUES: [usize; 4] = [2, 2, 3, 4];
const CACHE: [usize; 4] = [3, 2, 5, 4];

fn counting<B: KernelOps>(shape: [usize; 4], first: f64, dtype: DType) -> Tensor<B, 4> {
    tensor(
        &(0..shape.iter().product()).map(|i: usize| first + i as f64).collect::<Vec<_>>(),
        shape,
        dtype,
    )
}

/// The cache as [n_slots, K, capacity, hd] after the spans are written, number by number. The cache
/// counts from -120, the values from 1.
fn expected() -> Vec<f64> {
    let mut cache: Vec<f64> = (0..120).map(|i| f64::from(i) - 120.0).collect();
    for (row, span) in SPANS.iter().enumerate() {
        for head in 0..2 {
            for t in 0..span.n {
                for d in 0..4 {
                    cache[((span.slot * 2 + head) * 5 + span.start + t) * 4 + d] =
                        1.0 + (((row * 2 + head) * 3 + t) * 4 + d) as f64;
                }
            }
        }
    }
    cache
}

/// The tensor with dimensions `a` and `b` exchanged in memory, but not to the reader.
fn stored_swapped<B: KernelOps>(x: Tensor<B, 4>, a: usize, b: usize, dtype: DType) -> Tensor<B, 4> {
    let swapped = x.swap_dims(a, b);
    tensor::<B, 4>(&values(swapped.clone()), swapped.dims(), dtype).swap_dims(a, b)
}

fn only_the_named_positions_change<B: KernelOps>() {
    for dtype in dtypes::<B>() {
        for position_dim in [2, 3] {
            for is_token_major in [false, true] {
                let new = counting::<B>(VALUES, 1.0, dtype);
                let new = if is_token_major { stored_swapped(new, 1, 2, dtype) } else { new };
                let cache = counting::<B>(CACHE, -120.0, dtype).swap_dims(2, position_dim);
                let cache = tensor(&values(cache.clone()), cache.dims(), dtype);
                let written =
                    cache_write(cache, new, &SPANS, position_dim).swap_dims(2, position_dim);
                assert_eq!(
                    values(written),
                    expected(),
                    "{position_dim}, {is_token_major}, {dtype:?}"
                );
            }
        }
    }
}

fn other_holders_of_the_cache_keep_the_old_content<B: KernelOps>() {
    let cache = counting::<B>(CACHE, -120.0, DType::F32);
    let before = cache.clone();
    let written = cache_write(cache, counting(VALUES, 1.0, DType::F32), &SPANS, 2);
    assert_eq!(values(before), (0..120).map(|i| f64::from(i) - 120.0).collect::<Vec<_>>());
    assert_eq!(values(written), expected());
}

#[test]
fn on_the_cpu_a_cache_with_one_owner_is_written_in_place() {
    for dtype in dtypes::<Flex>() {
        let cache = counting::<Flex>(CACHE, -120.0, dtype).into_primitive().tensor();
        let new = counting::<Flex>(VALUES, 1.0, dtype).into_primitive().tensor();
        let address = cache.bytes().as_ptr();
        let cache = cpu::forward(cache, new, &SPANS, 2);
        assert_eq!(cache.bytes().as_ptr(), address, "{dtype:?}");
    }
}

#[cfg(feature = "wgpu")]
mod fusion_on_wgpu {
    use super::*;
    use crate::{cube::fusion::node, device::Hardware};
    use burn::{
        backend::{
            Wgpu,
            wgpu::{CubeBackend, CubeTensor, WgpuRuntime},
        },
        tensor::TensorPrimitive,
    };
    use std::sync::{Arc, Mutex};

    /// Buffers of keys and values, as they were found.
    type Names = Arc<Mutex<Vec<[String; 2]>>>;

    const KEY_POSITION_DIM: usize = <Wgpu as Hardware>::KEY_POSITION_DIM;

    type Plain = CubeBackend<WgpuRuntime, f32, i32, u32>;

    fn name_of(tensor: &CubeTensor<WgpuRuntime>) -> String {
        let memory = format!("{:?}", tensor.handle.memory);
        memory.split("location").next().expect("a string has a beginning").to_owned()
    }

    /// Which buffer of the device holds the tensor.
    fn buffer(tensor: &Tensor<Wgpu, 4>) -> String {
        let tensor = tensor.clone().into_primitive().tensor();
        let client = tensor.client.clone();
        name_of(&client.resolve_tensor_float::<Plain>(tensor))
    }

    /// One new token in slot 1, and an operation that reads the caches as the engine's attention
    /// does. It leaves the names of the buffers it gets.
    fn step(
        keys: Tensor<Wgpu, 4>,
        vals: Tensor<Wgpu, 4>,
        position: usize,
        read: &Names,
    ) -> (Tensor<Wgpu, 4>, Tensor<Wgpu, 4>) {
        let token =
            |by: f64| (counting::<Wgpu>([1, 1, 2, 16], 0.0, DType::F32) * by + 1.0).swap_dims(1, 2);
        let span = [CacheSpan { slot: 1, start: position, n: 1 }];
        let keys = cache_write(keys, token(2.0), &span, KEY_POSITION_DIM);
        let vals = cache_write(vals, token(3.0), &span, 2);
        let inputs = [token(4.0), keys.clone().swap_dims(2, KEY_POSITION_DIM), vals.clone()]
            .map(|x| x.into_primitive().tensor());
        let out = (inputs[0].shape.clone(), DType::F32);
        let read = read.clone();
        let out = node::<Plain, _, 3, 0>("read", inputs, [], out, move |[q, keys, vals], []| {
            read.lock().unwrap().push([name_of(&keys), name_of(&vals)]);
            q
        });
        let _ = Tensor::<Wgpu, 4>::from_primitive(TensorPrimitive::Float(out)) * 2.0;
        (keys, vals)
    }

    fn caches() -> (Tensor<Wgpu, 4>, Tensor<Wgpu, 4>) {
        let mut shape = [3, 2, 32, 16];
        let vals = Tensor::zeros(shape, &Default::default());
        shape.swap(2, KEY_POSITION_DIM);
        (Tensor::zeros(shape, &Default::default()), vals)
    }

    #[test]
    fn the_caches_stay_in_their_buffers_token_after_token() {
        if !crate::testing::has_adapter() {
            return;
        }
        let ((mut keys, mut vals), read) = (caches(), Names::default());
        let before = [buffer(&keys), buffer(&vals)];
        for position in 0..5 {
            (keys, vals) = step(keys, vals, position, &read);
        }
        assert_eq!([buffer(&keys), buffer(&vals)], before);
        assert_eq!(*read.lock().unwrap(), vec![before; 5]);
    }

    #[test]
    fn a_cache_with_another_holder_moves_to_a_buffer_of_its_own() {
        if !crate::testing::has_adapter() {
            return;
        }
        let (keys, vals) = caches();
        let (held, before) = (keys.clone(), buffer(&keys));
        let (keys, _) = step(keys, vals, 0, &Names::default());
        assert_ne!(buffer(&keys), before);
        assert_eq!(buffer(&held), before);
    }
}
