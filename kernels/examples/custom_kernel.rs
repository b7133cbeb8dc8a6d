//! A kernel of one's own with its gradient: squared ReLU, y = max(x, 0)², dx = 2 max(x, 0) dy.
//! A loop for the CPU backend, the definition for every other, one node of the autodiff graph.
//!
//! `cargo run --release -p dgpo-kernels --example custom_kernel`
#![allow(clippy::print_stdout)]
use burn::{
    backend::Flex,
    tensor::{Tensor, TensorPrimitive, backend::Backend},
};
use dgpo_kernels::graph::{Autodiff, CheckpointStrategy, FloatTensor, Gradient, node};

/// The operation on a backend's own tensors, `[N]` each.
trait SquaredRelu: Backend {
    fn squared_relu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let x = tensor::<Self>(x).clamp_min(0.0);
        (x.clone() * x).into_primitive().tensor()
    }

    fn squared_relu_backward(x: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        let x = tensor::<Self>(x).clamp_min(0.0);
        (x * tensor(dy) * 2.0).into_primitive().tensor()
    }
}

/// The CPU backend: one pass each way, nothing kept in between.
impl SquaredRelu for Flex {
    fn squared_relu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        from_vec(to_vec(x).into_iter().map(|x| x.max(0.0) * x.max(0.0)).collect())
    }

    fn squared_relu_backward(x: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        let pairs = to_vec(x).into_iter().zip(to_vec(dy));
        from_vec(pairs.map(|(x, dy)| 2.0 * x.max(0.0) * dy).collect())
    }
}

/// With gradients: the node keeps x for its backward pass, and nothing beside it.
impl<B: SquaredRelu, C: CheckpointStrategy> SquaredRelu for Autodiff<B, C> {
    fn squared_relu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        node::<Backward, B, C, 1, 1>([x], |[x]| B::squared_relu(x), |_| ())
    }
}

#[derive(Debug)]
struct Backward;

impl<B: SquaredRelu> Gradient<B, 1, 1> for Backward {
    type Rest = ();

    fn gradients([x]: [FloatTensor<B>; 1], dy: FloatTensor<B>, (): ()) -> [FloatTensor<B>; 1] {
        [B::squared_relu_backward(x, dy)]
    }
}

fn tensor<B: Backend>(x: FloatTensor<B>) -> Tensor<B, 1> {
    Tensor::from_primitive(TensorPrimitive::Float(x))
}

fn to_vec(x: FloatTensor<Flex>) -> Vec<f32> {
    tensor::<Flex>(x).into_data().to_vec().expect("f32 elements")
}

fn from_vec(x: Vec<f32>) -> FloatTensor<Flex> {
    Tensor::<Flex, 1>::from_floats(&x[..], &Default::default()).into_primitive().tensor()
}

fn main() {
    type B = Autodiff<Flex>;
    let x = Tensor::<B, 1>::from_floats([-1.0, 0.5, 3.0], &Default::default()).require_grad();
    let y = tensor::<B>(B::squared_relu(x.clone().into_primitive().tensor()));
    let gradient = x.grad(&y.clone().sum().backward()).expect("x has a gradient");
    println!("x = [-1, 0.5, 3]\ny = {}\ndy/dx = {}", y.into_data(), gradient.to_data());
    assert_eq!(gradient.into_data().to_vec::<f32>().expect("f32"), [0.0, 1.0, 6.0]);
}

#[test]
fn the_example_runs() {
    main();
}
