//! `config.json` of Hugging Face: decoders (qwen2, llama) and BERT encoders.
//!
//! Contract: a field that changes the mathematics is either implemented or refused by name and
//! value; a field nobody knows is refused too. Both key styles are read: transformers 4
//! (`rope_theta`, `rope_scaling`, `torch_dtype`) and 5 (`rope_parameters`, `dtype`); transformers 4
//! keys are written, which every version loads.

mod class;
pub(crate) mod dtype;
pub(crate) mod fields;
#[cfg(test)]
mod tests;

use crate::ModelError;
use burn::tensor::DType;
pub use class::ModelClass;
pub use fields::gguf;
use fields::{Fields, HARMLESS};
use serde_json::{Value, json};
use std::path::Path;

/// Sizes beyond any model there is. A number above them is a corrupt file, and what is built or
/// multiplied from it would exhaust memory or overflow; it is refused by name instead.
const MAX_LAYERS: usize = 10_000;
const MAX_WIDTH: usize = 1 << 20;
const MAX_HEADS: usize = 1 << 16;
const MAX_VOCAB: usize = 1 << 24;
const MAX_POSITIONS: usize = 1 << 30;

/// The shape of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// `model_type` in config.json.
    pub family: Family,
    /// V: rows of the embedding, padding included.
    pub vocab_size: usize,
    /// D: width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward between its two projections.
    pub intermediate_size: usize,
    /// Decoder blocks.
    pub num_hidden_layers: usize,
    /// H: query heads.
    pub num_attention_heads: usize,
    /// K: key/value heads; a divisor of the query heads.
    pub num_key_value_heads: usize,
    /// Need not be `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Positions that the model was made for.
    pub max_position_embeddings: usize,
    /// Added to the mean square before the root in RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// The output head is the embedding matrix (`tie_word_embeddings`).
    pub is_tied: bool,
    /// Biases on the q, k and v projections: true for Qwen2, false for Llama.
    pub has_qkv_bias: bool,
    /// Standard deviation of new weights.
    pub initializer_range: f64,
    /// First token of a text, where the tokenizer puts one.
    pub bos_token_id: Option<u32>,
    /// Ids that end a generation, as config.json names them (generation_config.json may name more).
    pub eos_token_ids: Vec<u32>,
}

/// Decoder families that are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Llama 2 and 3, SmolLM2.
    Llama,
}

/// Stretching of the rotary frequencies for contexts beyond the first training length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as they are.
    None,
    /// Llama 3.1 and 3.2: low frequencies divided by `factor`, a smooth step to the high ones.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Turns over the first training length below which a frequency is low.
        low_freq_factor: f64,
        /// Turns over the first training length above which a frequency is kept.
        high_freq_factor: f64,
        /// Positions of the first training.
        original_max_position_embeddings: usize,
    },
}

/// The shape of a BERT encoder (post-norm, erf GELU, absolute positions).
#[derive(Clone, Debug, PartialEq)]
pub struct BertConfig {
    /// V: tokens of the vocabulary.
    pub vocab_size: usize,
    /// D: width of the states and of the embedding.
    pub hidden_size: usize,
    /// Encoder blocks.
    pub num_hidden_layers: usize,
    /// Attention heads, each of width D / heads.
    pub num_attention_heads: usize,
    /// Width of the feed-forward between its two projections.
    pub intermediate_size: usize,
    /// The longest input in tokens.
    pub max_position_embeddings: usize,
    /// Rows of the segment embedding, of which the first is used.
    pub type_vocab_size: usize,
    /// Added to the variance before the root in LayerNorm.
    pub layer_norm_eps: f64,
    /// Standard deviation of new weights.
    pub initializer_range: f64,
    /// Id of padding.
    pub pad_token_id: u32,
}

impl Family {
    /// `model_type` in config.json.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Qwen2 => "qwen2",
            Self::Llama => "llama",
        }
    }

    /// The prefix of transformers' class names.
    fn class_prefix(self) -> &'static str {
        match self {
            Self::Qwen2 => "Qwen2",
            Self::Llama => "Llama",
        }
    }
}

impl DecoderConfig {
    /// A small Qwen2 for experiments: heads of 16 that share one pair of key and value heads, a
    /// feed-forward twice as wide as the model, 512 positions, output head tied to the embedding.
    /// Other shapes are this one with fields replaced.
    pub fn small(vocab_size: usize, hidden_size: usize, num_hidden_layers: usize) -> Self {
        Self {
            family: Family::Qwen2,
            vocab_size,
            hidden_size,
            intermediate_size: 2 * hidden_size,
            num_hidden_layers,
            num_attention_heads: (hidden_size / 16).max(1),
            num_key_value_heads: 1,
            head_dim: 16,
            max_position_embeddings: 512,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            is_tied: true,
            has_qkv_bias: true,
            initializer_range: 0.05,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
        }
    }

    /// Reads a qwen2 or llama config.json.
    /// # Errors
    /// If the file cannot be read or parsed, a field is missing, malformed, contradictory, unknown,
    /// or asks for something not implemented.
    pub fn from_file(path: &Path) -> Result<Self, ModelError> {
        let mut fields = Fields::read(path)?;
        let model_type = fields.text("model_type")?;
        let family = match model_type.as_str() {
            "qwen2" => Family::Qwen2,
            "llama" => Family::Llama,
            _ => {
                return Err(fields.unsupported(
                    "model_type",
                    &json!(model_type),
                    "decoders are qwen2 (Qwen2.5) or llama (Llama 3, SmolLM2)",
                ));
            }
        };
        refuse_other_decoders(&mut fields, family)?;
        let num_attention_heads = fields.count("num_attention_heads", MAX_HEADS)?;
        let hidden_size = fields.count("hidden_size", MAX_WIDTH)?;
        let num_key_value_heads = match family {
            // Llama checkpoints older than grouped-query attention leave it out; transformers'
            // qwen2 default (32) fits no model.
            Family::Llama => fields
                .optional_count("num_key_value_heads", MAX_HEADS)?
                .unwrap_or(num_attention_heads),
            Family::Qwen2 => fields.count("num_key_value_heads", MAX_HEADS)?,
        };
        let head_dim = match fields.optional_count("head_dim", MAX_WIDTH)? {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(num_attention_heads) => {
                hidden_size / num_attention_heads
            }
            None => {
                let message = format!(
                    "hidden_size ({hidden_size}) is not a multiple of num_attention_heads \
                     ({num_attention_heads}); hint: give head_dim"
                );
                return Err(fields.inconsistent(message));
            }
        };
        let max_position_embeddings = fields.count("max_position_embeddings", MAX_POSITIONS)?;
        let (rope_theta, rope_scaling) = read_rope(&mut fields)?;
        let config = Self {
            family,
            vocab_size: fields.count("vocab_size", MAX_VOCAB)?,
            hidden_size,
            intermediate_size: fields.count("intermediate_size", MAX_WIDTH)?,
            num_hidden_layers: fields.count("num_hidden_layers", MAX_LAYERS)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings,
            rms_norm_eps: fields.number("rms_norm_eps")?,
            rope_theta,
            rope_scaling,
            // transformers' default for both families.
            is_tied: fields.flag_or("tie_word_embeddings", false)?,
            has_qkv_bias: family == Family::Qwen2,
            initializer_range: fields.number_or("initializer_range", 0.02)?,
            bos_token_id: fields.token_id("bos_token_id")?,
            eos_token_ids: fields.token_ids("eos_token_id")?,
        };
        config.check(&fields)?;
        let is_full = check_layer_types(&mut fields, config.num_hidden_layers)?;
        check_window(&mut fields, family, is_full, config.num_hidden_layers)?;
        let harmless: Vec<&str> = HARMLESS.iter().copied().chain(["is_llama_config"]).collect();
        fields.finish(&harmless)?;
        Ok(config)
    }

    /// The Hugging Face JSON of this config (transformers 4 keys), as other tools load it.
    pub fn to_json(&self) -> String {
        self.json_for("ForCausalLM", DType::F32)
    }

    /// config.json of a model class ("ForCausalLM", "ForTokenClassification") whose weights are
    /// stored as `dtype`.
    pub(crate) fn json_for(&self, class_suffix: &str, dtype: DType) -> String {
        let mut json = json!({
            "architectures": [format!("{}{class_suffix}", self.family.class_prefix())],
            "model_type": self.family.model_type(),
            "torch_dtype": torch_dtype(dtype),
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_position_embeddings,
            "initializer_range": self.initializer_range,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling.to_json(),
            "tie_word_embeddings": self.is_tied,
            "attention_dropout": 0.0,
            "use_cache": true,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": match self.eos_token_ids.as_slice() {
                [] => Value::Null,
                [id] => json!(id),
                ids => json!(ids),
            },
        });
        match self.family {
            Family::Qwen2 => json["use_sliding_window"] = json!(false),
            Family::Llama => {
                json["attention_bias"] = json!(false);
                json["mlp_bias"] = json!(false);
            }
        }
        if class_suffix == "ForTokenClassification" {
            // One label: transformers builds its `score` head as Linear(hidden_size, 1).
            json["id2label"] = json!({"0": "LABEL_0"});
            json["label2id"] = json!({"LABEL_0": 0});
        }
        format!("{json:#}\n")
    }

    /// Number of parameters (tied weights once).
    pub fn n_parameters(&self) -> usize {
        let (d, q, kv) = (
            self.hidden_size,
            self.num_attention_heads * self.head_dim,
            self.num_key_value_heads * self.head_dim,
        );
        let attention = 2 * d * q + 2 * d * kv + if self.has_qkv_bias { q + 2 * kv } else { 0 };
        let block = attention + 3 * d * self.intermediate_size + 2 * d;
        let heads = if self.is_tied { 1 } else { 2 };
        heads * self.vocab_size * d + self.num_hidden_layers * block + d
    }

    fn check(&self, fields: &Fields) -> Result<(), ModelError> {
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        if !heads.is_multiple_of(kv_heads) {
            let message = format!(
                "num_attention_heads ({heads}) is not a multiple of num_key_value_heads \
                 ({kv_heads})"
            );
            return Err(fields.inconsistent(message));
        }
        if heads * self.head_dim > MAX_WIDTH {
            let message = format!(
                "num_attention_heads ({heads}) times head_dim ({}) is more than {MAX_WIDTH}",
                self.head_dim
            );
            return Err(fields.inconsistent(message));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(fields.inconsistent(format!(
                "head_dim ({}) is odd; hint: rotary embedding turns pairs",
                self.head_dim
            )));
        }
        for id in self.bos_token_id.iter().chain(&self.eos_token_ids) {
            if *id as usize >= self.vocab_size {
                return Err(fields.inconsistent(format!(
                    "token id {id} lies outside vocab_size ({})",
                    self.vocab_size
                )));
            }
        }
        Ok(())
    }
}

impl RopeScaling {
    fn to_json(self) -> Value {
        match self {
            Self::None => Value::Null,
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            }),
        }
    }
}

impl BertConfig {
    /// Reads a bert config.json.
    /// # Errors
    /// As [`DecoderConfig::from_file`].
    pub fn from_file(path: &Path) -> Result<Self, ModelError> {
        let mut fields = Fields::read(path)?;
        fields.only(
            "model_type",
            &[json!("bert")],
            "encoders are bert (E5, MiniLM, BGE); XLM-RoBERTa numbers positions otherwise",
        )?;
        refuse_other_architectures(&mut fields)?;
        fields.only("hidden_act", &[json!("gelu")], "the encoder applies the erf form of GELU")?;
        fields.only(
            "position_embedding_type",
            &[json!("absolute")],
            "only absolute positions are implemented",
        )?;
        fields.only("embedding_size", &[], "factorised embeddings are not BERT's")?;
        let config = Self {
            vocab_size: fields.count("vocab_size", MAX_VOCAB)?,
            hidden_size: fields.count("hidden_size", MAX_WIDTH)?,
            num_hidden_layers: fields.count("num_hidden_layers", MAX_LAYERS)?,
            num_attention_heads: fields.count("num_attention_heads", MAX_HEADS)?,
            intermediate_size: fields.count("intermediate_size", MAX_WIDTH)?,
            max_position_embeddings: fields.count("max_position_embeddings", MAX_POSITIONS)?,
            type_vocab_size: fields.count("type_vocab_size", MAX_VOCAB)?,
            layer_norm_eps: fields.number("layer_norm_eps")?,
            initializer_range: fields.number_or("initializer_range", 0.02)?,
            pad_token_id: fields.token_id("pad_token_id")?.unwrap_or(0),
        };
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            let (d, heads) = (config.hidden_size, config.num_attention_heads);
            return Err(fields.inconsistent(format!(
                "hidden_size ({d}) is not a multiple of num_attention_heads ({heads})"
            )));
        }
        // The pooler and the next-sentence head are not used; these describe them or the corpus.
        let unused =
            ["bos_token_id", "eos_token_id", "tie_word_embeddings", "directionality", "language"];
        let pooler = [
            "pooler_fc_size",
            "pooler_num_attention_heads",
            "pooler_num_fc_layers",
            "pooler_size_per_head",
            "pooler_type",
        ];
        let harmless: Vec<&str> = HARMLESS.iter().copied().chain(unused).chain(pooler).collect();
        fields.finish(&harmless)?;
        Ok(config)
    }

    /// Number of parameters; a pooler in the file is not read, and not counted.
    pub fn n_parameters(&self) -> usize {
        let d = self.hidden_size;
        let norm = 2 * d;
        let embeddings =
            (self.vocab_size + self.max_position_embeddings + self.type_vocab_size) * d + norm;
        let feed_forward = 2 * d * self.intermediate_size + self.intermediate_size + d;
        embeddings + self.num_hidden_layers * (4 * (d * d + d) + feed_forward + 2 * norm)
    }

    /// The Hugging Face JSON of this config, as other tools load it.
    pub fn to_json(&self) -> String {
        self.json_for(DType::F32)
    }

    /// config.json of an encoder whose weights are stored as `dtype`.
    pub(crate) fn json_for(&self, dtype: DType) -> String {
        let json = json!({
            "architectures": ["BertModel"],
            "model_type": "bert",
            "torch_dtype": torch_dtype(dtype),
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": self.intermediate_size,
            "hidden_act": "gelu",
            "max_position_embeddings": self.max_position_embeddings,
            "position_embedding_type": "absolute",
            "type_vocab_size": self.type_vocab_size,
            "layer_norm_eps": self.layer_norm_eps,
            "initializer_range": self.initializer_range,
            "pad_token_id": self.pad_token_id,
        });
        format!("{json:#}\n")
    }
}

/// True if both files can be read and agree in class, family and every number that is read here.
/// Their dtype and bookkeeping may differ.
pub(crate) fn describe_the_same_model(a: &Path, b: &Path) -> bool {
    let class =
        |path: &Path| Fields::read(path).ok().and_then(|mut fields| fields.take("architectures"));
    let decoder = |path: &Path| DecoderConfig::from_file(path).ok();
    let encoder = |path: &Path| BertConfig::from_file(path).ok();
    let is_same = (decoder(a).is_some() && decoder(a) == decoder(b))
        || (encoder(a).is_some() && encoder(a) == encoder(b));
    is_same && class(a) == class(b)
}

fn torch_dtype(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        _ => "float32",
    }
}

fn refuse_other_architectures(fields: &mut Fields) -> Result<(), ModelError> {
    fields.only(
        "quantization_config",
        &[],
        "quantised checkpoints are not read; use the full-precision one",
    )?;
    for key in ["is_encoder_decoder", "is_decoder", "add_cross_attention"] {
        fields.only(
            key,
            &[json!(false)],
            "neither encoder-decoder models nor causal BERT are implemented",
        )?;
    }
    fields.only("pruned_heads", &[json!({})], "pruned heads are not implemented")
}

fn refuse_other_decoders(fields: &mut Fields, family: Family) -> Result<(), ModelError> {
    refuse_other_architectures(fields)?;
    fields.only(
        "hidden_act",
        &[json!("silu"), json!("swish")],
        "the feed-forward layer is SwiGLU: silu",
    )?;
    fields.only("use_mrope", &[json!(false)], "multimodal rotary positions are not implemented")?;
    fields.only(
        "rope_interleaved",
        &[json!(false)],
        "rotary embedding turns the two halves of a head, not neighbours",
    )?;
    fields.only(
        "partial_rotary_factor",
        &[json!(1), json!(1.0)],
        "every dimension of a head is turned",
    )?;
    fields.only("mlp_bias", &[json!(false)], "feed-forward layers have no bias")?;
    match family {
        Family::Llama => fields.only(
            "attention_bias",
            &[json!(false)],
            "Llama's projections have no bias; only qwen2 has (on q, k, v)",
        ),
        Family::Qwen2 => {
            fields.only("attention_bias", &[json!(true)], "qwen2 has a bias on q, k and v")
        }
    }
}

/// Refuses a window that some layer would use.
///
/// # Source
/// huggingface/transformers:src/transformers/models/qwen2/configuration_qwen2.py: unless
/// `layer_types` says otherwise, the layers from `max_window_layers` on use `sliding_window`, if
/// `use_sliding_window` is set and the window is not null.
fn check_window(
    fields: &mut Fields,
    family: Family,
    is_full: bool,
    n_layers: usize,
) -> Result<(), ModelError> {
    // transformers' default.
    const FIRST_WINDOWED_LAYER: u64 = 28;
    let has_no_window = fields.is_null("sliding_window");
    let first = fields
        .take("max_window_layers")
        .and_then(|value| value.as_u64())
        .unwrap_or(FIRST_WINDOWED_LAYER);
    _ = fields.take("sliding_window");
    let Some(value) = fields.take("use_sliding_window").filter(|value| *value != json!(false))
    else {
        return Ok(());
    };
    let is_unused = is_full || has_no_window || first >= n_layers as u64;
    if family == Family::Qwen2 && value == json!(true) && is_unused {
        return Ok(());
    }
    Err(fields.unsupported(
        "use_sliding_window",
        &value,
        "attention here always sees the whole context",
    ))
}

/// `layer_types` names the attention of each layer; only full attention is implemented. True if it
/// says so of every layer.
fn check_layer_types(fields: &mut Fields, n_layers: usize) -> Result<bool, ModelError> {
    let Some(value) = fields.take("layer_types") else { return Ok(false) };
    match value.as_array() {
        Some(types) if types.iter().any(|kind| kind != "full_attention") => {
            Err(fields.unsupported("layer_types", &value, "every layer must be \"full_attention\""))
        }
        Some(types) if types.len() == n_layers => Ok(true),
        _ => Err(fields.inconsistent(format!(
            "layer_types does not list num_hidden_layers ({n_layers}) entries"
        ))),
    }
}

/// `rope_theta` beside `rope_scaling` (transformers 4), or both inside `rope_parameters` (5).
fn read_rope(fields: &mut Fields) -> Result<(f64, RopeScaling), ModelError> {
    // transformers' default for both families.
    const DEFAULT_THETA: f64 = 10_000.0;
    let outer_theta = fields.optional_number("rope_theta")?;
    let (old, new) = (fields.object("rope_scaling")?, fields.object("rope_parameters")?);
    if old.is_some() && new.is_some() {
        return Err(fields.inconsistent(
            "has both rope_scaling and rope_parameters; hint: keep rope_parameters".to_owned(),
        ));
    }
    let Some(mut rope) = new.or(old) else {
        return Ok((outer_theta.unwrap_or(DEFAULT_THETA), RopeScaling::None));
    };
    let inner_theta = rope.optional_number("rope_theta")?;
    if let (Some(outer), Some(inner)) = (outer_theta, inner_theta)
        && outer != inner
    {
        return Err(fields
            .inconsistent(format!("rope_theta is {outer} and, inside rope_parameters, {inner}")));
    }
    let theta = inner_theta.or(outer_theta).unwrap_or(DEFAULT_THETA);
    rope.only(
        "partial_rotary_factor",
        &[json!(1), json!(1.0)],
        "every dimension of a head is turned",
    )?;
    // `type` is the older name of `rope_type`.
    let (kind, old_kind) = (rope.optional_text("rope_type")?, rope.optional_text("type")?);
    let kind = kind.or(old_kind).unwrap_or_else(|| "default".to_owned());
    let scaling = match kind.as_str() {
        "default" => RopeScaling::None,
        "llama3" => read_llama3_scaling(&mut rope)?,
        _ => {
            return Err(rope.unsupported(
                "rope_type",
                &json!(kind),
                "\"default\" and \"llama3\" are implemented",
            ));
        }
    };
    rope.finish(&[])?;
    Ok((theta, scaling))
}

fn read_llama3_scaling(rope: &mut Fields) -> Result<RopeScaling, ModelError> {
    let (low_freq_factor, high_freq_factor) =
        (rope.number("low_freq_factor")?, rope.number("high_freq_factor")?);
    if low_freq_factor >= high_freq_factor {
        let message = format!(
            "low_freq_factor ({low_freq_factor}) is not below high_freq_factor \
             ({high_freq_factor})"
        );
        return Err(rope.inconsistent(message));
    }
    Ok(RopeScaling::Llama3 {
        factor: rope.number("factor")?,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings: rope
            .count("original_max_position_embeddings", MAX_POSITIONS)?,
    })
}
