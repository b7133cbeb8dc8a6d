//! Rotary position embedding of all heads of all tokens, half-split layout.
//!
//! ```text
//! y_i        = x_i cos_i - x_{i + hd/2} sin_i
//! y_{i+hd/2} = x_{i + hd/2} cos_i + x_i sin_i          i < hd/2
//! ```
//!
//! A rotation, so the gradient is the same operation with -sin. In f32 whatever the dtype of x. Bytes (f32): 8 N H hd; in place on the CPU backend when
//! x has no other owner.
#[cfg(feature = "cube")]
pub(crate) mod kernel;

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
    simd!({
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
    });
    x
}

/// `row_major` that gives up its argument, so that a tensor with one owner keeps having one.
fn owned_row_major(x: CpuTensor) -> CpuTensor {
    let is_whole = x.is_contiguous() && x.layout().start_offset() == 0 && x.storage::<f32>().len() == x.layout().num_elements();
    if is_whole { x } else { x.to_contiguous() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::{
        backend::{Autodiff, Flex},
        tensor::TensorData,
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
        let plain = reference::<Flex>(float(tensor(x(), SHAPE)), float(cos), float(sin));
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
}
