//! A run that goes on may be told to go on longer, and in some things otherwise; what is behind it
//! stays what it was.
use crate::support::{World, copy_folder, files_below, metrics_of};
use serde_json::{Value, json};

/// An RL run of some steps whose learning rate does not depend on how many.
const STEADY: [&str; 8] = [
    "--set",
    "optim.actor.warmup=0",
    "--set",
    "optim.critic.warmup=0",
    "--set",
    "optim.actor.decay=constant",
    "--set",
    "optim.critic.decay=constant",
];

fn train(world: &World, name: &str, steps: usize) {
    let steps = format!("rl.steps={steps}");
    world
        .dgpo(
            &[&["train", "--config", "rl.toml", "--name", name, "--set", &steps][..], &STEADY]
                .concat(),
        )
        .done();
}

fn provenance(world: &World, run: &str) -> Value {
    serde_json::from_slice(
        &std::fs::read(world.path(&format!("runs/{run}/provenance.json"))).unwrap(),
    )
    .unwrap()
}

#[test]
fn a_finished_run_goes_on_longer_bit_for_bit_and_the_record_says_so() {
    let world = World::new();
    train(&world, "whole", 4);
    train(&world, "a", 2);
    world.dgpo(&["train", "--resume", "runs/a", "--set", "rl.steps=4"]).done();
    let [whole, longer] = ["whole", "a"].map(|run| {
        let mut files = files_below(&world.path(&format!("runs/{run}/checkpoints/rl-step-000004")));
        assert!(files.remove(std::path::Path::new("state.json")).is_some());
        (files, metrics_of(&world.path(&format!("runs/{run}"))))
    });
    assert!(
        whole == longer,
        "weights, optimizers and metrics are those of a run that was begun with four steps"
    );
    let changes = &provenance(&world, "a")["changes"];
    assert_eq!(
        (&changes[0]["behind"], &changes[0]["settings"]),
        (&json!("rl-step-000002"), &json!({"rl.steps": {"was": 2, "now": 4}}))
    );
    assert!(
        changes[0]["command_line"].as_array().unwrap().contains(&json!("rl.steps=4")),
        "{changes:#}"
    );
    let shown = world.dgpo(&["runs", "show", "a"]).done().stdout;
    assert!(
        shown.contains(
            "settings that changed on the way\n  behind rl-step-000002: rl.steps = 4 (was 2)\n"
        ),
        "{shown}"
    );
    assert_eq!(&world.dgpo(&["runs", "show", "a", "--json"]).json()["changes"], changes);
    assert!(
        std::fs::read_to_string(world.path("runs/a/report.md"))
            .unwrap()
            .contains("behind rl-step-000002: rl.steps = 4 (was 2)")
    );
    // It stays what it was told.
    world.dgpo(&["train", "--resume", "runs/a"]).done();
    assert_eq!(&provenance(&world, "a")["changes"], changes);
    assert!(
        std::fs::read_to_string(world.path("runs/a/recipe.toml")).unwrap().contains("steps = 4\n")
    );
}

#[test]
fn another_learning_rate_evaluations_and_guards_concern_what_is_to_come() {
    let world = World::new();
    train(&world, "a", 2);
    let settings = [
        "rl.steps=3",
        "optim.actor.lr=0",
        "eval.every=1",
        "data.test=[\"questions.jsonl\"]",
        "data.max_test=2",
        "guards.window=3",
    ];
    let arguments: Vec<&str> = settings.iter().flat_map(|setting| ["--set", *setting]).collect();
    world.dgpo(&[&["train", "--resume", "runs/a"][..], &arguments].concat()).done();
    let weights = |step: usize| {
        std::fs::read(
            world.path(&format!("runs/a/checkpoints/rl-step-{step:06}/model/model.safetensors")),
        )
        .unwrap()
    };
    assert!(weights(2) == weights(3), "at a learning rate of 0 nothing is learned");
    assert_eq!(
        metrics_of(&world.path("runs/a"))
            .iter()
            .filter(|line| line.contains_key("eval/em"))
            .count(),
        1
    );
    assert_eq!(
        provenance(&world, "a")["changes"][0]["settings"].as_object().unwrap().len(),
        settings.len()
    );
}

#[test]
fn what_is_done_was_done_by_the_other_settings_and_they_stay() {
    let world = World::new();
    train(&world, "a", 2);
    let before = files_below(&world.path("runs/a"));
    let resume = |settings: &[&str]| {
        let arguments: Vec<&str> =
            settings.iter().flat_map(|setting| ["--set", *setting]).collect();
        world.dgpo(&[&["train", "--resume", "runs/a"][..], &arguments].concat())
    };
    let refused = resume(&["kl.mode=uniform", "rl.steps=4", "run.seed=3"]);
    let refused = refused.failed(
        2,
        &[
            "2 settings cannot be changed in the run runs/a",
            "kl.mode = \"uniform\" (it is \"selective\"): the steps so far were computed with it",
            "run.seed = 3 (it is 0): the questions and the random numbers so far were drawn with \
             it",
        ],
    );
    resume(&["rl.steps=1"])
        .failed(2, &["rl.steps = 1 (it is 2): 2 steps are done; rl.steps=2 ends the phase there"]);
    resume(&["gkd.steps=1"]).failed(2, &["gkd.steps", "this run has no phase gkd"]);
    resume(&["rl.stesp=1"]).failed(2, &["rl.stesp", "did you mean rl.steps?"]);
    resume(&["optim.actor.lr=-1"]).failed(2, &["optim.actor.lr"]);
    assert!(files_below(&world.path("runs/a")) == before, "nothing was touched");
    // The way out that is named is one.
    let command = refused
        .stderr
        .split("begin a run of its own from here: cargo xtask ")
        .nth(1)
        .expect("a command");
    let words: Vec<&str> = command.split_whitespace().collect();
    world.dgpo(&words).done();
    let recipe = std::fs::read_to_string(world.path("runs/a-2/recipe.toml")).unwrap();
    assert!(
        recipe.contains("mode = \"uniform\"")
            && recipe.contains("student = \"runs/a/checkpoints/rl-step-000002/model\""),
        "{recipe}"
    );
}

#[test]
fn a_phase_that_is_over_is_not_told_otherwise() {
    let world = World::new();
    world.dgpo(&["train", "--config", "smoke", "--name", "a"]).done();
    let resume = |setting| world.dgpo(&["train", "--resume", "runs/a", "--set", setting]);
    for setting in ["distill.epochs=9", "optim.distill.lr=1"] {
        resume(setting).failed(
            2,
            &[
                setting.split('=').next().unwrap(),
                "kd is over, and nothing that is still to come reads it",
            ],
        );
    }
}

#[test]
fn distillation_goes_on_longer_too() {
    let world = World::new();
    world.dgpo(&["train", "--config", "kd.toml", "--name", "a", "--set", "distill.steps=2"]).done();
    world.dgpo(&["train", "--resume", "runs/a", "--set", "distill.steps=3"]).done();
    assert_eq!(metrics_of(&world.path("runs/a")).len(), 3);
}

#[test]
fn the_checkpoint_of_another_run_or_another_model_is_refused() {
    let world = World::new();
    train(&world, "a", 2);
    // The same shape, and another model: only the recipe knows.
    copy_folder(&world.path("talker"), &world.path("other"));
    world
        .dgpo(&[
            "train",
            "--config",
            "rl.toml",
            "--name",
            "b",
            "--set",
            "model.student=other",
            "--set",
            "rl.steps=3",
        ])
        .done();
    let inside = |run: &str| world.path(&format!("runs/{run}/checkpoints/rl-step-000003"));
    copy_folder(&inside("b"), &inside("a"));
    let resume = || world.dgpo(&["train", "--resume", "runs/a"]);
    resume().failed(
        2,
        &[
            "model.student = \"talker\" (it is \"other\")",
            "came from another run, remove that folder",
        ],
    );
    // A checkpoint that does not say what it was made with, of another shape.
    world
        .dgpo(&[
            "train",
            "--config",
            "rl.toml",
            "--name",
            "c",
            "--set",
            "model.student=random:teacher",
            "--set",
            "guards.action=off",
            "--set",
            "rl.steps=3",
        ])
        .done();
    std::fs::remove_dir_all(inside("a")).unwrap();
    copy_folder(&inside("c"), &inside("a"));
    let path = inside("a").join("state.json");
    let mut state: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    state.as_object_mut().unwrap().remove("recipe");
    std::fs::write(&path, state.to_string()).unwrap();
    resume().failed(
        2,
        &[
            "rl-step-000003 is a checkpoint of another model than talker",
            "num_hidden_layers is 2 there and 1 here",
        ],
    );
    std::fs::remove_dir_all(inside("a")).unwrap();
    world.dgpo(&["train", "--resume", "runs/a", "--set", "rl.steps=3"]).done();
}

#[test]
fn another_runs_recipe_is_refused() {
    let world = World::new();
    train(&world, "a", 2);
    let path = world.path("runs/a/recipe.toml");
    let recipe = std::fs::read_to_string(&path).unwrap();
    world.write(
        "runs/a/recipe.toml",
        &recipe.replace("student = \"talker\"", "student = \"random:student\""),
    );
    let refused = world.dgpo(&["train", "--resume", "runs/a"]);
    refused.failed(2, &["model.student", "write the old values back into runs/a/recipe.toml"]);
}
