//! How a policy is trained: PPO and GRPO, the KL penalty, advantages; the parts of the recipe after
//! which [`crate::algo::ppo`], `kl` and `advantage` compute.
use serde::{Deserialize, Serialize};

/// How episodes become advantages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// A critic's values and GAE.
    #[default]
    Ppo,
    /// The episode's reward relative to the others of its question; no critic.
    Grpo,
}

/// PPO or GRPO (method §4).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RlRecipe {
    /// `ppo` or `grpo`. Default: paper, `ppo`.
    pub algorithm: Algorithm,
    /// Steps: each plays, scores and learns once. Default: paper, 1,000.
    pub steps: usize,
    /// Questions a step. Default: paper, 512. Raising it gives steadier gradients; time a step
    /// grows in proportion.
    pub questions_per_step: usize,
    /// Episodes played of each question. Default: paper, 1 (GRPO: 5). GRPO needs at least 2;
    /// raising it gives steadier advantages.
    pub episodes_per_question: usize,
    /// Episodes an optimizer step; it must divide `questions_per_step · episodes_per_question`.
    /// Default: paper, 256. Raising it gives fewer, steadier updates from the same episodes.
    pub mini_batch: usize,
    /// Padded tokens of a micro-batch. Default: 16,384. Raising it costs memory and changes no
    /// result.
    pub micro_batch_tokens: usize,
    /// Passes over a step's episodes. Default: paper, 1. Raising it learns more from each episode,
    /// and more off-policy.
    pub epochs: usize,
    /// ε of the policy loss: how far the probability ratio counts. Default: paper, 0.2. Raising it
    /// allows larger policy changes.
    pub clip_ratio: f64,
    /// How far the critic may move from its old value in one step. Default: paper, 0.5.
    pub clip_value: f64,
    /// Weight of the entropy bonus. Default: paper, 0.001. Raising it keeps the policy more random.
    pub entropy_coef: f64,
}

impl RlRecipe {
    /// Episodes a step plays.
    pub fn episodes_per_step(&self) -> usize {
        self.questions_per_step * self.episodes_per_question
    }
}

impl Default for RlRecipe {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::Ppo,
            steps: 1000,
            questions_per_step: 512,
            episodes_per_question: 1,
            mini_batch: 256,
            micro_batch_tokens: 16_384,
            epochs: 1,
            clip_ratio: 0.2,
            clip_value: 0.5,
            entropy_coef: 0.001,
        }
    }
}

/// Which episodes carry the KL penalty (method §4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlMode {
    /// Only wrong ones: the DGPO penalty.
    #[default]
    Selective,
    /// All of them (ablation b, and standard PPO).
    Uniform,
    /// None (ablation c).
    None,
}

/// The policy the penalty pulls towards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlReference {
    /// `model.teacher`.
    #[default]
    Teacher,
    /// A frozen copy of the student as RL found it (standard PPO, Search-R1).
    Initial,
}

/// KL of one token, with d = log π_old − log π_ref (method §4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlEstimator {
    /// d
    #[default]
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

/// Where the penalty enters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlPlacement {
    /// Subtracted from the token's reward.
    #[default]
    Reward,
    /// A term of the loss.
    Loss,
}

/// Largest relative error the adaptive KL coefficient reacts to in one update (method §4).
pub const ADAPTIVE_ERROR_LIMIT: f64 = 0.2;

/// The KL penalty (method §4).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KlRecipe {
    /// `selective`, `uniform` or `none`. Default: paper, `selective`.
    pub mode: KlMode,
    /// `teacher` or `initial`. Default: paper, `teacher`.
    pub reference: KlReference,
    /// `k1`, `abs`, `mse`, `k3`, `full`, `k1_reversed`, `k3_reversed` or `full_reversed`. Default:
    /// paper, `k1`.
    pub estimator: KlEstimator,
    /// `reward` or `loss`; GRPO has it in the loss alone. Default: paper, `reward`.
    #[serde(rename = "in")]
    pub placement: KlPlacement,
    /// β. Default: paper, 0.001. Raising it holds the student closer to the reference.
    pub coef: f64,
    /// Adaptive β: the KL a token it steers to; 0 = β stays fixed. Default: paper, 0.
    pub target: f64,
    /// Adaptive β: episodes over which it reacts. Default: 10,000, the published script's. Raising
    /// it makes β move more slowly.
    pub horizon: f64,
}

impl Default for KlRecipe {
    fn default() -> Self {
        Self {
            mode: KlMode::Selective,
            reference: KlReference::Teacher,
            estimator: KlEstimator::K1,
            placement: KlPlacement::Reward,
            coef: 0.001,
            target: 0.0,
            horizon: 10_000.0,
        }
    }
}

/// Which tokens the advantage recursion runs over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GaeOver {
    /// The whole response, observations included, as the reference does.
    #[default]
    Response,
    /// Agent tokens only.
    Agent,
}

/// Generalised advantage estimation (method §4), for PPO: GRPO has no critic to take values from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GaeRecipe {
    /// Discount a token. Default: paper, 1. Lowering it favours short episodes.
    pub gamma: f64,
    /// Trust in the returns over the critic. Default: paper, 1. Lowering it gives less variance and
    /// more bias.
    pub lambda: f64,
    /// `response` or `agent`. Default: paper, `response`.
    pub over: GaeOver,
    /// Whether advantages are shifted and scaled to mean 0 and variance 1 over the step. Default:
    /// paper, true.
    pub whiten: bool,
}

impl Default for GaeRecipe {
    fn default() -> Self {
        Self { gamma: 1.0, lambda: 1.0, over: GaeOver::Response, whiten: true }
    }
}
