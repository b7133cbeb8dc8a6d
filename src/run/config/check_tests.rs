use super::*;
use dgpo_core::settings::{KlMode, KlReference};

/// A recipe without any problem.
fn runnable() -> Recipe {
    let mut recipe = Recipe::default();
    recipe.data.train = vec!["train.jsonl".into()];
    recipe.data.test = vec!["test.jsonl".into()];
    recipe.data.corpus = "corpus.jsonl".into();
    recipe
}

/// The one problem that `change` makes.
pub(super) fn problem(change: impl FnOnce(&mut Recipe)) -> Problem {
    let mut recipe = runnable();
    change(&mut recipe);
    let mut errors = check(&recipe).errors;
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.remove(0)
}

pub(super) fn n_problems(change: impl FnOnce(&mut Recipe)) -> usize {
    let mut recipe = runnable();
    change(&mut recipe);
    check(&recipe).errors.len()
}

#[test]
fn the_papers_recipe_with_data_has_neither_error_nor_warning() {
    let found = check(&runnable());
    assert!(found.errors.is_empty() && found.warnings.is_empty(), "{found:?}");
}

#[test]
fn sizes_must_be_positive() {
    assert_eq!(problem(|r| r.rl.steps = 0).key, "rl.steps");
    assert_eq!(problem(|r| r.rl.epochs = 0).key, "rl.epochs");
    assert_eq!(problem(|r| r.episode.max_rows = 0).key, "episode.max_rows");
    assert_eq!(problem(|r| r.distill.batch = 0).key, "distill.batch");
    assert_eq!(problem(|r| r.demos.n_episodes = 0).key, "demos.n_episodes");
    assert_eq!(problem(|r| r.retriever.top_k = 0).key, "retriever.top_k");
    // Zero rows a mini-batch is one problem, not also a division by it.
    assert_eq!(problem(|r| r.rl.mini_batch = 0).key, "rl.mini_batch");
}

#[test]
fn prompt_and_one_turn_must_fit() {
    let found = problem(|r| r.episode.max_prompt_length = 2000);
    assert!(found.message.contains("2048") && found.hint.starts_with("2548"), "{found}");
    assert_eq!(n_problems(|r| r.episode.max_prompt_length = 2548), 0);
}

#[test]
fn the_instruction_must_hold_the_question() {
    assert_eq!(problem(|r| r.episode.instruction = "Answer.".into()).key, "episode.instruction");
}

#[test]
fn a_teacher_is_needed_where_something_uses_it() {
    let rl_without_teacher = |r: &mut Recipe| {
        r.stage = Stage::Rl;
        r.model.teacher.clear();
    };
    assert_eq!(problem(rl_without_teacher).key, "kl.reference");
    assert_eq!(
        n_problems(|r| {
            rl_without_teacher(r);
            r.kl.mode = KlMode::None;
        }),
        0
    );
    assert_eq!(
        n_problems(|r| {
            rl_without_teacher(r);
            (r.kl.mode, r.kl.reference) = (KlMode::Uniform, KlReference::Initial);
        }),
        0
    );
}

#[test]
fn distillation_without_a_teacher_needs_trajectories_and_no_kl() {
    let without_teacher = |r: &mut Recipe, kl_weight: f64, trajectories: &[&str]| {
        r.stage = Stage::Distill;
        r.model.teacher.clear();
        r.distill.kl_weight = kl_weight;
        r.data.trajectories = trajectories.iter().map(|t| (*t).to_owned()).collect();
    };
    assert_eq!(n_problems(|r| without_teacher(r, 0.0, &["t.jsonl"])), 0);
    assert_eq!(problem(|r| without_teacher(r, 1.0, &["t.jsonl"])).key, "distill.kl_weight");
    assert_eq!(problem(|r| without_teacher(r, 0.0, &[])).key, "model.teacher");
}

#[test]
fn distillation_must_have_a_loss_and_a_length() {
    assert_eq!(
        problem(|r| (r.distill.ce_weight, r.distill.kl_weight) = (0.0, 0.0)).key,
        "distill.ce_weight"
    );
    assert_eq!(problem(|r| r.distill.epochs = 0).key, "distill.epochs");
}

#[test]
fn probabilities_and_weights_stay_in_their_range() {
    assert_eq!(problem(|r| r.episode.top_p = 0.0).key, "episode.top_p");
    assert_eq!(problem(|r| r.episode.top_p = 1.5).key, "episode.top_p");
    assert_eq!(problem(|r| r.gae.gamma = 1.1).key, "gae.gamma");
    assert_eq!(problem(|r| r.gae.lambda = -0.1).key, "gae.lambda");
    assert_eq!(problem(|r| r.kl.coef = f64::NAN).key, "kl.coef");
    assert_eq!(problem(|r| r.rl.clip_ratio = 0.0).key, "rl.clip_ratio");
    assert_eq!(problem(|r| r.optim.critic.beta2 = 1.0).key, "optim.critic.beta2");
    assert_eq!(problem(|r| r.optim.actor.lr = f64::INFINITY).key, "optim.actor.lr");
}

#[test]
fn warm_up_is_a_share_of_the_steps() {
    let found = problem(|r| r.optim.actor.warmup = 100.0);
    assert!(found.key == "optim.actor.warmup" && found.hint.contains("share"), "{found}");
}

#[test]
fn each_retriever_needs_its_own_input() {
    let remote = |r: &mut Recipe, url: &str| {
        (r.retriever.kind, r.retriever.url) = (RetrieverKind::Remote, url.into())
    };
    assert_eq!(problem(|r| remote(r, "")).key, "retriever.url");
    assert_eq!(n_problems(|r| remote(r, "http://127.0.0.1:8000/retrieve")), 0);
    assert_eq!(problem(|r| r.data.corpus.clear()).key, "data.corpus");
    assert_eq!(problem(|r| r.retriever.encoder.clear()).key, "retriever.encoder");
    assert_eq!(problem(|r| r.retriever.hnsw_ef_search = 2).key, "retriever.hnsw_ef_search");
    assert_eq!(problem(|r| r.retriever.hnsw_m = 256).key, "retriever.hnsw_m");
}

#[test]
fn a_run_needs_questions() {
    assert_eq!(problem(|r| r.data.train.clear()).key, "data.train");
    assert_eq!(problem(|r| r.data.test.clear()).key, "data.test");
    assert_eq!(
        problem(|r| r.data.test = ["a", "b", "a"].map(String::from).into()).key,
        "data.test"
    );
}

#[test]
fn greedy_training_episodes_are_refused() {
    assert_eq!(problem(|r| r.episode.temperature = 0.0).key, "episode.temperature");
}

#[test]
fn a_run_name_is_one_folder() {
    assert_eq!(problem(|r| r.run.name = "a/b".into()).key, "run.name");
    assert_eq!(problem(|r| r.run.name = "..".into()).key, "run.name");
    assert_eq!(n_problems(|r| r.run.name = "dgpo-0.5b_seed+1".into()), 0);
}

#[test]
fn odd_but_legal_settings_are_warnings() {
    let warned = |change: fn(&mut Recipe)| {
        let mut recipe = runnable();
        change(&mut recipe);
        check(&recipe).warnings.iter().map(|problem| problem.key).collect::<Vec<_>>()
    };
    assert_eq!(warned(|r| r.kl.reference = KlReference::Initial), ["kl.reference"]);
    assert_eq!(warned(|r| r.episode.top_k = 50), ["episode.top_p"]);
    assert_eq!(warned(|r| r.rl.micro_batch_tokens = 1000), ["rl.micro_batch_tokens"]);
}

#[test]
fn every_broken_rule_is_reported_at_once() {
    let n = n_problems(|r| {
        r.rl.steps = 0;
        r.episode.max_rows = 0;
        r.episode.top_p = 2.0;
    });
    assert_eq!(n, 3);
}

#[test]
fn other_stages_are_not_held_to_rules_of_rl() {
    let encoder = |r: &mut Recipe| {
        r.stage = Stage::Encoder;
        r.rl.steps = 0;
        r.data.train.clear();
    };
    assert_eq!(n_problems(encoder), 0);
    assert_eq!(problem(|r| (r.stage, r.encoder.batch) = (Stage::Encoder, 1)).key, "encoder.batch");
    assert_eq!(
        problem(|r| (r.stage, r.pretrain.steps) = (Stage::Pretrain, 0)).key,
        "pretrain.steps"
    );
}

#[test]
fn capabilities_without_questions_are_warned_about() {
    let mut recipe = Recipe { stage: Stage::Rl, ..runnable() };
    (recipe.eval.arcap, recipe.data.test) = (true, Vec::new());
    let found = check(&recipe);
    assert!(
        found.errors.is_empty() && found.warnings.iter().any(|warning| warning.key == "eval.arcap"),
        "{found:?}"
    );
}
