//! The figures of one RL step.
use super::{
    ActorCritic, Penalty, Scored,
    update::{ActorStats, CriticStats, Updates},
};
use crate::{
    algo::{
        advantage::{Advantages, flat_groups},
        kl::{TokenKl, TokenRewards},
    },
    rollout::{RolloutBatch, TokenRecord, record::Measured},
    trainer::{metrics::*, score},
};
use dgpo_models::{Backend, TrainBackend};

/// Everything that a step computed.
pub(super) struct StepFigures<'a, B: TrainBackend> {
    /// After the updates, with the KL coefficient they had.
    pub(super) networks: &'a ActorCritic<B>,
    pub(super) batch: &'a RolloutBatch,
    /// Number of each row's question.
    pub(super) groups: Vec<usize>,
    pub(super) scored: &'a Scored,
    pub(super) rewards: &'a TokenRewards,
    pub(super) advantages: &'a Advantages,
    pub(super) updates: Updates,
}

impl<B: TrainBackend> StepFigures<'_, B> {
    /// Means over the optimizer steps, and over the batch.
    pub(super) fn metrics(&self) -> Metrics {
        let Self { networks, batch, updates, .. } = self;
        let mut metrics = Metrics::default();
        score::record_log_prob_difference(batch, &batch.old_log_probs, &mut metrics);
        if networks.critic.is_none() {
            metrics.set(FLAT_GROUPS, flat_groups(&batch.scores, &self.groups));
        }
        let actor = |value: fn(&ActorStats) -> f64| mean(updates.actor.iter().map(value));
        metrics.set(POLICY_LOSS, actor(|s| s.policy.loss));
        metrics.set(ENTROPY, actor(|s| s.entropy));
        metrics.set(OLD_APPROX_KL, actor(|s| s.policy.old_approx_kl));
        metrics.set(APPROX_KL, actor(|s| s.policy.approx_kl));
        metrics.set(CLIP_FRACTION, actor(|s| s.policy.clip_fraction));
        metrics.set(ACTOR_GRAD_NORM, actor(|s| s.grad_norm));
        metrics.set(LEARNING_RATE, updates.actor_lr);
        if networks.critic.is_some() {
            let critic = |value: fn(&CriticStats) -> f64| mean(updates.critic.iter().map(value));
            metrics.set(VALUE_LOSS, critic(|s| s.value.loss));
            metrics.set(VALUE_CLIP_FRACTION, critic(|s| s.value.clip_fraction));
            metrics.set(EXPLAINED_VARIANCE, explained_variance(batch, self.advantages));
            metrics.set(CRITIC_GRAD_NORM, critic(|s| s.grad_norm));
            metrics.set(CRITIC_LEARNING_RATE, updates.critic_lr);
        }
        metrics.set(KL, self.rewards.mean_kl);
        metrics.set(KL_COEF, networks.kl.coef);
        let n_penalised = self.scored.penalised.len() as f64;
        metrics.set(KL_SELECTED, n_penalised / batch.n_rows.max(1) as f64);
        metrics.set(SKIPPED_UPDATES, networks.n_skipped as f64);
        metrics
    }

    /// The numbers of each row's tokens, as far as there was a reason to compute them.
    pub(super) fn tokens<I: Backend>(&self, penalty: Option<Penalty<'_, I>>) -> Vec<TokenRecord> {
        let is_sampled = penalty.is_some_and(|p| matches!(p.kl, TokenKl::Sampled(_)));
        let record = |row: usize| {
            let has_kl = penalty.is_some() && self.scored.penalised.contains(&row);
            let measured = Measured {
                has_ref_log_probs: has_kl && is_sampled,
                has_kl,
                has_values: self.networks.critic.is_some(),
            };
            let Self { batch, scored, advantages, .. } = self;
            TokenRecord::of_row(batch, row, &scored.kl, &advantages.advantages, measured)
        };
        (0..self.batch.n_rows).map(record).collect()
    }
}

/// Of one number an optimizer step; 0 of none.
fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len().max(1) as f64;
    values.sum::<f64>() / n
}

/// 1 − Var(R − V) / Var(R) over the tokens that count.
fn explained_variance(batch: &RolloutBatch, advantages: &Advantages) -> f64 {
    let counted = || (0..advantages.mask.len()).filter(|&at| advantages.mask[at]);
    let variance = |value: &dyn Fn(usize) -> f64| {
        let n = counted().count().max(1) as f64;
        let mean = counted().map(value).sum::<f64>() / n;
        counted().map(|at| (value(at) - mean).powi(2)).sum::<f64>() / n
    };
    let returns = |at: usize| f64::from(advantages.returns[at]);
    let total = variance(&returns);
    if total == 0.0 {
        0.0
    } else {
        1.0 - variance(&|at| returns(at) - f64::from(batch.values[at])) / total
    }
}
