//! Formats in which a chat becomes text: the names that a recipe knows, and the built-in formats
//! behind them.
//!
//! A format is a Jinja program, as models carry them; `crate::tokenizer::template` renders both.
//! The built-in ones are for folders without one of their own; `auto` takes the model's.
//!
//! # Source
//! What the `chat_template` of Qwen2.5-Instruct and of Llama-3 / 3.1 / 3.2-Instruct writes for
//! plain messages; tests/oracles/text/chat_templates.json.
use serde::{Deserialize, Serialize};
use serde_json::json;

/// A model's chat format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChatTemplate {
    /// The one that lies in the model's folder.
    Auto,
    /// `<|im_start|>` blocks; the default system prompt is inserted.
    #[serde(rename = "qwen2_5")]
    Qwen25,
    /// Plain Llama 3: no system header of its own.
    #[serde(rename = "llama3")]
    Llama3,
    /// Llama 3.1 / 3.2 with the dated system header.
    #[serde(rename = "llama3_1")]
    Llama31,
    /// Llama 3.2: as 3.1.
    #[serde(rename = "llama3_2")]
    Llama32,
    /// The text as it is (models without a chat format); several messages are separated by one line
    /// feed.
    Plain,
}

impl ChatTemplate {
    /// The program of a built-in format; none for `auto`.
    pub fn source(self) -> Option<&'static str> {
        match self {
            Self::Auto => None,
            Self::Qwen25 => Some(include_str!("templates/qwen2_5.jinja")),
            Self::Llama3 => Some(include_str!("templates/llama3.jinja")),
            Self::Llama31 | Self::Llama32 => Some(include_str!("templates/llama3_1.jinja")),
            Self::Plain => Some(include_str!("templates/plain.jinja")),
        }
    }

    /// As recipes write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Qwen25 => "qwen2_5",
            Self::Llama3 => "llama3",
            Self::Llama31 => "llama3_1",
            Self::Llama32 => "llama3_2",
            Self::Plain => "plain",
        }
    }

    /// tokenizer_config.json of a tokenizer that has none: the format, and what ends a turn.
    pub fn tokenizer_config(self) -> String {
        let eos_token = match self {
            Self::Auto | Self::Plain => None,
            Self::Qwen25 => Some("<|im_end|>"),
            Self::Llama3 | Self::Llama31 | Self::Llama32 => Some("<|eot_id|>"),
        };
        let config = json!({
            "chat_template": self.source().map(str::trim_end),
            "clean_up_tokenization_spaces": false,
            "eos_token": eos_token,
            "tokenizer_class": "PreTrainedTokenizerFast",
        });
        format!("{config:#}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_a_recipe_writes() {
        for template in [
            ChatTemplate::Auto,
            ChatTemplate::Qwen25,
            ChatTemplate::Llama3,
            ChatTemplate::Llama31,
            ChatTemplate::Llama32,
            ChatTemplate::Plain,
        ] {
            assert_eq!(serde_json::to_value(template).expect("a string"), template.name());
        }
    }
}
