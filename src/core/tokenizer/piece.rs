//! The text of a single token, for display.
//!
//! A token may hold a part of a character: byte-level vocabularies cut characters (`中` may be three
//! tokens of one byte each). Others write a mark for a space. Nothing here is ever encoded again.
use super::Tokenizer;

/// The mark that Metaspace vocabularies write for a space.
const SPACE_MARK: char = '\u{2581}';

impl Tokenizer {
    /// The text of a token. Bytes that are not text by themselves are written as `\xE4`; an id
    /// outside the vocabulary is `[id 976]`.
    pub fn piece(&self, id: u32) -> String {
        match (self.inner.id_to_token(id), &self.token_bytes) {
            (None, _) => format!("[id {id}]"),
            (Some(_), Some(table)) => shown(table.of(id)),
            (Some(token), None) => token.replace(SPACE_MARK, " "),
        }
    }
}

fn shown(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02X}")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{testing::byte_level_tokenizer, tokenizer::tests::real_tokenizers};

    fn pieces(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
        tokenizer.encode(text).expect("encodes").into_iter().map(|id| tokenizer.piece(id)).collect()
    }

    #[test]
    fn pieces_of_plain_text_read_as_the_text() {
        let tokenizer = byte_level_tokenizer();
        let text = "<think> the answer </think>\n\n<|im_end|>";
        let pieces = pieces(&tokenizer, text);
        assert!(pieces.len() > 3);
        assert_eq!(pieces.concat(), text);
        assert_eq!(pieces.last().map(String::as_str), Some("<|im_end|>"));
    }

    #[test]
    fn bytes_of_a_cut_character_are_written_in_hexadecimal() {
        assert_eq!(shown("中".as_bytes()), "中");
        assert_eq!(shown(&[b'a', 0xE4, 0xB8]), "a\\xE4\\xB8");
        assert_eq!(shown(&[0xAD, b' ']), "\\xAD ");
        // No token of the small vocabulary holds the whole character.
        assert_eq!(pieces(&byte_level_tokenizer(), "🙂").concat(), "\\xF0\\x9F\\x99\\x82");
    }

    #[test]
    fn an_id_outside_the_vocabulary_is_shown_as_one() {
        let tokenizer = byte_level_tokenizer();
        let outside = tokenizer.n_tokens() as u32;
        assert_eq!(tokenizer.piece(outside), format!("[id {outside}]"));
    }

    #[test]
    fn real_vocabularies_show_every_token() {
        for tokenizer in real_tokenizers().into_iter().map(|(tokenizer, _)| tokenizer) {
            let n_empty = (0..tokenizer.n_tokens() as u32)
                .filter(|&id| tokenizer.piece(id).is_empty())
                .count();
            assert_eq!(n_empty, 0, "{}", tokenizer.path().display());
        }
    }
}
