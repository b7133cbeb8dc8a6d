//! Gradients of tiles on the CPU backend.
use super::{
    cpu_normalisers::Normalisers,
    cpu_rows::{Rows, finite, for_each_row, host_labels, readable, target},
    packed::{ENTROPY, LOG_PROB, MAX, REVERSE, S_SUM, SUM, Span, VALUE},
};
use crate::{
    cpu::{CpuTensor, exp, from_vec, simd},
    nan::LOG_ZERO,
    types::{DivergencePlan, Form},
};
use burn::tensor::DType;

/// Numbers of a row that the gradient of (log p(label), H) needs.
struct OneGradient {
    max: f32,
    ln_sum: f32,
    entropy: f32,
    d_log_prob: f32,
    d_entropy: f32,
    scale: f32,
}

impl OneGradient {
    fn read(packed: &[f32], grad: &[f32], scale: f32) -> Self {
        let nan = if packed[MAX] > LOG_ZERO { 0.0 } else { f32::NAN };
        Self {
            max: packed[MAX],
            ln_sum: packed[SUM].ln() + nan,
            entropy: packed[ENTROPY],
            d_log_prob: grad[LOG_PROB],
            d_entropy: grad[ENTROPY],
            scale,
        }
    }

    /// Of an entry that is not the label.
    #[inline(always)]
    fn of(&self, z: f32) -> f32 {
        let log_p = (z - self.max) * self.scale - self.ln_sum;
        let p = exp(log_p);
        let (p, log_p) = if z <= LOG_ZERO { (0.0 * self.ln_sum, 0.0) } else { (p, log_p) };
        -p * (log_p + self.entropy).mul_add(self.d_entropy, self.d_log_prob)
    }
}

/// Gradient of a tile: of one model, and of the divergence where there is a teacher.
#[allow(
    clippy::too_many_arguments,
    reason = "two tiles, three row tensors and what to do with them"
)]
pub(super) fn gradient(
    tile: CpuTensor,
    teacher: Option<(CpuTensor, &DivergencePlan)>,
    labels: CpuTensor,
    packed: CpuTensor,
    grad: CpuTensor,
    dtype: DType,
    span: Span,
    scale: f32,
) -> CpuTensor {
    let (tile, labels, packed, grad) =
        (readable(tile), host_labels(labels), packed.to_contiguous(), grad.to_contiguous());
    let teacher = teacher.map(|(teacher, plan)| (readable(teacher), plan));
    let [n_rows, n_columns] = tile.layout().shape().dims::<2>();
    let columns = packed.layout().shape()[1];
    let s_rows = Rows::new(&tile);
    let teacher = teacher.as_ref().map(|(teacher, plan)| (Rows::new(teacher), *plan));
    let (packed, grad) = (packed.storage::<f32>(), grad.storage::<f32>());
    let mut out = vec![0.0f32; n_rows * n_columns];
    for_each_row(&mut out, n_columns, n_columns, |i, out, [s_scratch, t_scratch]| {
        let (packed, grad) = (&packed[i * columns..][..columns], &grad[i * columns..][..columns]);
        let row = s_rows.row(i, 0, n_columns, s_scratch);
        let one = OneGradient::read(packed, grad, scale);
        simd!(for (out, x) in out.iter_mut().zip(row) {
            *out = one.of(finite(*x));
        });
        if let Some((t_rows, plan)) = &teacher {
            let t = t_rows.row(i, span.start, span.end, t_scratch);
            simd!(add_divergence(
                &mut out[..span.end],
                &row[..span.end],
                t,
                packed,
                grad[VALUE],
                plan,
                scale
            ));
        }
        if labels[i] >= span.offset && labels[i] < span.offset + n_columns {
            out[labels[i] - span.offset] += one.d_log_prob;
        }
        simd!(for out in out.iter_mut() {
            *out *= scale;
        });
    });
    from_vec(out, [n_rows, n_columns], dtype)
}

#[inline(always)]
fn add_divergence(
    out: &mut [f32],
    student: &[f32],
    teacher: &[f32],
    packed: &[f32],
    d_value: f32,
    plan: &DivergencePlan,
    scale: f32,
) {
    let normalisers = Normalisers::read(packed, scale);
    let (form, blend) = (plan.form, plan.blend);
    let total = packed[REVERSE];
    let kl = total / packed[S_SUM] - (normalisers.ln_s - normalisers.ln_t);
    let (forward, reverse) = match form {
        Form::Sums { forward, reverse, .. } => (d_value * forward, d_value * reverse),
        _ => (0.0, 0.0),
    };
    let is_sums = matches!(form, Form::Sums { .. });
    if is_sums {
        for ((out, s), t) in out.iter_mut().zip(student).zip(teacher) {
            let z_s = finite(*s);
            let z_t = target(z_s, finite(*t), blend);
            let (p_s, p_t) = normalisers.probs(z_s, z_t);
            let turned =
                if p_s == 0.0 { 0.0 } else { p_s * (-normalisers.log_ratio(z_s, z_t) - kl) };
            *out += forward * (p_s - p_t) + reverse * turned;
        }
    } else {
        for ((out, s), t) in out.iter_mut().zip(student).zip(teacher) {
            let (z_s, z_t) = (finite(*s), finite(*t));
            let (p_s, _) = normalisers.probs(z_s, z_t);
            let (_, a) = normalisers.second_pass_terms(z_s, z_t, form);
            *out += d_value * (a - p_s * total);
        }
    }
}
