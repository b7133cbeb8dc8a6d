use super::*;
use crate::config::shapes::published_decoder;

fn qwen_half_b() -> DecoderConfig {
    published_decoder("Qwen/Qwen2.5-0.5B").expect("a published model")
}

fn phase<'a>(plan: &'a RunPlan, name: &str) -> &'a PhasePlan {
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
    (recipe.rl.questions_per_step, recipe.rl.episodes_per_question, recipe.rl.mini_batch) =
        (128, 5, 320);
    let plan = plan(&recipe, &Shapes { student: Some(qwen_half_b()), ..Shapes::default() });
    let rl = phase(&plan, "rl");
    assert_eq!((rl.steps, rl.episodes, rl.optimizer_steps), (1000, 640_000, 2000));
    assert!(
        plan.memory[0].items.iter().all(|item| !item.what.starts_with("critic")),
        "{:?}",
        plan.memory[0].items
    );
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
    let plan = plan(
        &recipe,
        &Shapes { student: Some(qwen_half_b()), teacher: Some(qwen_half_b()), ..Shapes::default() },
    );
    let gkd = phase(&plan, "gkd");
    assert_eq!((gkd.steps, gkd.episodes, gkd.optimizer_steps), (1000, 512_000, 1000));
    assert_eq!((gkd.max_sampled_tokens, gkd.max_trained_tokens), (512_000 * 2500, 512_000 * 4096));
    let what: Vec<&str> = plan.memory[0]
        .items
        .iter()
        .map(|item| item.what.split(':').next().unwrap_or_default())
        .collect();
    assert!(what.contains(&"teacher") && !what.contains(&"critic"), "{what:?}");
    assert!(
        plan.memory[0]
            .items
            .iter()
            .any(|item| item.what == "student: KV cache of 256 rows x 4096 positions"),
        "{plan:?}"
    );
}

#[test]
fn distillms_held_out_episodes_are_not_trained_on_and_its_rollouts_are_a_bound() {
    let mut recipe = Recipe { stage: Stage::Distill, ..Recipe::default() };
    recipe.demos.n_episodes = 1000;
    (recipe.distill.epochs, recipe.distill.batch) = (1, 100);
    let planned = |recipe: &Recipe| phase(&plan(recipe, &Shapes::default()), "kd").clone();
    assert_eq!((planned(&recipe).steps, planned(&recipe).max_sampled_tokens), (10, 0));
    (recipe.distill.student_outputs.is_adaptive, recipe.distill.student_outputs.n_validation) =
        (true, 101);
    // 899 remain: nine batches, each of which the student may play.
    assert_eq!((planned(&recipe).steps, planned(&recipe).max_sampled_tokens), (9, 900 * 2500));
}

#[test]
fn training_half_a_billion_parameters_in_f32_takes_the_known_7_9_gigabytes() {
    let recipe = Recipe {
        model: crate::config::ModelRecipe {
            dtype: crate::config::FloatType::F32,
            ..Default::default()
        },
        ..Default::default()
    };
    let bytes: usize =
        trained("student", &qwen_half_b(), &recipe).iter().map(|item| item.size_bytes).sum();
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
    let shapes =
        Shapes { student: Some(qwen_half_b()), teacher: Some(qwen_half_b()), ..Shapes::default() };
    let mut recipe = Recipe { stage: Stage::Rl, ..Default::default() };
    let has_teacher = |recipe: &Recipe| {
        memory(recipe, &shapes)[0].items.iter().any(|item| item.what.starts_with("teacher"))
    };
    assert!(has_teacher(&recipe));
    recipe.kl.mode = KlMode::None;
    assert!(!has_teacher(&recipe));
    // Evaluations between the steps measure how far from it the student is.
    recipe.eval.every = 25;
    assert!(has_teacher(&recipe));
    recipe.kl.mode = KlMode::Selective;
    assert_eq!(
        memory(&recipe, &shapes)[0]
            .items
            .iter()
            .filter(|item| item.what.starts_with("teacher: parameters"))
            .count(),
        1
    );
}
