//! A JSON object that is read strictly: every field is either asked for, known to be harmless, or
//! an error.
//!
//! Contract: `null` counts as absent, as transformers writes it for defaults. What was asked for is
//! remembered, so that `finish` can tell an unknown field from a known one and suggest the nearest
//! name.

use crate::{ModelError, suggest::did_you_mean};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

pub(crate) const BYTE_ORDER_MARK: char = '\u{feff}';

/// More than any config.json; what is larger is another file, and is not read into memory to find
/// out.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

pub(super) struct Fields {
    path: PathBuf,
    /// "rope_scaling." inside that object, else empty; it makes errors name the whole path.
    prefix: String,
    map: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Fields {
    pub(super) fn read(path: &Path) -> Result<Self, ModelError> {
        const HINT: &str = "a model folder in Hugging Face layout has a config.json";
        let unreadable = |source| {
            not_a_folder(path).unwrap_or(ModelError::Read {
                path: path.to_owned(),
                source,
                hint: HINT,
            })
        };
        let n_bytes = std::fs::metadata(path).map_err(unreadable)?.len();
        if n_bytes > MAX_CONFIG_BYTES {
            let message = format!("the file has {n_bytes} bytes, a config.json has a few thousand");
            return Err(ModelError::Corrupt { path: path.to_owned(), message, hint: HINT });
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        // Editors on Windows put a byte-order mark in front, which is no part of the JSON.
        let map = serde_json::from_str(text.trim_start_matches(BYTE_ORDER_MARK))
            .map_err(|error| ModelError::json(path, &error))?;
        Ok(Self { path: path.to_owned(), prefix: String::new(), map, known: Vec::new() })
    }

    pub(super) fn count(&mut self, key: &'static str, max: usize) -> Result<usize, ModelError> {
        self.optional_count(key, max)?.ok_or_else(|| self.missing(key))
    }

    /// A size: a whole number from 1 to `max`.
    pub(super) fn optional_count(
        &mut self,
        key: &'static str,
        max: usize,
    ) -> Result<Option<usize>, ModelError> {
        let expected = format!("a whole number from 1 to {max}");
        self.parse(key, &expected, |value| {
            value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=max).contains(n))
        })
    }

    pub(super) fn number(&mut self, key: &'static str) -> Result<f64, ModelError> {
        self.optional_number(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn number_or(&mut self, key: &'static str, default: f64) -> Result<f64, ModelError> {
        Ok(self.optional_number(key)?.unwrap_or(default))
    }

    pub(super) fn optional_number(&mut self, key: &'static str) -> Result<Option<f64>, ModelError> {
        self.parse(key, "a number above 0", |value| {
            value.as_f64().filter(|x| x.is_finite() && *x > 0.0)
        })
    }

    pub(super) fn flag_or(&mut self, key: &'static str, default: bool) -> Result<bool, ModelError> {
        Ok(self.parse(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    pub(super) fn text(&mut self, key: &'static str) -> Result<String, ModelError> {
        self.optional_text(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn optional_text(
        &mut self,
        key: &'static str,
    ) -> Result<Option<String>, ModelError> {
        self.parse(key, "a string", |value| value.as_str().map(str::to_owned))
    }

    pub(super) fn token_id(&mut self, key: &'static str) -> Result<Option<u32>, ModelError> {
        self.parse(key, "a token id (a whole number from 0)", as_token_id)
    }

    /// One token id or a list of them; absent is the empty list.
    pub(super) fn token_ids(&mut self, key: &'static str) -> Result<Vec<u32>, ModelError> {
        let ids = self.parse(key, "a token id or a list of token ids", |value| match value {
            Value::Array(ids) => ids.iter().map(as_token_id).collect(),
            one => as_token_id(one).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default())
    }

    /// A nested object, read as strictly.
    pub(super) fn object(&mut self, key: &'static str) -> Result<Option<Self>, ModelError> {
        let map = self.parse(key, "an object", |value| value.as_object().cloned())?;
        Ok(map.map(|map| Self {
            path: self.path.clone(),
            prefix: format!("{}{key}.", self.prefix),
            map,
            known: Vec::new(),
        }))
    }

    /// A field that is only understood at certain values: absent is fine, any other value is an
    /// error that names it.
    pub(super) fn only(
        &mut self,
        key: &'static str,
        allowed: &[Value],
        hint: &'static str,
    ) -> Result<(), ModelError> {
        match self.take(key) {
            Some(value) if !allowed.contains(&value) => Err(self.unsupported(key, &value, hint)),
            _ => Ok(()),
        }
    }

    /// True if the field is there and says null: for the few whose default is not null.
    pub(super) fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.map.remove(key).filter(|value| !value.is_null())
    }

    pub(super) fn unsupported(&self, key: &str, value: &Value, hint: &'static str) -> ModelError {
        ModelError::Unsupported {
            path: self.path.clone(),
            field: format!("{}{key}", self.prefix),
            value: value.to_string(),
            hint,
        }
    }

    pub(super) fn inconsistent(&self, message: String) -> ModelError {
        ModelError::Inconsistent { path: self.path.clone(), message }
    }

    /// Ends the reading: what nobody asked for must be in `harmless`.
    pub(super) fn finish(self, harmless: &[&str]) -> Result<(), ModelError> {
        let mut left = self.map.keys().filter(|key| !harmless.contains(&key.as_str()));
        let Some(key) = left.next() else { return Ok(()) };
        let names = self.known.iter().chain(harmless).copied();
        let suggestion = did_you_mean(key, names).map(str::to_owned);
        Err(ModelError::UnknownField {
            path: self.path.clone(),
            field: format!("{}{key}", self.prefix),
            suggestion,
        })
    }

    fn parse<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let bad = || {
            let field = format!("{}{key}", self.prefix);
            ModelError::BadField {
                path: self.path.clone(),
                field,
                value: value.to_string(),
                expected: expected.to_owned(),
            }
        };
        convert(&value).map(Some).ok_or_else(bad)
    }

    fn missing(&self, key: &str) -> ModelError {
        ModelError::MissingField { path: self.path.clone(), field: format!("{}{key}", self.prefix) }
    }
}

/// Why the folder of `config` cannot be a model folder, where that says more than that config.json
/// is not there.
fn not_a_folder(config: &Path) -> Option<ModelError> {
    const HINT: &str = "give the folder that holds config.json and model.safetensors";
    let folder = config.parent().filter(|folder| !folder.as_os_str().is_empty())?;
    let is_file = || ModelError::Corrupt {
        path: folder.to_owned(),
        message: "it is a file, not a model folder".to_owned(),
        hint: HINT,
    };
    gguf(folder).or_else(|| folder.is_file().then(is_file))
}

/// Complaint about a path given as a model folder that is a GGUF file, or holds such files and
/// no config.json; `None` of any other.
pub fn gguf(path: &Path) -> Option<ModelError> {
    const HINT: &str = "GGUF is not read; give the folder with config.json and model.safetensors \
                        that it was made from";
    let is_gguf = |path: &Path| {
        path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
    };
    let holds_gguf = || {
        let mut entries = std::fs::read_dir(path).ok()?.flatten();
        Some(!path.join("config.json").exists() && entries.any(|entry| is_gguf(&entry.path())))
    };
    let message = match path.is_file() {
        true if is_gguf(path) => "it is a GGUF file, not a model folder",
        false if holds_gguf() == Some(true) => "it holds GGUF files and no config.json",
        _ => return None,
    };
    Some(ModelError::Corrupt { path: path.to_owned(), message: message.to_owned(), hint: HINT })
}

fn as_token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// Keys that every transformers configuration may carry and no forward pass here depends on:
/// bookkeeping, generation defaults, training-only dropout.
pub(super) const HARMLESS: &[&str] = &[
    // Bookkeeping.
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "auto_map",
    "dtype",
    "finetuning_task",
    "id2label",
    "label2id",
    "num_labels",
    "prefix",
    "problem_type",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    // How the Python code runs, not what it computes.
    "chunk_size_feed_forward",
    "gradient_checkpointing",
    "output_attentions",
    "output_hidden_states",
    "pretraining_tp",
    "return_dict",
    "tf_legacy_loss",
    "use_bfloat16",
    "use_cache",
    // Dropout: the models here are run and trained without.
    "attention_dropout",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "hidden_dropout_prob",
    // Token ids the models themselves do not use.
    "decoder_start_token_id",
    "pad_token_id",
    "sep_token_id",
    // Generation defaults that transformers 4 wrote into config.json.
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    // Encoder-decoder bookkeeping; the fields that matter are checked by
    // `refuse_other_architectures`.
    "cross_attention_hidden_size",
    "tie_encoder_decoder",
];
