//! The reference's optional format reward, which asks for a proper sequence of tags.
//!
//! ```text
//! start ─▶ <think> ─▶ <search> ─▶ <information> ─┐        ─▶ <answer> ─▶ end
//!             ▲──────────────────────────────────┘  (white space between blocks, anything inside)
//! ```
//!
//! | format | answer | score |
//! |---|---|---|
//! | valid | right | 1 |
//! | valid | wrong or none | structure, plus retrieval where a gold answer stands in an `<information>` block |
//! | invalid | right | 1 − structure |
//! | invalid | wrong | final |
//! | invalid | none | 0 |
//!
//! # Source
//! PeterGriffinJin/Search-R1:verl/utils/reward_score/qa_em_format.py;
//! tests/oracles/text/format_reward.json

use super::reward::{blocks, reference_exact_match, reference_substring_match};
use dgpo_core::text::{is_space, strip};

/// Weights of the format reward.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FormatWeights {
    pub structure: f32,
    pub final_answer: f32,
    pub retrieval: f32,
}

impl Default for FormatWeights {
    /// The weights of the published format runs.
    fn default() -> Self {
        Self { structure: 0.2, final_answer: 0.1, retrieval: 0.1 }
    }
}

const ASSISTANT_MARKER: &str = "<|im_start|>assistant";
const TAG_NAMES: [&str; 4] = ["think", "search", "information", "answer"];

/// Score of a whole text (with the chat's assistant marker in it) as the table above says.
pub fn format_score(text: &str, golden_answers: &[String], weights: FormatWeights) -> f32 {
    let is_valid = check_sequence(text).is_ok();
    // Differs from `reference_extract_answer`: the reference's format score takes a single match.
    let answer = blocks(text, "<answer>", "</answer>").last().copied().map(strip);
    match answer {
        Some(answer) if reference_exact_match(answer, golden_answers) => {
            if is_valid {
                1.0
            } else {
                1.0 - weights.structure
            }
        }
        _ if is_valid => {
            let is_retrieved = information_blocks(text)
                .iter()
                .any(|block| reference_substring_match(block, golden_answers));
            weights.structure + if is_retrieved { weights.retrieval } else { 0.0 }
        }
        Some(_) => weights.final_answer,
        None => 0.0,
    }
}

/// Texts of the `<information>` blocks, stripped.
pub fn information_blocks(text: &str) -> Vec<&str> {
    blocks(text, "<information>", "</information>").into_iter().map(strip).collect()
}

/// Checks the tags after the (first) assistant marker.
///
/// # Errors
/// The first fault found, in the reference's words.
pub fn check_sequence(text: &str) -> Result<(), String> {
    let (_, content) = text.split_once(ASSISTANT_MARKER).ok_or("Missing assistant marker")?;
    let content = content.trim_start_matches(is_space);
    for tag in TAG_NAMES {
        let n_opening = content.matches(&format!("<{tag}>")).count();
        let n_closing = content.matches(&format!("</{tag}>")).count();
        if n_opening != n_closing {
            return Err(format!(
                "Mismatch in {tag} tags: {n_opening} opening vs {n_closing} closing tags"
            ));
        }
    }
    let mut state = "start";
    for (part, is_tag) in split_tags(content) {
        state = match (part, state) {
            (part, _) if strip(part).is_empty() => state,
            ("<think>", "start" | "information") => "in_think",
            ("</think>", "in_think") => "after_think",
            ("<search>", "after_think") => "in_search",
            ("</search>", "in_search") => "after_search",
            ("<information>", "after_search") => "in_information",
            ("</information>", "in_information") => "information",
            ("<answer>", "after_think") => "in_answer",
            ("</answer>", "in_answer") => "end",
            (tag, state) if is_tag => return Err(format!("Unexpected tag {tag} in state {state}")),
            (_, "in_think" | "in_search" | "in_information" | "in_answer") => state,
            (_, "end") => return Err("Unexpected content in state end".to_owned()),
            (content, state) => {
                return Err(format!(
                    "Unexpected content '{}' between tags (state: {state})",
                    strip(content)
                ));
            }
        };
    }
    if state == "end" {
        Ok(())
    } else {
        Err(format!("Incomplete sequence, ended in state {state}"))
    }
}

/// The text in order, cut at the known tags: (part, true if it is a tag).
fn split_tags(text: &str) -> Vec<(&str, bool)> {
    let mut parts = Vec::new();
    let mut content_start = 0;
    let mut at = 0;
    while let Some(found) = text[at..].find('<') {
        let tag_start = at + found;
        at = tag_start + 1;
        let inside = text[at..].strip_prefix('/').unwrap_or(&text[at..]);
        if let Some(tail) =
            TAG_NAMES.iter().find_map(|name| inside.strip_prefix(name)?.strip_prefix('>'))
        {
            at = text.len() - tail.len();
            parts.push((&text[content_start..tag_start], false));
            parts.push((&text[tag_start..at], true));
            content_start = at;
        }
    }
    parts.push((&text[content_start..], false));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn every_recorded_sequence_is_judged_as_the_reference_does() {
        let oracle = include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/oracles/text/format_reward.json"
        ));
        let cases: Vec<Value> = serde_json::from_str(oracle).unwrap();
        assert_eq!(cases.len(), 6);
        for case in &cases {
            let text = case["text"].as_str().unwrap();
            let reason =
                check_sequence(text).err().unwrap_or_else(|| "Valid sequence format".to_owned());
            assert_eq!(
                (check_sequence(text).is_ok(), reason.as_str()),
                (case["valid"].as_bool().unwrap(), case["reason"].as_str().unwrap())
            );
            assert_eq!(Value::from(information_blocks(text)), case["information_blocks"]);
            let score = format_score(text, &["Paris".to_owned()], FormatWeights::default());
            assert!(
                (f64::from(score) - case["score_full_weights"].as_f64().unwrap()).abs() < 1e-6,
                "{case}"
            );
        }
    }

    #[test]
    fn the_table_of_scores_holds_where_nothing_was_recorded() {
        let start = "<|im_start|>assistant\n<think>a</think>";
        let searched =
            format!("{start}<search>q</search><information>in Paris</information><think>b</think>");
        for (text, wanted) in [
            (format!("{searched}<answer>Rome</answer>"), 0.3),
            (format!("{start}<answer>Rome</answer>"), 0.2),
            (format!("{start} x"), 0.0),
            (format!("{searched}<answer>Paris</answer> tail"), 0.8),
        ] {
            let score = format_score(&text, &["Paris".to_owned()], FormatWeights::default());
            assert!((score - wanted).abs() < 1e-6, "{text}: {score}");
        }
    }

    #[test]
    fn a_tag_without_its_partner_is_named() {
        let error = check_sequence("<|im_start|>assistant<think>a<think></think>").unwrap_err();
        assert_eq!(error, "Mismatch in think tags: 2 opening vs 1 closing tags");
        assert_eq!(
            check_sequence("<|im_start|>assistant<think>a</think>").unwrap_err(),
            "Incomplete sequence, ended in state after_think"
        );
    }
}
