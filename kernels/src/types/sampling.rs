//! Choice of a token, and its result.

/// Choice of one row's token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowSampling {
    /// 0 (or anything that is 0 in f32) = greedy. Temperatures below 1e-30 count as 1e-30.
    pub temperature: f64,
    /// Tokens that may be drawn; 0 = off.
    pub top_k: usize,
    /// Share of the probability mass that may be drawn, rounded down to a multiple of 2^-32; from 1
    /// on = off. At least one token stays.
    pub top_p: f64,
    /// The random number: a fraction of 2^64.
    pub bits: u64,
}

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// Its id in the vocabulary.
    pub id: u32,
    /// `log_softmax(logits / T)[id]` over the whole vocabulary; T = 1 where the choice was greedy.
    pub log_prob: f32,
}
