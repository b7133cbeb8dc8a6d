//! The optimizers and their learning rates.
use serde::{Deserialize, Serialize};

/// What the learning rate does behind its warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Stays.
    #[default]
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
    /// Learning rate at its highest. Defaults: paper, 1e-4 (distill), 1e-6 (actor), 1e-5 (critic).
    /// Small models learn with larger ones.
    pub lr: f64,
    /// Share of the steps of the phase over which lr rises linearly from 0. Defaults: paper, 0
    /// (distill), 0.285 (actor), 0.015 (critic).
    pub warmup: f64,
    /// `constant`, `cosine` or `linear`. Defaults: paper, `cosine` (distill), `constant` (actor,
    /// critic).
    pub decay: Decay,
    /// Memory of the gradient's mean. Default: paper, 0.9.
    pub beta1: f64,
    /// Memory of the gradient's square. Default: paper, 0.999.
    pub beta2: f64,
    /// Added to the root of the square. Default: 1e-8, PyTorch's.
    pub eps: f64,
    /// Decoupled weight decay. Default: paper, 0.01.
    pub weight_decay: f64,
    /// Longest gradient over all parameters of the network; longer ones are scaled down; 0 = no
    /// clipping. Default: paper, 1.
    pub max_grad_norm: f64,
}

impl Default for AdamWRecipe {
    fn default() -> Self {
        Self {
            lr: 1e-6,
            warmup: 0.0,
            decay: Decay::Constant,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            max_grad_norm: 1.0,
        }
    }
}

/// The optimizers of the phases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimRecipe {
    /// KD and GKD; also the pretrain and encoder stages.
    pub distill: AdamWRecipe,
    /// The policy in RL.
    pub actor: AdamWRecipe,
    /// The value network in RL.
    pub critic: AdamWRecipe,
}

impl Default for OptimRecipe {
    fn default() -> Self {
        Self {
            distill: AdamWRecipe { lr: 1e-4, decay: Decay::Cosine, ..AdamWRecipe::default() },
            actor: AdamWRecipe { lr: 1e-6, warmup: 0.285, ..AdamWRecipe::default() },
            critic: AdamWRecipe { lr: 1e-5, warmup: 0.015, ..AdamWRecipe::default() },
        }
    }
}
