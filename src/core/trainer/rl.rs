//! One RL step: PPO or GRPO with the search engine and the selective KL penalty (method §4, paper
//! Eq. 2 to 5), in the order of the method.
//!
//! ```text
//! batch      = RolloutBatch::new(episodes)
//! old, ref   = log-probs under the actor and, where the penalty applies, under the reference;  values = critic (PPO)
//! r_t        = [t=T] · r_EM − β · m_t · 1[r_EM = 0] · KL_t
//! PPO:  A, R = GAE(r, values), A whitened
//! GRPO: A = (r_EM − mean of the question's) / (std of the question's + 1e-6)
//! for each mini-batch:  actor  ← clipped surrogate − entropy_coef · entropy (+ β · KL where kl.in = "loss")
//!                       critic ← clipped squared error (PPO)
//! ```
//!
//! The reference is run on the penalised rows alone: the score is known before, and on correct
//! episodes its log-probs have no effect.
mod stats;
mod update;

use super::{
    metrics::Metrics,
    optimizer::AdamW,
    score::{self, Pass},
    update::Activations,
};
use crate::{
    algo::{
        advantage::{gae, grpo},
        kl::{KlController, TokenKl, estimate, is_penalised, token_rewards},
    },
    rollout::{Episode, RolloutBatch, TokenRecord},
    settings::{Algorithm, GaeRecipe, KlMode, KlPlacement, KlRecipe, OptimRecipe, RlRecipe},
};
use dgpo_models::{Backend, TrainBackend, decoder::Decoder, heads::Critic};

pub use update::Update;

/// Actor, critic and everything that changes with them.
#[derive(Clone, Debug)]
pub struct ActorCritic<B: TrainBackend> {
    /// The policy.
    pub actor: Decoder<B::InnerBackend>,
    /// Its moments and master weights.
    pub actor_optimizer: AdamW<B::InnerBackend>,
    /// PPO has one, GRPO has none.
    pub critic: Option<TrainedCritic<B>>,
    /// beta of the penalty.
    pub kl: KlController,
    /// Updates skipped because a loss or a gradient was not finite.
    pub n_skipped: usize,
}

/// The value network and its optimizer.
#[derive(Clone, Debug)]
pub struct TrainedCritic<B: TrainBackend> {
    /// The decoder with a value head.
    pub network: Critic<B::InnerBackend>,
    /// Its moments and master weights.
    pub optimizer: AdamW<B::InnerBackend>,
}

impl<B: TrainBackend> ActorCritic<B> {
    /// In front of the first step: the critic, where the recipe's algorithm has one, is a copy of
    /// the actor with a value head drawn from `critic_seed`.
    pub fn new(
        actor: Decoder<B::InnerBackend>,
        critic_seed: u64,
        settings: RlSettings<'_>,
    ) -> Self {
        let critic = (settings.rl.algorithm == Algorithm::Ppo).then(|| TrainedCritic {
            network: Critic::from_decoder(&actor, critic_seed),
            optimizer: AdamW::new(settings.optim.critic.clone()),
        });
        let actor_optimizer = AdamW::new(settings.optim.actor.clone());
        Self { actor, actor_optimizer, critic, kl: KlController::new(settings.kl), n_skipped: 0 }
    }
}

/// The settings of a step: parts of a recipe.
#[derive(Clone, Copy, Debug)]
pub struct RlSettings<'a> {
    /// Algorithm, sizes and clipping.
    pub rl: &'a RlRecipe,
    /// The KL penalty.
    pub kl: &'a KlRecipe,
    /// Advantages.
    pub gae: &'a GaeRecipe,
    /// Learning rates.
    pub optim: &'a OptimRecipe,
    /// The temperature at which the episodes were sampled.
    pub temperature: f64,
    /// Memory against recomputation in the backward pass.
    pub activations: Activations,
}

/// The policy that the actor is kept near, and the measure of its distance.
#[derive(Debug)]
pub struct Penalty<'a, I: Backend> {
    /// pi_ref: the teacher, or the student as RL found it.
    pub reference: &'a Decoder<I>,
    /// The measure of KL_t.
    pub kl: TokenKl,
}

impl<I: Backend> Clone for Penalty<'_, I> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<I: Backend> Copy for Penalty<'_, I> {}

impl<'a, I: Backend> Penalty<'a, I> {
    /// `None` where a recipe has no penalty: without a mode, and with a coefficient of 0, which
    /// stays 0, adaptive or not.
    pub fn new(reference: &'a Decoder<I>, recipe: &KlRecipe) -> Option<Self> {
        let is_there = recipe.mode != KlMode::None && recipe.coef != 0.0;
        is_there.then(|| Self { reference, kl: recipe.estimator.into() })
    }
}

/// Result of a step, beside the changed networks.
#[derive(Clone, Debug)]
pub struct Step {
    /// The figures of the step.
    pub metrics: Metrics,
    /// The numbers of each trainable episode's tokens before the update.
    pub tokens: Vec<TokenRecord>,
}

/// Updates the networks on the trainable episodes of one step (`step` of `settings.rl.steps`, from
/// 0).
///
/// `episodes` are in the order of their questions, `settings.rl.episodes_per_question` of each one
/// after the other: their place says which belong together, whatever the questions' texts. A group
/// that lost episodes to the retriever is judged by the others.
/// # Panics
/// In GRPO with the penalty in the reward, which the recipe check refuses.
pub fn rl_step<B: TrainBackend>(
    networks: &mut ActorCritic<B>,
    penalty: Option<Penalty<'_, B::InnerBackend>>,
    episodes: &[Episode],
    settings: RlSettings<'_>,
    step: usize,
    device: &B::Device,
) -> Step {
    let (groups, episodes) = trainable(episodes, settings.rl.episodes_per_question);
    let mut batch = RolloutBatch::new(&episodes);
    let scored = score(networks, penalty, &mut batch, settings, device);
    let coef = coef_in_reward(networks, settings);
    let rewards = token_rewards(&batch, &scored.kl, settings.kl.mode, coef);
    let advantages = match networks.critic {
        Some(_) => gae(&batch, &rewards.rewards, settings.gae),
        None => grpo(&batch, &rewards.rewards, &groups),
    };
    let (batch, advantages, penalised) = (&batch, &advantages, &scored.penalised[..]);
    let mut update = Update { networks, penalty, batch, advantages, penalised, settings, device };
    let updates = update.epochs(step);
    let (scored, rewards) = (&scored, &rewards);
    let figures =
        stats::StepFigures { networks, batch, groups, scored, rewards, advantages, updates };
    let result = Step { metrics: figures.metrics(), tokens: figures.tokens(penalty) };
    networks.kl.update(rewards.mean_kl, batch.n_rows);
    result
}

/// The episodes that are learned from, each with the number of its question.
fn trainable(episodes: &[Episode], per_question: usize) -> (Vec<usize>, Vec<&Episode>) {
    let trainable = episodes.iter().enumerate().filter(|(_, episode)| episode.is_trainable());
    trainable.map(|(position, episode)| (position / per_question, episode)).unzip()
}

/// Weight of the penalty in the token rewards.
fn coef_in_reward<B: TrainBackend>(networks: &ActorCritic<B>, settings: RlSettings<'_>) -> f64 {
    if settings.kl.placement == KlPlacement::Loss {
        return 0.0;
    }
    let is_grpo = networks.critic.is_none();
    let has_penalty = settings.kl.mode != KlMode::None && networks.kl.coef != 0.0;
    assert!(!(is_grpo && has_penalty), "the recipe check puts GRPO's penalty in the loss");
    networks.kl.coef
}

/// The penalty of a batch before the update.
struct Scored {
    /// Rows that carry the penalty.
    penalised: Vec<usize>,
    /// KL_t of their agent tokens, 0 elsewhere, `[B, T]`.
    kl: Vec<f32>,
}

/// Fills the batch's log-probs under actor and reference and its values; KL_t of the penalised
/// rows.
///
/// The reference's log-probs are those of the penalised rows, and 0 where the exact KL takes their
/// place: it comes out of the same pass of the actor that gives those rows' own log-probs.
fn score<B: TrainBackend>(
    networks: &ActorCritic<B>,
    penalty: Option<Penalty<'_, B::InnerBackend>>,
    batch: &mut RolloutBatch,
    settings: RlSettings<'_>,
    device: &B::Device,
) -> Scored {
    let RlSettings { rl, temperature, .. } = settings;
    let pass = &Pass { micro_batch_tokens: rl.micro_batch_tokens, temperature, device };
    let mode = settings.kl.mode;
    let (penalised, free): (Vec<usize>, Vec<usize>) =
        (0..batch.n_rows).partition(|&row| is_penalised(mode, &[batch.scores[row]]));
    let rows: Vec<usize> = (0..batch.n_rows).collect();
    let actor = &networks.actor;
    let mut kl = vec![0.0; batch.n_rows * batch.n_cols];
    batch.ref_log_probs = kl.clone();
    match penalty.filter(|_| !penalised.is_empty()) {
        None => batch.old_log_probs = score::log_probs(actor, batch, &rows, pass),
        Some(Penalty { reference, kl: TokenKl::Exact(divergence) }) => {
            let (mut log_probs, exact) = score::log_probs_and_divergence(
                actor, reference, divergence, batch, &penalised, pass,
            );
            let of_free = score::log_probs(actor, batch, &free, pass);
            for at in batch.agent_tokens(&free).at {
                log_probs[at] = of_free[at];
            }
            (batch.old_log_probs, kl) = (log_probs, exact);
        }
        Some(Penalty { reference, kl: TokenKl::Sampled(estimator) }) => {
            batch.old_log_probs = score::log_probs(actor, batch, &rows, pass);
            batch.ref_log_probs = score::log_probs(reference, batch, &penalised, pass);
            for at in batch.agent_tokens(&penalised).at {
                kl[at] = estimate(estimator, batch.old_log_probs[at], batch.ref_log_probs[at]);
            }
        }
    }
    if let Some(critic) = &networks.critic {
        batch.values = score::values(&critic.network, batch, pass);
    }
    Scored { penalised, kl }
}
