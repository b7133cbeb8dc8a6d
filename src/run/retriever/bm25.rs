//! BM25: passages that share rare words with the query.
//!
//! score(q, p) = sum over the words w of q:  idf(w) tf (k1 + 1) / (tf + k1 (1 - b + b |p| / avg
//! |p|)), idf(w) = ln(1 + (n - df(w) + 0.5) / (df(w) + 0.5)), with tf = occurrences of w in p and a
//! word counted as often as q repeats it.
//!
//! Words come from the `bm25` crate's English tokenizer (Unicode to ASCII, lower case, stop words
//! out, Snowball stems). Its own index is not used: it scores a passage by walking the passage's
//! whole embedding for each query word and sorts hash-map order by score alone. Here: postings in
//! passage order with the contribution of each word precomputed, added up in a dense array. A tie
//! goes to the lower passage number; passages that share no word with the query are not found, so
//! it may get fewer than k, or none. Cost: 8 bytes a posting; a query touches the postings of its
//! words plus one array of `n` numbers a thread.
use super::RetrieverError;
use crate::data::corpus::Corpus;
use bm25::{DefaultTokenizer, Language, Tokenizer};
use dgpo_core::env::search::{Hit, Retriever, SearchError};
use rayon::prelude::*;
use std::{collections::HashMap, sync::Arc};

/// Saturation of repeated words; Anserini's default, which the published baselines use.
pub const K1: f32 = 0.9;
/// Strength of length normalisation; Anserini's default.
pub const B: f32 = 0.4;

/// An inverted index over a corpus.
pub struct Bm25Retriever {
    corpus: Arc<Corpus>,
    tokenizer: DefaultTokenizer,
    /// Word -> its number.
    words: HashMap<String, u32>,
    /// Postings of word `w` are `postings[starts[w]..starts[w + 1]]`.
    starts: Vec<usize>,
    postings: Vec<Posting>,
}

/// The contribution of a word to a passage's score.
#[derive(Clone, Copy)]
struct Posting {
    passage: u32,
    score: f32,
}

/// Passages tokenised by one task.
const CHUNK_PASSAGES: usize = 512;

impl Bm25Retriever {
    /// Indexes the passages on all threads.
    /// # Errors
    /// If the corpus is empty, unreadable, or has more than 2^32 passages.
    pub fn new(corpus: Arc<Corpus>) -> Result<Self, RetrieverError> {
        let n = corpus.len();
        if n == 0 {
            return Err(RetrieverError::EmptyCorpus);
        }
        if u32::try_from(n).is_err() {
            return Err(RetrieverError::option(
                "corpus",
                n,
                "BM25 holds at most 2^32 passages; use a server and kind = \"remote\"",
            ));
        }
        let tokenizer = DefaultTokenizer::new(Language::English);
        let n_chunks = n.div_ceil(CHUNK_PASSAGES);
        let chunks: Vec<Vec<PassageWords>> = (0..n_chunks)
            .into_par_iter()
            .map(|chunk| {
                let range = chunk * CHUNK_PASSAGES..((chunk + 1) * CHUNK_PASSAGES).min(n);
                range.map(|idx| PassageWords::count(&corpus, idx, &tokenizer)).collect()
            })
            .collect::<Result<_, _>>()?;

        // Words are numbered in the order of their first occurrence, so the index is a function of
        // the corpus.
        let mut words: HashMap<String, u32> = HashMap::new();
        let mut n_passages_of: Vec<u32> = Vec::new();
        let mut counts: Vec<(u32, u32, f32)> = Vec::new();
        let mut lengths: Vec<f32> = Vec::with_capacity(n);
        for (passage, PassageWords { length, words: passage_words }) in
            (0u32..).zip(chunks.into_iter().flatten())
        {
            lengths.push(length as f32);
            for (word, count) in passage_words {
                let next = words.len() as u32;
                let word = *words.entry(word).or_insert(next);
                if word == next {
                    n_passages_of.push(0);
                }
                n_passages_of[word as usize] += 1;
                counts.push((word, passage, count as f32));
            }
        }
        let (starts, postings) = invert(&counts, &n_passages_of, &lengths);
        Ok(Self { corpus, tokenizer, words, starts, postings })
    }

    /// Numbers of the `k` best passages that share a word with the query, and their scores, best
    /// first.
    fn best(&self, query: &str, k: usize, scores: &mut [f32]) -> Vec<(f32, u32)> {
        let mut touched: Vec<u32> = Vec::new();
        for word in self.tokenizer.tokenize(query) {
            let Some(&word) = self.words.get(&word) else { continue };
            for posting in
                &self.postings[self.starts[word as usize]..self.starts[word as usize + 1]]
            {
                let score = &mut scores[posting.passage as usize];
                // Contributions are positive, so zero means untouched.
                if *score == 0.0 {
                    touched.push(posting.passage);
                }
                *score += posting.score;
            }
        }
        let mut found: Vec<(f32, u32)> = touched
            .iter()
            .map(|&passage| (std::mem::take(&mut scores[passage as usize]), passage))
            .collect();
        let better = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if found.len() > k {
            found.select_nth_unstable_by(k, better);
            found.truncate(k);
        }
        found.sort_unstable_by(better);
        found
    }
}

/// A passage as a bag of words.
struct PassageWords {
    length: usize,
    /// Distinct words with their counts, in the order of first occurrence.
    words: Vec<(String, u32)>,
}

impl PassageWords {
    fn count(
        corpus: &Corpus,
        idx: usize,
        tokenizer: &DefaultTokenizer,
    ) -> Result<Self, RetrieverError> {
        let passage = corpus.passage(idx)?;
        let tokens = tokenizer.tokenize(&passage.contents);
        let length = tokens.len();
        let mut place: HashMap<String, usize> = HashMap::with_capacity(length);
        let mut words: Vec<(String, u32)> = Vec::new();
        for token in tokens {
            match place.get(&token) {
                Some(&at) => words[at].1 += 1,
                None => {
                    place.insert(token.clone(), words.len());
                    words.push((token, 1));
                }
            }
        }
        Ok(Self { length, words })
    }
}

/// Sorts (word, passage, count) by word, keeping the order of passages, and turns counts into score
/// contributions.
fn invert(
    counts: &[(u32, u32, f32)],
    n_passages_of: &[u32],
    lengths: &[f32],
) -> (Vec<usize>, Vec<Posting>) {
    let mut starts = Vec::with_capacity(n_passages_of.len() + 1);
    let mut total = 0;
    for &n_passages in n_passages_of {
        starts.push(total);
        total += n_passages as usize;
    }
    starts.push(total);
    let n = lengths.len() as f32;
    let mean_length = (lengths.iter().map(|&length| f64::from(length)).sum::<f64>() / f64::from(n))
        .max(1.0) as f32;
    let mut next = starts.clone();
    let mut postings = vec![Posting { passage: 0, score: 0.0 }; total];
    for &(word, passage, count) in counts {
        let df = n_passages_of[word as usize] as f32;
        let idf = (1.0 + (n - df + 0.5) / (df + 0.5)).ln();
        let norm = K1 * (1.0 - B + B * lengths[passage as usize] / mean_length);
        let slot = &mut next[word as usize];
        postings[*slot] = Posting { passage, score: idf * count * (K1 + 1.0) / (count + norm) };
        *slot += 1;
    }
    (starts, postings)
}

impl Retriever for Bm25Retriever {
    fn search(&self, queries: &[String], top_k: usize) -> Vec<Result<Vec<Hit>, SearchError>> {
        if top_k == 0 {
            return vec![
                Err(RetrieverError::option("retriever.top_k", 0, "3 is the paper's").into());
                queries.len()
            ];
        }
        let n = self.corpus.len();
        let hits = |best: Vec<(f32, u32)>| {
            let hit = |(score, passage): (f32, u32)| {
                let passage =
                    self.corpus.passage(passage as usize).map_err(RetrieverError::from)?;
                Ok(Hit { passage, score })
            };
            best.into_iter().map(hit).collect()
        };
        queries
            .par_iter()
            .map_init(|| vec![0.0; n], |scores, query| hits(self.best(query, top_k, scores)))
            .collect()
    }

    fn describe(&self) -> String {
        format!(
            "bm25 (k1 {K1}, b {B}) over {} passages, {} words",
            self.corpus.len(),
            self.words.len()
        )
    }
}

#[cfg(test)]
#[path = "bm25_tests.rs"]
mod tests;
