//! Log-probability of one label a row and entropy of the row, from logits.
//!
//! With z = logits / temperature, m = max z, e_v = exp(z_v - m), E = sum e:
//!
//! ```text
//! lse = m + ln E     log p = z_y - lse     H = ln E - sum_v e_v (z_v - m) / E
//! d log p / d z_v = [v = y] - p_v          d H / d z_v = -p_v (ln p_v + H)          (and 1 / temperature for the logits)
//! ```
//!
//! One pass over a row in cache forwards and one backwards instead of ten over [N, V]; kept are the logits and three numbers a row. One exponential an
//! element each way. Bytes (f32): 4 N V forwards, 8 N V backwards. A logit of -inf has probability 0 and adds nothing to H; NaN makes its row NaN.
use crate::{
    KernelOps,
    cpu::{CpuTensor, LANES, exp, for_each_piece, from_vec, row_major, simd},
};
use burn::{
    backend::Flex,
    tensor::{
        DType, Int, IntDType, Tensor, TensorPrimitive,
        backend::Backend,
        ops::{FloatTensor, IntTensor, IntTensorOps},
        s,
    },
};

/// Columns of the packed result: an autodiff node has one output.
pub(crate) const COLUMNS: usize = 3;
const LOG_PROB: usize = 0;
const ENTROPY: usize = 1;
const LSE: usize = 2;
/// Elements of one task of the CPU loops, in whole rows.
const TASK: usize = 1 << 15;
/// An exponential and its surroundings, counted in multiply-adds.
const WORK_PER_ELEMENT: usize = 16;

/// (log p(label), entropy) of each row in f32, differentiable in the logits.
/// # Shapes
/// logits [N, V] f32, labels [N] -> [N] twice.
/// # Panics
/// When a label is not below V (a bug of the caller; unchecked on GPU backends).
pub fn log_probs<B: KernelOps>(logits: Tensor<B, 2>, labels: Tensor<B, 1, Int>, temperature: f64) -> (Tensor<B, 1>, Tensor<B, 1>) {
    let n_rows = logits.dims()[0];
    assert_eq!(labels.dims(), [n_rows], "one label a row");
    let packed = B::log_probs(logits.cast(DType::F32).into_primitive().tensor(), labels.into_primitive(), temperature);
    let packed = Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(packed));
    let column = |column: usize| packed.clone().slice(s![.., column..column + 1]).reshape([n_rows]);
    (column(LOG_PROB), column(ENTROPY))
}

/// [N, 3]: log p(label), entropy, log of the normaliser.
pub(crate) fn reference<B: Backend>(logits: FloatTensor<B>, labels: IntTensor<B>, temperature: f64) -> FloatTensor<B> {
    let z = tensor::<B>(logits) / temperature;
    let n_rows = z.dims()[0];
    let max = z.clone().max_dim(1);
    let shifted = z.clone() - max.clone();
    let e = shifted.clone().exp();
    let total = e.clone().sum_dim(1);
    let impossible = e.clone().equal_elem(0.0);
    let entropy = total.clone().log() - (e * shifted.mask_fill(impossible, 0.0)).sum_dim(1) / total.clone();
    let lse = total.log() + max;
    let labels = Tensor::<B, 1, Int>::from_primitive(labels).reshape([n_rows, 1]);
    Tensor::cat(vec![z.gather(1, labels) - lse.clone(), entropy, lse], 1).into_primitive().tensor()
}

/// d logits [N, V], given the packed result and its gradient, [N, 3] both. (No gradient flows through the third column.)
pub(crate) fn reference_backward<B: Backend>(
    logits: FloatTensor<B>,
    labels: IntTensor<B>,
    packed: FloatTensor<B>,
    grad: FloatTensor<B>,
    temperature: f64,
) -> FloatTensor<B> {
    let (logits, packed, grad) = (tensor::<B>(logits), tensor::<B>(packed), tensor::<B>(grad));
    let n_rows = logits.dims()[0];
    let column = |x: &Tensor<B, 2>, column: usize| x.clone().slice(s![.., column..column + 1]);
    let (d_log_prob, d_entropy) = (column(&grad, LOG_PROB), column(&grad, ENTROPY));
    let log_p = logits / temperature - column(&packed, LSE);
    let p = log_p.clone().exp();
    let impossible = p.clone().equal_elem(0.0);
    let log_p = log_p.mask_fill(impossible, 0.0);
    let dz = p * ((log_p + column(&packed, ENTROPY)) * d_entropy + d_log_prob.clone()).neg();
    let labels = Tensor::<B, 1, Int>::from_primitive(labels).reshape([n_rows, 1]);
    let dz = dz.scatter(1, labels, d_log_prob, burn::tensor::IndexingUpdateOp::Add);
    (dz / temperature).into_primitive().tensor()
}

fn tensor<B: Backend>(primitive: FloatTensor<B>) -> Tensor<B, 2> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

pub(crate) fn cpu(logits: CpuTensor, labels: CpuTensor, temperature: f64) -> CpuTensor {
    let logits = row_major(logits);
    let labels = host_labels(labels);
    let [n_rows, n_vocab] = logits.layout().shape().dims::<2>();
    let data = logits.storage::<f32>();
    let scale = (1.0 / temperature) as f32;
    let mut out = vec![0.0f32; n_rows * COLUMNS];
    let rows = rows_per_task(n_vocab);
    let tasks = out.chunks_mut(rows * COLUMNS).zip(data.chunks(rows * n_vocab)).zip(labels.chunks(rows)).collect();
    for_each_piece(tasks, WORK_PER_ELEMENT * data.len(), |((out, logits), labels)| {
        simd!({
            for ((out, logits), label) in out.chunks_exact_mut(COLUMNS).zip(logits.chunks_exact(n_vocab)).zip(labels) {
                let (lse, entropy) = lse_and_entropy(logits, scale);
                out[LOG_PROB] = logits[*label] * scale - lse;
                out[ENTROPY] = entropy;
                out[LSE] = lse;
            }
        })
    });
    from_vec(out, [n_rows, COLUMNS], DType::F32)
}

pub(crate) fn cpu_backward(logits: CpuTensor, labels: CpuTensor, packed: CpuTensor, grad: CpuTensor, temperature: f64) -> CpuTensor {
    let (logits, packed, grad) = (row_major(logits), row_major(packed), row_major(grad));
    let labels = host_labels(labels);
    let [n_rows, n_vocab] = logits.layout().shape().dims::<2>();
    let (data, packed, grad) = (logits.storage::<f32>(), packed.storage::<f32>(), grad.storage::<f32>());
    let scale = (1.0 / temperature) as f32;
    let mut out = vec![0.0f32; data.len()];
    let rows = rows_per_task(n_vocab);
    let numbers = packed.chunks(rows * COLUMNS).zip(grad.chunks(rows * COLUMNS)).zip(labels.chunks(rows));
    let tasks = out.chunks_mut(rows * n_vocab).zip(data.chunks(rows * n_vocab)).zip(numbers).collect();
    for_each_piece(tasks, WORK_PER_ELEMENT * data.len(), |((out, logits), ((packed, grad), labels))| {
        simd!({
            let rows = out.chunks_exact_mut(n_vocab).zip(logits.chunks_exact(n_vocab));
            let numbers = packed.chunks_exact(COLUMNS).zip(grad.chunks_exact(COLUMNS)).zip(labels);
            for ((out, logits), ((packed, grad), label)) in rows.zip(numbers) {
                let (lse, entropy) = (packed[LSE], packed[ENTROPY]);
                let (d_log_prob, d_entropy) = (grad[LOG_PROB] * scale, grad[ENTROPY] * scale);
                for (out, logit) in out.iter_mut().zip(logits) {
                    let log_p = logit * scale - lse;
                    let p = exp(log_p);
                    // The comparison keeps 0 * -inf out and lets NaN through, which is in p.
                    let log_p = if p == 0.0 { 0.0 } else { log_p };
                    *out = -p * (log_p + entropy).mul_add(d_entropy, d_log_prob);
                }
                out[*label] += d_log_prob;
            }
        })
    });
    from_vec(out, [n_rows, n_vocab], DType::F32)
}

/// ln sum exp z and -sum p ln p, z = scale * logits.
#[inline(always)]
fn lse_and_entropy(logits: &[f32], scale: f32) -> (f32, f32) {
    let (parts, rest) = (logits.chunks_exact(LANES), logits.chunks_exact(LANES).remainder());
    let mut max = [f32::NEG_INFINITY; LANES];
    for part in parts.clone() {
        for i in 0..LANES {
            max[i] = if part[i] > max[i] { part[i] } else { max[i] };
        }
    }
    let max = max.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
    let (mut totals, mut moments) = ([0.0f32; LANES], [0.0f32; LANES]);
    for part in parts {
        for i in 0..LANES {
            let shifted = (part[i] - max) * scale;
            let e = exp(shifted);
            totals[i] += e;
            moments[i] += if e == 0.0 { 0.0 } else { e * shifted };
        }
    }
    let (mut total, mut moment) = (0.0f32, 0.0f32);
    for i in 0..LANES {
        total += totals[i];
        moment += moments[i];
    }
    for x in rest {
        let shifted = (x - max) * scale;
        let e = exp(shifted);
        total += e;
        moment += if e == 0.0 { 0.0 } else { e * shifted };
    }
    let log_total = total.ln();
    (max * scale + log_total, log_total - moment / total)
}

fn rows_per_task(n_vocab: usize) -> usize {
    (TASK / n_vocab.max(1)).max(1)
}

fn host_labels(labels: CpuTensor) -> Vec<usize> {
    let labels = Flex::int_cast(labels, IntDType::I64).to_contiguous();
    labels.storage::<i64>().iter().map(|&label| usize::try_from(label).expect("labels are not negative")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::{backend::Autodiff, tensor::TensorData};

    type Train = Autodiff<Flex>;

    const VOCAB: usize = 37;
    const LABELS: [i64; 3] = [0, 36, 20];

    fn logits() -> Vec<f64> {
        (0..3 * VOCAB).map(|i| 8.0 * ((i as f64 + 1.0) * 0.618_033_988_749_894_9).fract() - 4.0 + (i / VOCAB) as f64 * 30.0).collect()
    }

    /// log p and H of each row by definition, f64.
    fn literal(logits: &[f64], temperature: f64) -> Vec<(f64, f64)> {
        let row = |(z, label): (&[f64], &i64)| {
            let total: f64 = z.iter().map(|x| (x / temperature).exp()).sum();
            let p: Vec<f64> = z.iter().map(|x| (x / temperature).exp() / total).collect();
            (p[*label as usize].ln(), -p.iter().map(|p| p * p.ln()).sum::<f64>())
        };
        logits.chunks(VOCAB).zip(&LABELS).map(row).collect()
    }

    fn tensor<B: Backend>(values: &[f64]) -> Tensor<B, 2> {
        let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
        Tensor::from_data(TensorData::new(values, [3, VOCAB]), &Default::default())
    }

    fn labels<B: Backend>() -> Tensor<B, 1, Int> {
        Tensor::from_data(LABELS, &Default::default())
    }

    fn packed(reference: FloatTensor<Flex>) -> Vec<f32> {
        super::tensor::<Flex>(reference).into_data().to_vec().unwrap()
    }

    #[test]
    fn values_are_the_definition() {
        for temperature in [1.0, 0.7] {
            let want = literal(&logits(), temperature);
            let plain = packed(reference::<Flex>(
                tensor::<Flex>(&logits()).into_primitive().tensor(),
                labels::<Flex>().into_primitive(),
                temperature,
            ));
            let (log_p, entropy) = log_probs(tensor::<Flex>(&logits()), labels(), temperature);
            let (log_p, entropy): (Vec<f32>, Vec<f32>) = (log_p.into_data().to_vec().unwrap(), entropy.into_data().to_vec().unwrap());
            for (row, (want_log_p, want_entropy)) in want.into_iter().enumerate() {
                for (got, want) in [
                    (log_p[row], want_log_p),
                    (plain[row * COLUMNS], want_log_p),
                    (entropy[row], want_entropy),
                    (plain[row * COLUMNS + 1], want_entropy),
                ] {
                    assert!((f64::from(got) - want).abs() < 1e-5, "row {row}: {got} instead of {want}");
                }
            }
        }
    }

    #[test]
    fn gradients_are_finite_differences() {
        let (temperature, weights) = (0.7, [(1.0, 0.5), (-0.3, 2.0), (0.0, 1.0)]);
        let loss = |logits: &[f64]| literal(logits, temperature).iter().zip(weights).map(|(x, w)| x.0 * w.0 + x.1 * w.1).sum::<f64>();
        let want: Vec<f64> = (0..3 * VOCAB)
            .map(|i| {
                let at = |delta: f64| {
                    let mut moved = logits();
                    moved[i] += delta;
                    loss(&moved)
                };
                (at(1e-5) - at(-1e-5)) / 2e-5
            })
            .collect();
        let z = tensor::<Train>(&logits()).require_grad();
        let (log_p, entropy) = log_probs(z.clone(), labels(), temperature);
        let weigh = |f: fn((f64, f64)) -> f64| Tensor::<Train, 1>::from_data(weights.map(|w| f(w) as f32), &Default::default());
        let grads = (log_p * weigh(|w| w.0) + entropy * weigh(|w| w.1)).sum().backward();
        let cpu: Vec<f32> = z.grad(&grads).unwrap().into_data().to_vec().unwrap();
        let grad: Vec<f32> = weights.iter().flat_map(|w| [w.0 as f32, w.1 as f32, 0.0]).collect();
        let grad = Tensor::<Flex, 2>::from_data(TensorData::new(grad, [3, COLUMNS]), &Default::default()).into_primitive().tensor();
        let (z, y) = (tensor::<Flex>(&logits()).into_primitive().tensor(), labels::<Flex>().into_primitive());
        let out = reference::<Flex>(z.clone(), y.clone(), temperature);
        let plain = packed(reference_backward::<Flex>(z, y, out, grad, temperature));
        for (i, want) in want.into_iter().enumerate() {
            for got in [cpu[i], plain[i]] {
                assert!((f64::from(got) - want).abs() < 1e-5, "{i}: {got} instead of {want}");
            }
        }
    }

    #[test]
    fn minus_infinity_is_impossible_and_nan_surfaces() {
        let z = Tensor::<Train, 2>::from_data([[0.0, f32::NEG_INFINITY, 0.0], [0.0, f32::NAN, 0.0]], &Default::default()).require_grad();
        let (log_p, entropy) = log_probs(z.clone(), Tensor::from_data([0, 0], &Default::default()), 1.0);
        let values: Vec<f32> = Tensor::cat(vec![log_p.clone(), entropy.clone()], 0).into_data().to_vec().unwrap();
        let ln_2 = std::f32::consts::LN_2;
        assert!((values[0] + ln_2).abs() < 1e-6 && (values[2] - ln_2).abs() < 1e-6);
        assert!(values[1].is_nan() && values[3].is_nan());
        let grads = (log_p + entropy).sum().backward();
        let grad: Vec<f32> = z.grad(&grads).unwrap().into_data().to_vec().unwrap();
        assert!((grad[0] - 0.5).abs() < 1e-6 && grad[1] == 0.0 && grad[3].is_nan(), "{grad:?}");
    }
}
