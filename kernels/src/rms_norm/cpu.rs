//! RMSNorm on the CPU backend: rows in parallel.
use super::reference;
use crate::{
    cpu::{CpuTensor, LANES, for_each_piece, from_vec, row_major, simd},
    rows::WHOLE_ROWS,
};
use burn::{backend::Flex, tensor::DType};

/// Rows of one task of the CPU loops. dw is summed task by task, so this is part of the result's
/// last bit.
pub(super) const ROWS_PER_TASK: usize = 256;
/// Up to so many tasks are added up in f32: more would lose digits.
const TASKS_IN_F32: usize = WHOLE_ROWS / ROWS_PER_TASK;

pub(super) fn forward(x: CpuTensor, weight: CpuTensor, eps: f64) -> CpuTensor {
    if x.dtype() != DType::F32 {
        return reference::forward::<Flex>(x, weight, eps);
    }
    let (x, weight) = (row_major(x), row_major(weight));
    let (data, weight) = (x.storage::<f32>(), weight.storage::<f32>());
    let d_model = weight.len();
    let mut out = vec![0.0f32; data.len()];
    let task_size = ROWS_PER_TASK * d_model;
    for_each_piece(
        out.chunks_mut(task_size).zip(data.chunks(task_size)).collect(),
        4 * data.len(),
        |(out, x)| {
            simd!({
                for (out, x) in out.chunks_exact_mut(d_model).zip(x.chunks_exact(d_model)) {
                    let r = inverse_rms(x, eps);
                    for i in 0..d_model {
                        out[i] = x[i] * r * weight[i];
                    }
                }
            })
        },
    );
    from_vec(out, x.layout().shape().dims::<2>(), DType::F32)
}

pub(super) fn backward(
    x: CpuTensor,
    weight: CpuTensor,
    grad: CpuTensor,
    eps: f64,
) -> [CpuTensor; 2] {
    if x.dtype() != DType::F32 {
        return reference::backward::<Flex>(x, weight, grad, eps);
    }
    let (x, weight, grad) = (row_major(x), row_major(weight), row_major(grad));
    let (data, weight, grad) = (x.storage::<f32>(), weight.storage::<f32>(), grad.storage::<f32>());
    let d_model = weight.len();
    let task_size = ROWS_PER_TASK * d_model;
    let n_tasks = data.len().div_ceil(task_size);
    let (mut dx, mut partial_dw) = (vec![0.0f32; data.len()], vec![0.0f32; n_tasks * d_model]);
    let tasks = dx
        .chunks_mut(task_size)
        .zip(partial_dw.chunks_mut(d_model))
        .zip(data.chunks(task_size).zip(grad.chunks(task_size)))
        .collect();
    for_each_piece(tasks, 10 * data.len(), |((dx, dw), (x, grad))| {
        simd!({
            for ((dx, x), dy) in dx
                .chunks_exact_mut(d_model)
                .zip(x.chunks_exact(d_model))
                .zip(grad.chunks_exact(d_model))
            {
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
    let dw = sum_of_tasks(&partial_dw, d_model);
    [from_vec(dx, x.layout().shape().dims::<2>(), DType::F32), from_vec(dw, [d_model], DType::F32)]
}

/// The sum of the rows `[D]` of the tasks: in f32 where they are few, in f64 where that would lose
/// digits.
fn sum_of_tasks(rows: &[f32], d_model: usize) -> Vec<f32> {
    let rows = rows.chunks_exact(d_model);
    if rows.len() <= TASKS_IN_F32 {
        let mut sums = vec![0.0f32; d_model];
        rows.for_each(|row| sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x));
        return sums;
    }
    let mut sums = vec![0.0f64; d_model];
    rows.for_each(|row| sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x)));
    sums.into_iter().map(|sum| sum as f32).collect()
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f64) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps as f32).sqrt()
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (a_parts, b_parts) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let mut total: f32 =
        a_parts.remainder().iter().zip(b_parts.remainder()).map(|(a, b)| a * b).sum();
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
