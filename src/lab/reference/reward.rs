//! The reference's scores of a whole text.
use dgpo_core::text::{normalise_answer, strip};

/// The reference's exact match: what normalises to nothing equals whatever else does.
///
/// # Source
/// PeterGriffinJin/Search-R1:verl/utils/reward_score/qa_em.py `em_check`
pub fn reference_exact_match(prediction: &str, golden_answers: &[String]) -> bool {
    let prediction = normalise_answer(prediction);
    golden_answers.iter().any(|gold| normalise_answer(gold) == prediction)
}

/// The reference's substring match: what normalises to nothing is part of every prediction.
///
/// # Source
/// PeterGriffinJin/Search-R1:verl/utils/reward_score/qa_em.py `subem_check`
pub fn reference_substring_match(prediction: &str, golden_answers: &[String]) -> bool {
    let prediction = normalise_answer(prediction);
    golden_answers.iter().any(|gold| prediction.contains(&normalise_answer(gold)))
}

/// The reference's answer of a whole text: the last of at least two `<answer>` matches, since the
/// prompt's example is the first.
///
/// # Source
/// method §2; PeterGriffinJin/Search-R1:verl/utils/reward_score/qa_em.py `extract_solution`
pub fn reference_extract_answer(text: &str) -> Option<&str> {
    let answers = blocks(text, "<answer>", "</answer>");
    if answers.len() < 2 { None } else { answers.last().copied().map(strip) }
}

/// The reference's score of a whole text: 1 where the extracted answer matches, `format_score`
/// where there is an answer at all, else 0. `is_match` is [`reference_exact_match`] or
/// [`reference_substring_match`].
pub fn reference_score(
    text: &str,
    golden_answers: &[String],
    format_score: f32,
    is_match: fn(&str, &[String]) -> bool,
) -> f32 {
    match reference_extract_answer(text) {
        Some(answer) if is_match(answer, golden_answers) => 1.0,
        Some(_) => format_score,
        None => 0.0,
    }
}

/// Inner texts of all matches of `open(.*?)close`, dot matching newlines, from left to right
/// without overlap.
pub(super) fn blocks<'t>(text: &'t str, open: &str, close: &str) -> Vec<&'t str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((_, behind)) = rest.split_once(open)
        && let Some((inner, tail)) = behind.split_once(close)
    {
        found.push(inner);
        rest = tail;
    }
    found
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
    fn every_recorded_pair_is_matched_as_the_reference_does() {
        let oracle = oracle();
        let cases = oracle["em"].as_array().unwrap();
        assert_eq!(cases.len(), 12);
        for case in cases {
            let golds: Vec<String> = match &case["golden"] {
                Value::String(gold) => vec![gold.clone()],
                golds => serde_json::from_value(golds.clone()).unwrap(),
            };
            let prediction = case["prediction"].as_str().unwrap();
            assert_eq!(
                u64::from(reference_exact_match(prediction, &golds)),
                case["em"].as_u64().unwrap(),
                "{case}"
            );
            assert_eq!(
                u64::from(reference_substring_match(prediction, &golds)),
                case["subem"].as_u64().unwrap(),
                "{case}"
            );
        }
    }

    #[test]
    fn every_recorded_sequence_gets_the_references_answer_and_score() {
        let oracle = oracle();
        let cases = oracle["extract"].as_array().unwrap();
        assert_eq!(cases.len(), 12);
        for case in cases {
            let text = case["text"].as_str().unwrap();
            assert_eq!(reference_extract_answer(text), case["answer"].as_str(), "{case}");
            let score = |gold: &str, format_score, is_match| {
                f64::from(reference_score(text, &[gold.to_owned()], format_score, is_match))
            };
            assert_eq!(
                score("Paris", 0.0, reference_exact_match),
                case["em_score_vs_paris"].as_f64().unwrap(),
                "{case}"
            );
            assert_eq!(
                score("Par", 0.0, reference_substring_match),
                case["subem_score_vs_par"].as_f64().unwrap(),
                "{case}"
            );
            let wanted = case["em_format_score_0.1"].as_f64().unwrap() as f32;
            assert_eq!(
                reference_score(text, &["Paris".to_owned()], 0.1, reference_exact_match),
                wanted,
                "{case}"
            );
        }
    }
}
