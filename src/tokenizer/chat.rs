//! Chat templates, rendered exactly as the model families' own.
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub role: String,
    pub content: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChatTemplate {
    /// `<|im_start|>` blocks; the default system prompt is inserted.
    #[serde(rename = "qwen2_5")]
    Qwen25,
    /// Plain Llama 3: no system header of its own.
    #[serde(rename = "llama3")]
    Llama3,
    /// Llama 3.1 / 3.2 with the dated system header.
    #[serde(rename = "llama3_1")]
    Llama31,
    #[serde(rename = "llama3_2")]
    Llama32,
    /// The text as it is (models without a chat format).
    Plain,
}
impl ChatTemplate {
    /// `date`: the "Today Date" of the dated templates, e.g. "26 Jul 2024".
    pub fn render(self, _messages: &[Message], _add_generation_prompt: bool, _date: &str) -> String {
        todo!()
    }
    /// The token that ends an assistant's turn ("<|im_end|>", "<|eot_id|>").
    pub fn end_of_turn(self) -> Option<&'static str> {
        todo!()
    }
}
