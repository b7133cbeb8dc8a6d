//! The mini-batch updates of one RL step: actor and critic, forward, loss, backward, optimizer.
use super::{ActorCritic, Penalty, RlSettings};
use crate::{
    algo::{
        advantage::Advantages,
        distill::Divergence,
        kl::{SampledKl, TokenKl, estimate_tensor},
        ppo::{
            PolicyStats, PolicyTokens, ValueStats, ValueTokens, entropy_bonus, policy_loss,
            value_loss,
        },
        schedule::learning_rate,
        total,
    },
    rollout::RolloutBatch,
    settings::{GaeOver, KlPlacement},
    trainer::{
        distill::scalar,
        optimizer::with_gradients,
        score::head_rows,
        update::{accumulate_critic, accumulate_decoder},
    },
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

/// A micro-batch's part of the penalty in the loss.
enum Kl<B: TrainBackend> {
    Sampled(SampledKl),
    /// The reference's hidden rows and head.
    Exact(Divergence, LinearHead<B>),
}

/// Report of one optimizer step of the actor.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ActorStats {
    pub(super) policy: PolicyStats,
    pub(super) entropy: f64,
    /// The penalty in the loss (`kl.in = "loss"`), weighted.
    penalty: f64,
    pub(super) grad_norm: f64,
}

/// Report of one optimizer step of the critic.
#[derive(Clone, Copy, Debug, Default)]
pub struct CriticStats {
    pub value: ValueStats,
    pub grad_norm: f64,
}

/// The mini-batch updates of one step: everything they read, and the networks they change.
pub struct Update<'a, B: TrainBackend> {
    /// The networks that learn.
    pub networks: &'a mut ActorCritic<B>,
    /// The penalty, read here where it is a term of the loss.
    pub penalty: Option<Penalty<'a, B::InnerBackend>>,
    /// The step's episodes with their log-probs and values.
    pub batch: &'a RolloutBatch,
    /// A_t and R_t.
    pub advantages: &'a Advantages,
    /// Rows that carry the penalty.
    pub penalised: &'a [usize],
    /// Sizes, clipping and learning rates.
    pub settings: RlSettings<'a>,
    /// Device of the computation.
    pub device: &'a B::Device,
}

/// The optimizer steps of one RL step, in their order, and their learning rates.
pub(super) struct Updates {
    pub(super) actor: Vec<ActorStats>,
    pub(super) critic: Vec<CriticStats>,
    pub(super) actor_lr: f64,
    pub(super) critic_lr: f64,
}

impl<B: TrainBackend> Update<'_, B> {
    /// All epochs over the batch, a mini-batch at a time.
    pub(super) fn epochs(&mut self, step: usize) -> Updates {
        let RlSettings { rl, optim, .. } = self.settings;
        let actor_lr = learning_rate(&optim.actor, step, rl.steps);
        let critic_lr = learning_rate(&optim.critic, step, rl.steps);
        let rows: Vec<usize> = (0..self.batch.n_rows).collect();
        let (mut actor, mut critic) = (Vec::new(), Vec::new());
        for _ in 0..rl.epochs {
            for mini_batch in rows.chunks(rl.mini_batch) {
                actor.push(self.actor(mini_batch, actor_lr));
                critic.extend(self.critic(mini_batch, critic_lr));
            }
        }
        Updates { actor, critic, actor_lr, critic_lr }
    }

    fn actor(&mut self, mini_batch: &[usize], lr: f64) -> ActorStats {
        let (batch, settings, device) = (self.batch, self.settings, self.device);
        let model: Decoder<B> = with_gradients(self.networks.actor.clone());
        let mut sums = GradientsAccumulator::new();
        let normaliser = batch.n_agent_tokens(mini_batch).max(1) as f64;
        let kl_weight =
            if settings.kl.placement == KlPlacement::Loss { self.networks.kl.coef } else { 0.0 };
        let penalty = self.penalty.filter(|_| kl_weight != 0.0);
        let mut stats = ActorStats::default();
        // Penalised rows in micro-batches of their own, so that the reference runs on nothing else.
        let (penalised_rows, free_rows): (Vec<usize>, Vec<usize>) =
            mini_batch.iter().partition(|row| penalty.is_some() && self.penalised.contains(row));
        let cut = |rows: &[usize]| batch.micro_batches(rows, settings.rl.micro_batch_tokens);
        let micro_batches = cut(&penalised_rows)
            .into_iter()
            .map(|rows| (rows, penalty))
            .chain(cut(&free_rows).into_iter().map(|rows| (rows, None)));
        for (rows, penalty) in micro_batches {
            let tokens = batch.agent_tokens(&rows);
            if tokens.is_empty() {
                continue;
            }
            let of_reference = |reference| head_rows(reference, batch, &rows, &tokens, device);
            let kl = penalty.map(|penalty| match penalty.kl {
                TokenKl::Sampled(estimator) => Kl::Sampled(estimator),
                TokenKl::Exact(divergence) => {
                    let head = LinearHead::from_inner(of_reference(penalty.reference));
                    Kl::Exact(divergence, head)
                }
            });
            accumulate_decoder(
                &model,
                batch.ids_tensor(&rows, device),
                &tokens,
                settings.activations,
                &mut sums,
                |head| {
                    let pick = |array: &[f32]| tensor::<B>(tokens.pick(array), device);
                    let (labels, temperature) =
                        (tokens.labels_tensor(device), settings.temperature);
                    let (log_probs, entropy, kl) = match kl {
                        None => {
                            let rows = token_log_probs(head, labels, temperature);
                            (rows.log_probs, rows.entropy, None)
                        }
                        Some(Kl::Sampled(estimator)) => {
                            let rows = token_log_probs(head, labels, temperature);
                            let reference = pick(&batch.ref_log_probs);
                            let kl = estimate_tensor(estimator, rows.log_probs.clone(), reference);
                            (rows.log_probs, rows.entropy, Some(kl))
                        }
                        Some(Kl::Exact(divergence, reference)) => {
                            let rows =
                                token_divergence(head, reference, labels, divergence, temperature);
                            (rows.log_probs, rows.entropy, Some(rows.divergence))
                        }
                    };
                    let mask = Tensor::ones_like(&entropy.clone().detach());
                    let policy = PolicyTokens {
                        log_probs,
                        old_log_probs: pick(&batch.old_log_probs),
                        advantages: pick(&self.advantages.advantages),
                        mask: mask.clone(),
                    };
                    let (mut loss, policy) =
                        policy_loss(policy, settings.rl.clip_ratio, normaliser);
                    let entropy = entropy_bonus(entropy, mask, normaliser);
                    stats.policy += policy;
                    stats.entropy += scalar(&entropy);
                    loss = loss - entropy * settings.rl.entropy_coef;
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
        let loss = stats.policy.loss - settings.rl.entropy_coef * stats.entropy + stats.penalty;
        let (actor, applied) =
            self.networks.actor_optimizer.step(self.networks.actor.clone(), sums.grads(), lr, loss);
        self.networks.actor = actor;
        self.networks.n_skipped += usize::from(!applied.is_applied);
        stats.grad_norm = applied.grad_norm;
        stats
    }

    /// `None` where there is no critic.
    pub fn critic(&mut self, mini_batch: &[usize], lr: f64) -> Option<CriticStats> {
        let (batch, settings, device, advantages) =
            (self.batch, self.settings, self.device, self.advantages);
        let activations = settings.activations;
        let critic = self.networks.critic.as_mut()?;
        let model: Critic<B> = with_gradients(critic.network.clone());
        let mut sums = GradientsAccumulator::new();
        let counted = |rows: &[usize]| match settings.gae.over {
            GaeOver::Response => batch.response_tokens(rows),
            GaeOver::Agent => batch.agent_tokens(rows),
        };
        let normaliser = counted(mini_batch).len().max(1) as f64;
        let mut stats = CriticStats::default();
        for rows in batch.micro_batches(mini_batch, settings.rl.micro_batch_tokens) {
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
                    let (loss, value) = value_loss(values, settings.rl.clip_value, normaliser);
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
