//! The optimizers and their learning rates.
use serde::{Deserialize, Serialize};

/// Shape of the learning rate after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Stays.
    Constant,
    /// Falls to 0 along half a cosine.
    Cosine,
    /// Falls to 0 along a line.
    Linear,
}

/// AdamW of one network in one phase. Every field is written out by serialisation, and the loader
/// fills absent ones from the phase's own default; so a partial table never mixes two phases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamWRecipe {
    /// Learning rate at its highest. Small models learn with larger ones.
    pub lr: f64,
    /// Share of the steps of the phase over which lr rises linearly from 0.
    pub warmup: f64,
    /// `constant`, `cosine` or `linear`.
    pub decay: Decay,
    /// Memory of the gradient's mean.
    pub beta1: f64,
    /// Memory of the gradient's square.
    pub beta2: f64,
    /// Added to the root of the square.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Longest gradient over all parameters of the network; longer ones are scaled down; 0 = no
    /// clipping.
    pub max_grad_norm: f64,
}

/// The optimizers of the phases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimRecipe {
    /// KD and GKD; also the pretrain and encoder stages.
    pub distill: AdamWRecipe,
    /// The policy in RL.
    pub actor: AdamWRecipe,
    /// The value network in RL.
    pub critic: AdamWRecipe,
}
