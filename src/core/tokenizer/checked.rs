//! Checks of a tokenizer.json from outside, before the `tokenizers` crate reads it.
//!
//! The crate trusts its files. Deep nesting costs it time that doubles with every level, an id of
//! four thousand million would make a table of as many entries here, and some declarations make it
//! panic, either when the file is read or only when a token is decoded, so every token is decoded
//! at once.
use super::TokenizerError;
use crate::contained::contained;
use std::path::{Path, PathBuf};
use tokenizers::{DecoderWrapper, Tokenizer};

/// Largest size of the file; the largest published ones have 35 MB (a quarter of a million tokens).
const MAX_BYTES: u64 = 512 << 20;
/// Deepest nesting; the deepest published ones have 8 levels.
const MAX_DEPTH: usize = 24;
/// Largest id: as many tokens as a model may have (see `dgpo_models::config`).
const MAX_TOKENS: usize = 1 << 24;

/// Reads a tokenizer.json.
/// # Errors
/// If it cannot be read, is too large or too deep, or the crate fails or panics on it.
pub(super) fn load(path: &Path) -> Result<Tokenizer, TokenizerError> {
    let failed = |why: String| TokenizerError::Load { path: PathBuf::from(path), why };
    let n_bytes = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
    if n_bytes > MAX_BYTES {
        return Err(failed(format!(
            "it has {n_bytes} bytes, more than any tokenizer.json ({MAX_BYTES})"
        )));
    }
    let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let depth = depth(&bytes);
    if depth > MAX_DEPTH {
        return Err(failed(format!("its brackets are nested {depth} deep, more than {MAX_DEPTH}")));
    }
    let unforeseen = |why: String| failed(format!("the file is damaged ({why})"));
    let tokenizer = contained(|| Tokenizer::from_bytes(&bytes))
        .map_err(unforeseen)?
        .map_err(|error| failed(error.to_string()))?;
    check(&tokenizer).map_err(failed)?;
    Ok(tokenizer)
}

fn check(tokenizer: &Tokenizer) -> Result<(), String> {
    let vocabulary = tokenizer.get_vocab(true);
    if let Some((token, id)) = vocabulary.iter().find(|(_, id)| **id as usize >= MAX_TOKENS) {
        return Err(format!(
            "the token {token:?} has id {id}; ids below {MAX_TOKENS} are possible"
        ));
    }
    if matches!(tokenizer.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
        return Ok(());
    }
    let mut ids: Vec<u32> = vocabulary.into_values().collect();
    ids.sort_unstable();
    contained(|| {
        ids.iter().all(|&id| tokenizer.decode(&[id], false).is_ok())
            && tokenizer.decode(&ids, false).is_ok()
    })
    .map_err(|why| format!("its decoder fails on its own tokens ({why})"))?
    .then_some(())
    .ok_or_else(|| "its decoder fails on its own tokens".to_owned())
}

/// Depth of the nesting of brackets in JSON text; of text that is not JSON, an arbitrary number.
pub(crate) fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut is_in_string, mut is_escaped) = (0usize, 0, false, false);
    for &byte in json {
        if is_in_string {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' => is_escaped = true,
                b'"' => is_in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => is_in_string = true,
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn load_changed(change: impl FnOnce(&mut Value)) -> Result<Tokenizer, String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("tokenizer.json");
        let text = std::fs::read(crate::testing::repository("configs/tiny/student/tokenizer.json"))
            .expect("built in");
        let mut json: Value = serde_json::from_slice(&text).expect("JSON");
        change(&mut json);
        std::fs::write(&path, json.to_string()).expect("written");
        load(&path).map_err(|error| {
            let text = error.to_string();
            assert!(text.contains("tokenizer.json") && text.contains("hint: "), "{text}");
            text
        })
    }

    #[test]
    fn a_tokenizer_that_would_panic_or_run_away_is_an_error_that_names_the_file() {
        assert!(load_changed(|_| {}).is_ok());
        let error = load_changed(|json| json["model"]["vocab"]["far"] = json!(u32::MAX))
            .expect_err("an absurd id");
        assert!(error.contains("\"far\" has id 4294967295"), "{error}");
        // A decoder that strips more characters than the tokens have.
        let strip = json!({"type": "Strip", "content": "e", "start": 0, "stop": 9});
        let error = load_changed(|json| json["decoder"] = strip).expect_err("no decoder");
        assert!(error.contains("its decoder fails on its own tokens"), "{error}");
        let nested = (0..60).fold(
            json!({"type": "NFC"}),
            |inner, _| json!({"type": "Sequence", "normalizers": [inner]}),
        );
        let error = load_changed(|json| json["normalizer"] = nested).expect_err("too deep");
        assert!(error.contains("deep, more than 24"), "{error}");
    }

    #[test]
    fn brackets_in_strings_do_not_count() {
        assert_eq!(depth(br#"{"a": ["]]]", "[[[\"["], "\\": 1}"#), 2);
        assert_eq!(depth(b"]]}"), 0);
    }
}
