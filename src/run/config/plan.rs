//! Plan of a run, computed before it starts: steps, episodes, upper bounds of tokens, and the
//! memory bill.
//!
//! Pure arithmetic on the recipe and the models' shapes; reads no weights. Token counts are bounds,
//! not forecasts: an episode usually ends long before its limits. The bill counts what is held at
//! the same time in a phase, in bytes:
//!
//! ```text
//! trained network   P·d parameters + P·4 masters (only if d = 2) + P·4 gradients + P·8 Adam moments
//! frozen network    P·d
//! KV cache          rows · positions · 2 · layers · kv_heads · head_dim · d
//! logits            those of a micro-batch's tokens that exist at once · 4, of each model, and of the gradient
//! encoder           P·4, of the dense retriever
//! ```
//! with P parameters and d bytes of `model.dtype`. Activations are not in it: they grow with
//! `micro_batch_tokens` (and with the number of layers, unless `model.recompute` is on) and depend
//! on the backend.
mod disk;

pub use disk::index_bytes;

use super::{Recipe, RetrieverKind, Stage, check::plays_episodes, shapes::Shapes};
use dgpo_core::settings::{Algorithm, DistillRecipe, KlEstimator, KlMode, KlReference, Phase};
use dgpo_models::{config::DecoderConfig, heads::most_logits};
use serde::Serialize;

const F32_BYTES: usize = 4;
const ADAM_BYTES: usize = 8;

/// The whole forecast.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunPlan {
    pub stage: Stage,
    pub phases: Vec<PhasePlan>,
    /// Empty where no model's shape is known.
    pub memory: Vec<PhaseMemory>,
    /// Disk space of the run when every phase is at its end, as far as shapes are known;
    /// metrics and episodes are small beside it.
    pub disk: Vec<MemoryItem>,
    /// Limits of the figures, and what cannot be known beforehand.
    pub notes: Vec<String>,
}

/// Work of one phase. Every count is exact unless `is_bound`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PhasePlan {
    pub phase: &'static str,
    /// Training steps; 0 where a phase only plays, or where they are not known beforehand.
    pub steps: usize,
    /// Episodes played, or trained on where none are played.
    pub episodes: usize,
    /// Updates of each trained network.
    pub optimizer_steps: usize,
    /// Tokens sampled at most.
    pub max_sampled_tokens: u64,
    /// Tokens that pass through training at most.
    pub max_trained_tokens: u64,
    /// True if steps and episodes are upper bounds (they depend on how many teacher episodes are
    /// correct).
    pub is_bound: bool,
}

/// Memory of a phase.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PhaseMemory {
    pub phase: &'static str,
    pub items: Vec<MemoryItem>,
    pub total_bytes: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryItem {
    pub what: String,
    pub size_bytes: usize,
}

/// The plan of a recipe that passed [`super::check`].
pub fn plan(recipe: &Recipe, shapes: &Shapes) -> RunPlan {
    let mut notes = Vec::new();
    let longest = recipe.episode.longest_episode();
    if (recipe.stage.has_rl() || recipe.stage.has_gkd())
        && longest > recipe.episode.max_prompt_length
    {
        notes.push(format!(
            "an episode whose every part is at its limit would have {longest} tokens; it is closed \
             at max_prompt_length = {}",
            recipe.episode.max_prompt_length
        ));
    }
    let has_demos = recipe.data.trajectories.is_empty();
    let planned = |&phase: &Phase| match phase {
        Phase::Demos if has_demos => Some(demos_phase(recipe)),
        Phase::Demos | Phase::Eval => None,
        Phase::Pretrain => {
            Some(text_phase(phase, recipe.pretrain.steps, recipe.pretrain.batch, recipe))
        }
        Phase::Encoder => Some(PhasePlan {
            max_trained_tokens: (2
                * recipe.encoder.steps
                * recipe.encoder.batch
                * recipe.retriever.max_tokens) as u64,
            ..text_phase(phase, recipe.encoder.steps, recipe.encoder.batch, recipe)
        }),
        Phase::Kd => Some(kd_phase(recipe, &mut notes)),
        Phase::Gkd => Some(gkd_phase(recipe)),
        Phase::Rl => Some(rl_phase(recipe)),
    };
    let phases = recipe.stage.phases().iter().filter_map(planned).collect();
    RunPlan {
        stage: recipe.stage,
        memory: memory(recipe, shapes),
        disk: disk::bill(recipe, shapes),
        phases,
        notes,
    }
}

/// Tokens an episode may sample: every turn at its limit, and never more than prompt and response
/// together may have.
pub fn max_sampled(recipe: &Recipe, episodes: usize) -> u64 {
    let turns = (recipe.episode.max_turns + 1) * recipe.episode.max_response_length;
    (episodes * turns.min(recipe.episode.max_prompt_length)) as u64
}

fn text_phase(phase: Phase, steps: usize, batch: usize, recipe: &Recipe) -> PhasePlan {
    let episodes = steps * batch;
    let max_trained_tokens = (episodes * recipe.episode.max_prompt_length) as u64;
    let phase = phase.as_str();
    PhasePlan {
        phase,
        steps,
        episodes,
        optimizer_steps: steps,
        max_sampled_tokens: 0,
        max_trained_tokens,
        is_bound: false,
    }
}

fn demos_phase(recipe: &Recipe) -> PhasePlan {
    let episodes = recipe.demos.n_episodes;
    PhasePlan {
        episodes,
        max_sampled_tokens: max_sampled(recipe, episodes),
        ..text_phase(Phase::Demos, 0, 0, recipe)
    }
}

/// With DistiLLM's scheduler every step may be one whose episodes the student plays.
fn kd_phase(recipe: &Recipe, notes: &mut Vec<String>) -> PhasePlan {
    let (demos, distill) = (&recipe.demos, &recipe.distill);
    let n_kept =
        if demos.max_kept == 0 { demos.n_episodes } else { demos.n_episodes.min(demos.max_kept) };
    let steps = if distill.steps > 0 || recipe.data.trajectories.is_empty() {
        distill_steps(distill, n_kept - distill.student_outputs.n_held_out(n_kept))
    } else {
        notes.push(
            "KD's steps follow from the number of trajectories, which is known when the files are \
             read"
                .to_owned(),
        );
        0
    };
    let is_bound = distill.steps == 0;
    let planned = PhasePlan { is_bound, ..text_phase(Phase::Kd, steps, distill.batch, recipe) };
    let n_played = if distill.student_outputs.is_adaptive { planned.episodes } else { 0 };
    PhasePlan { max_sampled_tokens: max_sampled(recipe, n_played), ..planned }
}

fn gkd_phase(recipe: &Recipe) -> PhasePlan {
    let planned = text_phase(Phase::Gkd, recipe.gkd.steps, recipe.gkd.questions_per_step, recipe);
    PhasePlan { max_sampled_tokens: max_sampled(recipe, planned.episodes), ..planned }
}

/// Optimizer steps of KD on `n_episodes` episodes: `distill.steps`, or enough batches in each of
/// its epochs to see every episode.
pub fn distill_steps(distill: &DistillRecipe, n_episodes: usize) -> usize {
    match distill.steps {
        0 => distill.epochs * n_episodes.div_ceil(distill.batch),
        steps => steps,
    }
}

fn rl_phase(recipe: &Recipe) -> PhasePlan {
    let rl = &recipe.rl;
    let episodes = rl.steps * rl.episodes_per_step();
    PhasePlan {
        phase: "rl",
        steps: rl.steps,
        episodes,
        optimizer_steps: rl.steps * rl.epochs * (rl.episodes_per_step() / rl.mini_batch),
        max_sampled_tokens: max_sampled(recipe, episodes),
        max_trained_tokens: (rl.epochs * episodes * recipe.episode.max_prompt_length) as u64,
        is_bound: false,
    }
}

fn memory(recipe: &Recipe, shapes: &Shapes) -> Vec<PhaseMemory> {
    let Some(student) = &shapes.student else { return Vec::new() };
    let has_demos = recipe.data.trajectories.is_empty();
    let billed = |&phase: &Phase| match (phase, &shapes.teacher) {
        (Phase::Pretrain, _) => {
            let logits = logits(&[student], recipe.distill.micro_batch_tokens, recipe);
            Some(bill(phase, [trained("student", student, recipe), logits].concat()))
        }
        (Phase::Demos, Some(teacher)) if has_demos => {
            let rows = recipe.episode.max_rows.min(recipe.demos.n_episodes);
            Some(bill(
                phase,
                [frozen("teacher", teacher, recipe), kv_cache("teacher", teacher, rows, recipe)]
                    .concat(),
            ))
        }
        (Phase::Kd, teacher) => {
            let distill = &recipe.distill;
            let n_played = if distill.student_outputs.is_adaptive { distill.batch } else { 0 };
            let teacher = teacher.as_ref().filter(|_| distill.kl_weight > 0.0);
            Some(bill(
                phase,
                distilled(student, teacher, n_played, distill.micro_batch_tokens, recipe),
            ))
        }
        (Phase::Gkd, teacher) => {
            let gkd = &recipe.gkd;
            Some(bill(
                phase,
                distilled(
                    student,
                    teacher.as_ref(),
                    gkd.questions_per_step,
                    gkd.micro_batch_tokens,
                    recipe,
                ),
            ))
        }
        (Phase::Rl, teacher) => Some(bill(phase, reinforced(student, teacher.as_ref(), recipe))),
        (Phase::Demos | Phase::Eval | Phase::Encoder, _) => None,
    };
    let searched = |mut phase: PhaseMemory| {
        let items = encoder(recipe, shapes);
        phase.total_bytes += items.iter().map(|item| item.size_bytes).sum::<usize>();
        phase.items.extend(items);
        phase
    };
    recipe.stage.phases().iter().filter_map(billed).map(searched).collect()
}

/// Of the dense retriever, which is there from the first phase to the last.
fn encoder(recipe: &Recipe, shapes: &Shapes) -> Vec<MemoryItem> {
    let asks = plays_episodes(recipe) || !recipe.data.test.is_empty();
    let encoder =
        shapes.encoder.as_ref().filter(|_| asks && recipe.retriever.kind == RetrieverKind::Dense);
    encoder
        .map(|encoder| {
            item("encoder: parameters (f32)".to_owned(), encoder.n_parameters() * F32_BYTES)
        })
        .into_iter()
        .collect()
}

/// Of distillation that plays `n_played` episodes a step.
fn distilled(
    student: &DecoderConfig,
    teacher: Option<&DecoderConfig>,
    n_played: usize,
    micro_batch_tokens: usize,
    recipe: &Recipe,
) -> Vec<MemoryItem> {
    let mut items = trained("student", student, recipe);
    items.extend(teacher.iter().flat_map(|shape| frozen("teacher", shape, recipe)));
    if n_played > 0 {
        items.extend(kv_cache("student", student, recipe.episode.max_rows.min(n_played), recipe));
    }
    let models: Vec<&DecoderConfig> = [student].into_iter().chain(teacher).collect();
    items.extend(logits(&models, micro_batch_tokens, recipe));
    items
}

/// Of RL: actor, PPO's critic, and the reference that the penalty needs.
fn reinforced(
    student: &DecoderConfig,
    teacher: Option<&DecoderConfig>,
    recipe: &Recipe,
) -> Vec<MemoryItem> {
    let mut items = trained("student", student, recipe);
    if recipe.rl.algorithm == Algorithm::Ppo {
        items.extend(trained("critic", student, recipe));
    }
    let reference = match (recipe.kl.mode, recipe.kl.reference, teacher) {
        (KlMode::None, ..) | (_, KlReference::Teacher, None) => None,
        (_, KlReference::Initial, _) => Some(("initial student", student)),
        (_, KlReference::Teacher, Some(teacher)) => Some(("teacher", teacher)),
    };
    items.extend(reference.iter().flat_map(|(role, shape)| frozen(role, shape, recipe)));
    // Evaluations between the steps measure the KL to the teacher.
    if let (true, Some(teacher)) =
        (recipe.eval.every > 0 && reference.is_none_or(|(role, _)| role != "teacher"), teacher)
    {
        items.extend(frozen("teacher", teacher, recipe));
    }
    let rows = recipe.episode.max_rows.min(recipe.rl.episodes_per_step());
    items.extend(kv_cache("student", student, rows, recipe));
    let is_full = matches!(recipe.kl.estimator, KlEstimator::Full | KlEstimator::FullReversed);
    let models: Vec<&DecoderConfig> = reference
        .filter(|_| is_full)
        .map(|(_, shape)| shape)
        .into_iter()
        .chain([student])
        .collect();
    items.extend(logits(&models, recipe.rl.micro_batch_tokens, recipe));
    items
}

fn bill(phase: Phase, items: Vec<MemoryItem>) -> PhaseMemory {
    PhaseMemory {
        phase: phase.as_str(),
        total_bytes: items.iter().map(|item| item.size_bytes).sum(),
        items,
    }
}

fn item(what: String, size_bytes: usize) -> MemoryItem {
    MemoryItem { what, size_bytes }
}

fn trained(role: &str, shape: &DecoderConfig, recipe: &Recipe) -> Vec<MemoryItem> {
    let n = shape.n_parameters();
    let mut items = vec![item(
        format!("{role}: parameters ({})", recipe.model.dtype),
        n * recipe.model.dtype.n_bytes(),
    )];
    if recipe.model.dtype.n_bytes() < F32_BYTES {
        items.push(item(format!("{role}: master weights (f32)"), n * F32_BYTES));
    }
    items.push(item(format!("{role}: gradients (f32)"), n * F32_BYTES));
    items.push(item(format!("{role}: Adam moments (f32)"), n * ADAM_BYTES));
    items
}

fn frozen(role: &str, shape: &DecoderConfig, recipe: &Recipe) -> Vec<MemoryItem> {
    vec![item(
        format!("{role}: parameters ({})", recipe.model.dtype),
        shape.n_parameters() * recipe.model.dtype.n_bytes(),
    )]
}

fn kv_cache(role: &str, shape: &DecoderConfig, rows: usize, recipe: &Recipe) -> Vec<MemoryItem> {
    let positions = recipe.episode.max_prompt_length;
    let per_position = 2
        * shape.num_hidden_layers
        * shape.num_key_value_heads
        * shape.head_dim
        * recipe.model.dtype.n_bytes();
    vec![item(
        format!("{role}: KV cache of {rows} rows x {positions} positions"),
        rows * positions * per_position,
    )]
}

/// Of all models whose rows are read together, and the gradient of those of the first. Bounds:
/// every token of the micro-batch the agent's, and the larger tiles of GPUs.
fn logits(
    models: &[&DecoderConfig],
    micro_batch_tokens: usize,
    recipe: &Recipe,
) -> Vec<MemoryItem> {
    let n_rows = micro_batch_tokens.max(recipe.episode.max_prompt_length);
    let n_vocab = models.iter().map(|shape| shape.vocab_size).max().unwrap_or(0);
    let size_bytes = (models.len() + 1) * most_logits(n_rows, n_vocab) * F32_BYTES;
    vec![item(
        format!(
            "logits of {n_rows} tokens x {n_vocab}, the part that exists at once (f32, with \
             gradient)"
        ),
        size_bytes,
    )]
}

#[cfg(test)]
mod tests;
