//! One RL step: PPO or GRPO with the search engine and the selective KL penalty, in the order of
//! the method (method §4.1, paper Eq. 5).
//!
//! ```text
//! batch      = RolloutBatch::new(episodes)
//! old, ref   = log-probs under the actor and, of penalised rows, under the reference
//! values     = critic (PPO)
//! r_t        = [t=T] · r_EM − β · m_t · 1[r_EM = 0] · KL_t
//! PPO:  A, R = GAE(r, values), A whitened
//! GRPO: A = (r_EM − mean of the question's episodes) / (their std + 1e-6)
//! for each mini-batch:
//!     actor  ← clipped surrogate − entropy_coef · entropy (+ β · KL where kl.in = "loss")
//!     critic ← clipped squared error (PPO)
//! ```
//!
//! The reference is run on the penalised rows alone: the score is known before, and on correct
//! episodes its log-probs have no effect (method §11.1).
use super::{
    distill::scalar,
    metrics::*,
    optimizer::{AdamW, with_gradients},
    score::{self, Pass},
    update::{Activations, accumulate_critic, accumulate_decoder},
};
use crate::{
    algo::{
        advantage::{Advantages, flat_groups, gae, grpo},
        kl::{
            KlController, estimate, estimate_tensor, full_divergence, is_penalised, token_rewards,
        },
        ppo::{
            PolicyStats, PolicyTokens, ValueStats, ValueTokens, entropy_bonus, policy_loss,
            value_loss,
        },
        schedule::learning_rate,
        total,
    },
    config::{Algorithm, GaeOver, KlMode, KlPlacement, Recipe},
    rollout::{Episode, RolloutBatch, TokenRecord, record::Measured},
};
use burn::{
    optim::GradientsAccumulator,
    tensor::{Tensor, TensorData},
};
use dgpo_models::{
    Backend, TrainBackend,
    decoder::Decoder,
    heads::{Critic, LinearHead, token_divergence, token_log_probs},
};

/// Actor, critic and everything that changes with them.
#[derive(Clone, Debug)]
pub struct ActorCritic<B: TrainBackend> {
    pub actor: Decoder<B::InnerBackend>,
    pub actor_optimizer: AdamW<B::InnerBackend>,
    /// PPO has one, GRPO has none.
    pub critic: Option<TrainedCritic<B>>,
    pub kl: KlController,
    /// Updates skipped because a loss or a gradient was not finite.
    pub n_skipped: usize,
}

/// The value network and its optimizer.
#[derive(Clone, Debug)]
pub struct TrainedCritic<B: TrainBackend> {
    pub network: Critic<B::InnerBackend>,
    pub optimizer: AdamW<B::InnerBackend>,
}

impl<B: TrainBackend> ActorCritic<B> {
    /// The networks before the first step: the critic, where the recipe's algorithm has one, is a
    /// copy of the actor with a value head drawn from `critic_seed`.
    pub fn new(actor: Decoder<B::InnerBackend>, critic_seed: u64, recipe: &Recipe) -> Self {
        let critic = (recipe.rl.algorithm == Algorithm::Ppo).then(|| TrainedCritic {
            network: Critic::from_decoder(&actor, critic_seed),
            optimizer: AdamW::new(recipe.optim.critic.clone()),
        });
        let actor_optimizer = AdamW::new(recipe.optim.actor.clone());
        Self { actor, actor_optimizer, critic, kl: KlController::new(&recipe.kl), n_skipped: 0 }
    }
}

/// Result of a step besides the changed networks.
#[derive(Clone, Debug)]
pub struct Step {
    pub metrics: Metrics,
    /// The numbers of each trainable episode's tokens before the update.
    pub tokens: Vec<TokenRecord>,
}

/// Updates the networks on the trainable episodes of one step (`step` of `recipe.rl.steps`, from
/// 0).
///
/// `episodes` are in the order of their questions, `recipe.rl.episodes_per_question` of each one
/// after the other: their position tells which belong together, whatever the questions' texts. A
/// group that lost episodes to the retriever consists of the others.
/// # Panics
/// If the recipe wants a reference policy and `reference` is `None`, or GRPO with the penalty in
/// the reward (the recipe check refuses both), or PPO and there is no critic.
pub fn rl_step<B: TrainBackend>(
    networks: &mut ActorCritic<B>,
    reference: Option<&Decoder<B::InnerBackend>>,
    episodes: &[Episode],
    recipe: &Recipe,
    step: usize,
    device: &B::Device,
) -> Step {
    let trainable = episodes.iter().enumerate().filter(|(_, episode)| episode.is_trainable());
    let (groups, episodes): (Vec<usize>, Vec<&Episode>) = trainable
        .map(|(position, episode)| (position / recipe.rl.episodes_per_question, episode))
        .unzip();
    let mut metrics = Metrics::default();
    let pass = &Pass {
        micro_batch_tokens: recipe.rl.micro_batch_tokens,
        temperature: recipe.episode.temperature,
        device,
    };
    let mut batch = RolloutBatch::new(&episodes);
    let rows: Vec<usize> = (0..batch.n_rows).collect();
    let penalised: Vec<usize> = rows
        .iter()
        .copied()
        .filter(|&row| is_penalised(recipe.kl.mode, &[batch.scores[row]]))
        .collect();

    let kl =
        log_probs_and_penalty(&networks.actor, reference, &mut batch, &penalised, recipe, pass);
    if let Some(critic) = &networks.critic {
        batch.values = score::values(&critic.network, &batch, pass);
    }
    score::record_log_prob_difference(&batch, &batch.old_log_probs, &mut metrics);

    let in_reward = if recipe.kl.placement == KlPlacement::Reward { networks.kl.coef } else { 0.0 };
    let rewards = token_rewards(&batch, &kl, recipe.kl.mode, in_reward);
    let advantages = match recipe.rl.algorithm {
        Algorithm::Ppo => {
            assert!(networks.critic.is_some(), "PPO has a critic");
            gae(&batch, &rewards.rewards, &recipe.gae)
        }
        Algorithm::Grpo => {
            assert!(
                recipe.kl.mode == KlMode::None || in_reward == 0.0,
                "the recipe check puts GRPO's penalty in the loss"
            );
            metrics.set(FLAT_GROUPS, flat_groups(&batch.scores, &groups));
            grpo(&batch, &rewards.rewards, &groups)
        }
    };
    let tokens =
        token_records(&batch, &penalised, &kl, &advantages, networks.critic.is_some(), recipe);

    let lr = learning_rate(&recipe.optim.actor, step, recipe.rl.steps);
    let critic_lr = learning_rate(&recipe.optim.critic, step, recipe.rl.steps);
    let mut update = Update {
        networks,
        reference,
        batch: &batch,
        advantages: &advantages,
        penalised: &penalised,
        recipe,
        device,
    };
    let (mut actor_stats, mut critic_stats) = (Vec::new(), Vec::new());
    for _ in 0..recipe.rl.epochs {
        for mini_batch in rows.chunks(recipe.rl.mini_batch) {
            actor_stats.push(update.actor(mini_batch, lr));
            critic_stats.extend(update.critic(mini_batch, critic_lr));
        }
    }

    let actor_mean = |value: fn(&ActorStats) -> f64| mean(actor_stats.iter().map(value));
    metrics.set(POLICY_LOSS, actor_mean(|s| s.policy.loss));
    metrics.set(ENTROPY, actor_mean(|s| s.entropy));
    metrics.set(OLD_APPROX_KL, actor_mean(|s| s.policy.old_approx_kl));
    metrics.set(APPROX_KL, actor_mean(|s| s.policy.approx_kl));
    metrics.set(CLIP_FRACTION, actor_mean(|s| s.policy.clip_fraction));
    metrics.set(ACTOR_GRAD_NORM, actor_mean(|s| s.grad_norm));
    metrics.set(LEARNING_RATE, lr);
    if networks.critic.is_some() {
        let critic_mean = |value: fn(&CriticStats) -> f64| mean(critic_stats.iter().map(value));
        metrics.set(VALUE_LOSS, critic_mean(|s| s.value.loss));
        metrics.set(VALUE_CLIP_FRACTION, critic_mean(|s| s.value.clip_fraction));
        metrics.set(EXPLAINED_VARIANCE, explained_variance(&batch, &advantages));
        metrics.set(CRITIC_GRAD_NORM, critic_mean(|s| s.grad_norm));
        metrics.set(CRITIC_LEARNING_RATE, critic_lr);
    }
    metrics.set(KL, rewards.mean_kl);
    metrics.set(KL_COEF, networks.kl.coef);
    metrics.set(KL_SELECTED, penalised.len() as f64 / batch.n_rows.max(1) as f64);
    networks.kl.update(rewards.mean_kl, batch.n_rows);
    metrics.set(SKIPPED_UPDATES, networks.n_skipped as f64);
    Step { metrics, tokens }
}

/// Mean over the optimizer steps of a step; 0 without any.
fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len().max(1) as f64;
    values.sum::<f64>() / n
}

/// The numbers of each row's tokens, as far as [`log_probs_and_penalty`] computed them.
fn token_records(
    batch: &RolloutBatch,
    penalised: &[usize],
    kl: &[f32],
    advantages: &Advantages,
    has_values: bool,
    recipe: &Recipe,
) -> Vec<TokenRecord> {
    let is_sampled = full_divergence(recipe.kl.estimator).is_none();
    let record = |row: usize| {
        let has_kl = recipe.kl.coef != 0.0 && penalised.contains(&row);
        let measured = Measured { has_ref_log_probs: has_kl && is_sampled, has_kl, has_values };
        TokenRecord::of_row(batch, row, kl, &advantages.advantages, measured)
    };
    (0..batch.n_rows).map(record).collect()
}

/// Fills the batch's log-probs under actor and reference; KL_t of the penalised rows' agent tokens,
/// `[B, T]`.
///
/// The reference's log-probs are those of the penalised rows, and 0 where the exact KL takes their
/// place: it comes out of the same pass of the actor that gives those rows' own log-probs.
/// # Source
/// `method §4.3`; the actor runs over all rows (`method §11.4`), the reference over the penalised
/// ones (`method §11.1`).
fn log_probs_and_penalty<I: Backend>(
    actor: &Decoder<I>,
    reference: Option<&Decoder<I>>,
    batch: &mut RolloutBatch,
    penalised: &[usize],
    recipe: &Recipe,
    pass: &Pass<'_, I>,
) -> Vec<f32> {
    let rows: Vec<usize> = (0..batch.n_rows).collect();
    batch.ref_log_probs = vec![0.0; batch.n_rows * batch.n_cols];
    // A coefficient of 0 stays 0, adaptive or not: the penalty has no effect.
    if recipe.kl.mode == KlMode::None || penalised.is_empty() || recipe.kl.coef == 0.0 {
        batch.old_log_probs = score::log_probs(actor, batch, &rows, pass);
        return batch.ref_log_probs.clone();
    }
    let reference = reference.expect("a recipe with a KL penalty has a reference policy");
    let estimator = recipe.kl.estimator;
    if let Some(divergence) = full_divergence(estimator) {
        let free: Vec<usize> = rows.into_iter().filter(|row| !penalised.contains(row)).collect();
        let (mut log_probs, kl) =
            score::log_probs_and_divergence(actor, reference, divergence, batch, penalised, pass);
        let of_free = score::log_probs(actor, batch, &free, pass);
        for at in batch.agent_tokens(&free).at {
            log_probs[at] = of_free[at];
        }
        batch.old_log_probs = log_probs;
        return kl;
    }
    batch.old_log_probs = score::log_probs(actor, batch, &rows, pass);
    batch.ref_log_probs = score::log_probs(reference, batch, penalised, pass);
    let mut kl = vec![0.0; batch.n_rows * batch.n_cols];
    for at in batch.agent_tokens(penalised).at {
        kl[at] = estimate(estimator, batch.old_log_probs[at], batch.ref_log_probs[at])
            .expect("not one of the full estimators");
    }
    kl
}

/// Figures of one optimizer step of the actor.
#[derive(Clone, Copy, Debug, Default)]
struct ActorStats {
    policy: PolicyStats,
    entropy: f64,
    /// The penalty in the loss (`kl.in = "loss"`), weighted.
    penalty: f64,
    grad_norm: f64,
}

/// Figures of one optimizer step of the critic.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CriticStats {
    pub(crate) value: ValueStats,
    pub(crate) grad_norm: f64,
}

/// The mini-batch updates of one step: everything they read, and the networks they change.
pub(crate) struct Update<'a, B: TrainBackend> {
    pub(crate) networks: &'a mut ActorCritic<B>,
    pub(crate) reference: Option<&'a Decoder<B::InnerBackend>>,
    pub(crate) batch: &'a RolloutBatch,
    pub(crate) advantages: &'a Advantages,
    pub(crate) penalised: &'a [usize],
    pub(crate) recipe: &'a Recipe,
    pub(crate) device: &'a B::Device,
}

impl<B: TrainBackend> Update<'_, B> {
    /// One optimizer step of the policy: `method §4.6, paper Eq. 2`, with the penalty of
    /// `method §4.3` where it is in the loss.
    fn actor(&mut self, mini_batch: &[usize], lr: f64) -> ActorStats {
        let (batch, recipe, device) = (self.batch, self.recipe, self.device);
        let activations = Activations::of(&recipe.model);
        let model: Decoder<B> = with_gradients(self.networks.actor.clone());
        let mut sums = GradientsAccumulator::new();
        let normaliser = batch.n_agent_tokens(mini_batch).max(1) as f64;
        let kl_weight =
            if recipe.kl.placement == KlPlacement::Loss { self.networks.kl.coef } else { 0.0 };
        let mut stats = ActorStats::default();
        // Penalised rows in micro-batches of their own, so that the reference runs on nothing else.
        let (penalised_rows, free_rows): (Vec<usize>, Vec<usize>) =
            mini_batch.iter().partition(|row| kl_weight != 0.0 && self.penalised.contains(row));
        let cut = |rows: &[usize]| batch.micro_batches(rows, recipe.rl.micro_batch_tokens);
        let micro_batches = cut(&penalised_rows)
            .into_iter()
            .map(|rows| (rows, true))
            .chain(cut(&free_rows).into_iter().map(|rows| (rows, false)));
        for (rows, has_kl) in micro_batches {
            let tokens = batch.agent_tokens(&rows);
            if tokens.is_empty() {
                continue;
            }
            let exact = full_divergence(recipe.kl.estimator).filter(|_| has_kl).map(|divergence| {
                let reference =
                    self.reference.expect("a recipe with a KL penalty has a reference policy");
                let head = reference.head(tokens.gather(reference.hidden(
                    batch.ids_tensor(&rows, device),
                    None,
                    None,
                )));
                (LinearHead::from_inner(head), divergence)
            });
            accumulate_decoder(
                &model,
                batch.ids_tensor(&rows, device),
                &tokens,
                activations,
                &mut sums,
                |head| {
                    let pick = |array: &[f32]| tensor::<B>(tokens.pick(array), device);
                    let (labels, temperature) =
                        (tokens.labels_tensor(device), recipe.episode.temperature);
                    let (log_probs, entropy, kl) = match exact {
                        Some((reference, divergence)) => {
                            let rows =
                                token_divergence(head, reference, labels, divergence, temperature);
                            (rows.log_probs, rows.entropy, Some(rows.divergence))
                        }
                        None => {
                            let rows = token_log_probs(head, labels, temperature);
                            let estimates = || {
                                estimate_tensor(
                                    recipe.kl.estimator,
                                    rows.log_probs.clone(),
                                    pick(&batch.ref_log_probs),
                                )
                            };
                            let kl = has_kl
                                .then(|| estimates().expect("not one of the full estimators"));
                            (rows.log_probs, rows.entropy, kl)
                        }
                    };
                    let mask = Tensor::ones_like(&entropy.clone().detach());
                    let policy = PolicyTokens {
                        log_probs,
                        old_log_probs: pick(&batch.old_log_probs),
                        advantages: pick(&self.advantages.advantages),
                        mask: mask.clone(),
                    };
                    let (mut loss, policy) = policy_loss(policy, recipe.rl.clip_ratio, normaliser);
                    let entropy = entropy_bonus(entropy, mask, normaliser);
                    stats.policy += policy;
                    stats.entropy += scalar(&entropy);
                    loss = loss - entropy * recipe.rl.entropy_coef;
                    match kl {
                        Some(kl) => {
                            let penalty = total(kl) * (kl_weight / normaliser);
                            stats.penalty += scalar(&penalty);
                            loss + penalty
                        }
                        None => loss,
                    }
                },
            );
        }
        drop(model);
        let loss = stats.policy.loss - recipe.rl.entropy_coef * stats.entropy + stats.penalty;
        let (actor, applied) =
            self.networks.actor_optimizer.step(self.networks.actor.clone(), sums.grads(), lr, loss);
        self.networks.actor = actor;
        self.networks.n_skipped += usize::from(!applied.is_applied);
        stats.grad_norm = applied.grad_norm;
        stats
    }

    /// One optimizer step of the critic (`method §4.7`); `None` where there is none.
    pub(crate) fn critic(&mut self, mini_batch: &[usize], lr: f64) -> Option<CriticStats> {
        let (batch, recipe, device, advantages) =
            (self.batch, self.recipe, self.device, self.advantages);
        let activations = Activations::of(&recipe.model);
        let critic = self.networks.critic.as_mut()?;
        let model: Critic<B> = with_gradients(critic.network.clone());
        let mut sums = GradientsAccumulator::new();
        let counted = |rows: &[usize]| match recipe.gae.over {
            GaeOver::Response => batch.response_tokens(rows),
            GaeOver::Agent => batch.agent_tokens(rows),
        };
        let normaliser = counted(mini_batch).len().max(1) as f64;
        let mut stats = CriticStats::default();
        for rows in batch.micro_batches(mini_batch, recipe.rl.micro_batch_tokens) {
            let tokens = counted(&rows);
            if tokens.is_empty() {
                continue;
            }
            accumulate_critic(
                &model,
                batch.ids_tensor(&rows, device),
                &tokens,
                activations,
                &mut sums,
                |values| {
                    let values = ValueTokens {
                        mask: Tensor::ones_like(&values.clone().detach()),
                        old_values: tensor(tokens.pick(&batch.values), device),
                        returns: tensor(tokens.pick(&advantages.returns), device),
                        values,
                    };
                    let (loss, value) = value_loss(values, recipe.rl.clip_value, normaliser);
                    stats.value += value;
                    loss
                },
            );
        }
        drop(model);
        let (network, applied) =
            critic.optimizer.step(critic.network.clone(), sums.grads(), lr, stats.value.loss);
        critic.network = network;
        self.networks.n_skipped += usize::from(!applied.is_applied);
        stats.grad_norm = applied.grad_norm;
        Some(stats)
    }
}

/// Host floats as a tensor `[N]`.
fn tensor<B: Backend>(values: Vec<f32>, device: &B::Device) -> Tensor<B, 1> {
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), device)
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
