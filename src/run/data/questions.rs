//! Questions with gold answers: JSON Lines (plain or gzip) and the Parquet form of Search-R1.
//!
//! JSON Lines is the FlashRAG form, `{"id", "question", "golden_answers": [..], "metadata"?}`, with
//! the optional fields of [`Question`] beside it; unknown keys are ignored, ids may be whole
//! numbers, and one gold answer may stand alone as a string. A file is Parquet when it begins with
//! Parquet's magic, whatever its name.
//!
//! # Source
//! method §7

use super::{DataError, jsonl, search_r1};
use dgpo_core::{
    question::{Question, Supporting},
    text,
};
use serde::Deserialize;
use std::{fs::File, io::Read, path::Path};

/// Longer text is no question; the longest of the usual data sets have some 2,000 bytes.
const MAX_QUESTION_BYTES: usize = 64 << 10;

/// Reads all questions of a file, in order.
///
/// # Errors
/// A row without id, question or gold answers (file, line, field, hint); a file without rows.
pub fn read_questions(path: &Path) -> Result<Vec<Question>, DataError> {
    let dataset = dataset_name(path);
    let mut unstripped = UnstrippedGolds::default();
    let questions = if is_parquet(path)? {
        let questions = search_r1::read_questions(path, &dataset)?;
        questions.iter().zip(1..).for_each(|(question, row)| {
            unstripped.add(&question.id, &question.golden_answers, row)
        });
        questions
    } else {
        let mut questions = Vec::new();
        jsonl::for_each_row(path, |row| {
            let question = Question {
                id: row.string("id")?,
                dataset: row.optional_string("dataset")?.unwrap_or_else(|| dataset.clone()),
                question: normalise_question(&row.string("question")?)?,
                golden_answers: row.answers("golden_answers")?,
                supporting: supporting(row)?,
                supporting_kind: row.optional_string("supporting_kind")?.unwrap_or_default(),
            };
            unstripped.add(&question.id, &question.golden_answers, row.line);
            questions.push(question);
            Ok(())
        })?;
        questions
    };
    unstripped.tell(path);
    DataError::if_empty(path, questions, "questions", "one JSON object a line")
}

/// Gold answers of a file that normalise to nothing, which scores compare as they are written
/// ([`GoldAnswer`](dgpo_core::env::reward::GoldAnswer)).
#[derive(Debug, Default)]
pub(crate) struct UnstrippedGolds {
    n: usize,
    n_questions: usize,
    /// Answer, id and line.
    first: Option<(String, String, usize)>,
}

impl UnstrippedGolds {
    /// Looks at the gold answers of one question.
    pub(crate) fn add(&mut self, id: &str, golden_answers: &[String], line: usize) {
        self.n_questions += 1;
        for gold in golden_answers.iter().filter(|gold| text::normalise_answer(gold).is_empty()) {
            self.n += 1;
            self.first.get_or_insert_with(|| (gold.clone(), id.to_owned(), line));
        }
    }

    fn told(&self) -> Option<String> {
        let (gold, id, line) = self.first.as_ref()?;
        Some(format!(
            "{} gold answers of {} questions are nothing but articles and punctuation, so they are \
             compared as they are written (first: {gold:?} of question {id:?}, line {line}); hint: \
             remove them if they are mistakes",
            self.n, self.n_questions
        ))
    }

    /// Says once what was found.
    pub(crate) fn tell(&self, path: &Path) {
        if let Some(told) = self.told() {
            jsonl::warn_once(format!("{}: {told}", path.display()));
        }
    }
}

/// Writes JSON Lines (gzip where the name ends in `.gz`); the file appears whole or not at all.
pub fn write_questions(path: &Path, questions: &[Question]) -> Result<(), DataError> {
    jsonl::write_rows(path, questions)
}

/// White space around the question removed, and exactly one `?` at its end. White space before the
/// `?` stays, as in the published data.
///
/// # Errors
/// A question without any text.
pub fn normalise_question(question: &str) -> Result<String, String> {
    if question.len() > MAX_QUESTION_BYTES {
        let n_bytes = question.len();
        return Err(format!(
            "field `question` has {n_bytes} bytes, more than {MAX_QUESTION_BYTES}; hint: is it a \
             passage?"
        ));
    }
    let question = text::strip(question);
    let body = question.trim_end_matches('?');
    if text::strip(body).is_empty() {
        return Err(
            "field `question` is blank; hint: remove the row or write the question".to_owned()
        );
    }
    Ok(format!("{body}?"))
}

fn supporting(row: &jsonl::RowFields) -> Result<Vec<Supporting>, String> {
    let Some(value) = row.get("supporting") else { return Ok(Vec::new()) };
    Vec::<Supporting>::deserialize(value).map_err(|error| {
        format!(
            "field `supporting`: {error}; hint: a list of {{\"title\", \"text\", \"pid\"?}} with \
             string values"
        )
    })
}

/// "nq" for `nq.jsonl.gz`, `nq/train.jsonl` and `nq_train.parquet`'s neighbour `nq/test.parquet`:
/// the first part of the file name, or the folder's name where the file is named after a split.
fn dataset_name(path: &Path) -> String {
    let stem = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = stem.split('.').next().unwrap_or_default().to_owned();
    let folder =
        path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    match folder {
        Some(folder) if matches!(stem.as_str(), "train" | "dev" | "test" | "validation") => folder,
        _ => stem,
    }
}

fn is_parquet(path: &Path) -> Result<bool, DataError> {
    let mut magic = Vec::new();
    let read = File::open(path).and_then(|file| file.take(4).read_to_end(&mut magic));
    read.map_err(DataError::io(path))?;
    Ok(magic == *b"PAR1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &str) -> Result<Vec<Question>, String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("nq.jsonl");
        std::fs::write(&path, lines).expect("written");
        read_questions(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn the_flashrag_form_is_read_and_the_data_set_is_named_after_the_file() {
        let questions =
            read("{\"id\": \"test_0\", \"question\": \"who\", \"golden_answers\": [\"A\", \"B\"], \"metadata\": {\"x\": 1}}\n\n").unwrap();
        assert_eq!(questions.len(), 1);
        let Question { id, dataset, question, golden_answers, supporting, .. } = &questions[0];
        assert_eq!((id.as_str(), dataset.as_str(), question.as_str()), ("test_0", "nq", "who?"));
        assert_eq!(*golden_answers, ["A", "B"]);
        assert!(supporting.is_empty());
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        let questions =
            read("\u{feff}{\"id\": \"0\", \"question\": \"who?\", \"golden_answers\": [\"A\"]}\n")
                .unwrap();
        assert_eq!(questions[0].id, "0");
    }

    #[test]
    fn a_bad_line_is_reported_with_its_number_field_and_a_hint() {
        let good = r#"{"id": "0", "question": "who?", "golden_answers": ["A"]}"#;
        for (bad, field) in [
            (r#"{"question": "who?", "golden_answers": ["A"]}"#, "field `id` is missing"),
            (
                r#"{"id": "1", "question": ["who?"], "golden_answers": ["A"]}"#,
                "field `question` must be a string",
            ),
            (
                r#"{"id": "1", "question": " ? ", "golden_answers": ["A"]}"#,
                "field `question` is blank",
            ),
            (r#"{"id": "1", "question": "who?"}"#, "field `golden_answers` is missing"),
            (
                r#"{"id": "1", "question": "who?", "golden_answers": []}"#,
                "field `golden_answers` is empty",
            ),
            (
                r#"{"id": "1", "question": "who?", "golden_answers": 3}"#,
                "field `golden_answers` must be a list",
            ),
            (
                r#"{"id": "1", "question": "who?", "golden_answers": "['A' 'B']"}"#,
                "field `golden_answers` is a list written as text",
            ),
            (
                r#"{"id": "1", "question": "who?", "golden_answers": ["A", 3]}"#,
                "found a number in place 2; hint: put it in quotation marks",
            ),
            (
                r#"{"id": "1", "question": "who?", "golden_answers": ["A", null]}"#,
                "holds null in place 2; hint: remove it",
            ),
            (
                r#"{"id": "1", "question": "who?", "golden_answers": ["A", NaN]}"#,
                "holds null or NaN in place 2; hint: remove it",
            ),
            (
                r#"{"id": "1", "question": "who?", "golden_answers": [["A"]]}"#,
                "found a list in place 1; hint: write [\"answer\"]",
            ),
            (
                r#"{"id": "1", "question": "who?", "golden_answers": null}"#,
                "field `golden_answers` is null; hint: write its value",
            ),
            (
                r#"{"id": "1", "question": NaN, "golden_answers": ["A"]}"#,
                "field `question` is null or NaN; hint: write its value",
            ),
            (
                r#"{"id": "1", "question": "who?", "golden_answers": [" "]}"#,
                "field `golden_answers` holds a blank answer",
            ),
            (
                r#"{"id": "1", "question": "who?", "golden_answers": ["A"], "supporting": [{"title": "T"}]}"#,
                "field `supporting`",
            ),
            (r#"{"id": "1", "question": "#, "not JSON"),
            (r#"["id"]"#, "expected a JSON object, found a list"),
        ] {
            let error = read(&format!("{good}\n\n{bad}\n{good}")).unwrap_err();
            assert!(
                error.contains("nq.jsonl:3: ") && error.contains(field) && error.contains("hint: "),
                "{error}"
            );
        }
        assert!(read(" \n").unwrap_err().contains("holds no questions"));
    }

    #[test]
    fn what_python_writes_and_json_has_not_is_read_where_nobody_reads_it() {
        let questions = read(concat!(
            r#"{"id": 1, "question": "who?", "golden_answers": ["A b"], "metadata": {"popularity": NaN, "max": 1e999}}"#,
            "\n",
            r#"{"id": 2, "question": "half \ud83d?", "golden_answers": "A b", "supporting": [{"title": "T", "text": "t", "pid": 7}]}"#,
        ))
        .unwrap();
        assert_eq!(
            (questions[0].id.as_str(), questions[1].question.as_str()),
            ("1", "half \u{fffd}?")
        );
        assert_eq!(questions[1].golden_answers, ["A b"]);
        assert_eq!(questions[1].supporting[0].pid.as_deref(), Some("7"));
    }

    #[test]
    fn gold_answers_that_normalise_to_nothing_are_counted_with_the_first() {
        let mut found = UnstrippedGolds::default();
        found.add("q0", &["Vex".to_owned()], 1);
        assert_eq!(found.told(), None);
        found.add("q1", &["!!!".to_owned(), "x".to_owned(), "A".to_owned()], 4);
        let told = found.told().unwrap();
        assert!(
            told.starts_with("2 gold answers of 2 questions ")
                && told.contains("first: \"!!!\" of question \"q1\", line 4"),
            "{told}"
        );
    }

    #[test]
    fn a_question_ends_in_exactly_one_question_mark() {
        for (raw, wanted) in [
            ("who", "who?"),
            (" who? ", "who?"),
            ("who ?", "who ?"),
            ("Why Leave Home??", "Why Leave Home?"),
            ("name it.\u{a0}", "name it.?"),
        ] {
            assert_eq!(normalise_question(raw).unwrap(), wanted);
        }
    }

    #[test]
    fn written_questions_are_read_back_equal_plain_and_packed() {
        let questions = vec![Question {
            id: "7".into(),
            dataset: "hotpotqa".into(),
            question: "où?".into(),
            golden_answers: vec!["là".into()],
            supporting: vec![Supporting {
                title: "T".into(),
                text: "t".into(),
                pid: Some("3".into()),
            }],
            supporting_kind: "annotated".into(),
        }];
        let folder = tempfile::tempdir().unwrap();
        for name in ["q.jsonl", "new/q.jsonl.gz"] {
            let path = folder.path().join(name);
            write_questions(&path, &questions).unwrap();
            assert_eq!(read_questions(&path).unwrap(), questions);
        }
    }

    #[test]
    fn a_file_named_after_a_split_takes_its_folders_name() {
        assert_eq!(dataset_name(Path::new("data/nq/train.jsonl")), "nq");
        assert_eq!(dataset_name(Path::new("data/nq_dev.jsonl.gz")), "nq_dev");
        assert_eq!(dataset_name(Path::new("train.jsonl")), "train");
    }

    #[test]
    fn all_real_questions_are_read() {
        let Some(folder) = dgpo_core::testing::test_data("questions") else { return };
        // Row counts as stated by the data's own description.
        for (name, n_rows) in [
            ("nq", 3610),
            ("hotpotqa", 7405),
            ("2wikimultihopqa", 12576),
            ("musique", 2410),
            ("bamboogle", 125),
            ("triviaqa", 1000),
            ("popqa", 1921),
            ("nq_efficientqa_dev", 1800),
            ("train_multihop_8148", 8148),
            ("train_small", 700),
        ] {
            let questions = read_questions(&folder.join(format!("{name}.jsonl.gz"))).unwrap();
            assert_eq!(questions.len(), n_rows, "{name}");
            assert!(
                questions.iter().all(|q| q.question.ends_with('?') && !q.question.ends_with("??")),
                "{name}"
            );
        }
    }
}
