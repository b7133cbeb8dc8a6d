//! What else a run learns from, and in which ways: the parts of the recipe beside those of the step
//! (`dgpo_core::settings`).
use serde::{Deserialize, Serialize};

/// Teacher-generated outputs (method §3.1): the teacher plays training questions, correct episodes
/// are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DemosRecipe {
    /// Questions the teacher plays (sampled without replacement; epochs run on). Default: 169,615,
    /// the paper's training set once. Raising it gives KD more episodes and costs teacher time in
    /// proportion.
    pub n_episodes: usize,
    /// Keep correct episodes only, the teacher's or those of `data.trajectories`. Default: paper,
    /// true. DistiLLM learns from all of them.
    pub only_correct: bool,
    /// Keep at most this many episodes; 0 = all. Default: 0. A small number makes a weak cold
    /// start.
    pub max_kept: usize,
    /// The teacher's sampling temperature. Default: 1; the paper does not state it. Raising it
    /// brings variety and fewer correct episodes.
    pub temperature: f64,
}

impl Default for DemosRecipe {
    fn default() -> Self {
        Self { n_episodes: 169_615, only_correct: true, max_kept: 0, temperature: 1.0 }
    }
}

/// GKD, on-policy distillation (method §5): the student plays training questions, every agent token
/// is pulled towards the teacher by the generalised Jensen-Shannon divergence; there is no reward.
/// The optimizer is `optim.distill`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GkdRecipe {
    /// Steps: each plays and learns once. Default: 1,000, as RL; the paper is silent.
    pub steps: usize,
    /// Questions a step, one episode each. Default: 512, as RL: the student plays in both; the
    /// paper is silent.
    pub questions_per_step: usize,
    /// Padded tokens of a micro-batch. Default: 16,384. Raising it costs memory and changes no
    /// result.
    pub micro_batch_tokens: usize,
    /// β of the divergence: 0 = forward KL, 1 = reverse KL. Default: paper, 1.
    pub jsd_beta: f64,
    /// Divides teacher and student logits in the divergence. Default: 1.
    pub temperature: f64,
}

impl Default for GkdRecipe {
    fn default() -> Self {
        Self {
            steps: 1000,
            questions_per_step: 512,
            micro_batch_tokens: 16_384,
            jsd_beta: 1.0,
            temperature: 1.0,
        }
    }
}

/// Language modelling on `data.corpus` and `data.trajectories` (the base student of the tiny
/// world). Not part of the paper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PretrainRecipe {
    /// Optimizer steps. Default: 150. Raising it fits the text better.
    pub steps: usize,
    /// Texts a step. Default: 32.
    pub batch: usize,
    /// Use only this many trajectories of each file; 0 = all. Default: 200: just enough of the
    /// format that RL from scratch has something to reward.
    pub max_trajectories: usize,
}

impl Default for PretrainRecipe {
    fn default() -> Self {
        Self { steps: 150, batch: 32, max_trajectories: 200 }
    }
}

/// Contrastive training of a retrieval encoder (E5's InfoNCE with in-batch negatives). Not part of
/// the paper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EncoderRecipe {
    /// Optimizer steps. Default: 300.
    pub steps: usize,
    /// Pairs a step; the other passages of the batch are the negatives. Default: 64. Raising it
    /// makes the task harder and the encoder better.
    pub batch: usize,
    /// Divides the similarities in the softmax. Default: 0.01, E5's. Lowering it weighs the hardest
    /// negatives more.
    pub temperature: f64,
}

impl Default for EncoderRecipe {
    fn default() -> Self {
        Self { steps: 300, batch: 64, temperature: 0.01 }
    }
}
