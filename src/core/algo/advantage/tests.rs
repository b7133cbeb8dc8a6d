//! GAE against its sum form, and properties of the advantages. The recorded reference numbers run
//! in `conformance`.
use super::*;

fn close(got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    for (g, e) in got.iter().zip(expected) {
        assert!((f64::from(*g) - e).abs() < 1e-6, "{got:?} vs {expected:?}");
    }
}

#[test]
fn the_worked_example_of_the_documentation() {
    let advantages = gae_row(&[0.0, 0.0, 1.0], &[0.5, 0.7, 0.2], 1.0, 1.0);
    close(&advantages, &[0.5, 0.3, 0.8]);
}

#[test]
fn gae_is_the_discounted_sum_of_temporal_differences() {
    let (r, v) = ([0.1f32, -0.2, 0.0, 0.5, 1.0], [0.3f32, -0.4, 0.9, 0.2, -0.1]);
    let (gamma, lambda) = (0.9f64, 0.8f64);
    let value = |t: usize| v.get(t).map_or(0.0, |&v| f64::from(v));
    let delta = |t: usize| f64::from(r[t]) + gamma * value(t + 1) - value(t);
    let expected: Vec<f64> = (0..5)
        .map(|t| (t..5).map(|u| (gamma * lambda).powi((u - t) as i32) * delta(u)).sum())
        .collect();
    close(&gae_row(&r, &v, gamma, lambda), &expected);
}

#[test]
fn agent_gae_equals_gae_of_the_agent_tokens_alone() {
    let is_agent = [true, false, false, true, true];
    let got = gae_row_of_agent(
        &[0.1, 0.0, 0.0, 0.2, 1.0],
        &[0.3, 9.0, -9.0, 0.5, 0.7],
        &is_agent,
        0.9,
        0.8,
    );
    let alone = gae_row(&[0.1, 0.2, 1.0], &[0.3, 0.5, 0.7], 0.9, 0.8);
    assert_eq!(got, [alone[0], 0.0, 0.0, alone[1], alone[2]]);
}

#[test]
fn a_reward_on_a_trailing_observation_belongs_to_the_last_agent_token() {
    let got =
        gae_row_of_agent(&[0.0, 0.0, 1.0], &[0.25, 0.5, 0.5], &[false, true, false], 1.0, 1.0);
    assert_eq!(got, [0.0, 0.5, 0.0]);
}

/// Two rows: prompt 1 + response 3 (agent, observation, agent), prompt 2 + response 1, padded to
/// `n_cols`.
fn batch(n_cols: usize, observed_value: f32) -> RolloutBatch {
    let mut batch = RolloutBatch {
        n_rows: 2,
        n_cols,
        lengths: vec![4, 3],
        prompt_lens: vec![1, 2],
        scores: vec![1.0, 0.0],
        ..Default::default()
    };
    batch.values = vec![0.0; 2 * n_cols];
    batch.loss_mask = vec![false; 2 * n_cols];
    for (row, col, value) in [(0, 1, 0.5), (0, 3, 0.25), (1, 2, 0.125)] {
        batch.values[row * n_cols + col] = value;
        batch.loss_mask[row * n_cols + col] = true;
    }
    batch.values[2] = observed_value;
    batch
}

fn recipe(over: GaeOver, whiten: bool) -> GaeRecipe {
    GaeRecipe { gamma: 1.0, lambda: 1.0, over, whiten }
}

fn outcome_rewards(batch: &RolloutBatch) -> Vec<f32> {
    let mut rewards = vec![0.0; batch.n_rows * batch.n_cols];
    for row in 0..batch.n_rows {
        rewards[batch.at(row, batch.lengths[row] - 1)] = batch.scores[row];
    }
    rewards
}

#[test]
fn over_response_counts_observation_tokens_and_over_agent_does_not() {
    let batch = batch(5, 0.75);
    let rewards = outcome_rewards(&batch);
    let over_response = gae(&batch, &rewards, &recipe(GaeOver::Response, false));
    assert_eq!(over_response.advantages, [0.0, 0.5, 0.25, 0.75, 0.0, 0.0, 0.0, -0.125, 0.0, 0.0]);
    assert_eq!(over_response.returns, [0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    let over_agent = gae(&batch, &rewards, &recipe(GaeOver::Agent, false));
    assert_eq!(over_agent.advantages, [0.0, 0.5, 0.0, 0.75, 0.0, 0.0, 0.0, -0.125, 0.0, 0.0]);
    assert_eq!(over_agent.mask, batch.loss_mask);
}

#[test]
fn values_of_observation_tokens_do_not_reach_over_agent() {
    let [a, b] = [0.75, -40.0].map(|value| {
        let batch = batch(5, value);
        gae(&batch, &outcome_rewards(&batch), &recipe(GaeOver::Agent, true))
    });
    assert_eq!(a, b);
}

#[test]
fn padding_does_not_change_advantages() {
    let [narrow, wide] = [4, 9].map(|n_cols| {
        let batch = batch(n_cols, 0.75);
        let result = gae(&batch, &outcome_rewards(&batch), &recipe(GaeOver::Response, true));
        (0..2)
            .flat_map(|row| result.advantages[row * n_cols..row * n_cols + 4].to_vec())
            .collect::<Vec<_>>()
    });
    assert_eq!(narrow, wide);
}

#[test]
fn whitened_values_have_mean_zero_and_unbiased_variance_one() {
    let mask = [true, false, true, true, true];
    let mut values = [1.0, 100.0, 4.0, -2.0, 0.5];
    whiten(&mut values, &mask);
    let (mean, variance) = masked_mean_and_variance(&values, &mask).unwrap();
    assert!(mean.abs() < 1e-7 && (variance - 1.0).abs() < 1e-6);
}

#[test]
fn one_or_no_masked_value_is_left_alone() {
    let mut values = [3.0, 4.0];
    whiten(&mut values, &[false, true]);
    whiten(&mut values, &[false, false]);
    assert_eq!(values, [3.0, 4.0]);
}

#[test]
fn groups_are_normalised_by_themselves_and_a_lone_episode_keeps_its_score() {
    let got = group_advantages(&[1.0, 0.5, 0.0, 3.0], &["a", "b", "a", "b"]);
    // Group a: mean 0.5, unbiased std sqrt(0.5); group b: mean 1.75, std 2.5/sqrt(2).
    let (a, b) = (0.5 / (0.5f64.sqrt() + 1e-6), 1.25 / (2.5 / 2f64.sqrt() + 1e-6));
    close(&got, &[a, -b, -a, b]);
    close(&group_advantages(&[0.7], &[0]), &[0.7f32.into()]);
}

#[test]
fn equal_scores_in_a_group_give_no_signal() {
    assert_eq!(group_advantages(&[1.0, 1.0, 1.0], &[0, 0, 0]), [0.0; 3]);
}

#[test]
fn a_flat_group_has_equal_scores_and_more_than_one_row() {
    // Group 0 is mixed, 1 and 2 have zero variance, 3 has lost all rows but one.
    assert_eq!(
        flat_groups(&[1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0], &[0, 1, 0, 1, 2, 2, 3]),
        2.0 / 3.0
    );
    assert_eq!((flat_groups(&[1.0], &[0]), flat_groups::<u8>(&[], &[])), (0.0, 0.0));
}

#[test]
fn grpo_puts_the_group_score_on_agent_tokens_only() {
    let batch = batch(5, 0.75);
    let result = grpo(&batch, &outcome_rewards(&batch), &[0, 0]);
    let a = (0.5 / (0.5f64.sqrt() + GROUP_EPS)) as f32;
    assert_eq!(result.advantages, [0.0, a, 0.0, a, 0.0, 0.0, 0.0, -a, 0.0, 0.0]);
}

#[test]
fn a_nan_reward_or_value_is_nan_in_the_advantages_before_it() {
    for (reward, value) in [(f32::NAN, 0.5), (0.0, f32::NAN)] {
        let got = gae_row(&[0.0, reward, 1.0], &[0.5, value, 0.5], 1.0, 0.95);
        assert!(got[0].is_nan() && got[1].is_nan() && got[2].is_finite(), "{got:?}");
    }
}

#[test]
fn a_nan_advantage_makes_all_that_are_whitened_with_it_nan() {
    let mut values = [1.0, f32::NAN, 3.0];
    whiten(&mut values, &[true; 3]);
    assert!(values.iter().all(|x| x.is_nan()), "{values:?}");
}

#[test]
fn a_nan_score_is_nan_in_its_group_and_nowhere_else() {
    let got = group_advantages(&[1.0, f32::NAN, 1.0, 0.0], &[0, 0, 1, 1]);
    assert!(
        got[..2].iter().all(|x| x.is_nan()) && got[2..].iter().all(|x| x.is_finite()),
        "{got:?}"
    );
}
