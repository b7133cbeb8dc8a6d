use super::*;
use burn::{
    backend::{Autodiff, Flex},
    tensor::{TensorData, backend::Backend, ops::FloatTensor},
};

type Train = Autodiff<Flex>;

const EPS: f64 = 1e-2;

/// (x [N, D], w [D], weights of the outputs in the loss [N, D]), N past one task of the CPU loops.
fn case(n: usize, d: usize) -> [Vec<f64>; 3] {
    let numbers = |n: usize, salt: f64| {
        (0..n)
            .map(|i| ((i as f64 + 1.0) * (0.618_033_988_749_894_9 + salt)).fract() - 0.4)
            .collect()
    };
    [numbers(n * d, 0.0), numbers(d, 0.1), numbers(n * d, 0.2)]
}

fn literal(x: &[f64], w: &[f64]) -> Vec<f64> {
    let norm = |x: &[f64]| (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + EPS).sqrt();
    x.chunks(w.len()).flat_map(|x| x.iter().zip(w).map(move |(x_d, w)| x_d / norm(x) * w)).collect()
}

fn tensor<B: Backend, const D: usize>(values: &[f64], shape: [usize; D]) -> Tensor<B, D> {
    let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), &Default::default())
}

fn assert_close(got: FloatTensor<Flex>, want: &[f64], what: &str) {
    let got = got.into_data().to_vec::<f32>().unwrap();
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(
            (f64::from(*got) - want).abs() < 2e-5 * (1.0 + want.abs()),
            "{what}[{i}]: {got} instead of {want}"
        );
    }
}

#[test]
fn forward_is_the_definition() {
    for (n, d) in [(3, 5), (300, 48)] {
        let [x, w, _] = case(n, d);
        let want = literal(&x, &w);
        let (x, w) = (tensor::<Flex, 2>(&x, [n, d]), tensor::<Flex, 1>(&w, [d]));
        let primitives = (x.clone().into_primitive().tensor(), w.clone().into_primitive().tensor());
        assert_close(
            reference::forward::<Flex>(primitives.0, primitives.1, EPS),
            &want,
            "reference",
        );
        assert_close(rms_norm(x, w, EPS).into_primitive().tensor(), &want, "cpu");
    }
}

#[test]
fn gradients_are_finite_differences() {
    let (n, d) = (3, 21);
    let [x, w, weights] = case(n, d);
    let loss =
        |x: &[f64], w: &[f64]| literal(x, w).iter().zip(&weights).map(|(y, g)| y * g).sum::<f64>();
    let difference = |values: &[f64], loss: &dyn Fn(&[f64]) -> f64| -> Vec<f64> {
        let at = |i: usize, delta: f64| {
            let mut moved = values.to_vec();
            moved[i] += delta;
            loss(&moved)
        };
        (0..values.len()).map(|i| (at(i, 1e-5) - at(i, -1e-5)) / 2e-5).collect()
    };
    let (want_x, want_w) = (difference(&x, &|x| loss(x, &w)), difference(&w, &|w| loss(&x, w)));

    let (x_ad, w_ad) =
        (tensor::<Train, 2>(&x, [n, d]).require_grad(), tensor::<Train, 1>(&w, [d]).require_grad());
    let grads =
        (rms_norm(x_ad.clone(), w_ad.clone(), EPS) * tensor(&weights, [n, d])).sum().backward();
    assert_close(x_ad.grad(&grads).unwrap().into_primitive().tensor(), &want_x, "dx");
    assert_close(w_ad.grad(&grads).unwrap().into_primitive().tensor(), &want_w, "dw");

    let primitives = (
        tensor::<Flex, 2>(&x, [n, d]).into_primitive().tensor(),
        tensor::<Flex, 1>(&w, [d]).into_primitive().tensor(),
    );
    let grad = tensor::<Flex, 2>(&weights, [n, d]).into_primitive().tensor();
    let [dx, dw] = reference::backward::<Flex>(primitives.0, primitives.1, grad, EPS);
    assert_close(dx, &want_x, "reference dx");
    assert_close(dw, &want_w, "reference dw");
}

#[test]
fn weight_gradient_is_summed_over_all_tasks() {
    let (n, d) = (3 * cpu::ROWS_PER_TASK + 7, 8);
    let [x, w, weights] = case(n, d).map(|values| {
        let shape = [values.len() / d, d];
        tensor::<Flex, 2>(&values, shape)
    });
    let [x, w, grad] = [
        x.into_primitive().tensor(),
        w.reshape([d]).into_primitive().tensor(),
        weights.into_primitive().tensor(),
    ];
    let [_, plain] = reference::backward::<Flex>(x.clone(), w.clone(), grad.clone(), EPS);
    let [_, dw] = cpu::backward(x, w, grad, EPS);
    let plain: Vec<f64> =
        plain.into_data().to_vec::<f32>().unwrap().into_iter().map(f64::from).collect();
    assert_close(dw, &plain, "dw");
}
