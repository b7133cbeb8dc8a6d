//! The files of the tiny world: what the recipes, the tests and other tools read.
//!
//! | file | holds |
//! |---|---|
//! | `corpus.jsonl` | 660 passages |
//! | `train.jsonl` | 1,240 questions, shuffled |
//! | `dev.jsonl` | 310 questions, shuffled, to choose settings by |
//! | `tiny-1hop.jsonl`, `tiny-2hop.jsonl` | 160 and 150 test questions |
//! | `queries.jsonl` | search queries with their gold passages, from training questions only: what the encoder trains on |
//! | `encoder/`, `student/`, `student-llama/`, `teacher/` | `config.json` of the networks and their common `tokenizer.json`; `tokenizer_config.json`: chat format and end of turn |
//!
//! Weights (`encoder/model.safetensors` and so on) are made by the recipes beside the files, and
//! the demonstrations by [`crate::tiny::demonstrations`], because they need the retriever.
//!
//! The files are stored in the repository and embedded in the binary as they are, although a seed
//! would reproduce them: anyone can read them, other tools can load them, and built-in and own data
//! go one way. A test regenerates them and compares bytes, so they cannot drift from the code.
use super::{
    networks,
    questions::{Split, TinyQuestion, split},
    scripts::queries,
    vocabulary::{self, SPECIAL_TOKENS},
    world::World,
};
use dgpo_core::{
    question::{Question, Supporting},
    settings::ChatTemplate,
};
use dgpo_run::data::DataError;
use std::path::Path;

/// Contents of every file of a world, by name.
/// # Errors
/// If the vocabulary cannot be trained.
pub fn files(seed: u64) -> Result<Vec<(&'static str, String)>, DataError> {
    let world = World::generate(seed);
    let questions = split(&world, seed);
    let failed = |error: tokenizers::Error| DataError::Format {
        path: "tokenizer.json".into(),
        why: error.to_string(),
    };
    let vocabulary = vocabulary::train(&world, &questions).map_err(failed)?;
    let tokenizer = vocabulary.to_string(true).map_err(failed)? + "\n";
    let tokenizer_config = ChatTemplate::Qwen25.tokenizer_config();
    let asked = |tiny: &[TinyQuestion]| lines(tiny.iter().map(|tiny| &tiny.question));
    Ok(vec![
        ("corpus.jsonl", lines(world.passages())),
        ("train.jsonl", asked(&questions.train)),
        ("dev.jsonl", asked(&questions.dev)),
        ("tiny-1hop.jsonl", asked(&questions.test_one_hop)),
        ("tiny-2hop.jsonl", asked(&questions.test_two_hops)),
        ("queries.jsonl", lines(encoder_queries(&world, &questions))),
        ("encoder/config.json", networks::encoder(&vocabulary).to_json()),
        ("encoder/tokenizer.json", tokenizer.clone()),
        ("encoder/tokenizer_config.json", encoder_tokenizer_config()),
        ("student/config.json", networks::student(&vocabulary).to_json()),
        ("student/tokenizer.json", tokenizer.clone()),
        ("student/tokenizer_config.json", tokenizer_config.clone()),
        ("student-llama/config.json", networks::student_llama(&vocabulary).to_json()),
        ("student-llama/tokenizer.json", tokenizer.clone()),
        ("student-llama/tokenizer_config.json", tokenizer_config.clone()),
        ("teacher/config.json", networks::teacher(&vocabulary).to_json()),
        ("teacher/tokenizer.json", tokenizer),
        ("teacher/tokenizer_config.json", tokenizer_config),
    ])
}

/// Writes the files of a world into a folder, which is created.
/// # Errors
/// If a file cannot be written.
pub fn write(dir: &Path, seed: u64) -> Result<(), DataError> {
    for (name, contents) in files(seed)? {
        let path = dir.join(name);
        let written = std::fs::create_dir_all(path.parent().unwrap_or(dir))
            .and_then(|()| dgpo_models::files::write_file(&path, contents));
        written.map_err(|source| DataError::Write { path, source })?;
    }
    Ok(())
}

/// An encoder has no chats; other tools pad its batches.
fn encoder_tokenizer_config() -> String {
    let config = serde_json::json!({
        "clean_up_tokenization_spaces": false,
        "pad_token": SPECIAL_TOKENS[0],
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    format!("{config:#}\n")
}

/// One row a query: the gold passage is its only supporting one. Facts that several questions need
/// occur once.
fn encoder_queries(world: &World, questions: &Split) -> Vec<Question> {
    let mut seen = std::collections::HashSet::new();
    let hops = questions.train.iter().flat_map(|tiny| &tiny.hops);
    let fresh: Vec<_> =
        hops.filter(|hop| seen.insert((hop.passage_idx, hop.relation.noun()))).collect();
    let rows = fresh.into_iter().flat_map(|hop| queries(hop).map(|query| (query, hop)));
    rows.enumerate()
        .map(|(n, (query, hop))| {
            let passage = &world.passages()[hop.passage_idx];
            Question {
                id: format!("tiny-query-{n:04}"),
                dataset: "tiny-queries".to_owned(),
                question: query,
                golden_answers: vec![hop.value.clone()],
                supporting: vec![Supporting {
                    title: hop.subject.clone(),
                    text: passage.text().to_owned(),
                    pid: Some(passage.id.clone()),
                }],
                supporting_kind: "annotated".to_owned(),
            }
        })
        .collect()
}

fn lines<T: serde::Serialize>(rows: impl IntoIterator<Item = T>) -> String {
    rows.into_iter()
        .map(|row| serde_json::to_string(&row).expect("rows of strings always serialise") + "\n")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny::WORLD_SEED;

    #[test]
    fn the_stored_world_is_the_one_of_the_seed() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/tiny");
        for (name, expected) in files(WORLD_SEED).expect("the world can be generated") {
            let stored = std::fs::read_to_string(dir.join(name))
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(
                stored == expected,
                "{name} differs from what the seed gives; hint: dgpo data tiny configs/tiny"
            );
        }
    }
}
