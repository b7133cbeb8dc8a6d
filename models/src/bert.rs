//! The BERT encoder (E5, MiniLM, BGE): absolute positions, post-norm blocks, erf GELU; sentence
//! embeddings by masked mean or CLS pooling and L2.
//!
//! Contract: rows are right-padded and `mask` is 1 on their tokens, at least one a row, and 0
//! behind. Token types are all 0. No dropout. Field names are the checkpoint's (`weights/names.rs`
//! lists the exceptions).
//!
//! Tokens of all rows are one [B T, D] matrix in every layer: one large product per projection
//! instead of one a row. Padding costs as much as text, so callers put rows of like length
//! together.
//!
//! Measured speeds, with their commands, are in `docs/benchmarks.md`.

use crate::{
    Backend,
    config::BertConfig,
    init::NewParameters,
    linear::{embedding, layer_norm, linear},
};
use burn::{
    module::Module,
    nn::{Embedding, LayerNorm, LayerNormConfig, Linear},
    tensor::{DType, Int, Tensor},
};
use dgpo_kernels::{
    attention::{CausalRows, causal_attention},
    erf_gelu::erf_gelu,
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Keeps the length of a zero vector from dividing by zero; transformers' `normalize` has the same.
const NORM_EPS: f32 = 1e-12;

/// Which token states make the vector of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The mean over the real tokens (E5, MiniLM).
    #[default]
    Mean,
    /// The first token, `[CLS]` (BGE, mxbai, arctic-embed).
    Cls,
}

/// Reduction of the last layer's states to the vector of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SentenceHead {
    /// The states that are read.
    pub pooling: Pooling,
    /// True if the vector is divided by its length, which makes an inner product a cosine.
    pub is_unit_length: bool,
}

impl Default for SentenceHead {
    /// E5's.
    fn default() -> Self {
        Self { pooling: Pooling::Mean, is_unit_length: true }
    }
}

impl fmt::Display for SentenceHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.pooling {
            Pooling::Mean => "mean pooling",
            Pooling::Cls => "CLS pooling",
        })?;
        f.write_str(if self.is_unit_length { "" } else { ", vectors as they are" })
    }
}

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
    /// Random weights from a seed: normal(0, initializer_range), norms 1, biases 0. The same seed
    /// gives the same weights on every device.
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
            let self_attention = BertSelfAttention {
                query: new.linear(d, d, true),
                key: new.linear(d, d, true),
                value: new.linear(d, d, true),
            };
            layer.push(BertLayer {
                attention: BertAttention {
                    self_attention,
                    output: BertOutput { dense: new.linear(d, d, true), layer_norm: norm() },
                },
                intermediate: BertIntermediate { dense: new.linear(d, hidden, true) },
                output: BertOutput { dense: new.linear(hidden, d, true), layer_norm: norm() },
            });
        }
        Self { embeddings, encoder: BertLayers { layer }, config: config.clone() }
    }

    /// The embeddings' output and every layer's; the last entry is transformers'
    /// `last_hidden_state`.
    /// # Shapes
    /// ids, mask `[B, T]` -> num_hidden_layers + 1 times `[B, T, D]`
    /// # Panics
    /// If T exceeds `max_position_embeddings` (the caller truncates).
    pub fn all_hidden(&self, ids: Tensor<B, 2, Int>, mask: Tensor<B, 2, Int>) -> Vec<Tensor<B, 3>> {
        let [n_rows, n_tokens] = ids.dims();
        let rows = visible_keys(&mask);
        let mut states = vec![self.embeddings.forward(ids)];
        for layer in &self.encoder.layer {
            let input = states[states.len() - 1].clone();
            states.push(layer.forward(input, &rows, self.config.num_attention_heads));
        }
        states
            .into_iter()
            .map(|state| state.reshape([n_rows, n_tokens, self.config.hidden_size]))
            .collect()
    }

    /// Sentence embeddings of unit length: the mean of the last layer over real tokens, divided by
    /// its norm. Both in f32.
    ///
    /// e = m / |m|,  m = sum_t mask_t h_t / sum_t mask_t
    /// # Shapes
    /// ids, mask `[B, T]` -> `[B, D]` f32
    /// # Panics
    /// As [`BertEncoder::all_hidden`].
    pub fn embed(&self, ids: Tensor<B, 2, Int>, mask: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        self.embed_with(SentenceHead::default(), ids, mask)
    }

    /// Sentence embeddings of another kind than E5's: p / |p| or p itself, with p the mean of
    /// [`BertEncoder::embed`] or the last layer's first token h_0. In f32.
    ///
    /// On backends that prefer it, rows go through the layers a few at a time; how many depends on
    /// T alone.
    /// # Shapes
    /// ids, mask `[B, T]` -> `[B, D]` f32
    /// # Panics
    /// As [`BertEncoder::all_hidden`].
    pub fn embed_with(
        &self,
        head: SentenceHead,
        ids: Tensor<B, 2, Int>,
        mask: Tensor<B, 2, Int>,
    ) -> Tensor<B, 2> {
        let [n_rows, n_tokens] = ids.dims();
        let rows_at_once = (B::TOKENS_AT_ONCE / n_tokens.max(1)).max(1);
        if n_rows <= rows_at_once {
            return self.embed_rows(head, ids, mask);
        }
        let parts = ids.split(rows_at_once, 0).into_iter().zip(mask.split(rows_at_once, 0));
        Tensor::cat(parts.map(|(ids, mask)| self.embed_rows(head, ids, mask)).collect(), 0)
    }

    fn embed_rows(
        &self,
        head: SentenceHead,
        ids: Tensor<B, 2, Int>,
        mask: Tensor<B, 2, Int>,
    ) -> Tensor<B, 2> {
        let [n_rows, n_tokens] = ids.dims();
        let rows = visible_keys(&mask);
        let mut state = self.embeddings.forward(ids);
        for layer in &self.encoder.layer {
            state = layer.forward(state, &rows, self.config.num_attention_heads);
        }
        let state = state.reshape([n_rows, n_tokens, self.config.hidden_size]);
        let pooled = match head.pooling {
            Pooling::Mean => mean_pooled(state, mask),
            Pooling::Cls => state.narrow(1, 0, 1).squeeze_dim::<2>(1).cast(DType::F32),
        };
        if !head.is_unit_length {
            return pooled;
        }
        let norm = pooled.clone().square().sum_dim(1).sqrt();
        // Not `clamp_min`, which some backends let turn NaN into the bound.
        let is_nan = norm.clone().is_nan();
        pooled / norm.clamp_min(NORM_EPS).mask_fill(is_nan, f32::NAN)
    }

    /// The shape that the weights have.
    pub fn config(&self) -> BertConfig {
        self.config.clone()
    }
}

/// Mean over real tokens, in f32. hidden `[B, T, D]`, mask `[B, T]` -> `[B, D]`
fn mean_pooled<B: Backend>(hidden: Tensor<B, 3>, mask: Tensor<B, 2, Int>) -> Tensor<B, 2> {
    let weights = mask.float().cast(DType::F32);
    let n_real = weights.clone().sum_dim(1);
    // [B, 1, T] x [B, T, D]: the weighted sum without a masked copy of the hidden states.
    let sum = weights.unsqueeze_dim::<3>(1).matmul(hidden.cast(DType::F32)).squeeze_dim::<2>(1);
    sum / n_real
}

/// Each query sees the real tokens of its row. Reads the mask `[B, T]` back from the device, once a
/// batch.
fn visible_keys<B: Backend>(mask: &Tensor<B, 2, Int>) -> CausalRows {
    let n_tokens = mask.dims()[1].max(1);
    let mask: Vec<i64> = mask.to_data().iter::<i64>().collect();
    let length = |row: &[i64]| {
        let n_real = row.iter().take_while(|&&m| m == 1).count();
        assert!(
            n_real > 0 && row[n_real..].iter().all(|&m| m == 0),
            "a mask is ones, at least one, then zeros: {row:?}"
        );
        n_real
    };
    CausalRows::bidirectional(mask.chunks(n_tokens).map(length).collect())
}

impl<B: Backend> BertEmbeddings<B> {
    /// LayerNorm(word + position + token type 0). ids `[B, T]` -> [B T, D]
    fn forward(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        let [n_rows, n_tokens] = ids.dims();
        let (max_tokens, d) =
            (self.position_embeddings.weight.dims()[0], self.position_embeddings.weight.dims()[1]);
        assert!(
            n_tokens <= max_tokens,
            "{n_tokens} tokens, but the encoder has {max_tokens} positions"
        );
        let position = self.position_embeddings.weight.val().narrow(0, 0, n_tokens);
        let token_type = self.token_type_embeddings.weight.val().narrow(0, 0, 1);
        let words = embedding(&self.word_embeddings, ids).reshape([n_rows, n_tokens, d]);
        let sum = words + (position + token_type).unsqueeze_dim::<3>(0);
        layer_norm(&self.layer_norm, sum.reshape([n_rows * n_tokens, d]))
    }
}

impl<B: Backend> BertLayer<B> {
    /// x [B T, D] -> [B T, D]
    fn forward(&self, x: Tensor<B, 2>, rows: &CausalRows, n_heads: usize) -> Tensor<B, 2> {
        let context = self.attention.self_attention.forward(x.clone(), rows, n_heads);
        let x = self.attention.output.forward(context, x);
        let hidden = erf_gelu(linear(&self.intermediate.dense, x.clone()));
        self.output.forward(hidden, x)
    }
}

impl<B: Backend> BertSelfAttention<B> {
    /// x [B T, D] -> [B T, D]
    fn forward(&self, x: Tensor<B, 2>, rows: &CausalRows, n_heads: usize) -> Tensor<B, 2> {
        let [n, d] = x.dims();
        let n_rows = rows.starts.len();
        // [B T, D] -> [B, H, T, head_dim]
        let heads =
            |y: Tensor<B, 2>| y.reshape([n_rows, n / n_rows, n_heads, d / n_heads]).swap_dims(1, 2);
        let (q, k, v) =
            (linear(&self.query, x.clone()), linear(&self.key, x.clone()), linear(&self.value, x));
        causal_attention(heads(q), heads(k), heads(v), rows).swap_dims(1, 2).reshape([n, d])
    }
}

impl<B: Backend> BertOutput<B> {
    /// LayerNorm(W x + b + residual). x [B T, D_in], residual [B T, D] -> [B T, D]
    fn forward(&self, x: Tensor<B, 2>, residual: Tensor<B, 2>) -> Tensor<B, 2> {
        layer_norm(&self.layer_norm, linear(&self.dense, x) + residual)
    }
}

#[cfg(test)]
mod tests;
