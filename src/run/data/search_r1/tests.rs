use super::super::questions::read_questions;
use parquet::{
    basic::Compression,
    data_type::{ByteArray, ByteArrayType, DoubleType, Int32Type, Int64Type},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use std::{path::Path, sync::Arc};

/// The published file's schema as pyarrow writes it, without its own question columns, and a
/// column nobody asked for.
const PROMPTS: &str = "message schema {
    optional binary data_source (UTF8);
    optional group prompt (LIST) { repeated group list { optional group element {
        optional binary content (UTF8); optional binary role (UTF8); } } }
    optional group reward_model {
        optional group ground_truth { optional group target (LIST) { repeated group list { optional binary element (UTF8); } } }
        optional binary style (UTF8); }
    optional group extra_info { optional int64 index; optional binary split (UTF8); }
    optional double difficulty;
}";
/// The other form: plain columns.
const PLAIN: &str = "message schema {
    required binary id (UTF8);
    required binary question (UTF8);
    optional group golden_answers (LIST) { repeated group list { optional binary element (UTF8); } }
}";

/// One leaf column: values, definition levels, repetition levels.
enum Column<'a> {
    Text(&'a [&'a str], &'a [i16], &'a [i16]),
    Long(&'a [i64], &'a [i16]),
    Double(&'a [f64], &'a [i16]),
    /// Of a required column.
    Int(&'a [i32]),
}

fn write(path: &Path, schema: &str, columns: &[Column<'_>]) {
    write_with(path, schema, columns, Compression::SNAPPY);
}

fn write_with(path: &Path, schema: &str, columns: &[Column<'_>], compression: Compression) {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder().set_compression(compression).build();
    let mut writer = SerializedFileWriter::new(
        std::fs::File::create(path).unwrap(),
        schema,
        Arc::new(properties),
    )
    .unwrap();
    let mut group = writer.next_row_group().unwrap();
    for column in columns {
        let mut leaf = group.next_column().unwrap().unwrap();
        match column {
            Column::Text(values, definitions, repetitions) => {
                let values: Vec<ByteArray> =
                    values.iter().map(|&value| ByteArray::from(value)).collect();
                leaf.typed::<ByteArrayType>()
                    .write_batch(&values, Some(definitions), Some(repetitions))
                    .unwrap();
            }
            Column::Long(values, definitions) => {
                leaf.typed::<Int64Type>().write_batch(values, Some(definitions), None).unwrap();
            }
            Column::Double(values, definitions) => {
                leaf.typed::<DoubleType>().write_batch(values, Some(definitions), None).unwrap();
            }
            Column::Int(values) => {
                leaf.typed::<Int32Type>().write_batch(values, None, None).unwrap();
            }
        }
        leaf.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn a_question_is_taken_from_the_end_of_its_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.parquet");
    let content = "For example, <answer> Beijing </answer>. Question: is \"Question: \" a film?\n";
    write(
        &path,
        PROMPTS,
        &[
            Column::Text(&["nq", "hotpotqa"], &[1, 1], &[0, 0]),
            Column::Text(&["be brief", content, "Question: who ?"], &[4, 4, 4], &[0, 1, 0]),
            Column::Text(&["system", "user", "user"], &[4, 4, 4], &[0, 1, 0]),
            Column::Text(&["A", "B", "C"], &[5, 5, 5], &[0, 1, 0]),
            Column::Text(&["rule", "rule"], &[2, 2], &[0, 0]),
            Column::Long(&[17, 0], &[2, 2]),
            Column::Text(&["train", "train"], &[2, 2], &[0, 0]),
            Column::Double(&[0.5], &[1, 0]),
        ],
    );
    let questions = read_questions(&path).unwrap();
    let summary: Vec<_> = questions
        .iter()
        .map(|q| (q.id.as_str(), q.dataset.as_str(), q.question.as_str(), q.golden_answers.len()))
        .collect();
    // The mark inside the first question hides its beginning: the text behind the last mark
    // counts, as documented.
    assert_eq!(
        summary,
        [("nq_train_17", "nq", "\" a film?", 2), ("hotpotqa_train_0", "hotpotqa", "who ?", 1)]
    );
    assert_eq!(questions[0].golden_answers, ["A", "B"]);
}

#[test]
fn plain_columns_are_read_and_a_bad_row_is_reported_with_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nq.parquet");
    let columns = |definitions: &'static [i16]| {
        [
            Column::Text(&["a", "b"], &[0, 0], &[0, 0]),
            Column::Text(&["who", "where?"], &[0, 0], &[0, 0]),
            Column::Text(
                if definitions[1] == 3 { &["A", "B"] } else { &["A"] },
                definitions,
                &[0, 0],
            ),
        ]
    };
    write(&path, PLAIN, &columns(&[3, 3]));
    let questions = read_questions(&path).unwrap();
    assert_eq!(
        (questions[1].id.as_str(), questions[1].question.as_str(), questions[1].dataset.as_str()),
        ("b", "where?", "nq")
    );
    // Definition level 1: the list is there and empty.
    write(&path, PLAIN, &columns(&[3, 1]));
    let error = read_questions(&path).unwrap_err().to_string();
    assert!(error.contains("nq.parquet:2: field `golden_answers` is empty"), "{error}");
}

/// Files written by pyarrow, whose defaults are what published data sets come in: nested lists,
/// dictionaries, two row groups.
fn by_pyarrow(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parquet").join(name)
}

#[test]
fn files_of_pyarrow_are_read() {
    for (name, ids) in [
        ("snappy.parquet", ["train_0", "train_1", "train_2"]),
        ("prompts-gzip-v2.parquet", ["nq_train_0", "nq_train_1", "hotpotqa_train_2"]),
        ("prompts-zstd.parquet", ["nq_train_0", "nq_train_1", "hotpotqa_train_2"]),
    ] {
        let questions = read_questions(&by_pyarrow(name)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(questions.iter().map(|q| q.id.as_str()).collect::<Vec<_>>(), ids, "{name}");
        assert_eq!(questions[0].question, "total number of death row inmates in the us?");
        assert_eq!(questions[1].golden_answers, ["seven", "Seven"]);
        assert_eq!(
            (questions[2].dataset.as_str(), &questions[2].golden_answers[0]),
            ("hotpotqa", &"Peter Høeg".to_owned())
        );
    }
}

#[test]
fn every_compression_that_people_use_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nq.parquet");
    let columns = || {
        [
            Column::Text(&["a", "b"], &[0, 0], &[0, 0]),
            Column::Text(&["who", "where?"], &[0, 0], &[0, 0]),
            Column::Text(&["A", "B"], &[3, 3], &[0, 0]),
        ]
    };
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(Default::default()),
        Compression::ZSTD(Default::default()),
        Compression::LZ4_RAW,
        Compression::BROTLI(Default::default()),
    ] {
        write_with(&path, PLAIN, &columns(), compression);
        let ids: Vec<String> =
            read_questions(&path).unwrap().into_iter().map(|question| question.id).collect();
        assert_eq!(ids, ["a", "b"], "{compression}");
    }
}

#[test]
fn one_target_alone_is_the_only_gold_answer_and_a_small_number_is_an_id() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.parquet");
    let schema = "message schema {
        required int32 id (INTEGER(16, true));
        required binary question (UTF8);
        optional group reward_model { optional group ground_truth { optional binary target (UTF8); } }
    }";
    let columns = [
        Column::Int(&[7, 8]),
        Column::Text(&["who", "where?"], &[0, 0], &[0, 0]),
        Column::Text(&["A", "B c"], &[3, 3], &[0, 0]),
    ];
    write(&path, schema, &columns);
    let questions = read_questions(&path).unwrap();
    assert_eq!(questions.iter().map(|q| q.id.as_str()).collect::<Vec<_>>(), ["7", "8"]);
    assert_eq!(questions[1].golden_answers, ["B c"]);
}

#[test]
fn a_target_that_is_null_or_within_a_null_is_called_null() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.parquet");
    let schema = "message schema {
        required binary id (UTF8);
        required binary question (UTF8);
        optional group reward_model { optional group ground_truth { optional binary target (UTF8); } }
    }";
    for level in 0..3 {
        let asked = Column::Text(&["who?", "where?"], &[0, 0], &[0, 0]);
        let targets = Column::Text(&["A"], &[3, level], &[0, 0]);
        let ids = Column::Text(&["a", "b"], &[0, 0], &[0, 0]);
        write(&path, schema, &[ids, asked, targets]);
        let error = read_questions(&path).unwrap_err().to_string();
        assert!(
            error.contains("train.parquet:2: field `reward_model.ground_truth.target` is null"),
            "{error}"
        );
    }
}

#[test]
fn a_broken_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nq.parquet");
    std::fs::write(&path, b"PAR1 and nothing else").unwrap();
    assert!(read_questions(&path).unwrap_err().to_string().contains("cannot read as Parquet"));
}

#[test]
fn every_byte_of_a_file_may_be_any_other_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.parquet");
    let (mut n_read, mut n_refused) = (0, 0);
    for name in ["snappy.parquet", "prompts-gzip-v2.parquet"] {
        let bytes = std::fs::read(by_pyarrow(name)).unwrap();
        for (at, &byte) in bytes.iter().enumerate() {
            let mut damaged = bytes.clone();
            // Another value at each place, all bits of it over the file.
            damaged[at] = byte.wrapping_add([1, 0x80, 0xff, 0x3c][at % 4]);
            std::fs::write(&path, damaged).unwrap();
            match read_questions(&path) {
                Ok(_) => n_read += 1,
                Err(error) => {
                    assert!(error.to_string().contains("damaged.parquet"), "{name} {at}: {error}");
                    n_refused += 1;
                }
            }
        }
    }
    assert!(n_read > 100 && n_refused > 100, "{n_read} read, {n_refused} refused");
}

#[test]
fn sizes_that_a_file_does_not_have_are_found_before_they_are_used() {
    use super::super::parquet_check::check_footer;
    let bytes = std::fs::read(by_pyarrow("snappy.parquet")).unwrap();
    check_footer(&bytes).unwrap();
    let tail = bytes.len() - 8;
    let length = u32::from_le_bytes(bytes[tail..tail + 4].try_into().unwrap()) as usize;
    for (footer, what) in [
        // Field 2, a list of 2^28 structures.
        (vec![0x29, 0xfc, 0x80, 0x80, 0x80, 0x80, 0x01, 0], "a list of 268435456 elements"),
        // Field 2, a list of one structure whose field 5 says that it has 2^20 members.
        (
            vec![0x29, 0x1c, 0x55, 0x80, 0x80, 0x80, 0x01, 0, 0],
            "should have 1048576 members, 0 follow",
        ),
        // Field 1, a text of 2^20 bytes.
        (vec![0x18, 0x80, 0x80, 0x40, 0], "1048576 bytes are announced"),
        // Structures in structures.
        (vec![0x1c; 60], "nested more than 24 deep"),
    ] {
        let mut file = bytes[..tail - length].to_vec();
        file.extend(&footer);
        file.extend((footer.len() as u32).to_le_bytes());
        file.extend(b"PAR1");
        let why = check_footer(&file).unwrap_err();
        assert!(why.contains(what), "{why}");
    }
}

#[test]
fn a_text_that_many_values_refer_to_is_counted_for_each() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nq.parquet");
    // 3,000 answers, a list of one a row, all the same text of 512 kB: 1.5 GB out of some
    // kilobytes.
    const N: usize = 3000;
    let long = "a".repeat(512 << 10);
    let (ids, answers) = (vec!["q"; N], vec![long.as_str(); N]);
    let columns = [
        Column::Text(&ids, &[0; N], &[0; N]),
        Column::Text(&ids, &[0; N], &[0; N]),
        Column::Text(&answers, &[3; N], &[0; N]),
    ];
    write_with(&path, PLAIN, &columns, Compression::ZSTD(Default::default()));
    let error = read_questions(&path).unwrap_err().to_string();
    assert!(
        error.contains("3000 texts of up to 524288 bytes") && error.contains("nq.parquet"),
        "{error}"
    );
}
