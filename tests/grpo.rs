//! GRPO: several episodes of a question are compared with each other, and there is no critic.
use crate::{
    properties::{
        LARGEST, SMALLEST, TOLERANCE, deviation, episodes, every_other, network, recipe, weights,
    },
    resume::{assert_same_end, train_whole_and_killed_in},
    support::{World, files_below, metrics_of},
};
use dgpo_core::{
    rollout::{Episode, EpisodeRecord, Status, TokenRecord},
    settings::{Algorithm, KlMode, KlPlacement},
    trainer::{
        metrics::{
            ACTOR_GRAD_NORM, CRITIC_GRAD_NORM, CRITIC_LEARNING_RATE, EXPLAINED_VARIANCE,
            FLAT_GROUPS, Metrics, VALUE_CLIP_FRACTION, VALUE_LOSS,
        },
        rl::{ActorCritic, Penalty, Step, rl_step},
    },
};
use dgpo_run::{config::Recipe, devices::CpuTrain, episodes::read_records};
use std::{collections::BTreeSet, path::Path};

/// Selective KL to the teacher in the loss, as the paper's DGPO with GRPO. 12 questions of 4
/// episodes a step, in two mini-batches.
const SELECTIVE: &str = r#"
extends = "rl.toml"
rl = { algorithm = "grpo", steps = 4, questions_per_step = 12, episodes_per_question = 4, mini_batch = 24 }
kl = { mode = "selective", estimator = "k3", in = "loss", coef = 0.1 }
"#;

/// Rewards alone.
const PURE: &str = r#"
extends = "rl.toml"
model = { teacher = "" }
rl = { algorithm = "grpo", steps = 4, questions_per_step = 12, episodes_per_question = 4, mini_batch = 48 }
kl = { mode = "none" }
"#;

const PARTS: [&str; 2] = ["model/model.safetensors", "optimizer.safetensors"];
const OF_A_CRITIC: [&str; 5] =
    [VALUE_LOSS, VALUE_CLIP_FRACTION, EXPLAINED_VARIANCE, CRITIC_GRAD_NORM, CRITIC_LEARNING_RATE];

fn whole_and_killed(recipe: &str) -> World {
    let world = World::new();
    world.write("grpo.toml", recipe);
    train_whole_and_killed_in(&world, "grpo.toml", "rl", "cpu");
    assert_same_end(&world, "rl", &PARTS);
    world
}

fn no_file_of_a_critic(checkpoint: &Path) -> bool {
    files_below(checkpoint).keys().all(|name| !name.to_string_lossy().contains("critic"))
}

#[test]
fn a_killed_grpo_run_with_selective_kl_in_the_loss_continues_bit_for_bit() {
    let world = whole_and_killed(SELECTIVE);
    let run = world.path("runs/whole");
    assert!(no_file_of_a_critic(&run.join("checkpoints/rl-step-000004")));
    for line in metrics_of(&run) {
        assert!(
            line.contains_key(FLAT_GROUPS)
                && OF_A_CRITIC.iter().all(|name| !line.contains_key(*name)),
            "{line:?}"
        );
        assert!(
            line["kl/selected_episodes"].as_f64().unwrap() > 0.0
                && line["kl/mean"].as_f64().unwrap() != 0.0,
            "{line:?}"
        );
    }
    let [whole, killed] = ["whole", "killed"].map(|run| {
        std::fs::read(world.path(&format!("runs/{run}/episodes/rl-step-000004.jsonl"))).unwrap()
    });
    assert_eq!(whole, killed);
}

#[test]
fn a_killed_grpo_run_without_a_teacher_continues_bit_for_bit() {
    let world = whole_and_killed(PURE);
    assert!(
        metrics_of(&world.path("runs/whole"))
            .iter()
            .all(|line| line["kl/selected_episodes"] == 0.0)
    );
}

#[test]
fn the_episodes_of_a_question_stand_together_are_different_and_have_no_values() {
    let world = World::new();
    world.write("grpo.toml", SELECTIVE);
    world.dgpo(&["train", "--config", "grpo.toml", "--name", "a", "--set", "rl.steps=1"]).done();
    let records = read_records(&world.path("runs/a/episodes/rl-step-000001.jsonl")).unwrap();
    assert_eq!(records.len(), 48);
    let groups: Vec<&[EpisodeRecord]> = records.chunks(4).collect();
    assert!(groups.iter().all(|group| {
        group.iter().all(|record| record.episode.question == group[0].episode.question)
    }));
    assert_eq!(
        groups
            .iter()
            .map(|group| group[0].episode.question.id.as_str())
            .collect::<BTreeSet<_>>()
            .len(),
        12
    );
    // The talker may write the same twice, but not all its episodes of all questions.
    let distinct = |group: &[EpisodeRecord]| {
        group.iter().map(|record| record.episode.ids()).collect::<BTreeSet<_>>().len()
    };
    assert!(groups.iter().filter(|group| distinct(group) > 1).count() > 6);
    assert!(records.iter().all(|record| {
        record
            .tokens
            .as_ref()
            .is_some_and(|tokens| tokens.values.is_none() && tokens.advantages.is_some())
    }));
}

#[test]
fn a_run_that_turns_to_ppo_has_no_critic_to_go_on_with() {
    let world = World::new();
    world.write("grpo.toml", PURE);
    world.dgpo(&["train", "--config", "grpo.toml", "--name", "a", "--set", "rl.steps=1"]).done();
    let recipe = std::fs::read_to_string(world.path("runs/a/recipe.toml")).unwrap();
    assert!(recipe.contains("[rl]\nalgorithm = \"grpo\"\nsteps = 1\n"), "{recipe}");
    let changed =
        recipe.replace("algorithm = \"grpo\"\nsteps = 1\n", "algorithm = \"ppo\"\nsteps = 2\n");
    world.write("runs/a/recipe.toml", &changed);
    world
        .dgpo(&["train", "--resume", "runs/a"])
        .failed(2, &["rl.algorithm = \"ppo\" (it is \"grpo\")"]);
    // Where the checkpoint does not say how it was made.
    let path = world.path("runs/a/checkpoints/rl-step-000001/state.json");
    let mut state: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    state.as_object_mut().unwrap().remove("recipe");
    std::fs::write(&path, state.to_string()).unwrap();
    world
        .dgpo(&["train", "--resume", "runs/a"])
        .failed(1, &["rl-step-000001 holds no critic", "rl.algorithm"]);
}

/// GRPO in groups of `episodes_per_question`, without a penalty or an entropy bonus.
fn grpo(episodes_per_question: usize) -> Recipe {
    let mut recipe = recipe(LARGEST);
    (recipe.rl.algorithm, recipe.rl.episodes_per_question) =
        (Algorithm::Grpo, episodes_per_question);
    (recipe.kl.mode, recipe.rl.entropy_coef) = (KlMode::None, 0.0);
    recipe
}

fn after(episodes: &[Episode], recipe: &Recipe) -> (Vec<f32>, Step) {
    let mut networks = ActorCritic::<CpuTrain>::new(network(1), 2, recipe.rl_settings());
    assert!(networks.critic.is_none());
    let step = rl_step::<CpuTrain>(
        &mut networks,
        Penalty::new(&network(3), &recipe.kl),
        episodes,
        recipe.rl_settings(),
        0,
        &Default::default(),
    );
    (weights(&networks.actor), step)
}

/// The advantage of each recorded episode: one number on all of its agent tokens.
fn advantages(episodes: &[Episode], step: &Step) -> Vec<f32> {
    let of = |(episode, tokens): (&Episode, &TokenRecord)| {
        let agent = episode.segments[1..]
            .iter()
            .flat_map(|segment| vec![segment.is_agent(); segment.ids().len()]);
        let numbers: Vec<f32> = agent
            .zip(tokens.advantages.as_ref().unwrap())
            .filter(|(is, _)| *is)
            .map(|(_, x)| x.unwrap())
            .collect();
        assert!(numbers.iter().all(|x| *x == numbers[0]), "{numbers:?}");
        numbers[0]
    };
    let trained: Vec<&Episode> = episodes.iter().filter(|episode| episode.is_trainable()).collect();
    assert_eq!(trained.len(), step.tokens.len());
    trained.into_iter().zip(&step.tokens).map(of).collect()
}

#[test]
fn groups_are_places_whatever_the_questions_and_go_on_without_a_lost_episode() {
    // Two groups of three, all of one question; the first has lost its second episode.
    let mut episodes = episodes(6, |i| [1.0, 1.0, 0.0, 1.0, 0.0, 0.0][i]);
    for episode in &mut episodes {
        episode.question.id = "the same".to_owned();
    }
    episodes[1].status = Status::RetrieverFailed("503".to_owned());
    let (_, step) = after(&episodes, &grpo(3));
    // (score - mean) / (unbiased std + 1e-6), of (1, 0) and of (1, 0, 0).
    let pair = 0.5 / (0.5f64.sqrt() + 1e-6);
    let (up, down, std) = (2.0 / 3.0, -1.0 / 3.0, (1.0f64 / 3.0).sqrt() + 1e-6);
    let expected = [pair, -pair, up / std, down / std, down / std];
    for (found, expected) in advantages(&episodes, &step).into_iter().zip(expected) {
        // Records keep five decimals.
        assert!((f64::from(found) - expected).abs() < 1e-5, "{found} instead of {expected}");
    }
    assert_eq!(step.metrics.get(FLAT_GROUPS), Some(0.0));
}

#[test]
fn questions_whose_episodes_all_score_the_same_move_nothing() {
    let by_question = |i: usize| ((i / 2) % 2) as f32;
    let (flat, step) = after(&episodes(8, by_question), &grpo(2));
    assert_eq!(flat, weights(&network(1)), "bit for bit");
    assert_eq!(step.metrics.get(FLAT_GROUPS), Some(1.0));
    let (mixed, _) = after(&episodes(8, every_other), &grpo(2));
    assert_ne!(mixed, flat);
}

#[test]
fn a_penalty_in_the_loss_moves_the_policy_and_no_advantage() {
    let episodes = episodes(4, every_other);
    let with = |mode| {
        let mut recipe = grpo(4);
        (recipe.kl.mode, recipe.kl.placement, recipe.kl.coef) = (mode, KlPlacement::Loss, 0.05);
        after(&episodes, &recipe)
    };
    let (free_weights, free) = with(KlMode::None);
    let (in_loss_weights, in_loss) = with(KlMode::Selective);
    assert_eq!(advantages(&episodes, &in_loss), advantages(&episodes, &free));
    assert_ne!(in_loss_weights, free_weights);
}

#[test]
fn the_coefficient_decides_how_far_groups_of_one_outcome_are_moved() {
    // All wrong: nothing but the penalty moves the policy, and its gradient is proportional to the
    // coefficient.
    let episodes = episodes(8, |_| 0.0);
    let grad_norm = |coef| {
        let mut recipe = grpo(4);
        (recipe.kl.mode, recipe.kl.placement, recipe.kl.coef) =
            (KlMode::Selective, KlPlacement::Loss, coef);
        after(&episodes, &recipe).1.metrics.get(ACTOR_GRAD_NORM).unwrap()
    };
    let (small, large) = (grad_norm(1e-4), grad_norm(1e-1));
    assert!(small > 0.0 && (large / small / 1e3 - 1.0).abs() < 1e-3, "{small:e} and {large:e}");
}

#[test]
fn a_recipe_with_the_penalty_in_the_reward_is_refused_with_the_way_out() {
    let world = World::new();
    world.write("grpo.toml", &SELECTIVE.replace("in = \"loss\"", "in = \"reward\""));
    world
        .dgpo(&["train", "--config", "grpo.toml"])
        .failed(2, &["kl.in", "kl.coef has no effect", "hint: kl.in = \"loss\""]);
}

#[test]
fn the_micro_batch_size_does_not_change_a_grpo_step() {
    let episodes = episodes(12, |i| f32::from(u8::from(i % 3 == 0)));
    let [small, large] = [SMALLEST, LARGEST].map(|size| {
        let mut recipe = grpo(4);
        (recipe.rl.micro_batch_tokens, recipe.kl.mode, recipe.kl.placement) =
            (size, KlMode::Selective, KlPlacement::Loss);
        after(&episodes, &recipe).0
    });
    let deviation = deviation(&weights(&network(1)), &large, &small);
    assert!(deviation < TOLERANCE, "{deviation}");
}

#[test]
fn metrics_of_a_critic_are_absent() {
    let (_, Step { metrics: Metrics(metrics), .. }) = after(&episodes(8, every_other), &grpo(2));
    assert!(metrics.iter().all(|(name, _)| !OF_A_CRITIC.contains(name)), "{metrics:?}");
}
