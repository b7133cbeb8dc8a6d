//! Episodes -> right-padded arrays on the host; micro-batches become tensors on demand.
use super::Episode;

/// [B, T] arrays, row-major, right-padded with 0. Column t of `ids` is the token y_t itself; every other array is aligned with the token it belongs to:
/// `old_log_probs[b][t]` is log pi_old(ids[b][t] | ids[b][..t]), `values[b][t]` is V read at the position before (t - 1).
#[derive(Clone, Debug, Default)]
pub struct RolloutBatch {
    pub n_rows: usize,
    pub n_cols: usize,
    pub ids: Vec<u32>,
    /// [B] real tokens of each row.
    pub lengths: Vec<usize>,
    /// [B] tokens of each row's prompt: the response is prompt_lens[b]..lengths[b].
    pub prompt_lens: Vec<usize>,
    /// [B, T] m_t: true where the agent wrote the token.
    pub loss_mask: Vec<bool>,
    /// [B] r_EM
    pub scores: Vec<f32>,
    pub old_log_probs: Vec<f32>,
    pub ref_log_probs: Vec<f32>,
    pub values: Vec<f32>,
    /// Log-probs the sampler reported (0 where not agent): only for `rollout/logprob_diff_*`.
    pub sample_log_probs: Vec<f32>,
}
impl RolloutBatch {
    pub fn new(_episodes: &[&Episode]) -> Self {
        todo!()
    }
    /// Rows cut out, padded to their own longest row.
    pub fn select(&self, _rows: &[usize]) -> Self {
        todo!()
    }
    /// Consecutive groups of rows whose padded size (rows x longest) stays within `max_tokens` (at least one row a group); rows sorted by length inside. Returns row indexes.
    pub fn micro_batches(&self, _rows: &[usize], _max_tokens: usize) -> Vec<Vec<usize>> {
        todo!()
    }
    pub fn is_response(&self, row: usize, col: usize) -> bool {
        col >= self.prompt_lens[row] && col < self.lengths[row]
    }
    pub fn at(&self, row: usize, col: usize) -> usize {
        row * self.n_cols + col
    }
}
