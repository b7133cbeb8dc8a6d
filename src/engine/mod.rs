//! Requests -> completions: ragged batched decoding over the KV cache, with continuous batching.
//! Knows no text beyond stop strings, no episodes and no retrieval.
pub mod sampling;

use crate::{rng::Key, tokenizer::Tokenizer};
use dgpo_models::{Backend, decoder::Decoder};
pub use sampling::Sampling;

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// A stop string was completed by the last token (index into the stop list).
    StopString(usize),
    /// An end-of-sequence token (kept as the last id).
    Eos,
    /// The turn's token limit.
    Length,
    /// The row's KV capacity.
    Capacity,
}

/// One generation: where a row stands after it.
#[derive(Clone, Debug)]
pub struct Completion {
    /// The caller's number of the row (`Request::row`).
    pub row: usize,
    /// Sampled ids; the last one completed the stop string or is the EOS.
    pub ids: Vec<u32>,
    /// [ids.len()] log-prob of each sampled id under the sampling temperature's distribution before top-k/top-p.
    pub log_probs: Vec<f32>,
    /// Decoded text of `ids` (may run past the stop string where its last token holds more characters).
    pub text: String,
    pub stop: StopReason,
}

/// Tokens to append to a row and then to generate from. A row's first request is its prompt; later ones are observations.
#[derive(Clone, Debug)]
pub struct Request {
    /// Chosen by the caller; a row keeps its KV between requests until `release`.
    pub row: usize,
    pub ids: Vec<u32>,
    /// Fold of (step, episode, turn); the token's position within the turn is the counter.
    pub key: Key,
    pub max_new_tokens: usize,
    pub sampling: Sampling,
}

/// What is the same for all rows.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Rows decoded together at most; more requests wait in a queue (first come, first served).
    pub max_rows: usize,
    /// Positions a row may hold (prompt + response).
    pub capacity: usize,
    pub stop_strings: Vec<String>,
    pub eos_ids: Vec<u32>,
}

pub struct Engine<'a, B: Backend> {
    _p: (&'a Decoder<B>, &'a Tokenizer),
}
impl<'a, B: Backend> Engine<'a, B> {
    pub fn new(model: &'a Decoder<B>, tokenizer: &'a Tokenizer, _options: EngineOptions, _device: &B::Device) -> Self {
        Self { _p: (model, tokenizer) }
    }
    /// Queues a request. A row not seen before gets a slot when one is free; a known row continues in its slot.
    pub fn submit(&mut self, _request: Request) {
        todo!()
    }
    /// One step: prefill of queued requests that have a slot, then one token for every decoding row. Returns the generations that ended.
    pub fn step(&mut self) -> Result<Vec<Completion>, EngineError> {
        todo!()
    }
    /// True while a row is decoding or a request can be served.
    pub fn is_busy(&self) -> bool {
        todo!()
    }
    /// Frees the row's slot.
    pub fn release(&mut self, _row: usize) {
        todo!()
    }
    /// Positions a row holds now.
    pub fn row_len(&self, _row: usize) -> usize {
        todo!()
    }
    /// Runs every request to its end (no later turns), in the order of the requests.
    pub fn generate(&mut self, _requests: Vec<Request>) -> Result<Vec<Completion>, EngineError> {
        todo!()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(
        "row {row}: the logits at position {position} hold NaN or no finite value; hint: the weights are broken or the learning rate was too high"
    )]
    NotFinite { row: usize, position: usize },
}
