//! JSON Lines, plain or gzip, with errors that name file, line, field and remedy.
//!
//! For files that fit into memory (questions, episodes). Lines of white space alone are skipped;
//! unknown keys are ignored. Every reader of JSON Lines goes through [`RowFields::parse`], the
//! corpus where its own faster parser gives up.

use super::{DataError, lenient};
use dgpo_models::files::replace_file;
use flate2::read::MultiGzDecoder;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, Unexpected, Visitor},
};
use serde_json::{Map, Value};
use std::{
    borrow::Cow,
    collections::BTreeSet,
    fmt,
    fs::File,
    io::{BufReader, BufWriter, ErrorKind, Read, Seek, Write},
    path::Path,
    sync::{Mutex, PoisonError},
};

/// The first bytes of a gzip member.
pub(crate) const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// A longer line is no question or episode but a file of another kind; nothing is parsed to find
/// that out. A tree of JSON values takes up to thirty times the bytes of its text.
const MAX_LINE_BYTES: usize = 16 << 20;
/// The same of a passage, of which no more is kept than its text.
pub(super) const MAX_PASSAGE_BYTES: usize = 256 << 20;

/// A gzip file may always unpack to this many bytes.
const SMALL_UNPACKED_BYTES: u64 = 256 << 20;
/// Beyond that to this many times its own size. Text shrinks to a third or a tenth, very repetitive
/// records to a fiftieth; the format's own limit, of a file made to fill somebody's memory, is
/// 1,032.
const MAX_GZIP_RATIO: u64 = 200;
/// And never to more than this, as it is unpacked into memory. Wikipedia 2018, the largest corpus
/// in use, has 14 GB.
const MAX_UNPACKED_BYTES: u64 = 32 << 30;

/// Bytes that a gzip file of `packed` bytes may unpack to.
pub(super) fn unpacked_limit(packed: u64) -> u64 {
    packed.saturating_mul(MAX_GZIP_RATIO).clamp(SMALL_UNPACKED_BYTES, MAX_UNPACKED_BYTES)
}

/// Mark that some editors put before UTF-8 text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The text after a byte order mark, if there is one.
pub(crate) fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)
}

/// The file's bytes; gzip is recognised by its first two bytes, not by the name, and unpacked (all
/// members of it).
pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>, DataError> {
    let packed = std::fs::read(path).map_err(DataError::io(path))?;
    if !packed.starts_with(&GZIP_MAGIC) {
        return Ok(packed);
    }
    unpacked(path, &packed, unpacked_limit(packed.len() as u64))
}

fn unpacked(path: &Path, packed: &[u8], limit: u64) -> Result<Vec<u8>, DataError> {
    let mut plain = Vec::with_capacity(packed.len() * 4);
    // The packed bytes are in memory: what fails here is what they say, not the disk.
    let unpacked = MultiGzDecoder::new(packed).take(limit + 1).read_to_end(&mut plain);
    let why = match unpacked {
        Ok(_) if plain.len() as u64 <= limit => return Ok(plain),
        Ok(_) => format!(
            "the gzip file of {} bytes unpacks to more than {limit}, which is not what text does; \
             hint: if that is right, unpack it to disk: gunzip --keep {}",
            packed.len(),
            path.display()
        ),
        Err(error) => {
            let what = match error.kind() {
                ErrorKind::UnexpectedEof => "cut off".to_owned(),
                _ => format!("damaged ({error})"),
            };
            format!("the gzip file is {what}; hint: download or copy it again")
        }
    };
    Err(DataError::format(path, why))
}

/// Text of a file, of up to `max` bytes from its beginning, unpacked where it is gzip. Damage
/// further on in a packed file does not matter to what came before it.
pub(super) fn beginning(mut file: &File, max: u64) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    file.take(max).read_to_end(&mut head)?;
    if !head.starts_with(&GZIP_MAGIC) {
        return Ok(head);
    }
    file.rewind()?;
    let mut text = Vec::new();
    _ = MultiGzDecoder::new(BufReader::new(file)).take(max).read_to_end(&mut text);
    Ok(text)
}

/// Refuses what is too long for a line of its kind.
pub(super) fn check_length(n_bytes: usize, most: usize) -> Result<(), String> {
    match n_bytes <= most {
        true => Ok(()),
        false => Err(format!(
            "the line has {n_bytes} bytes, more than {most}; hint: one JSON object a line, not one \
             list of all"
        )),
    }
}

/// The object of one line. Accessors return what is wrong as text; the caller adds file and line.
pub(crate) struct RowFields {
    pub object: Map<String, Value>,
    /// Of the file, from 1.
    pub line: usize,
    /// Numbers that are none (`NaN`), read as null.
    n_not_numbers: usize,
    /// Halves of surrogate pairs, read as U+FFFD.
    pub n_half_pairs: usize,
}

impl RowFields {
    pub(crate) fn new(object: Map<String, Value>, line: usize) -> Self {
        Self { object, line, n_not_numbers: 0, n_half_pairs: 0 }
    }

    /// Strictly, and where that fails as [`lenient`] mends it.
    pub(crate) fn parse(line: &[u8]) -> Result<Self, String> {
        check_length(line.len(), MAX_LINE_BYTES)?;
        let strict = match serde_json::from_slice(line) {
            Ok(value) => return Self::of(value),
            Err(error) => error,
        };
        if let Some(lenient::Mended { text, n_not_numbers, n_half_pairs }) = lenient::mended(line)
            && let Ok(value) = serde_json::from_slice(&text)
        {
            return Ok(Self { n_not_numbers, n_half_pairs, ..Self::of(value)? });
        }
        Err(format!("not JSON ({}); hint: one whole object a line, UTF-8", json_error(&strict)))
    }

    fn of(value: Value) -> Result<Self, String> {
        match value {
            Value::Object(object) => Ok(Self::new(object, 0)),
            other => Err(format!(
                "expected a JSON object, found {}; hint: one object a line",
                kind(&other)
            )),
        }
    }

    /// The value of a field that may be left out; null is as good as absent.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// The value of a field that must be there.
    pub(crate) fn value(&self, key: &str) -> Result<&Value, String> {
        match self.object.get(key) {
            Some(Value::Null) => {
                Err(wrong(key, format_args!("is {}", self.null()), WRITE_OR_REMOVE))
            }
            Some(value) => Ok(value),
            None => Err(wrong(key, "is missing", &format!("the line has {}", self.keys()))),
        }
    }

    /// A string; a whole number is taken as its digits (ids are written both ways).
    pub(crate) fn string(&self, key: &str) -> Result<String, String> {
        const STRING: &str = "must be a string";
        match self.value(key)? {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) if !number.is_f64() => Ok(number.to_string()),
            // Its digits are gone: two of them may have become one.
            Value::Number(_) => Err(wrong(
                key,
                format_args!("{STRING} or a whole number of at most 64 bits"),
                QUOTE,
            )),
            Value::Bool(_) => Err(wrong(key, format_args!("{STRING}, found a boolean"), QUOTE)),
            other => {
                let what = format_args!("{STRING}, found {}", kind(other)).to_string();
                Err(wrong(key, what, "write one text"))
            }
        }
    }

    pub(crate) fn optional_string(&self, key: &str) -> Result<Option<String>, String> {
        self.get(key).map(|_| self.string(key)).transpose()
    }

    /// At least one string, none of them blank.
    pub(crate) fn answers(&self, key: &str) -> Result<Vec<String>, String> {
        self.value(key).and_then(|value| answers(value, key)).map_err(|why| {
            match self.n_not_numbers {
                0 => why,
                _ => why.replace("holds null", "holds null or NaN"),
            }
        })
    }

    fn null(&self) -> &'static str {
        if self.n_not_numbers > 0 { "null or NaN" } else { "null" }
    }

    fn keys(&self) -> String {
        if self.object.is_empty() {
            return "no fields".to_owned();
        }
        self.object.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ")
    }
}

/// Remedies.
const QUOTE: &str = "put it in quotation marks";
const WRITE_OR_REMOVE: &str = "write its value, or remove the row";
const LIST: &str = "write [\"answer\"]";

/// A complaint about a field.
fn wrong(key: &str, what: impl fmt::Display, hint: &str) -> String {
    format!("field `{key}` {what}; hint: {hint}")
}

/// `value` as gold answers: a list of strings, or one string alone.
pub(crate) fn answers(value: &Value, key: &str) -> Result<Vec<String>, String> {
    let items = match value {
        Value::Array(items) => items.as_slice(),
        // Files that went through pandas hold lists as text, which no prediction would ever equal.
        Value::String(text)
            if text.trim_start().starts_with('[') && text.trim_end().ends_with(']') =>
        {
            let what = format!("is a list written as text, {text:?}");
            return Err(wrong(key, what, &format!("{LIST} without quotation marks around it")));
        }
        Value::String(_) => std::slice::from_ref(value),
        Value::Null => return Err(wrong(key, "is null", WRITE_OR_REMOVE)),
        other => {
            let what = format!("must be a list of strings, found {}", kind(other));
            return Err(wrong(key, what, LIST));
        }
    };
    if items.is_empty() {
        let hint = "a question needs at least one gold answer, or leave the row out";
        return Err(wrong(key, "is empty", hint));
    }
    let answer = |(item, place): (&Value, usize)| match item {
        Value::String(text) if dgpo_core::text::strip(text).is_empty() => {
            let hint = "it would match nothing or everything, remove it";
            Err(wrong(key, "holds a blank answer", hint))
        }
        Value::String(text) => Ok(text.clone()),
        Value::Null => {
            let what = format!("holds null in place {place}");
            Err(wrong(key, what, "remove it, or leave the row out"))
        }
        other => {
            let what = format!("must hold strings only, found {} in place {place}", kind(item));
            let is_word = matches!(other, Value::Number(_) | Value::Bool(_));
            Err(wrong(key, what, if is_word { QUOTE } else { LIST }))
        }
    };
    items.iter().zip(1..).map(answer).collect()
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

/// The parser's message with its column, without its line number (which counts within the one line
/// it was given).
pub(crate) fn json_error(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let what = message.rsplit_once(" at line ").map_or(message.as_str(), |(what, _)| what);
    format!("{what}, column {}", error.column())
}

/// A string borrowed from its line where it has no escapes. With `OR_NUMBER` a whole number is
/// taken as its digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LineText<'a, const OR_NUMBER: bool>(pub(crate) Cow<'a, str>);

impl<'de: 'a, 'a, const OR_NUMBER: bool> Deserialize<'de> for LineText<'a, OR_NUMBER> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor<const OR_NUMBER: bool>;
        impl<'de, const OR_NUMBER: bool> Visitor<'de> for TextVisitor<OR_NUMBER> {
            type Value = LineText<'de, OR_NUMBER>;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string")?;
                if OR_NUMBER { formatter.write_str(" or a whole number") } else { Ok(()) }
            }
            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(LineText(Cow::Borrowed(text)))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(LineText(Cow::Owned(text.to_owned())))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
                match OR_NUMBER {
                    true => Ok(LineText(Cow::Owned(number.to_string()))),
                    false => Err(E::invalid_type(Unexpected::Unsigned(number), &self)),
                }
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
                match OR_NUMBER {
                    true => Ok(LineText(Cow::Owned(number.to_string()))),
                    false => Err(E::invalid_type(Unexpected::Signed(number), &self)),
                }
            }
        }
        deserializer.deserialize_any(TextVisitor)
    }
}

/// Calls `row` with every object of the file, in order; what it rejects becomes an error with the
/// line number. Text that had to be replaced is said once.
pub(crate) fn for_each_row(
    path: &Path,
    mut row: impl FnMut(&RowFields) -> Result<(), String>,
) -> Result<(), DataError> {
    let bytes = read_bytes(path)?;
    check_encoding(path, &bytes)?;
    let mut half_pairs = HalfPairs::default();
    for (line_idx, line) in without_mark(&bytes).split(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let parsed = RowFields::parse(line).and_then(|fields| {
            let fields = RowFields { line: line_idx + 1, ..fields };
            half_pairs.add(fields.n_half_pairs, fields.line);
            row(&fields)
        });
        parsed.map_err(|why| DataError::line(path, line_idx + 1, why))?;
    }
    half_pairs.tell(path);
    Ok(())
}

/// Halves of surrogate pairs in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HalfPairs {
    n: usize,
    first_line: usize,
}

impl HalfPairs {
    /// Counts those of a line.
    pub(crate) fn add(&mut self, n: usize, line: usize) {
        if n > 0 && self.n == 0 {
            self.first_line = line;
        }
        self.n += n;
    }

    /// Says so once.
    pub(crate) fn tell(self, path: &Path) {
        let Self { n, first_line } = self;
        if n > 0 {
            let what = "read as U+FFFD; hint: the text was cut within a character when it was made";
            warn_once(format!(
                "{}: {n} halves of surrogate pairs, the first in line {first_line}, are {what}",
                path.display()
            ));
        }
    }
}

/// Logs a warning about a file the first time it is due: a file is read again for every evaluation
/// of a run.
pub(crate) fn warn_once(text: String) {
    // Where nobody listens (a look at the file before a run starts), nothing is said.
    if !tracing::enabled!(tracing::Level::WARN) {
        return;
    }
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let is_new = SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(text.clone());
    if is_new {
        tracing::warn!("{text}");
    }
}

/// # Errors
/// If the text is UTF-16, whose first two bytes say so.
pub(super) fn check_encoding(path: &Path, text: &[u8]) -> Result<(), DataError> {
    match text {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Err(DataError::format(
            path,
            format!(
                "the text is UTF-16; hint: iconv -f UTF-16 -t UTF-8 {0} > {0}.utf8",
                path.display()
            ),
        )),
        _ => Ok(()),
    }
}

/// Writes one object a line (gzip where the name ends in `.gz`); the file appears whole or not at
/// all.
pub(crate) fn write_rows<T: Serialize>(path: &Path, rows: &[T]) -> Result<(), DataError> {
    let io = |source| DataError::Write { path: path.to_owned(), source };
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
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
    fn a_gzip_file_that_unpacks_to_far_more_than_text_does_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl.gz");
        write_rows(&path, &vec!["the same words again and again, ".repeat(100); 100]).unwrap();
        let packed = std::fs::read(&path).unwrap();
        let plain = read_bytes(&path).unwrap();
        assert!(plain.len() > 100 * packed.len(), "{} of {}", packed.len(), plain.len());
        assert_eq!(unpacked(&path, &packed, plain.len() as u64).unwrap(), plain);
        let error = unpacked(&path, &packed, plain.len() as u64 - 1).unwrap_err().to_string();
        assert!(
            error.contains("rows.jsonl.gz") && error.contains("unpacks to more than"),
            "{error}"
        );
        assert!(
            error.contains(&format!(
                "hint: if that is right, unpack it to disk: gunzip --keep {}",
                path.display()
            )),
            "{error}"
        );
    }

    #[test]
    fn the_limit_of_a_gzip_file_grows_with_it_up_to_what_memory_holds() {
        assert_eq!(unpacked_limit(1), 256 << 20);
        assert_eq!(unpacked_limit(10 << 20), 2000 << 20);
        assert_eq!(unpacked_limit(u64::MAX), 32 << 30);
    }

    #[test]
    fn a_line_beyond_all_measure_is_refused_with_its_length() {
        let line = vec![b' '; MAX_LINE_BYTES + 1];
        let error = RowFields::parse(&line).err().unwrap();
        assert!(
            error.contains("the line has 16777217 bytes") && error.contains("hint: "),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_cannot_be_written_says_so() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        let error =
            write_rows(&folder.path().join("file/rows.jsonl"), &[1]).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot write ") && error.contains("hint: check free space"),
            "{error}"
        );
    }
}
