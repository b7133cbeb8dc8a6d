//! Settings of reinforcement learning: PPO and GRPO, the KL penalty, advantages; the parts of the
//! recipe after which [`crate::algo::ppo`], `kl` and `advantage` compute.
use serde::{Deserialize, Serialize};

/// Rule by which episodes become advantages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// A critic's values and GAE.
    Ppo,
    /// The episode's reward relative to the others of its question; no critic.
    Grpo,
}

/// PPO or GRPO (method §4).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RlRecipe {
    /// `ppo` or `grpo`.
    pub algorithm: Algorithm,
    /// Steps: each plays, scores and learns once.
    pub steps: usize,
    /// Questions a step. Raising it gives steadier gradients; time a step grows in proportion.
    pub questions_per_step: usize,
    /// Episodes played of each question. GRPO needs at least 2; raising it gives steadier
    /// advantages.
    pub episodes_per_question: usize,
    /// Episodes an optimizer step; it must divide `questions_per_step · episodes_per_question`.
    /// Raising it gives fewer, steadier updates from the same episodes.
    pub mini_batch: usize,
    /// Padded tokens of a micro-batch. Raising it costs memory and changes no result.
    pub micro_batch_tokens: usize,
    /// Passes over a step's episodes. Raising it learns more from each episode, and more
    /// off-policy.
    pub epochs: usize,
    /// ε of the policy loss: how far the probability ratio counts. Raising it allows larger policy
    /// changes.
    pub clip_ratio: f64,
    /// Distance that the critic may move from its old value in one step.
    pub clip_value: f64,
    /// Weight of the entropy bonus. Raising it keeps the policy more random.
    pub entropy_coef: f64,
}

impl RlRecipe {
    /// Episodes a step plays.
    pub fn episodes_per_step(&self) -> usize {
        self.questions_per_step * self.episodes_per_question
    }
}

/// Which episodes carry the KL penalty (method §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlMode {
    /// Only wrong ones: the DGPO penalty.
    Selective,
    /// All of them (ablation b, and standard PPO).
    Uniform,
    /// None (ablation c).
    None,
}

/// The policy the penalty pulls towards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlReference {
    /// `model.teacher`.
    Teacher,
    /// A frozen copy of the student as RL found it (standard PPO, Search-R1).
    Initial,
}

/// KL of one token, with d = log π_old − log π_ref (method §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlEstimator {
    /// d
    K1,
    /// |d|
    Abs,
    /// d²/2
    Mse,
    /// exp(−d) + d − 1, clamped to [−10, 10]
    K3,
    /// The exact sum over the vocabulary.
    Full,
    /// −d
    K1Reversed,
    /// exp(d) − d − 1, clamped to [−10, 10]
    K3Reversed,
    /// The exact sum with the reference's distribution as weights.
    FullReversed,
}

/// Place of the penalty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlPlacement {
    /// Subtracted from the token's reward.
    Reward,
    /// A term of the loss.
    Loss,
}

/// Largest relative error the adaptive KL coefficient reacts to in one update (method §4).
pub const ADAPTIVE_ERROR_LIMIT: f64 = 0.2;

/// The KL penalty (method §4).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KlRecipe {
    /// `selective`, `uniform` or `none`.
    pub mode: KlMode,
    /// `teacher` or `initial`.
    pub reference: KlReference,
    /// `k1`, `abs`, `mse`, `k3`, `full`, `k1_reversed`, `k3_reversed` or `full_reversed`.
    pub estimator: KlEstimator,
    /// `reward` or `loss`; GRPO has it in the loss alone.
    #[serde(rename = "in")]
    pub placement: KlPlacement,
    /// β. Raising it holds the student closer to the reference.
    pub coef: f64,
    /// Adaptive β: the KL a token it steers to; 0 = β stays fixed.
    pub target: f64,
    /// Adaptive β: episodes over which it reacts. Raising it makes β move more slowly.
    pub horizon: f64,
}

/// Which tokens the advantage recursion runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GaeOver {
    /// The whole response, observations included, as the reference does.
    Response,
    /// Agent tokens only.
    Agent,
}

/// Generalised advantage estimation (method §4), for PPO: GRPO has no critic to take values from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GaeRecipe {
    /// Discount a token. Lowering it favours short episodes.
    pub gamma: f64,
    /// Trust in the returns over the critic. Lowering it gives less variance and more bias.
    pub lambda: f64,
    /// `response` or `agent`.
    pub over: GaeOver,
    /// True if advantages are shifted and scaled to mean 0 and variance 1 over the step.
    pub whiten: bool,
}
