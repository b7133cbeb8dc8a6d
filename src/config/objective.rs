//! What a run learns, and how: the parts of the recipe behind the equations of KD and DGPO.
//!
//! As in [`super::recipe`], defaults are the paper's; the equations themselves are in
//! `crate::algo`, each beside the field names used here.
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

/// What the distillation loss measures between teacher and student (method §5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DistillDivergence {
    /// KL(teacher ‖ student)
    #[default]
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
#[serde(deny_unknown_fields, default)]
pub struct DistillRecipe {
    /// Weight of the cross-entropy on the episode's own tokens. Default: paper's equation, 1; its
    /// script has 0.
    pub ce_weight: f64,
    /// The paper's λ: weight of the divergence from the teacher's distribution; 0 needs no teacher.
    /// Default: paper, 1.
    pub kl_weight: f64,
    /// `forward_kl`, `reverse_kl`, `jsd`, `skew_kl`, `skew_reverse_kl`, `symmetric_kl`,
    /// `total_variation` or `taid`. Default: paper, `forward_kl`.
    pub divergence: DistillDivergence,
    /// `jsd`, `symmetric_kl`: β, 0 = forward KL, 1 = reverse KL. Default: 0.5.
    pub jsd_beta: f64,
    /// `skew_kl`: the teacher's share of the mixture; `skew_reverse_kl`: the student's. Default:
    /// paper, 0.1.
    pub skew_alpha: f64,
    pub taid: TaidRecipe,
    pub student_outputs: StudentOutputsRecipe,
    /// Divides teacher and student logits in the KL. Default: paper, 1. Raising it flattens both
    /// distributions.
    pub temperature: f64,
    /// Passes over the episodes, unless `steps` is set. Default: paper, 5.
    pub epochs: usize,
    /// Optimizer steps; 0 = `epochs` decide. Default: 0.
    pub steps: usize,
    /// Episodes a step. Default: paper, 64. Raising it gives steadier gradients and fewer steps an
    /// epoch.
    pub batch: usize,
    /// Padded tokens of a micro-batch. Default: 16,384. Raising it costs memory and changes no
    /// result.
    pub micro_batch_tokens: usize,
}

impl Default for DistillRecipe {
    fn default() -> Self {
        Self {
            ce_weight: 1.0,
            kl_weight: 1.0,
            divergence: DistillDivergence::ForwardKl,
            jsd_beta: 0.5,
            skew_alpha: 0.1,
            taid: TaidRecipe::default(),
            student_outputs: StudentOutputsRecipe::default(),
            temperature: 1.0,
            epochs: 5,
            steps: 0,
            batch: 64,
            micro_batch_tokens: 16_384,
        }
    }
}

/// How `divergence = "taid"` moves its target from student to teacher (method §5).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TaidRecipe {
    /// The teacher's share of the logits at the start. Default: paper, 0.4.
    pub t_start: f64,
    /// And at the end. Default: paper, 1.
    pub t_end: f64,
    /// Size of the adaptive increments. Default: paper, 5e-4. Raising it reaches the teacher sooner
    /// while the loss falls.
    pub alpha: f64,
    /// Memory of the loss's relative change. Default: paper, 0.99.
    pub beta: f64,
}

impl Default for TaidRecipe {
    fn default() -> Self {
        Self { t_start: 0.4, t_end: 1.0, alpha: 5e-4, beta: 0.99 }
    }
}

/// DistiLLM's adaptive mix of teacher's and student's episodes. A step learns from the student's
/// with probability φ: φ starts at 0 and rises by `increment` whenever the cross-entropy on
/// held-out teacher episodes has risen by `loss_eps`. Such a step plays new episodes with
/// probability φ · (1 − step/steps) (and as long as the replay buffer is not full), else it draws
/// old ones from the buffer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StudentOutputsRecipe {
    /// Whether there are any. Default: false; DistiLLM: true.
    pub is_adaptive: bool,
    /// φ at the start. Default: the published script's, 0.
    pub initial_share: f64,
    /// What φ rises by. Default: the published script's, 0.1.
    pub increment: f64,
    /// By how much the held-out loss must have risen. Default: the published script's, 0.1.
    pub loss_eps: f64,
    /// Steps from one look at the held-out loss to the next. Default: own choice, 50.
    pub validate_every: usize,
    /// Teacher episodes held out of training for it, at most half of them. Default: own choice, 64.
    pub n_validation: usize,
    /// Episodes the replay buffer holds; the oldest fall out. Default: the published script's,
    /// 1,000. Raising it reuses older episodes.
    pub capacity: usize,
}

impl StudentOutputsRecipe {
    /// Teacher episodes that are held out of `n_episodes`: never more than half of them.
    pub fn n_held_out(&self, n_episodes: usize) -> usize {
        if self.is_adaptive { self.n_validation.min(n_episodes / 2) } else { 0 }
    }
}

impl Default for StudentOutputsRecipe {
    fn default() -> Self {
        Self {
            is_adaptive: false,
            initial_share: 0.0,
            increment: 0.1,
            loss_eps: 0.1,
            validate_every: 50,
            n_validation: 64,
            capacity: 1000,
        }
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
