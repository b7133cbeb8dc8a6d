//! What is read off the hidden states: token log-probs, entropy, values.
//!
//! With z = logits / temperature: log p(y) = z_y - lse(z), H = lse(z) - sum_v p_v z_v. Everything in f32. A NaN anywhere in a row of logits is a NaN in
//! that row's results. The head is computed on the rows it is given only, so gather the positions that count first; [N, V] exists `chunk_rows` rows at
//! a time.
use crate::{Backend, config::DecoderConfig, decoder::Decoder, init::NewParameters};
use burn::{
    module::{Module, ModuleMapper, Param},
    nn::Linear,
    tensor::{DType, Int, Tensor},
};
use dgpo_kernels::log_probs::log_probs;

/// Distance between the seeds of a critic's trunk and of a head drawn for a given trunk, so that the two never share numbers.
const HEAD_SEED_OFFSET: u64 = 0x5C0E_4EAD;

/// [N] each, f32.
#[derive(Clone, Debug)]
pub struct TokenLogProbs<B: Backend> {
    pub log_probs: Tensor<B, 1>,
    pub entropy: Tensor<B, 1>,
}

/// log p(label) and entropy at a temperature, from logits. logits [N, V] f32, labels [N].
pub fn log_probs_of_logits<B: Backend>(logits: Tensor<B, 2>, labels: Tensor<B, 1, Int>, temperature: f64) -> TokenLogProbs<B> {
    let (log_probs, entropy) = log_probs(logits, labels, temperature);
    TokenLogProbs { log_probs, entropy }
}

/// The same from hidden states [N, D], `chunk_rows` rows of logits at a time: [N, V] is never whole.
pub fn token_log_probs<B: Backend>(
    model: &Decoder<B>,
    hidden: Tensor<B, 2>,
    labels: Tensor<B, 1, Int>,
    temperature: f64,
    chunk_rows: usize,
) -> TokenLogProbs<B> {
    let n_rows = labels.dims()[0];
    let (log_probs, entropy): (Vec<_>, Vec<_>) = (0..n_rows)
        .step_by(chunk_rows.max(1))
        .map(|start| {
            let rows = start..(start + chunk_rows.max(1)).min(n_rows);
            let chunk = log_probs_of_logits(model.logits(hidden.clone().slice(rows.clone())), labels.clone().slice(rows), temperature);
            (chunk.log_probs, chunk.entropy)
        })
        .unzip();
    match log_probs.is_empty() {
        true => {
            let none = Tensor::zeros([0], (&hidden.device(), DType::F32));
            TokenLogProbs { log_probs: none.clone(), entropy: none }
        }
        false => TokenLogProbs { log_probs: Tensor::cat(log_probs, 0), entropy: Tensor::cat(entropy, 0) },
    }
}

/// A decoder trunk with a scalar head (Linear(D, 1) with bias, zero bias at the start).
#[derive(Module, Debug)]
pub struct Critic<B: Backend> {
    pub trunk: Decoder<B>,
    pub score: Linear<B>,
}

impl<B: Backend> Critic<B> {
    /// Trunk copied from `model` (own parameters: training one leaves the other as it is), head drawn from the seed.
    pub fn from_decoder(model: &Decoder<B>, seed: u64) -> Self {
        let config = model.config();
        let weight = model.model.norm.weight.val();
        let score = new_score(&config, seed.wrapping_add(HEAD_SEED_OFFSET), &weight.device());
        Self { trunk: model.clone().map(&mut Fresh), score: score.map(&mut Cast(weight.dtype())) }
    }

    /// Everything drawn from the seed.
    pub fn init(config: &DecoderConfig, seed: u64, device: &B::Device) -> Self {
        Self { trunk: Decoder::init(config, seed, device), score: new_score(config, seed.wrapping_add(HEAD_SEED_OFFSET), device) }
    }

    /// hidden [N, D] of the trunk -> values [N] f32.
    pub fn values(&self, hidden: Tensor<B, 2>) -> Tensor<B, 1> {
        let n_rows = hidden.dims()[0];
        self.score.forward(hidden).reshape([n_rows]).cast(DType::F32)
    }
}

fn new_score<B: Backend>(config: &DecoderConfig, seed: u64, device: &B::Device) -> Linear<B> {
    NewParameters::new(seed, config.initializer_range, device).linear(config.hidden_size, 1, true)
}

/// The same values under new identities, as leaves of their own.
struct Fresh;

impl<B: Backend> ModuleMapper<B> for Fresh {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        Param::from_tensor(param.val().detach())
    }
}

struct Cast(DType);

impl<B: Backend> ModuleMapper<B> for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        Param::from_tensor(param.val().detach().cast(self.0))
    }
}
