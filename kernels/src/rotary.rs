//! Rotary position embedding of all heads of all tokens, half-split layout.
//!
//! ```text
//! y_i        = x_i cos_i - x_{i + hd/2} sin_i
//! y_{i+hd/2} = x_{i + hd/2} cos_i + x_i sin_i          i < hd/2
//! ```
//!
//! A rotation, so the gradient is the same operation with -sin. In f32 whatever the dtype of x. Bytes (f32): 8 N H hd; in place on the CPU backend when
//! x has no other owner.
use crate::{
    KernelOps,
    cpu::{CpuTensor, row_major, simd},
};
use burn::tensor::{DType, Tensor, TensorMetadata, TensorPrimitive, backend::Backend, ops::FloatTensor, s};

/// Turns each head of token n by the angles of row n mod P of the tables. Differentiable in x; the tables are constants.
/// # Shapes
/// x [N, heads * hd]; cos, sin [P, hd/2] with N a multiple of P -> [N, heads * hd] in the dtype of x.
pub fn rotary<B: KernelOps>(x: Tensor<B, 2>, cos: Tensor<B, 2>, sin: Tensor<B, 2>) -> Tensor<B, 2> {
    let ([n_tokens, width], [n_positions, half]) = (x.dims(), cos.dims());
    assert_eq!(cos.dims(), sin.dims(), "one sine a cosine");
    assert!(
        n_tokens.is_multiple_of(n_positions.max(1)) && width.is_multiple_of(2 * half),
        "tables {:?} do not fit {:?}",
        cos.dims(),
        x.dims()
    );
    let float = |tensor: Tensor<B, 2>| tensor.into_primitive().tensor();
    Tensor::from_primitive(TensorPrimitive::Float(B::rotary(float(x), float(cos), float(sin))))
}

pub(crate) fn reference<B: Backend>(x: FloatTensor<B>, cos: FloatTensor<B>, sin: FloatTensor<B>) -> FloatTensor<B> {
    let [x, cos, sin] = [x, cos, sin].map(|tensor| Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(tensor)));
    let ([n_tokens, width], [n_positions, half], dtype) = (x.dims(), cos.dims(), x.dtype());
    let x = x.cast(DType::F32).reshape([n_tokens / n_positions, n_positions, width / (2 * half), 2 * half]);
    let table = |t: Tensor<B, 2>| t.reshape([1, n_positions, 1, half]);
    let (cos, sin) = (table(cos), table(sin));
    let (a, b) = (x.clone().slice(s![.., .., .., ..half]), x.slice(s![.., .., .., half..]));
    let turned = Tensor::cat(vec![a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin], 3);
    turned.reshape([n_tokens, width]).cast(dtype).into_primitive().tensor()
}

pub(crate) fn cpu(x: CpuTensor, cos: CpuTensor, sin: CpuTensor) -> CpuTensor {
    if x.dtype() != DType::F32 {
        return reference::<burn::backend::Flex>(x, cos, sin);
    }
    let (mut x, cos, sin) = (owned_row_major(x), row_major(cos), row_major(sin));
    let ([_, width], [n_positions, half]) = (x.shape().dims::<2>(), cos.shape().dims::<2>());
    let (cos, sin) = (cos.storage::<f32>(), sin.storage::<f32>());
    let data = x.storage_mut::<f32>();
    simd(
        #[inline(always)]
        || {
            for (n, token) in data.chunks_exact_mut(width).enumerate() {
                let row = n % n_positions * half;
                let (cos, sin) = (&cos[row..row + half], &sin[row..row + half]);
                for head in token.chunks_exact_mut(2 * half) {
                    let (a, b) = head.split_at_mut(half);
                    for i in 0..half {
                        let (x, y) = (a[i], b[i]);
                        a[i] = x * cos[i] - y * sin[i];
                        b[i] = y * cos[i] + x * sin[i];
                    }
                }
            }
        },
    );
    x
}

/// `row_major` that gives up its argument, so that a tensor with one owner keeps having one.
fn owned_row_major(x: CpuTensor) -> CpuTensor {
    let is_whole = x.is_contiguous() && x.layout().start_offset() == 0 && x.storage::<f32>().len() == x.layout().num_elements();
    if is_whole { x } else { x.to_contiguous() }
}
