//! Episodes -> right-padded arrays on the host; micro-batches become tensors on demand.
//!
//! The host arrays are the one form all algorithms work on: log-probs, rewards, advantages are [B,
//! T] and aligned with the token they belong to. Models see a few rows at a time
//! ([`RolloutBatch::ids_tensor`]) and only the hidden states that wanted tokens are predicted from
//! ([`TokenIndex`]): the vocabulary head never runs over prompts, observations or padding.
//!
//! Padding is known from `lengths` alone. It holds id 0, which may be a real token elsewhere;
//! nothing ever reads it.
use super::{Episode, Segment};
use burn::tensor::{Int, Tensor, TensorData};
use dgpo_kernels::rows::select_rows;
use dgpo_models::Backend;

/// `[B, T]` arrays, row-major, right-padded with 0. Column t of `ids` is the token y_t itself;
/// every other array is aligned with the token it belongs to: `old_log_probs[b][t]` is
/// `log pi_old(ids[b][t] | ids[b][..t])`, `values[b][t]` is V read at the position before (t - 1).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RolloutBatch {
    /// B: episodes.
    pub n_rows: usize,
    /// T: tokens of the longest episode.
    pub n_cols: usize,
    /// `[B, T]` y_t.
    pub ids: Vec<u32>,
    /// `[B]` real tokens of each row.
    pub lengths: Vec<usize>,
    /// `[B]` tokens of each row's prompt: the response is `prompt_lens[b]..lengths[b]`.
    pub prompt_lens: Vec<usize>,
    /// `[B, T]` m_t: true where the agent wrote the token (method §1.5, paper Eq. 6).
    pub loss_mask: Vec<bool>,
    /// `[B]` r_EM (method §2.1, paper Eq. 3)
    pub scores: Vec<f32>,
    /// `[B, T]` log pi_old(y_t) of agent tokens.
    pub old_log_probs: Vec<f32>,
    /// `[B, T]` log pi_ref(y_t) of agent tokens of penalised rows.
    pub ref_log_probs: Vec<f32>,
    /// `[B, T]` V before the token, over the response.
    pub values: Vec<f32>,
    /// Log-probs that the sampler reported (0 elsewhere than at agent tokens), for
    /// `rollout/logprob_diff_*` alone.
    pub sample_log_probs: Vec<f32>,
}

/// Tokens picked out of a group of rows: the position their prediction is read at, their ids, and
/// the place of a result in the batch.
///
/// The log-prob (or value) of the token in column t is read at the hidden state of column t - 1.
/// # Source
/// `method §1.5`, `method §11.2`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenIndex {
    /// `[N]` index into the group's hidden states, flattened to [R * T', D] (T' = the group's
    /// longest row).
    pub hidden: Vec<usize>,
    /// `[N]` the tokens.
    pub labels: Vec<u32>,
    /// `[N]` index into the batch's `[B, T]` arrays.
    pub at: Vec<usize>,
}

impl RolloutBatch {
    /// Lays the episodes side by side. Log-probs and values start at 0.
    /// # Panics
    /// If an episode begins with the agent's text, whose first token could not be predicted from
    /// anything.
    pub fn new(episodes: &[&Episode]) -> Self {
        let lengths: Vec<usize> =
            episodes.iter().map(|e| e.segments.iter().map(|s| s.ids().len()).sum()).collect();
        let (n_rows, n_cols) = (episodes.len(), lengths.iter().copied().max().unwrap_or(0));
        let zeros = vec![0.0; n_rows * n_cols];
        let mut batch = Self {
            n_rows,
            n_cols,
            ids: vec![0; n_rows * n_cols],
            lengths,
            prompt_lens: episodes.iter().map(|e| e.prompt_len()).collect(),
            loss_mask: vec![false; n_rows * n_cols],
            scores: episodes.iter().map(|e| e.reward).collect(),
            old_log_probs: zeros.clone(),
            ref_log_probs: zeros.clone(),
            values: zeros.clone(),
            sample_log_probs: zeros,
        };
        for (row, episode) in episodes.iter().enumerate() {
            let mut start = batch.at(row, 0);
            assert!(
                !episode.segments.first().is_some_and(Segment::is_agent),
                "row {row} has no prompt"
            );
            for segment in &episode.segments {
                let end = start + segment.ids().len();
                batch.ids[start..end].copy_from_slice(segment.ids());
                if let Segment::Agent { sample_log_probs, .. } = segment {
                    batch.loss_mask[start..end].fill(true);
                    if !sample_log_probs.is_empty() {
                        batch.sample_log_probs[start..end].copy_from_slice(sample_log_probs);
                    }
                }
                start = end;
            }
        }
        batch
    }

    /// Rows cut out, in the given order, padded to their own longest row.
    pub fn select(&self, rows: &[usize]) -> Self {
        let n_cols = self.longest(rows);
        Self {
            n_rows: rows.len(),
            n_cols,
            ids: self.cut(&self.ids, rows, n_cols),
            lengths: rows.iter().map(|&row| self.lengths[row]).collect(),
            prompt_lens: rows.iter().map(|&row| self.prompt_lens[row]).collect(),
            loss_mask: self.cut(&self.loss_mask, rows, n_cols),
            scores: rows.iter().map(|&row| self.scores[row]).collect(),
            old_log_probs: self.cut(&self.old_log_probs, rows, n_cols),
            ref_log_probs: self.cut(&self.ref_log_probs, rows, n_cols),
            values: self.cut(&self.values, rows, n_cols),
            sample_log_probs: self.cut(&self.sample_log_probs, rows, n_cols),
        }
    }

    /// Groups of rows whose padded size (rows x longest) stays within `max_tokens` (at least one
    /// row a group). Returns row indexes.
    ///
    /// The rows are sorted by length, longest first (equal lengths by index), and cut greedily, so
    /// that a group wastes little on padding and the result depends on nothing but lengths and
    /// indexes.
    pub fn micro_batches(&self, rows: &[usize], max_tokens: usize) -> Vec<Vec<usize>> {
        let mut sorted = rows.to_vec();
        sorted.sort_by_key(|&row| (std::cmp::Reverse(self.lengths[row]), row));
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for row in sorted {
            match groups.last_mut() {
                Some(group) if (group.len() + 1) * self.lengths[group[0]] <= max_tokens => {
                    group.push(row)
                }
                _ => groups.push(vec![row]),
            }
        }
        groups
    }

    /// True if a column belongs to the response: agent or observation, not prompt, not padding.
    pub fn is_response(&self, row: usize, col: usize) -> bool {
        col >= self.prompt_lens[row] && col < self.lengths[row]
    }

    /// Index of (row, col) in the `[B, T]` arrays.
    pub fn at(&self, row: usize, col: usize) -> usize {
        row * self.n_cols + col
    }

    /// Tokens of the longest of some rows (0 for none).
    pub fn longest(&self, rows: &[usize]) -> usize {
        rows.iter().map(|&row| self.lengths[row]).max().unwrap_or(0)
    }

    /// Agent tokens of some rows, Σ m_t: the number that a loss is divided by.
    pub fn n_agent_tokens(&self, rows: &[usize]) -> usize {
        rows.iter()
            .map(|&row| {
                self.loss_mask[self.at(row, 0)..self.at(row, self.lengths[row])]
                    .iter()
                    .filter(|&&m| m)
                    .count()
            })
            .sum()
    }

    /// Ids of some rows as a right-padded tensor.
    /// # Shapes
    /// -> `[R, T']`, T' = the longest of these rows
    pub fn ids_tensor<B: Backend>(&self, rows: &[usize], device: &B::Device) -> Tensor<B, 2, Int> {
        let n_cols = self.longest(rows);
        let ids: Vec<i32> =
            self.cut(&self.ids, rows, n_cols).into_iter().map(|id| id as i32).collect();
        Tensor::from_data(TensorData::new(ids, [rows.len(), n_cols]), device)
    }

    /// The agent's tokens of some rows (m_t = 1): the tokens that policy losses, KL and entropy
    /// count.
    pub fn agent_tokens(&self, rows: &[usize]) -> TokenIndex {
        self.tokens(rows, |row, col| self.loss_mask[self.at(row, col)])
    }

    /// All tokens after the prompt of some rows, observations included: the tokens with a value
    /// when GAE runs over the response.
    pub fn response_tokens(&self, rows: &[usize]) -> TokenIndex {
        self.tokens(rows, |row, col| self.is_response(row, col))
    }

    fn tokens(&self, rows: &[usize], is_wanted: impl Fn(usize, usize) -> bool) -> TokenIndex {
        let n_cols = self.longest(rows);
        let mut index = TokenIndex::default();
        for (group_row, &row) in rows.iter().enumerate() {
            // Column 0, a part of the prompt, cannot be predicted from anything.
            for col in (1..self.lengths[row]).filter(|&col| is_wanted(row, col)) {
                index.hidden.push(group_row * n_cols + col - 1);
                index.labels.push(self.ids[self.at(row, col)]);
                index.at.push(self.at(row, col));
            }
        }
        index
    }

    /// The first `n_cols` columns of some rows of a `[B, T]` array.
    fn cut<T: Copy>(&self, array: &[T], rows: &[usize], n_cols: usize) -> Vec<T> {
        rows.iter()
            .flat_map(|&row| array[self.at(row, 0)..self.at(row, n_cols)].iter().copied())
            .collect()
    }
}

impl TokenIndex {
    /// N: tokens picked.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True if no token was picked.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The hidden states that the tokens are predicted from. hidden `[R, T', D]` -> `[N, D]`
    pub fn gather<B: Backend>(&self, hidden: Tensor<B, 3>) -> Tensor<B, 2> {
        let [n_rows, n_cols, width] = hidden.dims();
        let index: Vec<i32> = self.hidden.iter().map(|&i| i as i32).collect();
        let index = Tensor::from_data(TensorData::new(index, [self.len()]), &hidden.device());
        select_rows(hidden.reshape([n_rows * n_cols, width]), index)
    }

    /// The tokens. -> `[N]`
    pub fn labels_tensor<B: Backend>(&self, device: &B::Device) -> Tensor<B, 1, Int> {
        let labels: Vec<i32> = self.labels.iter().map(|&id| id as i32).collect();
        Tensor::from_data(TensorData::new(labels, [self.len()]), device)
    }

    /// Writes one result a token to its place. values `[N]`, array `[B, T]`
    pub fn scatter(&self, values: &[f32], array: &mut [f32]) {
        for (&at, &value) in self.at.iter().zip(values) {
            array[at] = value;
        }
    }

    /// One number a token out of a `[B, T]` array. -> `[N]`
    pub fn pick(&self, array: &[f32]) -> Vec<f32> {
        self.at.iter().map(|&at| array[at]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::StopReason,
        rollout::ObservationKind,
        testing::{Cpu, drawn_episode},
    };
    use proptest::{collection::vec, prelude::*};

    /// Episodes of one to three turns. Ids are 0 to 2, so that real tokens look like padding.
    fn episodes(n: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Episode>> {
        let ids = |max| vec(0..3u32, 1..=max);
        let turn = (ids(7), ids(12)).prop_map(|(ids, observed)| {
            let sample_log_probs = ids.iter().map(|&id| -0.5 - id as f32).collect();
            let agent = Segment::Agent { ids, sample_log_probs, stop: StopReason::Eos };
            [agent, Segment::Observation { ids: observed, kind: ObservationKind::Information }]
        });
        let episode = (ids(9), vec(turn, 1..4), 0..2u8).prop_map(|(prompt, turns, reward)| {
            let mut segments = vec![Segment::Prompt { ids: prompt }];
            segments.extend(turns.into_iter().flatten());
            Episode { segments, reward: reward.into(), ..drawn_episode() }
        });
        vec(episode, n)
    }

    /// Episodes, and some of their rows in any order.
    fn episodes_and_rows() -> impl Strategy<Value = (Vec<Episode>, Vec<usize>)> {
        episodes(1..13).prop_flat_map(|episodes| {
            let rows: Vec<usize> = (0..episodes.len()).collect();
            let some = proptest::sample::subsequence(rows.clone(), 1..=rows.len()).prop_shuffle();
            (Just(episodes), some)
        })
    }

    fn batch_of(episodes: &[Episode]) -> RolloutBatch {
        RolloutBatch::new(&episodes.iter().collect::<Vec<_>>())
    }

    #[test]
    fn the_drawn_episode_has_the_mask_of_the_drawing() {
        let batch = batch_of(&[drawn_episode()]);
        let mask: Vec<u8> = batch.loss_mask.iter().map(|&m| m.into()).collect();
        assert_eq!(mask, [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1]);
        let tokens = batch.agent_tokens(&[0]);
        assert_eq!(tokens.hidden, [3, 4, 5, 11, 12, 13]);
        assert_eq!(tokens.labels, [5, 310, 6, 9, 512, 10]);
        assert_eq!(tokens.pick(&batch.sample_log_probs), [-0.1, -2.5, -1e-7, -0.3, -0.7, 0.0]);
    }

    proptest! {
        #[test]
        fn the_mask_counts_exactly_the_agents_tokens(episodes in episodes(0..20)) {
            let batch = batch_of(&episodes);
            let rows: Vec<usize> = (0..batch.n_rows).collect();
            let n: usize = episodes.iter().map(Episode::n_agent_tokens).sum();
            prop_assert_eq!(batch.loss_mask.iter().filter(|&&m| m).count(), n);
            prop_assert_eq!((batch.n_agent_tokens(&rows), batch.agent_tokens(&rows).len()), (n, n));
            let response: usize = episodes.iter().map(Episode::response_len).sum();
            prop_assert_eq!(batch.response_tokens(&rows).len(), response);
        }

        #[test]
        fn padding_is_in_no_mask_and_no_index(episodes in episodes(1..20)) {
            let batch = batch_of(&episodes);
            for row in 0..batch.n_rows {
                for col in batch.lengths[row]..batch.n_cols {
                    prop_assert!(!batch.loss_mask[batch.at(row, col)]);
                    prop_assert!(!batch.is_response(row, col));
                }
            }
            for at in batch.response_tokens(&(0..batch.n_rows).collect::<Vec<_>>()).at {
                prop_assert!(at % batch.n_cols < batch.lengths[at / batch.n_cols]);
            }
        }

        #[test]
        fn an_index_names_the_same_tokens_in_any_group_of_rows(
            (episodes, rows) in episodes_and_rows()
        ) {
            let batch = batch_of(&episodes);
            let group = batch.select(&rows);
            let all: Vec<usize> = (0..rows.len()).collect();
            let (cut, direct) = (group.agent_tokens(&all), batch.agent_tokens(&rows));
            prop_assert_eq!((&cut.hidden, &cut.labels), (&direct.hidden, &direct.labels));
            // In the selected batch the array is as wide as the group: a token stands one column
            // after the one it is read at.
            prop_assert_eq!(cut.at, direct.hidden.iter().map(|h| h + 1).collect::<Vec<_>>());
        }

        #[test]
        fn select_keeps_every_array_of_a_row((episodes, rows) in episodes_and_rows()) {
            let mut batch = batch_of(&episodes);
            for (i, value) in batch.values.iter_mut().enumerate() {
                *value = i as f32;
            }
            let group = batch.select(&rows);
            for (new, &old) in rows.iter().enumerate() {
                let row = |b: &RolloutBatch, i: usize| (b.lengths[i], b.prompt_lens[i], b.scores[i]);
                prop_assert_eq!(row(&group, new), row(&batch, old));
                for col in 0..batch.lengths[old] {
                    let token =
                        |b: &RolloutBatch, at| (b.ids[at], b.values[at], b.sample_log_probs[at]);
                    let (to, from) = (group.at(new, col), batch.at(old, col));
                    prop_assert_eq!(token(&group, to), token(&batch, from));
                }
            }
        }

        #[test]
        fn micro_batches_hold_every_row_once_within_the_limit(
            (episodes, rows) in episodes_and_rows(),
            max_tokens in 1..300usize
        ) {
            let batch = batch_of(&episodes);
            let groups = batch.micro_batches(&rows, max_tokens);
            for group in &groups {
                prop_assert!(group.len() == 1 || group.len() * batch.longest(group) <= max_tokens);
            }
            let (mut seen, mut sorted) = (groups.concat(), rows.clone());
            seen.sort_unstable();
            sorted.sort_unstable();
            prop_assert_eq!(seen, sorted.clone());
            // The order of the rows does not matter.
            prop_assert_eq!(groups, batch.micro_batches(&sorted, max_tokens));
        }

        #[test]
        fn scatter_is_the_inverse_of_pick((episodes, rows) in episodes_and_rows()) {
            let batch = batch_of(&episodes);
            let tokens = batch.agent_tokens(&rows);
            let mut array = vec![0.0; batch.ids.len()];
            let values: Vec<f32> = (0..tokens.len()).map(|i| 1.0 + i as f32).collect();
            tokens.scatter(&values, &mut array);
            prop_assert_eq!(tokens.pick(&array), values);
            prop_assert_eq!(array.iter().filter(|&&x| x != 0.0).count(), tokens.len());
        }

        #[test]
        fn gathered_states_are_those_before_the_tokens((episodes, rows) in episodes_and_rows()) {
            let (batch, device) = (batch_of(&episodes), Default::default());
            let [n_rows, n_cols] = batch.ids_tensor::<Cpu>(&rows, &device).dims();
            prop_assert_eq!([n_rows, n_cols], [rows.len(), batch.longest(&rows)]);
            // Hidden states that are the column's number: the token of column t must read t - 1.
            let columns: Vec<f32> = (0..n_rows * n_cols).map(|i| (i % n_cols) as f32).collect();
            let columns = TensorData::new(columns, [n_rows, n_cols, 1]);
            let hidden = Tensor::<Cpu, 3>::from_data(columns, &device);
            let tokens = batch.agent_tokens(&rows);
            let read = tokens.gather(hidden).into_data().to_vec::<f32>().expect("f32");
            let expected: Vec<f32> =
                tokens.at.iter().map(|at| (at % batch.n_cols) as f32 - 1.0).collect();
            prop_assert_eq!(read, expected);
        }
    }

    #[test]
    fn no_episodes_make_an_empty_batch() {
        let batch = RolloutBatch::new(&[]);
        assert_eq!((batch.n_rows, batch.n_cols, batch.micro_batches(&[], 10).len()), (0, 0, 0));
    }
}
