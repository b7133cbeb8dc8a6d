//! Folding tiles on the CPU backend: rows over threads, columns in vector registers.
//!
//! A row is read twice (its maximum first), the second time from cache. Tiles in f16 and bf16 are
//! widened a row at a time.
use super::{
    cpu_grad::gradient,
    cpu_normalisers::Normalisers,
    cpu_rows::{Rows, finite, for_each_row, host_labels, readable, target},
    packed::{
        COLUMNS, ENTROPY, FORWARD, LABEL_Z, LOG_PROB, MAX, MOMENT, ONE_COLUMNS, REVERSE, S_MAX,
        S_SUM, SUM, Span, T_MAX, T_MOMENT, T_SUM, VALUE,
    },
    tiles::Tiles,
};
use crate::{
    cpu::{CpuTensor, LANES, exp, from_vec, simd},
    nan::LOG_ZERO,
    types::{DivergencePlan, Form},
};
use burn::{
    backend::Flex,
    tensor::{DType, ops::FloatTensorOps},
};
use half::{bf16, f16};

/// Columns whose terms are added up in f32, lane by lane, before they go into an f64: over a whole
/// vocabulary f32 alone would lose three digits.
const BLOCK: usize = 64 * LANES;

/// (max, S, M) of one model.
#[derive(Clone, Copy)]
struct One {
    max: f32,
    sum: f32,
    moment: f32,
}

/// Sums of two models: both [`One`], and A, B.
#[derive(Clone, Copy)]
struct Two {
    s: One,
    t: One,
    forward: f32,
    reverse: f32,
}

impl One {
    #[inline(always)]
    fn merge(self, other: Self, scale: f32) -> Self {
        let max = self.max.max(other.max);
        let (a, b) = ((self.max - max) * scale, (other.max - max) * scale);
        let (ra, rb) = (exp(a), exp(b));
        Self {
            max,
            sum: ra * self.sum + rb * other.sum,
            moment: ra * (self.moment + self.sum * a) + rb * (other.moment + other.sum * b),
        }
    }

    fn read(packed: &[f32], columns: [usize; 3]) -> Self {
        let [max, sum, moment] = columns.map(|column| packed[column]);
        Self { max, sum, moment }
    }

    fn has_entries(&self) -> bool {
        self.max > LOG_ZERO
    }
}

impl Two {
    #[inline(always)]
    fn merge(self, other: Self, scale: f32) -> Self {
        let (s, t) = (self.s.merge(other.s, scale), self.t.merge(other.t, scale));
        let (mut forward, mut reverse) = (0.0, 0.0);
        for part in [self, other] {
            let (ds, dt) = ((part.s.max - s.max) * scale, (part.t.max - t.max) * scale);
            forward += exp(dt) * (part.forward + part.t.sum * (dt - ds));
            reverse += exp(ds) * (part.reverse + part.s.sum * (ds - dt));
        }
        Self { s, t, forward, reverse }
    }
}

/// e^below, 0 for the stand-in of -inf; NaN stays.
#[inline(always)]
fn exp_of(z: f32, below: f32) -> f32 {
    let e = exp(below);
    if z <= LOG_ZERO { 0.0 } else { e }
}

#[inline(always)]
fn max_of(row: &[f32]) -> f32 {
    let (parts, rest) = row.as_chunks::<LANES>();
    let mut max = [f32::NEG_INFINITY; LANES];
    for part in parts {
        for i in 0..LANES {
            max[i] = if part[i] > max[i] { part[i] } else { max[i] };
        }
    }
    let max =
        max.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
    finite(max)
}

#[inline(always)]
fn sums_of_one(row: &[f32], scale: f32) -> One {
    let max = max_of(row);
    let (mut sum, mut moment) = (0.0f64, 0.0f64);
    for block in row.chunks(BLOCK) {
        let (mut sums, mut moments) = ([0.0f32; LANES], [0.0f32; LANES]);
        let (parts, rest) = block.as_chunks::<LANES>();
        for part in parts {
            for i in 0..LANES {
                let z = finite(part[i]);
                let below = (z - max) * scale;
                let e = exp_of(z, below);
                sums[i] += e;
                moments[i] = e.mul_add(below, moments[i]);
            }
        }
        sum += total(sums);
        moment += total(moments);
        for x in rest {
            let z = finite(*x);
            let below = (z - max) * scale;
            let e = exp_of(z, below);
            sum += f64::from(e);
            moment += f64::from(e * below);
        }
    }
    One { max, sum: sum as f32, moment: moment as f32 }
}

#[inline(always)]
fn total(lanes: [f32; LANES]) -> f64 {
    let mut total = 0.0;
    for lane in lanes {
        total += f64::from(lane);
    }
    total
}

/// Terms that each entry adds to (S_s, M_s, S_t, M_t, A, B).
#[inline(always)]
fn terms_of_two(z_s: f32, z_t: f32, m_s: f32, m_t: f32, scale: f32) -> [f32; 6] {
    let (below_s, below_t) = ((z_s - m_s) * scale, (z_t - m_t) * scale);
    let (e_s, e_t) = (exp_of(z_s, below_s), exp_of(z_t, below_t));
    let difference = ((z_t - m_t) - (z_s - m_s)) * scale;
    [e_s, e_s * below_s, e_t, e_t * below_t, e_t * difference, -e_s * difference]
}

#[inline(always)]
fn sums_of_two(student: &[f32], teacher: &[f32], scale: f32, blend: f32) -> Two {
    let m_s = max_of(student);
    let m_t = if blend == 1.0 {
        max_of(teacher)
    } else {
        student.iter().zip(teacher).fold(LOG_ZERO, |max, (s, t)| {
            let z = target(finite(*s), finite(*t), blend);
            if z > max { z } else { max }
        })
    };
    let mut totals = [0.0f64; 6];
    for (student, teacher) in student.chunks(BLOCK).zip(teacher.chunks(BLOCK)) {
        let mut sums = [[0.0f32; LANES]; 6];
        let ((s_parts, s_rest), (t_parts, t_rest)) =
            (student.as_chunks::<LANES>(), teacher.as_chunks::<LANES>());
        for (s, t) in s_parts.iter().zip(t_parts) {
            for i in 0..LANES {
                let z_s = finite(s[i]);
                let terms = terms_of_two(z_s, target(z_s, finite(t[i]), blend), m_s, m_t, scale);
                for k in 0..6 {
                    sums[k][i] += terms[k];
                }
            }
        }
        for k in 0..6 {
            totals[k] += total(sums[k]);
        }
        for (s, t) in s_rest.iter().zip(t_rest) {
            let z_s = finite(*s);
            let terms = terms_of_two(z_s, target(z_s, finite(*t), blend), m_s, m_t, scale);
            for k in 0..6 {
                totals[k] += f64::from(terms[k]);
            }
        }
    }
    let [sum_s, moment_s, sum_t, moment_t, forward, reverse] = totals.map(|total| total as f32);
    // NaN in one model is NaN in both: the divergence is of both.
    let nan = if forward.is_nan() || reverse.is_nan() { f32::NAN } else { 0.0 };
    Two {
        s: One { max: m_s, sum: sum_s + nan, moment: moment_s },
        t: One { max: m_t, sum: sum_t + nan, moment: moment_t },
        forward,
        reverse,
    }
}

/// The rows to fold into, and whether they hold nothing yet.
fn packed_or_new(
    packed: Option<CpuTensor>,
    n_rows: usize,
    columns: usize,
) -> (Vec<f32>, usize, bool) {
    match packed {
        Some(packed) => {
            let packed = packed.to_contiguous();
            let columns = packed.layout().shape()[1];
            (packed.storage::<f32>().to_vec(), columns, false)
        }
        None => (vec![0.0; n_rows * columns], columns, true),
    }
}

fn find_label(packed: &mut [f32], row: &[f32], label: usize, span: Span) {
    if label >= span.offset + span.start && label < span.offset + span.end {
        packed[LABEL_Z] = finite(row[label - span.offset - span.start]);
    }
}

/// (log p(label), H) from the sums of the whole vocabulary.
fn finish_one(packed: &mut [f32], scale: f32) {
    let sums = One::read(packed, [MAX, SUM, MOMENT]);
    let nan = if sums.has_entries() { 0.0 } else { f32::NAN };
    packed[LOG_PROB] = (packed[LABEL_Z] - sums.max) * scale - sums.sum.ln() + nan;
    packed[ENTROPY] = sums.sum.ln() - sums.moment / sums.sum + nan;
}

impl Tiles for Flex {
    fn product(lhs: CpuTensor, rhs: CpuTensor) -> CpuTensor {
        let f32_of = |tensor: CpuTensor| {
            if tensor.dtype() == DType::F32 {
                tensor
            } else {
                Self::float_cast(tensor, DType::F32.into())
            }
        };
        Self::float_matmul(f32_of(lhs), f32_of(rhs))
    }

    fn fold_one(
        tile: CpuTensor,
        labels: CpuTensor,
        packed: Option<CpuTensor>,
        span: Span,
        scale: f32,
    ) -> CpuTensor {
        let (tile, labels) = (readable(tile), host_labels(labels));
        let rows = Rows::new(&tile);
        let n_rows = labels.len();
        let (mut packed, columns, is_first) = packed_or_new(packed, n_rows, ONE_COLUMNS);
        for_each_row(&mut packed, columns, span.end - span.start, |i, packed, [scratch, _]| {
            let row = rows.row(i, span.start, span.end, scratch);
            let mut sums = simd!(sums_of_one(row, scale));
            if is_first {
                packed[LABEL_Z] = LOG_ZERO;
            } else {
                sums = One::read(packed, [MAX, SUM, MOMENT]).merge(sums, scale);
            }
            (packed[MAX], packed[SUM], packed[MOMENT]) = (sums.max, sums.sum, sums.moment);
            find_label(packed, row, labels[i], span);
            finish_one(packed, scale);
        });
        from_vec(packed, [n_rows, columns], DType::F32)
    }

    fn fold_two(
        student: CpuTensor,
        teacher: CpuTensor,
        labels: CpuTensor,
        packed: Option<CpuTensor>,
        span: Span,
        plan: &DivergencePlan,
        scale: f32,
    ) -> CpuTensor {
        let (student, teacher, labels) =
            (readable(student), readable(teacher), host_labels(labels));
        let (s_rows, t_rows) = (Rows::new(&student), Rows::new(&teacher));
        let n_rows = labels.len();
        let [forward, reverse, entropy, _] = plan.factors();
        let (mut packed, columns, is_first) = packed_or_new(packed, n_rows, COLUMNS);
        for_each_row(
            &mut packed,
            columns,
            span.end - span.start,
            |i, packed, [s_scratch, t_scratch]| {
                let (s, t) = (
                    s_rows.row(i, span.start, span.end, s_scratch),
                    t_rows.row(i, span.start, span.end, t_scratch),
                );
                let mut sums = simd!(sums_of_two(s, t, scale, plan.blend));
                if is_first {
                    packed[LABEL_Z] = LOG_ZERO;
                } else {
                    let before = Two {
                        s: One::read(packed, [S_MAX, S_SUM, MOMENT]),
                        t: One::read(packed, [T_MAX, T_SUM, T_MOMENT]),
                        forward: packed[FORWARD],
                        reverse: packed[REVERSE],
                    };
                    sums = before.merge(sums, scale);
                }
                let Two { s: one_s, t: one_t, .. } = sums;
                (packed[MAX], packed[SUM], packed[MOMENT]) = (one_s.max, one_s.sum, one_s.moment);
                (packed[S_MAX], packed[S_SUM]) = (one_s.max, one_s.sum);
                (packed[T_MAX], packed[T_SUM], packed[T_MOMENT]) =
                    (one_t.max, one_t.sum, one_t.moment);
                (packed[FORWARD], packed[REVERSE]) = (sums.forward, sums.reverse);
                let (ln_s, ln_t) = (one_s.sum.ln(), one_t.sum.ln());
                let nan = if one_s.has_entries() && one_t.has_entries() { 0.0 } else { f32::NAN };
                packed[VALUE] = forward * (sums.forward / one_t.sum - (ln_t - ln_s))
                    + reverse * (sums.reverse / one_s.sum - (ln_s - ln_t))
                    + entropy * (ln_t - one_t.moment / one_t.sum)
                    + nan;
                find_label(packed, s, labels[i], span);
                finish_one(packed, scale);
            },
        );
        from_vec(packed, [n_rows, columns], DType::F32)
    }

    fn fold_second(
        student: CpuTensor,
        teacher: CpuTensor,
        packed: CpuTensor,
        span: Span,
        is_first: bool,
        plan: &DivergencePlan,
        scale: f32,
    ) -> CpuTensor {
        let (student, teacher) = (readable(student), readable(teacher));
        let (s_rows, t_rows) = (Rows::new(&student), Rows::new(&teacher));
        let n_rows = student.layout().shape()[0];
        let (mut packed, columns, _) = packed_or_new(Some(packed), n_rows, COLUMNS);
        let [.., entropy] = plan.factors();
        for_each_row(
            &mut packed,
            columns,
            span.end - span.start,
            |i, packed, [s_scratch, t_scratch]| {
                let (s, t) = (
                    s_rows.row(i, span.start, span.end, s_scratch),
                    t_rows.row(i, span.start, span.end, t_scratch),
                );
                let normalisers = Normalisers::read(packed, scale);
                let (mut value, mut a) = simd!(second_pass(s, t, normalisers, plan.form));
                if !is_first {
                    value += packed[FORWARD];
                    a += packed[REVERSE];
                }
                (packed[FORWARD], packed[REVERSE]) = (value, a);
                let nan = if packed[S_MAX] > LOG_ZERO && packed[T_MAX] > LOG_ZERO {
                    0.0
                } else {
                    f32::NAN
                };
                packed[VALUE] =
                    value + entropy * (normalisers.ln_t - packed[T_MOMENT] / packed[T_SUM]) + nan;
            },
        );
        from_vec(packed, [n_rows, columns], DType::F32)
    }

    fn grad_one(
        tile: CpuTensor,
        labels: CpuTensor,
        packed: CpuTensor,
        grad: CpuTensor,
        dtype: DType,
        span: Span,
        scale: f32,
    ) -> CpuTensor {
        gradient(tile, None, labels, packed, grad, dtype, span, scale)
    }

    fn grad_two(
        student: CpuTensor,
        teacher: CpuTensor,
        labels: CpuTensor,
        packed: CpuTensor,
        grad: CpuTensor,
        dtype: DType,
        span: Span,
        plan: &DivergencePlan,
        scale: f32,
    ) -> CpuTensor {
        gradient(student, Some((teacher, plan)), labels, packed, grad, dtype, span, scale)
    }

    fn assign(mut whole: CpuTensor, start: usize, dim: usize, part: CpuTensor) -> CpuTensor {
        let part = Self::float_cast(part, whole.dtype().into()).to_contiguous();
        let ([rows, columns], [part_rows, part_columns]) =
            (whole.layout().shape().dims::<2>(), part.layout().shape().dims::<2>());
        let at = if dim == 0 { start * columns } else { start };
        debug_assert!(part_rows <= rows);
        match whole.dtype() {
            DType::F32 => copy_rows(
                &mut whole.storage_mut::<f32>()[at..],
                part.storage(),
                columns,
                part_columns,
            ),
            DType::F16 => copy_rows(
                &mut whole.storage_mut::<f16>()[at..],
                part.storage(),
                columns,
                part_columns,
            ),
            _ => copy_rows(
                &mut whole.storage_mut::<bf16>()[at..],
                part.storage(),
                columns,
                part_columns,
            ),
        }
        whole
    }
}

fn copy_rows<E: Copy>(to: &mut [E], from: &[E], to_columns: usize, from_columns: usize) {
    for (to, from) in to.chunks_mut(to_columns).zip(from.chunks_exact(from_columns)) {
        to[..from_columns].copy_from_slice(from);
    }
}

#[inline(always)]
fn second_pass(
    student: &[f32],
    teacher: &[f32],
    normalisers: Normalisers,
    form: Form,
) -> (f32, f32) {
    let (mut value, mut slope) = (0.0f64, 0.0f64);
    for (student, teacher) in student.chunks(BLOCK).zip(teacher.chunks(BLOCK)) {
        let (mut values, mut slopes) = ([0.0f32; LANES], [0.0f32; LANES]);
        let ((s_parts, s_rest), (t_parts, t_rest)) =
            (student.as_chunks::<LANES>(), teacher.as_chunks::<LANES>());
        for (s, t) in s_parts.iter().zip(t_parts) {
            for i in 0..LANES {
                let (value, a) = normalisers.second_pass_terms(finite(s[i]), finite(t[i]), form);
                values[i] += value;
                slopes[i] += a;
            }
        }
        value += total(values);
        slope += total(slopes);
        for (s, t) in s_rest.iter().zip(t_rest) {
            let (v, a) = normalisers.second_pass_terms(finite(*s), finite(*t), form);
            value += f64::from(v);
            slope += f64::from(a);
        }
    }
    (value as f32, slope as f32)
}
