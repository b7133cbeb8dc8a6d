//! RMSNorm with f32 inside: y = w * cast(x r), r = 1 / sqrt(mean_d(x_d^2) + eps), the weight multiplied in the dtype of x (as Hugging Face does).
//!
//! ```text
//! n = x r     g = dy w     dx = r (g - n mean_d(g_d n_d))     dw = sum over rows of dy n
//! ```
//!
//! One pass over x forwards, one over x and dy backwards; nothing but x and w is kept. Bytes (f32): 8 N D forwards, 12 N D backwards; 4 N D and 10 N D
//! flops. Memory-bound.
#[cfg(feature = "cube")]
pub(crate) mod kernel;

use crate::{
    KernelOps,
    cpu::{CpuTensor, LANES, for_each_piece, from_vec, row_major, simd},
};
use burn::tensor::{DType, Tensor, TensorPrimitive, backend::Backend, ops::FloatTensor};

/// Rows of one task of the CPU loops. dw is summed task by task, so this is part of the result's last bit.
const ROWS_PER_TASK: usize = 256;

/// y = w * x / sqrt(mean(x^2) + eps), differentiable in x and w.
/// # Shapes
/// x [N, D], weight [D] -> [N, D] in the dtype of x.
pub fn rms_norm<B: KernelOps>(x: Tensor<B, 2>, weight: Tensor<B, 1>, eps: f64) -> Tensor<B, 2> {
    assert_eq!(x.dims()[1], weight.dims()[0], "one weight a feature");
    let (x, weight) = (x.into_primitive().tensor(), weight.into_primitive().tensor());
    Tensor::from_primitive(TensorPrimitive::Float(B::rms_norm(x, weight, eps)))
}

pub(crate) fn reference<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>, eps: f64) -> FloatTensor<B> {
    let (x, weight) = tensors::<B>(x, weight);
    let dtype = x.dtype();
    let (n, _) = normalised(x, eps);
    (n.cast(dtype) * weight.unsqueeze()).into_primitive().tensor()
}

pub(crate) fn reference_backward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
    eps: f64,
) -> [FloatTensor<B>; 2] {
    let (x, weight) = tensors::<B>(x, weight);
    let grad = Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(grad)).cast(DType::F32);
    let (dtype, weight_dtype) = (x.dtype(), weight.dtype());
    let (n, r) = normalised(x, eps);
    let dw = (grad.clone() * n.clone()).sum_dim(0).squeeze_dim::<1>(0).cast(weight_dtype);
    let g = grad * weight.cast(DType::F32).unsqueeze();
    let dx = (g.clone() - n.clone() * (g * n).mean_dim(1)) * r;
    [dx.cast(dtype).into_primitive().tensor(), dw.into_primitive().tensor()]
}

/// (x r, r) in f32: [N, D], [N, 1].
fn normalised<B: Backend>(x: Tensor<B, 2>, eps: f64) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let x = x.cast(DType::F32);
    let r = (x.clone().powi_scalar(2).mean_dim(1) + eps).sqrt().recip();
    (x * r.clone(), r)
}

fn tensors<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>) -> (Tensor<B, 2>, Tensor<B, 1>) {
    (Tensor::from_primitive(TensorPrimitive::Float(x)), Tensor::from_primitive(TensorPrimitive::Float(weight)))
}

pub(crate) fn cpu(x: CpuTensor, weight: CpuTensor, eps: f64) -> CpuTensor {
    if x.dtype() != DType::F32 {
        return reference::<burn::backend::Flex>(x, weight, eps);
    }
    let (x, weight) = (row_major(x), row_major(weight));
    let (data, weight) = (x.storage::<f32>(), weight.storage::<f32>());
    let d_model = weight.len();
    let mut out = vec![0.0f32; data.len()];
    let task_size = ROWS_PER_TASK * d_model;
    for_each_piece(out.chunks_mut(task_size).zip(data.chunks(task_size)).collect(), 4 * data.len(), |(out, x)| {
        simd!({
            for (out, x) in out.chunks_exact_mut(d_model).zip(x.chunks_exact(d_model)) {
                let r = inverse_rms(x, eps);
                for i in 0..d_model {
                    out[i] = x[i] * r * weight[i];
                }
            }
        })
    });
    from_vec(out, x.layout().shape().dims::<2>(), DType::F32)
}

pub(crate) fn cpu_backward(x: CpuTensor, weight: CpuTensor, grad: CpuTensor, eps: f64) -> [CpuTensor; 2] {
    if x.dtype() != DType::F32 {
        return reference_backward::<burn::backend::Flex>(x, weight, grad, eps);
    }
    let (x, weight, grad) = (row_major(x), row_major(weight), row_major(grad));
    let (data, weight, grad) = (x.storage::<f32>(), weight.storage::<f32>(), grad.storage::<f32>());
    let d_model = weight.len();
    let task_size = ROWS_PER_TASK * d_model;
    let n_tasks = data.len().div_ceil(task_size);
    let (mut dx, mut partial_dw) = (vec![0.0f32; data.len()], vec![0.0f32; n_tasks * d_model]);
    let tasks =
        dx.chunks_mut(task_size).zip(partial_dw.chunks_mut(d_model)).zip(data.chunks(task_size).zip(grad.chunks(task_size))).collect();
    for_each_piece(tasks, 10 * data.len(), |((dx, dw), (x, grad))| {
        simd!({
            for ((dx, x), dy) in dx.chunks_exact_mut(d_model).zip(x.chunks_exact(d_model)).zip(grad.chunks_exact(d_model)) {
                let r = inverse_rms(x, eps);
                for i in 0..d_model {
                    dx[i] = dy[i] * weight[i];
                    dw[i] += dy[i] * x[i] * r;
                }
                let mean = dot(dx, x) * r / d_model as f32;
                for i in 0..d_model {
                    dx[i] = r * (dx[i] - x[i] * r * mean);
                }
            }
        })
    });
    let mut dw = vec![0.0f32; d_model];
    for part in partial_dw.chunks_exact(d_model) {
        for i in 0..d_model {
            dw[i] += part[i];
        }
    }
    [from_vec(dx, x.layout().shape().dims::<2>(), DType::F32), from_vec(dw, [d_model], DType::F32)]
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f64) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps as f32).sqrt()
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (a_parts, b_parts) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let mut total: f32 = a_parts.remainder().iter().zip(b_parts.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_parts.zip(b_parts) {
        for i in 0..LANES {
            sums[i] = a[i].mul_add(b[i], sums[i]);
        }
    }
    for sum in sums {
        total += sum;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::{
        backend::{Autodiff, Flex},
        tensor::TensorData,
    };

    type Train = Autodiff<Flex>;

    const EPS: f64 = 1e-2;

    /// (x [N, D], w [D], weights of the outputs in the loss [N, D]), N past one task of the CPU loops.
    fn case(n: usize, d: usize) -> [Vec<f64>; 3] {
        let numbers = |n: usize, salt: f64| (0..n).map(|i| ((i as f64 + 1.0) * (0.618_033_988_749_894_9 + salt)).fract() - 0.4).collect();
        [numbers(n * d, 0.0), numbers(d, 0.1), numbers(n * d, 0.2)]
    }

    fn literal(x: &[f64], w: &[f64]) -> Vec<f64> {
        let norm = |x: &[f64]| (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + EPS).sqrt();
        x.chunks(w.len()).flat_map(|x| x.iter().zip(w).map(move |(x_d, w)| x_d / norm(x) * w)).collect()
    }

    fn tensor<B: Backend, const D: usize>(values: &[f64], shape: [usize; D]) -> Tensor<B, D> {
        let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
        Tensor::from_data(TensorData::new(values, shape), &Default::default())
    }

    fn assert_close(got: FloatTensor<Flex>, want: &[f64], what: &str) {
        let got = got.into_data().to_vec::<f32>().unwrap();
        assert_eq!(got.len(), want.len());
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            assert!((f64::from(*got) - want).abs() < 2e-5 * (1.0 + want.abs()), "{what}[{i}]: {got} instead of {want}");
        }
    }

    #[test]
    fn forward_is_the_definition() {
        for (n, d) in [(3, 5), (300, 48)] {
            let [x, w, _] = case(n, d);
            let want = literal(&x, &w);
            let (x, w) = (tensor::<Flex, 2>(&x, [n, d]), tensor::<Flex, 1>(&w, [d]));
            let primitives = (x.clone().into_primitive().tensor(), w.clone().into_primitive().tensor());
            assert_close(reference::<Flex>(primitives.0, primitives.1, EPS), &want, "reference");
            assert_close(rms_norm(x, w, EPS).into_primitive().tensor(), &want, "cpu");
        }
    }

    #[test]
    fn gradients_are_finite_differences() {
        let (n, d) = (3, 21);
        let [x, w, weights] = case(n, d);
        let loss = |x: &[f64], w: &[f64]| literal(x, w).iter().zip(&weights).map(|(y, g)| y * g).sum::<f64>();
        let difference = |values: &[f64], loss: &dyn Fn(&[f64]) -> f64| -> Vec<f64> {
            let at = |i: usize, delta: f64| {
                let mut moved = values.to_vec();
                moved[i] += delta;
                loss(&moved)
            };
            (0..values.len()).map(|i| (at(i, 1e-5) - at(i, -1e-5)) / 2e-5).collect()
        };
        let (want_x, want_w) = (difference(&x, &|x| loss(x, &w)), difference(&w, &|w| loss(&x, w)));

        let (x_ad, w_ad) = (tensor::<Train, 2>(&x, [n, d]).require_grad(), tensor::<Train, 1>(&w, [d]).require_grad());
        let grads = (rms_norm(x_ad.clone(), w_ad.clone(), EPS) * tensor(&weights, [n, d])).sum().backward();
        assert_close(x_ad.grad(&grads).unwrap().into_primitive().tensor(), &want_x, "dx");
        assert_close(w_ad.grad(&grads).unwrap().into_primitive().tensor(), &want_w, "dw");

        let primitives = (tensor::<Flex, 2>(&x, [n, d]).into_primitive().tensor(), tensor::<Flex, 1>(&w, [d]).into_primitive().tensor());
        let grad = tensor::<Flex, 2>(&weights, [n, d]).into_primitive().tensor();
        let [dx, dw] = reference_backward::<Flex>(primitives.0, primitives.1, grad, EPS);
        assert_close(dx, &want_x, "reference dx");
        assert_close(dw, &want_w, "reference dw");
    }

    #[test]
    fn weight_gradient_is_summed_over_all_tasks() {
        let (n, d) = (3 * ROWS_PER_TASK + 7, 8);
        let [x, w, weights] = case(n, d).map(|values| {
            let shape = [values.len() / d, d];
            tensor::<Flex, 2>(&values, shape)
        });
        let [x, w, grad] = [x.into_primitive().tensor(), w.reshape([d]).into_primitive().tensor(), weights.into_primitive().tensor()];
        let [_, plain] = reference_backward::<Flex>(x.clone(), w.clone(), grad.clone(), EPS);
        let [_, dw] = cpu_backward(x, w, grad, EPS);
        let plain: Vec<f64> = plain.into_data().to_vec::<f32>().unwrap().into_iter().map(f64::from).collect();
        assert_close(dw, &plain, "dw");
    }
}
