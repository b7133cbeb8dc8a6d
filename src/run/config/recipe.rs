//! The recipe: one typed tree, every field with meaning, unit, default, paper value and the effect
//! of raising it.
//!
//! The `Default` of every part is the published DGPO run wherever the paper or its scripts state a
//! value ("default: paper" below); a field the paper is silent on says so. A recipe file therefore
//! states only what differs. [`super::load`] reads it, [`super::check`] holds the rules between
//! fields, [`super::plan`] computes what a run with it will do. What a run learns from its data
//! lies in [`super::objective`] and [`dgpo_core::settings`].
//!
//! No field changes meaning with another one, and no environment variable changes a result
//! (`${NAME}` and `~` in paths say where files lie, nothing else).
use super::{
    objective::{DemosRecipe, EncoderRecipe, GkdRecipe, PretrainRecipe},
    stage::Stage,
};
use dgpo_core::{
    settings::{
        ChatTemplate, DistillRecipe, EpisodeRecipe, GaeRecipe, GuardsRecipe, KlRecipe, OptimRecipe,
        RlRecipe,
    },
    trainer::{rl::RlSettings, update::Activations},
};
use serde::{Deserialize, Serialize};

/// The value of `retriever.query_prefix` and `passage_prefix` that leaves the choice to the
/// encoder's folder.
pub const AUTO_PREFIX: &str = "auto";

/// Everything that decides what a run computes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Which phases the run goes through. Default: `pipeline`.
    pub stage: Stage,
    pub model: ModelRecipe,
    pub data: DataRecipe,
    pub retriever: RetrieverRecipe,
    pub episode: EpisodeRecipe,
    pub demos: DemosRecipe,
    pub distill: DistillRecipe,
    pub gkd: GkdRecipe,
    pub rl: RlRecipe,
    pub kl: KlRecipe,
    pub gae: GaeRecipe,
    pub optim: OptimRecipe,
    pub guards: GuardsRecipe,
    pub pretrain: PretrainRecipe,
    pub encoder: EncoderRecipe,
    pub eval: EvalRecipe,
    pub run: RunRecipe,
}

impl Recipe {
    /// The parts that a step of RL reads.
    pub fn rl_settings(&self) -> RlSettings<'_> {
        RlSettings {
            rl: &self.rl,
            kl: &self.kl,
            gae: &self.gae,
            optim: &self.optim,
            temperature: self.episode.temperature,
            activations: self.model.activations(),
        }
    }
}

/// The networks and their tokenizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelRecipe {
    /// The model being trained: a folder, `owner/name` in the Hugging Face cache, `builtin:NAME`,
    /// or `random:FOLDER` (weights drawn from `run.seed` for the config.json there). Default:
    /// paper, `Qwen/Qwen2.5-0.5B-Instruct`. A larger one learns more and costs in proportion.
    pub student: String,
    /// The frozen model that writes demonstrations and serves as the KL reference, named as
    /// `student`; empty = none. Default: paper's main run, the 3B Search-R1 checkpoint. It must
    /// share the student's tokenizer.
    pub teacher: String,
    /// Folder with tokenizer.json; empty = the student's folder. Default: empty.
    pub tokenizer: String,
    /// How a question becomes a prompt: `auto` (the template in the folder of the tokenizer or of
    /// the student), or a built-in format: `qwen2_5`, `llama3`, `llama3_1`, `llama3_2`, `plain`.
    /// Default: `auto`, which for the default student is what `qwen2_5` writes.
    pub chat_template: ChatTemplate,
    /// The day that templates with a date are told, so that prompts do not change with the
    /// calendar. Default: `26 Jul 2024`, as Llama 3.1's template has it where it is told none.
    pub template_date: String,
    /// `f32`, `bf16` or `f16`: the parameters in forward and backward; master weights and optimizer
    /// state are f32 whatever this says. Default: paper, `bf16`. `f32` doubles the memory of
    /// parameters and is no slower on a CPU.
    pub dtype: String,
    /// Keep only the input of each block for the backward pass and compute the rest again: the
    /// activations of one block at a time, for about a third more compute. Gradients are equal up
    /// to rounding. Default: own choice, `false`; turn it on where a micro-batch does not fit.
    pub recompute: bool,
}

impl ModelRecipe {
    /// What an update keeps of its forward pass.
    pub fn activations(&self) -> Activations {
        if self.recompute { Activations::Recomputed } else { Activations::Kept }
    }
}

impl Default for ModelRecipe {
    fn default() -> Self {
        Self {
            student: "Qwen/Qwen2.5-0.5B-Instruct".into(),
            teacher: "omron-sinicx/SearchR1-ppo-qwen2.5-3b-instruct".into(),
            tokenizer: String::new(),
            chat_template: ChatTemplate::Auto,
            template_date: "26 Jul 2024".into(),
            dtype: "bf16".into(),
            recompute: false,
        }
    }
}

/// Questions, passages and ready-made episodes. `${NAME}` in a path is replaced by that environment
/// variable; relative paths start at the current directory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataRecipe {
    /// Question files of training, shuffled together. Default: none; the paper trains on NQ and
    /// HotpotQA.
    pub train: Vec<String>,
    /// Question files of the evaluation; each file is one data set of the report. Default: none;
    /// the paper evaluates on seven.
    pub test: Vec<String>,
    /// Agent episodes made elsewhere (JSON Lines with `response`, or as `dgpo demos` writes them),
    /// used by the distill and pretrain stages instead of a teacher's. Default: none.
    pub trajectories: Vec<String>,
    /// Passages (JSON Lines with `id` and `contents`, or `id`, `title` and `text`). Default: none;
    /// the paper searches Wikipedia 2018.
    pub corpus: String,
    /// At most this many training questions a file; 0 = all. Default: 0. Raising it brings more
    /// variety.
    pub max_train: usize,
    /// At most this many test questions a file; 0 = all. Default: 0. Raising it makes the figures
    /// less noisy and the evaluation longer.
    pub max_test: usize,
    /// Only the first so many passages; 0 = all. Default: 0. For a quick look at a large corpus.
    pub max_passages: usize,
}

/// How a query finds passages (method §6).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetrieverRecipe {
    /// `dense` (encoder and vector search), `bm25` (words) or `remote` (a `/retrieve` server).
    /// Default: paper, `dense`.
    pub kind: String,
    /// Vector search: `exact`, `hnsw`, or `auto` (exact below 50,000 passages, HNSW above).
    /// Default: `auto`; the paper used HNSW.
    pub search: String,
    /// BERT encoder for `dense`, named as `model.student`. Default: paper, `intfloat/e5-base-v2`.
    pub encoder: String,
    /// Folder of a built index; empty = built under the run directory. Default: empty.
    pub index: String,
    /// Address for `remote`, e.g. `http://127.0.0.1:8000/retrieve`. One with a user and a password
    /// is given by an environment variable alone, `${RETRIEVER_URL}`, which stays as it is here.
    /// Default: empty.
    pub url: String,
    /// `remote`: seconds until a request counts as failed. Default: 30. Raising it tolerates slower
    /// servers and delays the error.
    pub timeout_s: f64,
    /// `remote`: attempts after the first, with growing pauses, before a request counts as failed.
    /// Default: 3.
    pub max_retries: usize,
    /// Seconds before a failed request, and then a step that lost searches, is tried again; each
    /// pause is twice the one before. Default: 0.5.
    pub first_pause_s: f64,
    /// `remote`: queries of one request at most. One that the server refuses is halved until only
    /// the refused queries are lost. Default: 512.
    pub batch_queries: usize,
    /// Largest share of the episodes that searched which a step, a block of the teacher's episodes
    /// or an evaluation may lose to the retriever. Beyond it they are played again. Default: 0.
    /// Raising it trains on what is left, which searches less: the student learns not to.
    pub max_lost_share: f64,
    /// Seconds for which that is tried before the run ends with its checkpoint. Default: 3,600.
    /// Raising it outlasts longer outages.
    pub max_outage_s: f64,
    /// Passages a search returns. Default: paper, 3. Raising it finds more and lengthens every
    /// observation.
    pub top_k: usize,
    /// HNSW: links a node (M). Default: 32. Raising it improves recall; memory is about 8·M bytes a
    /// passage.
    pub hnsw_m: usize,
    /// HNSW: candidates looked at while building. Default: 200. Raising it improves recall; build
    /// time grows in proportion.
    pub hnsw_ef_construction: usize,
    /// HNSW: candidates looked at in a search. Default: 128. Raising it improves recall; search
    /// time grows in proportion.
    pub hnsw_ef_search: usize,
    /// Text before a query for the encoder. Default: `auto`, the prompt that the encoder's folder
    /// declares (`config_sentence_transformers.json`); where it declares none, E5's `"query: "`,
    /// which is the paper's, or nothing for an encoder with CLS pooling. Another value wins over a
    /// declared one, with a warning.
    pub query_prefix: String,
    /// Text before a passage for the encoder. Default: `auto`, as for `query_prefix`; E5's is
    /// `"passage: "`.
    pub passage_prefix: String,
    /// Tokens of a query or passage the encoder sees. Default: paper, 256.
    pub max_tokens: usize,
    /// Padded tokens of an encoder batch. Default: 16,384. Raising it costs memory and changes no
    /// result.
    pub batch_tokens: usize,
}

impl Default for RetrieverRecipe {
    fn default() -> Self {
        Self {
            kind: "dense".into(),
            search: "auto".into(),
            encoder: "intfloat/e5-base-v2".into(),
            index: String::new(),
            url: String::new(),
            timeout_s: 30.0,
            max_retries: 3,
            first_pause_s: 0.5,
            batch_queries: 512,
            max_lost_share: 0.0,
            max_outage_s: 3600.0,
            top_k: 3,
            hnsw_m: 32,
            hnsw_ef_construction: 200,
            hnsw_ef_search: 128,
            query_prefix: AUTO_PREFIX.into(),
            passage_prefix: AUTO_PREFIX.into(),
            max_tokens: 256,
            batch_tokens: 16_384,
        }
    }
}

/// When and how models are evaluated (method §7).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalRecipe {
    /// Evaluate every n steps of RL and of GKD; 0 = only at the end of the run. Default: 0. A
    /// smaller n gives a finer curve and costs time.
    pub every: usize,
    /// Sampling temperature. Default: paper, 0 (greedy).
    pub temperature: f64,
    /// Measure the capabilities one by one too (method §8): every annotated question twice more,
    /// with its gold passages given, and every question as a query. Default: false. `true` makes
    /// the final evaluation up to three times as long; a `dgpo eval --arcap` sets it.
    pub arcap: bool,
}

/// The run itself: its name, seed and checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunRecipe {
    /// The run directory is runs/NAME; empty = made from the recipe's file name and the seed.
    /// Default: empty.
    pub name: String,
    /// Every random number of the run derives from it. Default: 0.
    pub seed: u64,
    /// Checkpoint every n steps of a phase; 0 = only at a phase's end. Default: 50. A smaller n
    /// loses less at a crash and writes more.
    pub save_every: usize,
    /// Checkpoints kept of each phase; 0 = all. Default: 3.
    pub keep: usize,
}

impl Default for RunRecipe {
    fn default() -> Self {
        Self { name: String::new(), seed: 0, save_every: 50, keep: 3 }
    }
}
