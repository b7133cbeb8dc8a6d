//! The KD loss: cross-entropy on the teacher's tokens and a divergence between the two
//! distributions; TAID's schedule.
//!
//! A row is one trained position: [`Logits`] of both models for the same prefix, as hidden states
//! with the head that would make logits of them (the trainer: no logits are kept) or as logits that
//! exist (recorded ones). The divergences themselves are [`Divergence`].
use crate::settings::{DistillDivergence, DistillRecipe, TaidRecipe};
use burn::tensor::{Int, Tensor};
use dgpo_models::{
    Backend,
    heads::{Logits, token_divergence, token_log_probs},
};
use serde::{Deserialize, Serialize};

pub use dgpo_models::heads::{Divergence, row_divergence};

/// The divergence a recipe names. `taid_t` is the weight of the teacher's logits in TAID's target
/// at this step; the other divergences ignore it.
///
/// Skew KL and TAID are computed as cross-entropies, -sum q ln p, as in their authors' code: the KL
/// plus the entropy of q, which has no gradient.
/// # Source
/// `method §5.2`
pub fn divergence_of(recipe: &DistillRecipe, taid_t: f64) -> Divergence {
    match recipe.divergence {
        DistillDivergence::ForwardKl => Divergence::ForwardKl,
        DistillDivergence::ReverseKl => Divergence::ReverseKl,
        DistillDivergence::Jsd => Divergence::GeneralisedJsd { beta: recipe.jsd_beta },
        DistillDivergence::SkewKl => Divergence::SkewForward { alpha: recipe.skew_alpha },
        DistillDivergence::SkewReverseKl => Divergence::SkewReverse { alpha: recipe.skew_alpha },
        DistillDivergence::SymmetricKl => Divergence::SymmetricKl { lambda: recipe.jsd_beta },
        DistillDivergence::TotalVariation => Divergence::TotalVariation,
        DistillDivergence::Taid => Divergence::Taid { t: taid_t },
    }
}

/// -log p_s(label) of each row. Every label must lie in the vocabulary; the caller masks rows that
/// have none.
/// # Shapes
/// N rows of logits, labels `[N]` -> `[N]`
/// # Source
/// `method §3.2, paper Eq. 1` (L_CE)
pub fn row_cross_entropy<B: Backend>(
    logits: impl Into<Logits<B>>,
    labels: Tensor<B, 1, Int>,
) -> Tensor<B, 1> {
    token_log_probs(logits, labels, 1.0).log_probs.neg()
}

/// Weights of the two terms of the KD loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KdWeights {
    /// Weight of the cross-entropy on the episode's own tokens.
    pub ce_weight: f64,
    /// The paper's lambda. 0 = the teacher is not needed.
    pub kl_weight: f64,
    /// D(teacher, student).
    pub divergence: Divergence,
    /// Temperature of the divergence; the cross-entropy is always at 1.
    pub temperature: f64,
}

/// The KD loss of each row, `[N]`, and its terms.
#[derive(Clone, Debug)]
pub struct KdRows<B: Backend> {
    /// ce_weight · CE + kl_weight · D
    pub loss: Tensor<B, 1>,
    /// -log p_s(label) at temperature 1.
    pub cross_entropy: Tensor<B, 1>,
    /// D(p_t, p_s); `None` where its weight is 0, and then the teacher is not run.
    pub divergence: Option<Tensor<B, 1>>,
    /// H(p_s) at temperature 1; only where the divergence is at temperature 1 too, whose pass gives
    /// it.
    pub entropy: Option<Tensor<B, 1>>,
}

/// ce_weight · CE + kl_weight · D(p_t, p_s) of each row. A weight of 0 leaves its term out of the
/// loss altogether.
///
/// ```
/// use burn::{backend::Flex, tensor::Tensor};
/// use dgpo_core::algo::distill::{KdWeights, kd_rows};
/// use dgpo_models::heads::Divergence;
///
/// let device = Default::default();
/// let even = Tensor::<Flex, 2>::from_floats([[0.0, 0.0]], &device);
/// let labels = Tensor::from_ints([1], &device);
/// let divergence = Divergence::ForwardKl;
/// let weights = KdWeights { ce_weight: 1.0, kl_weight: 1.0, divergence, temperature: 1.0 };
/// // Teacher and student agree, so the cross-entropy of a fair coin is left: ln 2.
/// let rows = kd_rows(even.clone().into(), Some(even.into()), labels, weights);
/// assert!((rows.loss.into_scalar() - 2f32.ln()).abs() < 1e-6);
/// ```
///
/// # Shapes
/// N rows of logits of student and teacher (the divergence runs over the shared prefix of their
/// vocabularies), labels `[N]`
/// # Panics
/// If `kl_weight` is not 0 and there is no teacher.
/// # Source
/// `method §3.2, paper Eq. 1`; the other divergences `method §5.2`
pub fn kd_rows<B: Backend>(
    student: Logits<B>,
    teacher: Option<Logits<B>>,
    labels: Tensor<B, 1, Int>,
    weights: KdWeights,
) -> KdRows<B> {
    let KdWeights { ce_weight, kl_weight, divergence, temperature } = weights;
    if kl_weight == 0.0 {
        let cross_entropy = row_cross_entropy(student, labels);
        return KdRows {
            loss: cross_entropy.clone() * ce_weight,
            cross_entropy,
            divergence: None,
            entropy: None,
        };
    }
    let teacher = teacher.expect("a KD loss with a divergence term is given the teacher's logits");
    let (cross_entropy, divergence, entropy) = if temperature == 1.0 {
        // One pass gives log-probs, divergence and entropy.
        let rows = token_divergence(student, teacher, labels, divergence, temperature);
        (rows.log_probs.neg(), rows.divergence, Some(rows.entropy))
    } else {
        (
            row_cross_entropy(student.clone(), labels),
            row_divergence(student, teacher, divergence, temperature),
            None,
        )
    };
    let kl = divergence.clone() * kl_weight;
    let loss = if ce_weight == 0.0 { kl } else { kl + cross_entropy.clone() * ce_weight };
    KdRows { loss, cross_entropy, divergence: Some(divergence), entropy }
}

/// TAID's interpolation parameter t over training: never below a straight line from `t_start` to
/// `t_end`, faster while the loss falls.
///
/// m <- beta m + (1 - beta) (l_prev - l)/l_prev,  t <- min(t_end, max(line(step), t + alpha
/// sigmoid(m) (1 - t))). Part of a checkpoint.
/// # Source
/// `method §5.5`; `SakanaAI/TAID:src/distil_losses/taid.py`
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaidSchedule {
    /// t at the first step.
    pub t_start: f64,
    /// t at the last step.
    pub t_end: f64,
    /// Size of the adaptive increments.
    pub alpha: f64,
    /// Memory of the momentum m.
    pub beta: f64,
    /// The teacher's weight now.
    pub t: f64,
    /// m: running mean of the loss's relative decrease.
    pub momentum: f64,
    /// The last loss; `None` before the first update.
    pub prev_loss: Option<f64>,
}

/// Added to the previous loss, so that the relative change is finite where that was 0.
const TAID_EPS: f64 = 1e-15;

impl TaidSchedule {
    /// The schedule at the start of a phase.
    pub fn of(recipe: &TaidRecipe) -> Self {
        Self::new(recipe.t_start, recipe.t_end, recipe.alpha, recipe.beta)
    }

    /// Published values: t_start 0.4, t_end 1.0, alpha 5e-4, beta 0.99.
    pub fn new(t_start: f64, t_end: f64, alpha: f64, beta: f64) -> Self {
        Self { t_start, t_end, alpha, beta, t: t_start, momentum: 0.0, prev_loss: None }
    }

    /// After step `step` (from 0) of `n_steps` had loss `loss`. Returns the adaptive increment; the
    /// first call only remembers the loss. A loss that is not finite is ignored: its update was
    /// skipped and the momentum would never recover from it; t still follows the line.
    pub fn update(&mut self, loss: f64, step: usize, n_steps: usize) -> Option<f64> {
        let line = self.t_start + (self.t_end - self.t_start) * step as f64 / n_steps as f64;
        if !loss.is_finite() {
            self.t = self.t.max(line).min(self.t_end);
            return None;
        }
        let prev_loss = self.prev_loss.replace(loss)?;
        self.momentum = self.beta * self.momentum
            + (1.0 - self.beta) * (prev_loss - loss) / (prev_loss + TAID_EPS);
        let sigmoid = 1.0 / (1.0 + (-self.momentum).exp());
        let increment = self.alpha * sigmoid * (1.0 - self.t);
        self.t = (self.t + increment).max(line).min(self.t_end);
        Some(increment)
    }
}

#[cfg(test)]
mod tests;
