use super::*;
use burn::{
    backend::{Autodiff, Flex},
    tensor::{TensorData, backend::Backend, ops::FloatTensor},
};

/// erf in f64 by its Taylor series: 120 terms hold 1e-12 for |x| <= 3.8.
fn erf_series(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..120 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn literal(x: f64) -> f64 {
    0.5 * x * (1.0 + erf_series(x / std::f64::consts::SQRT_2))
}

fn inputs() -> Vec<f32> {
    (-500..=500).map(|i| i as f32 * 0.01).collect()
}

fn row<B: Backend>(values: &[f32]) -> Tensor<B, 2> {
    Tensor::from_data(TensorData::new(values.to_vec(), [1, values.len()]), &Default::default())
}

fn values(tensor: Tensor<Flex, 2>) -> Vec<f32> {
    tensor.into_data().to_vec().unwrap()
}

fn primitive(tensor: Tensor<Flex, 2>) -> FloatTensor<Flex> {
    tensor.into_primitive().tensor()
}

fn tensor(primitive: FloatTensor<Flex>) -> Tensor<Flex, 2> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

#[test]
fn forward_is_the_definition() {
    let x = inputs();
    let plain = values(tensor(reference::forward::<Flex>(primitive(row(&x)))));
    for ((x, cpu), plain) in x.iter().zip(values(erf_gelu(row::<Flex>(&x)))).zip(plain) {
        let want = literal(f64::from(*x));
        // erf's own error times |x| / 2, and the rounding of f32.
        let tolerance = 4e-7 * f64::from(x.abs()).max(1.0);
        assert!((f64::from(cpu) - want).abs() < tolerance, "gelu({x}) = {cpu}, not {want}");
        assert!(
            (f64::from(plain) - want).abs() < tolerance,
            "reference({x}) = {plain}, not {want}"
        );
    }
}

#[test]
fn the_gradient_is_the_finite_difference_of_the_definition() {
    let x = inputs();
    let input = row::<Autodiff<Flex>>(&x).require_grad();
    // Each gradient is multiplied by that of the output: 3.
    let grads = (erf_gelu(input.clone()) * 3.0).sum().backward();
    let plain = values(tensor(reference::backward::<Flex>(
        primitive(row(&x)),
        primitive(row(&vec![3.0; x.len()])),
    )));
    for ((x, cpu), plain) in x.iter().zip(values(input.grad(&grads).unwrap())).zip(plain) {
        let (x, step) = (f64::from(*x), 1e-5);
        let want = 3.0 * (literal(x + step) - literal(x - step)) / (2.0 * step);
        assert!((f64::from(cpu) - want).abs() < 3e-6, "cpu at {x}: {cpu}, not {want}");
        assert!((f64::from(plain) - want).abs() < 3e-6, "reference at {x}: {plain}, not {want}");
    }
}

#[test]
fn far_out_it_is_the_identity_or_nothing() {
    let y =
        values(erf_gelu(row::<Flex>(&[30.0, 1e30, -30.0, -1e30, 0.0, f32::INFINITY, f32::NAN])));
    assert_eq!(y[..6], [30.0, 1e30, 0.0, 0.0, 0.0, f32::INFINITY]);
    assert!(y[6].is_nan());
}
