//! Every method of the paper on the tiny world, a few steps of it: killed half way, it goes on to
//! the same end; and what a run takes over from another.
use crate::{
    resume::{WHOLE_AND_KILLED, assert_same_checkpoint},
    support::{World, at_line, metrics_of, names_in},
};
use serde_json::{Value, json};

/// Four steps of eight questions or episodes, and a checkpoint a step.
pub(crate) const SHRUNK: [&str; 15] = [
    "data.max_train=64",
    "data.max_test=3",
    "demos.n_episodes=48",
    "distill.steps=4",
    "distill.batch=8",
    "distill.student_outputs.validate_every=1",
    "distill.student_outputs.n_validation=4",
    "distill.student_outputs.initial_share=0.5",
    "gkd.steps=4",
    "gkd.questions_per_step=8",
    "rl.steps=4",
    "rl.questions_per_step=8",
    "rl.mini_batch=8",
    // A student that learned nothing yet does what the guards look for.
    "guards.action=off",
    "run.save_every=1",
];

/// `--set` before each setting.
pub(crate) fn settings<'s>(settings: &[&'s str]) -> Vec<&'s str> {
    settings.iter().flat_map(|setting| ["--set", *setting]).collect()
}

fn train<'a>(recipe: &'a str, name: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "--config", recipe, "--name", name][..], &settings(&SHRUNK), more].concat()
}

/// A method whose last phase is `phase`: a whole run, and one that dies behind that phase's second
/// step and is resumed.
fn assert_resumes(method: &str, phase: &str) {
    let world = World::new();
    let recipe = format!("tiny/{method}");
    world.dgpo(&train(&recipe, "whole", &[])).done();
    let line = format!("checkpoint runs/killed/checkpoints/{phase}-step-000002");
    let killed = at_line(&mut world.command(&train(&recipe, "killed", &[])), &line, |child| {
        child.kill().unwrap()
    });
    assert_eq!(killed.code, None, "a signal ends a killed process");
    assert!(
        !world.path(&format!("runs/killed/checkpoints/{phase}-step-000004")).exists(),
        "the process was killed too late"
    );
    world.dgpo(&["train", "--resume", "runs/killed"]).done();
    assert_same_checkpoint(
        &world,
        WHOLE_AND_KILLED,
        phase,
        &["model/model.safetensors", "optimizer.safetensors"],
    );
    let [whole, killed] =
        WHOLE_AND_KILLED.map(|run| metrics_of(&world.path(&format!("runs/{run}"))));
    assert_eq!(whole.iter().filter(|line| line["phase"] == phase).count(), 4);
    assert_eq!(whole, killed);
    let summary = |run: &str| -> Value {
        let mut summary: Value = serde_json::from_slice(
            &std::fs::read(world.path(&format!("runs/{run}/summary.json"))).unwrap(),
        )
        .unwrap();
        summary.as_object_mut().unwrap().remove("wall_s");
        summary
    };
    assert!(summary("whole")[phase]["em"].is_f64(), "{:#}", summary("whole"));
    assert_eq!(summary("whole"), summary("killed"));
}

#[test]
fn sft_resumes() {
    assert_resumes("sft", "kd");
}

#[test]
fn seqkd_resumes() {
    assert_resumes("seqkd", "kd");
}

#[test]
fn kd_resumes() {
    assert_resumes("kd", "kd");
}

#[test]
fn gkd_resumes() {
    assert_resumes("gkd", "gkd");
}

#[test]
fn distillm_resumes_with_its_replay_buffer() {
    assert_resumes("distillm", "kd");
}

#[test]
fn taid_resumes_with_its_target() {
    assert_resumes("taid", "kd");
}

#[test]
fn ppo_resumes() {
    assert_resumes("ppo", "rl");
}

#[test]
fn sft_ppo_resumes() {
    assert_resumes("sft-ppo", "rl");
}

#[test]
fn dgpo_resumes() {
    assert_resumes("dgpo", "rl");
}

#[test]
fn dgpo_with_grpo_resumes() {
    assert_resumes("dgpo-grpo", "rl");
}

#[test]
fn dgpo_without_kd_resumes() {
    assert_resumes("dgpo-no-kd", "rl");
}

#[test]
fn dgpo_with_the_uniform_kl_resumes() {
    assert_resumes("dgpo-uniform-kl", "rl");
}

#[test]
fn dgpo_without_the_teacher_resumes() {
    assert_resumes("dgpo-no-teacher", "rl");
}

#[test]
fn ppo_before_kd_resumes() {
    assert_resumes("ppo-kd", "kd");
}

#[test]
fn kd_before_gkd_resumes() {
    assert_resumes("kd-gkd", "gkd");
}

#[test]
fn grpo_resumes() {
    assert_resumes("grpo", "rl");
}

#[test]
fn the_llama_shaped_student_trains() {
    let world = World::new();
    let summary = world.dgpo(&train("tiny-llama/dgpo", "llama", &["--json"])).json();
    assert!(
        ["student", "teacher", "kd", "rl"].iter().all(|model| summary[model]["em"].is_f64()),
        "{summary:#}"
    );
    let config =
        std::fs::read(world.path("runs/llama/checkpoints/rl-step-000004/model/config.json"))
            .unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&config).unwrap()["model_type"], "llama");
}

#[test]
fn a_run_that_takes_phases_over_ends_as_one_that_did_them_itself() {
    let world = World::new();
    world.dgpo(&train("tiny/dgpo", "alone", &[])).done();
    world.dgpo(&train("tiny/kd", "cold", &[])).done();
    let taken = world.dgpo(&train("tiny/dgpo", "taken", &["--from", "cold"])).done();
    assert!(taken.stderr.contains("taken over from runs/cold: demos, kd\n"), "{}", taken.stderr);
    assert!(!taken.stderr.contains("the recipe was changed since"), "{}", taken.stderr);
    let parts = [
        "model/model.safetensors",
        "optimizer.safetensors",
        "critic/model.safetensors",
        "critic_optimizer.safetensors",
    ];
    assert_same_checkpoint(&world, ["alone", "taken"], "rl", &parts);
    assert_eq!(metrics_of(&world.path("runs/alone")), metrics_of(&world.path("runs/taken")));
    let provenance: Value =
        serde_json::from_slice(&std::fs::read(world.path("runs/taken/provenance.json")).unwrap())
            .unwrap();
    assert_eq!(
        (&provenance["taken_over"]["run"], &provenance["taken_over"]["phases"]),
        (&json!("runs/cold"), &json!(["demos", "kd"]))
    );
    // Neither run needs the other one any more.
    std::fs::remove_dir_all(world.path("runs/cold")).unwrap();
    world.dgpo(&["train", "--resume", "runs/taken"]).done();
}

#[test]
fn a_run_that_took_phases_over_and_was_killed_goes_on() {
    let world = World::new();
    world.dgpo(&train("tiny/dgpo", "alone", &[])).done();
    let mut command = world.command(&train(
        "tiny/dgpo",
        "taken",
        &["--from", "alone", "--set", "rl.clip_ratio=0.3"],
    ));
    let killed =
        at_line(&mut command, "checkpoint runs/taken/checkpoints/rl-step-000002", |child| {
            child.kill().unwrap()
        });
    assert!(
        killed.stderr.contains(
            "not taken over: rl depends on rl.clip_ratio, which is 0.2 there and 0.3 here"
        ),
        "{}",
        killed.stderr
    );
    world.dgpo(&["train", "--resume", "runs/taken"]).done();
    assert!(names_in(&world.path("runs/taken/checkpoints")).contains(&"rl-step-000004".to_owned()));
}

#[test]
fn a_run_of_which_nothing_fits_is_refused_with_the_keys_that_differ() {
    let world = World::new();
    world.dgpo(&train("tiny/kd", "cold", &[])).done();
    let refused =
        world.dgpo(&train("tiny/dgpo", "new", &["--from", "runs/cold", "--set", "run.seed=5"]));
    refused.failed(
        2,
        &[
            "nothing of the run runs/cold can be taken over",
            "run.seed, which is 0 there and 5 here",
        ],
    );
    assert!(!world.path("runs/new").exists());
    world
        .dgpo(&train("tiny/gkd", "new", &["--from", "cold"]))
        .failed(2, &["has finished no phase that this run (stage gkd)"]);
    world
        .dgpo(&train("tiny/kd", "new", &["--from", "cald"]))
        .failed(2, &["there is no run cald", "did you mean cold?"]);
}
