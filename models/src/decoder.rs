//! The decoder: Llama 3, and Qwen2.5, which is the same with a bias on q, k and v.
//!
//! ```text
//! x = embed(ids)
//! for each layer:  q, k, v = projections of input_layernorm(x)
//!                  x = x + o_proj(attention(rope(q), rope(k), v))
//!                  h = post_attention_layernorm(x)
//!                  x = x + down_proj(silu(gate_proj(h)) * up_proj(h))
//! hidden = norm(x)        logits = lm_head(hidden), or hidden embed' when tied
//! ```
//!
//! Contract: there is one forward pass, [`Decoder::hidden`]. A parameter's path is its Hugging Face
//! name; `Linear` weights lie as [in, out]. All parameters have one dtype, in which the pass runs;
//! norms, rotations and softmax are computed in f32 inside, logits are f32.
//!
//! Inside, tokens of all rows are one matrix `[N, D]`, N = B T: one product a projection instead of
//! one a row, which is what a decode step's time is.
use crate::{
    Backend,
    cache::CacheRows,
    config::DecoderConfig,
    init::NewParameters,
    linear::{embedding, linear},
    norm::RmsNorm,
    rope::Rotation,
};
use burn::{
    module::Module,
    nn::{Embedding, Linear},
    tensor::{Int, Tensor},
};
use dgpo_kernels::{
    attention::{CausalRows, causal_attention},
    cache_write::CacheSpan,
    linear_log_probs::{HeadLayout, LinearHead},
    swiglu::swiglu,
};

/// A causal language model.
///
/// ```
/// use burn::{backend::Flex, tensor::Tensor};
/// use dgpo_models::{config::DecoderConfig, decoder::Decoder};
///
/// let device = Default::default();
/// let model = Decoder::<Flex>::init(&DecoderConfig::small(100, 32, 2), 0, &device);
/// let hidden = model.hidden(Tensor::from_ints([[5, 6, 7]], &device), None, None);
/// assert_eq!(hidden.dims(), [1, 3, 32]);
/// ```
#[derive(Module, Debug)]
pub struct Decoder<B: Backend> {
    /// Everything below the output head.
    pub model: Trunk<B>,
    /// `None` when the head is tied to the embeddings.
    pub lm_head: Option<Linear<B>>,
    #[module(skip)]
    config: DecoderConfig,
    /// Columns of the logits: the vocabulary, or a prefix of it.
    #[module(skip)]
    n_logits: usize,
}

/// Everything below the head.
#[derive(Module, Debug)]
pub struct Trunk<B: Backend> {
    /// Token embedding `[V, D]`.
    pub embed_tokens: Embedding<B>,
    /// Blocks, from the first to the last.
    pub layers: Vec<DecoderLayer<B>>,
    /// Norm of the last hidden states.
    pub norm: RmsNorm<B>,
}

/// A block: attention and feed-forward, each behind a norm and added to the residual stream.
#[derive(Module, Debug)]
pub struct DecoderLayer<B: Backend> {
    /// Self-attention with a cache.
    pub self_attn: SelfAttention<B>,
    /// SwiGLU feed-forward.
    pub mlp: Mlp<B>,
    /// Norm before the attention.
    pub input_layernorm: RmsNorm<B>,
    /// Norm before the feed-forward.
    pub post_attention_layernorm: RmsNorm<B>,
}

/// Projections of grouped-query attention with rotary positions.
#[derive(Module, Debug)]
pub struct SelfAttention<B: Backend> {
    /// Queries: D -> H hd.
    pub q_proj: Linear<B>,
    /// Keys: D -> K hd.
    pub k_proj: Linear<B>,
    /// Values: D -> K hd.
    pub v_proj: Linear<B>,
    /// Output: H hd -> D.
    pub o_proj: Linear<B>,
}

/// SwiGLU feed-forward: down(silu(gate(x)) · up(x)).
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    /// Gate: D -> feed-forward width.
    pub gate_proj: Linear<B>,
    /// Up: D -> feed-forward width.
    pub up_proj: Linear<B>,
    /// Down: feed-forward width -> D.
    pub down_proj: Linear<B>,
}

impl<B: Backend> Decoder<B> {
    /// Random weights from a seed: normal(0, initializer_range), norms 1, biases 0. The same seed
    /// gives the same weights on every device.
    pub fn init(config: &DecoderConfig, seed: u64, device: &B::Device) -> Self {
        Self::from_new_parameters(
            config,
            &mut NewParameters::new(seed, config.initializer_range, device),
        )
    }

    pub(crate) fn from_new_parameters(
        config: &DecoderConfig,
        new: &mut NewParameters<'_, B>,
    ) -> Self {
        let (d_model, d_mlp) = (config.hidden_size, config.intermediate_size);
        let (d_q, d_kv) = (
            config.num_attention_heads * config.head_dim,
            config.num_key_value_heads * config.head_dim,
        );
        let norm = |new: &NewParameters<'_, B>| RmsNorm {
            weight: new.constant([d_model], 1.0),
            eps: config.rms_norm_eps,
        };
        let model = Trunk {
            embed_tokens: new.embedding(config.vocab_size, d_model),
            layers: (0..config.num_hidden_layers)
                .map(|_| DecoderLayer {
                    self_attn: SelfAttention {
                        q_proj: new.linear(d_model, d_q, config.has_qkv_bias),
                        k_proj: new.linear(d_model, d_kv, config.has_qkv_bias),
                        v_proj: new.linear(d_model, d_kv, config.has_qkv_bias),
                        o_proj: new.linear(d_q, d_model, false),
                    },
                    mlp: Mlp {
                        gate_proj: new.linear(d_model, d_mlp, false),
                        up_proj: new.linear(d_model, d_mlp, false),
                        down_proj: new.linear(d_mlp, d_model, false),
                    },
                    input_layernorm: norm(new),
                    post_attention_layernorm: norm(new),
                })
                .collect(),
            norm: norm(new),
        };
        let lm_head = (!config.is_tied).then(|| new.linear(d_model, config.vocab_size, false));
        Self { model, lm_head, config: config.clone(), n_logits: config.vocab_size }
    }

    /// Ids from `n_logits` on get no logit from here on. Models of one tokenizer may pad their
    /// vocabularies to different sizes; where two of them meet, both are cut to the shared prefix,
    /// so that every softmax runs over the same ids. The weights stay whole.
    pub fn with_logits_cut_to(self, n_logits: usize) -> Self {
        Self { n_logits: n_logits.min(self.config.vocab_size), ..self }
    }

    /// Hidden states after the final norm. The one forward pass of the project: rollout, log-probs,
    /// critic and evaluation all call it.
    ///
    /// Rows are right-padded. Without a cache, column t of `ids` sits at slot t and sees slots
    /// 0..=t (padding lies to the right, so real tokens never see it). With a cache, row b's
    /// columns are appended behind the `len(slot)` positions already there, and the result is a
    /// constant: no gradient flows through a cache. Hidden states of padding columns are finite and
    /// meaningless. `positions` are the RoPE positions: `None` means slot numbers. They are read on
    /// the host, which waits for the device.
    /// # Shapes
    /// ids `[B, T]`, positions `[B, T]` -> `[B, T, D]`
    /// # Panics
    /// When the cache rows do not fit the batch or the cache (a bug of the caller); see
    /// [`CacheRows`].
    pub fn hidden(
        &self,
        ids: Tensor<B, 2, Int>,
        positions: Option<Tensor<B, 2, Int>>,
        cache: Option<CacheRows<'_, B>>,
    ) -> Tensor<B, 3> {
        let [n_rows, n_columns] = ids.dims();
        let mut pass = Pass::new(&self.config, &ids, positions, cache);
        let mut x = self.embed(ids);
        for layer in &self.model.layers {
            x = layer.forward(x, &mut pass);
        }
        pass.finish();
        self.model.norm.forward(x).reshape([n_rows, n_columns, self.config.hidden_size])
    }

    /// Like `hidden`, returning also embeddings and every block's output (for the oracles):
    /// n_layers + 1 tensors, the last one after the final norm.
    /// # Shapes
    /// ids, positions `[B, T]` -> n_layers + 1 times `[B, T, D]`
    pub fn all_hidden(
        &self,
        ids: Tensor<B, 2, Int>,
        positions: Option<Tensor<B, 2, Int>>,
    ) -> Vec<Tensor<B, 3>> {
        let [n_rows, n_columns] = ids.dims();
        let mut blocks = self.blocks(ids, positions);
        let mut x = blocks.embed();
        let mut states = Vec::new();
        for layer in 0..self.model.layers.len() {
            states.push(x.clone().reshape([n_rows, n_columns, self.config.hidden_size]));
            x = blocks.block(layer, x);
        }
        states.push(blocks.norm(x));
        states
    }

    /// The pass without a cache, in its pieces, for a backward pass that recomputes one block at a
    /// time.
    pub fn blocks(
        &self,
        ids: Tensor<B, 2, Int>,
        positions: Option<Tensor<B, 2, Int>>,
    ) -> Blocks<'_, B> {
        let pass = Pass::new(&self.config, &ids, positions, None);
        Blocks { model: self, ids, pass }
    }

    /// Hidden states `[N, D]` with the vocabulary head, V as [`Decoder::with_logits_cut_to`] left
    /// it: logits for whatever needs only sums of them.
    pub fn head(&self, hidden: Tensor<B, 2>) -> LinearHead<B> {
        let head = match &self.lm_head {
            Some(head) => LinearHead::new(hidden, head.weight.val(), HeadLayout::VocabColumns),
            None => {
                LinearHead::new(hidden, self.model.embed_tokens.weight.val(), HeadLayout::VocabRows)
            }
        };
        head.cut_to(self.n_logits)
    }

    /// Vocabulary logits in f32, for whatever needs them one by one. hidden `[N, D]` -> `[N, V]`, V
    /// as in [`Decoder::head`].
    pub fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        self.head(hidden).logits()
    }

    /// The shape that the weights have.
    pub fn config(&self) -> DecoderConfig {
        self.config.clone()
    }

    /// ids `[B, T]` -> `[N, D]`
    fn embed(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        embedding(&self.model.embed_tokens, ids)
    }
}

/// The pieces of [`Decoder::hidden`] without a cache: `embed`, every `block` in
/// order, `norm`.
pub struct Blocks<'m, B: Backend> {
    model: &'m Decoder<B>,
    ids: Tensor<B, 2, Int>,
    pass: Pass<'m, 'static, B>,
}

impl<B: Backend> Blocks<'_, B> {
    /// -> `[N, D]`
    pub fn embed(&self) -> Tensor<B, 2> {
        self.model.embed(self.ids.clone())
    }

    /// x `[N, D]` -> `[N, D]`
    pub fn block(&mut self, layer: usize, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.model.model.layers[layer].forward(x, &mut self.pass)
    }

    /// The final norm: x `[N, D]` -> hidden `[B, T, D]`
    pub fn norm(&self, x: Tensor<B, 2>) -> Tensor<B, 3> {
        let [n_rows, n_columns] = self.ids.dims();
        self.model.model.norm.forward(x).reshape([n_rows, n_columns, self.model.config.hidden_size])
    }
}

impl<B: Backend> DecoderLayer<B> {
    /// x `[N, D]` -> `[N, D]`
    fn forward(&self, x: Tensor<B, 2>, pass: &mut Pass<'_, '_, B>) -> Tensor<B, 2> {
        let x = self.self_attn.forward(self.input_layernorm.forward(x.clone()), pass) + x;
        self.mlp.forward(self.post_attention_layernorm.forward(x.clone())) + x
    }
}

impl<B: Backend> SelfAttention<B> {
    /// h `[N, D]` -> `[N, D]`
    fn forward(&self, h: Tensor<B, 2>, pass: &mut Pass<'_, '_, B>) -> Tensor<B, 2> {
        let q = pass.rotation.apply(linear(&self.q_proj, h.clone()));
        let k = pass.rotation.apply(linear(&self.k_proj, h.clone()));
        let v = linear(&self.v_proj, h);
        let out = pass.attend(q, k, v);
        self.o_proj.forward(out)
    }
}

impl<B: Backend> Mlp<B> {
    /// h `[N, D]` -> `[N, D]`
    fn forward(&self, h: Tensor<B, 2>) -> Tensor<B, 2> {
        self.down_proj.forward(swiglu(self.gate_proj.forward(h.clone()), self.up_proj.forward(h)))
    }
}

/// State that all layers of one forward pass share.
struct Pass<'c, 'r, B: Backend> {
    config: &'c DecoderConfig,
    rotation: Rotation<B>,
    n_rows: usize,
    n_columns: usize,
    rows: CausalRows,
    cache: Option<CachePass<'r, B>>,
}

struct CachePass<'r, B: Backend> {
    rows: CacheRows<'r, B>,
    spans: Vec<CacheSpan>,
    next_layer: usize,
}

impl<'c, 'r, B: Backend> Pass<'c, 'r, B> {
    fn new(
        config: &'c DecoderConfig,
        ids: &Tensor<B, 2, Int>,
        positions: Option<Tensor<B, 2, Int>>,
        cache: Option<CacheRows<'r, B>>,
    ) -> Self {
        let [n_rows, n_columns] = ids.dims();
        let cache = cache.map(|rows| CachePass {
            spans: rows.spans(n_rows, n_columns),
            rows,
            next_layer: 0,
        });
        let rows = match &cache {
            Some(cache) => CacheRows::<B>::causal_rows(&cache.spans),
            None => CausalRows::whole(n_rows),
        };
        let positions: Vec<usize> = match (positions, &cache) {
            (Some(positions), _) => {
                assert_eq!(positions.dims(), [n_rows, n_columns], "one position a token");
                positions
                    .into_data()
                    .iter::<i64>()
                    .map(|position| usize::try_from(position).expect("positions are not negative"))
                    .collect()
            }
            (None, Some(_)) => {
                rows.starts.iter().flat_map(|&start| start..start + n_columns).collect()
            }
            (None, None) => (0..n_columns).collect(),
        };
        Self {
            config,
            rotation: Rotation::new(config, &positions, &ids.device()),
            n_rows,
            n_columns,
            rows,
            cache,
        }
    }

    /// Attention of one layer. q [N, H hd], k and v [N, K hd] -> [N, H hd]
    fn attend(&mut self, q: Tensor<B, 2>, k: Tensor<B, 2>, v: Tensor<B, 2>) -> Tensor<B, 2> {
        let DecoderConfig {
            num_attention_heads: n_heads,
            num_key_value_heads: n_kv_heads,
            head_dim,
            ..
        } = *self.config;
        let (n_rows, n_columns) = (self.n_rows, self.n_columns);
        let split = |x: Tensor<B, 2>, heads| {
            x.reshape([n_rows, n_columns, heads, head_dim]).swap_dims(1, 2)
        };
        let (q, k, v) = (split(q, n_heads), split(k, n_kv_heads), split(v, n_kv_heads));
        let (k, v) = match &mut self.cache {
            Some(cache) => {
                cache.next_layer += 1;
                cache.rows.cache.append(cache.next_layer - 1, k, v, &cache.spans)
            }
            None => (k, v),
        };
        causal_attention(q, k, v, &self.rows)
            .swap_dims(1, 2)
            .reshape([n_rows * n_columns, n_heads * head_dim])
    }

    fn finish(self) {
        if let Some(mut cache) = self.cache {
            cache.rows.commit(&cache.spans);
        }
    }
}
