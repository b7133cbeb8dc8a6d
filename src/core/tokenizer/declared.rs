//! A check that added tokens get the ids that the model's files declare for them.
//!
//! The `tokenizers` crate numbers added tokens by itself: those that the vocabulary lacks follow it
//! one by one, in the order of the file. Where the file declares a gap or another order, the crate
//! gives other ids without an error, and a text with such a token becomes another text.
use super::{Tokenizer, TokenizerError};
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// A file beside the tokenizer's own, which declares the added tokens a second time.
pub const CONFIG_FILE: &str = "tokenizer_config.json";

#[derive(Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    added_tokens: Vec<Declared>,
}

#[derive(Deserialize)]
struct Declared {
    id: u32,
    content: String,
}

#[derive(Deserialize)]
struct ConfigFile {
    /// Id as text -> token.
    #[serde(default)]
    added_tokens_decoder: BTreeMap<String, Content>,
}

#[derive(Deserialize)]
struct Content {
    content: String,
}

impl Tokenizer {
    /// Compares the ids declared in tokenizer.json, and in the tokenizer_config.json beside it,
    /// with those that texts get.
    /// # Errors
    /// If a token's ids differ or a declared token is unknown (the first such token is named); if a
    /// file cannot be read.
    pub(super) fn check_declared_ids(&self) -> Result<(), TokenizerError> {
        for Declared { id, content } in read::<TokenizerFile>(&self.path)?.added_tokens {
            self.check_id(&content, id, &self.path)?;
        }
        let config = self.path.with_file_name(CONFIG_FILE);
        if !config.is_file() {
            return Ok(());
        }
        for (id, Content { content }) in read::<ConfigFile>(&config)?.added_tokens_decoder {
            let unreadable = || {
                load_error(
                    &config,
                    format!("added_tokens_decoder has the key {id:?}, which is no id"),
                )
            };
            self.check_id(&content, id.parse().map_err(|_| unreadable())?, &config)?;
        }
        Ok(())
    }

    fn check_id(&self, token: &str, declared: u32, path: &Path) -> Result<(), TokenizerError> {
        match self.token_id(token) {
            Some(given) if given == declared => Ok(()),
            given => Err(TokenizerError::DeclaredId {
                token: token.to_owned(),
                declared,
                given,
                path: path.to_owned(),
            }),
        }
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, TokenizerError> {
    let bytes = std::fs::read(path).map_err(|error| load_error(path, error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| load_error(path, error.to_string()))
}

fn load_error(path: &Path, why: String) -> TokenizerError {
    TokenizerError::Load { path: PathBuf::from(path), why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::TOKENIZER_FILE;
    use serde_json::{Value, json};

    const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/tiny/student");

    /// The error of loading the tiny tokenizer with changed files.
    fn error_of(change: impl Fn(&mut Value), config: Option<Value>) -> Option<String> {
        let mut json: Value = serde_json::from_slice(
            &std::fs::read(Path::new(TINY).join(TOKENIZER_FILE)).expect("read"),
        )
        .expect("JSON");
        change(&mut json);
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join(TOKENIZER_FILE), json.to_string()).expect("written");
        if let Some(config) = config {
            std::fs::write(folder.path().join(CONFIG_FILE), config.to_string()).expect("written");
        }
        Tokenizer::from_path(folder.path()).err().map(|error| error.to_string())
    }

    fn last_added(json: &mut Value) -> &mut Value {
        json["added_tokens"].as_array_mut().expect("a list").last_mut().expect("an added token")
    }

    #[test]
    fn a_hole_in_the_declared_ids_is_an_error_that_names_token_and_both_ids() {
        assert_eq!(error_of(|_| {}, None), None);
        let error = error_of(
            |json| {
                let token = last_added(json);
                token["id"] = json!(token["id"].as_u64().expect("an id") + 1);
            },
            None,
        )
        .expect("a hole before <|im_end|>");
        let id = Tokenizer::from_path(Path::new(TINY))
            .expect("loads")
            .token_id("<|im_end|>")
            .expect("known");
        for part in [
            "\"<|im_end|>\"",
            TOKENIZER_FILE,
            &format!("declares id {}", id + 1),
            &format!("would get {id}"),
            "hint: ",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn added_tokens_in_another_order_than_their_ids_are_refused() {
        let swapped = |json: &mut Value| {
            let tokens = json["added_tokens"].as_array_mut().expect("a list");
            let n = tokens.len();
            let (a, b) = (tokens[n - 1]["id"].clone(), tokens[n - 2]["id"].clone());
            (tokens[n - 1]["id"], tokens[n - 2]["id"]) = (b, a);
        };
        assert!(error_of(swapped, None).expect("swapped ids").contains("declares id"));
    }

    #[test]
    fn the_config_beside_it_must_declare_the_same_ids() {
        let id = Tokenizer::from_path(Path::new(TINY))
            .expect("loads")
            .token_id("<|im_end|>")
            .expect("known");
        let config = |id: String, token: &str| {
            Some(json!({"added_tokens_decoder": {id: {"content": token}}}))
        };
        assert_eq!(error_of(|_| {}, config(id.to_string(), "<|im_end|>")), None);
        let error =
            error_of(|_| {}, config((id + 3).to_string(), "<|im_end|>")).expect("another id");
        assert!(
            error.contains(CONFIG_FILE) && error.contains(&format!("would get {id}")),
            "{error}"
        );
        let error =
            error_of(|_| {}, config((id + 1).to_string(), "<|extra|>")).expect("an unknown token");
        assert!(error.contains("\"<|extra|>\"") && error.contains("would get none"), "{error}");
        assert!(
            error_of(|_| {}, config("x".to_owned(), "<|im_end|>"))
                .expect("no id")
                .contains("no id")
        );
    }
}
