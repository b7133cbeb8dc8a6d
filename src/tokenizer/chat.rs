//! Chat templates, rendered exactly as the model families' own.
//!
//! The templates are Jinja programs inside tokenizer_config.json; what they do for plain messages is a few lines, written out here.
//! Tool calls are not part of the protocol.
//!
//! # Source
//! The `chat_template` of Qwen2.5-Instruct and Llama-3 / 3.1 / 3.2-Instruct; tests/oracles/text/chat_templates.json.

pub use crate::config::ChatTemplate;
use crate::data::text::strip;
use serde::{Deserialize, Serialize};

/// What Qwen2.5 puts in front of a chat without a system message.
pub const QWEN25_SYSTEM: &str = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// "system", "user" or "assistant".
    pub role: String,
    pub content: String,
}

impl ChatTemplate {
    /// The chat as text, special tokens written out (Llama's BOS too: encode it without adding any).
    ///
    /// `date`: the "Today Date" of the dated templates, e.g. "26 Jul 2024".
    pub fn render(self, messages: &[Message], add_generation_prompt: bool, date: &str) -> String {
        match self {
            Self::Qwen25 => qwen25(messages, add_generation_prompt),
            Self::Llama3 => llama3(messages, add_generation_prompt),
            Self::Llama31 | Self::Llama32 => llama31(messages, add_generation_prompt, date),
            Self::Plain => messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n"),
        }
    }

    /// Tokens that a tokenizer must know as single ids.
    pub fn special_tokens(self) -> &'static [&'static str] {
        match self {
            Self::Qwen25 => &["<|im_start|>", "<|im_end|>"],
            Self::Llama3 | Self::Llama31 | Self::Llama32 => &[LLAMA3_BOS, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
            Self::Plain => &[],
        }
    }

    /// The token that ends an assistant's turn ("<|im_end|>", "<|eot_id|>").
    pub fn end_of_turn(self) -> Option<&'static str> {
        match self {
            Self::Qwen25 => Some("<|im_end|>"),
            Self::Llama3 | Self::Llama31 | Self::Llama32 => Some("<|eot_id|>"),
            Self::Plain => None,
        }
    }
}

fn qwen25(messages: &[Message], add_generation_prompt: bool) -> String {
    let block = |role: &str, content: &str| format!("<|im_start|>{role}\n{content}<|im_end|>\n");
    let mut text = String::new();
    if messages.first().is_none_or(|message| message.role != "system") {
        text.push_str(&block("system", QWEN25_SYSTEM));
    }
    for message in messages {
        text.push_str(&block(&message.role, &message.content));
    }
    if add_generation_prompt {
        text.push_str("<|im_start|>assistant\n");
    }
    text
}

const LLAMA3_BOS: &str = "<|begin_of_text|>";
const LLAMA3_GENERATION_PROMPT: &str = "<|start_header_id|>assistant<|end_header_id|>\n\n";

/// Llama's templates trim every content.
fn llama3_block(role: &str, content: &str) -> String {
    format!("<|start_header_id|>{role}<|end_header_id|>\n\n{}<|eot_id|>", strip(content))
}

fn llama3(messages: &[Message], add_generation_prompt: bool) -> String {
    let mut text = LLAMA3_BOS.to_owned();
    for message in messages {
        text.push_str(&llama3_block(&message.role, &message.content));
    }
    if add_generation_prompt {
        text.push_str(LLAMA3_GENERATION_PROMPT);
    }
    text
}

fn llama31(messages: &[Message], add_generation_prompt: bool, date: &str) -> String {
    let (system, others) = match messages.split_first() {
        Some((first, others)) if first.role == "system" => (strip(&first.content), others),
        _ => ("", messages),
    };
    // Not through `llama3_block`: the header ends in two line feeds that stay when there is no system message.
    let mut text = format!(
        "{LLAMA3_BOS}<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: {date}\n\n{system}<|eot_id|>"
    );
    for message in others {
        text.push_str(&llama3_block(&message.role, &message.content));
    }
    if add_generation_prompt {
        text.push_str(LLAMA3_GENERATION_PROMPT);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Oracle {
        cases: Vec<Case>,
    }
    #[derive(Deserialize)]
    struct Case {
        family: ChatTemplate,
        messages: Vec<Message>,
        add_generation_prompt: bool,
        date_string: String,
        text: String,
    }

    #[test]
    fn every_recorded_chat_is_rendered_exactly() {
        let oracle = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracles/text/chat_templates.json"));
        let oracle: Oracle = serde_json::from_str(oracle).unwrap();
        assert_eq!(oracle.cases.len(), 32);
        for case in &oracle.cases {
            assert_eq!(case.family.render(&case.messages, case.add_generation_prompt, &case.date_string), case.text);
        }
    }

    #[test]
    fn the_plain_template_is_the_text_itself() {
        let message = Message { role: "user".into(), content: " q\n".into() };
        assert_eq!(ChatTemplate::Plain.render(&[message], true, ""), " q\n");
    }
}
