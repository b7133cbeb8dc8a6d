//! Other sources and ways of learning: the parts of the recipe beside those of the step
//! (`dgpo_core::settings`).
use serde::{Deserialize, Serialize};

/// Teacher-generated outputs (method §3.1): the teacher plays training questions, correct episodes
/// are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DemosRecipe {
    /// Questions the teacher plays (sampled without replacement; epochs run on). Raising it gives
    /// KD more episodes and costs teacher time in proportion.
    pub n_episodes: usize,
    /// Keep correct episodes only, the teacher's or those of `data.trajectories`. DistiLLM learns
    /// from all of them.
    pub only_correct: bool,
    /// Keep at most this many episodes; 0 = all. A small number makes a weak cold start.
    pub max_kept: usize,
    /// The teacher's sampling temperature. Raising it brings variety and fewer correct episodes.
    pub temperature: f64,
}

/// GKD, on-policy distillation (method §5): the student plays training questions, every agent token
/// is pulled towards the teacher by the generalised Jensen-Shannon divergence; there is no reward.
/// The optimizer is `optim.distill`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GkdRecipe {
    /// Steps: each plays and learns once.
    pub steps: usize,
    /// Questions a step, one episode each.
    pub questions_per_step: usize,
    /// Padded tokens of a micro-batch. Raising it costs memory and changes no result.
    pub micro_batch_tokens: usize,
    /// β of the divergence: 0 = forward KL, 1 = reverse KL.
    pub jsd_beta: f64,
    /// Divides teacher and student logits in the divergence.
    pub temperature: f64,
}

/// Language modelling on `data.corpus` and `data.trajectories` (the base student of the tiny
/// world). Not part of the paper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainRecipe {
    /// Optimizer steps. Raising it fits the text better.
    pub steps: usize,
    /// Texts a step.
    pub batch: usize,
    /// Use only this many trajectories of each file; 0 = all.
    pub max_trajectories: usize,
}

/// Contrastive training of a retrieval encoder (E5's InfoNCE with in-batch negatives). Not part of
/// the paper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderRecipe {
    /// Optimizer steps.
    pub steps: usize,
    /// Pairs a step; the other passages of the batch are the negatives. Raising it makes the task
    /// harder and the encoder better.
    pub batch: usize,
    /// Divides the similarities in the softmax. Lowering it weighs the hardest negatives more.
    pub temperature: f64,
}
