//! Incremental decoding of a growing token sequence, and stop strings on its text.
//!
//! Stop strings are searched for in decoded text because they straddle tokens in many ways (`</`,
//! `search`, `>`, or `>` fused with the line feed after it). Decoding the whole turn after every
//! token would be quadratic; the stream decodes each token once (byte-level vocabularies) or a
//! window of a few tokens (all others), so a token costs O(1) amortised.
//!
//! ```text
//! push(" </"), push("search"), push(">\n")   text " </search>\n"  find_stop -> (10, 0): at byte 10
//! ```

use super::Tokenizer;

/// A character of UTF-8 has at most four bytes: text that still ends in U+FFFD after so many tokens
/// will not be completed.
const MAX_HELD_TOKENS: usize = 4;

/// A decoder for one token at a time; a multi-byte character that straddles tokens appears with its
/// last byte.
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    text: String,
    /// Length of `text` before the last push.
    len_before: usize,
    /// Byte-level vocabularies: the first bytes of a character that is not complete.
    held_bytes: Vec<u8>,
    /// Other vocabularies: tokens already in `text` that give the held ones their context, then the
    /// held ones.
    window: Vec<u32>,
    n_context: usize,
}

impl<'t> TextStream<'t> {
    /// A stream before its first token.
    pub fn new(tokenizer: &'t Tokenizer) -> Self {
        Self {
            tokenizer,
            text: String::new(),
            len_before: 0,
            held_bytes: Vec::new(),
            window: Vec::new(),
            n_context: 0,
        }
    }

    /// Appends a token; returns the text that has become final.
    pub fn push(&mut self, id: u32) -> &str {
        self.len_before = self.text.len();
        match &self.tokenizer.token_bytes {
            Some(table) => {
                self.held_bytes.extend_from_slice(table.of(id));
                let n_final = push_complete_characters(&self.held_bytes, &mut self.text);
                self.held_bytes.drain(..n_final);
            }
            None => {
                self.window.push(id);
                self.push_window(false);
            }
        }
        &self.text[self.len_before..]
    }

    /// All final text so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The whole text, with U+FFFD for a character that was never completed. For byte-level
    /// vocabularies this is exactly `Tokenizer::decode` of all pushed ids.
    pub fn finish(mut self) -> String {
        if !self.held_bytes.is_empty() {
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        if self.window.len() > self.n_context {
            self.push_window(true);
        }
        self.text
    }

    /// The stop string that the last push completed: (byte after its end, its index in `stops`).
    pub fn completed_stop<S: AsRef<str>>(&self, stops: &[S]) -> Option<(usize, usize)> {
        find_stop(self.len_before, &self.text, stops)
    }

    /// Appends the held tokens' text, unless it ends in a character that the next token may
    /// complete.
    fn push_window(&mut self, is_end: bool) {
        let whole = self.tokenizer.decode(&self.window);
        let n_held = self.window.len() - self.n_context;
        if whole.ends_with(char::REPLACEMENT_CHARACTER) && n_held < MAX_HELD_TOKENS && !is_end {
            return;
        }
        let context = self.tokenizer.decode(&self.window[..self.n_context]);
        match whole.strip_prefix(context.as_str()) {
            Some(new) => self.text.push_str(new),
            // Byte fallback rewrites a whole run of bytes once one of them is bad; text that was
            // given out is not changed.
            None => self.text.push_str(&self.tokenizer.decode(&self.window[self.n_context..])),
        }
        // The last tokens suffice as context: decoders depend on a token and on whether it is the
        // first.
        self.window.drain(..self.n_context);
        self.n_context = self.window.len();
    }
}

/// Appends the text of the bytes that cannot change any more to `text` and returns their number;
/// the rest is the start of one character. Bad sequences become U+FFFD exactly as in
/// `String::from_utf8_lossy`.
fn push_complete_characters(bytes: &[u8], text: &mut String) -> usize {
    let mut n_final = 0;
    loop {
        match std::str::from_utf8(&bytes[n_final..]) {
            Ok(valid) => {
                text.push_str(valid);
                return bytes.len();
            }
            Err(error) => {
                let n_valid = error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&bytes[n_final..n_final + n_valid]));
                n_final += n_valid;
                let Some(n_bad) = error.error_len() else { return n_final };
                text.push(char::REPLACEMENT_CHARACTER);
                n_final += n_bad;
            }
        }
    }
}

/// The first stop string that the text after `text_before_len` completes: (byte after its end, its
/// index in `stops`). Earlier text takes part in the match, but a stop string that lies wholly in
/// it was found before. Of two that end at the same byte, the first in the list wins.
pub fn find_stop<S: AsRef<str>>(
    text_before_len: usize,
    text: &str,
    stops: &[S],
) -> Option<(usize, usize)> {
    stops
        .iter()
        .enumerate()
        .filter_map(|(stop_idx, stop)| {
            let stop = stop.as_ref();
            // The first place where a match would end after the earlier text; matches start at
            // characters.
            let start = text.ceil_char_boundary((text_before_len + 1).saturating_sub(stop.len()));
            text[start..].find(stop).map(|found| (start + found + stop.len(), stop_idx))
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{any_ids, real_tokenizers},
        *,
    };
    use crate::testing::byte_level_tokenizer;
    use proptest::prelude::*;

    const STOPS: [&str; 2] = ["</search>", "</answer>"];

    fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
        let mut stream = TextStream::new(tokenizer);
        let mut joined = String::new();
        for &id in ids {
            joined.push_str(stream.push(id));
            assert_eq!(joined, stream.text());
        }
        stream.finish()
    }

    #[test]
    fn streaming_any_bytes_gives_what_decoding_them_at_once_gives() {
        let tokenizer = byte_level_tokenizer();
        proptest!(ProptestConfig::with_cases(2000), |(ids in any_ids(&tokenizer))| {
            prop_assert_eq!(streamed(&tokenizer, &ids), tokenizer.decode(&ids));
        });
    }

    #[test]
    fn a_character_appears_with_its_last_byte() {
        let tokenizer = byte_level_tokenizer();
        let ids = tokenizer.encode("🙂").unwrap();
        assert_eq!(ids.len(), 4, "the trained vocabulary knows no such character");
        let mut stream = TextStream::new(&tokenizer);
        let steps: Vec<String> = ids.iter().map(|&id| stream.push(id).to_owned()).collect();
        assert_eq!(steps, ["", "", "", "🙂"]);
    }

    #[test]
    fn a_stop_string_is_found_when_its_last_character_is_there() {
        let tokenizer = byte_level_tokenizer();
        let text = "<think> 中 </think><search> who </search>\n\n more </answer>";
        let mut stream = TextStream::new(&tokenizer);
        let found = tokenizer.encode(text).unwrap().into_iter().find_map(|id| {
            stream.push(id);
            stream.completed_stop(&STOPS)
        });
        let end = text.find("</search>").unwrap() + "</search>".len();
        assert_eq!(found, Some((end, 0)));
        assert!(!stream.text().contains("more"));
    }

    #[test]
    fn the_stop_string_that_is_complete_first_wins() {
        assert_eq!(find_stop(0, "a</answer></search>", &STOPS), Some((10, 1)));
        assert_eq!(find_stop(0, "</search></answer>", &STOPS), Some((9, 0)));
        assert_eq!(find_stop(0, "</search", &STOPS), None);
        // Straddles the earlier text; lies in it; ends exactly at its end.
        assert_eq!(find_stop(8, "</search>\n", &STOPS), Some((9, 0)));
        assert_eq!(find_stop(9, "</search>\n", &STOPS), None);
        assert_eq!(find_stop(9, "</search></search>", &STOPS), Some((18, 0)));
        assert_eq!(find_stop(5, "ééé</search>", &STOPS), Some((15, 0)));
        assert_eq!(find_stop(0, "abc", &["bc", "abc"]), Some((3, 0)));
    }

    #[test]
    fn incremental_search_finds_what_a_search_of_the_whole_text_finds() {
        let text = "é</sea</search>中</answer></answer>\n</search>";
        let mut ends = Vec::new();
        let boundaries: Vec<usize> = text.char_indices().map(|(i, c)| i + c.len_utf8()).collect();
        let mut before = 0;
        for &len in &boundaries {
            ends.extend(find_stop(before, &text[..len], &STOPS));
            before = len;
        }
        let mut expected: Vec<(usize, usize)> = (0..2)
            .flat_map(|s| text.match_indices(STOPS[s]).map(move |(i, m)| (i + m.len(), s)))
            .collect();
        expected.sort_unstable();
        assert_eq!(ends, expected);
    }

    #[test]
    fn real_tokenizers_stream_text_as_they_decode_it() {
        let texts = [
            "Who wrote \"Les Misérables\", 中国 or 🙂?\n\n<answer> Victor Hugo's </answer>",
            "don't . it 's ,",
            "  two  spaces",
        ];
        for (tokenizer, _) in real_tokenizers() {
            for text in texts {
                let ids = tokenizer.encode(text).unwrap();
                assert_eq!(
                    streamed(&tokenizer, &ids),
                    tokenizer.decode(&ids),
                    "{}",
                    tokenizer.path().display()
                );
            }
        }
    }

    #[test]
    fn a_byte_fallback_tokenizer_streams_text_as_it_decodes_it() {
        let Some(folder) = crate::testing::test_data("weights") else { return };
        for name in ["stories260k", "multilingual-e5-small"] {
            let tokenizer = Tokenizer::from_path(&folder.join(name)).unwrap();
            for text in ["Once upon a time, 中 🙂 end", " two  spaces", "é"] {
                let ids = tokenizer.encode_with_special(text).unwrap();
                assert_eq!(streamed(&tokenizer, &ids), tokenizer.decode(&ids), "{name}: {text}");
            }
        }
    }
}
