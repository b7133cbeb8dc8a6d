use super::*;
use burn::{
    backend::{Autodiff, Flex},
    tensor::{TensorData, backend::Backend},
};

type Train = Autodiff<Flex>;

/// Two rows of three tokens, two heads of size four, one table row a column.
const SHAPE: [usize; 2] = [6, 8];
const ANGLES: [f64; 6] = [0.0, 0.5, 1.0, 2.0, -1.0, 3.0];

fn tensor<B: Backend>(values: impl IntoIterator<Item = f64>, shape: [usize; 2]) -> Tensor<B, 2> {
    let values: Vec<f32> = values.into_iter().map(|x| x as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), &Default::default())
}

fn tables<B: Backend>() -> (Tensor<B, 2>, Tensor<B, 2>) {
    (tensor(ANGLES.map(f64::cos), [3, 2]), tensor(ANGLES.map(f64::sin), [3, 2]))
}

fn x() -> Vec<f64> {
    (0..48).map(|i| ((f64::from(i) + 1.0) * 0.618_033_988_749_894_9).fract() - 0.5).collect()
}

/// Each pair (i, i + 2) of a head as a complex number, turned by exp(i angle).
fn literal(x: &[f64], direction: f64) -> Vec<f64> {
    let mut out = vec![0.0; 48];
    for token in 0..6 {
        for head in 0..2 {
            for i in 0..2 {
                let angle = direction * ANGLES[token % 3 * 2 + i];
                let (a, b) = (token * 8 + head * 4 + i, token * 8 + head * 4 + 2 + i);
                out[a] = x[a] * angle.cos() - x[b] * angle.sin();
                out[b] = x[a] * angle.sin() + x[b] * angle.cos();
            }
        }
    }
    out
}

fn assert_close(got: Tensor<Flex, 2>, want: &[f64]) {
    for (got, want) in got.into_data().to_vec::<f32>().unwrap().iter().zip(want) {
        assert!((f64::from(*got) - want).abs() < 1e-6, "{got} instead of {want}");
    }
}

#[test]
fn pairs_half_a_head_apart_turn_by_their_angle() {
    let (cos, sin) = tables::<Flex>();
    let turned = rotary(tensor(x(), SHAPE), cos.clone(), sin.clone());
    assert_close(turned, &literal(&x(), 1.0));
    let float = |tensor: Tensor<Flex, 2>| tensor.into_primitive().tensor();
    let plain = reference::forward::<Flex>(float(tensor(x(), SHAPE)), float(cos), float(sin));
    assert_close(Tensor::from_primitive(TensorPrimitive::Float(plain)), &literal(&x(), 1.0));
}

#[test]
fn the_input_stays_as_it_is_when_others_hold_it() {
    let (cos, sin) = tables::<Flex>();
    let input = tensor::<Flex>(x(), SHAPE);
    rotary(input.clone(), cos, sin);
    assert_close(input, &x());
}

#[test]
fn the_gradient_turns_back() {
    let (cos, sin) = tables::<Train>();
    let input = tensor::<Train>(vec![0.0; 48], SHAPE).require_grad();
    let grads = (rotary(input.clone(), cos, sin) * tensor(x(), SHAPE)).sum().backward();
    assert_close(input.grad(&grads).unwrap(), &literal(&x(), -1.0));
}
