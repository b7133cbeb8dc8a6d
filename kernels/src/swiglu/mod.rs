//! SwiGLU: y = silu(gate) * up, silu(x) = x s(x) with s the logistic function.
//!
//! ```text
//! dup = dy silu(gate)         dgate = dy up s (1 + gate (1 - s))
//! ```
//!
//! One pass each way; only gate and up are kept. In f32 whatever the dtype. Bytes (f32): 12 N I forwards, 20 N I backwards, one exponential an element.
#[cfg(feature = "cube")]
pub(crate) mod kernel;

use crate::{
    KernelOps,
    cpu::{CpuTensor, exp, for_each_piece, from_vec, row_major, simd},
};
use burn::tensor::{DType, Tensor, TensorMetadata, TensorPrimitive, activation::sigmoid, backend::Backend, ops::FloatTensor};

/// Elements of one task of the CPU loops.
const TASK: usize = 1 << 14;
/// An exponential and its surroundings, counted in multiply-adds.
const WORK_PER_ELEMENT: usize = 16;

/// silu(gate) * up, differentiable in both. Any equal shapes [N, I] -> [N, I] in the dtype of gate.
pub fn swiglu<B: KernelOps>(gate: Tensor<B, 2>, up: Tensor<B, 2>) -> Tensor<B, 2> {
    assert_eq!(gate.dims(), up.dims(), "gate and up must have one shape");
    let (gate, up) = (gate.into_primitive().tensor(), up.into_primitive().tensor());
    Tensor::from_primitive(TensorPrimitive::Float(B::swiglu(gate, up)))
}

pub(crate) fn reference<B: Backend>(gate: FloatTensor<B>, up: FloatTensor<B>) -> FloatTensor<B> {
    let dtype = gate.dtype();
    let [gate, up] = [gate, up].map(f32_tensor::<B>);
    (gate.clone() * sigmoid(gate) * up).cast(dtype).into_primitive().tensor()
}

pub(crate) fn reference_backward<B: Backend>(gate: FloatTensor<B>, up: FloatTensor<B>, grad: FloatTensor<B>) -> [FloatTensor<B>; 2] {
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

pub(crate) fn cpu(gate: CpuTensor, up: CpuTensor) -> CpuTensor {
    let dtype = gate.dtype();
    let (gate, up) = (row_major(gate), row_major(up));
    let (g, u) = (gate.storage::<f32>(), up.storage::<f32>());
    let mut out = vec![0.0f32; g.len()];
    let tasks = out.chunks_mut(TASK).zip(g.chunks(TASK)).zip(u.chunks(TASK)).collect();
    for_each_piece(tasks, WORK_PER_ELEMENT * g.len(), |((out, g), u)| {
        simd!({
            for ((out, g), u) in out.iter_mut().zip(g).zip(u) {
                *out = g * logistic(*g) * u;
            }
        })
    });
    from_vec(out, gate.layout().shape().dims::<2>(), dtype)
}

pub(crate) fn cpu_backward(gate: CpuTensor, up: CpuTensor, grad: CpuTensor) -> [CpuTensor; 2] {
    let dtype = gate.dtype();
    let (gate, up, grad) = (row_major(gate), row_major(up), row_major(grad));
    let (g, u, dy) = (gate.storage::<f32>(), up.storage::<f32>(), grad.storage::<f32>());
    let (mut dgate, mut dup) = (vec![0.0f32; g.len()], vec![0.0f32; g.len()]);
    let tasks = dgate.chunks_mut(TASK).zip(dup.chunks_mut(TASK)).zip(g.chunks(TASK).zip(u.chunks(TASK)).zip(dy.chunks(TASK))).collect();
    for_each_piece(tasks, 2 * WORK_PER_ELEMENT * g.len(), |((dgate, dup), ((g, u), dy))| {
        simd!({
            for i in 0..g.len() {
                let s = logistic(g[i]);
                dup[i] = dy[i] * g[i] * s;
                dgate[i] = dy[i] * u[i] * s * (1.0 + g[i] * (1.0 - s));
            }
        })
    });
    let shape = gate.layout().shape().dims::<2>();
    [from_vec(dgate, shape, dtype), from_vec(dup, shape, dtype)]
}

#[inline(always)]
fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::{
        backend::{Autodiff, Flex},
        tensor::TensorData,
    };

    type Train = Autodiff<Flex>;

    const SHAPE: [usize; 2] = [3, 35];

    fn numbers(salt: f64, scale: f64) -> Vec<f64> {
        (0..105).map(|i| scale * (((f64::from(i) + 1.0) * (0.618_033_988_749_894_9 + salt)).fract() - 0.5)).collect()
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
            assert!((f64::from(*got) - want).abs() < 2e-5 * (1.0 + want.abs()), "{got} instead of {want}");
        }
    }

    #[test]
    fn forward_is_the_definition() {
        // Gates up to +-200: where exp(-gate) leaves the range of f32.
        let (gate, up) = (numbers(0.0, 400.0), numbers(0.1, 2.0));
        let want: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        assert_close(swiglu(tensor::<Flex>(&gate), tensor(&up)).into_primitive().tensor(), &want);
        assert_close(reference::<Flex>(primitive(&gate), primitive(&up)), &want);
    }

    #[test]
    fn gradients_are_finite_differences() {
        let (gate, up, grad) = (numbers(0.0, 8.0), numbers(0.1, 2.0), numbers(0.2, 2.0));
        let silu = |g: f64| g / (1.0 + (-g).exp());
        let dup: Vec<f64> = gate.iter().zip(&grad).map(|(g, dy)| dy * silu(*g)).collect();
        let slope = |g: f64| (silu(g + 1e-5) - silu(g - 1e-5)) / 2e-5;
        let dgate: Vec<f64> = gate.iter().zip(&up).zip(&grad).map(|((g, u), dy)| dy * u * slope(*g)).collect();

        let (g, u) = (tensor::<Train>(&gate).require_grad(), tensor::<Train>(&up).require_grad());
        let grads = (swiglu(g.clone(), u.clone()) * tensor(&grad)).sum().backward();
        assert_close(g.grad(&grads).unwrap().into_primitive().tensor(), &dgate);
        assert_close(u.grad(&grads).unwrap().into_primitive().tensor(), &dup);
        let [plain_gate, plain_up] = reference_backward::<Flex>(primitive(&gate), primitive(&up), primitive(&grad));
        assert_close(plain_gate, &dgate);
        assert_close(plain_up, &dup);
    }
}
