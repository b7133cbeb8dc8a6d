//! The rotation in plain tensor operations, f32 inside.
use burn::tensor::{DType, Tensor, TensorPrimitive, backend::Backend, ops::FloatTensor, s};

pub(crate) fn forward<B: Backend>(
    x: FloatTensor<B>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
) -> FloatTensor<B> {
    let [x, cos, sin] =
        [x, cos, sin].map(|tensor| Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(tensor)));
    let ([n_tokens, width], [n_positions, half], dtype) = (x.dims(), cos.dims(), x.dtype());
    let x = x.cast(DType::F32).reshape([
        n_tokens / n_positions,
        n_positions,
        width / (2 * half),
        2 * half,
    ]);
    let table = |t: Tensor<B, 2>| t.reshape([1, n_positions, 1, half]);
    let (cos, sin) = (table(cos), table(sin));
    let (a, b) = (x.clone().slice(s![.., .., .., ..half]), x.slice(s![.., .., .., half..]));
    let turned =
        Tensor::cat(vec![a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin], 3);
    turned.reshape([n_tokens, width]).cast(dtype).into_primitive().tensor()
}
