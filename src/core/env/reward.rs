//! The outcome reward: exact match of the normalised answer (method §2.1, paper Eq. 3), and the
//! reference's scores of a whole text.
//!
//! An episode knows its prediction, so training needs [`outcome_reward`] alone. [`GoldAnswer`]
//! alone decides when an answer counts as found, for exact match, substring match and hits alike.
//! The `reference_*` functions compute as the reference does, also where this project differs on
//! purpose; they exist for conformance.

use crate::text::{is_space, is_word, normalise_answer, strip};
use std::cell::LazyCell;

/// A gold answer in the form in which it is compared.
///
/// Normalisation removes articles and punctuation. Of "A", "The The" or "!!!" nothing is left, and
/// nothing equals every empty answer and is contained in every text. Such an answer is therefore
/// compared as it is written, and it counts as part of a text only where no letter continues it:
///
/// | gold | equals | is contained in | not in |
/// |---|---|---|---|
/// | The Beatles | beatles! | two Beatles | Beat |
/// | A | a | vitamin A | sailor |
/// | !!! | !!! | who is !!!? | who! |
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GoldAnswer {
    /// The result of [`normalise_answer`]; not empty.
    Normalised(String),
    /// Lower-case, white space collapsed. Empty only where the answer is blank; a blank answer
    /// equals nothing and is part of nothing.
    AsWritten(String),
}

impl GoldAnswer {
    /// The form in which a gold answer is compared.
    pub fn of(gold: &str) -> Self {
        let normalised = normalise_answer(gold);
        if normalised.is_empty() {
            Self::AsWritten(as_written(gold))
        } else {
            Self::Normalised(normalised)
        }
    }
}

/// True if some gold answer equals the text. An empty text equals none.
fn equals(text: &str, golden_answers: &[String]) -> bool {
    let (normalised, written) =
        (LazyCell::new(|| normalise_answer(text)), LazyCell::new(|| as_written(text)));
    golden_answers.iter().any(|gold| match GoldAnswer::of(gold) {
        GoldAnswer::Normalised(gold) => gold == *normalised,
        GoldAnswer::AsWritten(gold) => !gold.is_empty() && gold == *written,
    })
}

/// Normalised substring match: true if some gold answer is a part of the text, both sides
/// normalised ("the U.S.A." is found in "USA").
pub fn contains_answer(text: &str, golden_answers: &[String]) -> bool {
    let (normalised, written) =
        (LazyCell::new(|| normalise_answer(text)), LazyCell::new(|| as_written(text)));
    golden_answers.iter().any(|gold| match GoldAnswer::of(gold) {
        GoldAnswer::Normalised(gold) => normalised.contains(&gold),
        GoldAnswer::AsWritten(gold) => contains_apart(&written, &gold),
    })
}

/// Exact substring match (method §8): true if some gold answer occurs in the text as it is written.
/// One that normalises to nothing must not be continued by a letter. Case matters, so "A" is not
/// found in every passage that holds an article.
pub fn contains_answer_verbatim(text: &str, golden_answers: &[String]) -> bool {
    golden_answers.iter().any(|gold| match GoldAnswer::of(gold) {
        GoldAnswer::Normalised(_) => text.contains(gold.as_str()),
        GoldAnswer::AsWritten(_) => contains_apart(text, strip(gold)),
    })
}

/// The text in lower case with white space collapsed and nothing removed.
fn as_written(text: &str) -> String {
    text.to_lowercase()
        .split(is_space)
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// True if `part` occurs in the text as whole words: no word character continues its first or last
/// one. An empty part occurs nowhere.
fn contains_apart(text: &str, part: &str) -> bool {
    let (Some(first), Some(last)) = (part.chars().next(), part.chars().next_back()) else {
        return false;
    };
    text.match_indices(part).any(|(start, _)| {
        let is_joined =
            |edge: char, beside: Option<char>| is_word(edge) && beside.is_some_and(is_word);
        !is_joined(first, text[..start].chars().next_back())
            && !is_joined(last, text[start + part.len()..].chars().next())
    })
}

/// r_EM: 1 if the normalised prediction equals a normalised gold answer, else 0; without a
/// prediction 0.
///
/// ```
/// let golds = ["The Beatles".to_string()];
/// assert_eq!(dgpo_core::env::reward::outcome_reward(Some("beatles!"), &golds), 1.0);
/// assert_eq!(dgpo_core::env::reward::outcome_reward(None, &golds), 0.0);
/// ```
///
/// # Source
/// `method §2.1, paper Eq. 3`
pub fn outcome_reward(prediction: Option<&str>, golden_answers: &[String]) -> f32 {
    f32::from(u8::from(
        prediction.is_some_and(|prediction| exact_match(prediction, golden_answers)),
    ))
}

/// Exact match by [`GoldAnswer`]: true if the prediction equals some gold answer. An empty
/// prediction never does.
/// # Source
/// `method §2.1, paper Eq. 3`
pub fn exact_match(prediction: &str, golden_answers: &[String]) -> bool {
    equals(prediction, golden_answers)
}

/// Substring match by [`GoldAnswer`]: true if some gold answer occurs in the prediction. Reported,
/// never trained on.
/// # Source
/// `method §2.3`
pub fn substring_match(prediction: &str, golden_answers: &[String]) -> bool {
    contains_answer(prediction, golden_answers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn oracle() -> Value {
        serde_json::from_str(include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/oracles/text/scoring.json"
        )))
        .unwrap()
    }

    #[test]
    fn every_recorded_text_is_normalised_as_the_reference_does() {
        let oracle = oracle();
        let cases = oracle["normalize"].as_array().unwrap();
        assert_eq!(cases.len(), 45);
        for case in cases {
            assert_eq!(
                normalise_answer(case["in"].as_str().unwrap()),
                case["out"].as_str().unwrap()
            );
        }
    }

    #[test]
    fn every_recorded_pair_is_matched_as_the_reference_does_where_the_golds_are_not_empty() {
        let oracle = oracle();
        let cases = oracle["em"].as_array().unwrap();
        assert_eq!(cases.len(), 12);
        for case in cases {
            let golds: Vec<String> = match &case["golden"] {
                Value::String(gold) => vec![gold.clone()],
                golds => serde_json::from_value(golds.clone()).unwrap(),
            };
            let prediction = case["prediction"].as_str().unwrap();
            if golds.iter().all(|gold| !normalise_answer(gold).is_empty()) {
                assert_eq!(
                    f64::from(outcome_reward(Some(prediction), &golds)),
                    case["em"].as_f64().unwrap(),
                    "{case}"
                );
                assert_eq!(
                    u64::from(substring_match(prediction, &golds)),
                    case["subem"].as_u64().unwrap(),
                    "{case}"
                );
            }
        }
    }

    #[test]
    fn a_gold_answer_that_normalises_to_nothing_is_compared_as_it_is_written() {
        // (gold, prediction, equal, contained)
        for (gold, prediction, is_equal, is_part) in [
            ("A", "sailor", false, false),
            ("A", " a ", true, true),
            ("A", "Vitamin A.", false, true),
            ("A", "the", false, false),
            ("The The", "the  THE", true, true),
            ("The The", "the", false, false),
            ("The The", "breathe then", false, false),
            ("!!!", "!!!", true, true),
            ("!!!", "who is !!!?", false, true),
            ("!!!", "who!", false, false),
            ("?", "Paris", false, false),
            ("---", "a --- b", false, true),
            ("Paris", "---", false, false),
        ] {
            let golds = ["nowhere".to_owned(), gold.to_owned()];
            assert_eq!(exact_match(prediction, &golds), is_equal, "{gold:?} and {prediction:?}");
            assert_eq!(substring_match(prediction, &golds), is_part, "{gold:?} in {prediction:?}");
            assert_eq!(outcome_reward(Some(prediction), &golds), f32::from(u8::from(is_equal)));
        }
    }

    #[test]
    fn a_gold_answer_that_normalises_to_nothing_is_a_hit_where_it_stands_apart() {
        for (gold, text, is_verbatim, is_normalised) in [
            ("A", "He works as a sailor.", false, true),
            ("A", "Anna is sailing.", false, false),
            ("A", "Vitamin A, found in", true, true),
            ("The The", "the album of The The.", true, true),
            ("The The", "in the theatre", false, false),
            ("!!!", "the band !!! (chk)", true, true),
            ("!!!", "at last!", false, false),
        ] {
            let golds = [gold.to_owned()];
            assert_eq!(contains_answer_verbatim(text, &golds), is_verbatim, "{gold:?} in {text:?}");
            assert_eq!(contains_answer(text, &golds), is_normalised, "{gold:?} in {text:?}");
        }
    }

    #[test]
    fn an_empty_prediction_is_never_right() {
        for gold in ["A", "The The", "!!!", "?", "---", "", " ", "Paris"] {
            let golds = [gold.to_owned()];
            for prediction in ["", " ", "\n\t"] {
                assert!(
                    !exact_match(prediction, &golds) && !substring_match(prediction, &golds),
                    "{gold:?}"
                );
                assert_eq!(outcome_reward(Some(prediction), &golds), 0.0);
            }
        }
    }
}
