//! When a run that goes wrong is to be stopped, and by what sign it is known.
use serde::{Deserialize, Serialize};

/// Reaction of a guard to its symptom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardAction {
    /// Saves a checkpoint and ends the run with exit code 3.
    Stop,
    /// Says it, and goes on.
    Warn,
    /// No guard looks.
    Off,
}

/// The guards of training. Each compares a mean over the last `window` steps with a threshold; a
/// threshold of 0 turns its guard off. Not part of the paper: the thresholds are set so that its
/// collapsing runs (method §10) are caught and healthy ones are left alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuardsRecipe {
    /// `stop`, `warn` or `off`.
    pub action: GuardAction,
    /// Steps of the running means. Raising it gives fewer false alarms and later true ones.
    pub window: usize,
    /// Updates in a row that may be skipped because a loss or a gradient was not finite.
    pub max_skipped: usize,
    /// Least entropy of the policy, as a share of what it was over the first `window` steps of the
    /// phase.
    pub min_entropy_share: f64,
    /// Largest share of a response's token 8-grams that occurred in it before.
    pub max_repetition: f64,
    /// Most invalid actions an episode, above what they were over the first `window` steps of the
    /// phase.
    pub max_invalid_actions: f64,
    /// Least reward, as a share of the best running mean so far (looked at once that is above 0.1).
    pub min_reward_share: f64,
    /// Largest mean difference in nats between the sampler's and the trainer's log-probs of a
    /// token.
    pub max_logprob_diff: f64,
    /// Largest mean share of the episodes that searched which the retriever lost. It can only be
    /// passed where `retriever.max_lost_share` allows a step to lose some.
    pub max_lost_share: f64,
}
