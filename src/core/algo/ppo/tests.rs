//! Gradients against finite differences of literal f64 losses, and inputs that must not change
//! them. The recorded reference numbers run in `conformance`.
use super::*;
use crate::testing::CpuTrain;
use burn::tensor::TensorData;

type B = CpuTrain;

const NEW: [f64; 5] = [-1.0, -0.5, -2.0, -0.75, -1.5];
const OLD: [f64; 5] = [-1.25, -0.5, -1.5, -0.875, -1.4375];
const ADVANTAGES: [f64; 5] = [1.0, -2.0, -0.5, -1.0, 3.0];
const MASK: [f64; 5] = [1.0, 1.0, 1.0, 0.0, 1.0];

fn vector(values: &[f64]) -> Tensor<B, 1> {
    let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
    Tensor::from_data(TensorData::new(values.clone(), [values.len()]), &Default::default())
}

fn gradient(loss: Tensor<B, 1>, of: &Tensor<B, 1>) -> Vec<f64> {
    of.grad(&loss.backward()).unwrap().into_data().iter::<f64>().collect()
}

fn policy(
    new: &[f64],
    advantages: &[f64],
    mask: &[f64],
    normaliser: f64,
) -> (PolicyStats, Vec<f64>) {
    let log_probs = vector(new).require_grad();
    let tokens = PolicyTokens {
        log_probs: log_probs.clone(),
        old_log_probs: vector(&OLD[..new.len()]),
        advantages: vector(advantages),
        mask: vector(mask),
    };
    let (loss, stats) = policy_loss(tokens, 0.2, normaliser);
    (stats, gradient(loss, &log_probs))
}

fn literal_policy(new: &[f64]) -> f64 {
    let token = |t: usize| {
        let ratio = (new[t] - OLD[t]).exp();
        MASK[t] * (-ADVANTAGES[t] * ratio).max(-ADVANTAGES[t] * ratio.clamp(0.8, 1.2))
    };
    (0..5).map(token).sum::<f64>() / 4.0
}

fn finite_difference(f: impl Fn(&[f64]) -> f64, x: &[f64], i: usize) -> f64 {
    let at = |shift: f64| {
        let mut moved = x.to_vec();
        moved[i] += shift;
        f(&moved)
    };
    (at(1e-6) - at(-1e-6)) / 2e-6
}

#[test]
fn policy_loss_and_gradient_equal_the_literal_form() {
    let (stats, grad) = policy(&NEW, &ADVANTAGES, &MASK, 4.0);
    assert!((stats.loss - literal_policy(&NEW)).abs() < 1e-6);
    for (i, g) in grad.iter().enumerate() {
        let expected = finite_difference(literal_policy, &NEW, i);
        assert!((g - expected).abs() < 1e-5, "[{i}]: {g} vs {expected}");
    }
    // Clipped: token 0 (ratio 1.28, A > 0) and token 2 (ratio 0.61, A < 0).
    assert!((stats.clip_fraction - 0.5).abs() < 1e-6);
    let expected_kl = (0..5).map(|t| MASK[t] * (OLD[t] - NEW[t])).sum::<f64>() / 4.0;
    assert!((stats.old_approx_kl - expected_kl).abs() < 1e-6);
    let k3 = |t: usize| MASK[t] * ((NEW[t] - OLD[t]).exp() - 1.0 - (NEW[t] - OLD[t]));
    assert!((stats.approx_kl - (0..5).map(k3).sum::<f64>() / 4.0).abs() < 1e-6);
}

#[test]
fn observation_tokens_do_not_change_the_policy_loss() {
    let (stats, grad) = policy(&NEW, &ADVANTAGES, &MASK, 4.0);
    for (log_prob, advantage) in [(-50.0, 1e6), (f64::NEG_INFINITY, -1.0), (90.0, -3.0)] {
        let (mut new, mut advantages) = (NEW, ADVANTAGES);
        (new[3], advantages[3]) = (log_prob, advantage);
        assert_eq!(policy(&new, &advantages, &MASK, 4.0), (stats, grad.clone()));
    }
    assert_eq!(grad[3], 0.0);
}

#[test]
fn micro_batches_add_up_to_the_whole_batch() {
    let (whole, grad) = policy(&NEW, &ADVANTAGES, &MASK, 4.0);
    let old = |range: std::ops::Range<usize>| {
        let log_probs = vector(&NEW[range.clone()]).require_grad();
        let tokens = PolicyTokens {
            log_probs: log_probs.clone(),
            old_log_probs: vector(&OLD[range.clone()]),
            advantages: vector(&ADVANTAGES[range.clone()]),
            mask: vector(&MASK[range]),
        };
        let (loss, stats) = policy_loss(tokens, 0.2, 4.0);
        (stats, gradient(loss, &log_probs))
    };
    let (a, b) = (old(0..2), old(2..5));
    let mut sum = a.0;
    sum += b.0;
    assert!((sum.loss - whole.loss).abs() < 1e-7 && (sum.approx_kl - whole.approx_kl).abs() < 1e-7);
    assert_eq!([a.1, b.1].concat(), grad);
}

#[test]
fn no_trained_token_means_loss_and_gradient_zero() {
    let (stats, grad) = policy(&NEW, &ADVANTAGES, &[0.0; 5], 0.0);
    assert_eq!((stats, grad), (PolicyStats::default(), vec![0.0; 5]));
}

#[test]
fn a_log_ratio_beyond_exp_leaves_the_gradient_finite() {
    for advantage in [1.0, -1.0] {
        let (stats, grad) = policy(&[200.0], &[advantage], &[1.0], 1.0);
        assert!(stats.loss.is_finite() && grad[0] == 0.0, "{stats:?} {grad:?}");
    }
}

const VALUES: [f64; 4] = [0.5, 1.25, -1.0, 0.25];
const OLD_VALUES: [f64; 4] = [0.25, 0.5, 0.0, 0.5];
const RETURNS: [f64; 4] = [1.0, 0.0, 1.0, 0.0];

fn literal_value(values: &[f64]) -> f64 {
    let token = |t: usize| {
        let clipped = values[t].clamp(OLD_VALUES[t] - 0.5, OLD_VALUES[t] + 0.5);
        0.5 * (values[t] - RETURNS[t]).powi(2).max((clipped - RETURNS[t]).powi(2))
    };
    (0..3).map(token).sum::<f64>() / 3.0
}

#[test]
fn value_loss_and_gradient_equal_the_literal_form() {
    let values = vector(&VALUES).require_grad();
    let tokens = ValueTokens {
        values: values.clone(),
        old_values: vector(&OLD_VALUES),
        returns: vector(&RETURNS),
        mask: vector(&[1.0, 1.0, 1.0, 0.0]),
    };
    let (loss, stats) = value_loss(tokens, 0.5, 3.0);
    assert!((stats.loss - literal_value(&VALUES)).abs() < 1e-6);
    for (i, g) in gradient(loss, &values).iter().enumerate() {
        let expected = finite_difference(literal_value, &VALUES, i);
        assert!((g - expected).abs() < 1e-6, "[{i}]: {g} vs {expected}");
    }
    assert!((stats.mean_value - 0.25).abs() < 1e-7);
}

#[test]
fn the_entropy_bonus_is_the_masked_mean() {
    let got = entropy_bonus(vector(&[1.0, 2.0, f64::INFINITY]), vector(&[1.0, 1.0, 0.0]), 4.0);
    assert_eq!(got.into_data().to_vec::<f32>().unwrap(), [0.75]);
}

/// The vector with NaN at one place.
fn with_nan<const N: usize>(mut values: [f64; N], at: usize) -> [f64; N] {
    values[at] = f64::NAN;
    values
}

#[test]
fn a_nan_in_any_input_of_a_trained_token_is_nan_in_the_policy_loss_and_one_elsewhere_is_not() {
    for (at, is_trained) in [(2, true), (3, false)] {
        let inputs = [
            [with_nan(NEW, at), OLD, ADVANTAGES],
            [NEW, with_nan(OLD, at), ADVANTAGES],
            [NEW, OLD, with_nan(ADVANTAGES, at)],
        ];
        for (i, [new, old, advantages]) in inputs.into_iter().enumerate() {
            let tokens = PolicyTokens {
                log_probs: vector(&new),
                old_log_probs: vector(&old),
                advantages: vector(&advantages),
                mask: vector(&MASK),
            };
            let (loss, stats) = policy_loss(tokens, 0.2, 4.0);
            assert_eq!(
                (loss.into_scalar().is_nan(), stats.loss.is_nan()),
                (is_trained, is_trained),
                "input {i}, token {at}"
            );
            let is_of_ratio = is_trained && i < 2;
            assert_eq!(
                (stats.approx_kl.is_nan(), stats.old_approx_kl.is_nan()),
                (is_of_ratio, is_of_ratio),
                "input {i}, token {at}"
            );
        }
    }
}

#[test]
fn a_nan_in_any_input_of_a_counted_token_is_nan_in_the_value_loss_and_one_elsewhere_is_not() {
    for (at, is_counted) in [(1, true), (3, false)] {
        let inputs = [
            [with_nan(VALUES, at), OLD_VALUES, RETURNS],
            [VALUES, with_nan(OLD_VALUES, at), RETURNS],
            [VALUES, OLD_VALUES, with_nan(RETURNS, at)],
        ];
        for (i, [values, old_values, returns]) in inputs.into_iter().enumerate() {
            let tokens = ValueTokens {
                values: vector(&values),
                old_values: vector(&old_values),
                returns: vector(&returns),
                mask: vector(&[1.0, 1.0, 1.0, 0.0]),
            };
            let (loss, stats) = value_loss(tokens, 0.5, 3.0);
            assert_eq!(
                (loss.into_scalar().is_nan(), stats.loss.is_nan()),
                (is_counted, is_counted),
                "input {i}, token {at}"
            );
        }
    }
}

#[test]
fn a_nan_entropy_is_nan_in_the_bonus() {
    assert!(
        entropy_bonus(vector(&[1.0, f64::NAN]), vector(&[1.0, 1.0]), 2.0).into_scalar().is_nan()
    );
}

#[test]
fn the_approximate_kl_is_never_negative_where_the_mean_log_ratio_is() {
    let (stats, _) = policy(&[-0.5, -0.25], &[1.0, 1.0], &[1.0, 1.0], 2.0);
    // The new log-probs are above the old ones, so k1 is negative, though a KL never is.
    assert!(stats.old_approx_kl < 0.0 && stats.approx_kl > 0.0, "{stats:?}");
}
