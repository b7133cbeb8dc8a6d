//! Text <-> token ids around the `tokenizers` crate; chat templates; incremental decoding for stop strings.
pub mod chat;
pub mod stream;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("cannot load tokenizer {}: {why}; hint: the folder must hold a Hugging Face tokenizer.json", path.display())]
    Load { path: PathBuf, why: String },
    #[error("tokenizer {} has {n_tokens} tokens but the model's vocabulary has only {vocab_size}; hint: use the tokenizer.json that came with the model", path.display())]
    TooLarge { path: PathBuf, n_tokens: usize, vocab_size: usize },
    #[error("cannot encode: {0}")]
    Encode(String),
}

pub struct Tokenizer {
    _placeholder: (),
}
impl Tokenizer {
    /// `path`: a tokenizer.json or a folder that holds one. Padding and truncation stored in the file are switched off.
    pub fn from_path(_path: &Path) -> Result<Self, TokenizerError> {
        todo!()
    }
    pub fn path(&self) -> &Path {
        todo!()
    }
    /// Encodes text as it is: special tokens written in the text are recognised, none are added.
    pub fn encode(&self, _text: &str) -> Result<Vec<u32>, TokenizerError> {
        todo!()
    }
    /// As `encode`, with the special tokens the file's post-processor adds (BERT's [CLS]/[SEP]).
    pub fn encode_with_special(&self, _text: &str) -> Result<Vec<u32>, TokenizerError> {
        todo!()
    }
    /// Special tokens are kept in the text.
    pub fn decode(&self, _ids: &[u32]) -> String {
        todo!()
    }
    pub fn n_tokens(&self) -> usize {
        todo!()
    }
    pub fn token_id(&self, _token: &str) -> Option<u32> {
        todo!()
    }
    /// Fails if some id could lie outside the model's embedding table.
    pub fn check_fits(&self, _vocab_size: usize) -> Result<(), TokenizerError> {
        todo!()
    }
}
