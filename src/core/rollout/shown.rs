//! The part of an observation that is shown to the agent.
//!
//! An observation has at most `episode.max_obs_length` tokens. Three passages of a hundred words
//! are often longer (with Qwen2.5's tokenizer about three in ten are longer than the published
//! 500), and the reference then cuts off the end: `</information>` and the end of the last passage.
//! Here the passages are cut and the closing tag stays, so that the agent always sees where the
//! environment's text ends.
use crate::{
    env::protocol::{information_block, information_documents},
    settings::ObservationCut,
    text::is_space,
    tokenizer::first_tokens,
};

/// Farthest distance in bytes that a cut inside a word moves back to the start of the word. Text
/// without spaces (Chinese) is cut between characters.
const LONGEST_WORD: usize = 40;

/// An observation as it is appended to the episode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The tokens that are appended.
    pub ids: Vec<u32>,
    /// Bytes of the passages' text that are in `ids`; `None` if nothing was cut.
    pub n_document_bytes: Option<usize>,
}

/// The ids of an observation in at most `max` tokens.
///
/// A limit below the tokens of an empty `<information>` block leaves no room for the tag. Then, and
/// for any other text, the first `max` tokens are kept.
/// # Errors
/// Those of `encode`.
/// # Source
/// `method §1.3`
pub fn fit<E>(
    text: &str,
    max: usize,
    cut: ObservationCut,
    encode: &dyn Fn(&str) -> Result<Vec<u32>, E>,
) -> Result<Shown, E> {
    // Of a very long observation only as much text is read as its first tokens need.
    let mut read = text;
    let mut ids = first_tokens(text, max, |beginning| {
        read = &text[..beginning.len()];
        encode(beginning)
    })?;
    if ids.len() <= max {
        return Ok(Shown { ids, n_document_bytes: None });
    }
    let documents = information_documents(text);
    let before = documents.and_then(|documents| text.find(documents)).unwrap_or(0);
    let documents = documents
        .map(|documents| &documents[..documents.len().min(read.len().saturating_sub(before))]);
    let text = read;
    if let (ObservationCut::Passages, Some(documents)) = (cut, documents)
        && let Some(at) = longest(documents, max, &|kept| encode(&information_block(kept)))?
    {
        let mut at = word_begin(documents, at);
        loop {
            let ids = encode(&information_block(&documents[..at]))?;
            // One word less rarely makes one token more.
            if ids.len() <= max || at == 0 {
                return Ok(Shown { ids, n_document_bytes: Some(at) });
            }
            at = documents.floor_char_boundary(at - 1);
        }
    }
    let n_bytes = longest(text, max, encode)?.unwrap_or(0);
    ids.truncate(max);
    Ok(Shown { ids, n_document_bytes: Some(n_bytes.saturating_sub(before)) })
}

/// The largest number of bytes of `text`, found by bisection, whose `encode` has at most `max`
/// tokens; `None` if the empty text already has more.
fn longest<E>(
    text: &str,
    max: usize,
    encode: &dyn Fn(&str) -> Result<Vec<u32>, E>,
) -> Result<Option<usize>, E> {
    if encode("")?.len() > max {
        return Ok(None);
    }
    let (mut fits, mut beyond) = (0, text.len() + 1);
    loop {
        let middle = text.floor_char_boundary(fits + (beyond - fits) / 2);
        if middle <= fits {
            // No character boundary lies in the lower half, so the next one above is tried.
            let next = text.ceil_char_boundary(fits + 1);
            if fits == text.len() || next >= beyond {
                return Ok(Some(fits));
            }
            if encode(&text[..next])?.len() > max {
                return Ok(Some(fits));
            }
            fits = next;
        } else if encode(&text[..middle])?.len() <= max {
            fits = middle;
        } else {
            beyond = middle;
        }
    }
}

/// `at`, or the start of the word that it would cut.
fn word_begin(text: &str, at: usize) -> usize {
    let is_inside = |at: usize| !text[at..].starts_with(is_space) && at < text.len();
    let begin = text[..at].trim_end_matches(|c| !is_space(c)).len();
    if is_inside(at) && begin > 0 && at - begin <= LONGEST_WORD { begin } else { at }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{
        protocol::{INVALID_ACTION, information_block, search_observation},
        search::Passage,
    };
    use proptest::{collection::vec, prelude::*, sample::select};

    /// One token a byte.
    fn bytes(text: &str) -> Result<Vec<u32>, ()> {
        Ok(text.bytes().map(u32::from).collect())
    }

    fn text_of(shown: &Shown) -> String {
        String::from_utf8(shown.ids.iter().map(|&id| id as u8).collect()).expect("whole characters")
    }

    fn fitted(text: &str, max: usize) -> Shown {
        fit(text, max, ObservationCut::Passages, &bytes).expect("never fails")
    }

    const TEXT: &str = "\n\n<information>Doc 1(Title: \"T\") one two three</information>\n\n";

    #[test]
    fn a_very_long_observation_is_shown_as_if_it_ended_early_and_hardly_read() {
        let block = |n: usize| {
            information_block(&format!("Doc 1(Title: \"T\") {}", "some words ".repeat(n)))
        };
        for cut in [ObservationCut::Passages, ObservationCut::Reference] {
            let longest = std::cell::Cell::new(0);
            let counted = |text: &str| {
                longest.set(longest.get().max(text.len()));
                bytes(text)
            };
            let shown = fit(&block(1_000_000), 200, cut, &counted).expect("never fails");
            assert_eq!(shown, fit(&block(100), 200, cut, &bytes).expect("never fails"));
            assert!(longest.get() < 10_000, "{}", longest.get());
        }
    }

    #[test]
    fn the_passages_are_cut_at_a_word_and_the_closing_tag_stays() {
        assert_eq!(
            fitted(TEXT, TEXT.len()),
            Shown { ids: bytes(TEXT).expect("bytes"), n_document_bytes: None }
        );
        let shown = fitted(TEXT, TEXT.len() - 1);
        assert_eq!(
            text_of(&shown),
            "\n\n<information>Doc 1(Title: \"T\") one two</information>\n\n"
        );
        assert_eq!(shown.n_document_bytes, Some("Doc 1(Title: \"T\") one two ".len()));
        assert_eq!(text_of(&fitted(TEXT, TEXT.len() - " three".len())), text_of(&shown));
    }

    #[test]
    fn the_references_cut_loses_the_tag() {
        let shown =
            fit(TEXT, TEXT.len() - 20, ObservationCut::Reference, &bytes).expect("never fails");
        assert_eq!(text_of(&shown), TEXT[..TEXT.len() - 20]);
        assert_eq!(shown.n_document_bytes, Some(TEXT.len() - 20 - "\n\n<information>".len()));
    }

    #[test]
    fn other_observations_and_limits_below_the_tags_keep_their_first_tokens() {
        assert_eq!(text_of(&fitted(INVALID_ACTION, 10)), INVALID_ACTION[..10]);
        assert_eq!(text_of(&fitted(TEXT, 10)), TEXT[..10]);
        assert!(fitted(TEXT, 0).ids.is_empty());
    }

    #[test]
    fn text_without_spaces_is_cut_between_characters() {
        let passage =
            Passage { id: String::new(), contents: format!("\"T\"\n{}", "中".repeat(60)) };
        let text = search_observation(&[passage]);
        for max in text.len() - 7..text.len() {
            let shown = fitted(&text, max);
            assert!(
                shown.ids.len() <= max && shown.ids.len() > max - 3,
                "{max}: {}",
                shown.ids.len()
            );
            assert!(text_of(&shown).ends_with("中</information>\n\n"));
        }
    }

    proptest! {
        #[test]
        fn every_limit_is_kept_and_more_room_shows_no_less(
            parts in vec(select(vec!["word ", "é", "中 ", "a", "\n", "long-word-without-an-end"]), 1..40)
        ) {
            let contents = format!("\"T\"\n{}", parts.concat());
            let text = search_observation(&[Passage { id: String::new(), contents }]);
            let mut last = 0;
            for max in information_block("").len()..text.len() {
                let shown = fitted(&text, max);
                let kept = shown.n_document_bytes.expect("cut");
                prop_assert!(shown.ids.len() <= max && kept >= last);
                prop_assert!(text_of(&shown).ends_with("</information>\n\n"));
                last = kept;
            }
        }
    }

    #[test]
    fn a_real_tokenizers_observations_keep_their_tag_and_use_their_room() {
        let Some(folder) = crate::testing::test_data("tokenizers/qwen2.5") else { return };
        let tokenizer = crate::tokenizer::Tokenizer::from_path(&folder).expect("loads");
        let contents =
            format!("\"Nolmar\"\n{}", "A sentence of some words, 1,234 of them naïve. ".repeat(30));
        let text = search_observation(&[Passage { id: String::new(), contents }]);
        for max in [20, 50, 111, 200, 300] {
            let shown =
                fit(&text, max, ObservationCut::Passages, &|text| tokenizer.encode_text(text))
                    .expect("encodes");
            assert!(
                shown.ids.len() <= max && shown.ids.len() > max - 10,
                "{max}: {}",
                shown.ids.len()
            );
            assert!(tokenizer.decode(&shown.ids).ends_with("</information>\n\n"));
        }
    }
}
