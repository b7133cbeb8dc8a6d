//! Advantages: how much better than expected each token was. GAE with a critic, group-relative
//! scores without one, whitening.
//!
//! delta_t = r_t + gamma V_{t+1} - V_t,  A_t = delta_t + gamma lambda A_{t+1},  V_{T+1} = 0,  R_t =
//! A_t + V_t (`method §4.5`), where V_t is read at the position *before* y_t, so that everything is
//! aligned with the token it judges. Sums are f64, results f32.
//!
//! Worked example, gamma = lambda = 1, values (0.5, 0.7, 0.2), reward 1 on the last token: A =
//! (0.5, 0.3, 0.8), R = (1, 1, 1).
use crate::{
    rollout::RolloutBatch,
    settings::{GaeOver, GaeRecipe},
};
use std::collections::BTreeMap;

/// Added to the variance before the root when advantages are whitened.
pub const WHITEN_EPS: f64 = 1e-8;

/// Added to the standard deviation of a group of episodes.
pub const GROUP_EPS: f64 = 1e-6;

/// Input of the update, in the batch's `[B, T]` layout; 0 and false outside the response.
#[derive(Clone, Debug, PartialEq)]
pub struct Advantages {
    /// A_t, `[B, T]`; 0 outside the response.
    pub advantages: Vec<f32>,
    /// R_t = A_t + V_t, from the advantages before whitening.
    pub returns: Vec<f32>,
    /// Tokens that the recursion ran over; whitening and the value loss count the same ones.
    pub mask: Vec<bool>,
}

/// GAE over every token of a row.
///
/// ```
/// use dgpo_core::algo::advantage::gae_row;
///
/// // The example of this page: the reward lies on the last token.
/// let advantages = gae_row(&[0.0, 0.0, 1.0], &[0.5, 0.7, 0.2], 1.0, 1.0);
/// for (a, expected) in advantages.into_iter().zip([0.5, 0.3, 0.8]) {
///     assert!((a - expected).abs() < 1e-6);
/// }
/// ```
///
/// # Shapes
/// rewards, values: T tokens -> T advantages
/// # Source
/// `method §4.5`
pub fn gae_row(rewards: &[f32], values: &[f32], gamma: f64, lambda: f64) -> Vec<f32> {
    let mut advantages = vec![0.0; rewards.len()];
    let (mut next_value, mut next_advantage) = (0.0, 0.0);
    for t in (0..rewards.len()).rev() {
        let value = f64::from(values[t]);
        let delta = f64::from(rewards[t]) + gamma * next_value - value;
        next_advantage = delta + gamma * lambda * next_advantage;
        next_value = value;
        advantages[t] = next_advantage as f32;
    }
    advantages
}

/// GAE over the tokens the agent wrote: the next state of an agent token is the next agent token,
/// whatever was inserted between.
///
/// A reward that lies on an inserted token belongs to the last agent token before it (a truncated
/// episode can end with an observation). Inserted tokens get advantage 0.
/// # Source
/// `method §4.5`, this project's own option `gae.over = "agent"`.
pub fn gae_row_of_agent(
    rewards: &[f32],
    values: &[f32],
    is_agent: &[bool],
    gamma: f64,
    lambda: f64,
) -> Vec<f32> {
    let columns: Vec<usize> = (0..rewards.len()).filter(|&t| is_agent[t]).collect();
    let end_of = |i: usize| columns.get(i + 1).copied().unwrap_or(rewards.len());
    let agent_rewards: Vec<f32> =
        columns.iter().enumerate().map(|(i, &t)| rewards[t..end_of(i)].iter().sum()).collect();
    let agent_values: Vec<f32> = columns.iter().map(|&t| values[t]).collect();
    let mut advantages = vec![0.0; rewards.len()];
    for (&t, advantage) in columns.iter().zip(gae_row(&agent_rewards, &agent_values, gamma, lambda))
    {
        advantages[t] = advantage;
    }
    advantages
}

/// (x - mean) / sqrt(var + eps), mean and unbiased variance over the masked entries; every entry is
/// transformed.
///
/// Fewer than two masked entries have no variance: they are left as they are.
/// # Source
/// `method §4.5`
pub fn whiten(values: &mut [f32], mask: &[bool]) {
    if let Some((mean, variance)) = masked_mean_and_variance(values, mask) {
        let scale = 1.0 / (variance + WHITEN_EPS).sqrt();
        values.iter_mut().for_each(|x| *x = ((f64::from(*x) - mean) * scale) as f32);
    }
}

/// Mean and unbiased variance of the masked entries; `None` for fewer than two.
pub fn masked_mean_and_variance(values: &[f32], mask: &[bool]) -> Option<(f64, f64)> {
    let masked = || values.iter().zip(mask).filter(|&(_, &m)| m).map(|(&x, _)| f64::from(x));
    let n = masked().count();
    if n < 2 {
        return None;
    }
    let mean = masked().sum::<f64>() / n as f64;
    let variance = masked().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
    Some((mean, variance))
}

/// Advantages and returns of a batch from its token rewards and `batch.values`.
/// # Shapes
/// rewards `[B, T]`
/// # Source
/// `method §4.5`. `over = "response"` runs over inserted tokens too, as the published code does.
pub fn gae(batch: &RolloutBatch, rewards: &[f32], recipe: &GaeRecipe) -> Advantages {
    let size = batch.n_rows * batch.n_cols;
    let mut result = Advantages {
        advantages: vec![0.0; size],
        returns: vec![0.0; size],
        mask: vec![false; size],
    };
    for row in 0..batch.n_rows {
        let response = batch.at(row, batch.prompt_lens[row])..batch.at(row, 0) + batch.lengths[row];
        let (rewards, values) = (&rewards[response.clone()], &batch.values[response.clone()]);
        let is_agent = &batch.loss_mask[response.clone()];
        let advantages = match recipe.over {
            GaeOver::Response => gae_row(rewards, values, recipe.gamma, recipe.lambda),
            GaeOver::Agent => {
                gae_row_of_agent(rewards, values, is_agent, recipe.gamma, recipe.lambda)
            }
        };
        for (i, t) in response.enumerate() {
            result.mask[t] = recipe.over == GaeOver::Response || is_agent[i];
            if result.mask[t] {
                result.advantages[t] = advantages[i];
                result.returns[t] = advantages[i] + values[i];
            }
        }
    }
    if recipe.whiten {
        whiten(&mut result.advantages, &result.mask);
        // Whitening shifts every entry; the ones outside the mask go back to 0.
        result
            .advantages
            .iter_mut()
            .zip(&result.mask)
            .filter(|(_, m)| !**m)
            .for_each(|(a, _)| *a = 0.0);
    }
    result
}

/// One advantage a row: (x - mean) / (std + 1e-6) within the row's group, unbiased std. A group of
/// one has mean 0 and std 1.
/// # Shapes
/// scores, groups: B rows -> B
/// # Source
/// `method §4.9`
pub fn group_advantages<G: Ord>(scores: &[f32], groups: &[G]) -> Vec<f32> {
    let stats: BTreeMap<&G, (f64, f64)> = by_group(scores, groups)
        .into_iter()
        .map(|(group, scores)| {
            let all = vec![true; scores.len()];
            let (mean, variance) = masked_mean_and_variance(&scores, &all).unwrap_or((0.0, 1.0));
            (group, (mean, variance.sqrt()))
        })
        .collect();
    let advantage = |(group, &score): (&G, &f32)| {
        let (mean, std) = stats[group];
        ((f64::from(score) - mean) / (std + GROUP_EPS)) as f32
    };
    groups.iter().zip(scores).map(advantage).collect()
}

/// Fraction of zero-variance groups among the groups of at least two rows: all their scores are
/// equal, so they give the policy no direction. 0 where no group has two rows.
/// # Shapes
/// scores, groups: B rows
pub fn flat_groups<G: Ord>(scores: &[f32], groups: &[G]) -> f64 {
    let of_groups = by_group(scores, groups).into_values().filter(|scores| scores.len() > 1);
    let is_flat: Vec<bool> =
        of_groups.map(|scores| scores.iter().all(|&score| score == scores[0])).collect();
    is_flat.iter().filter(|&&is| is).count() as f64 / is_flat.len().max(1) as f64
}

fn by_group<'g, G: Ord>(scores: &[f32], groups: &'g [G]) -> BTreeMap<&'g G, Vec<f32>> {
    let mut members: BTreeMap<&G, Vec<f32>> = BTreeMap::new();
    for (group, &score) in groups.iter().zip(scores) {
        members.entry(group).or_default().push(score);
    }
    members
}

/// GRPO's advantages of a batch: the row's group-relative score on each of its agent tokens. There
/// is no critic, so returns equal advantages.
///
/// A = (r - mean r) / (std r + 1e-6) is divided by the spread of r, so r should be the outcome
/// alone. With the penalty in it, r = r_EM - beta KL, a group of equal outcomes has std r = beta
/// std KL, and beta cancels: A = -(KL - mean KL) / std KL however small it is. That is why a recipe
/// with `rl.algorithm = "grpo"` and `kl.in = "reward"` is refused (`config/check/rl.rs`), and why
/// GRPO's penalty is in the loss elsewhere. Dividing the penalty by the outcome's std instead would
/// divide by 1e-6 in just those groups. Recorded references that do mix the two can still be
/// computed.
/// # Shapes
/// rewards `[B, T]` (summed over a row they are its score), groups: B
/// # Source
/// `method §4.9`; `PeterGriffinJin/Search-R1:train_grpo.sh` (`use_kl_loss=true`)
pub fn grpo<G: Ord>(batch: &RolloutBatch, rewards: &[f32], groups: &[G]) -> Advantages {
    let row_of = |row: usize| batch.at(row, 0)..batch.at(row + 1, 0);
    let scores: Vec<f32> = (0..batch.n_rows).map(|row| rewards[row_of(row)].iter().sum()).collect();
    let mut advantages = vec![0.0; rewards.len()];
    for (row, advantage) in group_advantages(&scores, groups).into_iter().enumerate() {
        for t in row_of(row).filter(|&t| batch.loss_mask[t]) {
            advantages[t] = advantage;
        }
    }
    Advantages { returns: advantages.clone(), advantages, mask: batch.loss_mask.clone() }
}

#[cfg(test)]
mod tests;
