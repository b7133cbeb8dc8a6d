//! The clipped losses of PPO for actor and critic, and the entropy bonus.
//!
//! rho_t = exp(log pi_theta - log pi_old);  policy = mean over m of max(-A rho, -A clip(rho, 1-eps,
//! 1+eps)); value = 1/2 mean of max((V - R)^2, (clip(V, V_old ± c) - R)^2). Every mean is a masked
//! sum over the caller's normaliser (the token count of the optimizer step), statistics included:
//! what micro-batches return adds up. NaN in any input of a counted token is NaN in the loss.
//! Tensors are flat: `[N]` = the tokens of a micro-batch, in any order, either all of them with a
//! mask or only the trained ones.
use super::{masked_mean, read_scalars};
use burn::tensor::Tensor;
use dgpo_kernels::nan::nan_of;
use dgpo_models::Backend;

/// Bound of the log-ratio, in both directions, far outside any clip range: exp stays finite, and
/// with it the gradient (0 · inf is NaN).
// Differs from the reference: it exponentiates unbounded log-ratios.
pub const LOG_RATIO_LIMIT: f64 = 20.0;

/// Inputs of the policy loss, `[N]` each. Only `log_probs` carries gradients.
#[derive(Clone, Debug)]
pub struct PolicyTokens<B: Backend> {
    /// log pi_theta(y_t) under the policy that is updated.
    pub log_probs: Tensor<B, 1>,
    /// log pi_old(y_t) under the policy that played.
    pub old_log_probs: Tensor<B, 1>,
    /// A_t, whitened where the recipe whitens.
    pub advantages: Tensor<B, 1>,
    /// 1 where the agent wrote the token, else 0.
    pub mask: Tensor<B, 1>,
}

/// Sums over the masked tokens divided by the normaliser.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PolicyStats {
    /// -min(rho A, clip(rho) A).
    pub loss: f64,
    /// Fraction of tokens whose clipped term is the larger one (no gradient there).
    pub clip_fraction: f64,
    /// Mean of log pi_old - log pi_theta: KL(pi_old || pi_theta) by k1, which is signed.
    pub old_approx_kl: f64,
    /// Mean of (rho - 1) - log rho: the same by k3, which is never negative and varies less.
    pub approx_kl: f64,
}
impl std::ops::AddAssign for PolicyStats {
    fn add_assign(&mut self, other: Self) {
        self.loss += other.loss;
        self.clip_fraction += other.clip_fraction;
        self.old_approx_kl += other.old_approx_kl;
        self.approx_kl += other.approx_kl;
    }
}

/// The clipped surrogate loss `[1]` and its statistics.
///
/// ```
/// use burn::{backend::Flex, tensor::Tensor};
/// use dgpo_core::algo::ppo::{PolicyTokens, policy_loss};
///
/// let row = |values: [f32; 2]| Tensor::<Flex, 1>::from_floats(values, &Default::default());
/// let tokens = PolicyTokens {
///     log_probs: row([0.75f32.ln(), 0.5f32.ln()]),
///     old_log_probs: row([0.5f32.ln(), 0.5f32.ln()]),
///     advantages: row([1.0, -1.0]),
///     mask: row([1.0, 1.0]),
/// };
/// // Ratios 1.5, clipped to 1.2, and 1: -(1.2 · 1 - 1 · 1) / 2.
/// let (_, stats) = policy_loss(tokens, 0.2, 2.0);
/// assert!((stats.loss + 0.1).abs() < 1e-6);
/// assert_eq!(stats.clip_fraction, 0.5);
/// ```
///
/// # Source
/// `method §4.6, paper Eq. 2`; the two estimates of the KL are `old_approx_kl` and `approx_kl` of
/// `vwxyzjn/cleanrl:cleanrl/ppo.py`.
pub fn policy_loss<B: Backend>(
    tokens: PolicyTokens<B>,
    clip_ratio: f64,
    normaliser: f64,
) -> (Tensor<B, 1>, PolicyStats) {
    let PolicyTokens { log_probs, old_log_probs, advantages, mask } = tokens;
    // Masked-out tokens leave before exp, so that whatever stands there has exactly zero gradient.
    let log_ratio =
        (log_probs - old_log_probs.detach()).mask_fill(mask.clone().equal_elem(0.0), 0.0);
    let nan = nan_of([&log_ratio, &advantages]);
    let ratio = log_ratio.clone().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp();
    let k1 = log_ratio.detach().neg();
    let k3 = ratio.clone().detach() - 1.0 + k1.clone();
    let minus_advantages = advantages.detach().neg();
    let unclipped = minus_advantages.clone() * ratio.clone();
    let clipped = minus_advantages * ratio.clamp(1.0 - clip_ratio, 1.0 + clip_ratio);
    let is_clipped = clipped.clone().detach().greater(unclipped.clone().detach()).float();
    let loss = masked_mean(unclipped.max_pair(clipped) + nan, mask.clone(), normaliser);
    let clip_fraction = masked_mean(is_clipped, mask.clone(), normaliser);
    let old_approx_kl = masked_mean(k1, mask.clone(), normaliser);
    let approx_kl = masked_mean(k3, mask, normaliser);
    let read = read_scalars(vec![loss.clone().detach(), clip_fraction, old_approx_kl, approx_kl]);
    (
        loss,
        PolicyStats {
            loss: read[0],
            clip_fraction: read[1],
            old_approx_kl: read[2],
            approx_kl: read[3],
        },
    )
}

/// Inputs of the value loss, `[N]` each. Only `values` carries gradients.
#[derive(Clone, Debug)]
pub struct ValueTokens<B: Backend> {
    /// V_theta before the token.
    pub values: Tensor<B, 1>,
    /// V_old before the token.
    pub old_values: Tensor<B, 1>,
    /// R_t = A_t + V_old.
    pub returns: Tensor<B, 1>,
    /// 1 where the token counts, else 0 (`Advantages::mask`).
    pub mask: Tensor<B, 1>,
}

/// Sums over the masked tokens divided by the normaliser.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ValueStats {
    /// ½ max of the plain and the clipped squared error.
    pub loss: f64,
    /// Fraction of tokens whose clipped error is the larger one.
    pub clip_fraction: f64,
    /// Mean of the new values.
    pub mean_value: f64,
}
impl std::ops::AddAssign for ValueStats {
    fn add_assign(&mut self, other: Self) {
        self.loss += other.loss;
        self.clip_fraction += other.clip_fraction;
        self.mean_value += other.mean_value;
    }
}

/// The clipped squared error of the critic `[1]` and its statistics.
/// # Source
/// `method §4.7`
pub fn value_loss<B: Backend>(
    tokens: ValueTokens<B>,
    clip_value: f64,
    normaliser: f64,
) -> (Tensor<B, 1>, ValueStats) {
    let ValueTokens { values, old_values, returns, mask } = tokens;
    let (old_values, returns) = (old_values.detach(), returns.detach());
    let nan = nan_of([&values, &old_values, &returns]);
    let clipped =
        values.clone().max_pair(old_values.clone() - clip_value).min_pair(old_values + clip_value);
    let square = |x: Tensor<B, 1>| x.clone() * x;
    let unclipped_error = square(values.clone() - returns.clone());
    let clipped_error = square(clipped - returns);
    let is_clipped =
        clipped_error.clone().detach().greater(unclipped_error.clone().detach()).float();
    let loss =
        masked_mean(unclipped_error.max_pair(clipped_error) + nan, mask.clone(), normaliser) * 0.5;
    let clip_fraction = masked_mean(is_clipped, mask.clone(), normaliser);
    let mean_value = masked_mean(values.detach(), mask, normaliser);
    let read = read_scalars(vec![loss.clone().detach(), clip_fraction, mean_value]);
    (loss, ValueStats { loss: read[0], clip_fraction: read[1], mean_value: read[2] })
}

/// Mean entropy of the masked tokens `[1]`; subtract it from the loss times `entropy_coef`.
/// # Shapes
/// entropy, mask `[N]`
/// # Source
/// `method §4.6`
pub fn entropy_bonus<B: Backend>(
    entropy: Tensor<B, 1>,
    mask: Tensor<B, 1>,
    normaliser: f64,
) -> Tensor<B, 1> {
    masked_mean(entropy, mask, normaliser)
}

#[cfg(test)]
mod tests;
