//! Text <-> token ids around the `tokenizers` crate; chat templates; incremental decoding for stop
//! strings.
//!
//! Encoding is the crate's own. Decoding works in one of two ways, by the decoder that the file
//! declares: a byte-level BPE (Qwen2.5, Llama 3) gives every token a fixed string of bytes, so
//! decoding is a concatenation (a table made on loading, 3 MB for 150,000 tokens); for all others
//! (Metaspace, WordPiece, byte fallback) a token's text depends on its neighbours and the crate
//! decodes.

pub mod chat;
pub(crate) mod checked;
mod declared;
mod folder;
mod outside;
pub mod piece;
mod prefix;
pub mod stream;
mod template;

pub use declared::CONFIG_FILE;
pub use folder::JINJA_FILE;
pub use prefix::first_tokens;

use crate::contained::contained;
use chat::{Chat, ChatError};
use dgpo_models::{ModelError, config::gguf};
use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};
use tokenizers::DecoderWrapper;

#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum TokenizerError {
    #[error("cannot load tokenizer {}: {why}; hint: the folder must hold a Hugging Face \
             tokenizer.json", path.display())]
    Load { path: PathBuf, why: String },
    #[error("tokenizer {} has {n_tokens} tokens but the model's vocabulary has only {vocab_size}; \
             hint: use the tokenizer.json that came with the model", path.display())]
    TooLarge { path: PathBuf, n_tokens: usize, vocab_size: usize },
    #[error(
        "token {token:?} has id {id} in {} and {} in {}; hint: student and teacher must share one \
         tokenizer",
        path.display(),
        other_id.map_or("none".to_owned(), |id| id.to_string()),
        other.display()
    )]
    Differs { token: String, id: u32, other_id: Option<u32>, path: PathBuf, other: PathBuf },
    #[error(
        "tokenizer {} does not know {token:?} of the chat template {template}; hint: --set \
         model.chat_template= with the model's family (qwen2_5, llama3, llama3_1, llama3_2), or \
         with plain",
        path.display()
    )]
    Template { path: PathBuf, token: String, template: String },
    #[error(transparent)]
    Chat(#[from] ChatError),
    #[error(
        "{} declares id {declared} for the token {token:?}, which would get {}; hint: take the \
         files that the model was published with: added tokens must continue the vocabulary \
         without a hole, in the order of their ids",
        path.display(),
        given.map_or("none".to_owned(), |id| id.to_string())
    )]
    DeclaredId { token: String, declared: u32, given: Option<u32>, path: PathBuf },
    #[error(transparent)]
    NoModel(ModelError),
    #[error("cannot encode: {0}")]
    Encode(String),
}

/// Name of the file that a tokenizer is read from.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// A model's tokenizer (`tokenizer.json`) with its chat format.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    n_tokens: usize,
    /// Present where every token stands for fixed bytes.
    token_bytes: Option<TokenBytes>,
    /// Ids of the special tokens, ascending.
    special_ids: Vec<u32>,
    chat: Chat,
    /// True if outside text is searched for special tokens.
    special_tokens_in_text: bool,
    /// The same tokenizer with special tokens off.
    plain: OnceLock<Box<tokenizers::Tokenizer>>,
}

impl Tokenizer {
    /// `path`: a tokenizer.json or a folder that holds one. Padding and truncation stored in the
    /// file are switched off.
    ///
    /// # Errors
    /// If there is no such file, it is not a Hugging Face tokenizer, or added tokens would get
    /// other ids than the files declare.
    pub fn from_path(path: &Path) -> Result<Self, TokenizerError> {
        let file = if path.is_dir() { path.join(TOKENIZER_FILE) } else { path.to_owned() };
        // A model's tokenizer is read before its config.json, so a GGUF file given as a model is
        // reported here.
        let loaded = checked::load(&file)
            .map_err(|error| gguf(path).map_or(error, TokenizerError::NoModel))?;
        let tokenizer = Self::new(loaded, file)?;
        tokenizer.check_declared_ids()?;
        Ok(tokenizer)
    }

    pub(crate) fn new(
        mut inner: tokenizers::Tokenizer,
        path: PathBuf,
    ) -> Result<Self, TokenizerError> {
        if let Err(error) = inner.with_truncation(None) {
            return Err(TokenizerError::Load { path, why: error.to_string() });
        }
        inner.with_padding(None);
        let n_tokens = inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        let is_byte_level = matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        let token_bytes = is_byte_level.then(|| TokenBytes::new(&inner, n_tokens));
        let special_ids = outside::special_ids(&inner);
        Ok(Self {
            inner,
            path,
            n_tokens,
            token_bytes,
            special_ids,
            chat: Chat::plain(),
            special_tokens_in_text: false,
            plain: OnceLock::new(),
        })
    }

    /// Path of the tokenizer.json.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Encodes text as it is: special tokens written in the text are recognised, none are added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_any(text, false)
    }

    /// As `encode`, with the special tokens the file's post-processor adds (BERT's
    /// `[CLS]`/`[SEP]`).
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_any(text, true)
    }

    fn encode_any(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        ids_of(&self.inner, text, add_special_tokens)
    }

    /// The text of `ids`. Special tokens are kept in it; ids outside the vocabulary (a padded
    /// embedding table has some) give no text; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        match &self.token_bytes {
            Some(table) => {
                let bytes: Vec<u8> = ids.iter().flat_map(|&id| table.of(id)).copied().collect();
                String::from_utf8_lossy(&bytes).into_owned()
            }
            // The crate's decoders report no errors of their own for any list of tokens, and
            // loading tried them on every token.
            None => {
                contained(|| self.inner.decode(ids, false).unwrap_or_default()).unwrap_or_default()
            }
        }
    }

    /// One more than the highest id.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// The id of a token as the file spells it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Fails if some id could lie outside the model's embedding table.
    pub fn check_fits(&self, vocab_size: usize) -> Result<(), TokenizerError> {
        if self.n_tokens > vocab_size {
            return Err(TokenizerError::TooLarge {
                path: self.path.clone(),
                n_tokens: self.n_tokens,
                vocab_size,
            });
        }
        Ok(())
    }

    /// Fails if `other` gives one of these tokens another id: two models then disagree about what
    /// an id means. Tokens that only `other` has do not matter.
    pub fn check_same_ids(&self, other: &Self) -> Result<(), TokenizerError> {
        let vocabulary = self.inner.get_vocab(true);
        let differing = vocabulary
            .into_iter()
            .filter(|(token, id)| other.token_id(token) != Some(*id))
            .min_by_key(|&(_, id)| id);
        differing.map_or(Ok(()), |(token, id)| {
            let other_id = other.token_id(&token);
            Err(TokenizerError::Differs {
                token,
                id,
                other_id,
                path: self.path.clone(),
                other: other.path.clone(),
            })
        })
    }

    /// The chat format of its prompts: [`Chat::plain`] unless [`Tokenizer::with_chat`] has set
    /// another.
    pub fn chat(&self) -> &Chat {
        &self.chat
    }

    /// The same tokenizer with another chat format.
    #[must_use]
    pub fn with_chat(self, chat: Chat) -> Self {
        Self { chat, ..self }
    }
}

/// The crate's encoding of a text. It fails, or panics, where the file's declarations are wrong.
fn ids_of(
    tokenizer: &tokenizers::Tokenizer,
    text: &str,
    add_special_tokens: bool,
) -> Result<Vec<u32>, TokenizerError> {
    let encoded = contained(|| {
        tokenizer.encode_fast(text, add_special_tokens).map(|encoding| encoding.get_ids().to_vec())
    });
    match encoded {
        Ok(Ok(ids)) => Ok(ids),
        Ok(Err(error)) => Err(TokenizerError::Encode(error.to_string())),
        Err(why) => Err(TokenizerError::Encode(format!("tokenizer.json is damaged ({why})"))),
    }
}

/// The bytes of every token of a byte-level vocabulary.
struct TokenBytes {
    bytes: Vec<u8>,
    /// [n_tokens + 1] token i is bytes[ends[i]..ends[i + 1]].
    ends: Vec<u32>,
}

impl TokenBytes {
    fn new(inner: &tokenizers::Tokenizer, n_tokens: usize) -> Self {
        let mut table = Self { bytes: Vec::new(), ends: vec![0] };
        for id in 0..n_tokens as u32 {
            let token = inner.id_to_token(id).unwrap_or_default();
            // A token with a character outside the byte alphabet is an added one, written as it is.
            match token.chars().map(byte_of_char).collect::<Option<Vec<u8>>>() {
                Some(bytes) => table.bytes.extend(bytes),
                None => table.bytes.extend(token.as_bytes()),
            }
            table.ends.push(table.bytes.len() as u32);
        }
        table
    }

    fn of(&self, id: u32) -> &[u8] {
        let id = id as usize;
        match (self.ends.get(id), self.ends.get(id + 1)) {
            (Some(&start), Some(&end)) => &self.bytes[start as usize..end as usize],
            _ => &[],
        }
    }
}

/// The byte that a character of a byte-level vocabulary stands for: printable Latin-1 stands for
/// itself, the 68 other bytes, in order, are the characters from U+0100 on.
///
/// # Source
/// openai/gpt-2:src/encoder.py `bytes_to_unicode`
fn byte_of_char(c: char) -> Option<u8> {
    match c as u32 {
        c @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(c as u8),
        c @ 0x100..=0x120 => Some((c - 0x100) as u8),
        c @ 0x121..=0x142 => Some((c - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::testing::byte_level_tokenizer;
    use proptest::prelude::*;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    /// Ids of the whole vocabulary, some beyond it.
    pub(crate) fn any_ids(tokenizer: &Tokenizer) -> impl Strategy<Value = Vec<u32>> + use<> {
        proptest::collection::vec(0..tokenizer.n_tokens() as u32 + 3, 1..40)
    }

    /// Names of the real tokenizers with the size of their vocabularies.
    pub(crate) fn real_tokenizers() -> Vec<(Tokenizer, usize)> {
        let Some(folder) = crate::testing::test_data("tokenizers") else { return Vec::new() };
        [("qwen2.5", 151_665), ("smollm2", 49_152), ("bert-uncased-minilm", 30_522)]
            .map(|(name, n_tokens)| (Tokenizer::from_path(&folder.join(name)).unwrap(), n_tokens))
            .into()
    }

    #[test]
    fn the_byte_alphabet_is_that_of_the_crate() {
        let ours: Vec<char> =
            (0..0x200).filter_map(char::from_u32).filter(|&c| byte_of_char(c).is_some()).collect();
        let mut theirs: Vec<char> = ByteLevel::alphabet().into_iter().collect();
        theirs.sort_unstable();
        assert_eq!(ours, theirs);
        let mut bytes: Vec<u8> = ours.into_iter().filter_map(byte_of_char).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
    }

    #[test]
    fn decoding_agrees_with_the_crate_for_any_ids() {
        let small = byte_level_tokenizer();
        for tokenizer in std::iter::once(small).chain(real_tokenizers().into_iter().map(|(t, _)| t))
        {
            proptest!(|(ids in any_ids(&tokenizer))| {
                prop_assert_eq!(
                    tokenizer.decode(&ids),
                    tokenizer.inner.decode(&ids, false).unwrap()
                );
            });
        }
    }

    #[test]
    fn text_survives_a_byte_level_round_trip_with_its_special_tokens() {
        let tokenizer = byte_level_tokenizer();
        for text in
            ["", " ", "<think> naïve 中 </think>\n\n", "x<|im_end|>y", "🙂 e\u{301}\r\n\t\u{0}"]
        {
            assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()), text);
        }
        let im_end = tokenizer.token_id("<|im_end|>").unwrap();
        assert_eq!(tokenizer.encode("a<|im_end|>").unwrap().last(), Some(&im_end));
    }

    #[test]
    fn a_tokenizer_larger_than_the_embedding_table_is_refused() {
        let tokenizer = byte_level_tokenizer();
        assert!(tokenizer.check_fits(tokenizer.n_tokens()).is_ok());
        assert!(
            tokenizer
                .check_fits(tokenizer.n_tokens() - 1)
                .unwrap_err()
                .to_string()
                .contains("hint: ")
        );
    }

    #[test]
    fn a_tokenizer_with_other_ids_is_told_apart() {
        let tokenizer = byte_level_tokenizer();
        tokenizer.check_same_ids(&byte_level_tokenizer()).expect("the same");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(TOKENIZER_FILE);
        tokenizer.inner.save(&path, false).expect("written");
        let mut json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
        let vocabulary = json["model"]["vocab"].as_object_mut().expect("token to id");
        let (first, second) = {
            let mut tokens = vocabulary.keys().cloned();
            (tokens.next().expect("a token"), tokens.next().expect("another"))
        };
        let ids = (vocabulary[&first].clone(), vocabulary[&second].clone());
        vocabulary.insert(first, ids.1);
        vocabulary.insert(second, ids.0);
        std::fs::write(&path, json.to_string()).expect("written");
        let other = Tokenizer::from_path(&path).expect("still a tokenizer");
        let error = tokenizer.check_same_ids(&other).unwrap_err().to_string();
        assert!(error.contains("hint: student and teacher must share one tokenizer"), "{error}");
    }

    #[test]
    fn gguf_is_called_so_before_anybody_misses_a_tokenizer() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("Model-Q4_K_M.gguf");
        std::fs::write(&file, "GGUF").unwrap();
        for (path, what) in [
            (&*file, "it is a GGUF file, not a model folder"),
            (folder.path(), "it holds GGUF files and no config.json"),
        ] {
            let error = Tokenizer::from_path(path).err().unwrap().to_string();
            assert!(
                error.contains(what)
                    && error.contains("hint: GGUF is not read")
                    && !error.contains("tokenizer.json"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_missing_file_is_reported_with_its_path() {
        let error =
            Tokenizer::from_path(Path::new("no/such/tokenizer.json")).err().unwrap().to_string();
        assert!(error.contains("no/such/tokenizer.json") && error.contains("hint: "), "{error}");
    }

    #[test]
    fn real_tokenizers_load_without_padding_truncation_or_added_tokens() {
        for (tokenizer, n_tokens) in real_tokenizers() {
            assert_eq!(tokenizer.n_tokens(), n_tokens, "{}", tokenizer.path().display());
            assert!(tokenizer.encode("").unwrap().is_empty());
            assert!(tokenizer.encode(&"word ".repeat(500)).unwrap().len() >= 500);
        }
    }

    #[test]
    fn real_special_tokens_have_their_published_ids() {
        let mut real = real_tokenizers();
        if real.is_empty() {
            return;
        }
        let bert = real.pop().unwrap().0;
        let qwen = real.swap_remove(0).0;
        assert_eq!(
            qwen.encode("<|im_start|>user\nhi<|im_end|>").unwrap(),
            [151_644, 872, 198, 6023, 151_645]
        );
        assert_eq!(qwen.encode_with_special("hi").unwrap(), [6023]);
        assert_eq!(bert.encode_with_special("hello world").unwrap(), [101, 7592, 2088, 102]);
        assert_eq!(bert.decode(&[7592, 2088, 999]), "hello world!");
    }
}
