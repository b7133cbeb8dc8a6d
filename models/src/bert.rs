//! The BERT encoder (E5, MiniLM): erf GELU, absolute positions, masked mean pooling, L2.
use crate::{Backend, config::BertConfig};
use burn::{
    module::Module,
    tensor::{Int, Tensor},
};

#[derive(Module, Debug)]
pub struct BertEncoder<B: Backend> {
    placeholder: Option<burn::nn::Linear<B>>,
}

impl<B: Backend> BertEncoder<B> {
    pub fn init(_config: &BertConfig, _seed: u64, _device: &B::Device) -> Self {
        todo!()
    }
    /// Embeddings output and every layer's output; the last entry is `last_hidden_state`. ids, mask [B, T] (mask 1 = real) -> n_layers+1 x [B, T, D]
    pub fn all_hidden(&self, _ids: Tensor<B, 2, Int>, _mask: Tensor<B, 2, Int>) -> Vec<Tensor<B, 3>> {
        todo!()
    }
    /// Masked mean pooling then L2. -> [B, D]
    pub fn embed(&self, _ids: Tensor<B, 2, Int>, _mask: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        todo!()
    }
    pub fn config(&self) -> BertConfig {
        todo!()
    }
}
