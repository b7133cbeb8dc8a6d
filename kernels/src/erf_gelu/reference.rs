//! GELU in plain tensor operations, f32 inside.
use burn::tensor::{
    DType, Tensor, TensorMetadata, TensorPrimitive, backend::Backend, ops::FloatTensor,
};
use std::f32::consts::{FRAC_1_SQRT_2, PI};

pub(crate) fn forward<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let dtype = x.dtype();
    let x = f32_tensor::<B>(x);
    (x.clone() * normal_cdf(x)).cast(dtype).into_primitive().tensor()
}

pub(crate) fn backward<B: Backend>(x: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    let dtype = x.dtype();
    let (x, grad) = (f32_tensor::<B>(x), f32_tensor::<B>(grad));
    let density = (x.clone().square() * -0.5).exp() / (2.0 * PI).sqrt();
    (grad * (normal_cdf(x.clone()) + x * density)).cast(dtype).into_primitive().tensor()
}

fn normal_cdf<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    ((x * FRAC_1_SQRT_2).erf() + 1.0) * 0.5
}

fn f32_tensor<B: Backend>(primitive: FloatTensor<B>) -> Tensor<B, 2> {
    Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(primitive)).cast(DType::F32)
}
