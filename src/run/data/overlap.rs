//! Are questions tested on that are trained on? Their answers would then be remembered, not found.
//!
//! A test question is asked in training too if its text is, both normalised as answers are; where
//! the data set and the id are the same as well it is the same row of the data set. Ids alone prove
//! nothing: many files count theirs from 0.
use dgpo_core::{question::Question, text::normalise_answer};
use serde::Serialize;
use std::{
    collections::{HashMap, HashSet},
    fmt,
};

/// Counts of the test questions that are asked in training too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Overlap {
    pub n_test: usize,
    /// Test questions with the data set, the id and the text of a training question.
    pub n_same_id: usize,
    /// Others with the text of one.
    pub n_same_text: usize,
    /// Those with the data set and the id of one, and another text.
    pub n_same_id_only: usize,
    /// The first question of the first two kinds.
    pub first: String,
}

/// Compares all test questions with what is trained on; `None` where they do not meet.
pub fn overlap<'q>(
    train: impl IntoIterator<Item = &'q Question>,
    test: &[Question],
) -> Option<Overlap> {
    let name = |question: &'q Question| (question.dataset.as_str(), question.id.as_str());
    let (mut texts, mut by_name) = (HashSet::new(), HashMap::<_, HashSet<String>>::new());
    for question in train {
        let text = normalise_answer(&question.question);
        by_name.entry(name(question)).or_default().insert(text.clone());
        texts.insert(text);
    }
    let mut found = Overlap { n_test: test.len(), ..Overlap::default() };
    for question in test {
        let text = normalise_answer(&question.question);
        let of_same_name = by_name.get(&(question.dataset.as_str(), question.id.as_str()));
        let is_asked = texts.contains(&text);
        match of_same_name {
            Some(asked) if asked.contains(&text) => found.n_same_id += 1,
            _ if is_asked => found.n_same_text += 1,
            Some(_) => found.n_same_id_only += 1,
            None => {}
        }
        if is_asked && found.first.is_empty() {
            found.first.clone_from(&question.question);
        }
    }
    (found.n_same_id + found.n_same_text + found.n_same_id_only > 0).then_some(found)
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { n_test, n_same_id, n_same_text, n_same_id_only, first } = self;
        let n_asked = n_same_id + n_same_text;
        if n_asked > 0 {
            write!(
                f,
                "{n_asked} of {n_test} test questions are trained on too: {n_same_id} with their \
                 id, {n_same_text} as the same text under another one (first: {first:?})"
            )?;
        }
        if *n_same_id_only > 0 {
            let begin = if n_asked > 0 { "; " } else { "" };
            write!(
                f,
                "{begin}{n_same_id_only} of {n_test} test questions have the data set and the id \
                 of a training question that asks something else"
            )?;
        }
        write!(
            f,
            "; hint: take these rows out of data.train or data.trajectories, or name other files \
             in data.test"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(dataset: &str, id: &str, text: &str) -> Question {
        Question {
            id: id.to_owned(),
            dataset: dataset.to_owned(),
            question: text.to_owned(),
            golden_answers: vec!["A".to_owned()],
            supporting: Vec::new(),
            supporting_kind: String::new(),
        }
    }

    #[test]
    fn a_test_question_counts_once_by_its_id_and_else_by_its_normalised_text() {
        let train = [
            question("nq", "1", "Who wrote the Iliad?"),
            question("nq", "2", "who?"),
            question("nq", "3", "when?"),
        ];
        let test = [
            question("nq", "1", "who wrote Iliad ?"),
            question("hotpotqa", "1", "WHO WROTE THE ILIAD?"),
            question("nq", "2", "where?"),
            question("nq", "9", "why?"),
        ];
        let found = overlap(&train, &test).unwrap();
        assert_eq!(
            (found.n_test, found.n_same_id, found.n_same_text, found.n_same_id_only),
            (4, 1, 1, 1)
        );
        let told = found.to_string();
        assert!(
            told.contains(
                "2 of 4 test questions are trained on too: 1 with their id, 1 as the same text"
            ),
            "{told}"
        );
        assert!(
            told.contains("1 of 4 test questions have the data set and the id")
                && told.contains("hint: "),
            "{told}"
        );
    }

    #[test]
    fn different_questions_do_not_meet() {
        let train = [question("nq", "1", "who?")];
        assert_eq!(
            overlap(&train, &[question("nq", "2", "where?"), question("hotpotqa", "1", "when?")]),
            None
        );
        assert_eq!(overlap(&[], &train), None);
    }

    #[test]
    fn the_built_in_world_tests_on_nothing_it_trains_on() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/tiny");
        let read = |name: &str| crate::data::questions::read_questions(&folder.join(name)).unwrap();
        let train = read("train.jsonl");
        for test in ["tiny-1hop.jsonl", "tiny-2hop.jsonl", "dev.jsonl"] {
            assert_eq!(overlap(&train, &read(test)), None, "{test}");
        }
    }
}
