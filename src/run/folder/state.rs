//! Contents of a checkpoint, written and read back exactly.
//!
//! ```text
//! kd-step-000200/  state.json  model/ (Hugging Face folder)  optimizer.safetensors
//!                  replay.jsonl (DistiLLM)
//! rl-step-000050/  state.json  model/  optimizer.safetensors
//!                  critic/  critic_optimizer.safetensors (PPO)
//! ```
use super::checkpoint::WriteError;
use crate::{
    config::{Recipe, load::recorded_recipe},
    data::sampler::Sampler,
};
use burn::{module::Module, tensor::DType};
use dgpo_core::{
    algo::{distill::TaidSchedule, kl::KlController, student_outputs::StudentShare},
    settings::{AdamWRecipe, ChatTemplate},
    tokenizer::{CONFIG_FILE, JINJA_FILE},
    trainer::{
        guards::Guards,
        optimizer::{AdamW, OptimizerError},
    },
};
use dgpo_models::{
    Backend, ModelError,
    decoder::Decoder,
    files::write_file,
    heads::Critic,
    weights::{
        copy_side_files, load_critic, load_decoder, load_tensors, save_critic, save_decoder,
        save_tensors,
    },
};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Folder of the decoder inside a checkpoint; other tools can load it.
pub const MODEL_DIR: &str = "model";
const CRITIC_DIR: &str = "critic";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const CRITIC_OPTIMIZER_FILE: &str = "critic_optimizer.safetensors";

/// The state of a phase, without tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PhaseState {
    /// Steps done.
    pub step: usize,
    /// Steps of the whole phase.
    pub total: usize,
    pub sampler: Sampler,
    pub n_updates: u64,
    /// RL only: the critic's updates (0 where there is none) and the KL coefficient.
    pub critic_updates: u64,
    pub kl: Option<KlController>,
    pub n_skipped: usize,
    #[serde(default)]
    pub guards: Guards,
    /// Distillation only: schedules that change with the steps.
    #[serde(default)]
    pub distill: Option<DistillState>,
    /// Seconds of work of the whole run so far.
    pub wall_s: f64,
    /// The recipe of the run at this checkpoint, to compare with that of a resumed run.
    #[serde(default, deserialize_with = "recorded_recipe")]
    pub recipe: Option<Recipe>,
}

/// State of a distillation phase besides its network and its sampler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DistillState {
    /// TAID's schedule; with other divergences its start.
    pub taid: TaidSchedule,
    /// DistiLLM only. The replay buffer itself is a file of episodes beside the state.
    pub share: Option<StudentShare>,
    /// Questions that DistiLLM's student drew, counted as a cursor.
    pub questions: Option<Sampler>,
}

/// Errors of restoring the networks of a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("{}: {source}", path.display())]
    Optimizer { path: PathBuf, source: OptimizerError },
}

/// Files that make a saved model a complete Hugging Face folder.
#[derive(Clone, Debug)]
pub struct SideFiles {
    /// Folders that tokenizer and generation files are copied from; later ones win.
    pub folders: Vec<PathBuf>,
    /// The chat format that the recipe names; the folders' own under `auto`.
    pub chat_template: ChatTemplate,
}

/// Writes a decoder as a complete Hugging Face folder, whose chat template is the one that it was
/// trained with.
/// # Errors
/// If the disk fails.
pub fn write_model<B: Backend>(
    model: &Decoder<B>,
    side_files: &SideFiles,
    dir: &Path,
) -> Result<(), WriteError> {
    let dir = dir.join(MODEL_DIR);
    std::fs::create_dir_all(&dir)?;
    save_decoder(model, &dir, None)?;
    for source in &side_files.folders {
        copy_side_files(source, &dir)?;
    }
    if let Some(source) = side_files.chat_template.source() {
        // This file takes precedence over all others that hold a template.
        write_file(&dir.join(JINJA_FILE), source)?;
        let config = dir.join(CONFIG_FILE);
        if !config.exists() {
            write_file(&config, side_files.chat_template.tokenizer_config())?;
        }
    }
    Ok(())
}

/// Writes an optimizer's state.
/// # Errors
/// If the disk fails.
pub fn write_optimizer<B: Backend, M: Module<B>>(
    optimizer: &AdamW<B>,
    module: &M,
    dir: &Path,
) -> Result<(), WriteError> {
    Ok(save_tensors(&dir.join(OPTIMIZER_FILE), &optimizer.state(module))?)
}

/// Writes a critic and its optimizer.
/// # Errors
/// If the disk fails.
pub fn write_critic<B: Backend>(
    critic: &Critic<B>,
    optimizer: &AdamW<B>,
    dir: &Path,
) -> Result<(), WriteError> {
    let critic_dir = dir.join(CRITIC_DIR);
    std::fs::create_dir_all(&critic_dir)?;
    save_critic(critic, &critic_dir, None)?;
    Ok(save_tensors(&dir.join(CRITIC_OPTIMIZER_FILE), &optimizer.state(critic))?)
}

/// Reads the decoder of a checkpoint.
/// # Errors
/// If it is damaged.
pub fn read_model<B: Backend>(
    dir: &Path,
    dtype: DType,
    device: &B::Device,
) -> Result<Decoder<B>, StateError> {
    Ok(load_decoder(&dir.join(MODEL_DIR), dtype, device)?)
}

/// Reads the optimizer that belongs to `module`.
/// # Errors
/// If the file is damaged or belongs to another model.
pub fn read_optimizer<B: Backend, M: Module<B>>(
    recipe: &AdamWRecipe,
    n_updates: u64,
    module: &M,
    dir: &Path,
    device: &B::Device,
) -> Result<AdamW<B>, StateError> {
    restore(recipe, n_updates, module, &dir.join(OPTIMIZER_FILE), device)
}

/// True if a checkpoint holds a critic; one of GRPO does not.
pub fn has_critic(dir: &Path) -> bool {
    dir.join(CRITIC_DIR).is_dir()
}

/// Reads a critic and its optimizer.
/// # Errors
/// If they are damaged.
pub fn read_critic<B: Backend>(
    recipe: &AdamWRecipe,
    n_updates: u64,
    dtype: DType,
    dir: &Path,
    device: &B::Device,
) -> Result<(Critic<B>, AdamW<B>), StateError> {
    let critic = load_critic(&dir.join(CRITIC_DIR), dtype, device)?;
    let optimizer = restore(recipe, n_updates, &critic, &dir.join(CRITIC_OPTIMIZER_FILE), device)?;
    Ok((critic, optimizer))
}

fn restore<B: Backend, M: Module<B>>(
    recipe: &AdamWRecipe,
    n_updates: u64,
    module: &M,
    path: &Path,
    device: &B::Device,
) -> Result<AdamW<B>, StateError> {
    AdamW::restore(recipe.clone(), n_updates, load_tensors(path)?, module, device)
        .map_err(|source| StateError::Optimizer { path: path.to_owned(), source })
}
