//! Search engines as an agent sees them: passages, and the trait of whoever finds them.
//!
//! Contract: a query gets the passages that have something to do with it, at most k, or an error.
//! An empty list says that nothing was found: what the agent reads then is the environment's
//! business ([`super::protocol`]). The same query gets the same passages whatever else is in the
//! batch. Nobody asks for a blank query.
use serde::{Deserialize, Serialize};

/// A passage of a corpus. `contents` is `"TITLE"\nTEXT`: the title line keeps its quotation marks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passage {
    /// Id in the corpus.
    pub id: String,
    /// Title line and text.
    pub contents: String,
}

impl Passage {
    /// First line of `contents`, quotation marks kept.
    pub fn title(&self) -> &str {
        self.contents.split('\n').next().unwrap_or_default()
    }
    /// Everything behind the first line.
    pub fn text(&self) -> &str {
        self.contents.split_once('\n').map_or("", |(_, text)| text)
    }
}

/// A passage with the retriever's score (inner product, BM25 score; 0 where a server gives none).
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// The passage that was found.
    pub passage: Passage,
    /// Higher is better; comparable within one query alone.
    pub score: f32,
}

/// The failure of one search, in the retriever's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct SearchError {
    /// Description of the failure, with a hint.
    pub why: String,
    /// True if a server refused the search instead of failing at it: asked again, it would do so
    /// again.
    pub is_refusal: bool,
}

impl SearchError {
    /// A failure that may pass: the same search may succeed later.
    pub fn failed(why: impl ToString) -> Self {
        Self { why: why.to_string(), is_refusal: false }
    }
}

/// Query -> passages.
pub trait Retriever {
    /// One result a query, in order; no passage where nothing was found. A failure concerns its
    /// query alone where the implementation can tell, and is never an empty list of passages.
    fn search(&self, queries: &[String], top_k: usize) -> Vec<Result<Vec<Hit>, SearchError>>;
    /// For logs and provenance: kind, size, parameters.
    fn describe(&self) -> String;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn title_is_the_first_line_and_text_the_rest() {
        let passage = |contents: &str| Passage { id: "0".into(), contents: contents.into() };
        assert_eq!(passage("\"A\"\nb\nc").title(), "\"A\"");
        assert_eq!(passage("\"A\"\nb\nc").text(), "b\nc");
        assert_eq!(passage("only").text(), "");
    }
}
