//! RMSNorm in plain tensor operations, f32 inside.
use crate::rows::sum_rows;
use burn::tensor::{DType, Tensor, TensorPrimitive, backend::Backend, ops::FloatTensor};

pub(crate) fn forward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    eps: f64,
) -> FloatTensor<B> {
    let (x, weight) = tensors::<B>(x, weight);
    let dtype = x.dtype();
    let (n, _) = normalised(x, eps);
    (n.cast(dtype) * weight.unsqueeze()).into_primitive().tensor()
}

pub(crate) fn backward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
    eps: f64,
) -> [FloatTensor<B>; 2] {
    let (x, weight) = tensors::<B>(x, weight);
    let grad = Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(grad)).cast(DType::F32);
    let (dtype, weight_dtype) = (x.dtype(), weight.dtype());
    let (n, r) = normalised(x, eps);
    let dw = sum_rows(grad.clone() * n.clone()).squeeze_dim::<1>(0).cast(weight_dtype);
    let g = grad * weight.cast(DType::F32).unsqueeze();
    let dx = (g.clone() - n.clone() * (g * n).mean_dim(1)) * r;
    [dx.cast(dtype).into_primitive().tensor(), dw.into_primitive().tensor()]
}

/// (x r, r) in f32: `[N, D]`, `[N, 1]`.
fn normalised<B: Backend>(x: Tensor<B, 2>, eps: f64) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let x = x.cast(DType::F32);
    let r = (x.clone().powi_scalar(2).mean_dim(1) + eps).sqrt().recip();
    (x * r.clone(), r)
}

fn tensors<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>) -> (Tensor<B, 2>, Tensor<B, 1>) {
    (
        Tensor::from_primitive(TensorPrimitive::Float(x)),
        Tensor::from_primitive(TensorPrimitive::Float(weight)),
    )
}
