use super::*;
use burn::{
    backend::Flex,
    tensor::{TensorData, s},
};

const SPANS: [CacheSpan; 2] =
    [CacheSpan { slot: 2, start: 1, n: 3 }, CacheSpan { slot: 0, start: 4, n: 1 }];

fn counting(shape: [usize; 4], first: f32) -> Tensor<Flex, 4> {
    let n: usize = shape.iter().product();
    Tensor::from_data(
        TensorData::new((0..n).map(|i| first + i as f32).collect(), shape),
        &Default::default(),
    )
}

/// Three slots of five positions, two heads of size four; two rows of three new tokens.
fn cache_and_values() -> (Tensor<Flex, 4>, Tensor<Flex, 4>) {
    (counting([3, 2, 5, 4], 1000.0), counting([2, 2, 3, 4], 0.0))
}

fn expected() -> Vec<f32> {
    let (mut cache, values) = cache_and_values();
    for (row, span) in SPANS.iter().enumerate() {
        let new = values.clone().slice(s![row..row + 1, .., 0..span.n, ..]);
        cache = cache.slice_assign(
            s![span.slot..span.slot + 1, .., span.start..span.start + span.n, ..],
            new,
        );
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
        let plain = from_primitive(reference::forward::<Flex>(
            float(&cache),
            float(&values),
            &SPANS,
            position_dim,
        ));
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
    assert_eq!(
        cache_write(cache, values, &SPANS, 2).into_data().to_vec::<f32>().unwrap(),
        expected()
    );
}

#[test]
fn a_cache_with_one_owner_is_written_in_place() {
    let (cache, values) = cache_and_values();
    let cache = cache.into_primitive().tensor();
    let address = cache.bytes().as_ptr();
    let cache = cpu::forward(cache, values.into_primitive().tensor(), &SPANS, 2);
    assert_eq!(cache.bytes().as_ptr(), address);
}

#[test]
fn other_holders_of_the_cache_keep_the_old_content() {
    let (cache, values) = cache_and_values();
    let before = cache.clone();
    cache_write(cache, values, &SPANS, 2);
    assert_eq!(before.into_data(), cache_and_values().0.into_data());
}

fn from_primitive(primitive: burn::tensor::ops::FloatTensor<Flex>) -> Tensor<Flex, 4> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}
