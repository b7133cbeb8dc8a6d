//! Estimators against the exact KL, their gradients against finite differences, and which rows are
//! penalised.
use super::*;
use crate::{
    algo::distill::row_divergence,
    testing::{Cpu, CpuTrain},
};
use burn::tensor::TensorData;

type B = CpuTrain;

const SAMPLED: [SampledKl; 6] = [
    SampledKl::K1,
    SampledKl::K1Reversed,
    SampledKl::Abs,
    SampledKl::Mse,
    SampledKl::K3,
    SampledKl::K3Reversed,
];

fn vector(values: &[f32]) -> Tensor<B, 1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), &Default::default())
}

fn host(tensor: Tensor<B, 1>) -> Vec<f32> {
    tensor.into_data().to_vec().unwrap()
}

#[test]
fn a_policy_equal_to_its_reference_has_no_kl() {
    for estimator in SAMPLED {
        assert_eq!(estimate(estimator, -1.25, -1.25), 0.0, "{estimator:?}");
    }
}

#[test]
fn k1_and_k3_average_to_the_exact_kl_and_full_is_it() {
    let (p, r) = ([0.5f32, 0.3, 0.2], [0.2f32, 0.6, 0.2]);
    let exact = |p: &[f32], r: &[f32]| {
        p.iter().zip(r).map(|(&p, &r)| f64::from(p) * f64::from(p / r).ln()).sum::<f64>()
    };
    let mean = |estimator| -> f64 {
        (0..3).map(|v| f64::from(p[v]) * f64::from(estimate(estimator, p[v].ln(), r[v].ln()))).sum()
    };
    assert!((mean(SampledKl::K1) - exact(&p, &r)).abs() < 1e-6);
    assert!((mean(SampledKl::K3) - exact(&p, &r)).abs() < 1e-6);
    let logits = |p: [f32; 3]| Tensor::<B, 2>::from_data([p.map(f32::ln)], &Default::default());
    for (estimator, expected) in
        [(KlEstimator::Full, exact(&p, &r)), (KlEstimator::FullReversed, exact(&r, &p))]
    {
        let TokenKl::Exact(divergence) = estimator.into() else { panic!("{estimator:?}") };
        let got = host(row_divergence(logits(p), logits(r), divergence, 1.0))[0];
        assert!((f64::from(got) - expected).abs() < 1e-6, "{estimator:?}: {got} vs {expected}");
    }
}

#[test]
fn k3_is_clamped_and_stays_finite_at_absurd_log_probs() {
    for (old, reference) in [(-0.01, -300.0), (-300.0, -0.01)] {
        for estimator in [SampledKl::K3, SampledKl::K3Reversed] {
            assert_eq!(estimate(estimator, old, reference), 10.0);
            let x = vector(&[old]).require_grad();
            let y = estimate_tensor(estimator, x.clone(), vector(&[reference]));
            assert_eq!(host(y.clone()), [10.0]);
            let grad = x.grad(&y.sum().backward()).unwrap().into_data().to_vec::<f32>().unwrap();
            assert_eq!(grad, [0.0], "{estimator:?}: a clamped estimate has no gradient");
        }
    }
}

#[test]
fn tensor_estimates_equal_host_estimates_and_finite_differences() {
    let (p, r) = ([-0.5f32, -2.0, -1.0, -4.0], [-1.0f32, -0.25, -1.5, -2.5]);
    for estimator in SAMPLED {
        let x = vector(&p).require_grad();
        let y = estimate_tensor(estimator, x.clone(), vector(&r));
        let grad =
            x.grad(&y.clone().sum().backward()).unwrap().into_data().to_vec::<f32>().unwrap();
        for (i, value) in host(y).into_iter().enumerate() {
            let at = |shift: f32| f64::from(estimate(estimator, p[i] + shift, r[i]));
            assert!((f64::from(value) - at(0.0)).abs() < 1e-5);
            // p, r and the shift 2^-8 are exact in f32; the central difference errs by h^2/6 · f'''
            // < 3e-5.
            let expected = (at(1.0 / 256.0) - at(-1.0 / 256.0)) * 128.0;
            assert!(
                (f64::from(grad[i]) - expected).abs() < 2e-4,
                "{estimator:?}[{i}]: {} vs {expected}",
                grad[i]
            );
        }
    }
}

#[test]
fn a_nan_log_prob_of_either_policy_is_nan_in_every_estimate() {
    for estimator in SAMPLED {
        for (policy, reference) in [(f32::NAN, -1.0), (-1.0, f32::NAN)] {
            assert!(estimate(estimator, policy, reference).is_nan(), "{estimator:?}");
            let y = estimate_tensor(estimator, vector(&[policy, -1.0]), vector(&[reference, -1.5]));
            let plain = estimate_tensor::<Cpu>(
                estimator,
                vector(&[policy, -1.0]).inner(),
                vector(&[reference, -1.5]).inner(),
            );
            for values in [host(y), plain.into_data().to_vec().unwrap()] {
                assert!(values[0].is_nan() && values[1].is_finite(), "{estimator:?}: {values:?}");
            }
        }
    }
}

#[test]
fn a_nan_estimate_is_nan_in_the_reward_and_in_the_mean() {
    let mut kl = KL;
    kl[5] = f32::NAN;
    let got = token_rewards(&batch(), &kl, KlMode::Selective, 0.5);
    assert!(got.rewards[5].is_nan() && got.mean_kl.is_nan(), "{got:?}");
}

/// A correct row and a wrong one, each prompt, agent, observation, agent.
fn batch() -> RolloutBatch {
    RolloutBatch {
        n_rows: 2,
        n_cols: 4,
        lengths: vec![4, 4],
        prompt_lens: vec![1, 1],
        loss_mask: vec![false, true, false, true, false, true, false, true],
        scores: vec![1.0, 0.0],
        ..Default::default()
    }
}

const KL: [f32; 8] = [9.0, 0.5, 9.0, 0.25, 9.0, 1.0, 9.0, 3.0];

#[test]
fn selective_mode_penalises_the_agent_tokens_of_wrong_episodes_only() {
    let got = token_rewards(&batch(), &KL, KlMode::Selective, 0.5);
    assert_eq!(got.rewards, [0.0, 0.0, 0.0, 1.0, 0.0, -0.5, 0.0, -1.5]);
    assert_eq!((got.mean_kl, got.n_penalised), (1.0, 1));
}

#[test]
fn uniform_mode_penalises_every_episode_and_none_penalises_none() {
    let uniform = token_rewards(&batch(), &KL, KlMode::Uniform, 0.5);
    assert_eq!(uniform.rewards, [0.0, -0.25, 0.0, 0.875, 0.0, -0.5, 0.0, -1.5]);
    assert_eq!((uniform.mean_kl, uniform.n_penalised), ((0.375 + 2.0) / 2.0, 2));
    let none = token_rewards(&batch(), &[], KlMode::None, 0.5);
    assert_eq!(none.rewards, [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!((none.mean_kl, none.n_penalised), (0.0, 0));
}

#[test]
fn a_row_without_response_gets_no_reward() {
    let batch = RolloutBatch {
        n_rows: 1,
        n_cols: 2,
        lengths: vec![2],
        prompt_lens: vec![2],
        scores: vec![1.0],
        loss_mask: vec![false; 2],
        ..Default::default()
    };
    assert_eq!(token_rewards(&batch, &[0.0; 2], KlMode::Uniform, 1.0).rewards, [0.0, 0.0]);
}

#[test]
fn beta_rises_above_the_target_falls_below_it_and_is_fixed_without_one() {
    let mut adaptive = KlController { coef: 1.0, target: 0.1, horizon: 100.0 };
    adaptive.update(0.11, 10);
    assert!((adaptive.coef - 1.01).abs() < 1e-12);
    adaptive.update(0.0, 10);
    assert!((adaptive.coef - 1.01 * 0.98).abs() < 1e-12);
    let mut fixed = KlController { coef: 1.0, target: 0.0, horizon: 100.0 };
    fixed.update(5.0, 10);
    assert_eq!(fixed.coef, 1.0);
}
