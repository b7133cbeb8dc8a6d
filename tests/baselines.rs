//! The paper's other ways to distil, and its other orders of phases: what they record, and that a
//! killed run ends as if nothing had happened.
use crate::support::{World, at_line, files_below, metrics_of, names_in};
use dgpo_core::rollout::Segment;
use dgpo_run::episodes::{read_episodes, read_records};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// The talker learns from a random teacher over bm25, four steps of each phase.
pub(crate) const TALKER: &str = r#"
extends = "tiny"
model = { student = "talker", teacher = "random:teacher" }
data = { train = ["questions.jsonl"], test = [], corpus = "corpus.jsonl" }
retriever = { kind = "bm25" }
distill = { steps = 4, batch = 8 }
gkd = { steps = 4, questions_per_step = 8 }
rl = { steps = 4, questions_per_step = 8, mini_batch = 4 }
run = { save_every = 1 }
"#;

/// The recorded episodes of the built-in world stand in for the teacher's.
const GIVEN: [&str; 1] = ["data.trajectories=[\"demos.jsonl.gz\"]"];

/// Runs a recipe twice, once killed behind a checkpoint, and compares the ends. Returns the world
/// with `runs/whole`.
fn resumed(settings: &[&str], killed_behind: &str) -> World {
    let world = World::new();
    world.write("talker.toml", TALKER);
    let arguments = |name| {
        let settings = settings.iter().flat_map(|setting| ["--set", *setting]);
        ["train", "--config", "talker.toml", "--name", name]
            .into_iter()
            .chain(settings)
            .collect::<Vec<_>>()
    };
    world.dgpo(&arguments("whole")).done();
    let behind = format!("checkpoint runs/killed/checkpoints/{killed_behind}");
    let killed =
        at_line(&mut world.command(&arguments("killed")), &behind, |child| child.kill().unwrap());
    assert_eq!(killed.code, None, "a signal ends a killed process");
    assert!(!world.path("runs/killed/summary.json").exists(), "the process was killed too late");
    world.dgpo(&["train", "--resume", "runs/killed"]).done();
    let [whole, killed] =
        ["whole", "killed"].map(|run| what_was_learned(&world.path(&format!("runs/{run}"))));
    assert_eq!(whole.keys().collect::<Vec<_>>(), killed.keys().collect::<Vec<_>>());
    let different: Vec<_> = whole
        .iter()
        .filter(|(name, bytes)| killed[*name] != **bytes)
        .map(|(name, _)| name)
        .collect();
    assert!(different.is_empty(), "these files differ: {different:?}");
    let [whole, killed] =
        ["whole", "killed"].map(|run| metrics_of(&world.path(&format!("runs/{run}"))));
    assert_eq!(whole, killed);
    world
}

/// Every file of the checkpoints and the episodes; of a state what does not tell the time or the
/// run's name.
pub(crate) fn what_was_learned(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for folder in ["checkpoints", "episodes"] {
        for (name, mut bytes) in files_below(&run.join(folder)) {
            if name.ends_with("state.json") {
                let mut state: Value = serde_json::from_slice(&bytes).unwrap();
                assert!(state.as_object_mut().unwrap().remove("wall_s").is_some());
                assert!(state["recipe"]["run"].as_object_mut().unwrap().remove("name").is_some());
                bytes = state.to_string().into_bytes();
            }
            files.insert(format!("{folder}/{}", name.display()), bytes);
        }
    }
    files
}

/// The values of a metric over the steps of a phase.
fn curve(world: &World, phase: &str, metric: &str) -> Vec<f64> {
    let lines = metrics_of(&world.path("runs/whole"));
    lines
        .iter()
        .filter(|line| line["phase"] == phase)
        .filter_map(|line| line.get(metric)?.as_f64())
        .collect()
}

fn phases(world: &World) -> Vec<String> {
    metrics_of(&world.path("runs/whole"))
        .iter()
        .map(|line| line["phase"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn gkd_resumes_and_records_what_the_student_played() {
    let world = resumed(&["stage=\"gkd\""], "gkd-step-000002");
    for metric in ["rollout/reward", "rollout/searches", "losses/distill_kl"] {
        assert_eq!(curve(&world, "gkd", metric).len(), 4, "{metric}");
    }
    let (kl, loss) =
        (curve(&world, "gkd", "losses/distill_kl"), curve(&world, "gkd", "losses/distill_loss"));
    assert_eq!(kl, loss, "nothing but the divergence is learned");
    let records = read_records(&world.path("runs/whole/episodes/gkd-step-000004.jsonl")).unwrap();
    assert_eq!(records.len(), 8);
    // The recorded numbers are those of the metric: the mean over the agent's tokens.
    let tokens = records.iter().filter_map(|record| record.tokens.as_ref());
    let kls: Vec<f64> = tokens
        .flat_map(|tokens| tokens.kl.clone().unwrap())
        .map(|kl| f64::from(kl.unwrap()))
        .collect();
    assert!(
        (kls.iter().sum::<f64>() / kls.len() as f64 - kl[3]).abs() < 1e-4,
        "{kls:?} for {kl:?}"
    );
    let differences = curve(&world, "gkd", "rollout/logprob_diff_max");
    assert!(
        differences.len() == 4 && differences.iter().all(|&difference| difference < 1e-3),
        "{differences:?}"
    );
    // At reverse KL and temperature 1, the sampler's log-probs are recomputed by the update.
    let record = records.iter().find(|record| record.tokens.is_some()).unwrap();
    let sampled: Vec<f32> = record
        .episode
        .segments
        .iter()
        .flat_map(|segment| match segment {
            Segment::Agent { sample_log_probs, .. } => sample_log_probs.clone(),
            _ => Vec::new(),
        })
        .collect();
    let recomputed = record.tokens.as_ref().unwrap().old_log_probs.clone().unwrap();
    assert!(
        sampled
            .iter()
            .zip(&recomputed)
            .all(|(sampled, recomputed)| (sampled - recomputed.unwrap()).abs() < 1e-3)
    );
}

#[test]
fn gkd_is_evaluated_between_its_steps_and_at_its_end() {
    let world = World::new();
    world.write("talker.toml", TALKER);
    let settings =
        ["stage=\"gkd\"", "eval.every=2", "data.test=[\"questions.jsonl\"]", "data.max_test=4"];
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", *setting]).collect();
    let arguments =
        [&["train", "--config", "talker.toml", "--name", "whole", "--json"][..], &settings]
            .concat();
    let summary = world.dgpo(&arguments).json();
    assert_eq!(curve(&world, "gkd", "eval/em").len(), 1);
    let teacher_kl = curve(&world, "gkd", "eval/teacher_kl");
    assert!(teacher_kl.len() == 1 && teacher_kl[0] > 0.0, "{teacher_kl:?}");
    let evaluated: Vec<&str> = ["student", "teacher", "kd", "gkd", "rl"]
        .into_iter()
        .filter(|model| summary.get(model).is_some())
        .collect();
    assert_eq!(evaluated, ["student", "teacher", "gkd"]);
    assert!(names_in(&world.path("runs/whole/episodes")).contains(&"eval-gkd.jsonl".to_owned()));
}

#[test]
fn distillation_then_gkd_resumes_in_either_phase() {
    for killed_behind in ["kd-step-000002", "gkd-step-000002"] {
        let world = resumed(&[&["stage=\"distill_gkd\""][..], &GIVEN].concat(), killed_behind);
        assert_eq!(phases(&world), [["kd"; 4], ["gkd"; 4]].concat());
    }
}

#[test]
fn rl_then_distillation_resumes_in_either_phase() {
    for killed_behind in ["rl-step-000002", "kd-step-000002"] {
        let world = resumed(&[&["stage=\"rl_distill\""][..], &GIVEN].concat(), killed_behind);
        assert_eq!(phases(&world), [["rl"; 4], ["kd"; 4]].concat());
    }
}

#[test]
fn a_phase_does_not_go_on_under_one_that_has_begun_from_it() {
    let world = World::new();
    world.write("talker.toml", TALKER);
    let settings =
        GIVEN.iter().chain(&["stage=\"rl_distill\""]).flat_map(|setting| ["--set", *setting]);
    world
        .dgpo(
            &["train", "--config", "talker.toml", "--name", "a"]
                .into_iter()
                .chain(settings)
                .collect::<Vec<_>>(),
        )
        .done();
    let recipe = std::fs::read_to_string(world.path("runs/a/recipe.toml")).unwrap();
    let (before, rl) = recipe.split_once("[rl]").unwrap();
    world.write(
        "runs/a/recipe.toml",
        &format!("{before}[rl]{}", rl.replacen("steps = 4", "steps = 6", 1)),
    );
    let refused = world.dgpo(&["train", "--resume", "runs/a"]);
    refused.failed(2, &["rl.steps = 6 (it is 4): rl is over"]);
    // A last checkpoint that is gone does the same.
    world.write("runs/a/recipe.toml", &recipe);
    std::fs::remove_dir_all(world.path("runs/a/checkpoints/rl-step-000004")).unwrap();
    let refused = world.dgpo(&["train", "--resume", "runs/a"]);
    refused.failed(
        1,
        &["rl is to go on, but kd has begun from what it was before", "hint: give rl its steps"],
    );
}

#[test]
fn each_phase_goes_on_with_the_model_of_the_one_before() {
    let world = World::new();
    world.write("talker.toml", TALKER);
    let weights = |name: &str, settings: &[&str], checkpoint: &str| {
        let settings = GIVEN.iter().chain(settings).flat_map(|setting| ["--set", *setting]);
        let arguments = ["train", "--config", "talker.toml", "--name", name]
            .into_iter()
            .chain(settings)
            .collect::<Vec<_>>();
        world.dgpo(&arguments).done();
        std::fs::read(
            world.path(&format!("runs/{name}/checkpoints/{checkpoint}/model/model.safetensors")),
        )
        .unwrap()
    };
    // A learning rate of 0 leaves the student as the phase found it.
    let still = ["stage=\"rl_distill\"", "optim.distill.lr=0"];
    let after_rl = weights("rl", &["stage=\"rl\""], "rl-step-000004");
    assert_eq!(weights("rl-kd", &still, "kd-step-000004"), after_rl);
    assert_ne!(weights("kd", &["stage=\"distill\""], "kd-step-000004"), after_rl);
}

#[test]
fn taid_resumes_and_its_target_moves_to_the_teacher() {
    let world = resumed(
        &[&["stage=\"distill\"", "distill.divergence=\"taid\"", "distill.ce_weight=0"][..], &GIVEN]
            .concat(),
        "kd-step-000002",
    );
    // The first step only remembers its loss. From the second on, the straight line from 0.4 to 1
    // moves the target of the step behind it: it rises by 0.15 a step, the adaptive increment by
    // 5e-4 at most.
    let expected = [0.4, 0.4, 0.55, 0.7];
    let found = curve(&world, "kd", "distill/taid_t");
    assert!(
        found.len() == 4
            && found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-9),
        "{found:?}"
    );
    let state: Value = serde_json::from_slice(
        &std::fs::read(world.path("runs/whole/checkpoints/kd-step-000004/state.json")).unwrap(),
    )
    .unwrap();
    assert!((state["distill"]["taid"]["t"].as_f64().unwrap() - 0.85).abs() < 1e-9, "{state}");
}

#[test]
fn distillm_fills_its_buffer_and_resumes() {
    let settings = [
        "stage=\"distill\"",
        "distill.divergence=\"skew_kl\"",
        "distill.ce_weight=0",
        "distill.steps=6",
        "distill.student_outputs.is_adaptive=true",
        "distill.student_outputs.initial_share=1.0",
        "distill.student_outputs.capacity=8",
        "distill.student_outputs.validate_every=2",
        "distill.student_outputs.n_validation=4",
    ];
    for killed_behind in ["kd-step-000002", "kd-step-000004"] {
        let world = resumed(&[&settings[..], &GIVEN].concat(), killed_behind);
        let sources = curve(&world, "kd", "distill/source");
        // With a share of 1 no step is the teacher's; the first fills the buffer, the last may not
        // play.
        assert_eq!((sources.len(), sources[0], sources[5]), (6, 1.0, 2.0), "{sources:?}");
        assert!(sources.iter().all(|&source| source == 1.0 || source == 2.0), "{sources:?}");
        assert_eq!(
            curve(&world, "kd", "rollout/reward").len(),
            sources.iter().filter(|&&source| source == 1.0).count()
        );
        assert_eq!(curve(&world, "kd", "distill/validation_loss").len(), 3);
        let replay =
            read_episodes(&world.path("runs/whole/checkpoints/kd-step-000006/replay.jsonl"))
                .unwrap();
        let asked: BTreeSet<&str> =
            replay.iter().map(|episode| episode.question.question.as_str()).collect();
        assert_eq!((replay.len(), asked.len()), (8, 8));
    }
}

#[test]
fn distillm_learns_from_the_teacher_where_the_student_has_no_share() {
    let settings = [
        "stage=\"distill\"",
        "distill.divergence=\"skew_kl\"",
        "distill.ce_weight=0",
        "distill.student_outputs.is_adaptive=true",
        "distill.student_outputs.loss_eps=1e9",
    ];
    let world = resumed(&[&settings[..], &GIVEN].concat(), "kd-step-000002");
    assert_eq!(curve(&world, "kd", "distill/source"), [0.0; 4]);
    assert_eq!(curve(&world, "kd", "distill/student_share"), [0.0; 4]);
    assert!(curve(&world, "kd", "rollout/reward").is_empty());
}

#[test]
fn distillm_without_an_episode_to_hold_out_says_so() {
    let world = World::new();
    world.write("talker.toml", TALKER);
    let trajectory = r#"{"id":"1","question":"who?","golden_answers":["lawyer"],"response":"<answer> lawyer </answer>"}"#;
    world.write("one.jsonl", &format!("{trajectory}\n"));
    let settings = [
        "stage=\"distill\"",
        "distill.ce_weight=0",
        "distill.student_outputs.is_adaptive=true",
        "data.trajectories=[\"one.jsonl\"]",
    ];
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", *setting]).collect();
    let arguments =
        [&["train", "--config", "talker.toml", "--name", "a", "-q"][..], &settings].concat();
    world
        .dgpo(&arguments)
        .failed(1, &["of 1 teacher episodes, one has to be held out", "raise demos.n_episodes"]);
}

#[test]
fn seqkd_needs_no_teacher_and_resumes() {
    let settings = ["stage=\"distill\"", "distill.kl_weight=0", "model.teacher=\"\""];
    let world = resumed(&[&settings[..], &GIVEN].concat(), "kd-step-000002");
    assert_eq!(curve(&world, "kd", "losses/distill_kl"), [0.0; 4]);
    assert_eq!(
        curve(&world, "kd", "losses/distill_ce"),
        curve(&world, "kd", "losses/distill_loss")
    );
}

#[test]
fn wrong_teacher_episodes_are_kept_where_the_recipe_wants_them() {
    let world = World::new();
    world.write("talker.toml", TALKER);
    let n_kept = |name: &str, only_correct: &str| {
        // The talker as its own teacher: sometimes right.
        let settings =
            ["stage=\"distill\"", "demos.n_episodes=40", "model.teacher=\"talker\"", only_correct];
        let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", *setting]).collect();
        let ended = world
            .dgpo(&[&["train", "--config", "talker.toml", "--name", name][..], &settings].concat())
            .done();
        let episodes =
            read_episodes(&world.path(&format!("runs/{name}/episodes/demos-000000.jsonl")))
                .unwrap();
        assert!(
            ended.stderr.contains(&format!("teacher episodes: {} kept", episodes.len())),
            "{}",
            ended.stderr
        );
        (episodes.len(), episodes.iter().filter(|episode| episode.is_correct()).count())
    };
    let (n_all, n_correct) = n_kept("all", "demos.only_correct=false");
    assert_eq!(n_kept("correct", "demos.only_correct=true"), (n_correct, n_correct));
    assert!(0 < n_correct && n_correct < n_all, "{n_correct} of {n_all}");
}

#[test]
fn trajectories_with_a_wrong_answer_teach_nothing() {
    let world = World::new();
    let line = |id: usize, gold: &str| {
        let response = "<think> it is known </think> <answer> Vex </answer>";
        json!({ "id": id.to_string(), "dataset": "d", "question": "who?", "golden_answers": [gold], "response": response }).to_string()
            + "\n"
    };
    world.write("mixed.jsonl", &[line(0, "Vex"), line(1, "Nolmar"), line(2, "Vex")].concat());
    let kd =
        ["train", "--config", "kd.toml", "--set", "data.trajectories=[\"mixed.jsonl\"]", "--name"];
    let kept =
        |name: &str, more: &[&str]| world.dgpo(&[&kd[..], &[name], more].concat()).done().stderr;
    assert!(kept("correct", &[]).contains("trajectories: 2 of 3 kept (correct ones)"));
    assert!(
        kept("all", &["--set", "demos.only_correct=false"])
            .contains("trajectories: 3 of 3 kept (right or wrong)")
    );
    world.write("wrong.jsonl", &line(0, "Nolmar"));
    let wrong =
        ["train", "--config", "kd.toml", "--set", "data.trajectories=[\"wrong.jsonl\"]", "-q"];
    world
        .dgpo(&wrong)
        .failed(1, &["none of the 1 trajectories ends in a gold answer", "demos.only_correct"]);
}
