//! Python's idea of white space and words, and answer normalisation on top of it.
//!
//! The protocol, the chat templates and the score were defined by Python programs: `str.strip`,
//! `str.split` and the regular expression `\b` decide which episodes count as right. Rust's own
//! functions differ in a few characters, so the sets are spelled out here, left of every layer that
//! needs them.
//!
//! # Source
//! `method §2.2`; CPython `_PyUnicode_IsWhitespace` and `str.isalnum` (checked over all code points
//! against general categories).

use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// Python's `str.isspace` for one character: Unicode `White_Space` plus the four information
/// separators.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// Python's `str.strip()`.
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Python's `\w`: letters, numbers of every kind, and the underscore. (`char::is_alphanumeric` also
/// takes vowel signs.)
pub fn is_word(c: char) -> bool {
    use GeneralCategory as G;
    c == '_'
        || matches!(
            c.general_category(),
            G::UppercaseLetter
                | G::LowercaseLetter
                | G::TitlecaseLetter
                | G::ModifierLetter
                | G::OtherLetter
                | G::DecimalNumber
                | G::LetterNumber
                | G::OtherNumber
        )
}

/// Lower-case, without ASCII punctuation, without the words a/an/the, white space collapsed; in
/// that order.
///
/// The order matters: "the-a-an" loses its hyphens first and stays one word.
///
/// ```
/// assert_eq!(dgpo_core::text::normalise_answer(" The U.S.A.,  an ally "), "usa ally");
/// ```
///
/// # Source
/// `method §2.2`
pub fn normalise_answer(text: &str) -> String {
    let lower = text.to_lowercase();
    let bare: String = lower.chars().filter(|c| !c.is_ascii_punctuation()).collect();
    // `\b(a|an|the)\b` can only match a maximal run of word characters, so it is enough to look at
    // whole runs.
    let mut without_articles = String::with_capacity(bare.len());
    let mut rest = bare.as_str();
    while let Some(first) = rest.chars().next() {
        let end = if is_word(first) {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        let (run, tail) = rest.split_at(end);
        without_articles.push_str(if matches!(run, "a" | "an" | "the") { " " } else { run });
        rest = tail;
    }
    without_articles.split(is_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_is_pythons_set() {
        // [c for c in map(chr, range(0x110000)) if c.isspace()], CPython 3.11.
        let python: Vec<u32> =
            [0x9, 0xa, 0xb, 0xc, 0xd, 0x1c, 0x1d, 0x1e, 0x1f, 0x20, 0x85, 0xa0, 0x1680]
                .into_iter()
                .chain(0x2000..=0x200a)
                .chain([0x2028, 0x2029, 0x202f, 0x205f, 0x3000])
                .collect();
        let ours: Vec<u32> =
            (0..0x11_0000).filter(|&c| char::from_u32(c).is_some_and(is_space)).collect();
        assert_eq!(ours, python);
    }

    #[test]
    fn a_vowel_sign_ends_a_word_as_it_does_in_python() {
        // U+093E is alphabetic for Rust, but not a word character for Python's `re`: "a" stands
        // alone.
        assert!('\u{93e}'.is_alphanumeric() && !is_word('\u{93e}'));
        assert_eq!(normalise_answer("a\u{93e}"), "\u{93e}");
    }
}
