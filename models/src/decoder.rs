//! The decoder.
use crate::{Backend, cache::CacheRows, config::DecoderConfig};
use burn::{
    module::Module,
    tensor::{Int, Tensor},
};

#[derive(Module, Debug)]
pub struct Decoder<B: Backend> {
    placeholder: Option<burn::nn::Linear<B>>,
}

impl<B: Backend> Decoder<B> {
    /// Random weights from a seed: normal(0, initializer_range), norms 1, biases 0. The same seed gives the same weights on every device.
    pub fn init(_config: &DecoderConfig, _seed: u64, _device: &B::Device) -> Self {
        todo!()
    }

    /// Hidden states after the final norm. The one forward pass of the project: rollout, log-probs, critic and evaluation all call it.
    ///
    /// Rows are right-padded. Without a cache, column t of `ids` sits at slot t and sees slots 0..=t (padding lies to the right, so real tokens
    /// never see it). With a cache, row b's columns are appended behind the `len(slot)` positions already there.
    /// `positions` are the RoPE positions: `None` means slot numbers.
    /// # Shapes
    /// ids [B, T], positions [B, T] -> [B, T, D]
    pub fn hidden(&self, _ids: Tensor<B, 2, Int>, _positions: Option<Tensor<B, 2, Int>>, _cache: Option<CacheRows<'_, B>>) -> Tensor<B, 3> {
        todo!()
    }

    /// Like `hidden`, returning also embeddings and every block's output (for the oracles): n_layers + 1 tensors, the last one after the final norm.
    pub fn all_hidden(&self, _ids: Tensor<B, 2, Int>, _positions: Option<Tensor<B, 2, Int>>) -> Vec<Tensor<B, 3>> {
        todo!()
    }

    /// Vocabulary logits in f32. hidden [N, D] -> [N, V]
    pub fn logits(&self, _hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        todo!()
    }

    pub fn config(&self) -> DecoderConfig {
        todo!()
    }
}
