//! Actions, observations, prompt text (method §1 and §9).
use crate::data::corpus::Passage;

/// The strings that end a turn.
pub const STOP_STRINGS: [&str; 2] = ["</search>", "</answer>"];
pub const INVALID_ACTION: &str = "\nMy previous action is invalid. If I want to search, I should put the query between <search> and </search>. If I want to give the final answer, I should put the answer between <answer> and </answer>. Let me try again.\n";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Search(String),
    Answer(String),
    Invalid,
}

/// First match of `<(search|answer)>(.*?)</\1>` (dot matches newlines), inner text trimmed (Python's str.strip).
pub fn parse_action(_turn: &str) -> Action {
    todo!()
}
/// `Doc i(Title: TITLE) TEXT\n` for each passage.
pub fn format_documents(_passages: &[Passage]) -> String {
    todo!()
}
/// `\n\n<information>PASSAGES</information>\n\n`, PASSAGES trimmed.
pub fn search_observation(_passages: &[Passage]) -> String {
    todo!()
}
/// The user message: `instruction` with its `{question}` replaced.
pub fn user_message(_instruction: &str, _question: &str) -> String {
    todo!()
}
