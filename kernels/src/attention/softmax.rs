//! Steps of CubeCL kernels between the matrix products of a chunk of queries, and the copies around
//! them. Arithmetic in f32 whatever the dtype.
//!
//! Which keys a query sees follows from its number and two integers of its row, so no mask is
//! stored or read.
#![allow(clippy::too_many_arguments, reason = "a launch has one argument a buffer and scalar")]
use crate::{
    cube::numbers::{finite, is_bad, poison},
    nan::LOG_ZERO,
};
use cubecl::prelude::*;

/// Integers of a row in the table `rows` of the kernels.
pub(super) const ROW_NUMBERS: usize = 3;
pub(super) const SLOT: usize = 0;
pub(super) const START: usize = 1;
pub(super) const LENGTH: usize = 2;

/// Keys that query `t` of row `b` sees: the first so many.
#[cube]
pub(super) fn n_visible(rows: &Tensor<u32>, b: usize, t: usize) -> usize {
    let start = usize::cast_from(rows[b * ROW_NUMBERS + START]);
    min(start + t + 1, usize::cast_from(rows[b * ROW_NUMBERS + LENGTH]))
}

/// Adds the (max, sum) of entry `b` to entry `a`, and the weighted sum with `has_product`.
#[cube]
fn merge(
    shared: &mut SharedMemory<f32>,
    a: usize,
    b: usize,
    #[comptime] units: usize,
    #[comptime] has_product: bool,
) {
    let m = max(shared[a], shared[b]);
    let ra = (shared[a] - m).exp();
    let rb = (shared[b] - m).exp();
    shared[units + a] = ra * shared[units + a] + rb * shared[units + b];
    if comptime![has_product] {
        shared[2 * units + a] = ra * shared[2 * units + a] + rb * shared[2 * units + b];
    }
    shared[a] = m;
}

/// The sums of all units, left in entry 0.
#[cube]
fn meet(shared: &mut SharedMemory<f32>, #[comptime] units: usize, #[comptime] has_product: bool) {
    let unit = UNIT_POS_X as usize;
    sync_cube();
    let half = RuntimeCell::<usize>::new(units / 2);
    while half.read() > 0 {
        let h = half.read();
        if unit < h {
            merge(shared, unit, unit + h, units, has_product);
        }
        sync_cube();
        half.store(h / 2);
    }
}

/// Softmax of the visible scores of each row, 0 for the others: one cube a row, two passes (online
/// max and sum, then the probabilities). scores, out [B, K, (H / K) c, n_keys]; NaN where a visible
/// score is NaN or +inf, or none is above -inf.
#[cube(launch)]
pub(super) fn masked_softmax<F: Float>(
    scores: &Tensor<f32>,
    rows: &Tensor<u32>,
    out: &mut Tensor<F>,
    n_score_rows: usize,
    score_rows_per_row: usize,
    first_query: usize,
    n_queries: usize,
    n_keys: usize,
    scale: f32,
    #[comptime] units: usize,
    #[define(F)] _type: StorageType,
) {
    let row = CUBE_POS;
    let unit = UNIT_POS_X as usize;
    let mut shared = SharedMemory::<f32>::new(2 * units);
    if row < n_score_rows {
        let from = row * scores.stride(2);
        let to = row * out.stride(2);
        let visible =
            min(n_visible(rows, row / score_rows_per_row, first_query + row % n_queries), n_keys);
        let mut bad = 0u32;
        let mut m = f32::new(LOG_ZERO);
        let mut sum = f32::new(0.0);
        let mut i = unit;
        while i < visible {
            let x = scores[from + i];
            bad = max(bad, is_bad(x));
            let z = finite(x) * scale;
            if z > m {
                sum *= (m - z).exp();
                m = z;
            }
            sum += (z - m).exp();
            i += units;
        }
        shared[unit] = m;
        shared[units + unit] = sum + poison(bad);
        meet(&mut shared, units, false);
        let m = shared[0];
        let sum = shared[units];
        let factor = 1.0 / sum + poison(max(is_bad(sum), select(m > LOG_ZERO * scale, 0u32, 1u32)));
        let mut i = unit;
        while i < n_keys {
            let mut p = f32::new(0.0);
            if i < visible {
                p = (finite(scores[from + i]) * scale - m).exp() * factor;
            }
            out[to + i] = F::cast_from(p);
            i += units;
        }
    }
}

/// P and dS = P (dP - sum P dP) scale of each row, from the scores and dP: nothing but q, k and v
/// is kept from the forward pass. All [B, K, (H / K) c, n_keys].
#[cube(launch)]
pub(super) fn softmax_gradients<F: Float>(
    scores: &Tensor<f32>,
    d_probs: &Tensor<f32>,
    rows: &Tensor<u32>,
    probs: &mut Tensor<F>,
    d_scores: &mut Tensor<F>,
    n_score_rows: usize,
    score_rows_per_row: usize,
    first_query: usize,
    n_queries: usize,
    n_keys: usize,
    scale: f32,
    #[comptime] units: usize,
    #[define(F)] _type: StorageType,
) {
    let row = CUBE_POS;
    let unit = UNIT_POS_X as usize;
    let mut shared = SharedMemory::<f32>::new(3 * units);
    if row < n_score_rows {
        let from = row * scores.stride(2);
        let from_d = row * d_probs.stride(2);
        let to = row * probs.stride(2);
        let visible =
            min(n_visible(rows, row / score_rows_per_row, first_query + row % n_queries), n_keys);
        let mut bad = 0u32;
        let mut m = f32::new(LOG_ZERO);
        let mut sum = f32::new(0.0);
        let mut product = f32::new(0.0);
        let mut i = unit;
        while i < visible {
            let x = scores[from + i];
            bad = max(bad, is_bad(x));
            let z = finite(x) * scale;
            if z > m {
                let r = (m - z).exp();
                sum *= r;
                product *= r;
                m = z;
            }
            let e = (z - m).exp();
            sum += e;
            product += e * d_probs[from_d + i];
            i += units;
        }
        shared[unit] = m;
        shared[units + unit] = sum + poison(bad);
        shared[2 * units + unit] = product;
        meet(&mut shared, units, true);
        let m = shared[0];
        let sum = shared[units];
        let factor = 1.0 / sum + poison(max(is_bad(sum), select(m > LOG_ZERO * scale, 0u32, 1u32)));
        let mean = shared[2 * units] * factor;
        let mut i = unit;
        while i < n_keys {
            let mut p = f32::new(0.0);
            let mut ds = f32::new(0.0);
            if i < visible {
                p = (finite(scores[from + i]) * scale - m).exp() * factor;
                ds = p * (d_probs[from_d + i] - mean) * scale;
            }
            probs[to + i] = F::cast_from(p);
            d_scores[to + i] = F::cast_from(ds);
            i += units;
        }
    }
}

/// The keys (or values) that rows of a cache see, one row of `out` a row of queries; positions
/// behind a row's last visible key become 0, so that nothing a slot held before can reach a
/// product. One unit an element, in the order of `out`'s memory. cache [n_slots, K, capacity, hd];
/// out [B, K, n, hd], its positions side by side with `is_position_inner`, else its elements.
#[cube(launch, address_type = "dynamic")]
pub(super) fn gather_live<F: Numeric>(
    cache: &Tensor<F>,
    rows: &Tensor<u32>,
    out: &mut Tensor<F>,
    n: usize,
    n_kv_heads: usize,
    n_keys: usize,
    head_dim: usize,
    n_queries: usize,
    #[comptime] is_position_inner: bool,
    #[define(F)] _type: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < n {
        let pair = i / (n_keys * head_dim);
        let rest = i % (n_keys * head_dim);
        let (b, j) = (pair / n_kv_heads, pair % n_kv_heads);
        let position = if comptime![is_position_inner] { rest % n_keys } else { rest / head_dim };
        let d = if comptime![is_position_inner] { rest / n_keys } else { rest % head_dim };
        let mut value = F::from_int(0);
        if position < n_visible(rows, b, n_queries - 1) {
            let slot = usize::cast_from(rows[b * ROW_NUMBERS + SLOT]);
            value = cache[slot * cache.stride(0)
                + j * cache.stride(1)
                + position * cache.stride(2)
                + d * cache.stride(3)];
        }
        out[b * out.stride(0) + j * out.stride(1) + position * out.stride(2) + d * out.stride(3)] =
            value;
    }
}

/// total\[:, :, ..n\] += part. total `[B, K, Tk, hd]`, part [B, K, n, hd].
#[cube(launch)]
pub(super) fn add_prefix(
    total: &mut Tensor<f32>,
    part: &Tensor<f32>,
    n: usize,
    n_keys: usize,
    head_dim: usize,
) {
    let i = ABSOLUTE_POS;
    if i < n {
        let d = i % head_dim;
        let position = i / head_dim % n_keys;
        let pair = i / head_dim / n_keys;
        let to = pair * total.stride(1) + position * total.stride(2) + d;
        total[to] = total[to] + part[pair * part.stride(1) + position * part.stride(2) + d];
    }
}
