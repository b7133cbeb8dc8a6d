//! Requests -> completions: ragged batched decoding over the KV cache, with continuous batching.
//!
//! Knows no text beyond stop strings, no episodes and no retrieval. The caller numbers its rows; a
//! row owns a slot of the cache from its first request until [`Engine::release`], so that a later
//! request (an observation) prefills its own tokens only.
//!
//! # A step
//! Every row has a list of tokens that are not in the cache yet. One [`Engine::step`] feeds them
//! all and draws one token a row:
//!
//! ```text
//! row 7  cache [p p p p p p]  unfed [s]           the token drawn last     -> decode batch  [R, 1]
//! row 2  cache [p p p a a a]  unfed [a' o o o o]  an observation after it  -> prefill batch [r, 5]
//! row 9  cache []             unfed [p p p p]     a prompt, new slot       -> prefill batch [r, 5]
//! ```
//!
//! The token that ended a generation (a', drawn but never fed) stays unfed until the row's next
//! request, so decoding and prefilling are one operation. The head is computed at the last real
//! position of each row; the logits stay on the device, where one token for each row is drawn, and
//! ids and log-probs of all rows reach the host in one transfer. A row that ends leaves at once; a
//! waiting one takes its slot at the next step.
//!
//! # What a row's tokens depend on
//! On the weights, its own ids, its key and its sampling; never on neighbours, batch size or order:
//! draws are counter-based, and scheduling uses no clock and no thread race. The logits of a row
//! may differ by rounding between batch shapes, which changes a token only where the draw falls
//! within rounding of the border between two tokens.
pub use crate::settings::Sampling;
use crate::{
    rng::Key,
    tokenizer::{Tokenizer, stream::TextStream},
};
use burn::tensor::{Int, Tensor, TensorData};
use dgpo_models::{
    Backend,
    cache::{CacheRows, KvCache},
    decoder::Decoder,
    heads::sample::{self, Draw, RowSampling, sample},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Padded tokens of one prefill pass at most (one row may exceed it alone): bounds the activations.
const MAX_PREFILL_TOKENS: usize = 8192;

/// Reasons for the end of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// A finished generation of one row.
#[derive(Clone, Debug)]
pub struct Completion {
    /// The caller's number of the row (`Request::row`).
    pub row: usize,
    /// Sampled ids; the last one completed the stop string or is the EOS. Empty where the row had
    /// no room for a token (`Capacity`).
    pub ids: Vec<u32>,
    /// [ids.len()] log-prob of each sampled id under the sampling temperature's distribution before
    /// top-k/top-p.
    pub log_probs: Vec<f32>,
    /// Decoded text of `ids` (may run past the stop string where its last token holds more
    /// characters).
    pub text: String,
    /// The event that ended the generation.
    pub stop: StopReason,
}

/// Tokens to append to a row and then to generate from. A row's first request is its prompt; later
/// ones are observations.
#[derive(Clone, Debug)]
pub struct Request {
    /// Chosen by the caller; a row keeps its KV between requests until `release`.
    pub row: usize,
    /// Not empty in a row's first request: the first token needs something to be conditioned on.
    pub ids: Vec<u32>,
    /// Fold of (step, episode, turn); the token's position within the turn is the counter.
    pub key: Key,
    /// Tokens of this generation at most.
    pub max_new_tokens: usize,
    /// Sampling of its tokens.
    pub sampling: Sampling,
}

/// Options that are the same for all rows.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Rows decoded together at most, at least 1; more requests wait in a queue (first come, first
    /// served). The KV cache is allocated for this many: no more than the rows that will be
    /// submitted.
    pub max_rows: usize,
    /// Positions a row may hold (prompt + response).
    pub capacity: usize,
    /// Texts that end a generation; a completion's `StopString` is an index into them.
    pub stop_strings: Vec<String>,
    /// Ids that end a generation.
    pub eos_ids: Vec<u32>,
}

/// Errors of a step. The engine must not be used afterwards.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum EngineError {
    #[error(
        "row {row}: the logits at position {position} hold NaN or no finite value; hint: the \
         weights are broken or the learning rate was too high"
    )]
    NotFinite { row: usize, position: usize },
    #[error(
        "row {row}: the prompt has no tokens; hint: an empty question under the plain chat \
         template, or a tokenizer that drops its text"
    )]
    EmptyPrompt { row: usize },
    /// Not a failure: the engine's caller was asked to stop.
    #[error("stopped as asked")]
    Interrupted,
}

/// A generator for many rows at once. It is valid while the weights do not change, since its cache
/// holds their keys and values.
pub struct Engine<'a, B: Backend> {
    model: &'a Decoder<B>,
    tokenizer: &'a Tokenizer,
    device: B::Device,
    options: EngineOptions,
    cache: KvCache<B>,
    free_slots: BTreeSet<usize>,
    /// First requests of rows that have no slot yet.
    queue: VecDeque<Request>,
    /// Rows with a slot. Ordered, so that nothing depends on hashing.
    rows: BTreeMap<usize, Row<'a>>,
}

/// A row with a slot: generating, or kept for its next request.
struct Row<'a> {
    slot: usize,
    /// Tokens that follow those in the cache.
    unfed: Vec<u32>,
    generation: Option<Generation<'a>>,
}

/// A generation under way.
struct Generation<'a> {
    key: Key,
    max_new_tokens: usize,
    sampling: Sampling,
    ids: Vec<u32>,
    log_probs: Vec<f32>,
    stream: TextStream<'a>,
}

impl<'a, B: Backend> Engine<'a, B> {
    /// A new engine; allocates a cache of `max_rows` x `capacity` positions.
    pub fn new(
        model: &'a Decoder<B>,
        tokenizer: &'a Tokenizer,
        options: EngineOptions,
        device: &B::Device,
    ) -> Self {
        let cache = KvCache::new(&model.config(), options.max_rows, options.capacity, device);
        let free_slots = (0..options.max_rows).collect();
        Self {
            model,
            tokenizer,
            device: device.clone(),
            options,
            cache,
            free_slots,
            queue: VecDeque::new(),
            rows: BTreeMap::new(),
        }
    }

    /// Queues a request. A row not seen before gets a slot when one is free; a known row continues
    /// in its slot.
    /// # Panics
    /// If the row's previous request has not completed; a row has one generation at a time.
    pub fn submit(&mut self, request: Request) {
        match self.rows.get_mut(&request.row) {
            Some(row) => {
                assert!(row.generation.is_none(), "row {} is still generating", request.row);
                row.start(request, self.tokenizer);
            }
            None => {
                assert!(
                    self.queue.iter().all(|queued| queued.row != request.row),
                    "row {} is already queued",
                    request.row
                );
                self.queue.push_back(request);
            }
        }
    }

    /// One step: prefill of queued requests that have a slot, then one token for every decoding
    /// row. Returns the generations that ended, by row.
    /// # Errors
    /// If a row's logits are not finite or its prompt is empty.
    pub fn step(&mut self) -> Result<Vec<Completion>, EngineError> {
        self.admit()?;
        let mut completions = self.refuse_full_rows();
        for (row, draw) in self.feed() {
            let n_fed = self.cache.len(self.rows[&row].slot);
            let draw = draw.ok_or(EngineError::NotFinite { row, position: n_fed - 1 })?;
            let state = self.rows.get_mut(&row).expect("it was fed");
            let generation = state.generation.as_mut().expect("only generating rows are fed");
            state.unfed.push(draw.id);
            if let Some(stop) = generation.push(draw, n_fed + 1, &self.options) {
                let ended = state.generation.take().expect("it was just pushed to");
                completions.push(ended.complete(row, stop));
            }
        }
        completions.sort_by_key(|completion| completion.row);
        Ok(completions)
    }

    /// True while a row is generating or a queued request can be served. (Queued rows may remain
    /// when every slot is kept by an idle row: release one.)
    pub fn is_busy(&self) -> bool {
        (!self.queue.is_empty() && !self.free_slots.is_empty())
            || self.rows.values().any(|row| row.generation.is_some())
    }

    /// Frees the row's slot, or takes the row out of the queue. Unknown rows are ignored.
    pub fn release(&mut self, row: usize) {
        self.queue.retain(|request| request.row != row);
        if let Some(state) = self.rows.remove(&row) {
            self.cache.truncate(state.slot, 0);
            self.free_slots.insert(state.slot);
        }
    }

    /// Runs every request to its end (no later turns), in the order of the requests. Rows are
    /// released.
    /// # Errors
    /// As [`Engine::step`].
    /// # Panics
    /// If two requests have the same row.
    pub fn generate(&mut self, requests: Vec<Request>) -> Result<Vec<Completion>, EngineError> {
        let order: Vec<usize> = requests.iter().map(|request| request.row).collect();
        requests.into_iter().for_each(|request| self.submit(request));
        let mut completions = BTreeMap::new();
        while self.is_busy() {
            for completion in self.step()? {
                self.release(completion.row);
                completions.insert(completion.row, completion);
            }
        }
        Ok(order
            .iter()
            .map(|row| completions.remove(row).expect("every request completes"))
            .collect())
    }

    /// Gives free slots to queued rows, first come, first served.
    fn admit(&mut self) -> Result<(), EngineError> {
        while let Some(&slot) = self.free_slots.first() {
            let Some(request) = self.queue.pop_front() else { break };
            if request.ids.is_empty() {
                return Err(EngineError::EmptyPrompt { row: request.row });
            }
            self.free_slots.remove(&slot);
            let number = request.row;
            let mut row = Row { slot, unfed: Vec::new(), generation: None };
            row.start(request, self.tokenizer);
            self.rows.insert(number, row);
        }
        Ok(())
    }

    /// Ends the generations of rows that have no room for one more token; nothing is fed for them.
    fn refuse_full_rows(&mut self) -> Vec<Completion> {
        let mut completions = Vec::new();
        for (&number, row) in &mut self.rows {
            let has_room = self.cache.len(row.slot) + row.unfed.len() < self.options.capacity;
            let stop = if has_room { StopReason::Length } else { StopReason::Capacity };
            if let Some(ended) =
                row.generation.take_if(|generation| !has_room || generation.max_new_tokens == 0)
            {
                completions.push(ended.complete(number, stop));
            }
        }
        completions
    }

    /// Feeds the unfed tokens of all generating rows. Returns the rows, each with the token drawn
    /// after its last one (`None` where the logits gave no distribution).
    fn feed(&mut self) -> Vec<(usize, Option<Draw>)> {
        let batches = self.plan();
        if batches.is_empty() {
            return Vec::new();
        }
        let mut hidden: Vec<Tensor<B, 2>> =
            batches.iter().map(|batch| self.forward(batch)).collect();
        let hidden = if hidden.len() == 1 { hidden.remove(0) } else { Tensor::cat(hidden, 0) };
        let order = batches.concat();
        let samplings: Vec<RowSampling> = order
            .iter()
            .map(|row| {
                self.rows[row]
                    .generation
                    .as_ref()
                    .expect("only generating rows are fed")
                    .next_sampling()
            })
            .collect();
        let draws = sample::read(sample(self.model.logits(hidden), &samplings));
        order.into_iter().zip(draws).collect()
    }

    /// Rows that go through the model together: all rows with one unfed token in one batch, the
    /// others by length.
    ///
    /// Prefill batches are cut from the rows sorted by length, longest first, so that at most half
    /// of a batch is padding and its padded size stays within MAX_PREFILL_TOKENS.
    fn plan(&self) -> Vec<Vec<usize>> {
        let generating = self.rows.iter().filter(|(_, row)| row.generation.is_some());
        let mut lengths: Vec<(usize, usize)> =
            generating.map(|(&number, row)| (row.unfed.len(), number)).collect();
        lengths.sort_by_key(|&(length, number)| (std::cmp::Reverse(length), number));
        let mut batches: Vec<Vec<usize>> = Vec::new();
        let mut longest = 0;
        for (length, number) in lengths {
            match batches.last_mut() {
                Some(batch) if length == 1 && longest == 1 => batch.push(number),
                Some(batch)
                    if length > 1
                        && 2 * length >= longest
                        && (batch.len() + 1) * longest <= MAX_PREFILL_TOKENS =>
                {
                    batch.push(number)
                }
                _ => {
                    longest = length;
                    batches.push(vec![number]);
                }
            }
        }
        batches
    }

    /// Hidden states at the last unfed token of each row of a batch. -> `[R, D]`
    fn forward(&mut self, batch: &[usize]) -> Tensor<B, 2> {
        let n_cols = batch.iter().map(|row| self.rows[row].unfed.len()).max().unwrap_or(0);
        let mut ids = vec![0i32; batch.len() * n_cols];
        let (mut slots, mut n_new) =
            (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        for (number, columns) in batch.iter().zip(ids.chunks_exact_mut(n_cols)) {
            let row = self.rows.get_mut(number).expect("planned rows have a slot");
            for (column, &id) in columns.iter_mut().zip(&row.unfed) {
                *column = id as i32;
            }
            slots.push(row.slot);
            n_new.push(row.unfed.len());
            row.unfed.clear();
        }
        let ids = Tensor::<B, 2, Int>::from_data(
            TensorData::new(ids, [batch.len(), n_cols]),
            &self.device,
        );
        let hidden = self.model.hidden(
            ids,
            None,
            Some(CacheRows { cache: &mut self.cache, slots: &slots, n_new: &n_new }),
        );
        let [n_rows, _, width] = hidden.dims();
        let hidden = hidden.reshape([n_rows * n_cols, width]);
        if n_cols == 1 {
            return hidden;
        }
        let last: Vec<i32> =
            n_new.iter().enumerate().map(|(r, n)| (r * n_cols + n - 1) as i32).collect();
        hidden.select(0, Tensor::from_data(TensorData::new(last, [n_rows]), &self.device))
    }
}

impl<'a> Row<'a> {
    fn start(&mut self, request: Request, tokenizer: &'a Tokenizer) {
        let Request { ids, key, max_new_tokens, sampling, .. } = request;
        self.unfed.extend(ids);
        let stream = TextStream::new(tokenizer);
        self.generation = Some(Generation {
            key,
            max_new_tokens,
            sampling,
            ids: Vec::new(),
            log_probs: Vec::new(),
            stream,
        });
    }
}

impl Generation<'_> {
    /// Sampling of the next token; the position within the turn is the counter of the key.
    fn next_sampling(&self) -> RowSampling {
        let Sampling { temperature, top_p, top_k } = self.sampling;
        RowSampling { temperature, top_k, top_p, bits: self.key.bits(self.ids.len() as u64) }
    }

    /// Appends a token, which `row_len` counts, and returns true if it ends the generation.
    fn push(&mut self, draw: Draw, row_len: usize, options: &EngineOptions) -> Option<StopReason> {
        self.ids.push(draw.id);
        self.log_probs.push(draw.log_prob);
        self.stream.push(draw.id);
        if options.eos_ids.contains(&draw.id) {
            Some(StopReason::Eos)
        } else if let Some((_, idx)) = self.stream.completed_stop(&options.stop_strings) {
            Some(StopReason::StopString(idx))
        } else if self.ids.len() == self.max_new_tokens {
            Some(StopReason::Length)
        } else {
            (row_len >= options.capacity).then_some(StopReason::Capacity)
        }
    }

    fn complete(self, row: usize, stop: StopReason) -> Completion {
        Completion {
            row,
            ids: self.ids,
            log_probs: self.log_probs,
            text: self.stream.finish(),
            stop,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
