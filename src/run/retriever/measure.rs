//! An index at work: opened by what it remembers, described, and measured on this machine.
//!
//! Encoder and corpus default to the names in index.json, and are checked against its fingerprints
//! whatever they are.
use super::{
    RetrieverError,
    bm25::Bm25Retriever,
    dense::DenseRetriever,
    encoder::{Encoder, EncoderOptions},
    equal::{EqualVectors, equal_vectors},
    exact::Neighbour,
    hnsw::{HnswParams, Insertion},
    index::{CHECKED_AT_OPENING, IndexMeta},
};
use crate::{config::Search, data::corpus::Corpus, hub};
use dgpo_core::{
    env::search::{Hit, Passage, Retriever},
    rng::{Key, Purpose},
};
use dgpo_models::{Backend, bert::SentenceHead};
use serde::Serialize;
use std::{
    collections::{BTreeSet, HashSet},
    path::Path,
    sync::Arc,
    time::Instant,
};

/// An index folder, and what to use instead of what it remembers.
#[derive(Clone, Copy, Debug)]
pub struct IndexRequest<'a> {
    pub dir: &'a Path,
    /// Corpus file or name; `None` = the one in index.json.
    pub corpus: Option<&'a str>,
    /// Encoder folder or name; `None` = the one in index.json.
    pub encoder: Option<&'a str>,
    /// `None` = through the graph, if there is one.
    pub search: Option<Search>,
    /// `None` = the value the graph was built with.
    pub ef_search: Option<usize>,
}

/// Padded tokens of a batch where no recipe says it; the result does not depend on it.
const BATCH_TOKENS: usize = 8_192;

impl IndexRequest<'_> {
    /// Opens the index, checked against its encoder and corpus.
    /// # Errors
    /// If there is none, or it does not fit; if encoder or corpus cannot be read.
    pub fn open<B: Backend>(
        &self,
        device: &B::Device,
    ) -> Result<DenseRetriever<B>, RetrieverError> {
        let meta = IndexMeta::read(self.dir)?;
        let corpus = Arc::new(self.open_corpus(&meta)?);
        let options = EncoderOptions {
            query_prefix: meta.encoder.query_prefix.clone(),
            passage_prefix: meta.encoder.passage_prefix.clone(),
            max_tokens: meta.encoder.max_tokens,
            batch_tokens: BATCH_TOKENS,
        };
        let name = self.encoder.unwrap_or(&meta.encoder.name);
        let encoder = Encoder::open(&hub::resolve(name)?, name, options, device)?;
        // A graph that somebody built is what they want to see at work, however small the index.
        let with_graph = if meta.graph.is_some() { Search::Hnsw } else { Search::Exact };
        let search = self.search.unwrap_or(with_graph);
        DenseRetriever::open(self.dir, encoder, corpus, search, self.ef_search(&meta))
    }

    fn open_corpus(&self, meta: &IndexMeta) -> Result<Corpus, RetrieverError> {
        Ok(Corpus::open(&hub::resolve(self.corpus.unwrap_or(&meta.corpus_name))?)?)
    }

    /// Candidates looked at; without a graph the value is not used.
    fn ef_search(&self, meta: &IndexMeta) -> usize {
        let built_with = meta.graph.as_ref().map(|graph| graph.params.ef_search);
        self.ef_search.or(built_with).unwrap_or(1)
    }
}

/// An index and how well it works.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IndexInfo {
    pub dir: String,
    pub n_passages: usize,
    pub dim: usize,
    pub encoder: String,
    pub encoder_fingerprint: String,
    pub query_prefix: String,
    pub passage_prefix: String,
    pub max_tokens: usize,
    /// Pooling and length of the encoder's vectors.
    #[serde(flatten)]
    pub head: SentenceHead,
    pub corpus: String,
    pub corpus_fingerprint: String,
    pub vectors_bytes: u64,
    pub graph_bytes: u64,
    pub encode_s: f64,
    pub passages_per_s: f64,
    pub graph: Option<GraphInfo>,
    pub equal_vectors: EqualVectors,
    pub measured: MeasuredSearch,
}

/// The graph of an index.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GraphInfo {
    #[serde(flatten)]
    pub params: HnswParams,
    pub insertion: Insertion,
    pub build_s: f64,
    pub vectors_per_s: f64,
}

/// Speed and recall on this machine now. Recall counts a found passage whose score ties with the
/// true k-th one as found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MeasuredSearch {
    pub n_queries: usize,
    /// "questions" or "first sentences of passages".
    pub query_source: &'static str,
    pub encode_queries_per_s: f64,
    pub exact_queries_per_s: f64,
    /// Searched as one batch through the graph; `None` without one.
    pub graph_queries_per_s: Option<f64>,
    pub recall_at_3: Option<f64>,
    pub recall_at_10: Option<f64>,
    /// The same without counting ties: the passages that exact search lists, by their ids.
    pub recall_by_id_at_3: Option<f64>,
    pub recall_by_id_at_10: Option<f64>,
}

/// Queries that an index is measured with.
#[derive(Clone, Copy, Debug)]
pub enum Queries<'a> {
    /// The first sentences of `n` passages drawn with `seed`.
    Sampled { n: usize, seed: u64 },
    /// Questions; the passages found for them are given back.
    Questions { texts: &'a [String], top_k: usize },
}

/// Passages that one way of searching finds for each of some questions, best first.
#[derive(Clone, Debug)]
pub struct FoundPassages {
    /// "exact", "hnsw" or "bm25".
    pub search: &'static str,
    pub top_k: usize,
    pub passages: Vec<Vec<Passage>>,
}

/// Those of the `wanted` passage ids that are in the index's corpus.
/// # Errors
/// If the index or its corpus cannot be opened.
pub fn ids_in_corpus(
    request: IndexRequest,
    wanted: &HashSet<&str>,
) -> Result<HashSet<String>, RetrieverError> {
    if wanted.is_empty() {
        return Ok(HashSet::new());
    }
    let corpus = request.open_corpus(&IndexMeta::read(request.dir)?)?;
    let ids = (0..corpus.len()).map(|idx| Ok(corpus.passage(idx)?.id));
    ids.filter(|id| id.as_ref().map_or(true, |id| wanted.contains(id.as_str()))).collect()
}

/// Describes an index and measures it. With questions: also what exact search, the graph (if there
/// is one) and BM25 find for them.
/// # Errors
/// If the index cannot be opened or a query cannot be encoded.
pub fn index_info<B: Backend>(
    request: IndexRequest,
    queries: Queries,
    device: &B::Device,
) -> Result<(IndexInfo, Vec<FoundPassages>), RetrieverError> {
    let meta = IndexMeta::read(request.dir)?;
    let retriever = request.open::<B>(device)?;
    let (vectors, corpus) = (retriever.index().vectors(), retriever.corpus());
    let vectors_bytes = vectors.as_bytes().len() as u64;
    if vectors_bytes > CHECKED_AT_OPENING {
        retriever.index().check(request.dir, &meta)?;
    }
    let equal_vectors = equal_vectors(vectors);
    let mut found = Vec::new();
    let measured = match queries {
        Queries::Sampled { n, seed } => {
            let sentences = sample_sentences(corpus, n, seed)?;
            measure(&retriever, &sentences, "first sentences of passages")?.0
        }
        Queries::Questions { texts, top_k } => {
            let (measured, neighbours) = measure(&retriever, texts, "questions")?;
            let passage = |neighbour: &Neighbour| Ok(corpus.passage(neighbour.id)?);
            for (search, lists) in neighbours {
                let of_query =
                    |list: &Vec<Neighbour>| list.iter().take(top_k).map(passage).collect();
                let passages = lists.iter().map(of_query).collect::<Result<_, RetrieverError>>()?;
                found.push(FoundPassages { search, top_k, passages });
            }
            let by_words = Bm25Retriever::new(corpus.clone())?.search(texts, top_k);
            let of_query = |hits: Vec<Hit>| hits.into_iter().map(|hit| hit.passage).collect();
            let passages = by_words.into_iter().map(|hits| Ok(of_query(hits?)));
            let passages = passages.collect::<Result<_, RetrieverError>>()?;
            found.push(FoundPassages { search: "bm25", top_k, passages });
            measured
        }
    };
    let graph = meta.graph.as_ref().map(|graph| GraphInfo {
        params: HnswParams { ef_search: request.ef_search(&meta), ..graph.params },
        insertion: graph.insertion,
        build_s: graph.build_s,
        vectors_per_s: meta.n_passages as f64 / graph.build_s,
    });
    let info = IndexInfo {
        dir: request.dir.display().to_string(),
        n_passages: meta.n_passages,
        dim: meta.encoder.dim,
        graph_bytes: meta.graph.map_or(0, |graph| graph.files.total_bytes()),
        vectors_bytes,
        encode_s: meta.encode_s,
        passages_per_s: meta.n_passages as f64 / meta.encode_s,
        encoder: meta.encoder.name,
        encoder_fingerprint: meta.encoder.fingerprint,
        query_prefix: meta.encoder.query_prefix,
        passage_prefix: meta.encoder.passage_prefix,
        max_tokens: meta.encoder.max_tokens,
        head: meta.encoder.head,
        corpus: meta.corpus_name,
        corpus_fingerprint: meta.corpus_fingerprint,
        graph,
        equal_vectors,
        measured,
    };
    Ok((info, found))
}

/// First sentences of up to `n` different passages.
fn sample_sentences(corpus: &Corpus, n: usize, seed: u64) -> Result<Vec<String>, RetrieverError> {
    let key = Key::new(seed, Purpose::Index);
    let mut chosen = BTreeSet::new();
    let mut draws = 0..;
    while chosen.len() < n.min(corpus.len()) {
        chosen.extend(draws.next().map(|draw| key.below(draw, corpus.len())));
    }
    chosen.into_iter().map(|idx| Ok(first_sentence(&corpus.passage(idx)?))).collect()
}

/// The text up to its first full stop followed by a space; the title if there is no text.
fn first_sentence(passage: &Passage) -> String {
    let text = if passage.text().trim().is_empty() { passage.title() } else { passage.text() };
    text.split_inclusive(". ").next().unwrap_or(text).trim().to_owned()
}

/// Neighbours of each query by each way of searching that the index has.
type Neighbours = Vec<(&'static str, Vec<Vec<Neighbour>>)>;

/// Neighbours that are looked for: enough for recall@10, and for every usual `top_k`.
const N_MEASURED: usize = 10;

fn measure<B: Backend>(
    retriever: &DenseRetriever<B>,
    queries: &[String],
    query_source: &'static str,
) -> Result<(MeasuredSearch, Neighbours), RetrieverError> {
    let index = retriever.index();
    let per_s = |started: Instant| queries.len() as f64 / started.elapsed().as_secs_f64();
    let started = Instant::now();
    let embeddings = retriever.encoder().encode_queries(queries)?;
    let encode_queries_per_s = per_s(started);
    let started = Instant::now();
    let exact = index.search_exact(&embeddings, N_MEASURED);
    let exact_queries_per_s = per_s(started);
    let mut measured = MeasuredSearch {
        n_queries: queries.len(),
        query_source,
        encode_queries_per_s,
        exact_queries_per_s,
        graph_queries_per_s: None,
        recall_at_3: None,
        recall_at_10: None,
        recall_by_id_at_3: None,
        recall_by_id_at_10: None,
    };
    if !index.uses_graph() {
        return Ok((measured, vec![("exact", exact)]));
    }
    let started = Instant::now();
    let found = index.search(&embeddings, N_MEASURED);
    measured.graph_queries_per_s = Some(per_s(started));
    measured.recall_at_3 = Some(recall(&found, &exact, 3));
    measured.recall_at_10 = Some(recall(&found, &exact, 10));
    measured.recall_by_id_at_3 = Some(recall_by_id(&found, &exact, 3));
    measured.recall_by_id_at_10 = Some(recall_by_id(&found, &exact, 10));
    Ok((measured, vec![("exact", exact), ("hnsw", found)]))
}

/// Scores closer than this are one score: f32 rounding of an inner product of unit vectors.
const TIE: f32 = 1e-6;

/// Fraction of the true `k` nearest that are among the first `k` found, a tie with the k-th
/// counting as found.
pub fn recall(found: &[Vec<Neighbour>], exact: &[Vec<Neighbour>], k: usize) -> f64 {
    recall_of(found, exact, k, |found, exact| {
        let is_near = |found: &&Neighbour| found.score >= exact[exact.len() - 1].score - TIE;
        found.iter().filter(is_near).count().min(exact.len())
    })
}

/// Fraction of the passages that exact search lists first which are among the first `k` found:
/// [`recall`] without its mercy for ties.
pub fn recall_by_id(found: &[Vec<Neighbour>], exact: &[Vec<Neighbour>], k: usize) -> f64 {
    recall_of(found, exact, k, |found, exact| {
        let is_found = |wanted: &&Neighbour| found.iter().any(|found| found.id == wanted.id);
        exact.iter().filter(is_found).count()
    })
}

/// `n_hits` counts, for one query, those of the exact neighbours that were found; each list holds
/// `k` at most.
fn recall_of(
    found: &[Vec<Neighbour>],
    exact: &[Vec<Neighbour>],
    k: usize,
    n_hits: impl Fn(&[Neighbour], &[Neighbour]) -> usize,
) -> f64 {
    let (mut hits, mut total) = (0, 0);
    for (found, exact) in found.iter().zip(exact).filter(|(_, exact)| !exact.is_empty()) {
        let exact = &exact[..k.min(exact.len())];
        hits += n_hits(&found[..k.min(found.len())], exact);
        total += exact.len();
    }
    if total == 0 { 1.0 } else { hits as f64 / total as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sentence_ends_at_the_first_full_stop() {
        let passage =
            |contents: &str| Passage { id: "1".to_owned(), contents: contents.to_owned() };
        assert_eq!(first_sentence(&passage("\"T\"\nOne two. Three.")), "One two.");
        assert_eq!(first_sentence(&passage("\"T\"\nOne two")), "One two");
        assert_eq!(first_sentence(&passage("\"T\"\n")), "\"T\"");
    }

    #[test]
    fn recall_counts_ties_and_misses() {
        let list = |scores: &[f32]| {
            vec![
                scores
                    .iter()
                    .enumerate()
                    .map(|(id, &score)| Neighbour { id, score })
                    .collect::<Vec<_>>(),
            ]
        };
        let exact = list(&[0.9, 0.8, 0.7, 0.7]);
        assert_eq!(recall(&list(&[0.9, 0.8, 0.7]), &exact, 3), 1.0);
        assert_eq!(recall(&list(&[0.9, 0.7, 0.6]), &exact, 3), 2.0 / 3.0);
    }
}
