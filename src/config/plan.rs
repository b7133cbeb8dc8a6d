//! What a run will do, computed before it starts: steps, episodes, upper bounds of tokens, and the memory bill.
//!
//! Pure arithmetic on the recipe and the models' shapes; reads no weights. Token counts are bounds, not forecasts: an episode usually ends long
//! before its limits. The bill counts what is held at the same time in a phase, in bytes:
//!
//! ```text
//! trained network   P·d parameters + P·4 masters (only if d = 2) + P·4 gradients + P·8 Adam moments
//! frozen network    P·d
//! KV cache          rows · positions · 2 · layers · kv_heads · head_dim · d
//! logits            those of a micro-batch's tokens that exist at once · 4, of each model, and of the gradient
//! ```
//! with P parameters and d bytes of `model.dtype`. Activations are not in it: they grow with `micro_batch_tokens`
//! (and with the number of layers, unless `model.recompute` is on) and depend on the backend.
use super::{Algorithm, DistillRecipe, KlEstimator, KlMode, KlReference, Recipe, Stage};
use crate::hub;
use dgpo_models::{config::DecoderConfig, heads::most_logits};
use serde::Serialize;

const F32_BYTES: usize = 4;
const ADAM_BYTES: usize = 8;

/// The whole forecast.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    pub stage: Stage,
    pub phases: Vec<PhasePlan>,
    /// Empty where no model's shape is known.
    pub memory: Vec<PhaseMemory>,
    /// What limits the figures, or cannot be known beforehand.
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
    /// Whether steps and episodes are upper bounds (they depend on how many teacher episodes are correct).
    pub is_bound: bool,
}

/// What a phase holds in memory.
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

/// The models' shapes, as far as they can be found.
#[derive(Clone, Debug, Default)]
pub struct Shapes {
    pub student: Option<DecoderConfig>,
    pub teacher: Option<DecoderConfig>,
}

impl Shapes {
    /// Reads config.json of the recipe's models. What cannot be found becomes a note, not an error: a plan can be made anywhere.
    pub fn resolve(recipe: &Recipe) -> (Self, Vec<String>) {
        let mut notes = Vec::new();
        let mut shape_of = |role: &str, name: &str| {
            if name.is_empty() {
                return None;
            }
            let folder = name.strip_prefix("random:").unwrap_or(name);
            let shape = hub::resolve(folder).map_err(|e| e.to_string()).and_then(|dir| {
                let file = if dir.is_dir() { dir.join("config.json") } else { dir };
                DecoderConfig::from_file(&file).map_err(|e| e.to_string())
            });
            shape.map_err(|why| notes.push(format!("the {role}'s shape is unknown, so its memory is not counted: {why}"))).ok()
        };
        let shapes = Self { student: shape_of("student", &recipe.model.student), teacher: shape_of("teacher", &recipe.model.teacher) };
        (shapes, notes)
    }
}

/// The plan of a recipe that passed [`super::check`].
pub fn plan(recipe: &Recipe, shapes: &Shapes) -> Plan {
    let mut notes = Vec::new();
    let longest = recipe.episode.longest_episode();
    if recipe.stage.has_rl() && longest > recipe.episode.max_prompt_length {
        notes.push(format!(
            "an episode whose every part is at its limit would have {longest} tokens; it is closed at max_prompt_length = {}",
            recipe.episode.max_prompt_length
        ));
    }
    let mut phases = Vec::new();
    match recipe.stage {
        Stage::Pretrain => phases.push(text_phase("pretrain", recipe.pretrain.steps, recipe.pretrain.batch, recipe)),
        Stage::Encoder => phases.push(PhasePlan {
            max_trained_tokens: (2 * recipe.encoder.steps * recipe.encoder.batch * recipe.retriever.max_tokens) as u64,
            ..text_phase("encoder", recipe.encoder.steps, recipe.encoder.batch, recipe)
        }),
        Stage::Pipeline | Stage::Distill | Stage::Rl | Stage::Gkd | Stage::DistillGkd | Stage::RlDistill => {
            if recipe.stage.has_distillation() {
                phases.extend(distill_phases(recipe, &mut notes));
            }
            if recipe.stage.has_rl() {
                phases.push(rl_phase(recipe));
            }
        }
    }
    Plan { stage: recipe.stage, memory: memory(recipe, shapes), phases, notes }
}

/// Tokens an episode may sample: every turn at its limit, and never more than prompt and response together may have.
fn max_sampled(recipe: &Recipe, episodes: usize) -> u64 {
    let turns = (recipe.episode.max_turns + 1) * recipe.episode.max_response_length;
    (episodes * turns.min(recipe.episode.max_prompt_length)) as u64
}

fn text_phase(phase: &'static str, steps: usize, batch: usize, recipe: &Recipe) -> PhasePlan {
    let episodes = steps * batch;
    let max_trained_tokens = (episodes * recipe.episode.max_prompt_length) as u64;
    PhasePlan { phase, steps, episodes, optimizer_steps: steps, max_sampled_tokens: 0, max_trained_tokens, is_bound: false }
}

fn distill_phases(recipe: &Recipe, notes: &mut Vec<String>) -> Vec<PhasePlan> {
    let mut phases = Vec::new();
    let n_kept = if recipe.data.trajectories.is_empty() {
        let n_episodes = recipe.demos.n_episodes;
        let max_sampled_tokens = max_sampled(recipe, n_episodes);
        phases.push(PhasePlan {
            phase: "demos",
            steps: 0,
            episodes: n_episodes,
            optimizer_steps: 0,
            max_sampled_tokens,
            max_trained_tokens: 0,
            is_bound: false,
        });
        Some(if recipe.demos.max_kept == 0 { n_episodes } else { n_episodes.min(recipe.demos.max_kept) })
    } else {
        None
    };
    let steps = match (n_kept, recipe.distill.steps) {
        (_, steps) if steps > 0 => steps,
        (Some(n_kept), _) => distill_steps(&recipe.distill, n_kept),
        (None, _) => {
            notes.push("KD's steps follow from the number of trajectories, which is known when the files are read".to_owned());
            0
        }
    };
    let is_bound = recipe.distill.steps == 0;
    phases.push(PhasePlan { is_bound, ..text_phase("kd", steps, recipe.distill.batch, recipe) });
    phases
}

/// Optimizer steps of KD on `n_episodes` episodes: `distill.steps`, or enough batches in each of its epochs to see every episode.
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

/// Bytes of one number of `model.dtype`.
fn dtype_bytes(recipe: &Recipe) -> usize {
    if recipe.model.dtype == "f32" { F32_BYTES } else { 2 }
}

fn memory(recipe: &Recipe, shapes: &Shapes) -> Vec<PhaseMemory> {
    let Some(student) = &shapes.student else { return Vec::new() };
    let mut phases = Vec::new();
    if recipe.stage == Stage::Pretrain {
        let logits = logits(&[student], recipe.distill.micro_batch_tokens, recipe);
        phases.push(bill("pretrain", [trained("student", student, recipe), logits].concat()));
    }
    if recipe.stage.has_distillation() {
        let mut items = trained("student", student, recipe);
        let mut models = vec![student];
        if let Some(teacher) = &shapes.teacher {
            items.extend(frozen("teacher", teacher, recipe));
            models.push(teacher);
            if recipe.data.trajectories.is_empty() {
                let rows = recipe.episode.max_rows.min(recipe.demos.n_episodes);
                phases.push(bill("demos", [frozen("teacher", teacher, recipe), kv_cache("teacher", teacher, rows, recipe)].concat()));
            }
        }
        items.extend(logits(&models, recipe.distill.micro_batch_tokens, recipe));
        phases.push(bill("kd", items));
    }
    if recipe.stage.has_rl() {
        let mut items = trained("student", student, recipe);
        if recipe.rl.algorithm == Algorithm::Ppo {
            items.extend(trained("critic", student, recipe));
        }
        let reference = match (recipe.kl.mode, recipe.kl.reference, &shapes.teacher) {
            (KlMode::None, ..) | (_, KlReference::Teacher, None) => None,
            (_, KlReference::Initial, _) => Some(("initial student", student)),
            (_, KlReference::Teacher, Some(teacher)) => Some(("teacher", teacher)),
        };
        items.extend(reference.iter().flat_map(|(role, shape)| frozen(role, shape, recipe)));
        let rows = recipe.episode.max_rows.min(recipe.rl.episodes_per_step());
        items.extend(kv_cache("student", student, rows, recipe));
        let is_full = matches!(recipe.kl.estimator, KlEstimator::Full | KlEstimator::FullReversed);
        let models: Vec<&DecoderConfig> = reference.filter(|_| is_full).map(|(_, shape)| shape).into_iter().chain([student]).collect();
        items.extend(logits(&models, recipe.rl.micro_batch_tokens, recipe));
        phases.push(bill("rl", items));
    }
    phases
}

fn bill(phase: &'static str, items: Vec<MemoryItem>) -> PhaseMemory {
    PhaseMemory { phase, total_bytes: items.iter().map(|item| item.size_bytes).sum(), items }
}

fn item(what: String, size_bytes: usize) -> MemoryItem {
    MemoryItem { what, size_bytes }
}

fn trained(role: &str, shape: &DecoderConfig, recipe: &Recipe) -> Vec<MemoryItem> {
    let n = shape.n_parameters();
    let mut items = vec![item(format!("{role}: parameters ({})", recipe.model.dtype), n * dtype_bytes(recipe))];
    if dtype_bytes(recipe) < F32_BYTES {
        items.push(item(format!("{role}: master weights (f32)"), n * F32_BYTES));
    }
    items.push(item(format!("{role}: gradients (f32)"), n * F32_BYTES));
    items.push(item(format!("{role}: Adam moments (f32)"), n * ADAM_BYTES));
    items
}

fn frozen(role: &str, shape: &DecoderConfig, recipe: &Recipe) -> Vec<MemoryItem> {
    vec![item(format!("{role}: parameters ({})", recipe.model.dtype), shape.n_parameters() * dtype_bytes(recipe))]
}

fn kv_cache(role: &str, shape: &DecoderConfig, rows: usize, recipe: &Recipe) -> Vec<MemoryItem> {
    let positions = recipe.episode.max_prompt_length;
    let per_position = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * dtype_bytes(recipe);
    vec![item(format!("{role}: KV cache of {rows} rows x {positions} positions"), rows * positions * per_position)]
}

/// Of all models whose rows are read together, and the gradient of those of the first. Bounds: every token of the micro-batch the agent's, and the
/// larger tiles of GPUs.
fn logits(models: &[&DecoderConfig], micro_batch_tokens: usize, recipe: &Recipe) -> Vec<MemoryItem> {
    let n_rows = micro_batch_tokens.max(recipe.episode.max_prompt_length);
    let n_vocab = models.iter().map(|shape| shape.vocab_size).max().unwrap_or(0);
    let size_bytes = (models.len() + 1) * most_logits(n_rows, n_vocab) * F32_BYTES;
    vec![item(format!("logits of {n_rows} tokens x {n_vocab}, the part that exists at once (f32, with gradient)"), size_bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use dgpo_models::config::{Family, RopeScaling};

    /// Qwen2.5-0.5B: 494,032,768 parameters by its model card.
    fn qwen_half_b() -> DecoderConfig {
        DecoderConfig {
            family: Family::Qwen2,
            vocab_size: 151_936,
            hidden_size: 896,
            intermediate_size: 4864,
            num_hidden_layers: 24,
            num_attention_heads: 14,
            num_key_value_heads: 2,
            head_dim: 64,
            max_position_embeddings: 32_768,
            rms_norm_eps: 1e-6,
            rope_theta: 1e6,
            rope_scaling: RopeScaling::None,
            is_tied: true,
            has_qkv_bias: true,
            initializer_range: 0.02,
            bos_token_id: None,
            eos_token_ids: vec![151_645],
        }
    }

    fn phase<'a>(plan: &'a Plan, name: &str) -> &'a PhasePlan {
        plan.phases.iter().find(|phase| phase.phase == name).expect("the phase is planned")
    }

    #[test]
    fn the_papers_run_makes_512_000_episodes_and_2_000_optimizer_steps() {
        let plan = plan(&Recipe::default(), &Shapes::default());
        let rl = phase(&plan, "rl");
        assert_eq!((rl.steps, rl.episodes, rl.optimizer_steps), (1000, 512_000, 2000));
        // Five turns of 500 tokens each.
        assert_eq!(rl.max_sampled_tokens, 512_000 * 2500);
    }

    #[test]
    fn grpo_plays_every_question_several_times_and_holds_no_critic() {
        let mut recipe = Recipe { stage: Stage::Rl, ..Default::default() };
        recipe.rl.algorithm = Algorithm::Grpo;
        (recipe.rl.questions_per_step, recipe.rl.episodes_per_question, recipe.rl.mini_batch) = (128, 5, 320);
        let plan = plan(&recipe, &Shapes { student: Some(qwen_half_b()), teacher: None });
        let rl = phase(&plan, "rl");
        assert_eq!((rl.steps, rl.episodes, rl.optimizer_steps), (1000, 640_000, 2000));
        assert!(plan.memory[0].items.iter().all(|item| !item.what.starts_with("critic")), "{:?}", plan.memory[0].items);
    }

    #[test]
    fn kd_steps_are_batches_an_epoch_rounded_up() {
        let distill = DistillRecipe { epochs: 5, batch: 64, steps: 0, ..Default::default() };
        // 100 episodes are two batches of 64, five times.
        assert_eq!(distill_steps(&distill, 100), 10);
        assert_eq!(distill_steps(&DistillRecipe { steps: 3, ..distill }, 100), 3);
    }

    #[test]
    fn training_half_a_billion_parameters_in_f32_takes_the_known_7_9_gigabytes() {
        let recipe = Recipe { model: crate::config::ModelRecipe { dtype: "f32".into(), ..Default::default() }, ..Default::default() };
        let bytes: usize = trained("student", &qwen_half_b(), &recipe).iter().map(|item| item.size_bytes).sum();
        // 4 + 4 + 8 bytes a parameter.
        assert_eq!(bytes, 494_032_768 * 16);
    }

    #[test]
    fn the_kv_cache_of_a_qwen_row_takes_12_kilobytes_a_position_in_bf16() {
        let items = kv_cache("student", &qwen_half_b(), 1, &Recipe::default());
        // 2 tensors x 24 layers x 2 heads x 64 x 2 bytes = 12,288.
        assert_eq!(items[0].size_bytes, 12_288 * 4096);
    }

    #[test]
    fn logits_are_billed_by_the_tile_and_small_ones_whole() {
        let recipe = Recipe::default();
        let bytes = |vocab_size: usize, n_models: usize| {
            let shape = DecoderConfig { vocab_size, ..qwen_half_b() };
            logits(&vec![&shape; n_models], 16_384, &recipe)[0].size_bytes
        };
        // 2^25 elements over 16,384 rows are 2,048 columns: student, teacher and gradient.
        assert_eq!(bytes(151_936, 2), 3 * 16_384 * 2048 * 4);
        assert_eq!(bytes(976, 1), 2 * 16_384 * 976 * 4);
    }

    #[test]
    fn a_run_without_kl_holds_no_reference_model() {
        let shapes = Shapes { student: Some(qwen_half_b()), teacher: Some(qwen_half_b()) };
        let mut recipe = Recipe { stage: Stage::Rl, ..Default::default() };
        let has_teacher = |recipe: &Recipe| memory(recipe, &shapes)[0].items.iter().any(|item| item.what.starts_with("teacher"));
        assert!(has_teacher(&recipe));
        recipe.kl.mode = KlMode::None;
        assert!(!has_teacher(&recipe));
    }
}
