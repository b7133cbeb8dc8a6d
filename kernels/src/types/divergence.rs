//! Distances between a teacher's and a student's distribution over the vocabulary (method §5.2),
//! and the few numbers that tell the kernels which one to compute.
//!
//! With p_s = softmax(student / temperature), p_t = softmax(teacher / temperature), m = w p_s + (1
//! - w) p_t, every one of them has one of three forms:
//!
//! ```text
//! sums      f KL(p_t || p_s) + r KL(p_s || p_t) + h H(p_t)   one pass: sums are rescaled online
//! mixture   a KL(p_s || m) + b KL(p_t || m) + h H(p_t)       two passes: m needs both normalisers
//! variation 1/2 sum |p_s - p_t|                              two passes
//! ```
//!
//! Cross-entropies are the first form: -sum p_t ln p_s = KL(p_t || p_s) + H(p_t). So is TAID, whose
//! target is softmax((1 - t) z_s + t z_t) in place of p_t. Each has a name in recipes; what is one
//! of them by another name or times a factor has none here.

/// A per-row distance between p_t (teacher) and p_s (student), both softmax(logits / temperature).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Divergence {
    /// KL(p_t || p_s)
    ForwardKl,
    /// KL(p_s || p_t)
    ReverseKl,
    /// -sum p_t log(alpha p_t + (1 - alpha) p_s), the cross-entropy form. DistiLLM: alpha = 0.1.
    SkewForward {
        /// Weight of p_t in the mixture.
        alpha: f64,
    },
    /// KL(p_s || (1 - alpha) p_t + alpha p_s)
    SkewReverse {
        /// Weight of p_s in the mixture.
        alpha: f64,
    },
    /// 1/2 sum |p_s - p_t|
    TotalVariation,
    /// (1 - lambda) (-sum p_t log p_s) + lambda KL(p_s || p_t). DistiLLM: lambda = 0.9.
    SymmetricKl {
        /// Weight of the reverse KL.
        lambda: f64,
    },
    /// beta KL(p_t || m) + (1 - beta) KL(p_s || m), m = (1 - beta) p_s + beta p_t; beta = 0 is
    /// forward KL, beta = 1 reverse KL (GKD).
    GeneralisedJsd {
        /// Weight of p_t in the mixture.
        beta: f64,
    },
    /// -sum q log p_s with q = softmax of (1 - t) · student logits (a constant) + t · teacher
    /// logits.
    Taid {
        /// Weight of the teacher's logits.
        t: f64,
    },
}

/// Which form, and its factors (the letters of the module's page).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Form {
    Sums { forward: f32, reverse: f32, entropy: f32 },
    Mixture { student_weight: f32, student: f32, teacher: f32, entropy: f32 },
    Variation,
}

/// A divergence as the kernels see it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct DivergencePlan {
    pub form: Form,
    /// The target's logits are (1 - blend) · student + blend · teacher; 1 everywhere but in TAID.
    pub blend: f32,
}

impl DivergencePlan {
    /// Mixtures whose weight is 0 or 1 have no mixture left and become sums.
    pub(crate) fn new(divergence: Divergence) -> Self {
        let sums = |forward: f64, reverse: f64, entropy: f64| Form::Sums {
            forward: forward as f32,
            reverse: reverse as f32,
            entropy: entropy as f32,
        };
        let mut blend = 1.0;
        let form = match divergence {
            Divergence::ForwardKl => sums(1.0, 0.0, 0.0),
            Divergence::ReverseKl => sums(0.0, 1.0, 0.0),
            Divergence::SkewForward { alpha } if alpha <= 0.0 => sums(1.0, 0.0, 1.0),
            Divergence::SkewForward { alpha } if alpha >= 1.0 => sums(0.0, 0.0, 1.0),
            Divergence::SkewForward { alpha } => mixture(1.0 - alpha, 0.0, 1.0, 1.0),
            Divergence::SkewReverse { alpha } if alpha <= 0.0 => sums(0.0, 1.0, 0.0),
            Divergence::SkewReverse { alpha } if alpha >= 1.0 => sums(0.0, 0.0, 0.0),
            Divergence::SkewReverse { alpha } => mixture(alpha, 1.0, 0.0, 0.0),
            Divergence::TotalVariation => Form::Variation,
            Divergence::SymmetricKl { lambda } => sums(1.0 - lambda, lambda, 1.0 - lambda),
            Divergence::GeneralisedJsd { beta } if beta <= 0.0 => sums(1.0, 0.0, 0.0),
            Divergence::GeneralisedJsd { beta } if beta >= 1.0 => sums(0.0, 1.0, 0.0),
            Divergence::GeneralisedJsd { beta } => {
                let weight = 1.0 - beta;
                mixture(weight, weight, 1.0 - weight, 0.0)
            }
            Divergence::Taid { t } => {
                blend = t.clamp(0.0, 1.0) as f32;
                sums(1.0, 0.0, 1.0)
            }
        };
        Self { form, blend }
    }

    /// True if the normalisers must be known before the sums.
    pub(crate) fn needs_second_pass(&self) -> bool {
        !matches!(self.form, Form::Sums { .. })
    }

    /// The factors in the order of the fields of [`Form`].
    pub(crate) fn factors(&self) -> [f32; 4] {
        match self.form {
            Form::Sums { forward, reverse, entropy } => [forward, reverse, entropy, 0.0],
            Form::Mixture { student_weight, student, teacher, entropy } => {
                [student_weight, student, teacher, entropy]
            }
            Form::Variation => [0.0; 4],
        }
    }
}

fn mixture(student_weight: f64, student: f64, teacher: f64, entropy: f64) -> Form {
    Form::Mixture {
        student_weight: student_weight as f32,
        student: student as f32,
        teacher: teacher as f32,
        entropy: entropy as f32,
    }
}
