use super::*;
use crate::testing::{
    assert_close, differences, log_prob_and_entropy, numbers, on_every_backend, product, tensor,
    transposed, values,
};
use burn::{
    backend::{Autodiff, Flex},
    tensor::TensorPrimitive,
};

on_every_backend!(gradients_are_finite_differences);

const N: usize = 4;
const D: usize = 6;
const V: usize = 700;
const LABELS: [i64; N] = [0, 699, 512, 300];

/// (hidden [N, D], weight [V, D], weights of the results in the loss [N] twice)
fn case() -> (Vec<f64>, Vec<f64>, [Vec<f64>; 2]) {
    let scaled = |values: Vec<f64>| values.iter().map(|x| f64::from((3.0 * x) as f32)).collect();
    (scaled(numbers(N * D, 0.0)), scaled(numbers(V * D, 0.05)), [numbers(N, 0.2), numbers(N, 0.3)])
}

fn loss(hidden: &[f64], weight: &[f64], weights: &[Vec<f64>; 2]) -> f64 {
    let z = product(hidden, &transposed(weight, D), D, V);
    let row = |i: usize| {
        let (log_p, entropy) = log_prob_and_entropy(&z[i * V..][..V], LABELS[i] as usize, 0.7);
        log_p * weights[0][i] + entropy * weights[1][i]
    };
    (0..N).map(row).sum()
}

fn gradients_are_finite_differences<B: KernelOps>() {
    let (hidden, weight, weights) = case();
    let leaf = |values: &[f64], shape: [usize; 2]| {
        tensor::<Autodiff<B>, 2>(values, shape, DType::F32).require_grad()
    };
    let head = LinearHead::new(leaf(&hidden, [N, D]), leaf(&weight, [V, D]), HeadLayout::VocabRows);
    let labels = Tensor::from_data(LABELS, &Default::default());
    let (log_probs, entropy) = by_tiles(head.clone(), labels, 0.7);
    let weigh = |k: usize| tensor::<Autodiff<B>, 1>(&weights[k], [N], DType::F32);
    let grads = (log_probs * weigh(0) + entropy * weigh(1)).sum().backward();
    let at: Vec<usize> = (0..N * D).collect();
    let want = differences(&hidden, &at, |moved| loss(moved, &weight, &weights));
    assert_close(&values(head.hidden.grad(&grads).unwrap()), &want, 2e-5, "d hidden");
    let at: Vec<usize> = (0..V * D).step_by(61).chain([512 * D, V * D - 1]).collect();
    let want = differences(&weight, &at, |moved| loss(&hidden, moved, &weights));
    let got = values(head.weight.grad(&grads).unwrap());
    assert_close(&at.iter().map(|&i| got[i]).collect::<Vec<_>>(), &want, 2e-5, "d weight");
}

#[test]
fn the_reference_has_the_gradients_of_the_tiles() {
    let (hidden, weight, _) = case();
    for layout in [HeadLayout::VocabRows, HeadLayout::VocabColumns] {
        let linear = || {
            let weight = match layout {
                HeadLayout::VocabRows => tensor(&weight, [V, D], DType::F32),
                HeadLayout::VocabColumns => tensor(&transposed(&weight, D), [D, V], DType::F32),
            };
            LinearHead::<Flex>::new(tensor(&hidden, [N, D], DType::F32), weight, layout)
                .into_primitive()
        };
        let labels =
            || Tensor::<Flex, 1, Int>::from_data(LABELS, &Default::default()).into_primitive();
        let grad = || {
            tensor::<Flex, 2>(&numbers(N * 7, 0.4), [N, 7], DType::F32).into_primitive().tensor()
        };
        let plain = reference::forward::<Flex>(linear(), labels(), 0.7);
        let tiles = Flex::linear_log_probs(linear(), labels(), 0.7);
        let of = |x: FloatTensor<Flex>| {
            values(Tensor::<Flex, 2>::from_primitive(TensorPrimitive::Float(x)))
        };
        for at in [LOG_PROB, ENTROPY] {
            assert_close(
                &values(column::<Flex>(tiles.clone(), at)),
                &values(column::<Flex>(plain.clone(), at)),
                1e-5,
                "forward",
            );
        }
        let plain = reference::backward::<Flex>(linear(), labels(), plain, grad(), 0.7);
        let tiles = Flex::linear_log_probs_backward(linear(), labels(), tiles, grad(), 0.7);
        for (plain, tiles) in plain.into_iter().zip(tiles) {
            assert_close(&of(tiles), &of(plain), 1e-5, "backward");
        }
    }
}
