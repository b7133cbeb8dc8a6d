//! What is read off the hidden states: token log-probs, entropy, values.
use crate::{Backend, config::DecoderConfig, decoder::Decoder};
use burn::{
    module::Module,
    tensor::{Int, Tensor},
};

/// [N] each, f32.
pub struct TokenLogProbs<B: Backend> {
    pub log_probs: Tensor<B, 1>,
    pub entropy: Tensor<B, 1>,
}

/// log p(label) and entropy at a temperature, from logits. logits [N, V] f32, labels [N].
pub fn log_probs_of_logits<B: Backend>(_logits: Tensor<B, 2>, _labels: Tensor<B, 1, Int>, _temperature: f64) -> TokenLogProbs<B> {
    todo!()
}

/// The same from hidden states [N, D], `chunk_rows` rows of logits at a time: [N, V] is never whole.
pub fn token_log_probs<B: Backend>(
    _model: &Decoder<B>,
    _hidden: Tensor<B, 2>,
    _labels: Tensor<B, 1, Int>,
    _temperature: f64,
    _chunk_rows: usize,
) -> TokenLogProbs<B> {
    todo!()
}

/// A decoder trunk with a scalar head (Linear(D, 1) with bias, zero bias at the start).
#[derive(Module, Debug)]
pub struct Critic<B: Backend> {
    pub trunk: Decoder<B>,
    pub score: burn::nn::Linear<B>,
}
impl<B: Backend> Critic<B> {
    /// Trunk copied from `model`, head drawn from the seed.
    pub fn from_decoder(_model: &Decoder<B>, _seed: u64) -> Self {
        todo!()
    }
    pub fn init(_config: &DecoderConfig, _seed: u64, _device: &B::Device) -> Self {
        todo!()
    }
    /// hidden [N, D] of the trunk -> values [N] f32.
    pub fn values(&self, _hidden: Tensor<B, 2>) -> Tensor<B, 1> {
        todo!()
    }
}
