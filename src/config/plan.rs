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
use super::{Algorithm, DistillRecipe, KlEstimator, KlMode, KlReference, Phase, Recipe, Stage};
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
    if (recipe.stage.has_rl() || recipe.stage.has_gkd()) && longest > recipe.episode.max_prompt_length {
        notes.push(format!(
            "an episode whose every part is at its limit would have {longest} tokens; it is closed at max_prompt_length = {}",
            recipe.episode.max_prompt_length
        ));
    }
    let has_demos = recipe.data.trajectories.is_empty();
    let planned = |&phase: &Phase| match phase {
        Phase::Demos if has_demos => Some(demos_phase(recipe)),
        Phase::Demos | Phase::Eval => None,
        Phase::Pretrain => Some(text_phase(phase, recipe.pretrain.steps, recipe.pretrain.batch, recipe)),
        Phase::Encoder => Some(PhasePlan {
            max_trained_tokens: (2 * recipe.encoder.steps * recipe.encoder.batch * recipe.retriever.max_tokens) as u64,
            ..text_phase(phase, recipe.encoder.steps, recipe.encoder.batch, recipe)
        }),
        Phase::Kd => Some(kd_phase(recipe, &mut notes)),
        Phase::Gkd => Some(gkd_phase(recipe)),
        Phase::Rl => Some(rl_phase(recipe)),
    };
    let phases = recipe.stage.phases().iter().filter_map(planned).collect();
    Plan { stage: recipe.stage, memory: memory(recipe, shapes), phases, notes }
}

/// Tokens an episode may sample: every turn at its limit, and never more than prompt and response together may have.
pub fn max_sampled(recipe: &Recipe, episodes: usize) -> u64 {
    let turns = (recipe.episode.max_turns + 1) * recipe.episode.max_response_length;
    (episodes * turns.min(recipe.episode.max_prompt_length)) as u64
}

fn text_phase(phase: Phase, steps: usize, batch: usize, recipe: &Recipe) -> PhasePlan {
    let episodes = steps * batch;
    let max_trained_tokens = (episodes * recipe.episode.max_prompt_length) as u64;
    let phase = phase.as_str();
    PhasePlan { phase, steps, episodes, optimizer_steps: steps, max_sampled_tokens: 0, max_trained_tokens, is_bound: false }
}

fn demos_phase(recipe: &Recipe) -> PhasePlan {
    let episodes = recipe.demos.n_episodes;
    PhasePlan { episodes, max_sampled_tokens: max_sampled(recipe, episodes), ..text_phase(Phase::Demos, 0, 0, recipe) }
}

/// With DistiLLM's scheduler every step may be one whose episodes the student plays.
fn kd_phase(recipe: &Recipe, notes: &mut Vec<String>) -> PhasePlan {
    let (demos, distill) = (&recipe.demos, &recipe.distill);
    let n_kept = if demos.max_kept == 0 { demos.n_episodes } else { demos.n_episodes.min(demos.max_kept) };
    let steps = if distill.steps > 0 || recipe.data.trajectories.is_empty() {
        distill_steps(distill, n_kept - distill.student_outputs.n_held_out(n_kept))
    } else {
        notes.push("KD's steps follow from the number of trajectories, which is known when the files are read".to_owned());
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
    let has_demos = recipe.data.trajectories.is_empty();
    let billed = |&phase: &Phase| match (phase, &shapes.teacher) {
        (Phase::Pretrain, _) => {
            let logits = logits(&[student], recipe.distill.micro_batch_tokens, recipe);
            Some(bill(phase, [trained("student", student, recipe), logits].concat()))
        }
        (Phase::Demos, Some(teacher)) if has_demos => {
            let rows = recipe.episode.max_rows.min(recipe.demos.n_episodes);
            Some(bill(phase, [frozen("teacher", teacher, recipe), kv_cache("teacher", teacher, rows, recipe)].concat()))
        }
        (Phase::Kd, teacher) => {
            let distill = &recipe.distill;
            let n_played = if distill.student_outputs.is_adaptive { distill.batch } else { 0 };
            let teacher = teacher.as_ref().filter(|_| distill.kl_weight > 0.0);
            Some(bill(phase, distilled(student, teacher, n_played, distill.micro_batch_tokens, recipe)))
        }
        (Phase::Gkd, teacher) => {
            let gkd = &recipe.gkd;
            Some(bill(phase, distilled(student, teacher.as_ref(), gkd.questions_per_step, gkd.micro_batch_tokens, recipe)))
        }
        (Phase::Rl, teacher) => Some(bill(phase, reinforced(student, teacher.as_ref(), recipe))),
        (Phase::Demos | Phase::Eval | Phase::Encoder, _) => None,
    };
    recipe.stage.phases().iter().filter_map(billed).collect()
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
fn reinforced(student: &DecoderConfig, teacher: Option<&DecoderConfig>, recipe: &Recipe) -> Vec<MemoryItem> {
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
    if let (true, Some(teacher)) = (recipe.eval.every > 0 && reference.is_none_or(|(role, _)| role != "teacher"), teacher) {
        items.extend(frozen("teacher", teacher, recipe));
    }
    let rows = recipe.episode.max_rows.min(recipe.rl.episodes_per_step());
    items.extend(kv_cache("student", student, rows, recipe));
    let is_full = matches!(recipe.kl.estimator, KlEstimator::Full | KlEstimator::FullReversed);
    let models: Vec<&DecoderConfig> = reference.filter(|_| is_full).map(|(_, shape)| shape).into_iter().chain([student]).collect();
    items.extend(logits(&models, recipe.rl.micro_batch_tokens, recipe));
    items
}

fn bill(phase: Phase, items: Vec<MemoryItem>) -> PhaseMemory {
    PhaseMemory { phase: phase.as_str(), total_bytes: items.iter().map(|item| item.size_bytes).sum(), items }
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

    fn names(recipe: &Recipe) -> Vec<&'static str> {
        plan(recipe, &Shapes::default()).phases.iter().map(|phase| phase.phase).collect()
    }

    #[test]
    fn phases_are_planned_in_the_order_of_the_stage() {
        let of = |stage| names(&Recipe { stage, ..Recipe::default() });
        assert_eq!(of(Stage::RlDistill), ["rl", "demos", "kd"]);
        assert_eq!(of(Stage::DistillGkd), ["demos", "kd", "gkd"]);
        let mut given = Recipe { stage: Stage::Distill, ..Recipe::default() };
        given.data.trajectories = vec!["t.jsonl".into()];
        assert_eq!(names(&given), ["kd"], "the teacher plays nothing");
    }

    #[test]
    fn gkd_plays_and_learns_from_each_question_once() {
        let recipe = Recipe { stage: Stage::Gkd, ..Recipe::default() };
        let plan = plan(&recipe, &Shapes { student: Some(qwen_half_b()), teacher: Some(qwen_half_b()) });
        let gkd = phase(&plan, "gkd");
        assert_eq!((gkd.steps, gkd.episodes, gkd.optimizer_steps), (1000, 512_000, 1000));
        assert_eq!((gkd.max_sampled_tokens, gkd.max_trained_tokens), (512_000 * 2500, 512_000 * 4096));
        let what: Vec<&str> = plan.memory[0].items.iter().map(|item| item.what.split(':').next().unwrap_or_default()).collect();
        assert!(what.contains(&"teacher") && !what.contains(&"critic"), "{what:?}");
        assert!(plan.memory[0].items.iter().any(|item| item.what == "student: KV cache of 256 rows x 4096 positions"), "{plan:?}");
    }

    #[test]
    fn distillms_held_out_episodes_are_not_trained_on_and_its_rollouts_are_a_bound() {
        let mut recipe = Recipe { stage: Stage::Distill, ..Recipe::default() };
        recipe.demos.n_episodes = 1000;
        (recipe.distill.epochs, recipe.distill.batch) = (1, 100);
        let planned = |recipe: &Recipe| phase(&plan(recipe, &Shapes::default()), "kd").clone();
        assert_eq!((planned(&recipe).steps, planned(&recipe).max_sampled_tokens), (10, 0));
        (recipe.distill.student_outputs.is_adaptive, recipe.distill.student_outputs.n_validation) = (true, 101);
        // 899 remain: nine batches, each of which the student may play.
        assert_eq!((planned(&recipe).steps, planned(&recipe).max_sampled_tokens), (9, 900 * 2500));
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
        // Evaluations between the steps measure how far from it the student is.
        recipe.eval.every = 25;
        assert!(has_teacher(&recipe));
        recipe.kl.mode = KlMode::Selective;
        assert_eq!(memory(&recipe, &shapes)[0].items.iter().filter(|item| item.what.starts_with("teacher: parameters")).count(), 1);
    }
}
