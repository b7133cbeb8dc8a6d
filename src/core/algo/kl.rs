//! The penalty that keeps the student near a reference policy: per-token estimators, the selective
//! token reward of DGPO, the coefficient.
//!
//! With d = log pi_old(y_t) - log pi_ref(y_t), sampled under pi_old, the estimators of KL(pi_old ||
//! pi_ref) are k1 = d (unbiased, signed), |d|, d^2/2 and k3 = e^{-d} + d - 1 (unbiased, never
//! negative, low variance). `full` sums over the vocabulary instead of using the sampled token. The
//! host functions work on rows of any layout; `token_rewards` applies them to a `RolloutBatch`.
use super::distill::Divergence;
use crate::{
    rollout::RolloutBatch,
    settings::{ADAPTIVE_ERROR_LIMIT, KlEstimator, KlMode, KlRecipe},
};
use burn::tensor::Tensor;
use dgpo_kernels::nan::nan_of;
use dgpo_models::Backend;
use serde::{Deserialize, Serialize};

/// A row is wrong, and `KlMode::Selective` penalises it, if none of its token scores reaches this
/// (the published code's own threshold).
pub const CORRECT_SCORE: f32 = 0.1;

/// Bound of k3, in both directions: one token whose probability collapsed must not outweigh a whole
/// batch.
pub const K3_LIMIT: f64 = 10.0;

/// Source of a token's KL.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TokenKl {
    /// Estimated from the log-probs of the sampled token.
    Sampled(SampledKl),
    /// The sum over the vocabulary, as a divergence of the policy (student) from the reference
    /// (teacher).
    Exact(Divergence),
}

/// Estimators that need the sampled token's log-probs alone; the formulas stand at
/// [`KlEstimator`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampledKl {
    /// d
    K1,
    /// -d
    K1Reversed,
    /// |d|
    Abs,
    /// d²/2
    Mse,
    /// e^-d + d - 1, clamped to [-10, 10]
    K3,
    /// e^d - d - 1, clamped to [-10, 10]
    K3Reversed,
}

impl From<KlEstimator> for TokenKl {
    fn from(estimator: KlEstimator) -> Self {
        match estimator {
            KlEstimator::K1 => Self::Sampled(SampledKl::K1),
            KlEstimator::K1Reversed => Self::Sampled(SampledKl::K1Reversed),
            KlEstimator::Abs => Self::Sampled(SampledKl::Abs),
            KlEstimator::Mse => Self::Sampled(SampledKl::Mse),
            KlEstimator::K3 => Self::Sampled(SampledKl::K3),
            KlEstimator::K3Reversed => Self::Sampled(SampledKl::K3Reversed),
            KlEstimator::Full => Self::Exact(Divergence::ReverseKl),
            KlEstimator::FullReversed => Self::Exact(Divergence::ForwardKl),
        }
    }
}

/// Estimate of one token's KL.
///
/// ```
/// use dgpo_core::algo::kl::{SampledKl, estimate};
///
/// // The student was twice as sure of its token as the teacher.
/// let (old, teacher) = (0.5f32.ln(), 0.25f32.ln());
/// assert!((estimate(SampledKl::K1, old, teacher) - 2f32.ln()).abs() < 1e-6);
/// ```
///
/// # Source
/// `method §4`
pub fn estimate(estimator: SampledKl, old_log_prob: f32, ref_log_prob: f32) -> f32 {
    let d = f64::from(old_log_prob) - f64::from(ref_log_prob);
    let k3 = |d: f64| ((-d).exp() + d - 1.0).clamp(-K3_LIMIT, K3_LIMIT);
    let kl = match estimator {
        SampledKl::K1 => d,
        SampledKl::K1Reversed => -d,
        SampledKl::Abs => d.abs(),
        SampledKl::Mse => 0.5 * d * d,
        SampledKl::K3 => k3(d),
        SampledKl::K3Reversed => k3(-d),
    };
    kl as f32
}

/// [`estimate`] as a differentiable tensor, for `kl.in = "loss"`. Gradients flow into `log_probs`;
/// the reference is a constant. NaN in either is NaN in the estimate.
/// # Shapes
/// log_probs, ref_log_probs `[N]` -> `[N]`
/// # Source
/// `method §4.3`
pub fn estimate_tensor<B: Backend>(
    estimator: SampledKl,
    log_probs: Tensor<B, 1>,
    ref_log_probs: Tensor<B, 1>,
) -> Tensor<B, 1> {
    let d = log_probs - ref_log_probs.detach();
    let nan = nan_of([&d]);
    // Beyond d = -11, e^{-d} - |d| - 1 is far above the clamp: bounding d there keeps e^{-d} (and 0
    // · inf in its gradient) finite.
    let k3 = |d: Tensor<B, 1>| {
        let d = d.clamp_min(-2.0 * K3_LIMIT);
        (d.clone().neg().exp() + d - 1.0).clamp(-K3_LIMIT, K3_LIMIT)
    };
    let kl = match estimator {
        SampledKl::K1 => d,
        SampledKl::K1Reversed => d.neg(),
        SampledKl::Abs => d.abs(),
        SampledKl::Mse => d.clone() * d * 0.5,
        SampledKl::K3 => k3(d),
        SampledKl::K3Reversed => k3(d.neg()),
    };
    kl + nan
}

/// True if a row carries the penalty; in selective mode its token scores decide.
/// # Source
/// `method §4.2, paper Eq. 4` (the case of a wrong answer)
pub fn is_penalised(mode: KlMode, token_scores: &[f32]) -> bool {
    match mode {
        KlMode::Selective => token_scores.iter().all(|&score| score < CORRECT_SCORE),
        KlMode::Uniform => true,
        KlMode::None => false,
    }
}

/// r_t = score_t - beta · m_t · KL_t for a penalised row, r_t = score_t otherwise.
///
/// ```
/// use dgpo_core::algo::kl::row_rewards;
///
/// // Three tokens; the environment wrote the second one.
/// let (kl, mask) = ([0.5, 9.0, 0.25], [true, false, true]);
/// // A wrong episode is pulled towards the teacher where the agent wrote,
/// assert_eq!(row_rewards(&[0.0, 0.0, 0.0], &kl, &mask, true, 0.5), [-0.25, 0.0, -0.125]);
/// // a correct one keeps its reward alone.
/// assert_eq!(row_rewards(&[0.0, 0.0, 1.0], &kl, &mask, false, 0.5), [0.0, 0.0, 1.0]);
/// ```
///
/// # Shapes
/// token_scores, kl, loss_mask: the T tokens of one row. `kl` is not read where the row is not
/// penalised or the mask is false.
/// # Source
/// `method §4.2, paper Eq. 4`
pub fn row_rewards(
    token_scores: &[f32],
    kl: &[f32],
    loss_mask: &[bool],
    is_penalised: bool,
    coef: f64,
) -> Vec<f32> {
    if !is_penalised {
        return token_scores.to_vec();
    }
    let penalty = |t: usize| if loss_mask[t] { coef * f64::from(kl[t]) } else { 0.0 };
    token_scores
        .iter()
        .enumerate()
        .map(|(t, &score)| (f64::from(score) - penalty(t)) as f32)
        .collect()
}

/// Mean KL over a row's agent tokens; 0 for a row that is not penalised or holds no agent token.
pub fn row_mean_kl(kl: &[f32], loss_mask: &[bool], is_penalised: bool) -> f64 {
    let n_tokens = loss_mask.iter().filter(|&&m| m).count();
    if !is_penalised || n_tokens == 0 {
        return 0.0;
    }
    kl.iter().zip(loss_mask).filter(|&(_, &m)| m).map(|(&k, _)| f64::from(k)).sum::<f64>()
        / n_tokens as f64
}

/// Rewards of a batch, with the figures for the KL controller and the log.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenRewards {
    /// `[B, T]` r_t; 0 outside the response.
    pub rewards: Vec<f32>,
    /// Mean over all rows of the row's mean KL (rows that carry no penalty count 0).
    pub mean_kl: f64,
    /// Rows that carry the penalty.
    pub n_penalised: usize,
}

/// r_t = [t = last response token] · r_EM - beta · m_t · 1[row is penalised] · KL_t.
///
/// `kl` is not read on rows that carry no penalty (so the teacher need not have seen them) and may
/// be empty where `mode` is `None`.
///
/// ```
/// use dgpo_core::{
///     algo::kl::token_rewards,
///     engine::StopReason,
///     question::Question,
///     rollout::{Episode, RolloutBatch, Segment, Status},
///     settings::KlMode,
/// };
///
/// let episode = |reward: f32| Episode {
///     question: Question::new("Who directed Nolmar?", &["Vex"]),
///     segments: vec![
///         Segment::Prompt { ids: vec![2, 3] },
///         Segment::Agent { ids: vec![5, 6], sample_log_probs: vec![], stop: StopReason::Eos },
///     ],
///     status: Status::Answered,
///     prediction: None,
///     reward,
///     searches: vec![],
///     n_invalid_actions: 0,
/// };
/// let (right, wrong) = (episode(1.0), episode(0.0));
/// let batch = RolloutBatch::new(&[&right, &wrong]);
/// let kl = [0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.5, 0.5];
/// let rewards = token_rewards(&batch, &kl, KlMode::Selective, 0.5);
/// assert_eq!(rewards.rewards, [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, -0.25, -0.25]);
/// assert_eq!(rewards.n_penalised, 1);
/// ```
///
/// # Shapes
/// kl `[B, T]` in the batch's layout -> rewards `[B, T]`
/// # Source
/// `method §4.2, paper Eq. 4`
pub fn token_rewards(batch: &RolloutBatch, kl: &[f32], mode: KlMode, coef: f64) -> TokenRewards {
    let mut rewards = vec![0.0; batch.n_rows * batch.n_cols];
    let (mut sum_kl, mut n_penalised) = (0.0, 0);
    for row in 0..batch.n_rows {
        let response = batch.at(row, batch.prompt_lens[row])..batch.at(row, 0) + batch.lengths[row];
        if response.is_empty() {
            continue;
        }
        let mut scores = vec![0.0; response.len()];
        scores[response.len() - 1] = batch.scores[row];
        let is_penalised = is_penalised(mode, &scores);
        n_penalised += usize::from(is_penalised);
        if is_penalised {
            let (kl, mask) = (&kl[response.clone()], &batch.loss_mask[response.clone()]);
            sum_kl += row_mean_kl(kl, mask, true);
            scores = row_rewards(&scores, kl, mask, true, coef);
        }
        rewards[response].copy_from_slice(&scores);
    }
    TokenRewards { rewards, mean_kl: sum_kl / batch.n_rows.max(1) as f64, n_penalised }
}

/// beta, fixed or adaptive: beta <- beta · (1 + clip(KL/target - 1, -0.2, 0.2) · n/horizon). Part
/// of a checkpoint.
/// # Source
/// `method §4.4`
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KlController {
    /// beta now.
    pub coef: f64,
    /// KL a token the controller steers to; 0 = beta stays fixed.
    pub target: f64,
    /// Episodes over which an error of 1 would change beta by its own size (errors are limited to
    /// ±0.2).
    pub horizon: f64,
}
impl KlController {
    /// The controller before the first step.
    pub fn new(recipe: &KlRecipe) -> Self {
        Self { coef: recipe.coef, target: recipe.target, horizon: recipe.horizon }
    }

    /// After a step of `n_episodes` whose mean KL was `mean_kl`. A KL that is not finite is
    /// ignored: its update was skipped, and so is this one.
    pub fn update(&mut self, mean_kl: f64, n_episodes: usize) {
        if self.target > 0.0 && mean_kl.is_finite() {
            let error =
                (mean_kl / self.target - 1.0).clamp(-ADAPTIVE_ERROR_LIMIT, ADAPTIVE_ERROR_LIMIT);
            self.coef *= 1.0 + error * n_episodes as f64 / self.horizon;
        }
    }
}

#[cfg(test)]
mod tests;
