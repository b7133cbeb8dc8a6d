//! Tokens a second of the engine's rollout: all prompts into the KV cache, then a token a row and
//! step, drawn on the device.
//!
//! Weights are random and prompts are ids from a seed. Nothing ends a row early (no stop strings,
//! no end of sequence), so every row draws the same number of tokens and the batch stays full: what
//! the device can do, not what a rollout of a trained model needs, whose rows end one after the
//! other and wait for searches. The tokenizer is the tiny one for every shape; ids that it lacks
//! have no text.
use super::step::{SEED, TINY};
use dgpo_core::{
    engine::{Engine, EngineError, EngineOptions, Request},
    rng::{Key, Purpose},
    settings::Sampling,
    tokenizer::Tokenizer,
};
use dgpo_kernels::suite::probes::Budget;
use dgpo_models::{Backend, decoder::Decoder};
use dgpo_run::models::{self, SetupError};
use serde::Serialize;
use std::time::Instant;

/// As a training rollout draws: the whole distribution.
const SAMPLING: Sampling = Sampling { temperature: 1.0, top_p: 1.0, top_k: 0 };
/// Tokens of the rollout that is not counted: one prefill and one decode step, which compile and
/// allocate.
const WARM_UP_TOKENS: usize = 2;

/// A batch of rows of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RolloutShape {
    pub n_rows: usize,
    /// Tokens of each prompt.
    pub n_prompt: usize,
    /// Tokens that each row draws, at least 2.
    pub n_tokens: usize,
}

/// One batch of one model.
#[derive(Clone, Debug, Serialize)]
pub struct RolloutFigure {
    pub model: String,
    pub n_parameters: usize,
    pub n_rows: usize,
    pub n_prompt: usize,
    pub n_tokens: usize,
    /// Of the fastest rollout: the prompts and the first token of each row.
    pub prefill_ms: f64,
    /// A token for every row; of all steps of all rollouts.
    pub decode_step_best_ms: f64,
    pub decode_step_median_ms: f64,
    /// Tokens drawn by all rows over the time of the fastest rollout, prefill included.
    pub tokens_per_s: f64,
    pub n_runs: usize,
}

/// Seconds of one rollout.
struct Timed {
    prefill_s: f64,
    decode_s: Vec<f64>,
}

impl Timed {
    fn total_s(&self) -> f64 {
        self.prefill_s + self.decode_s.iter().sum::<f64>()
    }
}

/// The tokenizer that the engine needs beside a model.
/// # Errors
/// If the built-in files cannot be unpacked.
pub fn tokenizer() -> Result<Tokenizer, SetupError> {
    models::load_tokenizer("", TINY)
}

/// Times rollouts of one batch until the budget is spent.
/// # Errors
/// If the logits are not finite.
pub fn run<B: Backend>(
    name: &str,
    model: &Decoder<B>,
    tokenizer: &Tokenizer,
    batch: RolloutShape,
    budget: Budget,
    device: &B::Device,
) -> Result<RolloutFigure, EngineError> {
    assert!(batch.n_tokens >= WARM_UP_TOKENS, "a rollout of one token has no decode step");
    rollout(model, tokenizer, RolloutShape { n_tokens: WARM_UP_TOKENS, ..batch }, device)?;
    let started = Instant::now();
    let mut runs = Vec::new();
    while runs.is_empty() || runs.len() < budget.most_runs && started.elapsed() < budget.time {
        runs.push(rollout(model, tokenizer, batch, device)?);
    }
    let fastest =
        runs.iter().min_by(|a, b| a.total_s().total_cmp(&b.total_s())).expect("at least one run");
    let mut steps: Vec<f64> = runs.iter().flat_map(|run| run.decode_s.iter().copied()).collect();
    steps.sort_by(f64::total_cmp);
    let RolloutShape { n_rows, n_prompt, n_tokens } = batch;
    Ok(RolloutFigure {
        model: name.to_owned(),
        n_parameters: model.config().n_parameters(),
        n_rows,
        n_prompt,
        n_tokens,
        prefill_ms: fastest.prefill_s * 1e3,
        decode_step_best_ms: steps[0] * 1e3,
        decode_step_median_ms: steps[steps.len() / 2] * 1e3,
        tokens_per_s: (n_rows * n_tokens) as f64 / fastest.total_s(),
        n_runs: runs.len(),
    })
}

/// One rollout in a fresh cache. A step ends with the drawn tokens on the host, so nothing is under
/// way when the clock is read.
fn rollout<B: Backend>(
    model: &Decoder<B>,
    tokenizer: &Tokenizer,
    batch: RolloutShape,
    device: &B::Device,
) -> Result<Timed, EngineError> {
    let RolloutShape { n_rows, n_prompt, n_tokens } = batch;
    let options = EngineOptions {
        max_rows: n_rows,
        capacity: n_prompt + n_tokens,
        stop_strings: Vec::new(),
        eos_ids: Vec::new(),
    };
    let n_vocab = model.config().vocab_size;
    let mut engine = Engine::new(model, tokenizer, options, device);
    for row in 0..n_rows {
        let key = Key::new(SEED, Purpose::Rollout).fold(row as u64);
        let ids = (0..n_prompt as u64).map(|i| key.fold(1).below(i, n_vocab) as u32).collect();
        engine.submit(Request { row, ids, key, max_new_tokens: n_tokens, sampling: SAMPLING });
    }
    let mut step_s = || -> Result<Option<f64>, EngineError> {
        if !engine.is_busy() {
            return Ok(None);
        }
        let started = Instant::now();
        engine.step()?;
        Ok(Some(started.elapsed().as_secs_f64()))
    };
    let mut timed = Timed { prefill_s: step_s()?.unwrap_or_default(), decode_s: Vec::new() };
    while let Some(seconds) = step_s()? {
        timed.decode_s.push(seconds);
    }
    Ok(timed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::step::tiny;
    use dgpo_run::devices::Cpu;
    use std::time::Duration;

    #[test]
    fn every_row_draws_all_its_tokens_one_a_step() {
        let (device, tokenizer) = (Default::default(), tokenizer().unwrap());
        let model = Decoder::<Cpu>::init(&tiny().unwrap(), SEED, &device);
        let batch = RolloutShape { n_rows: 3, n_prompt: 5, n_tokens: 4 };
        // The first token is the prefill's.
        assert_eq!(rollout(&model, &tokenizer, batch, &device).unwrap().decode_s.len(), 3);
        let budget = Budget { time: Duration::ZERO, most_runs: 9 };
        let figure = run("tiny", &model, &tokenizer, batch, budget, &device).unwrap();
        assert_eq!((figure.n_runs, figure.n_rows, figure.n_tokens), (1, 3, 4));
        assert!(
            figure.decode_step_best_ms > 0.0
                && figure.decode_step_best_ms <= figure.decode_step_median_ms
        );
        let total_ms = 3.0 * 4.0 / figure.tokens_per_s * 1e3;
        assert!(
            figure.prefill_ms > 0.0
                && total_ms > figure.prefill_ms + 2.9 * figure.decode_step_best_ms,
            "{figure:?}"
        );
    }
}
