//! Facts about a pair of rows for the second pass and the gradient: maxima and
//! normalisers, and from them probabilities and log-ratios.
use super::packed::{S_MAX, S_SUM, T_MAX, T_SUM};
use crate::{
    cpu::{exp, ln},
    nan::LOG_ZERO,
    types::Form,
};

/// The normalisers of a row, as the second pass and the gradient need them.
#[derive(Clone, Copy)]
pub(super) struct Normalisers {
    m_s: f32,
    m_t: f32,
    pub(super) ln_s: f32,
    pub(super) ln_t: f32,
    scale: f32,
}

impl Normalisers {
    pub(super) fn read(packed: &[f32], scale: f32) -> Self {
        Self {
            scale,
            m_s: packed[S_MAX],
            m_t: packed[T_MAX],
            ln_s: packed[S_SUM].ln(),
            ln_t: packed[T_SUM].ln(),
        }
    }

    #[inline(always)]
    pub(super) fn probs(&self, z_s: f32, z_t: f32) -> (f32, f32) {
        let (p_s, p_t) = (
            exp((z_s - self.m_s) * self.scale - self.ln_s),
            exp((z_t - self.m_t) * self.scale - self.ln_t),
        );
        (if z_s <= LOG_ZERO { 0.0 } else { p_s }, if z_t <= LOG_ZERO { 0.0 } else { p_t })
    }

    /// ln p_t - ln p_s
    #[inline(always)]
    pub(super) fn log_ratio(&self, z_s: f32, z_t: f32) -> f32 {
        ((z_t - self.m_t) - (z_s - self.m_s)) * self.scale - (self.ln_t - self.ln_s)
    }

    /// The entry's share of the divergence, and a.
    #[inline(always)]
    pub(super) fn second_pass_terms(&self, z_s: f32, z_t: f32, form: Form) -> (f32, f32) {
        let (p_s, p_t) = self.probs(z_s, z_t);
        match form {
            Form::Mixture { student_weight: weight, student, teacher, .. } => {
                // ln(m / p_s) and ln(m / p_t) from the log-ratio of the two, whichever way keeps
                // the exponential at most 1.
                let ratio = self.log_ratio(z_s, z_t);
                let other = 1.0 - weight;
                let e = exp(-ratio.abs());
                let is_teacher = ratio > 0.0;
                let mass =
                    if is_teacher { weight.mul_add(e, other) } else { other.mul_add(e, weight) };
                let log_mass = ln(mass);
                let log_s = if is_teacher { log_mass + ratio } else { log_mass };
                let log_t = if is_teacher { log_mass } else { log_mass - ratio };
                let share = if is_teacher { weight * e } else { weight } / mass;
                // Written so that NaN, of which p is one, stays.
                let term_s = if p_s == 0.0 { 0.0 } else { -p_s * log_s };
                let term_t = if p_t == 0.0 { 0.0 } else { -p_t * log_t };
                (
                    student * term_s + teacher * term_t,
                    student * (term_s + p_s) - (student * p_s + teacher * p_t) * share,
                )
            }
            _ => {
                let gap = p_s - p_t;
                let sign = if gap > 0.0 { 0.5 } else { -0.5 };
                (0.5 * gap.abs(), if gap == 0.0 { 0.0 } else { sign * p_s })
            }
        }
    }
}
