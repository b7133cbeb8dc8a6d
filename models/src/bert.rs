//! The BERT encoder (E5, MiniLM): absolute positions, post-norm blocks, erf GELU; sentence embeddings by masked mean pooling and L2.
//!
//! Contract: `mask` is 1 on real tokens and 0 on padding, whichever side the padding lies on; each row has a real token. Positions count
//! columns, as transformers does, so rows are right-padded in practice. Token types are all 0. No dropout. Field names are the checkpoint's
//! (`weights/names.rs` lists the exceptions).
//!
//! Tokens of all rows are one [B T, D] matrix in every layer: one large product per projection instead of one a row. Padding costs as much as
//! text, so callers put rows of like length together; a batch without padding skips all mask work.

use crate::{Backend, config::BertConfig, init::NewParameters};
use burn::{
    module::Module,
    nn::{Embedding, LayerNorm, LayerNormConfig, Linear},
    tensor::{Bool, DType, ElementConversion, Int, Tensor, activation::gelu, module::attention, ops::AttentionModuleOptions},
};

/// Keeps the length of a zero vector from dividing by zero; transformers' `normalize` has the same.
const NORM_EPS: f32 = 1e-12;

/// The encoder without pooler.
#[derive(Module, Debug)]
pub struct BertEncoder<B: Backend> {
    embeddings: BertEmbeddings<B>,
    encoder: BertLayers<B>,
    config: BertConfig,
}

#[derive(Module, Debug)]
struct BertEmbeddings<B: Backend> {
    word_embeddings: Embedding<B>,
    position_embeddings: Embedding<B>,
    token_type_embeddings: Embedding<B>,
    layer_norm: LayerNorm<B>,
}

#[derive(Module, Debug)]
struct BertLayers<B: Backend> {
    layer: Vec<BertLayer<B>>,
}

#[derive(Module, Debug)]
struct BertLayer<B: Backend> {
    attention: BertAttention<B>,
    intermediate: BertIntermediate<B>,
    output: BertOutput<B>,
}

#[derive(Module, Debug)]
struct BertAttention<B: Backend> {
    self_attention: BertSelfAttention<B>,
    output: BertOutput<B>,
}

#[derive(Module, Debug)]
struct BertSelfAttention<B: Backend> {
    query: Linear<B>,
    key: Linear<B>,
    value: Linear<B>,
}

#[derive(Module, Debug)]
struct BertIntermediate<B: Backend> {
    dense: Linear<B>,
}

/// A projection back to D, the residual and the norm: what closes both halves of a block.
#[derive(Module, Debug)]
struct BertOutput<B: Backend> {
    dense: Linear<B>,
    layer_norm: LayerNorm<B>,
}

impl<B: Backend> BertEncoder<B> {
    /// Random weights from a seed: normal(0, initializer_range), norms 1, biases 0. The same seed gives the same weights on every device.
    pub fn init(config: &BertConfig, seed: u64, device: &B::Device) -> Self {
        let (d, hidden) = (config.hidden_size, config.intermediate_size);
        let mut new = NewParameters::new(seed, config.initializer_range, device);
        let norm = || LayerNormConfig::new(d).with_epsilon(config.layer_norm_eps).init(device);
        let embeddings = BertEmbeddings {
            word_embeddings: new.embedding(config.vocab_size, d),
            position_embeddings: new.embedding(config.max_position_embeddings, d),
            token_type_embeddings: new.embedding(config.type_vocab_size, d),
            layer_norm: norm(),
        };
        let mut layer = Vec::with_capacity(config.num_hidden_layers);
        for _ in 0..config.num_hidden_layers {
            let self_attention =
                BertSelfAttention { query: new.linear(d, d, true), key: new.linear(d, d, true), value: new.linear(d, d, true) };
            layer.push(BertLayer {
                attention: BertAttention { self_attention, output: BertOutput { dense: new.linear(d, d, true), layer_norm: norm() } },
                intermediate: BertIntermediate { dense: new.linear(d, hidden, true) },
                output: BertOutput { dense: new.linear(hidden, d, true), layer_norm: norm() },
            });
        }
        Self { embeddings, encoder: BertLayers { layer }, config: config.clone() }
    }

    /// The embeddings' output and every layer's; the last entry is transformers' `last_hidden_state`.
    /// # Shapes
    /// ids, mask [B, T] -> num_hidden_layers + 1 times [B, T, D]
    /// # Panics
    /// If T exceeds `max_position_embeddings` (the caller truncates).
    pub fn all_hidden(&self, ids: Tensor<B, 2, Int>, mask: Tensor<B, 2, Int>) -> Vec<Tensor<B, 3>> {
        let [n_rows, n_tokens] = ids.dims();
        let is_hidden = hidden_columns(&mask);
        let mut states = vec![self.embeddings.forward(ids)];
        for layer in &self.encoder.layer {
            let input = states[states.len() - 1].clone();
            states.push(layer.forward(input, [n_rows, n_tokens], is_hidden.clone(), self.config.num_attention_heads));
        }
        states.into_iter().map(|state| state.reshape([n_rows, n_tokens, self.config.hidden_size])).collect()
    }

    /// The last layer's output alone.
    /// # Shapes
    /// ids, mask [B, T] -> [B, T, D]
    /// # Panics
    /// As [`BertEncoder::all_hidden`].
    pub fn last_hidden(&self, ids: Tensor<B, 2, Int>, mask: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let [n_rows, n_tokens] = ids.dims();
        let is_hidden = hidden_columns(&mask);
        let mut state = self.embeddings.forward(ids);
        for layer in &self.encoder.layer {
            state = layer.forward(state, [n_rows, n_tokens], is_hidden.clone(), self.config.num_attention_heads);
        }
        state.reshape([n_rows, n_tokens, self.config.hidden_size])
    }

    /// Sentence embeddings of unit length: the mean of the last layer over real tokens, divided by its norm. Both in f32.
    ///
    /// e = m / |m|,  m = sum_t mask_t h_t / sum_t mask_t
    /// # Shapes
    /// ids, mask [B, T] -> [B, D] f32
    /// # Panics
    /// As [`BertEncoder::all_hidden`].
    pub fn embed(&self, ids: Tensor<B, 2, Int>, mask: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        let mean = mean_pooled(self.last_hidden(ids, mask.clone()), mask);
        let norm = mean.clone().square().sum_dim(1).sqrt().clamp_min(NORM_EPS);
        mean / norm
    }

    pub fn config(&self) -> BertConfig {
        self.config.clone()
    }
}

/// Mean over real tokens, in f32. hidden [B, T, D], mask [B, T] -> [B, D]
fn mean_pooled<B: Backend>(hidden: Tensor<B, 3>, mask: Tensor<B, 2, Int>) -> Tensor<B, 2> {
    let weights = mask.float().cast(DType::F32);
    let n_real = weights.clone().sum_dim(1);
    // [B, 1, T] x [B, T, D]: the weighted sum without a masked copy of the hidden states.
    let sum = weights.unsqueeze_dim::<3>(1).matmul(hidden.cast(DType::F32)).squeeze_dim::<2>(1);
    sum / n_real
}

/// True on the key columns that are padding, [B, 1, T, T], or None if there is no padding at all. Reads one number back from the device.
fn hidden_columns<B: Backend>(mask: &Tensor<B, 2, Int>) -> Option<Tensor<B, 4, Bool>> {
    let [n_rows, n_tokens] = mask.dims();
    let n_real: i64 = mask.clone().sum().into_scalar().elem();
    if n_real == (n_rows * n_tokens) as i64 {
        return None;
    }
    Some(mask.clone().reshape([n_rows, 1, 1, n_tokens]).expand([n_rows, 1, n_tokens, n_tokens]).equal_elem(0))
}

impl<B: Backend> BertEmbeddings<B> {
    /// LayerNorm(word + position + token type 0). ids [B, T] -> [B T, D]
    fn forward(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        let [n_rows, n_tokens] = ids.dims();
        let (max_tokens, d) = (self.position_embeddings.weight.dims()[0], self.position_embeddings.weight.dims()[1]);
        assert!(n_tokens <= max_tokens, "{n_tokens} tokens, but the encoder has {max_tokens} positions");
        let position = self.position_embeddings.weight.val().slice([0..n_tokens]);
        let token_type = self.token_type_embeddings.weight.val().slice([0..1]);
        let sum = self.word_embeddings.forward(ids) + (position + token_type).unsqueeze_dim::<3>(0);
        self.layer_norm.forward(sum.reshape([n_rows * n_tokens, d]))
    }
}

impl<B: Backend> BertLayer<B> {
    /// x [B T, D] -> [B T, D]
    fn forward(&self, x: Tensor<B, 2>, batch: [usize; 2], is_hidden: Option<Tensor<B, 4, Bool>>, n_heads: usize) -> Tensor<B, 2> {
        let context = self.attention.self_attention.forward(x.clone(), batch, is_hidden, n_heads);
        let x = self.attention.output.forward(context, x);
        let hidden = gelu(self.intermediate.dense.forward(x.clone()));
        self.output.forward(hidden, x)
    }
}

impl<B: Backend> BertSelfAttention<B> {
    /// x [B T, D] -> [B T, D]
    fn forward(&self, x: Tensor<B, 2>, batch: [usize; 2], is_hidden: Option<Tensor<B, 4, Bool>>, n_heads: usize) -> Tensor<B, 2> {
        let [n_rows, n_tokens] = batch;
        let d = x.dims()[1];
        // [B T, D] -> [B, H, T, head_dim]
        let heads = |y: Tensor<B, 2>| y.reshape([n_rows, n_tokens, n_heads, d / n_heads]).swap_dims(1, 2);
        let (q, k, v) = (self.query.forward(x.clone()), self.key.forward(x.clone()), self.value.forward(x));
        let context = attention(heads(q), heads(k), heads(v), is_hidden, None, AttentionModuleOptions::default());
        context.swap_dims(1, 2).reshape([n_rows * n_tokens, d])
    }
}

impl<B: Backend> BertOutput<B> {
    /// LayerNorm(W x + b + residual). x [B T, D_in], residual [B T, D] -> [B T, D]
    fn forward(&self, x: Tensor<B, 2>, residual: Tensor<B, 2>) -> Tensor<B, 2> {
        self.layer_norm.forward(self.dense.forward(x) + residual)
    }
}
