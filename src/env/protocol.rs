//! The protocol's text: actions (method §1.2), observations (method §1.3), the instruction (method
//! §9). Pure functions of strings.
//!
//! The reference is a Python program; white space and matching follow its `str.strip` and `re`.
//! Functions named `reference_*` behave as the reference where this project differs on purpose; the
//! conformance run calls them.

use crate::data::{corpus::Passage, text::strip};

pub use crate::data::trajectories::INVALID_ACTION;
use crate::data::trajectories::{INFORMATION_CLOSE, INFORMATION_MARGIN, INFORMATION_OPEN};

/// The strings that end a turn.
pub const STOP_STRINGS: [&str; 2] = ["</search>", "</answer>"];

/// The tag that opens an answer.
pub const ANSWER_OPEN: &str = "<answer>";
/// The tag that opens a thought.
pub const THINK_OPEN: &str = "<think>";

/// The published instruction. "as your want" is the wording of the published data, which a
/// checkpoint trained on it expects.
///
/// # Source
/// `method §9`
pub const DEFAULT_INSTRUCTION: &str = "Answer the given question. You must conduct reasoning \
                                       inside <think> and </think> first every time you get new \
                                       information. After reasoning, if you find you lack some \
                                       knowledge, you can call a search engine by <search> query \
                                       </search> and it will return the top searched results \
                                       between <information> and </information>. You can search as \
                                       many times as your want. If you find no further external \
                                       knowledge needed, you can directly provide the answer \
                                       inside <answer> and </answer>, without detailed \
                                       illustrations. For example, <answer> Beijing </answer>. \
                                       Question: {question}\n";

/// Placeholder of the question in an instruction.
pub const QUESTION_PLACEHOLDER: &str = "{question}";

/// The agent's decision in a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Search(String),
    Answer(String),
    Invalid,
}

/// The turn's first `<search>…</search>` or `<answer>…</answer>`, inner text trimmed.
///
/// Differs from the reference, which asks the retriever for the empty text: a search without a
/// query is no action, because whatever came back would have nothing to do with the question.
/// # Source
/// `method §1.2`
pub fn parse_action(turn: &str) -> Action {
    match reference_action(turn) {
        Action::Search(query) if query.is_empty() => Action::Invalid,
        action => action,
    }
}

/// First match of `<(search|answer)>(.*?)</\1>` (dot matches newlines), inner text trimmed
/// (Python's str.strip).
pub fn reference_action(turn: &str) -> Action {
    let search = first_match(turn, "<search>", "</search>");
    let answer = first_match(turn, ANSWER_OPEN, "</answer>");
    match (search, answer) {
        (Some((at, query)), Some((other, _))) if at < other => Action::Search(query.to_owned()),
        (Some((_, query)), None) => Action::Search(query.to_owned()),
        (_, Some((_, prediction))) => Action::Answer(prediction.to_owned()),
        (None, None) => Action::Invalid,
    }
}

/// Start and stripped inner text of the first `open` that is followed by a `close`. That is always
/// the first `open`: if no `close` follows it, none follows a later one.
fn first_match<'t>(text: &'t str, open: &str, close: &str) -> Option<(usize, &'t str)> {
    let at = text.find(open)?;
    let inner = &text[at + open.len()..];
    Some((at, strip(&inner[..inner.find(close)?])))
}

/// The part of a generation that the reference keeps: everything up to the first `</search>`;
/// without one, up to the first `</answer>`.
///
/// Here generation ends at whichever stop string is complete first, so an answer followed by a
/// search keeps the answer alone.
///
/// # Source
/// `method §1.2`; PeterGriffinJin/Search-R1:search_r1/llm_agent/generation.py
/// `_postprocess_responses`
pub fn reference_cut(generation: &str) -> &str {
    STOP_STRINGS
        .iter()
        .find_map(|stop| generation.find(stop).map(|at| &generation[..at + stop.len()]))
        .unwrap_or(generation)
}

/// The part of a generation that this project's engine keeps: everything up to the stop string that
/// is complete first.
pub fn cut_at_first_stop(generation: &str) -> &str {
    crate::tokenizer::stream::find_stop(0, generation, &STOP_STRINGS)
        .map_or(generation, |(end, _)| &generation[..end])
}

/// `Doc i(Title: TITLE) TEXT\n` for each passage.
pub fn format_documents(passages: &[Passage]) -> String {
    passages
        .iter()
        .zip(1..)
        .map(|(passage, i)| format!("Doc {i}(Title: {}) {}\n", passage.title(), passage.text()))
        .collect()
}

/// `\n\n<information>DOCUMENTS</information>\n\n`, DOCUMENTS trimmed.
pub fn information_block(documents: &str) -> String {
    format!(
        "{INFORMATION_MARGIN}{INFORMATION_OPEN}{}{INFORMATION_CLOSE}{INFORMATION_MARGIN}",
        strip(documents)
    )
}

/// The agent reads this where a search found nothing.
pub const NOTHING_FOUND: &str = "No passage was found for this query.";

/// `\n\n<information>PASSAGES</information>\n\n`, PASSAGES as by [`format_documents`], or
/// [`NOTHING_FOUND`] where there are none.
/// # Source
/// `method §1.3`
pub fn search_observation(passages: &[Passage]) -> String {
    match passages {
        [] => information_block(NOTHING_FOUND),
        passages => information_block(&format_documents(passages)),
    }
}

/// The text between the tags of an [`information_block`]; `None` for any other text.
pub fn information_documents(observation: &str) -> Option<&str> {
    let inner = observation.strip_prefix(INFORMATION_MARGIN)?.strip_prefix(INFORMATION_OPEN)?;
    inner.strip_suffix(INFORMATION_MARGIN)?.strip_suffix(INFORMATION_CLOSE)
}

/// The passages as far as the agent sees them: their titles and texts within the first `n_bytes` of
/// [`format_documents`]. Passages that lie wholly after those bytes are left out.
pub fn shown_passages(passages: &[Passage], n_bytes: usize) -> Vec<Passage> {
    let mut room = n_bytes;
    let mut take = |text: &str| {
        let taken = text.floor_char_boundary(room.min(text.len()));
        room -= taken;
        if taken < text.len() {
            room = 0;
        }
        text[..taken].to_owned()
    };
    let mut shown = Vec::new();
    for (passage, i) in passages.iter().zip(1..) {
        take(&format!("Doc {i}(Title: "));
        let title = take(passage.title());
        take(") ");
        let text = take(passage.text());
        take("\n");
        if title.is_empty() && text.is_empty() {
            break;
        }
        shown.push(Passage { id: passage.id.clone(), contents: format!("{title}\n{text}") });
    }
    shown
}

/// The user message: `instruction` with its `{question}` replaced.
pub fn user_message(instruction: &str, question: &str) -> String {
    instruction.replace(QUESTION_PLACEHOLDER, question)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn oracle(text: &str) -> Vec<Value> {
        serde_json::from_str(text).expect("a list")
    }

    /// (action's name, its text) as the oracle writes them.
    fn parts(action: &Action) -> (Value, &str) {
        match action {
            Action::Search(query) => ("search".into(), query),
            Action::Answer(prediction) => ("answer".into(), prediction),
            Action::Invalid => (Value::Null, ""),
        }
    }

    #[test]
    fn every_recorded_generation_is_cut_parsed_and_answered_as_the_reference_does() {
        let cases = oracle(include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/oracles/text/actions.json"
        )));
        assert_eq!(cases.len(), 19);
        for case in &cases {
            let raw = case["raw"].as_str().unwrap();
            let truncated = reference_cut(raw);
            assert_eq!(truncated, case["truncated"].as_str().unwrap());
            let action = reference_action(truncated);
            assert_eq!(
                parts(&action),
                (case["action"].clone(), case["content"].as_str().unwrap()),
                "{raw}"
            );
            let untruncated = reference_action(raw);
            assert_eq!(
                parts(&untruncated),
                (case["untruncated_action"].clone(), case["untruncated_content"].as_str().unwrap()),
                "{raw}"
            );
            let observation = match &action {
                Action::Search(query) => information_block(&format!(" R[{query}] ")),
                Action::Answer(_) => String::new(),
                Action::Invalid => INVALID_ACTION.to_owned(),
            };
            assert_eq!(
                observation,
                case["observation_when_search_returns_' R[query] '"].as_str().unwrap(),
                "{raw}"
            );
            assert_eq!(
                u64::from(matches!(action, Action::Answer(_))),
                case["done"].as_u64().unwrap()
            );
            assert_eq!(
                u64::from(action != Action::Invalid),
                case["valid_action"].as_u64().unwrap()
            );
            assert_eq!(
                u64::from(matches!(action, Action::Search(_))),
                case["is_search"].as_u64().unwrap()
            );
        }
    }

    #[test]
    fn a_search_without_a_query_is_no_action_and_everything_else_is_the_references() {
        let cases = oracle(include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/oracles/text/actions.json"
        )));
        let raws = cases.iter().map(|case| case["raw"].as_str().unwrap());
        let differing: Vec<&str> =
            raws.filter(|raw| parse_action(raw) != reference_action(raw)).collect();
        assert_eq!(differing, ["<search></search>"]);
        for blank in [
            "<search></search>",
            "<search> \n\u{3000}</search>",
            "<think>x</think><search>\t</search>",
        ] {
            assert_eq!(parse_action(blank), Action::Invalid, "{blank:?}");
        }
        assert_eq!(parse_action("<search> ? </search>"), Action::Search("?".into()));
    }

    #[test]
    fn where_nothing_was_found_the_agent_reads_so() {
        assert_eq!(
            search_observation(&[]),
            format!("\n\n<information>{NOTHING_FOUND}</information>\n\n")
        );
    }

    #[test]
    fn our_cut_differs_from_the_references_only_where_an_answers_end_comes_first() {
        let cases = oracle(include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/oracles/text/actions.json"
        )));
        let differing: Vec<&str> = cases
            .iter()
            .map(|case| case["raw"].as_str().unwrap())
            .filter(|raw| cut_at_first_stop(raw) != reference_cut(raw))
            .collect();
        assert_eq!(
            differing,
            ["<answer>a</answer><search>q</search>", "<search>a</answer>b</search>"]
        );
        assert_eq!(cut_at_first_stop(differing[0]), "<answer>a</answer>");
    }

    #[test]
    fn documents_are_written_as_recorded() {
        let cases = oracle(include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/oracles/text/documents.json"
        )));
        assert_eq!(cases.len(), 3);
        for case in &cases {
            let passages: Vec<Passage> = case["result"]
                .as_array()
                .unwrap()
                .iter()
                .map(|hit| Passage {
                    id: String::new(),
                    contents: hit["document"]["contents"].as_str().unwrap().to_owned(),
                })
                .collect();
            assert_eq!(format_documents(&passages), case["text"].as_str().unwrap());
        }
    }

    #[test]
    fn shown_passages_end_where_their_text_was_cut() {
        let passage =
            |id: &str, contents: &str| Passage { id: id.to_owned(), contents: contents.to_owned() };
        let all = [passage("a", "\"A\"\nfirst é"), passage("b", "\"Bé\"\nsecond")];
        let documents = format_documents(&all);
        assert_eq!(information_documents(&search_observation(&all)), Some(strip(&documents)));
        assert_eq!(information_documents(INVALID_ACTION), None);
        assert_eq!(shown_passages(&all, documents.len()), all);
        for n_bytes in 0..documents.len() {
            let kept = &documents[..documents.floor_char_boundary(n_bytes)];
            let shown = shown_passages(&all, n_bytes);
            assert!(
                shown
                    .iter()
                    .flat_map(|passage| passage.contents.split('\n'))
                    .all(|part| kept.contains(part)),
                "{n_bytes}: {shown:?}"
            );
            for word in ["first", "é", "Bé", "second"] {
                assert_eq!(
                    shown.iter().any(|passage| passage.contents.contains(word)),
                    kept.contains(word),
                    "{word} of {kept:?}"
                );
            }
        }
    }

    #[test]
    fn an_unclosed_tag_does_not_hide_a_later_action() {
        assert_eq!(
            parse_action("<answer> no end <search> q </search>"),
            Action::Search("q".into())
        );
        assert_eq!(
            parse_action("</search><answer>\u{1c}a\u{3000}</answer>"),
            Action::Answer("a".into())
        );
        assert_eq!(
            parse_action("<search><answer>a</answer></search>"),
            Action::Search("<answer>a</answer>".into())
        );
    }

    #[test]
    fn the_default_instruction_is_the_published_one() {
        let oracle: Value = serde_json::from_str(include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/oracles/text/chat_templates.json"
        )))
        .unwrap();
        assert_eq!(DEFAULT_INSTRUCTION, oracle["instruction_template"].as_str().unwrap());
        assert!(user_message(DEFAULT_INSTRUCTION, "who?").ends_with(" Question: who?\n"));
    }
}
