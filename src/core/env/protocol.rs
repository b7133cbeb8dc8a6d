//! The protocol's text: actions (method §1.2), observations (method §1.3), the instruction (method
//! §9). Pure functions of strings.
//!
//! The reference is a Python program; white space and matching follow its `str.strip` and `re`.
//! Functions named `reference_*` behave as the reference where this project differs on purpose; the
//! conformance run calls them.

use super::search::Passage;
use crate::text::strip;

/// The strings that end a turn.
pub const STOP_STRINGS: [&str; 2] = ["</search>", "</answer>"];

/// The tag that opens an answer.
pub const ANSWER_OPEN: &str = "<answer>";
/// The tag that opens a thought.
pub const THINK_OPEN: &str = "<think>";

/// Reply of the environment to a turn without a search or an answer.
pub const INVALID_ACTION: &str = "\nMy previous action is invalid. If I want to search, I should \
                                  put the query between <search> and </search>. If I want to give \
                                  the final answer, I should put the answer between <answer> and \
                                  </answer>. Let me try again.\n";
/// Tags around the retrieved passages.
pub const INFORMATION_OPEN: &str = "<information>";
/// End of an observation.
pub const INFORMATION_CLOSE: &str = "</information>";
/// White space that the environment writes before and behind a block.
pub const INFORMATION_MARGIN: &str = "\n\n";

/// Placeholder of the question in an instruction.
pub const QUESTION_PLACEHOLDER: &str = "{question}";

/// The agent's decision in a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// `<search> query </search>`, the query trimmed and not empty.
    Search(String),
    /// `<answer> text </answer>`, trimmed.
    Answer(String),
    /// Neither.
    Invalid,
}

/// The turn's first `<search>…</search>` or `<answer>…</answer>`, inner text trimmed.
///
/// Differs from the reference, which asks the retriever for the empty text: a search without a
/// query is no action, because whatever came back would have nothing to do with the question.
///
/// ```
/// use dgpo_core::env::protocol::{Action, parse_action};
///
/// let turn = "<think> Who was it? </think> <search> Nolmar director </search>";
/// assert_eq!(parse_action(turn), Action::Search("Nolmar director".to_owned()));
/// assert_eq!(parse_action("I do not know."), Action::Invalid);
/// ```
///
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
    use crate::settings::EpisodeRecipe;
    use serde_json::Value;

    fn oracle(text: &str) -> Vec<Value> {
        serde_json::from_str(text).expect("a list")
    }

    #[test]
    fn a_search_without_a_query_is_no_action_and_everything_else_is_the_references() {
        let cases = oracle(include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/oracles/text/actions.json"
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
    fn documents_are_written_as_recorded() {
        let cases = oracle(include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/oracles/text/documents.json"
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
            "/../../tests/oracles/text/chat_templates.json"
        )))
        .unwrap();
        let instruction = EpisodeRecipe::default().instruction;
        assert_eq!(instruction, oracle["instruction_template"].as_str().unwrap());
        assert!(user_message(&instruction, "who?").ends_with(" Question: who?\n"));
    }
}
