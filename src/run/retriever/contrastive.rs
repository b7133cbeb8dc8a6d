//! Contrastive training of a retrieval encoder, with which the tiny world's E5 was made and a
//! user's own can be.
//!
//! InfoNCE with in-batch negatives (van den Oord et al., 2018; E5, Wang et al., 2022): for a batch
//! of B (query, passage) pairs, q_i and p_j their L2-normalised embeddings and tau the temperature,
//!
//! ```text
//! L = -1/B · Σ_i log( exp(q_i·p_i / tau) / Σ_j exp(q_i·p_j / tau) )
//! ```
//!
//! where j runs over the batch's passages, except other copies of query i's gold passage: two pairs
//! of one passage in a batch are not each other's negatives.
//!
//! Cost: a step is one forward and one backward pass over 2·B short texts, and a `[B, B]` matrix.
use super::encoder::padded;
use crate::{config::EncoderRecipe, data::sampler::Sampler};
use burn::{
    optim::GradientsParams,
    tensor::{Bool, DType, ElementConversion, Int, Tensor, TensorData, activation::log_softmax},
};
use dgpo_core::{
    algo::schedule::learning_rate,
    env::search::Passage,
    question::Question,
    settings::AdamWRecipe,
    tokenizer::{Tokenizer, TokenizerError},
    trainer::optimizer::{AdamW, with_gradients},
};
use dgpo_kernels::to_host;
use dgpo_models::{Backend, TrainBackend, bert::BertEncoder};
use std::collections::HashMap;

/// Texts embedded together when no gradient is needed.
const EMBED_BATCH: usize = 64;

/// A query and the passage it should find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainingPair {
    pub query: String,
    /// Index into the corpus.
    pub passage_idx: usize,
}

/// Errors of the training of an encoder.
#[derive(Debug, thiserror::Error)]
pub enum EncoderTrainingError {
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(
        "question {id} names passage \"{pid}\", which the corpus lacks; hint: corpus and questions \
         belong to different data sets"
    )]
    UnknownPassage { id: String, pid: String },
    #[error(
        "{n_pairs} pairs are fewer than a batch of {batch}; hint: questions need `supporting` rows \
         with a `pid`, or lower encoder.batch"
    )]
    TooFewPairs { n_pairs: usize, batch: usize },
    #[error(
        "the loss of step {step} is not finite; hint: lower optim.distill.lr or raise \
         encoder.temperature"
    )]
    NotFinite { step: usize },
}

/// Encoding of texts, the same for training and for the index built later.
#[derive(Clone, Copy)]
pub struct TextEncoding<'a> {
    pub tokenizer: &'a Tokenizer,
    pub query_prefix: &'a str,
    pub passage_prefix: &'a str,
    /// Tokens of a text; longer texts are cut.
    pub max_tokens: usize,
}

impl TextEncoding<'_> {
    fn query(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode(self.query_prefix, text)
    }

    fn passage(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode(self.passage_prefix, text)
    }

    fn encode(&self, prefix: &str, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.tokenizer.encode_with_special(&format!("{prefix}{text}"))?;
        ids.truncate(self.max_tokens);
        Ok(ids)
    }
}

/// One pair for each supporting passage that a question names by `pid`.
/// # Errors
/// If a `pid` is not in the corpus.
pub fn pairs_of(
    questions: &[Question],
    passages: &[Passage],
) -> Result<Vec<TrainingPair>, EncoderTrainingError> {
    let by_id: HashMap<&str, usize> =
        passages.iter().enumerate().map(|(i, passage)| (passage.id.as_str(), i)).collect();
    let mut pairs = Vec::new();
    for question in questions {
        for pid in question.supporting.iter().filter_map(|supporting| supporting.pid.as_ref()) {
            let passage_idx = *by_id.get(pid.as_str()).ok_or_else(|| {
                EncoderTrainingError::UnknownPassage { id: question.id.clone(), pid: pid.clone() }
            })?;
            // Every question read from a file ends in `?`; an agent's query does not.
            pairs.push(TrainingPair {
                query: question.question.trim_end_matches('?').to_owned(),
                passage_idx,
            });
        }
    }
    Ok(pairs)
}

/// A training task: corpus, pairs and settings.
#[derive(Clone, Copy)]
pub struct Contrastive<'a> {
    pub passages: &'a [Passage],
    pub pairs: &'a [TrainingPair],
    pub form: TextEncoding<'a>,
    pub recipe: &'a EncoderRecipe,
    pub optim: &'a AdamWRecipe,
    /// Seed of the order of the pairs.
    pub seed: u64,
}

/// Trains `model` for `recipe.steps` batches drawn from the pairs; `on_step` is called with step
/// number and loss.
/// # Errors
/// If a text cannot be encoded, a batch cannot be filled or the loss is not finite; the error of
/// `on_step`, which ends the training.
pub fn train_encoder<B: TrainBackend, E: From<EncoderTrainingError>>(
    mut model: BertEncoder<B::InnerBackend>,
    task: Contrastive<'_>,
    device: &B::Device,
    on_step: &mut dyn FnMut(usize, f64) -> Result<(), E>,
) -> Result<BertEncoder<B::InnerBackend>, E> {
    let Contrastive { passages, pairs, form, recipe, optim, seed } = task;
    if pairs.len() < recipe.batch.max(2) {
        let (n_pairs, batch) = (pairs.len(), recipe.batch.max(2));
        return Err(EncoderTrainingError::TooFewPairs { n_pairs, batch }.into());
    }
    let queries = pairs.iter().map(|pair| form.query(&pair.query)).collect::<Result<Vec<_>, _>>();
    let queries = queries.map_err(EncoderTrainingError::from)?;
    let passages = passages.iter().map(|passage| form.passage(&passage.contents));
    let passages = passages.collect::<Result<Vec<_>, _>>().map_err(EncoderTrainingError::from)?;
    let mut sampler = Sampler::new(seed, pairs.len());
    let mut optimizer = AdamW::new(optim.clone());
    for step in 0..recipe.steps {
        let batch = sampler.next(recipe.batch);
        let gold: Vec<usize> = batch.iter().map(|&i| pairs[i].passage_idx).collect();
        let trained: BertEncoder<B> = with_gradients(model.clone());
        let q = embed(&trained, batch.iter().map(|&i| queries[i].as_slice()), device);
        let p = embed(&trained, gold.iter().map(|&i| passages[i].as_slice()), device);
        let loss = info_nce(q, p, &gold, recipe.temperature);
        let value = loss.clone().into_scalar().elem::<f64>();
        if !value.is_finite() {
            return Err(EncoderTrainingError::NotFinite { step }.into());
        }
        let grads = GradientsParams::from_grads(loss.backward(), &trained);
        drop(trained);
        model = optimizer.step(model, grads, learning_rate(optim, step, recipe.steps), value).0;
        on_step(step, value)?;
    }
    Ok(model)
}

/// The loss above; `gold[i]` is the number of the passage of row i of `p`.
/// # Shapes
/// q, p [B, D] with rows of norm 1 -> [1]
fn info_nce<B: Backend>(
    q: Tensor<B, 2>,
    p: Tensor<B, 2>,
    gold: &[usize],
    temperature: f64,
) -> Tensor<B, 1> {
    let n = gold.len();
    let device = q.device();
    let is_same_passage: Vec<bool> =
        (0..n * n).map(|at| at / n != at % n && gold[at / n] == gold[at % n]).collect();
    let is_same_passage =
        Tensor::<B, 2, Bool>::from_data(TensorData::new(is_same_passage, [n, n]), &device);
    let scores = q.cast(DType::F32).matmul(p.cast(DType::F32).transpose()).div_scalar(temperature);
    let log_probs = log_softmax(scores.mask_fill(is_same_passage, f32::NEG_INFINITY), 1);
    let diagonal = Tensor::<B, 1, Int>::arange(0..n as i64, &device).unsqueeze_dim::<2>(1);
    log_probs.gather(1, diagonal).mean().neg()
}

/// Recall: fraction of the task's pairs whose passage is among the `top_k` of exact search.
/// # Errors
/// If a text cannot be encoded.
pub fn recall<B: Backend>(
    model: &BertEncoder<B>,
    task: Contrastive<'_>,
    top_k: usize,
    device: &B::Device,
) -> Result<f64, EncoderTrainingError> {
    let Contrastive { passages, pairs, form, .. } = task;
    let embed_all = |texts: Vec<Vec<u32>>| {
        let batches = texts
            .chunks(EMBED_BATCH)
            .map(|batch| embed(model, batch.iter().map(Vec::as_slice), device));
        Tensor::cat(batches.collect(), 0)
    };
    let p = embed_all(
        passages.iter().map(|passage| form.passage(&passage.contents)).collect::<Result<_, _>>()?,
    );
    let q = embed_all(pairs.iter().map(|pair| form.query(&pair.query)).collect::<Result<_, _>>()?);
    let scores = to_host(q.matmul(p.transpose()));
    let is_found = |(row, pair): (&[f32], &TrainingPair)| {
        row.iter().filter(|&&score| score > row[pair.passage_idx]).count() < top_k
    };
    let n_found = scores.chunks(passages.len()).zip(pairs).filter(|&pair| is_found(pair)).count();
    Ok(n_found as f64 / pairs.len().max(1) as f64)
}

/// Embeddings of ragged rows, right-padded. -> [B, D]
fn embed<'a, B: Backend>(
    model: &BertEncoder<B>,
    rows: impl Iterator<Item = &'a [u32]>,
    device: &B::Device,
) -> Tensor<B, 2> {
    let rows: Vec<&[u32]> = rows.collect();
    let n_cols = rows.iter().map(|row| row.len()).max().unwrap_or(0);
    let [ids, mask] = padded(&rows, n_cols, 0, device);
    model.embed(ids, mask)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::Cpu;
    use dgpo_core::question::Supporting;

    #[test]
    fn the_loss_equals_the_literal_sum_and_leaves_out_other_copies_of_the_gold_passage() {
        let q = [[1.0f32, 0.0], [0.0, 1.0], [0.6, 0.8]];
        let p = [[0.8f32, 0.6], [0.0, 1.0], [1.0, 0.0]];
        let gold = [4, 9, 4];
        let tau = 0.5;
        let dot = |i: usize, j: usize| f64::from(q[i][0] * p[j][0] + q[i][1] * p[j][1]) / tau;
        let literal: f64 = (0..3)
            .map(|i| {
                let denominator: f64 =
                    (0..3).filter(|&j| j == i || gold[j] != gold[i]).map(|j| dot(i, j).exp()).sum();
                denominator.ln() - dot(i, i)
            })
            .sum::<f64>()
            / 3.0;
        let device = Default::default();
        let loss = info_nce::<Cpu>(
            Tensor::from_data(q, &device),
            Tensor::from_data(p, &device),
            &gold,
            tau,
        );
        assert!((loss.into_scalar().elem::<f64>() - literal).abs() < 1e-6);
    }

    #[test]
    fn pairs_follow_the_passages_that_questions_name() {
        let passages =
            ["7", "8"].map(|id| Passage { id: id.to_owned(), contents: format!("\"{id}\"\ntext") });
        let gold = Supporting {
            title: "8".to_owned(),
            text: "text".to_owned(),
            pid: Some("8".to_owned()),
        };
        let mut question =
            Question { supporting: vec![gold], ..dgpo_core::testing::drawn_episode().question };
        let pairs =
            pairs_of(std::slice::from_ref(&question), &passages).expect("passage 8 is there");
        assert_eq!(
            pairs,
            [TrainingPair {
                query: question.question.trim_end_matches('?').to_owned(),
                passage_idx: 1
            }]
        );
        question.supporting[0].pid = Some("9".to_owned());
        assert!(
            matches!(pairs_of(&[question], &passages), Err(EncoderTrainingError::UnknownPassage { pid, .. }) if pid == "9")
        );
    }
}
