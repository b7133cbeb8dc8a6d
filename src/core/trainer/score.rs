//! Log-probs, values and exact divergences of a finished batch. No gradients.
use super::metrics::{LOGPROB_DIFF_MAX, LOGPROB_DIFF_MEAN, Mean, Metrics};
use crate::rollout::{Episode, RolloutBatch, TokenIndex};
use dgpo_kernels::to_host;
use dgpo_models::{
    Backend,
    decoder::Decoder,
    heads::{Critic, Divergence, LinearHead, token_divergence, token_log_probs},
};

/// Settings of a pass over the batch.
#[derive(Debug)]
pub struct Pass<'a, B: Backend> {
    /// Padded tokens of a micro-batch.
    pub micro_batch_tokens: usize,
    /// The policy's temperature: log-probs are those of logits / temperature.
    pub temperature: f64,
    /// Device of the computation.
    pub device: &'a B::Device,
}

/// The hidden states in front of `tokens` of some rows, and the vocabulary head.
/// # Shapes
/// -> hidden `[N, D]`
pub(super) fn head_rows<B: Backend>(
    model: &Decoder<B>,
    batch: &RolloutBatch,
    rows: &[usize],
    tokens: &TokenIndex,
    device: &B::Device,
) -> LinearHead<B> {
    model.head(tokens.gather(model.hidden(batch.ids_tensor(rows, device), None, None)))
}

/// log pi(y_t) of the agent tokens of `rows`; 0 elsewhere.
/// # Shapes
/// -> `[B, T]`
/// # Source
/// `method §4.1`
pub fn log_probs<B: Backend>(
    model: &Decoder<B>,
    batch: &RolloutBatch,
    rows: &[usize],
    pass: &Pass<'_, B>,
) -> Vec<f32> {
    let mut result = vec![0.0; batch.n_rows * batch.n_cols];
    for rows in batch.micro_batches(rows, pass.micro_batch_tokens) {
        let tokens = batch.agent_tokens(&rows);
        if !tokens.is_empty() {
            let head = head_rows(model, batch, &rows, &tokens, pass.device);
            let labels = tokens.labels_tensor(pass.device);
            let read = token_log_probs(head, labels, pass.temperature);
            tokens.scatter(&to_host(read.log_probs), &mut result);
        }
    }
    result
}

/// V_t of the response tokens of all rows; 0 elsewhere.
/// # Shapes
/// -> `[B, T]`
/// # Source
/// `method §4.5`
pub fn values<B: Backend>(
    critic: &Critic<B>,
    batch: &RolloutBatch,
    pass: &Pass<'_, B>,
) -> Vec<f32> {
    let mut result = vec![0.0; batch.n_rows * batch.n_cols];
    let rows: Vec<usize> = (0..batch.n_rows).collect();
    for rows in batch.micro_batches(&rows, pass.micro_batch_tokens) {
        let tokens = batch.response_tokens(&rows);
        if !tokens.is_empty() {
            let hidden = tokens.gather(critic.trunk.hidden(
                batch.ids_tensor(&rows, pass.device),
                None,
                None,
            ));
            tokens.scatter(&to_host(critic.values(hidden)), &mut result);
        }
    }
    result
}

/// log pi(y_t) and the exact divergence from a reference at the agent tokens of `rows`, from one
/// pass of both models; 0 elsewhere.
/// # Shapes
/// -> `[B, T]` twice
/// # Source
/// `method §4.3` (`full`)
pub fn log_probs_and_divergence<B: Backend>(
    model: &Decoder<B>,
    reference: &Decoder<B>,
    divergence: Divergence,
    batch: &RolloutBatch,
    rows: &[usize],
    pass: &Pass<'_, B>,
) -> (Vec<f32>, Vec<f32>) {
    let mut log_probs = vec![0.0; batch.n_rows * batch.n_cols];
    let mut divergences = log_probs.clone();
    for rows in batch.micro_batches(rows, pass.micro_batch_tokens) {
        let tokens = batch.agent_tokens(&rows);
        if !tokens.is_empty() {
            let head = |model| head_rows(model, batch, &rows, &tokens, pass.device);
            let labels = tokens.labels_tensor(pass.device);
            let read = token_divergence(
                head(model),
                head(reference),
                labels,
                divergence,
                pass.temperature,
            );
            tokens.scatter(&to_host(read.log_probs), &mut log_probs);
            tokens.scatter(&to_host(read.divergence), &mut divergences);
        }
    }
    (log_probs, divergences)
}

/// Records the distance of the sampler's log-probs of a batch from the trainer's `log_probs`, at
/// agent tokens.
/// # Shapes
/// log_probs `[B, T]`
pub fn record_log_prob_difference(batch: &RolloutBatch, log_probs: &[f32], metrics: &mut Metrics) {
    let (mut mean, mut max) = (Mean::default(), 0.0f64);
    for at in (0..batch.loss_mask.len()).filter(|&at| batch.loss_mask[at]) {
        let difference = f64::from((batch.sample_log_probs[at] - log_probs[at]).abs());
        mean.add(difference);
        // Not `f64::max`, which ignores NaN.
        max = if difference > max || difference.is_nan() { difference } else { max };
    }
    metrics.set(LOGPROB_DIFF_MEAN, mean.value());
    metrics.set(LOGPROB_DIFF_MAX, max);
}

/// The exact KL of a model from a teacher, nats a token, on the agent tokens of episodes that the
/// model played; 0 without any.
pub fn mean_kl<B: Backend>(
    model: &Decoder<B>,
    teacher: &Decoder<B>,
    episodes: &[&Episode],
    pass: &Pass<'_, B>,
) -> f64 {
    let batch = RolloutBatch::new(episodes);
    let rows: Vec<usize> = (0..batch.n_rows).collect();
    let (_, kl) =
        log_probs_and_divergence(model, teacher, Divergence::ReverseKl, &batch, &rows, pass);
    kl.into_iter().map(f64::from).sum::<f64>() / batch.n_agent_tokens(&rows).max(1) as f64
}
