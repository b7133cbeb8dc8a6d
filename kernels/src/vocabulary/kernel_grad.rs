//! The CubeCL kernels of the gradients: the same shape as the folds of `kernel.rs`, each unit
//! writes the entries that it reads.
#![allow(clippy::too_many_arguments, reason = "a launch has one argument a buffer and scalar")]
use super::{
    kernel::{SUMS, VARIATION, mixture_terms, probability, variation_terms},
    packed::{ENTROPY, LOG_PROB, MAX, REVERSE, S_MAX, S_SUM, SUM, T_MAX, T_SUM, VALUE},
};
use crate::{
    cube::numbers::{finite, is_bad, poison},
    nan::LOG_ZERO,
};
use cubecl::prelude::*;

/// d (log p(label), entropy) of one entry, times their gradients.
#[cube]
fn gradient_of_one(
    z: f32,
    below: f32,
    ln_sum: f32,
    entropy: f32,
    d_log_prob: f32,
    d_entropy: f32,
    is_label: bool,
) -> f32 {
    let log_p = below - ln_sum;
    let p = select(z > LOG_ZERO, log_p.exp(), f32::new(0.0));
    let safe = select(z > LOG_ZERO, log_p, f32::new(0.0));
    let label = select(is_label, d_log_prob, f32::new(0.0));
    label - p * (d_log_prob + d_entropy * (safe + entropy))
}

/// Gradient of the columns `start..end` of a tile of one model, from the packed rows and the
/// gradient of the results.
#[cube(launch, address_type = "dynamic")]
pub(super) fn grad_one<F: Float, I: Numeric, O: Float>(
    tile: &Tensor<F>,
    labels: &Tensor<I>,
    packed: &Tensor<f32>,
    grad: &Tensor<f32>,
    out: &mut Tensor<O>,
    n_rows: usize,
    start: usize,
    end: usize,
    offset: usize,
    scale: f32,
    #[comptime] units: usize,
    #[define(F, I, O)] _types: [StorageType; 3],
) {
    let row = CUBE_POS;
    if row < n_rows {
        let base = row * tile.stride(0);
        let to = row * out.stride(0);
        let at = row * packed.stride(0);
        let g = row * grad.stride(0);
        let label = usize::cast_from(labels[row]);
        let (m, sum, entropy) = (packed[at + MAX], packed[at + SUM], packed[at + ENTROPY]);
        let ln_sum = sum.ln();
        let nan = poison(max(is_bad(sum), select(m > LOG_ZERO, 0u32, 1u32)));
        let (d_log_prob, d_entropy) = (grad[g + LOG_PROB], grad[g + ENTROPY]);
        let mut i = start + UNIT_POS_X as usize;
        while i < end {
            let z = finite(f32::cast_from(tile[base + i]));
            let dz = gradient_of_one(
                z,
                (z - m) * scale,
                ln_sum,
                entropy,
                d_log_prob,
                d_entropy,
                i + offset == label,
            );
            out[to + i] = O::cast_from(dz * scale + nan);
            i += units;
        }
    }
}

/// Gradient of the columns `start..end` of the student's tile, from both tiles, the packed rows and
/// the gradient of the results.
#[cube(launch, address_type = "dynamic")]
pub(super) fn grad_two<S: Float, T: Float, I: Numeric, O: Float>(
    student: &Tensor<S>,
    teacher: &Tensor<T>,
    labels: &Tensor<I>,
    packed: &Tensor<f32>,
    grad: &Tensor<f32>,
    out: &mut Tensor<O>,
    n_rows: usize,
    start: usize,
    end: usize,
    offset: usize,
    scale: f32,
    blend: f32,
    f0: f32,
    f1: f32,
    f2: f32,
    #[comptime] form: u32,
    #[comptime] units: usize,
    #[define(S, T, I, O)] _types: [StorageType; 4],
) {
    let row = CUBE_POS;
    if row < n_rows {
        let base_s = row * student.stride(0);
        let base_t = row * teacher.stride(0);
        let to = row * out.stride(0);
        let at = row * packed.stride(0);
        let g = row * grad.stride(0);
        let label = usize::cast_from(labels[row]);
        let (m, sum, entropy) = (packed[at + MAX], packed[at + SUM], packed[at + ENTROPY]);
        let ln_sum = sum.ln();
        let (m_s, m_t) = (packed[at + S_MAX], packed[at + T_MAX]);
        let (s, t) = (packed[at + S_SUM], packed[at + T_SUM]);
        let (ln_s, ln_t) = (s.ln(), t.ln());
        let reverse = packed[at + REVERSE];
        let no_entry = select(m_s > LOG_ZERO && m_t > LOG_ZERO, 0u32, 1u32);
        let nan = poison(max(no_entry, max(is_bad(sum), max(is_bad(s), is_bad(t)))));
        let (d_log_prob, d_entropy, d_value) =
            (grad[g + LOG_PROB], grad[g + ENTROPY], grad[g + VALUE]);
        let mut i = start + UNIT_POS_X as usize;
        while i < end {
            let z_s = finite(f32::cast_from(student[base_s + i]));
            let z_t = finite(f32::cast_from(teacher[base_t + i])) * blend + z_s * (1.0 - blend);
            let mut dz = gradient_of_one(
                z_s,
                (z_s - m) * scale,
                ln_sum,
                entropy,
                d_log_prob,
                d_entropy,
                i + offset == label,
            );
            let p_s = probability(z_s, (z_s - m_s) * scale, ln_s);
            let p_t = probability(z_t, (z_t - m_t) * scale, ln_t);
            let ratio = ((z_t - m_t) - (z_s - m_s)) * scale - (ln_t - ln_s);
            if comptime![form == SUMS] {
                let kl = reverse / s - (ln_s - ln_t);
                let turned = select(p_s > 0.0, p_s * (-ratio - kl), f32::new(0.0));
                dz += d_value * (f0 * (p_s - p_t) + f1 * turned);
            } else if comptime![form == VARIATION] {
                let (_v, a) = variation_terms(p_s, p_t);
                dz += d_value * (a - p_s * reverse);
            } else {
                let (_v, a) = mixture_terms(p_s, p_t, ratio, f0, f1, f2);
                dz += d_value * (a - p_s * reverse);
            }
            out[to + i] = O::cast_from(dz * scale + nan);
            i += units;
        }
    }
}
