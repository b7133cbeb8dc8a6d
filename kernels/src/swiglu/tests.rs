use super::*;
use burn::{
    backend::{Autodiff, Flex},
    tensor::{TensorData, backend::Backend, ops::FloatTensor},
};

type Train = Autodiff<Flex>;

const SHAPE: [usize; 2] = [3, 35];

fn numbers(salt: f64, scale: f64) -> Vec<f64> {
    (0..105)
        .map(|i| scale * (((f64::from(i) + 1.0) * (0.618_033_988_749_894_9 + salt)).fract() - 0.5))
        .collect()
}

fn tensor<B: Backend>(values: &[f64]) -> Tensor<B, 2> {
    let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
    Tensor::from_data(TensorData::new(values, SHAPE), &Default::default())
}

fn primitive(values: &[f64]) -> FloatTensor<Flex> {
    tensor::<Flex>(values).into_primitive().tensor()
}

fn assert_close(got: FloatTensor<Flex>, want: &[f64]) {
    for (got, want) in got.into_data().to_vec::<f32>().unwrap().iter().zip(want) {
        assert!(
            (f64::from(*got) - want).abs() < 2e-5 * (1.0 + want.abs()),
            "{got} instead of {want}"
        );
    }
}

#[test]
fn forward_is_the_definition() {
    // Gates up to +-200: where exp(-gate) leaves the range of f32.
    let (gate, up) = (numbers(0.0, 400.0), numbers(0.1, 2.0));
    let want: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
    assert_close(swiglu(tensor::<Flex>(&gate), tensor(&up)).into_primitive().tensor(), &want);
    assert_close(reference::forward::<Flex>(primitive(&gate), primitive(&up)), &want);
}

#[test]
fn gradients_are_finite_differences() {
    let (gate, up, grad) = (numbers(0.0, 8.0), numbers(0.1, 2.0), numbers(0.2, 2.0));
    let silu = |g: f64| g / (1.0 + (-g).exp());
    let dup: Vec<f64> = gate.iter().zip(&grad).map(|(g, dy)| dy * silu(*g)).collect();
    let slope = |g: f64| (silu(g + 1e-5) - silu(g - 1e-5)) / 2e-5;
    let dgate: Vec<f64> =
        gate.iter().zip(&up).zip(&grad).map(|((g, u), dy)| dy * u * slope(*g)).collect();

    let (g, u) = (tensor::<Train>(&gate).require_grad(), tensor::<Train>(&up).require_grad());
    let grads = (swiglu(g.clone(), u.clone()) * tensor(&grad)).sum().backward();
    assert_close(g.grad(&grads).unwrap().into_primitive().tensor(), &dgate);
    assert_close(u.grad(&grads).unwrap().into_primitive().tensor(), &dup);
    let [plain_gate, plain_up] =
        reference::backward::<Flex>(primitive(&gate), primitive(&up), primitive(&grad));
    assert_close(plain_gate, &dgate);
    assert_close(plain_up, &dup);
}
