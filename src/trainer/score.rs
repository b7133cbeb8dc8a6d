//! What the networks think of a finished batch: log-probs, values, full-distribution KL. No gradients.
use super::{
    tokens::MicroBatch,
    update::{HEAD_ROWS, chunks, gather},
};
use crate::{algo::kl::full_kl, config::KlEstimator, rollout::RolloutBatch};
use burn::tensor::Tensor;
use dgpo_models::{
    Backend,
    decoder::Decoder,
    heads::{Critic, token_log_probs},
};

/// How a pass over the batch is cut.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a, B: Backend> {
    /// Padded tokens of a micro-batch.
    pub micro_batch_tokens: usize,
    /// The policy's temperature: log-probs are those of logits / temperature.
    pub temperature: f64,
    pub device: &'a B::Device,
}

/// log pi(y_t) of the agent tokens of `rows`; 0 elsewhere.
/// # Shapes
/// -> `[B, T]`
pub fn log_probs<B: Backend>(model: &Decoder<B>, batch: &RolloutBatch, rows: &[usize], pass: Pass<'_, B>) -> Vec<f32> {
    let mut result = vec![0.0; batch.n_rows * batch.n_cols];
    for rows in batch.micro_batches(rows, pass.micro_batch_tokens) {
        let micro = MicroBatch::of_agent(batch, &rows);
        if micro.n_tokens() > 0 {
            let hidden = gather(model.hidden(micro.ids(batch, pass.device), None, None), micro.positions(pass.device));
            let labels = micro.labels(batch, 0..micro.n_tokens(), pass.device);
            micro.put(token_log_probs(model, hidden, labels, pass.temperature, HEAD_ROWS).log_probs, &mut result);
        }
    }
    result
}

/// V_t of the response tokens of all rows; 0 elsewhere.
/// # Shapes
/// -> `[B, T]`
pub fn values<B: Backend>(critic: &Critic<B>, batch: &RolloutBatch, pass: Pass<'_, B>) -> Vec<f32> {
    let mut result = vec![0.0; batch.n_rows * batch.n_cols];
    let rows: Vec<usize> = (0..batch.n_rows).collect();
    for rows in batch.micro_batches(&rows, pass.micro_batch_tokens) {
        let micro = MicroBatch::new(batch, &rows, |row, col| batch.is_response(row, col));
        if micro.n_tokens() > 0 {
            let hidden = gather(critic.trunk.hidden(micro.ids(batch, pass.device), None, None), micro.positions(pass.device));
            micro.put(critic.values(hidden), &mut result);
        }
    }
    result
}

/// The exact KL between two policies at the agent tokens of `rows`, summed over the vocabulary; 0 elsewhere.
/// # Shapes
/// -> `[B, T]`
/// # Panics
/// If `estimator` is one of the sampled ones.
pub fn full_kl_of<B: Backend>(
    model: &Decoder<B>,
    reference: &Decoder<B>,
    estimator: KlEstimator,
    batch: &RolloutBatch,
    rows: &[usize],
    pass: Pass<'_, B>,
) -> Vec<f32> {
    let mut result = vec![0.0; batch.n_rows * batch.n_cols];
    for rows in batch.micro_batches(rows, pass.micro_batch_tokens) {
        let micro = MicroBatch::of_agent(batch, &rows);
        if micro.n_tokens() == 0 {
            continue;
        }
        let hidden = |model: &Decoder<B>| gather(model.hidden(micro.ids(batch, pass.device), None, None), micro.positions(pass.device));
        let (hidden, ref_hidden) = (hidden(model), hidden(reference));
        let pieces: Vec<Tensor<B, 1>> = chunks(micro.n_tokens(), HEAD_ROWS)
            .map(|range| {
                let logits = |model: &Decoder<B>, hidden: &Tensor<B, 2>| model.logits(hidden.clone().narrow(0, range.start, range.len()));
                let (logits, ref_logits) = (logits(model, &hidden), logits(reference, &ref_hidden));
                full_kl(estimator, logits, ref_logits, pass.temperature).expect("called for the full estimators")
            })
            .collect();
        micro.put(Tensor::cat(pieces, 0), &mut result);
    }
    result
}
