//! The float type that a config.json names: of the weights beside it, whatever the file it was
//! copied from says.
use super::fields::Fields;
use crate::ModelError;
use std::{fs, ops::Range, path::Path};

/// The text of `original` for a folder whose own config.json, `written` here, names the type that
/// its weights are stored in.
/// # Errors
/// If one of them cannot be read.
pub(crate) fn text_for_stored(original: &Path, written: &Path) -> Result<String, ModelError> {
    let hint = "check its permissions";
    let text = fs::read_to_string(original).map_err(|source| ModelError::Read {
        path: original.to_owned(),
        source,
        hint,
    })?;
    let stored = Fields::read(written)?.take("torch_dtype");
    Ok(match stored.as_ref().and_then(|stored| stored.as_str()) {
        Some(stored) => with_stored_dtype(&text, stored),
        None => text,
    })
}

/// The text of a config.json with `stored` for the float type that it names, whichever of the two
/// keys it has for that (transformers 4 and 5); with a `torch_dtype` in front where it has neither.
/// Nothing else of the text changes.
fn with_stored_dtype(text: &str, stored: &str) -> String {
    let values: Vec<Range<usize>> =
        ["torch_dtype", "dtype"].into_iter().filter_map(|key| value_of(text, key)).collect();
    let Some(last) = values.last() else {
        return text.replacen('{', &format!("{{\n  \"torch_dtype\": \"{stored}\","), 1);
    };
    let first = &values[0];
    let (a, b) = if first.start <= last.start { (first, last) } else { (last, first) };
    match values.len() {
        1 => format!("{}\"{stored}\"{}", &text[..a.start], &text[a.end..]),
        _ => format!(
            "{}\"{stored}\"{}\"{stored}\"{}",
            &text[..a.start],
            &text[a.end..b.start],
            &text[b.end..]
        ),
    }
}

/// Place of the value of a key of the outermost object, if it is a string or null. The text is
/// JSON.
fn value_of(text: &str, key: &str) -> Option<Range<usize>> {
    let (mut depth, mut at) = (0usize, 0);
    // The key that a value is waited for, in the outermost object.
    let mut is_wanted = false;
    while let Some(c) = text[at..].chars().next() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth = depth.saturating_sub(1),
            '"' => {
                let length = string_length(&text[at..]);
                let is_key = text[at + length..].trim_start().starts_with(':');
                if depth == 1 && is_key {
                    is_wanted = &text[at + 1..at + length - 1] == key;
                } else if depth == 1 && is_wanted {
                    return Some(at..at + length);
                }
                at += length;
                continue;
            }
            'n' if depth == 1 && is_wanted && text[at..].starts_with("null") => {
                return Some(at..at + "null".len());
            }
            _ => {}
        }
        at += c.len_utf8();
    }
    None
}

/// Bytes of the JSON string that a text begins with, quotation marks included.
fn string_length(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !is_escaped => return at + 1,
            _ => is_escaped = c == '\\' && !is_escaped,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_type_changes() {
        let both = "{ \"a\": {\"dtype\": \"x\"}, \"dtype\" : \"bfloat16\", \"b\": [\"dtype\", 1],\n\"torch_dtype\":null, \"c\\\"\": \"torch_dtype\" }";
        let expected = "{ \"a\": {\"dtype\": \"x\"}, \"dtype\" : \"float32\", \"b\": [\"dtype\", 1],\n\"torch_dtype\":\"float32\", \"c\\\"\": \"torch_dtype\" }";
        assert_eq!(with_stored_dtype(both, "float32"), expected);
        let one = r#"{"torch_dtype": "float16", "n": 1.0e-5, "t": "\u00e9 \\"}"#;
        assert_eq!(with_stored_dtype(one, "bfloat16"), one.replace("float16", "bfloat16"));
    }

    #[test]
    fn a_config_that_names_no_type_gets_one() {
        let text = with_stored_dtype("{\n  \"a\": {\"dtype\": \"x\"}\n}\n", "bfloat16");
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json, serde_json::json!({"torch_dtype": "bfloat16", "a": {"dtype": "x"}}));
    }
}
