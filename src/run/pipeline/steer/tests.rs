use super::*;
use crate::config::Stage;

/// A run whose newest checkpoint is of `phase`, after `step` of `total`.
fn run(root: &Path, recipe: &Recipe, (phase, step, total): (Phase, usize, usize)) -> RunDir {
    let run = RunDir::create(root, "a", recipe, &json!({ "seed": 0 })).unwrap();
    let state = json!({ "step": step, "total": total, "recipe": recipe });
    checkpoint::save(run.path(), phase, step, 0, |dir| checkpoint::write_state(dir, &state))
        .unwrap();
    run
}

fn recipe(stage: Stage) -> Recipe {
    let mut recipe = Recipe { stage, ..Recipe::default() };
    (recipe.data.train, recipe.data.test) = (vec!["q.jsonl".into()], vec!["t.jsonl".into()]);
    (recipe.data.corpus, recipe.run.name) = ("c.jsonl".into(), "a".into());
    recipe
}

fn told(run: &RunDir, settings: &[&str]) -> Result<Steered, String> {
    steered(run, &settings.iter().map(|setting| (*setting).to_owned()).collect::<Vec<_>>())
        .map_err(|error| error.to_string())
}

#[test]
fn a_phase_with_nothing_behind_it_may_be_lengthened_at_its_end() {
    let root = tempfile::tempdir().unwrap();
    let run = run(root.path(), &recipe(Stage::Pipeline), (Phase::Rl, 1000, 1000));
    assert_eq!(told(&run, &["rl.steps=1500"]).unwrap().recipe.rl.steps, 1500);
    // The same rate, with steps that will read it and without.
    assert!(told(&run, &["rl.steps=1500", "optim.actor.lr=1e-7"]).is_ok());
    assert!(told(&run, &["optim.actor.lr=1e-7"]).unwrap_err().contains("rl is over"));
}

#[test]
fn the_order_of_the_stage_decides_what_is_over() {
    let root = tempfile::tempdir().unwrap();
    let run = run(root.path(), &recipe(Stage::RlDistill), (Phase::Kd, 10, 100));
    assert!(told(&run, &["rl.steps=1500"]).unwrap_err().contains("rl is over"));
    assert!(told(&run, &["optim.distill.lr=1e-5", "distill.epochs=7"]).is_ok());
    // KD reads episodes that were kept by the old length.
    assert!(
        told(&run, &["episode.max_response_length=600"])
            .unwrap_err()
            .contains("episodes played by it")
    );
}

#[test]
fn epochs_make_a_finished_distillation_longer_in_proportion() {
    let (mut before, mut now) = (recipe(Stage::Distill), recipe(Stage::Distill));
    (before.distill.epochs, now.distill.epochs) = (5, 7);
    assert_eq!(total_now(Phase::Kd, 50, Some(&before), &now), 70);
    now.distill.steps = 60;
    assert_eq!(total_now(Phase::Kd, 50, Some(&before), &now), 60);
    assert_eq!(total_now(Phase::Kd, 50, None, &before), 50, "an older checkpoint does not say");
}

#[test]
fn what_is_told_twice_behind_one_checkpoint_is_recorded_once_and_taken_back() {
    let root = tempfile::tempdir().unwrap();
    let run = run(root.path(), &recipe(Stage::Rl), (Phase::Rl, 50, 1000));
    let tell = |settings: &[&str]| {
        told(&run, settings).unwrap().record(&run, &["dgpo".to_owned()]).unwrap()
    };
    tell(&["rl.steps=1500"]);
    tell(&["guards.window=3"]);
    let changes = run.provenance().unwrap()["changes"].clone();
    assert_eq!(changes.as_array().map(Vec::len), Some(1), "{changes:#}");
    assert_eq!(changes[0]["settings"]["rl.steps"], json!({ "was": 1000, "now": 1500 }));
    assert_eq!(changes[0]["settings"]["guards.window"]["now"], 3);
    tell(&["rl.steps=1000", "guards.window=10"]);
    assert_eq!(run.provenance().unwrap(), json!({ "seed": 0 }));
    assert_eq!(run.recipe().unwrap(), recipe(Stage::Rl));
}

#[test]
fn a_coefficient_that_is_steered_is_not_set() {
    let root = tempfile::tempdir().unwrap();
    let mut adaptive = recipe(Stage::Rl);
    adaptive.kl.target = 0.1;
    let run = run(root.path(), &adaptive, (Phase::Rl, 50, 1000));
    assert!(told(&run, &["kl.coef=0.01"]).unwrap_err().contains("kl.target steers it"));
}
