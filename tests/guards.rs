//! Runs that go wrong: what was seen is said, everything is saved, and a changed recipe can go on.
use crate::support::{Ended, World, metrics_of, names_in};
use serde_json::Value;
use std::collections::BTreeMap;

/// The talker at a learning rate at which it forgets everything it can in one update. A checkpoint
/// only at the end, and one guard alone.
const COLLAPSE: [&str; 20] = [
    "--config",
    "rl.toml",
    "--set",
    "rl.steps=8",
    "--set",
    "run.save_every=100",
    "--set",
    "optim.actor.lr=1.0",
    "--set",
    "guards.window=2",
    "--set",
    "guards.min_entropy_share=0",
    "--set",
    "guards.max_repetition=0",
    "--set",
    "guards.max_invalid_actions=0",
    "--set",
    "guards.max_logprob_diff=0",
    "-q",
    "--json",
];

fn collapse(world: &World, more: &[&str]) -> Ended {
    world.dgpo(&[&["train", "--name", "a"], &COLLAPSE[..], more].concat())
}

#[test]
fn a_collapse_stops_the_run_with_a_checkpoint_and_a_changed_recipe_goes_on() {
    let world = World::new();
    let stopped = collapse(&world, &[]);
    let said = [
        "rl step ",
        "reward collapse",
        "first bad step ",
        "likely cause",
        "optim.actor.lr",
        "guards.min_reward_share",
        "--resume runs/a",
    ];
    let stopped = stopped.failed(3, &said);
    let checkpoints = names_in(&world.path("runs/a/checkpoints"));
    let metrics = metrics_of(&world.path("runs/a"));
    let last = metrics.last().unwrap()["step"].as_u64().unwrap();
    assert!(
        last < 8 && stopped.stderr.contains(&format!("rl step {last}: ")),
        "{}",
        stopped.stderr
    );
    assert_eq!(checkpoints, [format!("rl-step-{last:06}")], "not due, and saved");
    assert!(world.path(&format!("runs/a/episodes/rl-step-{last:06}.jsonl")).is_file());

    let recipe = std::fs::read_to_string(world.path("runs/a/recipe.toml")).unwrap();
    assert!(recipe.contains("lr = 1.0\n"), "{recipe}");
    world.write("runs/a/recipe.toml", &recipe.replace("lr = 1.0\n", "lr = 0.0001\n"));
    let resumed = world.dgpo(&["train", "--resume", "runs/a"]).done();
    assert!(resumed.stderr.contains("optim.actor.lr is 0.0001 (was 1.0)"), "{}", resumed.stderr);
    assert!(names_in(&world.path("runs/a/checkpoints")).contains(&"rl-step-000008".to_owned()));
    // What was seen stays known, also under a recipe that would not have seen it.
    let seen = format!("rl step {last}: reward collapse");
    assert!(std::fs::read_to_string(world.path("runs/a/report.md")).unwrap().contains(&seen));
    assert!(
        world
            .dgpo(&["runs", "show", "a"])
            .done()
            .stdout
            .contains(&format!("the guards saw: {seen}"))
    );
}

#[test]
fn a_warning_is_said_once_and_the_run_goes_on() {
    let world = World::new();
    let arguments: Vec<&str> =
        COLLAPSE.iter().copied().filter(|argument| *argument != "-q").collect();
    let ended = world
        .dgpo(&[&["train", "--name", "a", "--set", "guards.action=warn"], &arguments[..]].concat())
        .done();
    assert_eq!(ended.stderr.matches("warning: rl step ").count(), 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("reward collapse"), "{}", ended.stderr);
    // Eight steps, and the alarm behind its own.
    let lines = metrics_of(&world.path("runs/a"));
    let alarms: Vec<&str> = lines.iter().filter_map(|line| line.get("alarm")?.as_str()).collect();
    assert_eq!((lines.len(), alarms.len()), (9, 1));
    assert!(ended.stderr.contains(alarms[0]), "{alarms:?}");
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_before_it_wastes_its_steps() {
    let world = World::new();
    let arguments = [
        "train",
        "--config",
        "kd.toml",
        "--name",
        "a",
        "-q",
        "--set",
        "optim.distill.lr=1e30",
        "--set",
        "distill.steps=40",
    ];
    let said = [
        "kd step ",
        "numbers that are not finite",
        "optim.distill.lr",
        "model.dtype",
        "guards.max_skipped",
    ];
    let stopped = world.dgpo(&arguments).failed(3, &said);
    // One update a step: the fourth that is skipped is more than three.
    let metrics = metrics_of(&world.path("runs/a"));
    let skipped =
        |line: &BTreeMap<String, Value>| line.get("charts/skipped_updates").and_then(Value::as_f64);
    assert_eq!(metrics.iter().rev().find_map(skipped), Some(4.0), "{}", stopped.stderr);
    let first =
        metrics.iter().find(|line| skipped(line) == Some(1.0)).unwrap()["step"].as_u64().unwrap();
    assert!(stopped.stderr.contains(&format!("first bad step {first}")), "{}", stopped.stderr);
}

#[test]
fn a_student_that_an_update_broke_is_an_alarm_whoever_finds_out() {
    let world = World::new();
    // The rollout of step 2 cannot draw from it, long before more than three updates are skipped.
    let rl = ["train", "--config", "rl.toml", "--name", "rl", "-q", "--set", "optim.actor.lr=1e30"];
    let said = [
        "rl step 1: numbers that are not finite: the student cannot play",
        "first bad step 1",
        "optim.actor.lr",
        "--resume runs/rl",
    ];
    world.dgpo(&rl).failed(3, &said);
    assert!(
        std::fs::read_to_string(world.path("runs/rl/report.md"))
            .unwrap()
            .contains("the student cannot play")
    );
    // Resumed as it is, the broken checkpoint says the same; without it, a changed recipe goes on.
    world.dgpo(&["train", "--resume", "runs/rl"]).failed(3, &said);
    std::fs::remove_dir_all(world.path("runs/rl/checkpoints/rl-step-000001")).unwrap();
    let recipe = std::fs::read_to_string(world.path("runs/rl/recipe.toml")).unwrap();
    let line = recipe
        .lines()
        .find(|line| line.strip_prefix("lr = ").is_some_and(|lr| lr.parse() == Ok(1e30)))
        .unwrap();
    world.write("runs/rl/recipe.toml", &recipe.replace(line, "lr = 1e-4"));
    world.dgpo(&["train", "--resume", "runs/rl"]).done();

    // A phase too short for three skipped updates does not pass for finished.
    let kd = [
        "train",
        "--config",
        "kd.toml",
        "--name",
        "kd",
        "-q",
        "--set",
        "optim.distill.lr=1e30",
        "--set",
        "distill.steps=3",
    ];
    world.dgpo(&kd).failed(3, &["kd step 3: numbers that are not finite", "optim.distill.lr"]);
}

#[test]
fn guards_that_are_off_let_a_broken_run_go_on() {
    let world = World::new();
    let off = [
        "--set",
        "guards.action=off",
        "--set",
        "distill.steps=6",
        "--set",
        "optim.distill.lr=1e30",
    ];
    world.dgpo(&[&["train", "--config", "kd.toml", "--name", "a"], &off[..]].concat()).done();
    assert_eq!(metrics_of(&world.path("runs/a")).len(), 6);
}
