//! "Did you mean …?", for every name that somebody may have mistyped.

/// Fraction of the longer name that a slip leaves as it is.
const ALIKE: f64 = 0.6;

/// The candidate that looks most like `word`, if any looks enough alike to be a slip: insertions,
/// deletions, replacements and swaps of neighbours (Damerau and Levenshtein) in fewer than 4 of 10
/// characters.
///
/// ```
/// use dgpo_models::suggest::did_you_mean;
/// assert_eq!(did_you_mean("hsnw", ["auto", "exact", "hnsw"]), Some("hnsw"));
/// assert_eq!(did_you_mean("elastic", ["dense", "bm25"]), None);
/// ```
pub fn did_you_mean<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::normalized_damerau_levenshtein(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness > ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
