//! The parts of a run.
use serde::{Deserialize, Serialize};
use std::fmt;

/// A part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Contrastive training of the retrieval encoder.
    Encoder,
    /// Language modelling.
    Pretrain,
    /// The teacher plays questions.
    Demos,
    /// Distillation on teacher episodes.
    Kd,
    /// Distillation on the student's own episodes.
    Gkd,
    /// PPO or GRPO.
    Rl,
    /// Evaluation on held-out questions.
    Eval,
}

impl Phase {
    /// Every phase, in the order of a run.
    pub const ALL: [Self; 7] =
        [Self::Encoder, Self::Pretrain, Self::Demos, Self::Kd, Self::Gkd, Self::Rl, Self::Eval];

    /// The name in metrics, checkpoint folders and progress lines, and of the model that the phase
    /// leaves.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Encoder => "encoder",
            Self::Pretrain => "pretrain",
            Self::Demos => "demos",
            Self::Kd => "kd",
            Self::Gkd => "gkd",
            Self::Rl => "rl",
            Self::Eval => "eval",
        }
    }

    /// The phase of a name, as [`Self::as_str`] writes it.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == name)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
