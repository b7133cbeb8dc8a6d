//! A row's sampling in the numbers of the formula, and what comes back.
use super::weight;
use crate::types::RowSampling;

/// Columns of a packed row: the id as a number (-1 where there is no distribution), the log-prob.
pub(crate) const COLUMNS: usize = 2;

/// Plan of a row's sampling, in the numbers of the formula: every implementation works with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SamplePlan {
    pub is_greedy: bool,
    /// 1 where the choice is greedy.
    pub temperature: f64,
    /// 2^25 log2 e / T.
    pub scale: f32,
    /// 0 = off.
    pub top_k: u32,
    /// A fraction of 2^32; 0 = off.
    pub top_p: u32,
    pub bits: u64,
}

impl SamplePlan {
    pub(super) fn new(row: &RowSampling) -> Self {
        let is_greedy = row.temperature as f32 <= 0.0;
        let temperature = if is_greedy { 1.0 } else { row.temperature };
        let top_p = match row.top_p {
            p if p >= 1.0 || p.is_nan() => 0,
            p => ((p * 2f64.powi(32)) as u32).max(1),
        };
        let top_k = u32::try_from(row.top_k).unwrap_or(u32::MAX);
        Self {
            is_greedy,
            temperature,
            scale: weight::scale(temperature),
            top_k,
            top_p,
            bits: row.bits,
        }
    }

    /// True if some of `vocab_size` tokens may not be drawn.
    pub(super) fn is_cut(&self, vocab_size: usize) -> bool {
        let is_top_k = self.top_k > 0 && (self.top_k as usize) < vocab_size;
        !self.is_greedy && (is_top_k || self.top_p > 0)
    }
}
