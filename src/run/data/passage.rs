//! A passage, and what a line of a corpus may be.
//!
//! | a line | the passage |
//! |---|---|
//! | `{"id", "contents"}` | `contents` as it stands, whatever else is in the line: it begins with its title |
//! | `{"id", "title", "text"}` | `"TITLE"\nTEXT`, line ends of the title becoming spaces; the title may be empty |
//!
//! An id is a string or a whole number. All other keys are ignored, whatever they hold.
use super::jsonl::{LineText, MAX_PASSAGE_BYTES, RowFields, check_length};
use dgpo_core::{env::search::Passage, text::strip};
use serde::Deserialize;
use std::borrow::Cow;

/// A passage of a line; text without escapes is borrowed from it.
pub(super) struct ParsedPassage<'a> {
    pub id: Cow<'a, str>,
    pub contents: Cow<'a, str>,
    /// Halves of surrogate pairs that were replaced.
    pub n_half_pairs: usize,
}

impl From<ParsedPassage<'_>> for Passage {
    fn from(parsed: ParsedPassage<'_>) -> Self {
        Self { id: parsed.id.into_owned(), contents: parsed.contents.into_owned() }
    }
}

/// A line that is JSON and has the fields in their types: nearly every line, and parsed fast.
#[derive(Deserialize)]
struct RawPassage<'a> {
    #[serde(borrow)]
    id: LineText<'a, true>,
    #[serde(borrow, default)]
    contents: Option<LineText<'a, false>>,
    #[serde(borrow, default)]
    title: Option<LineText<'a, false>>,
    #[serde(borrow, default)]
    text: Option<LineText<'a, false>>,
}

/// A line as a passage: the fast way, and where that fails field by field, which reads more and
/// names what is wrong.
pub(super) fn parse(line: &[u8]) -> Result<ParsedPassage<'_>, String> {
    check_length(line.len(), MAX_PASSAGE_BYTES)?;
    let fast = serde_json::from_slice::<RawPassage<'_>>(line).ok().and_then(
        |RawPassage { id, contents, title, text }| {
            let contents = match (contents, title, text) {
                (Some(contents), ..) => contents.0,
                (None, Some(title), Some(text)) if !strip(&text.0).is_empty() => {
                    Cow::Owned(titled(&title.0, &text.0))
                }
                _ => return None,
            };
            Some(ParsedPassage { id: id.0, contents, n_half_pairs: 0 })
        },
    );
    let parsed = fast.map_or_else(|| by_field(line), Ok)?;
    if parsed.id.is_empty() {
        return Err("field `id` is empty; hint: every passage needs an id of its own".to_owned());
    }
    if strip(&parsed.contents).is_empty() {
        return Err("field `contents` is blank; hint: it holds \"TITLE\"\\nTEXT; remove passages \
                    without text"
            .to_owned());
    }
    Ok(parsed)
}

fn by_field(line: &[u8]) -> Result<ParsedPassage<'_>, String> {
    let fields = RowFields::parse(line)?;
    let id = fields.string("id")?;
    let has_text = fields.object.contains_key("text") || fields.object.contains_key("title");
    let contents = match fields.get("contents") {
        None if has_text => {
            let (text, title) = (text_of(&fields, "text")?, text_of(&fields, "title")?);
            if strip(&text).is_empty() {
                return Err("field `text` is blank; hint: remove passages without text".to_owned());
            }
            titled(&title, &text)
        }
        _ => text_of(&fields, "contents")?,
    };
    Ok(ParsedPassage {
        id: id.into(),
        contents: contents.into(),
        n_half_pairs: fields.n_half_pairs,
    })
}

/// A field that must be text: unlike an id, a number is none.
fn text_of(fields: &RowFields, key: &str) -> Result<String, String> {
    match fields.value(key)? {
        serde_json::Value::Number(_) => Err(format!(
            "field `{key}` must be a string, found a number; hint: put it in quotation marks"
        )),
        _ => fields.string(key),
    }
}

/// `contents` of a passage whose title stands apart.
fn titled(title: &str, text: &str) -> String {
    let title: String =
        title.chars().map(|c| if matches!(c, '\n' | '\r') { ' ' } else { c }).collect();
    format!("\"{title}\"\n{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<(String, String), String> {
        parse(line.as_bytes()).map(|parsed| (parsed.id.into_owned(), parsed.contents.into_owned()))
    }

    #[test]
    fn ids_are_strings_or_whole_numbers() {
        for (id, wanted) in [
            ("0", "0"),
            ("-7", "-7"),
            ("18446744073709551615", "18446744073709551615"),
            ("\"1\"", "1"),
        ] {
            assert_eq!(read(&format!("{{\"id\": {id}, \"contents\": \"a\"}}")).unwrap().0, wanted);
            assert_eq!(
                read(&format!("{{\"id\": {id}, \"contents\": \"a\", \"x\": NaN}}")).unwrap().0,
                wanted
            );
        }
    }

    #[test]
    fn a_title_that_stands_apart_becomes_the_first_line() {
        for (line, wanted) in [
            (
                r#"{"id": "0", "title": "A \"B\"", "text": "first\nsecond"}"#,
                "\"A \"B\"\"\nfirst\nsecond",
            ),
            (r#"{"id": "1", "text": "t", "title": "", "contents": null}"#, "\"\"\nt"),
            (r#"{"id": "2", "title": "two\nlines", "text": "t", "x": NaN}"#, "\"two lines\"\nt"),
            (r#"{"id": "3", "title": ["ignored"], "contents": "\"C\"\nwhole"}"#, "\"C\"\nwhole"),
            (r#"{"id": "4", "title": "T", "contents": "whole", "text": "t"}"#, "whole"),
        ] {
            assert_eq!(read(line).unwrap().1, wanted, "{line}");
        }
    }

    #[test]
    fn what_python_writes_and_json_has_not_is_read() {
        assert_eq!(
            read(r#"{"id": "0", "contents": "a", "score": NaN, "x": [-Infinity, 1e999]}"#)
                .unwrap()
                .1,
            "a"
        );
        let half = parse(br#"{"id": "1", "contents": "half \ud83d"}"#).unwrap();
        assert_eq!((half.contents.as_ref(), half.n_half_pairs), ("half \u{fffd}", 1));
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field_with_what_to_do() {
        for (bad, what) in [
            (r#"{"id": "x"}"#, "field `contents` is missing"),
            (r#"{"contents": "x"}"#, "field `id` is missing"),
            (r#"{"id": 3.5, "contents": "x"}"#, "field `id` must be a string or a whole number"),
            (
                r#"{"id": 36893488147419103232, "contents": "x"}"#,
                "field `id` must be a string or a whole number",
            ),
            (
                r#"{"id": ["x"], "contents": "x"}"#,
                "field `id` must be a string, found a list; hint: write one text",
            ),
            (r#"{"id": null, "contents": "x"}"#, "field `id` is null; hint: write its value"),
            (r#"{"id": "x", "contents": null}"#, "field `contents` is null"),
            (
                r#"{"id": "x", "contents": 5}"#,
                "field `contents` must be a string, found a number; hint: put it in quotation \
                 marks",
            ),
            (
                r#"{"id": "x", "contents": ["x"]}"#,
                "field `contents` must be a string, found a list; hint: write one text",
            ),
            (r#"{"id": "x", "contents": ""}"#, "field `contents` is blank"),
            (r#"{"id": "x", "contents": " \n\t\u00a0"}"#, "field `contents` is blank"),
            (r#"{"id": "x", "text": "x"}"#, "field `title` is missing"),
            (r#"{"id": "x", "title": "x", "text": " "}"#, "field `text` is blank"),
            (r#"{"id": "x", "title": "x", "text": null}"#, "field `text` is null"),
            (r#"{"id": "x", "text": null, "contents": null}"#, "field `text` is null"),
            (r#"{"id": "x", "title": null, "text": "x"}"#, "field `title` is null"),
            (r#"{"id": "x", "title": "x"}"#, "field `text` is missing"),
            (r#"{"id": "x", "title": NaN, "text": "x"}"#, "field `title` is null or NaN"),
            (r#"{"id": "x", "#, "not JSON"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.contains(what) && error.contains("hint: "), "{error}");
        }
    }
}
