//! One number that is none in what a step is made of: the step says so, skips the update it would
//! spoil, and leaves the weights as they were.
use crate::properties::{LARGEST, episodes, every_other, network, recipe, weights};
use burn::{module::Param, tensor::Tensor};
use dgpo_core::{
    rollout::RolloutBatch,
    settings::{DistillRecipe, KlEstimator, KlMode, KlPlacement},
    trainer::{
        distill::{DistillLoss, Student, distill_step},
        metrics::{DISTILL_KL, DISTILL_LOSS, KL, Metrics, SKIPPED_UPDATES, VALUE_LOSS},
        optimizer::AdamW,
        rl::{ActorCritic, Penalty, rl_step},
        update::Activations,
    },
};
use dgpo_models::decoder::Decoder;
use dgpo_run::{
    config::Recipe,
    devices::{Cpu, CpuTrain},
};

const ESTIMATORS: [KlEstimator; 8] = [
    KlEstimator::K1,
    KlEstimator::K1Reversed,
    KlEstimator::Abs,
    KlEstimator::Mse,
    KlEstimator::K3,
    KlEstimator::K3Reversed,
    KlEstimator::Full,
    KlEstimator::FullReversed,
];

/// A network with NaN for one weight of its last norm: every logit is NaN.
fn broken(seed: u64) -> Decoder<Cpu> {
    let mut network = network(seed);
    network.model.norm.weight = with_nan(network.model.norm.weight);
    network
}

fn with_nan(param: Param<Tensor<Cpu, 1>>) -> Param<Tensor<Cpu, 1>> {
    param.map(|values| {
        let first = values.clone().slice(0..1).mul_scalar(f32::NAN);
        values.slice_assign(0..1, first)
    })
}

fn bits(weights: &[f32]) -> Vec<u32> {
    weights.iter().map(|x| x.to_bits()).collect()
}

/// The metrics of one step of `networks`.
fn after(networks: &mut ActorCritic<CpuTrain>, teacher: &Decoder<Cpu>, recipe: &Recipe) -> Metrics {
    rl_step::<CpuTrain>(
        networks,
        Penalty::new(teacher, &recipe.kl),
        &episodes(6, every_other),
        recipe.rl_settings(),
        0,
        &Default::default(),
    )
    .metrics
}

#[test]
fn a_broken_reference_moves_no_weight_of_the_policy_whatever_the_estimator() {
    for estimator in ESTIMATORS {
        for placement in [KlPlacement::Reward, KlPlacement::Loss] {
            let mut recipe = recipe(LARGEST);
            (recipe.kl.mode, recipe.kl.estimator, recipe.kl.placement) =
                (KlMode::Uniform, estimator, placement);
            let mut networks = ActorCritic::<CpuTrain>::new(network(1), 2, recipe.rl_settings());
            let metrics = after(&mut networks, &broken(3), &recipe);
            let what = format!("{estimator:?} in {placement:?}: {metrics:?}");
            assert!(
                metrics.get(KL).unwrap().is_nan() && metrics.get(SKIPPED_UPDATES) >= Some(1.0),
                "{what}"
            );
            assert_eq!(weights(&networks.actor), weights(&network(1)), "{what}");
        }
    }
}

#[test]
fn a_broken_critic_is_skipped_and_moves_no_weight_of_the_policy() {
    let recipe = recipe(LARGEST);
    let mut networks = ActorCritic::<CpuTrain>::new(network(1), 2, recipe.rl_settings());
    let critic = networks.critic.as_mut().expect("PPO has one");
    critic.network.score.bias = critic.network.score.bias.take().map(with_nan);
    let before = weights(&critic.network);
    let metrics = after(&mut networks, &network(3), &recipe);
    assert!(
        metrics.get(VALUE_LOSS).unwrap().is_nan() && metrics.get(SKIPPED_UPDATES) == Some(2.0),
        "{metrics:?}"
    );
    assert_eq!(weights(&networks.actor), weights(&network(1)));
    assert_eq!(bits(&weights(&networks.critic.unwrap().network)), bits(&before));
}

#[test]
fn a_broken_model_in_distillation_is_reported_and_moves_no_weight_of_the_student() {
    let episodes = episodes(4, every_other);
    let batch = RolloutBatch::new(&episodes.iter().collect::<Vec<_>>());
    for (student, teacher) in [(network(1), broken(3)), (broken(1), network(3))] {
        let before = weights(&student);
        let mut student = Student::<CpuTrain> {
            model: student,
            optimizer: AdamW::new(recipe(LARGEST).optim.actor),
            n_skipped: 0,
        };
        let loss = DistillLoss::of(&DistillRecipe::default(), 0.0, Activations::Kept);
        let metrics = distill_step::<CpuTrain>(
            &mut student,
            Some(&teacher),
            &batch,
            &loss,
            1.0,
            &Default::default(),
        )
        .metrics;
        assert!(
            metrics.get(DISTILL_KL).unwrap().is_nan()
                && metrics.get(DISTILL_LOSS).unwrap().is_nan(),
            "{metrics:?}"
        );
        assert_eq!((student.n_skipped, bits(&weights(&student.model))), (1, bits(&before)));
    }
}
