//! The BERT encoder (E5, MiniLM, BGE): absolute positions, post-norm blocks, erf GELU; sentence embeddings by masked mean or CLS pooling and L2.
//!
//! Contract: rows are right-padded and `mask` is 1 on their tokens, at least one a row, and 0 behind. Token types are all 0. No dropout. Field names
//! are the checkpoint's (`weights/names.rs` lists the exceptions).
//!
//! Tokens of all rows are one [B T, D] matrix in every layer: one large product per projection instead of one a row. Padding costs as much as
//! text, so callers put rows of like length together.
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

/// How the states of the last layer become the vector of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SentenceHead {
    pub pooling: Pooling,
    /// Whether the vector is divided by its length, which makes an inner product a cosine.
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
        let rows = visible_keys(&mask);
        let mut states = vec![self.embeddings.forward(ids)];
        for layer in &self.encoder.layer {
            let input = states[states.len() - 1].clone();
            states.push(layer.forward(input, &rows, self.config.num_attention_heads));
        }
        states.into_iter().map(|state| state.reshape([n_rows, n_tokens, self.config.hidden_size])).collect()
    }

    /// Sentence embeddings of unit length: the mean of the last layer over real tokens, divided by its norm. Both in f32.
    ///
    /// e = m / |m|,  m = sum_t mask_t h_t / sum_t mask_t
    /// # Shapes
    /// ids, mask [B, T] -> [B, D] f32
    /// # Panics
    /// As [`BertEncoder::all_hidden`].
    pub fn embed(&self, ids: Tensor<B, 2, Int>, mask: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        self.embed_with(SentenceHead::default(), ids, mask)
    }

    /// Sentence embeddings of another kind than E5's: p / |p| or p itself, with p the mean of [`BertEncoder::embed`] or the last layer's first
    /// token h_0. In f32.
    ///
    /// On backends that prefer it, rows go through the layers a few at a time; how many depends on T alone.
    /// # Shapes
    /// ids, mask [B, T] -> [B, D] f32
    /// # Panics
    /// As [`BertEncoder::all_hidden`].
    pub fn embed_with(&self, head: SentenceHead, ids: Tensor<B, 2, Int>, mask: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        let [n_rows, n_tokens] = ids.dims();
        let rows_at_once = (B::TOKENS_AT_ONCE / n_tokens.max(1)).max(1);
        if n_rows <= rows_at_once {
            return self.embed_rows(head, ids, mask);
        }
        let parts = ids.split(rows_at_once, 0).into_iter().zip(mask.split(rows_at_once, 0));
        Tensor::cat(parts.map(|(ids, mask)| self.embed_rows(head, ids, mask)).collect(), 0)
    }

    fn embed_rows(&self, head: SentenceHead, ids: Tensor<B, 2, Int>, mask: Tensor<B, 2, Int>) -> Tensor<B, 2> {
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

/// Each query sees the real tokens of its row. Reads the mask [B, T] back from the device, once a batch.
fn visible_keys<B: Backend>(mask: &Tensor<B, 2, Int>) -> CausalRows {
    let n_tokens = mask.dims()[1].max(1);
    let mask: Vec<i64> = mask.to_data().iter::<i64>().collect();
    let length = |row: &[i64]| {
        let n_real = row.iter().take_while(|&&m| m == 1).count();
        assert!(n_real > 0 && row[n_real..].iter().all(|&m| m == 0), "a mask is ones, at least one, then zeros: {row:?}");
        n_real
    };
    CausalRows::bidirectional(mask.chunks(n_tokens).map(length).collect())
}

impl<B: Backend> BertEmbeddings<B> {
    /// LayerNorm(word + position + token type 0). ids [B, T] -> [B T, D]
    fn forward(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        let [n_rows, n_tokens] = ids.dims();
        let (max_tokens, d) = (self.position_embeddings.weight.dims()[0], self.position_embeddings.weight.dims()[1]);
        assert!(n_tokens <= max_tokens, "{n_tokens} tokens, but the encoder has {max_tokens} positions");
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
        let heads = |y: Tensor<B, 2>| y.reshape([n_rows, n / n_rows, n_heads, d / n_heads]).swap_dims(1, 2);
        let (q, k, v) = (linear(&self.query, x.clone()), linear(&self.key, x.clone()), linear(&self.value, x));
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
mod tests {
    use super::*;
    use crate::weights::load_bert;
    use burn::{
        backend::{Autodiff, Flex},
        module::AutodiffModule,
        optim::{GradientsParams, Optimizer, SgdConfig},
        tensor::{TensorData, activation},
    };
    use safetensors::SafeTensors;
    use std::path::Path;

    const ORACLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/oracles/models/bert_e5");
    type Train = Autodiff<Flex>;

    struct Oracle {
        bytes: Vec<u8>,
    }

    impl Oracle {
        fn open() -> Self {
            Self { bytes: std::fs::read(Path::new(ORACLE).join("reference.safetensors")).unwrap() }
        }
        fn raw<const N: usize>(&self, name: &str) -> (Vec<[u8; N]>, Vec<usize>) {
            let file = SafeTensors::deserialize(&self.bytes).unwrap();
            let tensor = file.tensor(name).unwrap();
            (tensor.data().as_chunks::<N>().0.to_vec(), tensor.shape().to_vec())
        }
        fn floats(&self, name: &str) -> Vec<f32> {
            self.raw(name).0.into_iter().map(f32::from_le_bytes).collect()
        }
        fn ints<B: Backend>(&self, name: &str) -> Tensor<B, 2, Int> {
            let (bytes, shape) = self.raw(name);
            let values: Vec<i64> = bytes.into_iter().map(i64::from_le_bytes).collect();
            Tensor::from_data(TensorData::new(values, shape), &Default::default())
        }
    }

    fn load<B: Backend>(dtype: DType) -> BertEncoder<B> {
        load_bert(Path::new(ORACLE), dtype, &Default::default()).unwrap()
    }

    fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
        tensor.into_data().to_vec().unwrap()
    }

    fn max_difference(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        // NaN is the largest of all in this order; `f32::max` would pass over it.
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).max_by(f32::total_cmp).expect("not empty")
    }

    /// Hidden states are compared on real tokens: what padding computes for itself reaches nobody.
    fn check_hidden_states<B: Backend>() {
        let oracle = Oracle::open();
        let (ids, mask) = (oracle.ints::<B>("input_ids"), oracle.ints::<B>("attention_mask"));
        let is_real: Vec<bool> = mask.to_data().iter::<i64>().map(|m| m == 1).collect();
        assert!(is_real.contains(&false), "the oracle's batch is ragged");
        let expected = oracle.floats("hidden_states");
        let states = load::<B>(DType::F32).all_hidden(ids, mask);
        assert_eq!(states.len(), 4);
        let n = expected.len() / states.len();
        for (state, expected) in states.into_iter().zip(expected.chunks(n)) {
            let d = n / is_real.len();
            for ((found, expected), _) in values(state).chunks(d).zip(expected.chunks(d)).zip(&is_real).filter(|(_, is_real)| **is_real) {
                assert!(max_difference(found, expected) < 1e-4);
            }
        }
    }

    #[test]
    fn hidden_states_of_every_layer_are_transformers() {
        check_hidden_states::<Flex>();
    }

    #[test]
    fn hidden_states_with_gradients_are_the_same() {
        check_hidden_states::<Train>();
    }

    #[test]
    fn cls_pooling_takes_the_first_token_of_the_recorded_last_layer() {
        let oracle = Oracle::open();
        let (ids, mask) = (oracle.ints::<Flex>("input_ids"), oracle.ints::<Flex>("attention_mask"));
        let [n_rows, n_tokens] = ids.dims();
        let hidden = oracle.floats("hidden_states");
        let last = &hidden[hidden.len() / 4 * 3..];
        let d = last.len() / (n_rows * n_tokens);
        let model = load::<Flex>(DType::F32);
        for is_unit_length in [false, true] {
            let head = SentenceHead { pooling: Pooling::Cls, is_unit_length };
            let found = values(model.embed_with(head, ids.clone(), mask.clone()));
            for (row, found) in found.chunks(d).enumerate() {
                let first = &last[row * n_tokens * d..][..d];
                let length = if is_unit_length { first.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt() } else { 1.0 };
                let expected: Vec<f32> = first.iter().map(|&x| (f64::from(x) / length) as f32).collect();
                // The hidden states themselves agree to 1e-4.
                assert!(max_difference(found, &expected) < 1e-4, "row {row}, unit length {is_unit_length}");
            }
        }
    }

    #[test]
    fn embeddings_cosines_and_pooling_are_transformers() {
        let oracle = Oracle::open();
        let (ids, mask) = (oracle.ints::<Flex>("input_ids"), oracle.ints::<Flex>("attention_mask"));
        let model = load::<Flex>(DType::F32);
        let hidden = model.all_hidden(ids.clone(), mask.clone()).pop().unwrap();
        let [n_rows, _, d] = hidden.dims();
        let cls = hidden.clone().slice([0..n_rows, 0..1]).reshape([n_rows, d]);
        // The oracle's pooled CLS state is of unit length.
        let cls = cls.clone() / cls.square().sum_dim(1).sqrt();
        assert!(max_difference(&values(cls), &oracle.floats("cls_pooled")) < 1e-5);
        assert!(max_difference(&values(mean_pooled(hidden, mask.clone())), &oracle.floats("mean_pooled")) < 1e-4);
        let embedding = model.embed(ids, mask);
        assert!(max_difference(&values(embedding.clone()), &oracle.floats("embedding")) < 2e-6);
        let cosine = embedding.clone().matmul(embedding.transpose());
        assert!(max_difference(&values(cosine), &oracle.floats("cosine")) < 4e-6);
    }

    #[test]
    fn padding_does_not_change_an_embedding() {
        let model = load::<Flex>(DType::F32);
        let ids = |ids: &[i64]| Tensor::<Flex, 2, Int>::from_data(TensorData::new(ids.to_vec(), [1, ids.len()]), &Default::default());
        let alone = model.embed(ids(&[5, 17, 80, 3]), ids(&[1, 1, 1, 1]));
        let padded = model.embed(ids(&[5, 17, 80, 3, 0, 0, 99]), ids(&[1, 1, 1, 1, 0, 0, 0]));
        assert!(max_difference(&values(alone), &values(padded)) < 1e-6);
    }

    #[test]
    fn rows_taken_a_few_at_a_time_give_the_embeddings_of_one_batch() {
        let model = load::<Flex>(DType::F32);
        let n_rows = 2 * <Flex as dgpo_kernels::KernelOps>::TOKENS_AT_ONCE / 16 + 3;
        let ids: Vec<i64> = (0..n_rows as i64 * 16).map(|i| i * 31 % 120).collect();
        let ids = Tensor::<Flex, 2, Int>::from_data(TensorData::new(ids, [n_rows, 16]), &Default::default());
        let mask = ids.ones_like();
        let (parts, whole) = (model.embed(ids.clone(), mask.clone()), model.embed_rows(SentenceHead::default(), ids, mask));
        assert!(max_difference(&values(parts), &values(whole)) < 1e-6);
    }

    #[test]
    fn half_precision_weights_give_nearly_the_same_embedding() {
        let oracle = Oracle::open();
        let embed = |dtype| load::<Flex>(dtype).embed(oracle.ints("input_ids"), oracle.ints("attention_mask"));
        let found = embed(DType::BF16);
        assert_eq!(found.dtype(), DType::F32);
        // bf16 keeps 8 bits: entries of about 0.14 through three layers may move by some 2^-8 of that a layer.
        assert!(max_difference(&values(found), &oracle.floats("embedding")) < 0.02);
    }

    #[test]
    fn the_same_seed_gives_the_same_encoder() {
        let config = load::<Flex>(DType::F32).config();
        let oracle = Oracle::open();
        let embed = |seed| {
            values(
                BertEncoder::<Flex>::init(&config, seed, &Default::default())
                    .embed(oracle.ints("input_ids"), oracle.ints("attention_mask")),
            )
        };
        assert_eq!(embed(3), embed(3));
        assert_ne!(embed(3), embed(4));
    }

    /// Pulls each query's embedding to its passage's and away from the others' (InfoNCE), as encoders are trained.
    #[test]
    fn an_encoder_learns_to_match_pairs() {
        let config = BertConfig {
            vocab_size: 40,
            hidden_size: 16,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            ..load::<Flex>(DType::F32).config()
        };
        let device = Default::default();
        let mut model = BertEncoder::<Train>::init(&BertConfig { intermediate_size: 32, initializer_range: 0.2, ..config }, 0, &device);
        let rows = |rows: [[i64; 3]; 4]| Tensor::<Train, 2, Int>::from_data(rows, &device);
        let (queries, passages) =
            (rows([[1, 2, 0], [3, 4, 5], [6, 7, 0], [8, 9, 9]]), rows([[21, 22, 23], [24, 25, 0], [26, 27, 28], [29, 30, 0]]));
        let (query_mask, passage_mask) = (queries.clone().not_equal_elem(0).int(), passages.clone().not_equal_elem(0).int());
        let mut optimizer = SgdConfig::new().init();
        let mut losses = Vec::new();
        for _ in 0..40 {
            let q = model.embed(queries.clone(), query_mask.clone());
            let p = model.embed(passages.clone(), passage_mask.clone());
            let log_probs = activation::log_softmax(q.matmul(p.transpose()).mul_scalar(10.0), 1);
            let diagonal = Tensor::<Train, 2>::eye(4, &device);
            let loss = (log_probs * diagonal).sum().neg().div_scalar(4.0);
            losses.push(values(loss.clone())[0]);
            let grads = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(0.1, model, grads);
        }
        assert!(losses[39] < 0.1 * losses[0], "{losses:?}");
        let found = values(model.valid().embed(queries.clone().inner(), query_mask.inner()));
        assert!(max_difference(&found, &values(model.embed(queries, rows([[1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 1, 1]])))) < 1e-5);
    }
}
