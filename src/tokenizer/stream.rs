//! Incremental decoding of a growing token sequence.
use super::Tokenizer;

/// Decodes token by token; a multi-byte character that straddles tokens appears when its last byte is there.
pub struct TextStream<'t> {
    _t: &'t Tokenizer,
}
impl<'t> TextStream<'t> {
    pub fn new(tokenizer: &'t Tokenizer) -> Self {
        Self { _t: tokenizer }
    }
    /// Appends a token; returns the text that has become final.
    pub fn push(&mut self, _id: u32) -> &str {
        todo!()
    }
    /// All final text so far.
    pub fn text(&self) -> &str {
        todo!()
    }
}
