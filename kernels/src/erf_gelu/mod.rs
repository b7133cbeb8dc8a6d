//! GELU in its erf form, an encoder's activation: y = x F(x) with F the normal distribution function, F(x) = (1 + erf(x / sqrt 2)) / 2.
//!
//! ```text
//! dx = dy (F(x) + x f(x)),   f(x) = exp(-x^2 / 2) / sqrt(2 pi)
//! ```
//!
//! One pass each way; only x is kept. In f32 whatever the dtype. Bytes (f32): 8 N I forwards, 12 N I backwards. burn's own operation calls a scalar
//! erf for each element on the CPU, and on GPU runtimes its derivative is that of the tanh approximation.
//!
//! Measured on one thread of an AMD EPYC (Zen 4) busy with other work: [4096, 1536] f32 forwards 52 ms with burn's operation, 4 ms with this one.
#[cfg(feature = "cube")]
pub(crate) mod kernel;

use crate::{
    KernelOps,
    cpu::{CpuTensor, exp, for_each_piece, from_vec, row_major, simd},
};
use burn::tensor::{DType, Tensor, TensorMetadata, TensorPrimitive, backend::Backend, ops::FloatTensor};
use std::f32::consts::{FRAC_1_SQRT_2, PI};

/// Elements of one task of the CPU loops.
const TASK: usize = 1 << 14;
/// The two polynomials of erf, counted in multiply-adds.
const WORK_PER_ELEMENT: usize = 16;

/// GELU, differentiable. x [N, I] -> [N, I] in the dtype of x.
pub fn erf_gelu<B: KernelOps>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    Tensor::from_primitive(TensorPrimitive::Float(B::erf_gelu(x.into_primitive().tensor())))
}

pub(crate) fn reference<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let dtype = x.dtype();
    let x = f32_tensor::<B>(x);
    (x.clone() * normal_cdf(x)).cast(dtype).into_primitive().tensor()
}

pub(crate) fn reference_backward<B: Backend>(x: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
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

pub(crate) fn cpu(x: CpuTensor) -> CpuTensor {
    let dtype = x.dtype();
    let x = row_major(x);
    let input = x.storage::<f32>();
    let mut out = vec![0.0f32; input.len()];
    let tasks = out.chunks_mut(TASK).zip(input.chunks(TASK)).collect();
    for_each_piece(tasks, WORK_PER_ELEMENT * input.len(), |(out, x)| {
        simd!({
            for (out, x) in out.iter_mut().zip(x) {
                *out = 0.5 * x * (1.0 + erf(x * FRAC_1_SQRT_2));
            }
        })
    });
    from_vec(out, x.layout().shape().dims::<2>(), dtype)
}

pub(crate) fn cpu_backward(x: CpuTensor, grad: CpuTensor) -> CpuTensor {
    let dtype = x.dtype();
    let (x, grad) = (row_major(x), row_major(grad));
    let (input, dy) = (x.storage::<f32>(), grad.storage::<f32>());
    let mut dx = vec![0.0f32; input.len()];
    let tasks = dx.chunks_mut(TASK).zip(input.chunks(TASK)).zip(dy.chunks(TASK)).collect();
    let density_at_zero = 1.0 / (2.0 * PI).sqrt();
    for_each_piece(tasks, 2 * WORK_PER_ELEMENT * input.len(), |((dx, x), dy)| {
        simd!({
            for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
                *dx = dy * (0.5 * (1.0 + erf(x * FRAC_1_SQRT_2)) + x * density_at_zero * exp(-0.5 * x * x));
            }
        })
    });
    from_vec(dx, x.layout().shape().dims::<2>(), dtype)
}

/// erf within 4e-7, exactly +-1 beyond 4 (where it is within 1.6e-8 of that); NaN stays NaN. Branch-free, so that loops over it vectorise.
///
/// x P(x^2) / Q(x^2), the rational minimax approximation on [-4, 4] that Eigen and XLA use for f32.
#[inline(always)]
fn erf(x: f32) -> f32 {
    const P: [f32; 7] = [-2.726_142_3e-10, 2.770_681_4e-8, -2.101_024e-6, -5.692_506_4e-5, -7.349_906_3e-4, -2.954_6e-3, -1.609_603_3e-2];
    const Q: [f32; 5] = [-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2];
    let x2 = x * x;
    let p = P.into_iter().fold(0.0f32, |p, c| p.mul_add(x2, c));
    let q = Q.into_iter().fold(0.0f32, |q, c| q.mul_add(x2, c));
    let inside = x * p / q;
    let above = if x > 4.0 { 1.0 } else { inside };
    if x < -4.0 { -1.0 } else { above }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::{
        backend::{Autodiff, Flex},
        tensor::TensorData,
    };

    /// erf in f64 by its Taylor series: 120 terms hold 1e-12 for |x| <= 3.8.
    fn erf_series(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..120 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    fn literal(x: f64) -> f64 {
        0.5 * x * (1.0 + erf_series(x / std::f64::consts::SQRT_2))
    }

    fn inputs() -> Vec<f32> {
        (-500..=500).map(|i| i as f32 * 0.01).collect()
    }

    fn row<B: Backend>(values: &[f32]) -> Tensor<B, 2> {
        Tensor::from_data(TensorData::new(values.to_vec(), [1, values.len()]), &Default::default())
    }

    fn values(tensor: Tensor<Flex, 2>) -> Vec<f32> {
        tensor.into_data().to_vec().unwrap()
    }

    fn primitive(tensor: Tensor<Flex, 2>) -> FloatTensor<Flex> {
        tensor.into_primitive().tensor()
    }

    fn tensor(primitive: FloatTensor<Flex>) -> Tensor<Flex, 2> {
        Tensor::from_primitive(TensorPrimitive::Float(primitive))
    }

    #[test]
    fn forward_is_the_definition() {
        let x = inputs();
        let plain = values(tensor(reference::<Flex>(primitive(row(&x)))));
        for ((x, cpu), plain) in x.iter().zip(values(erf_gelu(row::<Flex>(&x)))).zip(plain) {
            let want = literal(f64::from(*x));
            // erf's own error times |x| / 2, and the rounding of f32.
            let tolerance = 4e-7 * f64::from(x.abs()).max(1.0);
            assert!((f64::from(cpu) - want).abs() < tolerance, "gelu({x}) = {cpu}, not {want}");
            assert!((f64::from(plain) - want).abs() < tolerance, "reference({x}) = {plain}, not {want}");
        }
    }

    #[test]
    fn the_gradient_is_the_finite_difference_of_the_definition() {
        let x = inputs();
        let input = row::<Autodiff<Flex>>(&x).require_grad();
        // Each gradient is multiplied by that of the output: 3.
        let grads = (erf_gelu(input.clone()) * 3.0).sum().backward();
        let plain = values(tensor(reference_backward::<Flex>(primitive(row(&x)), primitive(row(&vec![3.0; x.len()])))));
        for ((x, cpu), plain) in x.iter().zip(values(input.grad(&grads).unwrap())).zip(plain) {
            let (x, step) = (f64::from(*x), 1e-5);
            let want = 3.0 * (literal(x + step) - literal(x - step)) / (2.0 * step);
            assert!((f64::from(cpu) - want).abs() < 3e-6, "cpu at {x}: {cpu}, not {want}");
            assert!((f64::from(plain) - want).abs() < 3e-6, "reference at {x}: {plain}, not {want}");
        }
    }

    #[test]
    fn far_out_it_is_the_identity_or_nothing() {
        let y = values(erf_gelu(row::<Flex>(&[30.0, 1e30, -30.0, -1e30, 0.0, f32::INFINITY, f32::NAN])));
        assert_eq!(y[..6], [30.0, 1e30, 0.0, 0.0, 0.0, f32::INFINITY]);
        assert!(y[6].is_nan());
    }
}
