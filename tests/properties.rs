//! What must not change a training step, whatever the numbers: micro-batches, padding,
//! observations, a teacher without effect.
//!
//! The optimizers here have eps = 1 and lr = 1, so that an update is nearly the (clipped) gradient
//! itself. With the usual eps, AdamW's first update is the gradient's sign, which rounding decides
//! wherever a gradient is nearly 0.
use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{Tensor, TensorData},
};
use dgpo_core::{
    algo::ppo::{PolicyTokens, policy_loss},
    engine::StopReason,
    question::Question,
    rng::{Key, Purpose},
    rollout::{Episode, EpisodeStats, ObservationKind, RolloutBatch, Segment, Status},
    settings::{
        AdamWRecipe, Decay, DistillDivergence, DistillRecipe, GaeOver, KlEstimator, KlMode,
        KlPlacement,
    },
    trainer::{
        distill::{DistillLoss, Student, distill_step},
        metrics::{
            ACTOR_GRAD_NORM, CLIP_FRACTION, CRITIC_GRAD_NORM, DISTILL_KL, ENTROPY,
            EXPLAINED_VARIANCE, INVALID_ACTIONS, KL, KL_SELECTED, Metrics, REPETITION,
            RESPONSE_TOKENS, REWARD, SEARCHES, SKIPPED_UPDATES, record_episodes,
        },
        optimizer::AdamW,
        rl::{ActorCritic, Penalty, rl_step},
        score::{self, Pass},
        update::Activations,
    },
};
use dgpo_models::{
    Backend,
    config::DecoderConfig,
    decoder::Decoder,
    heads::{Critic, Divergence},
};
use dgpo_run::{
    config::Recipe,
    devices::{Cpu, CpuTrain},
};
use proptest::{collection::vec, prelude::*, test_runner::RngSeed};

const VOCAB_SIZE: usize = 61;
/// Micro-batches of one row each, and one of all rows.
pub(crate) const SMALLEST: usize = 1;
pub(crate) const LARGEST: usize = 1 << 30;
/// f32 sums of a few hundred terms in another order: 1e-6 of the largest, and a margin of ten.
pub(crate) const TOLERANCE: f32 = 1e-5;

pub(crate) fn network(seed: u64) -> Decoder<Cpu> {
    let config = DecoderConfig {
        intermediate_size: 48,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        max_position_embeddings: 256,
        initializer_range: 0.1,
        eos_token_ids: vec![1],
        ..DecoderConfig::small(VOCAB_SIZE, 32, 2)
    };
    Decoder::init(&config, seed, &Default::default())
}

/// Episodes of random tokens with one to three turns; `reward(i)` says which are correct.
pub(crate) fn episodes(n: usize, reward: impl Fn(usize) -> f32) -> Vec<Episode> {
    let ids = |key: Key, max: usize| -> Vec<u32> {
        (0..1 + key.below(99, max)).map(|i| key.below(i as u64, VOCAB_SIZE) as u32).collect()
    };
    let episode = |i: usize| {
        let key = Key::new(5, Purpose::World).fold(i as u64);
        let mut segments = vec![Segment::Prompt { ids: ids(key.fold(0), 12) }];
        for turn in 0..1 + key.below(1, 3) as u64 {
            segments.push(Segment::Agent {
                ids: ids(key.fold(2).fold(turn), 20),
                sample_log_probs: Vec::new(),
                stop: StopReason::Eos,
            });
            segments.push(Segment::Observation {
                ids: ids(key.fold(3).fold(turn), 25),
                kind: ObservationKind::Information,
            });
        }
        segments.push(Segment::Agent {
            ids: ids(key.fold(4), 9),
            sample_log_probs: Vec::new(),
            stop: StopReason::Eos,
        });
        let question = Question { id: i.to_string(), ..Question::new("?", &["x"]) };
        let status = Status::TruncatedTurns;
        Episode {
            question,
            segments,
            status,
            prediction: None,
            reward: reward(i),
            searches: Vec::new(),
            n_invalid_actions: 0,
        }
    };
    (0..n).map(episode).collect()
}

pub(crate) fn every_other(i: usize) -> f32 {
    (i % 2) as f32
}

fn gradient_descent() -> AdamWRecipe {
    AdamWRecipe {
        lr: 1.0,
        warmup: 0.0,
        decay: Decay::Constant,
        eps: 1.0,
        weight_decay: 0.0,
        ..Recipe::default().optim.actor
    }
}

pub(crate) fn recipe(micro_batch_tokens: usize) -> Recipe {
    let mut recipe = Recipe::default();
    (recipe.optim.actor, recipe.optim.critic) = (gradient_descent(), gradient_descent());
    (recipe.rl.steps, recipe.rl.mini_batch, recipe.rl.micro_batch_tokens) =
        (1, 64, micro_batch_tokens);
    recipe.kl.coef = 0.1;
    recipe
}

/// Weights of the actor and of the critic after one RL step, and its metrics.
fn after_rl_step(
    episodes: &[Episode],
    teacher: &Decoder<Cpu>,
    recipe: &Recipe,
) -> ([Vec<f32>; 2], Metrics) {
    let (networks, metrics) = networks_after_rl_step(episodes, teacher, recipe);
    ([weights(&networks.actor), weights(&networks.critic.expect("PPO has one").network)], metrics)
}

fn networks_after_rl_step(
    episodes: &[Episode],
    teacher: &Decoder<Cpu>,
    recipe: &Recipe,
) -> (ActorCritic<CpuTrain>, Metrics) {
    let mut networks = ActorCritic::<CpuTrain>::new(network(1), 2, recipe.rl_settings());
    let metrics = rl_step::<CpuTrain>(
        &mut networks,
        Penalty::new(teacher, &recipe.kl),
        episodes,
        recipe.rl_settings(),
        0,
        &Default::default(),
    )
    .metrics;
    (networks, metrics)
}

/// Weights of the student after one KD step, and its metrics.
fn after_kd_step(
    episodes: &[Episode],
    teacher: &Decoder<Cpu>,
    micro_batch_tokens: usize,
    activations: Activations,
) -> (Vec<f32>, Metrics) {
    after_distillation(
        episodes,
        teacher,
        &DistillLoss::of(
            &DistillRecipe { micro_batch_tokens, ..DistillRecipe::default() },
            0.0,
            activations,
        ),
    )
}

fn after_distillation(
    episodes: &[Episode],
    teacher: &Decoder<Cpu>,
    loss: &DistillLoss,
) -> (Vec<f32>, Metrics) {
    let mut student = Student::<CpuTrain> {
        model: network(1),
        optimizer: AdamW::new(gradient_descent()),
        n_skipped: 0,
    };
    let batch = RolloutBatch::new(&episodes.iter().collect::<Vec<_>>());
    let metrics = distill_step::<CpuTrain>(
        &mut student,
        Some(teacher),
        &batch,
        loss,
        1.0,
        &Default::default(),
    )
    .metrics;
    (weights(&student.model), metrics)
}

struct Weights(Vec<f32>);
impl<B: Backend> ModuleVisitor<B> for Weights {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.0.extend(param.val().into_data().to_vec::<f32>().expect("f32 parameters"));
    }
}

pub(crate) fn weights<M: Module<Cpu>>(module: &M) -> Vec<f32> {
    let mut weights = Weights(Vec::new());
    module.visit(&mut weights);
    weights.0
}

/// The largest difference of two updates, as a share of the largest change.
pub(crate) fn deviation(start: &[f32], a: &[f32], b: &[f32]) -> f32 {
    let largest = |left: &[f32], right: &[f32]| {
        left.iter().zip(right).map(|(l, r)| (l - r).abs()).max_by(f32::total_cmp).unwrap()
    };
    let change = largest(a, start);
    assert!(change > 1e-3, "the step changed next to nothing ({change})");
    largest(a, b) / change
}

/// Every weight is NaN: whoever computes with it shows.
fn broken_network() -> Decoder<Cpu> {
    struct Break;
    impl<B: Backend> ModuleMapper<B> for Break {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            param.map(|tensor| tensor.mul_scalar(f32::NAN))
        }
    }
    network(3).map(&mut Break)
}

/// A few cases of a whole step each, the same in every run: the tolerance is one of rounding.
fn few_cases() -> ProptestConfig {
    ProptestConfig { cases: 8, rng_seed: RngSeed::Fixed(5), ..ProptestConfig::default() }
}

/// Episodes with one to three turns, the first of them right and the second wrong.
fn any_episodes() -> impl Strategy<Value = Vec<Episode>> {
    let ids = |max| vec(0..VOCAB_SIZE as u32, 1..=max);
    let turn = (ids(20), ids(25)).prop_map(|(ids, observed)| {
        let agent = Segment::Agent { ids, sample_log_probs: Vec::new(), stop: StopReason::Eos };
        [agent, Segment::Observation { ids: observed, kind: ObservationKind::Information }]
    });
    let segments = (ids(12), vec(turn, 1..4)).prop_map(|(prompt, turns)| {
        let mut segments = vec![Segment::Prompt { ids: prompt }];
        segments.extend(turns.into_iter().flatten());
        segments
    });
    vec(segments, 2..9).prop_map(|rows| {
        let episode =
            |(i, segments)| Episode { segments, ..episodes(1, |_| every_other(i + 1)).remove(0) };
        rows.into_iter().enumerate().map(episode).collect()
    })
}

proptest! {
    #![proptest_config(few_cases())]

    #[test]
    fn the_micro_batch_size_does_not_change_an_rl_step(
        episodes in any_episodes(),
        tokens in 1..400usize
    ) {
        let start = [weights(&network(1)), weights(&Critic::from_decoder(&network(1), 2))];
        let [(small, _), (large, _)] =
            [tokens, LARGEST].map(|size| after_rl_step(&episodes, &network(3), &recipe(size)));
        for at in 0..2 {
            let deviation = deviation(&start[at], &large[at], &small[at]);
            prop_assert!(deviation < TOLERANCE, "{}: {deviation}", ["actor", "critic"][at]);
        }
    }

    #[test]
    fn the_micro_batch_size_does_not_change_a_kd_step(
        episodes in any_episodes(),
        tokens in 1..400usize
    ) {
        let [(small, _), (large, _)] = [tokens, LARGEST]
            .map(|size| after_kd_step(&episodes, &network(3), size, Activations::Kept));
        let deviation = deviation(&weights(&network(1)), &large, &small);
        prop_assert!(deviation < TOLERANCE, "{deviation}");
    }

    #[test]
    fn the_teacher_has_no_effect_on_correct_episodes(episodes in any_episodes()) {
        let episodes: Vec<Episode> =
            episodes.into_iter().map(|episode| Episode { reward: 1.0, ..episode }).collect();
        let (broken, metrics) = after_rl_step(&episodes, &broken_network(), &recipe(LARGEST));
        prop_assert!(metrics.0.iter().all(|(_, value)| value.is_finite()), "{metrics:?}");
        let (selected, skipped) = (metrics.get(KL_SELECTED), metrics.get(SKIPPED_UPDATES));
        prop_assert_eq!((selected, skipped), (Some(0.0), Some(0.0)));
        let (sound, _) = after_rl_step(&episodes, &network(3), &recipe(LARGEST));
        prop_assert_eq!(broken, sound, "bit for bit");
    }
}

#[test]
fn recomputed_activations_change_no_step() {
    let rl_episodes = episodes(10, every_other);
    let mut recomputing = recipe(LARGEST);
    recomputing.model.recompute = true;
    let (kept, _) = after_rl_step(&rl_episodes, &network(3), &recipe(LARGEST));
    let (recomputed, _) = after_rl_step(&rl_episodes, &network(3), &recomputing);
    let start = [weights(&network(1)), weights(&Critic::from_decoder(&network(1), 2))];
    for at in 0..2 {
        let deviation = deviation(&start[at], &kept[at], &recomputed[at]);
        assert!(deviation < TOLERANCE, "{}: {deviation}", ["actor", "critic"][at]);
    }
    let kd_episodes = episodes(10, |_| 1.0);
    let after = |activations| after_kd_step(&kd_episodes, &network(3), LARGEST, activations).0;
    let deviation =
        deviation(&start[0], &after(Activations::Kept), &after(Activations::Recomputed));
    assert!(deviation < TOLERANCE, "KD: {deviation}");
}

#[test]
fn observation_tokens_do_not_move_the_policy_loss() {
    let episodes = episodes(6, every_other);
    let batch = RolloutBatch::new(&episodes.iter().collect::<Vec<_>>());
    let rows: Vec<usize> = (0..6).collect();
    let size = batch.n_rows * batch.n_cols;
    let key = Key::new(1, Purpose::World);
    let arrays = [0, 1, 2].map(|n| {
        (0..size).map(|i| key.fold(n).uniform(i as u64) as f32 - 0.5).collect::<Vec<f32>>()
    });
    // Everything that no agent wrote gets absurd log-probs and advantages.
    let distorted = arrays.clone().map(|mut array| {
        (0..size).filter(|&at| !batch.loss_mask[at]).for_each(|at| array[at] = 1e6);
        array
    });
    // Over all response tokens with the mask, and over the agent's tokens alone.
    let response = batch.response_tokens(&rows);
    let mask: Vec<f32> =
        response.at.iter().map(|&at| if batch.loss_mask[at] { 1.0 } else { 0.0 }).collect();
    let agent = batch.agent_tokens(&rows);
    let normaliser = batch.n_agent_tokens(&rows) as f64;
    let loss = |arrays: &[Vec<f32>; 3], tokens: &dgpo_core::rollout::TokenIndex, mask: &[f32]| {
        let tensor = |values: Vec<f32>| {
            let n = values.len();
            Tensor::<Cpu, 1>::from_data(TensorData::new(values, [n]), &Default::default())
        };
        let [log_probs, old_log_probs, advantages] =
            arrays.each_ref().map(|array| tensor(tokens.pick(array)));
        policy_loss(
            PolicyTokens { log_probs, old_log_probs, advantages, mask: tensor(mask.to_vec()) },
            0.2,
            normaliser,
        )
        .1
    };
    let expected = loss(&arrays, &response, &mask);
    assert_eq!(loss(&distorted, &response, &mask), expected);
    let alone = loss(&distorted, &agent, &vec![1.0; agent.len()]);
    assert!(
        (alone.loss - expected.loss).abs() < 1e-6 && expected.loss.abs() > 1e-3,
        "{alone:?}, {expected:?}"
    );
}

#[test]
fn a_teacher_equal_to_the_student_gives_no_kl() {
    let episodes = episodes(8, every_other);
    let (_, kd) = after_kd_step(&episodes, &network(1), LARGEST, Activations::Kept);
    let (_, rl) = after_rl_step(&episodes, &network(1), &recipe(LARGEST));
    let (_, other) = after_rl_step(&episodes, &network(3), &recipe(LARGEST));
    for kl in [kd.get(DISTILL_KL).unwrap(), rl.get(KL).unwrap()] {
        assert!(kl.abs() < 1e-6, "{kl}");
    }
    assert!(other.get(KL).unwrap().abs() > 1e-2, "another teacher is far away");
}

#[test]
fn a_step_measures_what_the_papers_figures_plot() {
    let episodes = episodes(6, every_other);
    let (_, mut metrics) = after_rl_step(&episodes, &network(3), &recipe(LARGEST));
    record_episodes(&EpisodeStats::of(&episodes), &mut metrics);
    let rollout = [REWARD, RESPONSE_TOKENS, SEARCHES, INVALID_ACTIONS, REPETITION];
    let update =
        [KL, ENTROPY, CLIP_FRACTION, EXPLAINED_VARIANCE, ACTOR_GRAD_NORM, CRITIC_GRAD_NORM];
    for name in [&rollout[..], &update].concat() {
        assert!(metrics.get(name).is_some_and(f64::is_finite), "{name}: {metrics:?}");
    }
    // Half of them are right; the policy is random, so it is nearly uniform over its vocabulary.
    assert_eq!(metrics.get(REWARD), Some(0.5));
    assert!((metrics.get(ENTROPY).unwrap() - (VOCAB_SIZE as f64).ln()).abs() < 0.5, "{metrics:?}");
}

#[test]
fn the_uniform_penalty_falls_on_correct_episodes_too() {
    let mut uniform = recipe(LARGEST);
    uniform.kl.mode = KlMode::Uniform;
    let (_, metrics) = after_rl_step(&episodes(6, |_| 1.0), &network(3), &uniform);
    assert_eq!(metrics.get(KL_SELECTED), Some(1.0));
}

/// KL(actor || teacher) of the wrong episodes' agent tokens, summed.
fn kl_to(teacher: &Decoder<Cpu>, actor: &Decoder<Cpu>, episodes: &[Episode]) -> f32 {
    let batch = RolloutBatch::new(&episodes.iter().collect::<Vec<_>>());
    let wrong: Vec<usize> = (0..batch.n_rows).filter(|&row| batch.scores[row] == 0.0).collect();
    let device = Default::default();
    let pass = Pass { micro_batch_tokens: LARGEST, temperature: 1.0, device: &device };
    score::log_probs_and_divergence(actor, teacher, Divergence::ReverseKl, &batch, &wrong, &pass)
        .1
        .iter()
        .sum()
}

#[test]
fn the_kl_of_an_evaluation_is_the_exact_one_of_a_step() {
    let (episodes, teacher) = (episodes(3, |_| 0.0), network(3));
    let device = Default::default();
    let pass = Pass { micro_batch_tokens: SMALLEST, temperature: 1.0, device: &device };
    let measured = |episodes: &[&Episode], teacher: &Decoder<Cpu>| {
        score::mean_kl(&network(1), teacher, episodes, &pass)
    };
    let mut exact = recipe(LARGEST);
    (exact.kl.mode, exact.kl.estimator) = (KlMode::Uniform, KlEstimator::Full);
    let mut sum = 0.0;
    for episode in &episodes {
        let kl = measured(&[episode], &teacher);
        let step =
            after_rl_step(std::slice::from_ref(episode), &teacher, &exact).1.get(KL).unwrap();
        assert!((kl - step).abs() < 1e-5 * step, "{kl} {step}");
        sum += kl * episode.n_agent_tokens() as f64;
    }
    // Of several episodes it is the mean over their tokens.
    let n_tokens: usize = episodes.iter().map(Episode::n_agent_tokens).sum();
    let all = measured(&episodes.iter().collect::<Vec<_>>(), &teacher);
    assert!((all - sum / n_tokens as f64).abs() < 1e-6, "{all}");
    assert!(measured(&[&episodes[0]], &network(1)).abs() < 1e-6);
    assert_eq!(measured(&[], &teacher), 0.0);
}

#[test]
fn a_penalty_in_the_loss_pulls_wrong_episodes_towards_the_teacher() {
    // The same reward everywhere and no entropy bonus: the policy's own loss gives (whitened
    // advantages aside) the same push in all runs.
    let (episodes, teacher) = (episodes(8, every_other), network(3));
    let mut free = recipe(LARGEST);
    (free.kl.mode, free.rl.entropy_coef) = (KlMode::None, 0.0);
    let without =
        kl_to(&teacher, &networks_after_rl_step(&episodes, &teacher, &free).0.actor, &episodes);
    for estimator in
        [KlEstimator::Full, KlEstimator::FullReversed, KlEstimator::Mse, KlEstimator::K3Reversed]
    {
        let mut pulled = free.clone();
        (pulled.kl.mode, pulled.kl.placement, pulled.kl.estimator, pulled.kl.coef) =
            (KlMode::Selective, KlPlacement::Loss, estimator, 5.0);
        let with = kl_to(
            &teacher,
            &networks_after_rl_step(&episodes, &teacher, &pulled).0.actor,
            &episodes,
        );
        assert!(
            with < without - 0.01 * without.abs(),
            "{estimator:?}: {with} instead of {without}"
        );
    }
}

#[test]
fn a_penalty_in_the_loss_is_nothing_where_teacher_and_student_agree() {
    let episodes = episodes(8, every_other);
    let mut free = recipe(LARGEST);
    free.kl.mode = KlMode::None;
    let (expected, _) = after_rl_step(&episodes, &network(1), &free);
    // The exact KL is flat at its minimum; of the estimators, those that are.
    for estimator in
        [KlEstimator::Full, KlEstimator::FullReversed, KlEstimator::Mse, KlEstimator::K3]
    {
        let mut penalised = recipe(LARGEST);
        (penalised.kl.placement, penalised.kl.estimator) = (KlPlacement::Loss, estimator);
        let (after, _) = after_rl_step(&episodes, &network(1), &penalised);
        let deviation = deviation(&weights(&network(1)), &expected[0], &after[0]);
        assert!(deviation < TOLERANCE, "{estimator:?}: {deviation}");
    }
}

#[test]
fn the_teacher_is_not_run_on_correct_episodes_for_a_penalty_in_the_loss() {
    for estimator in [KlEstimator::K1, KlEstimator::Full] {
        let mut in_loss = recipe(LARGEST);
        (in_loss.kl.placement, in_loss.kl.estimator) = (KlPlacement::Loss, estimator);
        let correct = episodes(6, |_| 1.0);
        let (broken, _) = after_rl_step(&correct, &broken_network(), &in_loss);
        assert_eq!(broken, after_rl_step(&correct, &network(3), &in_loss).0, "bit for bit");
    }
}

#[test]
fn a_coefficient_of_zero_needs_no_teacher() {
    let mut off = recipe(LARGEST);
    off.kl.coef = 0.0;
    let episodes = episodes(6, every_other);
    let (broken, metrics) = after_rl_step(&episodes, &broken_network(), &off);
    assert_eq!(metrics.get(SKIPPED_UPDATES), Some(0.0));
    assert_eq!(broken, after_rl_step(&episodes, &network(3), &off).0, "bit for bit");
}

#[test]
fn the_adaptive_coefficient_follows_its_equation_and_survives_nan() {
    let mut adaptive = recipe(LARGEST);
    (adaptive.kl.target, adaptive.kl.horizon) = (0.5, 100.0);
    let episodes = episodes(10, every_other);
    let (networks, metrics) = networks_after_rl_step(&episodes, &network(3), &adaptive);
    let error = (metrics.get(KL).unwrap() / 0.5 - 1.0).clamp(-0.2, 0.2);
    assert!(
        (networks.kl.coef - 0.1 * (1.0 + error * 10.0 / 100.0)).abs() < 1e-12
            && networks.kl.coef != 0.1
    );
    let (networks, _) = networks_after_rl_step(&episodes, &broken_network(), &adaptive);
    assert_eq!(networks.kl.coef, 0.1, "a KL that is no number says nothing");
}

#[test]
fn advantages_over_the_agents_tokens_leave_observations_out() {
    let with_observations = episodes(8, every_other);
    let without: Vec<Episode> = with_observations
        .iter()
        .cloned()
        .map(|mut episode| {
            episode.segments.retain(|segment| !matches!(segment, Segment::Observation { .. }));
            episode
        })
        .collect();
    let over = |over, episodes: &[Episode]| {
        let mut recipe = recipe(LARGEST);
        recipe.gae.over = over;
        after_rl_step(episodes, &network(3), &recipe).0
    };
    assert_eq!(
        over(GaeOver::Agent, &without),
        over(GaeOver::Response, &without),
        "nobody but the agent wrote"
    );
    let [agent, response] =
        [GaeOver::Agent, GaeOver::Response].map(|which| over(which, &with_observations));
    assert!(
        agent[0] != response[0] && agent[1] != response[1],
        "actor and critic both count other tokens"
    );
}

#[test]
fn a_students_padded_ids_do_not_count() {
    let episodes = episodes(6, every_other);
    let batch = RolloutBatch::new(&episodes.iter().collect::<Vec<_>>());
    let rows: Vec<usize> = (0..6).collect();
    let device = Default::default();
    let pass = Pass { micro_batch_tokens: LARGEST, temperature: 1.0, device: &device };
    let whole = score::log_probs(&network(1), &batch, &rows, &pass);
    let cut = score::log_probs(&network(1).with_logits_cut_to(VOCAB_SIZE), &batch, &rows, &pass);
    assert_eq!(whole, cut, "cutting at the vocabulary's end changes nothing");
    let logits = network(1).with_logits_cut_to(7).logits(Tensor::ones([2, 32], &device));
    assert_eq!(logits.dims(), [2, 7]);
}

#[test]
fn a_penalty_that_is_not_a_number_costs_the_update_and_not_the_networks() {
    let (after, metrics) =
        after_rl_step(&episodes(6, every_other), &broken_network(), &recipe(LARGEST));
    assert_eq!(metrics.get(SKIPPED_UPDATES), Some(2.0), "the actor's and the critic's");
    assert_eq!(after, [weights(&network(1)), weights(&Critic::from_decoder(&network(1), 2))]);
}

#[test]
fn padding_does_not_change_a_rows_log_probs() {
    let mut episodes = episodes(4, every_other);
    let longest = Segment::Observation { ids: vec![7; 120], kind: ObservationKind::Information };
    episodes[3].segments.push(longest);
    let device = Default::default();
    let pass = Pass { micro_batch_tokens: LARGEST, temperature: 1.0, device: &device };
    let together = RolloutBatch::new(&episodes.iter().collect::<Vec<_>>());
    let padded = score::log_probs(&network(1), &together, &[0, 1, 2, 3], &pass);
    for (row, episode) in episodes.iter().enumerate().take(3) {
        let alone = RolloutBatch::new(&[episode]);
        let expected = score::log_probs(&network(1), &alone, &[0], &pass);
        assert!(expected.iter().any(|&x| x < -0.1));
        for (col, expected) in expected.into_iter().enumerate() {
            let found = padded[together.at(row, col)];
            assert!(
                (found - expected).abs() < 1e-5,
                "row {row}, column {col}: {found}, alone {expected}"
            );
        }
    }
}

#[test]
fn padding_does_not_change_a_kd_step() {
    // A row without agent tokens adds nothing but padding to the others.
    let short = episodes(5, |_| 1.0);
    let mut padded = short.clone();
    padded.push(Episode {
        segments: vec![Segment::Prompt { ids: vec![4; 200] }],
        ..short[0].clone()
    });
    let [(alone, _), (together, _)] = [&short, &padded]
        .map(|episodes| after_kd_step(episodes, &network(3), LARGEST, Activations::Kept));
    let deviation = deviation(&weights(&network(1)), &alone, &together);
    assert!(deviation < TOLERANCE, "{deviation}");
}

/// Weights after a step that learns nothing but a divergence, with the share that TAID's target has
/// of the teacher.
fn after_divergence(
    divergence: DistillDivergence,
    change: impl FnOnce(&mut DistillRecipe),
    taid_t: f64,
) -> Vec<f32> {
    let mut recipe = DistillRecipe { ce_weight: 0.0, divergence, ..DistillRecipe::default() };
    change(&mut recipe);
    after_distillation(
        &episodes(8, |_| 1.0),
        &network(3),
        &DistillLoss::of(&recipe, taid_t, Activations::Kept),
    )
    .0
}

#[test]
fn every_divergence_becomes_a_known_one_at_its_ends() {
    let start = weights(&network(1));
    let [forward, reverse] = [DistillDivergence::ForwardKl, DistillDivergence::ReverseKl]
        .map(|which| after_divergence(which, |_| (), 0.0));
    assert!(deviation(&start, &forward, &reverse) > 0.01, "the two are different");
    let jsd =
        |beta: f64| after_divergence(DistillDivergence::Jsd, |recipe| recipe.jsd_beta = beta, 0.0);
    let skew = after_divergence(DistillDivergence::SkewKl, |recipe| recipe.skew_alpha = 0.0, 0.0);
    let taid = |t: f64| after_divergence(DistillDivergence::Taid, |_| (), t);
    for (name, known, limit) in [
        ("jsd 0", &forward, jsd(0.0)),
        ("jsd 1", &reverse, jsd(1.0)),
        ("skew 0", &forward, skew),
        ("taid 1", &forward, taid(1.0)),
    ] {
        let deviation = deviation(&start, known, &limit);
        assert!(deviation < TOLERANCE, "{name}: {deviation}");
    }
    // At t = 0 the target is the student itself.
    let largest = start
        .iter()
        .zip(taid(0.0))
        .map(|(before, after)| (before - after).abs())
        .max_by(f32::total_cmp)
        .unwrap();
    assert!(largest < 1e-6, "{largest}");
}
