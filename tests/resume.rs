//! Runs that are killed or interrupted go on where they were, and end as if nothing had happened.
use crate::support::{World, at_line, files_below, interrupt, metrics_of, names_in};
use serde_json::Value;

/// 4 steps in one process, and 4 steps of a process that dies behind checkpoint 2 and another that
/// continues.
pub(crate) fn train_whole_and_killed(recipe: &str, phase: &str, device: &str) -> World {
    let world = World::new();
    train_whole_and_killed_in(&world, recipe, phase, device);
    world
}

/// As [`train_whole_and_killed`], in a world that holds the recipe already.
pub(crate) fn train_whole_and_killed_in(world: &World, recipe: &str, phase: &str, device: &str) {
    world.dgpo(&["train", "--config", recipe, "--name", "whole", "--device", device]).done();
    let mut command =
        world.command(&["train", "--config", recipe, "--name", "killed", "--device", device]);
    let killed = at_line(
        &mut command,
        &format!("checkpoint runs/killed/checkpoints/{phase}-step-000002"),
        |child| child.kill().unwrap(),
    );
    assert_eq!(killed.code, None, "a signal ends a killed process");
    assert!(
        !world.path(&format!("runs/killed/checkpoints/{phase}-step-000004")).exists(),
        "the process was killed too late"
    );
    world.dgpo(&["train", "--resume", "runs/killed", "--device", device]).done();
}

/// The two runs that [`train_whole_and_killed`] makes.
pub(crate) const WHOLE_AND_KILLED: [&str; 2] = ["whole", "killed"];

/// Files of two runs' checkpoints behind step 4 are equal, but for what tells the time.
pub(crate) fn assert_same_checkpoint(world: &World, runs: [&str; 2], phase: &str, parts: &[&str]) {
    let [mut whole, mut killed] = runs.map(|run| {
        files_below(&world.path(&format!("runs/{run}/checkpoints/{phase}-step-000004")))
    });
    for part in parts {
        assert!(whole.contains_key(std::path::Path::new(part)), "the checkpoint lacks {part}");
    }
    let [whole_state, killed_state] = [&mut whole, &mut killed].map(|files| {
        let mut state: Value =
            serde_json::from_slice(&files.remove(std::path::Path::new("state.json")).unwrap())
                .unwrap();
        assert!(state.as_object_mut().unwrap().remove("wall_s").is_some());
        // The runs' names differ, and with them the recipes.
        assert!(state["recipe"]["run"].as_object_mut().unwrap().remove("name").is_some());
        state
    });
    assert_eq!(whole_state, killed_state);
    assert_eq!(whole.keys().collect::<Vec<_>>(), killed.keys().collect::<Vec<_>>());
    let different: Vec<_> = whole
        .iter()
        .filter(|(name, bytes)| killed[*name] != **bytes)
        .map(|(name, _)| name)
        .collect();
    assert!(different.is_empty(), "these files differ: {different:?}");
}

/// And so are the metrics.
pub(crate) fn assert_same_end(world: &World, phase: &str, parts: &[&str]) {
    assert_same_checkpoint(world, WHOLE_AND_KILLED, phase, parts);
    let [whole_metrics, killed_metrics] =
        WHOLE_AND_KILLED.map(|run| metrics_of(&world.path(&format!("runs/{run}"))));
    assert_eq!(whole_metrics.len(), 4);
    assert_eq!(whole_metrics, killed_metrics);
}

#[test]
fn a_killed_kd_run_continues_bit_for_bit() {
    let world = train_whole_and_killed("kd.toml", "kd", "cpu");
    assert_same_end(
        &world,
        "kd",
        &[
            "model/model.safetensors",
            "model/config.json",
            "model/tokenizer.json",
            "optimizer.safetensors",
        ],
    );
}

#[test]
fn a_killed_rl_run_continues_bit_for_bit() {
    let world = train_whole_and_killed("rl.toml", "rl", "cpu");
    let parts = [
        "model/model.safetensors",
        "optimizer.safetensors",
        "critic/model.safetensors",
        "critic_optimizer.safetensors",
    ];
    assert_same_end(&world, "rl", &parts);
    // The episodes of the last steps were played from the same weights with the same random
    // numbers.
    for step in ["rl-step-000003.jsonl", "rl-step-000004.jsonl"] {
        let [whole, killed] = ["whole", "killed"]
            .map(|run| std::fs::read(world.path(&format!("runs/{run}/episodes/{step}"))).unwrap());
        assert_eq!(whole, killed, "{step}");
    }
}

#[test]
fn a_run_killed_before_its_first_checkpoint_starts_anew() {
    let world = World::new();
    let arguments = ["train", "--config", "kd.toml", "--name", "early"];
    at_line(&mut world.command(&arguments), "kd: 4 steps", |child| child.kill().unwrap());
    world.dgpo(&["train", "--resume", "runs/early"]).done();
    let steps: Vec<u64> = metrics_of(&world.path("runs/early"))
        .iter()
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [1, 2, 3, 4]);
}

#[test]
fn a_finished_run_resumes_to_the_same_end() {
    let world = World::new();
    world.dgpo(&["train", "--config", "kd.toml", "--name", "a"]).done();
    let before = files_below(&world.path("runs/a/checkpoints"));
    world.dgpo(&["train", "--resume", "runs/a"]).done();
    assert_eq!(files_below(&world.path("runs/a/checkpoints")), before);
    assert_eq!(metrics_of(&world.path("runs/a")).len(), 4);
}

#[test]
fn ctrl_c_saves_exits_with_130_and_says_how_to_resume() {
    let world = World::new();
    let arguments = ["train", "--config", "rl.toml", "--name", "cut", "--set", "rl.steps=10"];
    let stopped = at_line(
        &mut world.command(&arguments),
        "checkpoint runs/cut/checkpoints/rl-step-000001",
        interrupt,
    );
    assert_eq!(stopped.code, Some(130), "{}", stopped.stderr);
    let checkpoints = names_in(&world.path("runs/cut/checkpoints"));
    assert!(
        !checkpoints.is_empty() && !checkpoints.contains(&"rl-step-000010".to_owned()),
        "{checkpoints:?}"
    );
    let last = stopped.stderr.lines().last().unwrap();
    assert!(last.ends_with("--resume runs/cut"), "{last}");
    world.dgpo(&["train", "--resume", "runs/cut"]).done();
    assert!(names_in(&world.path("runs/cut/checkpoints")).contains(&"rl-step-000010".to_owned()));
}

#[test]
fn an_evaluation_between_steps_is_repeated_where_a_kill_cut_it_off() {
    let world = World::new();
    let arguments = |name| {
        let evaluated = [
            "--set",
            "eval.every=2",
            "--set",
            "data.test=[\"questions.jsonl\"]",
            "--set",
            "data.max_test=4",
        ];
        [&["train", "--config", "rl.toml", "--name", name][..], &evaluated].concat()
    };
    world.dgpo(&arguments("whole")).done();
    let mut command = world.command(&arguments("killed"));
    at_line(&mut command, "checkpoint runs/killed/checkpoints/rl-step-000002", |child| {
        child.kill().unwrap()
    });
    world.dgpo(&["train", "--resume", "runs/killed"]).done();
    let [whole, killed] =
        ["whole", "killed"].map(|run| metrics_of(&world.path(&format!("runs/{run}"))));
    assert_eq!(whole, killed);
    assert_eq!(whole.iter().filter(|line| line.contains_key("eval/em")).count(), 1);
}

#[test]
fn a_run_whose_questions_changed_does_not_go_on() {
    let world = World::new();
    let mut command =
        world.command(&["train", "--config", "rl.toml", "--name", "a", "--set", "rl.steps=50"]);
    at_line(&mut command, "checkpoint runs/a/checkpoints/rl-step-000002", |child| {
        child.kill().unwrap()
    });
    let before = files_below(&world.path("runs/a"));
    for file in ["questions.jsonl", "corpus.jsonl"] {
        let text = std::fs::read_to_string(world.path(file)).unwrap();
        let of_nine: String = text.lines().take(9).map(|line| format!("{line}\n")).collect();
        // Fewer lines, and as many of which one says something else.
        for changed in [of_nine, text.replacen("e ", "er ", 1)] {
            assert_ne!(changed, text);
            world.write(file, &changed);
            world.dgpo(&["train", "--resume", "runs/a", "-q"]).failed(
                2,
                &[
                    &format!("{file} has changed since the run runs/a was started"),
                    "restore the file",
                    "train --config runs/a/recipe.toml --name a-2",
                ],
            );
        }
        world.write(file, &text);
    }
    assert_eq!(files_below(&world.path("runs/a")), before, "nothing was touched");
    // The newest of its checkpoints is behind 2 steps or a few more.
    world.dgpo(&["train", "--resume", "runs/a", "--set", "rl.steps=12"]).done();
}

#[test]
fn an_edited_recipe_is_said_and_its_evaluation_is_a_new_one() {
    let world = World::new();
    let test = [
        "--set",
        "data.test=[\"questions.jsonl\"]",
        "--set",
        "data.max_test=8",
        "--set",
        "rl.steps=2",
    ];
    world.dgpo(&[&["train", "--config", "rl.toml", "--name", "a"][..], &test].concat()).done();
    let evaluated = || -> Value {
        serde_json::from_slice(&std::fs::read(world.path("runs/a/evaluation/rl.json")).unwrap())
            .unwrap()
    };
    assert_eq!(evaluated()["of"], "rl-step-000002");
    let recipe = std::fs::read_to_string(world.path("runs/a/recipe.toml")).unwrap();
    let steps = |n: usize| format!("[rl]\nalgorithm = \"ppo\"\nsteps = {n}\n");
    assert!(recipe.contains(&steps(2)), "{recipe}");
    world.write("runs/a/recipe.toml", &recipe.replace(&steps(2), &steps(3)));
    let resumed = world.dgpo(&["train", "--resume", "runs/a"]).done();
    assert!(resumed.stderr.contains("rl.steps is 3 (was 2)"), "{}", resumed.stderr);
    assert_eq!(evaluated()["of"], "rl-step-000003");
}
