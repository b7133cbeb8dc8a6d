//! SwiGLU on the CPU backend: one vectorised loop each way.
use crate::cpu::{CpuTensor, exp, for_each_piece, from_vec, row_major, simd};

/// Elements of one task of the CPU loops.
const TASK: usize = 1 << 14;
/// An exponential and its surroundings, counted in multiply-adds.
const WORK_PER_ELEMENT: usize = 16;

pub(super) fn forward(gate: CpuTensor, up: CpuTensor) -> CpuTensor {
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

pub(super) fn backward(gate: CpuTensor, up: CpuTensor, grad: CpuTensor) -> [CpuTensor; 2] {
    let dtype = gate.dtype();
    let (gate, up, grad) = (row_major(gate), row_major(up), row_major(grad));
    let (g, u, dy) = (gate.storage::<f32>(), up.storage::<f32>(), grad.storage::<f32>());
    let (mut dgate, mut dup) = (vec![0.0f32; g.len()], vec![0.0f32; g.len()]);
    let tasks = dgate
        .chunks_mut(TASK)
        .zip(dup.chunks_mut(TASK))
        .zip(g.chunks(TASK).zip(u.chunks(TASK)).zip(dy.chunks(TASK)))
        .collect();
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
