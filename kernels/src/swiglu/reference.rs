//! SwiGLU in plain tensor operations, f32 inside.
use burn::tensor::{
    DType, Tensor, TensorMetadata, TensorPrimitive, activation::sigmoid, backend::Backend,
    ops::FloatTensor,
};

pub(crate) fn forward<B: Backend>(gate: FloatTensor<B>, up: FloatTensor<B>) -> FloatTensor<B> {
    let dtype = gate.dtype();
    let [gate, up] = [gate, up].map(f32_tensor::<B>);
    (gate.clone() * sigmoid(gate) * up).cast(dtype).into_primitive().tensor()
}

pub(crate) fn backward<B: Backend>(
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> [FloatTensor<B>; 2] {
    let dtype = gate.dtype();
    let [gate, up, grad] = [gate, up, grad].map(f32_tensor::<B>);
    let s = sigmoid(gate.clone());
    let dup = grad.clone() * gate.clone() * s.clone();
    let dgate = grad * up * s.clone() * (gate * (s.neg() + 1.0) + 1.0);
    [dgate, dup].map(|tensor| tensor.cast(dtype).into_primitive().tensor())
}

fn f32_tensor<B: Backend>(primitive: FloatTensor<B>) -> Tensor<B, 2> {
    Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(primitive)).cast(DType::F32)
}
