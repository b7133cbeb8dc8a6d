//! The recipe: one typed tree, every field with meaning, unit, default and paper value.
use crate::{engine::Sampling, tokenizer::chat::ChatTemplate};
use serde::{Deserialize, Serialize};

/// Which phases a run goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Teacher episodes -> KD -> RL -> evaluation of student, teacher, KD and DGPO.
    Pipeline,
    /// Only the distillation phase (on teacher episodes or on trajectories from a file).
    Distill,
    /// Only the RL phase, from `model.student`.
    Rl,
    /// Language modelling on passages and trajectories (how the base student is made).
    Pretrain,
    /// Contrastive training of a retrieval encoder.
    Encoder,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    pub stage: Stage,
    pub model: ModelRecipe,
    pub data: DataRecipe,
    pub retriever: RetrieverRecipe,
    pub episode: EpisodeRecipe,
    pub demos: DemosRecipe,
    pub distill: DistillRecipe,
    pub rl: RlRecipe,
    pub kl: KlRecipe,
    pub gae: GaeRecipe,
    pub optim: OptimRecipe,
    pub pretrain: PretrainRecipe,
    pub encoder: EncoderRecipe,
    pub eval: EvalRecipe,
    pub run: RunRecipe,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelRecipe {
    /// Folder, `owner/name` in the Hugging Face cache, `builtin:NAME`, or `random:FOLDER` (weights drawn from run.seed for the config.json there).
    pub student: String,
    pub teacher: String,
    /// Folder with tokenizer.json; empty = the student's folder.
    pub tokenizer: String,
    pub chat_template: ChatTemplate,
    /// "f32" | "bf16" | "f16": parameters in forward and backward; master weights and optimizer state are f32 whatever this says.
    pub dtype: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataRecipe {
    /// Question files, shuffled together. `${NAME}` in paths is replaced by an environment variable.
    pub train: Vec<String>,
    /// Question files of the evaluation; each file is one data set of the report.
    pub test: Vec<String>,
    /// Agent episodes made elsewhere (JSON Lines with `response`), used by the distill and pretrain stages instead of a teacher.
    pub trajectories: Vec<String>,
    /// Passages (JSON Lines with `id` and `contents`).
    pub corpus: String,
    /// At most this many training questions / test questions a file (0 = all).
    pub max_train: usize,
    pub max_test: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetrieverRecipe {
    /// "dense" | "bm25" | "remote".
    pub kind: String,
    /// "auto" (exact below 50,000 passages, HNSW above) | "exact" | "hnsw".
    pub search: String,
    /// BERT encoder folder (E5).
    pub encoder: String,
    /// Folder of a built index; empty = built under the run directory.
    pub index: String,
    /// Address of a `/retrieve` server for kind = "remote".
    pub url: String,
    pub timeout_s: f64,
    pub max_retries: usize,
    pub top_k: usize,
    /// HNSW: links a node (M).
    pub hnsw_m: usize,
    pub hnsw_ef_construction: usize,
    pub hnsw_ef_search: usize,
    pub query_prefix: String,
    pub passage_prefix: String,
    /// Tokens of a query or passage (paper: 256).
    pub max_tokens: usize,
    /// Padded tokens of an encoder batch.
    pub batch_tokens: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EpisodeRecipe {
    /// The user message; `{question}` is replaced.
    pub instruction: String,
    /// Turns in which a search is executed; one more turn follows without search. Paper: 4.
    pub max_turns: usize,
    /// Tokens the agent may write in one turn. Paper: 500.
    pub max_response_length: usize,
    pub max_obs_length: usize,
    pub max_start_length: usize,
    /// Prompt + response, tokens. Paper: 4096.
    pub max_prompt_length: usize,
    pub temperature: f64,
    pub top_p: f64,
    pub top_k: usize,
    /// Rows decoded together.
    pub max_rows: usize,
}
impl EpisodeRecipe {
    pub fn sampling(&self) -> Sampling {
        Sampling { temperature: self.temperature, top_p: self.top_p, top_k: self.top_k }
    }
}

/// Teacher-generated outputs (method §3.1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DemosRecipe {
    /// Questions the teacher plays (sampled without replacement, epochs run on).
    pub n_episodes: usize,
    /// Keep at most this many correct ones (0 = all).
    pub max_kept: usize,
    pub temperature: f64,
}

/// KD on teacher-generated outputs (method §3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DistillRecipe {
    pub ce_weight: f64,
    /// The paper's lambda. 0 needs no teacher.
    pub kl_weight: f64,
    pub temperature: f64,
    pub epochs: usize,
    /// Steps; 0 = epochs decide.
    pub steps: usize,
    /// Episodes a step. Paper: 64.
    pub batch: usize,
    pub micro_batch_tokens: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RlRecipe {
    pub steps: usize,
    /// Episodes a step. Paper: 512.
    pub questions_per_step: usize,
    /// Episodes an optimizer step. Paper: 256.
    pub mini_batch: usize,
    /// Padded tokens of a micro-batch.
    pub micro_batch_tokens: usize,
    /// Passes over the episodes. Paper: 1.
    pub epochs: usize,
    pub clip_ratio: f64,
    pub clip_value: f64,
    pub entropy_coef: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlMode {
    Selective,
    Uniform,
    None,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlReference {
    Teacher,
    Initial,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlEstimator {
    K1,
    Abs,
    Mse,
    K3,
    Full,
    K1Reversed,
    K3Reversed,
    FullReversed,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlPlacement {
    Reward,
    Loss,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KlRecipe {
    pub mode: KlMode,
    pub reference: KlReference,
    pub estimator: KlEstimator,
    #[serde(rename = "in")]
    pub placement: KlPlacement,
    /// beta
    pub coef: f64,
    /// Adaptive beta: target KL a token (0 = fixed).
    pub target: f64,
    /// Adaptive beta: horizon in episodes.
    pub horizon: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GaeOver {
    Response,
    Agent,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GaeRecipe {
    pub gamma: f64,
    pub lambda: f64,
    pub over: GaeOver,
    pub whiten: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    Constant,
    Cosine,
    Linear,
}

/// AdamW of one network in one phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWRecipe {
    pub lr: f64,
    /// Share of the steps of the phase over which lr rises linearly from 0.
    pub warmup: f64,
    pub decay: Decay,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// Global gradient norm (0 = no clipping).
    pub max_grad_norm: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimRecipe {
    pub distill: AdamWRecipe,
    pub actor: AdamWRecipe,
    pub critic: AdamWRecipe,
}

/// Language modelling on `data.corpus` and `data.trajectories` (the base student of the tiny world).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PretrainRecipe {
    pub steps: usize,
    pub batch: usize,
    /// Use only this many trajectories (0 = all).
    pub max_trajectories: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EncoderRecipe {
    pub steps: usize,
    pub batch: usize,
    pub temperature: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalRecipe {
    /// Evaluate every n RL steps on `max_test` questions (0 = only at the end).
    pub every: usize,
    pub temperature: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunRecipe {
    /// Run directory is runs/NAME; empty = made from the recipe's file name and the seed.
    pub name: String,
    pub seed: u64,
    /// Checkpoint every n steps of a phase (0 = only at a phase's end).
    pub save_every: usize,
    /// Checkpoints kept a phase (0 = all).
    pub keep: usize,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            stage: Stage::Pipeline,
            model: Default::default(),
            data: Default::default(),
            retriever: Default::default(),
            episode: Default::default(),
            demos: Default::default(),
            distill: Default::default(),
            rl: Default::default(),
            kl: Default::default(),
            gae: Default::default(),
            optim: Default::default(),
            pretrain: Default::default(),
            encoder: Default::default(),
            eval: Default::default(),
            run: Default::default(),
        }
    }
}
macro_rules! placeholder_default { ($($t:ty),*) => { $(impl Default for $t { fn default() -> Self { todo!() } })* } }
placeholder_default!(
    ModelRecipe,
    DataRecipe,
    RetrieverRecipe,
    EpisodeRecipe,
    DemosRecipe,
    DistillRecipe,
    RlRecipe,
    KlRecipe,
    GaeRecipe,
    AdamWRecipe,
    OptimRecipe,
    PretrainRecipe,
    EncoderRecipe,
    EvalRecipe,
    RunRecipe
);
