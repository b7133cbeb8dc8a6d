//! What the networks think of a finished batch: log-probs, values, full-distribution KL. No gradients.
use super::update::{HEAD_ROWS, chunks};
use crate::{algo::kl::full_kl, config::KlEstimator, rollout::RolloutBatch};
use burn::tensor::Tensor;
use dgpo_models::{
    Backend,
    decoder::Decoder,
    heads::{Critic, token_log_probs},
};

/// How a pass over the batch is cut.
#[derive(Debug)]
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
pub fn log_probs<B: Backend>(model: &Decoder<B>, batch: &RolloutBatch, rows: &[usize], pass: &Pass<'_, B>) -> Vec<f32> {
    let mut result = vec![0.0; batch.n_rows * batch.n_cols];
    for rows in batch.micro_batches(rows, pass.micro_batch_tokens) {
        let tokens = batch.agent_tokens(&rows);
        if !tokens.is_empty() {
            let hidden = tokens.gather(model.hidden(batch.ids_tensor(&rows, pass.device), None, None));
            let labels = tokens.labels_tensor(pass.device);
            let read = token_log_probs(model, hidden, labels, pass.temperature, HEAD_ROWS);
            tokens.scatter(&to_vec(read.log_probs), &mut result);
        }
    }
    result
}

/// V_t of the response tokens of all rows; 0 elsewhere.
/// # Shapes
/// -> `[B, T]`
pub fn values<B: Backend>(critic: &Critic<B>, batch: &RolloutBatch, pass: &Pass<'_, B>) -> Vec<f32> {
    let mut result = vec![0.0; batch.n_rows * batch.n_cols];
    let rows: Vec<usize> = (0..batch.n_rows).collect();
    for rows in batch.micro_batches(&rows, pass.micro_batch_tokens) {
        let tokens = batch.response_tokens(&rows);
        if !tokens.is_empty() {
            let hidden = tokens.gather(critic.trunk.hidden(batch.ids_tensor(&rows, pass.device), None, None));
            tokens.scatter(&to_vec(critic.values(hidden)), &mut result);
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
    pass: &Pass<'_, B>,
) -> Vec<f32> {
    let mut result = vec![0.0; batch.n_rows * batch.n_cols];
    for rows in batch.micro_batches(rows, pass.micro_batch_tokens) {
        let tokens = batch.agent_tokens(&rows);
        if tokens.is_empty() {
            continue;
        }
        let hidden = |model: &Decoder<B>| tokens.gather(model.hidden(batch.ids_tensor(&rows, pass.device), None, None));
        let (hidden, ref_hidden) = (hidden(model), hidden(reference));
        let pieces: Vec<Tensor<B, 1>> = chunks(tokens.len(), HEAD_ROWS)
            .map(|range| {
                let logits = |model: &Decoder<B>, hidden: &Tensor<B, 2>| model.logits(hidden.clone().narrow(0, range.start, range.len()));
                let (logits, ref_logits) = (logits(model, &hidden), logits(reference, &ref_hidden));
                full_kl(estimator, logits, ref_logits, pass.temperature).expect("called for the full estimators")
            })
            .collect();
        tokens.scatter(&to_vec(Tensor::cat(pieces, 0)), &mut result);
    }
    result
}

/// One float a token, on the host.
fn to_vec<B: Backend>(values: Tensor<B, 1>) -> Vec<f32> {
    values.into_data().convert::<f32>().into_vec().expect("converted to f32")
}
