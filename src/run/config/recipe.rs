//! The recipe: one typed tree, every field with meaning, unit and the effect of raising it.
//!
//! `configs/base.toml` alone states the defaults, and a recipe file only what differs; what paper
//! and scripts have is in method §14. [`super::load()`] reads a recipe, [`super::check`] holds the
//! rules between fields, [`super::plan`] computes what a run with it will do. What a run learns
//! from its data lies in [`super::objective`] and [`dgpo_core::settings`].
//!
//! No field changes meaning with another one, and no environment variable changes a result
//! (`${NAME}` and `~` in paths say where files lie, nothing else).
use super::{
    choice::{FloatType, RetrieverKind, Search},
    objective::{DemosRecipe, EncoderRecipe, GkdRecipe, PretrainRecipe},
    stage::Stage,
};
use dgpo_core::{
    default_from_base,
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Which phases the run goes through.
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
#[serde(deny_unknown_fields)]
pub struct ModelRecipe {
    /// The model being trained: a folder, `owner/name` in the Hugging Face cache, `builtin:NAME`,
    /// or `random:FOLDER` (weights drawn from `run.seed` for the config.json there).
    pub student: String,
    /// The frozen model that writes demonstrations and serves as the KL reference, named as
    /// `student`; empty = none. It must share the student's tokenizer.
    pub teacher: String,
    /// Folder with tokenizer.json; empty = the student's folder.
    pub tokenizer: String,
    /// Format of the prompts: `auto` (the template in the folder of the tokenizer or of
    /// the student), or a built-in format: `qwen2_5`, `llama3`, `llama3_1`, `llama3_2`, `plain`.
    pub chat_template: ChatTemplate,
    /// The day that templates with a date are told, so that prompts do not change with the
    /// calendar.
    pub template_date: String,
    /// `f32`, `bf16` or `f16`: the parameters in forward and backward; master weights and optimizer
    /// state are f32 whatever this says. `f32` doubles the memory of parameters and is no slower on
    /// a CPU.
    pub dtype: FloatType,
    /// Keep only the input of each block for the backward pass and compute the rest again: the
    /// activations of one block at a time, for about a third more compute. Gradients are equal up
    /// to rounding. For models where a micro-batch does not fit.
    pub recompute: bool,
}

impl ModelRecipe {
    /// Activations that an update keeps of its forward pass.
    pub fn activations(&self) -> Activations {
        if self.recompute { Activations::Recomputed } else { Activations::Kept }
    }
}

/// Questions, passages and ready-made episodes. `${NAME}` in a path is replaced by that environment
/// variable; relative paths start at the current directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRecipe {
    /// Question files of training, shuffled together.
    pub train: Vec<String>,
    /// Question files of the evaluation; each file is one data set of the report.
    pub test: Vec<String>,
    /// Agent episodes made elsewhere (JSON Lines with `response`, or as `dgpo demos` writes them),
    /// used by the distill and pretrain stages instead of a teacher's.
    pub trajectories: Vec<String>,
    /// Passages (JSON Lines with `id` and `contents`, or `id`, `title` and `text`).
    pub corpus: String,
    /// At most this many training questions a file; 0 = all. Raising it brings more variety.
    pub max_train: usize,
    /// At most this many test questions a file; 0 = all. Raising it makes the figures less noisy
    /// and the evaluation longer.
    pub max_test: usize,
    /// Only the first so many passages; 0 = all. For a quick look at a large corpus.
    pub max_passages: usize,
}

/// Settings of retrieval (method §6).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetrieverRecipe {
    /// `dense` (encoder and vector search), `bm25` (words) or `remote` (a `/retrieve` server).
    pub kind: RetrieverKind,
    /// Vector search: `exact`, `hnsw`, or `auto` (exact below 50,000 passages, HNSW above).
    pub search: Search,
    /// BERT encoder for `dense`, named as `model.student`.
    pub encoder: String,
    /// Folder of a built index; empty = built under the run directory.
    pub index: String,
    /// Address for `remote`, e.g. `http://127.0.0.1:8000/retrieve`. One with a user and a password
    /// is given by an environment variable alone, `${RETRIEVER_URL}`, which stays as it is here.
    pub url: String,
    /// `remote`: seconds until a request counts as failed. Raising it tolerates slower servers and
    /// delays the error.
    pub timeout_s: f64,
    /// `remote`: attempts after the first, with growing pauses, before a request counts as failed.
    pub max_retries: usize,
    /// Seconds before a failed request, and then a step that lost searches, is tried again; each
    /// pause is twice the one before.
    pub first_pause_s: f64,
    /// `remote`: queries of one request at most. One that the server refuses is halved until only
    /// the refused queries are lost.
    pub batch_queries: usize,
    /// Largest share of the episodes that searched which a step, a block of the teacher's episodes
    /// or an evaluation may lose to the retriever. Beyond it they are played again. Raising it
    /// trains on what is left, which searches less: the student learns not to.
    pub max_lost_share: f64,
    /// Seconds for which that is tried before the run ends with its checkpoint. Raising it outlasts
    /// longer outages.
    pub max_outage_s: f64,
    /// Passages a search returns. Raising it finds more and lengthens every observation.
    pub top_k: usize,
    /// HNSW: links a node (M). Raising it improves recall; memory is about 8·M bytes a passage.
    pub hnsw_m: usize,
    /// HNSW: candidates looked at while building. Raising it improves recall; build time grows in
    /// proportion.
    pub hnsw_ef_construction: usize,
    /// HNSW: candidates looked at in a search. Raising it improves recall; search time grows in
    /// proportion.
    pub hnsw_ef_search: usize,
    /// Text before a query for the encoder. `auto`: the prompt that the encoder's folder declares
    /// (`config_sentence_transformers.json`); where it declares none, E5's `"query: "`, which is
    /// the paper's, or nothing for an encoder with CLS pooling. Another value wins over a declared
    /// one, with a warning.
    pub query_prefix: String,
    /// Text before a passage for the encoder; `auto` as for `query_prefix`, E5's is `"passage: "`.
    pub passage_prefix: String,
    /// Tokens of a query or passage the encoder sees.
    pub max_tokens: usize,
    /// Padded tokens of an encoder batch. Raising it costs memory and changes no result.
    pub batch_tokens: usize,
}

/// When and how models are evaluated (method §7).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalRecipe {
    /// Evaluate every n steps of RL and of GKD; 0 = only at the end of the run. A smaller n gives a
    /// finer curve and costs time.
    pub every: usize,
    /// Sampling temperature.
    pub temperature: f64,
    /// Measure the capabilities one by one too (method §8): every annotated question twice more,
    /// with its gold passages given, and every question as a query. `true` makes the final
    /// evaluation up to three times as long; a `dgpo eval --arcap` sets it.
    pub arcap: bool,
}

/// The run itself: its name, seed and checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRecipe {
    /// The run directory is runs/NAME; empty = made from the recipe's file name and the seed.
    pub name: String,
    /// Every random number of the run derives from it.
    pub seed: u64,
    /// Checkpoint every n steps of a phase; 0 = only at a phase's end. A smaller n loses less at a
    /// crash and writes more.
    pub save_every: usize,
    /// Checkpoints kept of each phase; 0 = all.
    pub keep: usize,
}

default_from_base! {
    Recipe = "",
    ModelRecipe = "model",
    DataRecipe = "data",
    RetrieverRecipe = "retriever",
    EvalRecipe = "eval",
    RunRecipe = "run",
    DemosRecipe = "demos",
    GkdRecipe = "gkd",
    PretrainRecipe = "pretrain",
    EncoderRecipe = "encoder",
}
