//! The CubeCL kernels: one cube (workgroup) a row, each unit takes every `units`-th column, sums
//! meet in shared memory.
//!
//! Arithmetic is in f32 whatever the tile's dtype.
#![allow(clippy::too_many_arguments, reason = "a launch has one argument a buffer and scalar")]
use super::packed::{
    ENTROPY, FORWARD, LABEL_Z, LOG_PROB, MAX, MOMENT, REVERSE, S_MAX, S_SUM, SUM, T_MAX, T_MOMENT,
    T_SUM, VALUE,
};
use crate::{
    cube::numbers::{finite, is_bad, poison},
    nan::LOG_ZERO,
};
use cubecl::prelude::*;

/// `form` of the kernels of two models, in the order of `Form`.
pub(super) const SUMS: u32 = 0;
pub(super) const MIXTURE: u32 = 1;
pub(super) const VARIATION: u32 = 2;
/// Numbers a unit brings to the meeting.
const ONE: usize = 3;
const TWO: usize = 8;

/// Adds entry `b` of one model's (max, sum, moment) to entry `a`.
#[cube]
fn merge_one(s: &mut SharedMemory<f32>, a: usize, b: usize, scale: f32, #[comptime] units: usize) {
    let m = max(s[a], s[b]);
    let (da, db) = ((s[a] - m) * scale, (s[b] - m) * scale);
    let (ra, rb) = (da.exp(), db.exp());
    let (sum_a, sum_b) = (s[units + a], s[units + b]);
    s[2 * units + a] = ra * (s[2 * units + a] + sum_a * da) + rb * (s[2 * units + b] + sum_b * db);
    s[units + a] = ra * sum_a + rb * sum_b;
    s[a] = m;
}

/// Adds entry `b` of two models' sums to entry `a`: student's max, sum, moment, teacher's max, sum,
/// moment, A, B.
#[cube]
fn merge_two(s: &mut SharedMemory<f32>, a: usize, b: usize, scale: f32, #[comptime] units: usize) {
    let ms = max(s[a], s[b]);
    let mt = max(s[3 * units + a], s[3 * units + b]);
    let (dsa, dsb) = ((s[a] - ms) * scale, (s[b] - ms) * scale);
    let (dta, dtb) = ((s[3 * units + a] - mt) * scale, (s[3 * units + b] - mt) * scale);
    let (rsa, rsb) = (dsa.exp(), dsb.exp());
    let (rta, rtb) = (dta.exp(), dtb.exp());
    let (sa, sb) = (s[units + a], s[units + b]);
    let (ta, tb) = (s[4 * units + a], s[4 * units + b]);
    s[2 * units + a] = rsa * (s[2 * units + a] + sa * dsa) + rsb * (s[2 * units + b] + sb * dsb);
    s[5 * units + a] = rta * (s[5 * units + a] + ta * dta) + rtb * (s[5 * units + b] + tb * dtb);
    s[6 * units + a] =
        rta * (s[6 * units + a] + ta * (dta - dsa)) + rtb * (s[6 * units + b] + tb * (dtb - dsb));
    s[7 * units + a] =
        rsa * (s[7 * units + a] + sa * (dsa - dta)) + rsb * (s[7 * units + b] + sb * (dsb - dtb));
    s[units + a] = rsa * sa + rsb * sb;
    s[4 * units + a] = rta * ta + rtb * tb;
    s[a] = ms;
    s[3 * units + a] = mt;
}

/// (log p(label), H) from the sums of the whole vocabulary.
#[cube]
fn finish_one(packed: &mut Tensor<f32>, at: usize, scale: f32) {
    let (m, sum) = (packed[at + MAX], packed[at + SUM]);
    let no_entry = select(m > LOG_ZERO, 0u32, 1u32);
    let nan = poison(max(no_entry, is_bad(sum)));
    packed[at + LOG_PROB] = (packed[at + LABEL_Z] - m) * scale - sum.ln() + nan;
    packed[at + ENTROPY] = sum.ln() - packed[at + MOMENT] / sum + nan;
}

/// The label's logit, if this tile has it.
#[cube]
fn find_label<F: Float, I: Numeric>(
    tile: &Tensor<F>,
    labels: &Tensor<I>,
    packed: &mut Tensor<f32>,
    row: usize,
    at: usize,
    start: usize,
    end: usize,
    offset: usize,
) {
    let label = usize::cast_from(labels[row]);
    if label >= offset + start && label < offset + end {
        packed[at + LABEL_Z] = finite(f32::cast_from(tile[row * tile.stride(0) + label - offset]));
    }
}

/// Folds columns `start..end` of a tile into (max, sum, moment, z of the label) of each row.
#[cube(launch, address_type = "dynamic")]
pub(super) fn fold_one<F: Float, I: Numeric>(
    tile: &Tensor<F>,
    labels: &Tensor<I>,
    packed: &mut Tensor<f32>,
    n_rows: usize,
    start: usize,
    end: usize,
    offset: usize,
    is_first: u32,
    scale: f32,
    #[comptime] units: usize,
    #[define(F, I)] _types: [StorageType; 2],
) {
    let row = CUBE_POS;
    let unit = UNIT_POS_X as usize;
    let mut shared = SharedMemory::<f32>::new(ONE * units);
    if row < n_rows {
        let base = row * tile.stride(0);
        let at = row * packed.stride(0);
        let mut bad = 0u32;
        let mut m = f32::new(LOG_ZERO);
        let mut sum = f32::new(0.0);
        let mut moment = f32::new(0.0);
        let mut i = start + unit;
        while i < end {
            let x = f32::cast_from(tile[base + i]);
            let z = finite(x);
            bad = max(bad, is_bad(x));
            if z > m {
                let d = (m - z) * scale;
                let r = d.exp();
                moment = r * (moment + sum * d);
                sum *= r;
                m = z;
            }
            if z > LOG_ZERO {
                let below = (z - m) * scale;
                let e = below.exp();
                sum += e;
                moment += e * below;
            }
            i += units;
        }
        shared[unit] = m;
        shared[units + unit] = sum + poison(bad);
        shared[2 * units + unit] = moment;
        sync_cube();
        let half = RuntimeCell::<usize>::new(units / 2);
        while half.read() > 0 {
            let h = half.read();
            if unit < h {
                merge_one(&mut shared, unit, unit + h, scale, units);
            }
            sync_cube();
            half.store(h / 2);
        }
        if unit == 0 {
            if is_first == 0 {
                shared[1] = packed[at + MAX];
                shared[units + 1] = packed[at + SUM];
                shared[2 * units + 1] = packed[at + MOMENT];
                merge_one(&mut shared, 0, 1, scale, units);
            } else {
                packed[at + LABEL_Z] = f32::new(LOG_ZERO);
            }
            packed[at + MAX] = shared[0];
            packed[at + SUM] = shared[units];
            packed[at + MOMENT] = shared[2 * units];
            find_label::<F, I>(tile, labels, packed, row, at, start, end, offset);
            finish_one(packed, at, scale);
        }
    }
}

/// Folds columns of both models' tiles into the sums of each row; with the form `SUMS` the
/// divergence too.
#[cube(launch, address_type = "dynamic")]
pub(super) fn fold_two<S: Float, T: Float, I: Numeric>(
    student: &Tensor<S>,
    teacher: &Tensor<T>,
    labels: &Tensor<I>,
    packed: &mut Tensor<f32>,
    n_rows: usize,
    start: usize,
    end: usize,
    offset: usize,
    is_first: u32,
    scale: f32,
    blend: f32,
    f0: f32,
    f1: f32,
    f2: f32,
    #[comptime] units: usize,
    #[define(S, T, I)] _types: [StorageType; 3],
) {
    let row = CUBE_POS;
    let unit = UNIT_POS_X as usize;
    let mut shared = SharedMemory::<f32>::new(TWO * units);
    if row < n_rows {
        let base_s = row * student.stride(0);
        let base_t = row * teacher.stride(0);
        let at = row * packed.stride(0);
        let mut bad = 0u32;
        let (mut m_s, mut sum_s, mut moment_s) = (f32::new(LOG_ZERO), f32::new(0.0), f32::new(0.0));
        let (mut m_t, mut sum_t, mut moment_t) = (f32::new(LOG_ZERO), f32::new(0.0), f32::new(0.0));
        let (mut forward, mut reverse) = (f32::new(0.0), f32::new(0.0));
        let mut i = start + unit;
        while i < end {
            let x_s = f32::cast_from(student[base_s + i]);
            let x_t = f32::cast_from(teacher[base_t + i]);
            let z_s = finite(x_s);
            let z_t = finite(x_t) * blend + z_s * (1.0 - blend);
            bad = max(bad, max(is_bad(x_s), is_bad(x_t)));
            if z_s > m_s {
                let d = (m_s - z_s) * scale;
                let r = d.exp();
                moment_s = r * (moment_s + sum_s * d);
                reverse = r * (reverse + sum_s * d);
                forward -= sum_t * d;
                sum_s *= r;
                m_s = z_s;
            }
            if z_t > m_t {
                let d = (m_t - z_t) * scale;
                let r = d.exp();
                moment_t = r * (moment_t + sum_t * d);
                forward = r * (forward + sum_t * d);
                reverse -= sum_s * d;
                sum_t *= r;
                m_t = z_t;
            }
            let below_s = (z_s - m_s) * scale;
            let below_t = (z_t - m_t) * scale;
            let difference = ((z_t - m_t) - (z_s - m_s)) * scale;
            if z_s > LOG_ZERO {
                let e = below_s.exp();
                sum_s += e;
                moment_s += e * below_s;
                reverse -= e * difference;
            }
            if z_t > LOG_ZERO {
                let e = below_t.exp();
                sum_t += e;
                moment_t += e * below_t;
                forward += e * difference;
            }
            i += units;
        }
        shared[unit] = m_s;
        shared[units + unit] = sum_s + poison(bad);
        shared[2 * units + unit] = moment_s;
        shared[3 * units + unit] = m_t;
        shared[4 * units + unit] = sum_t + poison(bad);
        shared[5 * units + unit] = moment_t;
        shared[6 * units + unit] = forward;
        shared[7 * units + unit] = reverse;
        sync_cube();
        let half = RuntimeCell::<usize>::new(units / 2);
        while half.read() > 0 {
            let h = half.read();
            if unit < h {
                merge_two(&mut shared, unit, unit + h, scale, units);
            }
            sync_cube();
            half.store(h / 2);
        }
        if unit == 0 {
            if is_first == 0 {
                shared[1] = packed[at + S_MAX];
                shared[units + 1] = packed[at + S_SUM];
                shared[2 * units + 1] = packed[at + MOMENT];
                shared[3 * units + 1] = packed[at + T_MAX];
                shared[4 * units + 1] = packed[at + T_SUM];
                shared[5 * units + 1] = packed[at + T_MOMENT];
                shared[6 * units + 1] = packed[at + FORWARD];
                shared[7 * units + 1] = packed[at + REVERSE];
                merge_two(&mut shared, 0, 1, scale, units);
            } else {
                packed[at + LABEL_Z] = f32::new(LOG_ZERO);
            }
            let (max_s, s) = (shared[0], shared[units]);
            let (max_t, t) = (shared[3 * units], shared[4 * units]);
            packed[at + MAX] = max_s;
            packed[at + SUM] = s;
            packed[at + MOMENT] = shared[2 * units];
            packed[at + S_MAX] = max_s;
            packed[at + S_SUM] = s;
            packed[at + T_MAX] = max_t;
            packed[at + T_SUM] = t;
            packed[at + T_MOMENT] = shared[5 * units];
            packed[at + FORWARD] = shared[6 * units];
            packed[at + REVERSE] = shared[7 * units];
            let kl_forward = shared[6 * units] / t - (t.ln() - s.ln());
            let kl_reverse = shared[7 * units] / s - (s.ln() - t.ln());
            let entropy_t = t.ln() - shared[5 * units] / t;
            let no_entry = select(max_s > LOG_ZERO && max_t > LOG_ZERO, 0u32, 1u32);
            let nan = poison(max(no_entry, max(is_bad(s), is_bad(t))));
            packed[at + VALUE] = f0 * kl_forward + f1 * kl_reverse + f2 * entropy_t + nan;
            find_label::<S, I>(student, labels, packed, row, at, start, end, offset);
            finish_one(packed, at, scale);
        }
    }
}

/// |p_s - p_t| / 2 of one entry, and a.
#[cube]
pub(super) fn variation_terms(p_s: f32, p_t: f32) -> (f32, f32) {
    let gap = p_s - p_t;
    let sign = select(gap > 0.0, f32::new(0.5), select(gap < 0.0, f32::new(-0.5), f32::new(0.0)));
    (gap.abs() * 0.5, sign * p_s)
}

/// f1 p_s ln(p_s / m) + f2 p_t ln(p_t / m) of one entry, and a. `ratio` is ln(p_t / p_s).
#[cube]
pub(super) fn mixture_terms(
    p_s: f32,
    p_t: f32,
    ratio: f32,
    weight: f32,
    f1: f32,
    f2: f32,
) -> (f32, f32) {
    // ln(m / p_s) and ln(m / p_t) from the log-ratio of the two, whichever way keeps the
    // exponential at most 1.
    let zero = f32::new(0.0);
    let other = 1.0 - weight;
    let e = (-ratio.abs()).exp();
    let is_teacher = ratio > 0.0;
    let mass = select(is_teacher, other + weight * e, weight + other * e);
    let log_mass = mass.ln();
    let log_s = select(is_teacher, log_mass + ratio, log_mass);
    let log_t = select(is_teacher, log_mass, log_mass - ratio);
    let share = select(is_teacher, weight * e, weight) / mass;
    let term_s = select(p_s > 0.0, -p_s * log_s, zero);
    let term_t = select(p_t > 0.0, -p_t * log_t, zero);
    (f1 * term_s + f2 * term_t, f1 * (term_s + p_s) - (f1 * p_s + f2 * p_t) * share)
}

/// e^(shifted - ln_sum), 0 for the stand-in of -inf.
#[cube]
pub(super) fn probability(z: f32, below: f32, ln_sum: f32) -> f32 {
    select(z > LOG_ZERO, (below - ln_sum).exp(), f32::new(0.0))
}

/// The second pass of the forms that need both normalisers: the divergence and sum a.
#[cube(launch, address_type = "dynamic")]
pub(super) fn fold_second<S: Float, T: Float>(
    student: &Tensor<S>,
    teacher: &Tensor<T>,
    packed: &mut Tensor<f32>,
    n_rows: usize,
    start: usize,
    end: usize,
    is_first: u32,
    scale: f32,
    weight: f32,
    f1: f32,
    f2: f32,
    f3: f32,
    #[comptime] form: u32,
    #[comptime] units: usize,
    #[define(S, T)] _types: [StorageType; 2],
) {
    let row = CUBE_POS;
    let unit = UNIT_POS_X as usize;
    let mut shared = SharedMemory::<f32>::new(2 * units);
    if row < n_rows {
        let base_s = row * student.stride(0);
        let base_t = row * teacher.stride(0);
        let at = row * packed.stride(0);
        let (m_s, m_t) = (packed[at + S_MAX], packed[at + T_MAX]);
        let (s, t) = (packed[at + S_SUM], packed[at + T_SUM]);
        let (ln_s, ln_t) = (s.ln(), t.ln());
        let (mut value, mut total) = (f32::new(0.0), f32::new(0.0));
        let mut i = start + unit;
        while i < end {
            let z_s = finite(f32::cast_from(student[base_s + i]));
            let z_t = finite(f32::cast_from(teacher[base_t + i]));
            let p_s = probability(z_s, (z_s - m_s) * scale, ln_s);
            let p_t = probability(z_t, (z_t - m_t) * scale, ln_t);
            if comptime![form == VARIATION] {
                let (v, a) = variation_terms(p_s, p_t);
                value += v;
                total += a;
            } else {
                let ratio = ((z_t - m_t) - (z_s - m_s)) * scale - (ln_t - ln_s);
                let (v, a) = mixture_terms(p_s, p_t, ratio, weight, f1, f2);
                value += v;
                total += a;
            }
            i += units;
        }
        shared[unit] = value;
        shared[units + unit] = total;
        sync_cube();
        let half = RuntimeCell::<usize>::new(units / 2);
        while half.read() > 0 {
            let h = half.read();
            if unit < h {
                shared[unit] = shared[unit] + shared[unit + h];
                shared[units + unit] = shared[units + unit] + shared[units + unit + h];
            }
            sync_cube();
            half.store(h / 2);
        }
        if unit == 0 {
            let mut sum = shared[0];
            let mut sum_a = shared[units];
            if is_first == 0 {
                sum += packed[at + FORWARD];
                sum_a += packed[at + REVERSE];
            }
            packed[at + FORWARD] = sum;
            packed[at + REVERSE] = sum_a;
            let no_entry = select(m_s > LOG_ZERO && m_t > LOG_ZERO, 0u32, 1u32);
            let nan = poison(max(no_entry, max(is_bad(s), is_bad(t))));
            packed[at + VALUE] = sum + f3 * (ln_t - packed[at + T_MOMENT] / t) + nan;
        }
    }
}
