//! The record of a training episode that the student played: the episode, and the numbers its
//! tokens had before the update.
//!
//! A line is an episode's own record (see [`episode`](super::episode)) with one more field, so that
//! every reader of episodes reads these files too:
//!
//! ```text
//! {"question":…, "segments":…, …, "tokens": {"version":1, "old_log_probs":[…],
//!     "ref_log_probs":[…], "kl":[…], "values":[…], "advantages":[…]}}              (one line)
//! ```
//! Log-probs and KL have one number for each agent token, values and advantages one for each token
//! after the prompt, in the order of the tokens. A field is absent where nothing was computed: the
//! reference is not run on episodes that carry no penalty. `null` stands for a number that was not
//! finite, and for the advantage of a token that is not trained on: whatever GAE passes through an
//! observation, no loss reads it. Five decimals are kept: enough to look at, too few to train on.
use super::{Episode, RolloutBatch};
use serde::{Deserialize, Serialize};

/// Version of [`TokenRecord`]. Numbers of another version are not read, since they may mean
/// something else.
pub const TOKEN_RECORD_VERSION: u32 = 1;

/// Digits after the decimal point.
const DECIMALS: f64 = 1e5;

/// One number a token; `None` where it was not finite or has no meaning.
pub type Numbers = Vec<Option<f32>>;

/// Numbers of each token of an episode, as a step of RL or of on-policy distillation had them
/// before it updated the networks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenRecord {
    /// Format of the record; 0 in files from before it had a number.
    pub version: u32,
    /// `[n_agent_tokens]` log pi_old, recomputed by the training forward pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old_log_probs: Option<Numbers>,
    /// `[n_agent_tokens]` log pi_ref.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ref_log_probs: Option<Numbers>,
    /// `[n_agent_tokens]` KL_t as the recipe estimates it, before the factor beta; in distillation
    /// the divergence from the teacher.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<Numbers>,
    /// `[response_len]` V read at the position before the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<Numbers>,
    /// `[response_len]` as the policy loss sees them (whitened where the recipe whitens): `None`
    /// for tokens that are not the agent's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advantages: Option<Numbers>,
}

/// The numbers of a batch that exist for a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// `batch.ref_log_probs`: the reference was run on the row.
    pub has_ref_log_probs: bool,
    /// The penalty was estimated on the row.
    pub has_kl: bool,
    /// `batch.values`: there is a critic.
    pub has_values: bool,
}

impl TokenRecord {
    /// Cuts a row's numbers out of a batch.
    /// # Shapes
    /// kl, advantages `[B, T]`
    pub fn of_row(
        batch: &RolloutBatch,
        row: usize,
        kl: &[f32],
        advantages: &[f32],
        measured: Measured,
    ) -> Self {
        let response = batch.at(row, batch.prompt_lens[row])..batch.at(row, 0) + batch.lengths[row];
        let agent =
            |array: &[f32]| numbers(array, response.clone().filter(|&at| batch.loss_mask[at]));
        let all = |array: &[f32]| numbers(array, response.clone());
        let trained = |array: &[f32]| {
            response.clone().map(|at| number(array[at]).filter(|_| batch.loss_mask[at])).collect()
        };
        Self {
            version: TOKEN_RECORD_VERSION,
            old_log_probs: Some(agent(&batch.old_log_probs)),
            ref_log_probs: measured.has_ref_log_probs.then(|| agent(&batch.ref_log_probs)),
            kl: measured.has_kl.then(|| agent(kl)),
            values: measured.has_values.then(|| all(&batch.values)),
            advantages: Some(trained(advantages)),
        }
    }

    /// Cuts out the numbers of a distilled row, which has neither values nor advantages.
    /// # Shapes
    /// log_probs, divergence `[B, T]`
    pub fn of_distilled_row(
        batch: &RolloutBatch,
        row: usize,
        log_probs: &[f32],
        divergence: &[f32],
    ) -> Self {
        let agent = |array: &[f32]| {
            numbers(
                array,
                (batch.at(row, 0)..batch.at(row, batch.lengths[row]))
                    .filter(|&at| batch.loss_mask[at]),
            )
        };
        Self {
            version: TOKEN_RECORD_VERSION,
            old_log_probs: Some(agent(log_probs)),
            kl: Some(agent(divergence)),
            ..Self::default()
        }
    }

    /// Checks that every array has one number for each of its tokens.
    /// # Errors
    /// The first array that has not.
    pub fn check(&self, episode: &Episode) -> Result<(), String> {
        let (n_agent, n_response) = (episode.n_agent_tokens(), episode.response_len());
        let arrays = [
            ("old_log_probs", &self.old_log_probs, n_agent),
            ("ref_log_probs", &self.ref_log_probs, n_agent),
            ("kl", &self.kl, n_agent),
            ("values", &self.values, n_response),
            ("advantages", &self.advantages, n_response),
        ];
        for (name, numbers, expected) in arrays {
            if let Some(numbers) = numbers
                && numbers.len() != expected
            {
                return Err(format!(
                    "tokens.{name} has {} numbers for {expected} tokens",
                    numbers.len()
                ));
            }
        }
        Ok(())
    }
}

fn numbers(array: &[f32], at: impl Iterator<Item = usize>) -> Numbers {
    at.map(|at| number(array[at])).collect()
}

fn number(x: f32) -> Option<f32> {
    x.is_finite().then(|| rounded(x))
}

/// Rounded to the digits that are kept.
fn rounded(x: f32) -> f32 {
    ((f64::from(x) * DECIMALS).round() / DECIMALS) as f32
}

/// One line of a file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EpisodeRecord {
    /// The episode as it was played.
    #[serde(flatten)]
    pub episode: Episode,
    /// Absent for episodes that were not trained on, and in files without them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokenRecord>,
}

impl EpisodeRecord {
    /// Puts the records of the trainable episodes, in order, beside their episodes.
    pub fn beside(episodes: Vec<Episode>, records: Vec<TokenRecord>) -> Vec<Self> {
        let mut records = records.into_iter();
        let record = |episode: Episode| Self {
            tokens: episode.is_trainable().then(|| records.next()).flatten(),
            episode,
        };
        episodes.into_iter().map(record).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::drawn_episode;

    const ALL: Measured = Measured { has_ref_log_probs: true, has_kl: true, has_values: true };

    /// A batch of two rows, the drawn episode and a shorter one, whose arrays hold their own
    /// indexes.
    fn counted_batch() -> RolloutBatch {
        let short = Episode { segments: drawn_episode().segments[..2].to_vec(), ..drawn_episode() };
        let mut batch = RolloutBatch::new(&[&short, &drawn_episode()]);
        let count = |scale: f32| (0..2 * 15).map(|at| at as f32 * scale).collect::<Vec<f32>>();
        (batch.old_log_probs, batch.ref_log_probs, batch.values) =
            (count(-1.0), count(-2.0), count(0.5));
        batch
    }

    fn expected(columns: impl IntoIterator<Item = usize>, scale: f32) -> Option<Numbers> {
        // Row 1 of 15 columns.
        Some(columns.into_iter().map(|column| Some((15 + column) as f32 * scale)).collect())
    }

    #[test]
    fn a_row_of_a_batch_keeps_its_agent_tokens_and_its_response() {
        let batch = counted_batch();
        let indexes: Vec<f32> = (0..30).map(|at| at as f32).collect();
        let record = TokenRecord::of_row(&batch, 1, &indexes, &indexes, ALL);
        let agent = [4, 5, 6, 12, 13, 14];
        assert_eq!(
            (record.old_log_probs, record.ref_log_probs),
            (expected(agent, -1.0), expected(agent, -2.0))
        );
        assert_eq!((record.kl, record.values), (expected(agent, 1.0), expected(4..15, 0.5)));
        // Columns 7 to 11 are an observation.
        let advantages =
            (4..15).map(|column| agent.contains(&column).then_some((15 + column) as f32));
        assert_eq!(record.advantages, Some(advantages.collect()));
    }

    #[test]
    fn a_distilled_row_keeps_its_agent_tokens_alone() {
        let batch = counted_batch();
        let indexes: Vec<f32> = (0..30).map(|at| at as f32).collect();
        let record = TokenRecord::of_distilled_row(&batch, 1, &batch.old_log_probs, &indexes);
        let agent = [4, 5, 6, 12, 13, 14];
        assert_eq!(
            (record.old_log_probs, record.kl),
            (expected(agent, -1.0), expected(agent, 1.0))
        );
        assert_eq!((record.ref_log_probs, record.values, record.advantages), (None, None, None));
    }

    #[test]
    fn what_was_not_computed_is_absent() {
        let none = Measured { has_ref_log_probs: false, has_kl: false, has_values: false };
        let record = TokenRecord::of_row(&counted_batch(), 0, &[0.0; 30], &[0.0; 30], none);
        let written = serde_json::to_value(&record).expect("serialises");
        let mut keys: Vec<&String> = written.as_object().expect("an object").keys().collect();
        keys.sort();
        assert_eq!(keys, ["advantages", "old_log_probs", "version"]);
    }
}
