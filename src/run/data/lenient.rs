//! A line that is nearly JSON, as the programs write it that most files come from -> JSON.
//!
//! | written | by | read as |
//! |---|---|---|
//! | `NaN`, `Infinity`, `-Infinity` | Python's `json.dumps`, pandas | `null` |
//! | a number larger than any f64 | | `null` |
//! | half of a surrogate pair, `\ud83d` | `json.dumps` of text that was cut | U+FFFD |
//! | a byte order mark before it | files put one after the other | nothing |
//!
//! Only lines that strict parsing refuses come here, so what is JSON costs nothing. A `null` in a
//! field that somebody reads is an error there.

/// A line with what was changed in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mended {
    pub text: Vec<u8>,
    /// Numbers that are none, now `null`.
    pub n_not_numbers: usize,
    /// Halves of surrogate pairs, now U+FFFD.
    pub n_half_pairs: usize,
}

/// Words that stand for numbers which JSON has not.
const NOT_NUMBERS: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];
/// Bytes of `\uXXXX`.
const ESCAPE_LEN: usize = 6;

/// The line with everything of the table replaced; `None` where there is nothing of the kind.
pub(super) fn mended(line: &[u8]) -> Option<Mended> {
    let body = super::jsonl::without_mark(line);
    let mut out =
        Mended { text: Vec::with_capacity(line.len()), n_not_numbers: 0, n_half_pairs: 0 };
    let mut rest = body;
    while let Some(&byte) = rest.first() {
        let n = match byte {
            b'"' => string(rest, &mut out),
            b'-' | b'+' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => word(rest, &mut out),
            _ => copied(&rest[..1], &mut out),
        };
        rest = &rest[n..];
    }
    (body.len() < line.len() || out.n_not_numbers + out.n_half_pairs > 0).then_some(out)
}

fn copied(bytes: &[u8], out: &mut Mended) -> usize {
    out.text.extend_from_slice(bytes);
    bytes.len()
}

/// A number or a name outside of strings; returns its length.
fn word(rest: &[u8], out: &mut Mended) -> usize {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
    let n = rest.iter().position(|byte| !is_part(byte)).unwrap_or(rest.len());
    let text = &rest[..n];
    let is_too_large = || {
        text.iter().any(u8::is_ascii_digit)
            && std::str::from_utf8(text).is_ok_and(|t| t.parse().is_ok_and(f64::is_infinite))
    };
    if NOT_NUMBERS.contains(&text) || is_too_large() {
        out.text.extend_from_slice(b"null");
        out.n_not_numbers += 1;
    } else {
        out.text.extend_from_slice(text);
    }
    n
}

/// A string with its quotation marks; returns its length.
fn string(rest: &[u8], out: &mut Mended) -> usize {
    let mut at = copied(&rest[..1], out);
    while let Some(&byte) = rest.get(at) {
        at += match (byte, unicode_escape(&rest[at..])) {
            (b'"', _) => return at + copied(b"\"", out),
            (_, Some(0xd800..0xdc00))
                if matches!(unicode_escape(&rest[at + ESCAPE_LEN..]), Some(0xdc00..0xe000)) =>
            {
                copied(&rest[at..at + 2 * ESCAPE_LEN], out)
            }
            (_, Some(0xd800..0xe000)) => {
                out.n_half_pairs += 1;
                copied(b"\\ufffd", out)
            }
            (b'\\', _) => copied(&rest[at..rest.len().min(at + 2)], out),
            _ => copied(&rest[at..=at], out),
        };
    }
    at
}

/// The code unit of a `\uXXXX` that `text` begins with.
fn unicode_escape(text: &[u8]) -> Option<u16> {
    let digits = text.get(..ESCAPE_LEN)?.strip_prefix(b"\\u")?;
    let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
    is_hex.then(|| u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(line: &str) -> (Value, usize, usize) {
        let mended = mended(line.as_bytes()).unwrap_or_else(|| panic!("nothing to mend in {line}"));
        (serde_json::from_slice(&mended.text).unwrap(), mended.n_not_numbers, mended.n_half_pairs)
    }

    #[test]
    fn what_python_writes_for_numbers_that_are_none_is_null() {
        let line =
            r#"{"a": NaN, "b": [Infinity, -Infinity,1e999,-1e999], "c": -0.5e-3, "d": true}"#;
        assert_eq!(
            read(line),
            (json!({"a": null, "b": [null, null, null, null], "c": -0.5e-3, "d": true}), 5, 0)
        );
    }

    #[test]
    fn the_same_words_in_a_string_are_text() {
        let line = r#"{"NaN": "NaN \" Infinity", "x": NaN, "y": "\\"}"#;
        assert_eq!(read(line), (json!({"NaN": "NaN \" Infinity", "x": null, "y": "\\"}), 1, 0));
    }

    #[test]
    fn half_a_surrogate_pair_is_replaced_and_a_whole_one_kept() {
        let line = r#"{"a": "\ud83d half, \ude00 half, \ud83d\ude00 whole, \ud83d\ud83d\ude00, \\ud83d, \u00e9"}"#;
        let text = "\u{fffd} half, \u{fffd} half, \u{1f600} whole, \u{fffd}\u{1f600}, \\ud83d, é";
        assert_eq!(read(line), (json!({"a": text}), 0, 3));
    }

    #[test]
    fn a_byte_order_mark_in_front_of_a_line_is_nothing() {
        assert_eq!(read("\u{feff}{\"a\": 1}"), (json!({"a": 1}), 0, 0));
    }

    #[test]
    fn a_line_with_nothing_of_the_kind_is_left_to_the_strict_parser() {
        for line in [
            r#"{"a": 1, "b": "\ud83d\ude00"}"#,
            r#"{"a": nan}"#,
            r#"{"a": "open"#,
            r#"{"a": "\u12"#,
            "",
            "\"",
            "\\",
            r#"{"a": "\"#,
        ] {
            assert_eq!(mended(line.as_bytes()), None, "{line}");
        }
    }
}
