//! `config.json` of Hugging Face: decoder (qwen2, llama) and BERT.
use crate::ModelError;
use std::path::Path;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_max_position_embeddings: usize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Qwen2,
    Llama,
}

/// The shape of a decoder. JSON (de)serialisation accepts both key styles and rejects what it does not understand.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    pub family: Family,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: RopeScaling,
    pub is_tied: bool,
    pub has_qkv_bias: bool,
    pub initializer_range: f64,
    pub bos_token_id: Option<u32>,
    pub eos_token_ids: Vec<u32>,
}

impl DecoderConfig {
    pub fn from_file(_path: &Path) -> Result<Self, ModelError> {
        todo!()
    }
    /// The Hugging Face JSON of this config (v4 keys), as other tools load it.
    pub fn to_json(&self) -> String {
        todo!()
    }
    /// Number of parameters (tied weights once).
    pub fn n_parameters(&self) -> usize {
        todo!()
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct BertConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub max_position_embeddings: usize,
    pub type_vocab_size: usize,
    pub layer_norm_eps: f64,
    pub initializer_range: f64,
    pub pad_token_id: u32,
}
impl BertConfig {
    pub fn from_file(_path: &Path) -> Result<Self, ModelError> {
        todo!()
    }
    pub fn to_json(&self) -> String {
        todo!()
    }
}
