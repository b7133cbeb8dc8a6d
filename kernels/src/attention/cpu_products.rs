//! The inner loops of attention on the CPU backend: products of `R` rows with keys, the softmax of
//! a row, sums of values, and outer products.
#![expect(
    clippy::needless_range_loop,
    reason = "one index moves through several arrays; the plain form is the one that vectorises"
)]
use super::cpu_heads::{Transposed, Values};
use crate::cpu::{LANES, exp};

/// out\[r\]\[s\] = a\[r\] . keys\[:, s\] for s < width; out is [R, width].
#[inline(always)]
pub(super) fn products<const R: usize>(
    a: &[&[f32]; R],
    keys: &Transposed,
    width: usize,
    out: &mut [f32],
) {
    let head_dim = a[0].len();
    for s in (0..width).step_by(LANES) {
        let mut sums = [[0.0f32; LANES]; R];
        for d in 0..head_dim {
            let key = &keys.data[d * keys.stride + s..][..LANES];
            for r in 0..R {
                let x = a[r][d];
                for i in 0..LANES {
                    sums[r][i] = x.mul_add(key[i], sums[r][i]);
                }
            }
        }
        for r in 0..R {
            out[r * width + s..r * width + s + LANES].copy_from_slice(&sums[r]);
        }
    }
}

/// scores -> exp(scale (score - max)) over the first n, 0 behind them; returns their sum. NaN
/// anywhere makes the sum NaN.
#[inline(always)]
pub(super) fn softmax_numerators(scores: &mut [f32], n: usize, scale: f32) -> f32 {
    scores[n..].fill(f32::NEG_INFINITY);
    let mut max = [f32::NEG_INFINITY; LANES];
    for part in scores.chunks_exact(LANES) {
        for i in 0..LANES {
            max[i] = if part[i] > max[i] { part[i] } else { max[i] };
        }
    }
    let max = max.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mut total = [0.0f32; LANES];
    for part in scores.chunks_exact_mut(LANES) {
        for i in 0..LANES {
            part[i] = exp((part[i] - max) * scale);
            total[i] += part[i];
        }
    }
    sum(&total)
}

/// Calls `write(r, d, sums)` with sums_d = sum_s w\[r\]\[s\] values\[s\]\[d..\] in blocks of the
/// head; w is [R, width].
#[inline(always)]
pub(super) fn weighted_sums<const R: usize>(
    w: &[f32],
    width: usize,
    n: usize,
    values: &Values,
    head_dim: usize,
    write: &mut impl FnMut(usize, usize, &[f32]),
) {
    let mut d = 0;
    while d < head_dim {
        d += match head_dim - d {
            16.. => weighted_sums_at::<R, 16>(w, width, n, values, d, write),
            8..16 => weighted_sums_at::<R, 8>(w, width, n, values, d, write),
            _ => weighted_sums_at::<R, 1>(w, width, n, values, d, write),
        };
    }
}

#[inline(always)]
fn weighted_sums_at<const R: usize, const W: usize>(
    w: &[f32],
    width: usize,
    n: usize,
    values: &Values,
    d: usize,
    write: &mut impl FnMut(usize, usize, &[f32]),
) -> usize {
    let weights: [&[f32]; R] = std::array::from_fn(|r| &w[r * width..r * width + n]);
    let mut sums = [[0.0f32; W]; R];
    for s in 0..n {
        let value = &values.data[s * values.stride + d..][..W];
        for r in 0..R {
            let x = weights[r][s];
            for i in 0..W {
                sums[r][i] = x.mul_add(value[i], sums[r][i]);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        write(r, d, sums);
    }
    W
}

/// out\[s\] += sum_r w\[r\]\[s\] x\[r\] for s < n; w is [R, width], out [n, hd].
#[inline(always)]
pub(super) fn add_outer<const R: usize>(
    w: &[f32],
    width: usize,
    n: usize,
    x: &[&[f32]; R],
    head_dim: usize,
    out: &mut [f32],
) {
    let mut d = 0;
    while d < head_dim {
        d += match head_dim - d {
            16.. => add_outer_at::<R, 16>(w, width, n, x, head_dim, d, out),
            8..16 => add_outer_at::<R, 8>(w, width, n, x, head_dim, d, out),
            _ => add_outer_at::<R, 1>(w, width, n, x, head_dim, d, out),
        };
    }
}

#[inline(always)]
fn add_outer_at<const R: usize, const W: usize>(
    w: &[f32],
    width: usize,
    n: usize,
    x: &[&[f32]; R],
    head_dim: usize,
    d: usize,
    out: &mut [f32],
) -> usize {
    let weights: [&[f32]; R] = std::array::from_fn(|r| &w[r * width..r * width + n]);
    let mut rows = [[0.0f32; W]; R];
    for r in 0..R {
        rows[r].copy_from_slice(&x[r][d..d + W]);
    }
    for s in 0..n {
        let out = &mut out[s * head_dim + d..][..W];
        for r in 0..R {
            let weight = weights[r][s];
            for i in 0..W {
                out[i] = weight.mul_add(rows[r][i], out[i]);
            }
        }
    }
    W
}

/// Sum of the lanes in a fixed order.
#[inline(always)]
pub(super) fn sum(lanes: &[f32; LANES]) -> f32 {
    let mut half = [0.0f32; LANES / 2];
    for i in 0..LANES / 2 {
        half[i] = lanes[i] + lanes[i + LANES / 2];
    }
    half.iter().sum()
}
