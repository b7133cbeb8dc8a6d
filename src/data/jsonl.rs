//! JSON Lines, plain or gzip, with errors that name file, line, field and remedy.
//!
//! For files that fit into memory (questions, episodes). Lines of white space alone are skipped; unknown keys are ignored.

use super::DataError;
use dgpo_models::files::replace_file;
use serde::Serialize;
use serde_json::{Map, Value};
use std::{
    io::{BufWriter, ErrorKind, Read, Write},
    path::Path,
};

/// The first bytes of a gzip member.
pub(crate) const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// What some editors put in front of UTF-8 text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The text behind a byte order mark, if there is one.
pub(crate) fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)
}

/// The file's bytes; gzip is recognised by its first two bytes, not by the name, and unpacked (all members of it).
pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>, DataError> {
    let io = |source| DataError::Io { path: path.to_owned(), source };
    let packed = std::fs::read(path).map_err(io)?;
    if !packed.starts_with(&GZIP_MAGIC) {
        return Ok(packed);
    }
    let mut plain = Vec::with_capacity(packed.len() * 4);
    // The packed bytes are in memory: what fails here is what they say, not the disk.
    flate2::read::MultiGzDecoder::new(packed.as_slice()).read_to_end(&mut plain).map_err(|error| DataError::Format {
        path: path.to_owned(),
        why: match error.kind() {
            ErrorKind::UnexpectedEof => "the gzip file is cut off; hint: download or copy it again".to_owned(),
            _ => format!("the gzip file is damaged ({error}); hint: download or copy it again"),
        },
    })?;
    Ok(plain)
}

/// The object of one line. Accessors return what is wrong as text; the caller adds file and line.
pub(crate) struct Fields(pub Map<String, Value>);

impl Fields {
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        match serde_json::from_slice(line) {
            Ok(Value::Object(map)) => Ok(Self(map)),
            Ok(other) => Err(format!("expected a JSON object, found {}; hint: one object a line", kind(&other))),
            Err(error) => Err(format!("not JSON ({}); hint: one whole object a line, UTF-8", json_error(&error))),
        }
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// A string; a number is taken as its digits (ids are written both ways).
    pub fn string(&self, key: &str) -> Result<String, String> {
        match self.get(key) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(Value::Number(number)) => Ok(number.to_string()),
            Some(other) => Err(format!("field `{key}` must be a string, found {}; hint: put it in quotation marks", kind(other))),
            None => Err(format!("field `{key}` is missing; hint: the line has {}", self.keys())),
        }
    }

    pub fn optional_string(&self, key: &str) -> Result<Option<String>, String> {
        self.get(key).map(|_| self.string(key)).transpose()
    }

    /// A list of at least one string, none of them blank.
    pub fn answers(&self, key: &str) -> Result<Vec<String>, String> {
        match self.get(key) {
            Some(value) => answers(value, key),
            None => Err(format!("field `{key}` is missing; hint: the line has {}", self.keys())),
        }
    }

    fn keys(&self) -> String {
        if self.0.is_empty() { "no fields".to_owned() } else { self.0.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ") }
    }
}

/// `value` as gold answers.
pub(crate) fn answers(value: &Value, key: &str) -> Result<Vec<String>, String> {
    let Value::Array(items) = value else {
        return Err(format!("field `{key}` must be a list of strings, found {}; hint: write [\"answer\"]", kind(value)));
    };
    if items.is_empty() {
        return Err(format!("field `{key}` is empty; hint: a question needs at least one gold answer, or leave the row out"));
    }
    items
        .iter()
        .map(|item| match item {
            Value::String(text) if super::text::strip(text).is_empty() => {
                Err(format!("field `{key}` holds a blank answer; hint: it would match nothing or everything, remove it"))
            }
            Value::String(text) => Ok(text.clone()),
            other => Err(format!("field `{key}` must hold strings only, found {}; hint: put it in quotation marks", kind(other))),
        })
        .collect()
}

pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The parser's message with its column, without its line number (which counts within the one line it was given).
pub(crate) fn json_error(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let what = message.rsplit_once(" at line ").map_or(message.as_str(), |(what, _)| what);
    format!("{what}, column {}", error.column())
}

/// Calls `row` with every object of the file, in order; what it rejects becomes an error with the line number.
pub(crate) fn for_each_row(path: &Path, mut row: impl FnMut(&Fields) -> Result<(), String>) -> Result<(), DataError> {
    for (line_idx, line) in without_mark(&read_bytes(path)?).split(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        Fields::parse(line).and_then(|fields| row(&fields)).map_err(|why| DataError::Line {
            path: path.to_owned(),
            line: line_idx + 1,
            why,
        })?;
    }
    Ok(())
}

/// Writes one object a line (gzip where the name ends in `.gz`); the file appears whole or not at all.
pub(crate) fn write_rows<T: Serialize>(path: &Path, rows: &[T]) -> Result<(), DataError> {
    let io = |source| DataError::Write { path: path.to_owned(), source };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(io)?;
    let is_packed = path.extension().is_some_and(|extension| extension == "gz");
    let written = replace_file(path, |unfinished| {
        let mut plain = BufWriter::new(unfinished.as_file());
        if is_packed {
            let mut packer = flate2::write::GzEncoder::new(plain, flate2::Compression::default());
            write_lines(&mut packer, rows)?;
            return packer.finish()?.flush();
        }
        write_lines(&mut plain, rows)?;
        plain.flush()
    });
    written.map_err(io)
}

fn write_lines<T: Serialize>(mut out: impl Write, rows: &[T]) -> std::io::Result<()> {
    for row in rows {
        serde_json::to_writer(&mut out, row)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_written_says_so() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        let error = write_rows(&folder.path().join("file/rows.jsonl"), &[1]).unwrap_err().to_string();
        assert!(error.starts_with("cannot write ") && error.contains("hint: check free space"), "{error}");
    }
}
