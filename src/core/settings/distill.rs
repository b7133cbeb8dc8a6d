//! Settings of distillation: losses, schedules and sizes of KD, the parts of the recipe after
//! which [`crate::algo::distill`] computes.
use serde::{Deserialize, Serialize};

/// Divergence of the distillation loss between teacher and student (method §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DistillDivergence {
    /// KL(teacher ‖ student)
    ForwardKl,
    /// KL(student ‖ teacher)
    ReverseKl,
    /// Generalised Jensen-Shannon with `distill.jsd_beta`.
    Jsd,
    /// KL(teacher ‖ `skew_alpha` · teacher + (1 − `skew_alpha`) · student): DistiLLM.
    SkewKl,
    /// KL(student ‖ `skew_alpha` · student + (1 − `skew_alpha`) · teacher): DistiLLM's other half.
    SkewReverseKl,
    /// (1 − `jsd_beta`) · KL(teacher ‖ student) + `jsd_beta` · KL(student ‖ teacher).
    SymmetricKl,
    /// ½ Σ |student − teacher|
    TotalVariation,
    /// KL(p_t ‖ student), p_t moving from the student's distribution to the teacher's by
    /// [`TaidRecipe`].
    Taid,
}

/// KD on teacher-generated outputs (method §3.2, §5): `ce_weight · CE + kl_weight · D(teacher,
/// student)` over agent tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistillRecipe {
    /// Weight of the cross-entropy on the episode's own tokens.
    pub ce_weight: f64,
    /// The paper's λ: weight of the divergence from the teacher's distribution; 0 needs no teacher.
    pub kl_weight: f64,
    /// `forward_kl`, `reverse_kl`, `jsd`, `skew_kl`, `skew_reverse_kl`, `symmetric_kl`,
    /// `total_variation` or `taid`.
    pub divergence: DistillDivergence,
    /// `jsd`, `symmetric_kl`: β, 0 = forward KL, 1 = reverse KL.
    pub jsd_beta: f64,
    /// `skew_kl`: the teacher's share of the mixture; `skew_reverse_kl`: the student's.
    pub skew_alpha: f64,
    /// TAID's schedule.
    pub taid: TaidRecipe,
    /// DistiLLM's student outputs.
    pub student_outputs: StudentOutputsRecipe,
    /// Divides teacher and student logits in the KL. Raising it flattens both distributions.
    pub temperature: f64,
    /// Passes over the episodes, unless `steps` is set.
    pub epochs: usize,
    /// Optimizer steps; 0 = `epochs` decide.
    pub steps: usize,
    /// Episodes a step. Raising it gives steadier gradients and fewer steps an epoch.
    pub batch: usize,
    /// Padded tokens of a micro-batch. Raising it costs memory and changes no result.
    pub micro_batch_tokens: usize,
}

/// Schedule by which `divergence = "taid"` moves its target from student to teacher (method §5).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaidRecipe {
    /// The teacher's share of the logits at the start.
    pub t_start: f64,
    /// And at the end.
    pub t_end: f64,
    /// Size of the adaptive increments. Raising it reaches the teacher sooner while the loss falls.
    pub alpha: f64,
    /// Memory of the loss's relative change.
    pub beta: f64,
}

/// DistiLLM's adaptive mix of teacher's and student's episodes. A step learns from the student's
/// with probability φ: φ starts at 0 and rises by `increment` whenever the cross-entropy on
/// held-out teacher episodes has risen by `loss_eps`. Such a step plays new episodes with
/// probability φ · (1 − step/steps) (and as long as the replay buffer is not full), else it draws
/// old ones from the buffer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudentOutputsRecipe {
    /// True if there are any.
    pub is_adaptive: bool,
    /// φ at the start.
    pub initial_share: f64,
    /// Step by which φ rises.
    pub increment: f64,
    /// By how much the held-out loss must have risen.
    pub loss_eps: f64,
    /// Steps from one look at the held-out loss to the next.
    pub validate_every: usize,
    /// Teacher episodes held out of training for it, at most half of them.
    pub n_validation: usize,
    /// Episodes the replay buffer holds; the oldest fall out. Raising it reuses older episodes.
    pub capacity: usize,
}

impl StudentOutputsRecipe {
    /// Teacher episodes that are held out of `n_episodes`: never more than half of them.
    pub fn n_held_out(&self, n_episodes: usize) -> usize {
        if self.is_adaptive { self.n_validation.min(n_episodes / 2) } else { 0 }
    }
}
