//! The Parquet form of Search-R1's training data.
//!
//! Columns: `data_source`, `prompt` (list of {role, content}), `reward_model.ground_truth.target`
//! (strings, or one alone), `extra_info` ({index, split}); some files also carry `id`, `question`
//! and `golden_answers`, which win where present. The question inside a prompt is what follows the
//! last "Question: ". Only these columns are decoded, so others may have any type.
//!
//! # Source
//! method §7

use super::{
    DataError,
    jsonl::{self, RowFields},
    parquet_check,
    questions::normalise_question,
};
use dgpo_core::{contained::contained, question::Question};
use parquet::{
    basic::Type as PhysicalType,
    column::page::Page,
    errors::ParquetError,
    file::reader::{FileReader, SerializedFileReader},
    record::{Field, Row},
    schema::types::Type,
};
use serde_json::{Map, Value};
use std::{fs::File, path::Path, sync::Arc};

const COLUMNS: [&str; 7] =
    ["id", "question", "golden_answers", "data_source", "prompt", "reward_model", "extra_info"];

/// Reads every row; `dataset` names the data set where the rows do not.
pub(super) fn read_questions(path: &Path, dataset: &str) -> Result<Vec<Question>, DataError> {
    const HINT: &str = "hint: download or copy it again; pages may be uncompressed, snappy, gzip, \
                        zstd, lz4 or brotli";
    let format =
        |why: String| DataError::format(path, format!("cannot read as Parquet: {why}; {HINT}"));
    let bytes = std::fs::read(path).map_err(DataError::io(path))?;
    parquet_check::check_footer(&bytes).map_err(format)?;
    let file = File::open(path).map_err(DataError::io(path))?;
    let reader = contained(|| SerializedFileReader::new(file))
        .map_err(format)?
        .map_err(|error| format(error.to_string()))?;
    let schema = reader.metadata().file_metadata().schema();
    let wanted: Vec<Arc<Type>> = schema
        .get_fields()
        .iter()
        .filter(|column| COLUMNS.contains(&column.name()))
        .cloned()
        .collect();
    if wanted.is_empty() {
        let found =
            schema.get_fields().iter().map(|column| column.name()).collect::<Vec<_>>().join(", ");
        let why = format!(
            "none of the columns {} is there, found {found}; hint: Search-R1's form is expected",
            COLUMNS.join(", ")
        );
        return Err(DataError::format(path, why));
    }
    parquet_check::check_columns(&bytes, reader.metadata(), &|name| COLUMNS.contains(&name))
        .map_err(format)?;
    let n_bytes = bytes.len();
    drop(bytes);
    // What the checks cannot know, encodings and levels, the crate answers with a panic in places.
    contained(|| check_dictionaries(n_bytes, &reader)).map_err(format)?.map_err(format)?;
    contained(|| read_rows(path, &reader, wanted, dataset, &format)).map_err(format)?
}

/// The texts that values refer to by number.
fn check_dictionaries(n_bytes: usize, reader: &SerializedFileReader<File>) -> Result<(), String> {
    let said = |error: ParquetError| error.to_string();
    for (number, group) in reader.metadata().row_groups().iter().enumerate() {
        let pages = reader.get_row_group(number).map_err(said)?;
        for (at, column) in group.columns().iter().enumerate() {
            let is_wanted = column
                .column_path()
                .parts()
                .first()
                .is_some_and(|name| COLUMNS.contains(&name.as_str()));
            let has_texts = column.column_type() == PhysicalType::BYTE_ARRAY
                && column.dictionary_page_offset().is_some();
            if is_wanted
                && has_texts
                && let Some(Page::DictionaryPage { buf, .. }) =
                    pages.get_column_page_reader(at).map_err(said)?.get_next_page().map_err(said)?
            {
                parquet_check::check_dictionary(n_bytes, column, &buf)?;
            }
        }
    }
    Ok(())
}

fn read_rows(
    path: &Path,
    reader: &SerializedFileReader<File>,
    wanted: Vec<Arc<Type>>,
    dataset: &str,
    format: &dyn Fn(String) -> DataError,
) -> Result<Vec<Question>, DataError> {
    let failed = |error: ParquetError| format(error.to_string());
    let schema = reader.metadata().file_metadata().schema();
    let projection =
        Type::group_type_builder(schema.name()).with_fields(wanted).build().map_err(failed)?;
    let (mut questions, mut n_kept) = (Vec::new(), 0);
    let n_bytes = path.metadata().map_or(0, |file| file.len());
    for (row_idx, row) in reader.get_row_iter(Some(projection)).map_err(failed)?.enumerate() {
        let fields = RowFields::new(object(&row.map_err(failed)?), row_idx + 1);
        let question = question(&fields, dataset, row_idx)
            .map_err(|why| DataError::line(path, row_idx + 1, why))?;
        n_kept += n_bytes_of(&question);
        if n_kept > jsonl::unpacked_limit(n_bytes) {
            return Err(format(format!(
                "its {n_bytes} bytes hold more than {n_kept} bytes of questions, which is not what \
                 text does"
            )));
        }
        questions.push(question);
    }
    Ok(questions)
}

fn n_bytes_of(question: &Question) -> u64 {
    let Question { id, dataset, question, golden_answers, .. } = question;
    [id, dataset, question].into_iter().chain(golden_answers).map(|text| text.len() as u64).sum()
}

fn question<'r>(row: &'r RowFields, dataset: &str, row_idx: usize) -> Result<Question, String> {
    let dataset = row.optional_string("data_source")?.unwrap_or_else(|| dataset.to_owned());
    let id = match row.optional_string("id")? {
        Some(id) => id,
        None => default_id(row, &dataset, row_idx),
    };
    let asked = match row.optional_string("question")? {
        Some(question) => question,
        None => question_in_prompt(row)?,
    };
    let golden_answers = match row.get("golden_answers") {
        Some(_) => row.answers("golden_answers")?,
        None => {
            let key = "reward_model.ground_truth.target";
            let missing =
                || format!("field `{key}` is missing; hint: or give a column `golden_answers`");
            let inside = |outer: Option<&'r Value>, key| match outer {
                // Null in the place of a group is null in the place of its fields.
                Some(Value::Null) => outer,
                _ => outer.and_then(|outer| outer.get(key)),
            };
            let target = key.split('.').skip(1).fold(row.object.get("reward_model"), inside);
            jsonl::answers(target.ok_or_else(missing)?, key)?
        }
    };
    let question = normalise_question(&asked)?;
    Ok(Question { id, dataset, question, golden_answers, ..Question::default() })
}

/// "nq_train_17" from `extra_info`, else from the row's number.
fn default_id(row: &RowFields, dataset: &str, row_idx: usize) -> String {
    let extra = |key| row.get("extra_info").and_then(|info| info.get(key));
    let index = extra("index").and_then(Value::as_u64).unwrap_or(row_idx as u64);
    match extra("split").and_then(Value::as_str) {
        Some(split) => format!("{dataset}_{split}_{index}"),
        None => format!("{dataset}_{index}"),
    }
}

fn question_in_prompt(row: &RowFields) -> Result<String, String> {
    const MARK: &str = "Question: ";
    let messages = match row.object.get("prompt") {
        Some(Value::Array(messages)) => messages,
        other => {
            let found = other.map_or("missing".to_owned(), |value| match value {
                Value::Null => "null".to_owned(),
                value => format!("no list but {}", jsonl::kind(value)),
            });
            return Err(format!("field `prompt` is {found}; hint: or give a column `question`"));
        }
    };
    let user = messages
        .iter()
        .rev()
        .find(|message| message.get("role").and_then(Value::as_str) == Some("user"));
    let content = user.and_then(|message| message.get("content")).and_then(Value::as_str);
    let content = content.ok_or(
        "field `prompt` holds no message of the user; hint: \
         {role: \"user\", content: \"Question: who?\"}",
    )?;
    let (_, question) = content
        .rsplit_once(MARK)
        .ok_or("field `prompt` holds no \"Question: \"; hint: or give a column `question`")?;
    Ok(question.to_owned())
}

fn object(row: &Row) -> Map<String, Value> {
    row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

/// The parts of Parquet's types that these columns use; anything else is null, which the accessors
/// report as missing.
fn value(field: &Field) -> Value {
    match field {
        Field::Str(text) => Value::from(text.as_str()),
        // Writers without logical types leave strings as plain bytes.
        Field::Bytes(bytes) => bytes.as_utf8().map_or(Value::Null, Value::from),
        Field::Bool(x) => Value::from(*x),
        Field::Byte(x) => Value::from(*x),
        Field::Short(x) => Value::from(*x),
        Field::Int(x) => Value::from(*x),
        Field::Long(x) => Value::from(*x),
        Field::UByte(x) => Value::from(*x),
        Field::UShort(x) => Value::from(*x),
        Field::UInt(x) => Value::from(*x),
        Field::ULong(x) => Value::from(*x),
        Field::Double(x) => Value::from(*x),
        Field::Group(row) => Value::Object(object(row)),
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(value).collect()),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests;
