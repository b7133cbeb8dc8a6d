//! Encoding of only the start of a text, where only its first tokens are wanted.
//!
//! Encoding takes some 50 bytes of memory a byte of text, and 512 tokens of a passage are a few
//! kilobytes of it. The rest is cut off before the tokenizer sees it. The ids that are kept are
//! those of the whole text: they end well before the cut, which is made before a space, where
//! tokenizers split in any case.

/// Text is first cut to this many bytes a wanted token. English has 4 to 5 with the vocabularies of
/// language models; where this is too few (long runs of spaces, characters that are dropped), more
/// is taken.
const BYTES_A_TOKEN: usize = 16;
/// Number of tokens that must have been read beyond the wanted ones: near the cut, a piece without
/// spaces may be split in another way.
const SLACK_TOKENS: usize = 64;
/// Factor by which the part of the text grows where it was too short.
const GROWTH: usize = 4;
/// Farthest distance in bytes that a cut moves back to find a space.
const LONGEST_WORD: usize = 1024;

/// The ids of `text`, or if it is long those of a beginning of it: more than `n_tokens`, of which
/// the first `n_tokens` are the whole text's.
/// # Errors
/// Those of `encode`.
pub fn first_tokens<E>(
    text: &str,
    n_tokens: usize,
    mut encode: impl FnMut(&str) -> Result<Vec<u32>, E>,
) -> Result<Vec<u32>, E> {
    let n_needed = n_tokens.saturating_add(SLACK_TOKENS);
    let mut n_bytes = n_needed.saturating_mul(BYTES_A_TOKEN);
    loop {
        let beginning = cut(text, n_bytes);
        let ids = encode(beginning)?;
        if beginning.len() == text.len() || ids.len() >= n_needed {
            return Ok(ids);
        }
        n_bytes = n_bytes.saturating_mul(GROWTH);
    }
}

/// The start of `text`, at most `n_bytes` long, ending before a space if one is near.
fn cut(text: &str, n_bytes: usize) -> &str {
    if text.len() <= n_bytes {
        return text;
    }
    let end = text.floor_char_boundary(n_bytes);
    let bytes = text.as_bytes();
    let is_border = |&at: &usize| bytes[at] == b' ' && !bytes[at - 1].is_ascii_whitespace();
    let at = (end.saturating_sub(LONGEST_WORD).max(1)..end).rev().find(is_border).unwrap_or(end);
    &text[..at]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        rng::{Key, Purpose},
        testing::{byte_level_tokenizer, repository},
        tokenizer::{Tokenizer, tests::real_tokenizers},
    };

    /// Long texts of many kinds: words, no spaces at all, mostly spaces, dropped characters,
    /// symbols, lines, other scripts.
    fn texts() -> Vec<String> {
        let alphabets: [&[&str]; 8] = [
            &["the", " ", "house", "s", ", ", "Paris ", "of ", "naïve ", "1984 "],
            &["a", "b", "ab"],
            &[" ", "          ", "x"],
            &["\u{0}", "\u{200d}", "\u{301}", "e", " "],
            &["-", "=", "*", " ", "\n"],
            &["\n", "\r\n", "\t", "word", " "],
            &["中国", "的", "。", "是", "，"],
            &["🙂", "<|im_end|>", " <answer>", "'s", "É"],
        ];
        let key = Key::new(5, Purpose::World);
        let text = |kind: usize| {
            let key = key.fold(kind as u64);
            (0..20_000).map(|at| alphabets[kind][key.below(at, alphabets[kind].len())]).collect()
        };
        (0..alphabets.len()).map(text).chain(["a".repeat(50_000), "=".repeat(50_000)]).collect()
    }

    #[test]
    fn the_kept_ids_are_those_of_the_whole_text() {
        let tiny = ["configs/tiny/student", "configs/tiny/encoder"]
            .map(|path| Tokenizer::from_path(&repository(path)).expect("built in"));
        let real = real_tokenizers().into_iter().map(|(tokenizer, _)| tokenizer);
        for tokenizer in real.chain(tiny).chain([byte_level_tokenizer()]) {
            for text in texts() {
                let whole = tokenizer.encode_with_special(&text).expect("encodes");
                for n_tokens in [1, 32, 500] {
                    let ids =
                        first_tokens(&text, n_tokens, |text| tokenizer.encode_with_special(text))
                            .expect("encodes");
                    assert_eq!(ids.len() > n_tokens, whole.len() > n_tokens);
                    let n_kept = n_tokens.min(whole.len());
                    let start: String = text.chars().take(20).collect();
                    assert_eq!(
                        ids[..n_kept],
                        whole[..n_kept],
                        "{} {start:?} {n_tokens}",
                        tokenizer.path().display()
                    );
                }
            }
        }
    }

    #[test]
    fn of_a_long_text_little_is_encoded() {
        let text = "some words of a passage ".repeat(1 << 16);
        let mut n_bytes = 0;
        let ids = first_tokens(&text, 256, |text| {
            n_bytes += text.len();
            Ok::<_, ()>(text.split(' ').map(|_| 0).collect())
        });
        assert!(ids.expect("never fails").len() > 256);
        assert!(n_bytes <= (256 + SLACK_TOKENS) * BYTES_A_TOKEN, "{n_bytes}");
    }

    #[test]
    fn a_short_text_is_encoded_whole_and_once() {
        let mut seen = Vec::new();
        let ids = first_tokens("short", 1, |text| {
            seen.push(text.to_owned());
            Ok::<_, ()>(vec![1, 2, 3])
        });
        assert_eq!((ids, seen), (Ok(vec![1, 2, 3]), vec!["short".to_owned()]));
    }
}
