//! `dgpo index build|search|info` without flags and printing.
//!
//! `search` and `info` need only the folder: encoder and corpus default to the names the index
//! remembers, and are checked against its fingerprints whatever they are.
use super::{
    OnProgress, RetrieverError,
    bm25::Bm25Retriever,
    build::{self, BuildOptions, BuildReport},
    dense::DenseRetriever,
    encoder::{Encoder, EncoderOptions},
    encoder_options,
    equal::{EqualVectors, equal_vectors, recall_by_id},
    exact::Neighbour,
    hnsw::Insertion,
    hnsw_params,
    index::{CHECKED_AT_OPENING, Index, IndexMeta},
};
use crate::config::Search;
use crate::{config::RetrieverRecipe, data::corpus::Corpus, hub};
use dgpo_core::{
    env::search::{Hit, Passage, Retriever, SearchError},
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

/// Builds (or continues, or completes with a graph) the index folder `dir` of the corpus `corpus`
/// with the encoder and parameters of `recipe`.
/// # Errors
/// As [`build::build`]; also if encoder or corpus cannot be read.
pub fn build_index<B: Backend>(
    recipe: &RetrieverRecipe,
    corpus: &str,
    dir: &Path,
    replace: bool,
    device: &B::Device,
    progress: &mut OnProgress,
) -> Result<BuildReport, RetrieverError> {
    let passages = open_corpus(corpus)?;
    let encoder = open_encoder::<B>(&recipe.encoder, encoder_options(recipe), device)?;
    encoder.warn_of_other_prompts();
    let search = encoder.identity().search(recipe.search)?;
    let options =
        BuildOptions { corpus_name: corpus.to_owned(), search, hnsw: hnsw_params(recipe), replace };
    build::build(
        dir,
        &options,
        encoder.identity(),
        &passages,
        &mut |texts, tick| encoder.encode_passages(texts, tick),
        progress,
    )
}

/// Which index, and what to use instead of what it remembers.
#[derive(Clone, Copy, Debug)]
pub struct IndexRequest<'a> {
    pub dir: &'a Path,
    /// Corpus file or name; `None` = the one in index.json.
    pub corpus: Option<&'a str>,
    /// Encoder folder or name; `None` = the one in index.json.
    pub encoder: Option<&'a str>,
    pub search: Search,
    /// `None` = the value the graph was built with.
    pub ef_search: Option<usize>,
}

/// The passages found for each query.
/// # Errors
/// If the index cannot be opened; a failing query fails alone.
pub fn search_index<B: Backend>(
    request: IndexRequest,
    queries: &[String],
    top_k: usize,
    device: &B::Device,
) -> Result<Vec<Result<Vec<Hit>, SearchError>>, RetrieverError> {
    let meta = IndexMeta::read(request.dir)?;
    let (retriever, _) = open_index::<B>(request, &meta, device)?;
    Ok(retriever.search(queries, top_k))
}

/// What an index is and how well it works.
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
    /// How the encoder makes a vector of a text.
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
    pub measured: Measured,
}

/// The graph of an index.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GraphInfo {
    pub m: usize,
    pub ef_construction: usize,
    pub ef_search: usize,
    pub insertion: Insertion,
    pub build_s: f64,
    pub vectors_per_s: f64,
}

/// Speed and recall on this machine now. Recall counts a found passage whose score ties with the
/// true k-th one as found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
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

/// What an index is measured with.
#[derive(Clone, Copy, Debug)]
pub enum Queries<'a> {
    /// The first sentences of `n` passages drawn with `seed`.
    Sampled { n: usize, seed: u64 },
    /// Questions; the passages found for them are given back.
    Questions { texts: &'a [String], top_k: usize },
}

/// What one way of searching finds for the same questions: the passages of each, best first.
#[derive(Clone, Debug)]
pub struct Found {
    /// "exact", "hnsw" or "bm25".
    pub search: &'static str,
    pub top_k: usize,
    pub passages: Vec<Vec<Passage>>,
}

/// Which of these passage ids are in the index's corpus.
/// # Errors
/// If the index or its corpus cannot be opened.
pub fn ids_in_corpus(
    request: IndexRequest,
    wanted: &HashSet<&str>,
) -> Result<HashSet<String>, RetrieverError> {
    let mut found = HashSet::new();
    if wanted.is_empty() {
        return Ok(found);
    }
    let corpus = open_corpus(request.corpus.unwrap_or(&IndexMeta::read(request.dir)?.corpus_name))?;
    for idx in 0..corpus.len() {
        let id = corpus.passage(idx).map_err(RetrieverError::passed_on)?.id;
        if wanted.contains(id.as_str()) {
            found.insert(id);
        }
    }
    Ok(found)
}

/// Describes an index and measures it. With questions: also what exact search, the graph (if there
/// is one) and BM25 find for them.
/// # Errors
/// If the index cannot be opened or a query cannot be encoded.
pub fn index_info<B: Backend>(
    request: IndexRequest,
    queries: Queries,
    device: &B::Device,
) -> Result<(IndexInfo, Vec<Found>), RetrieverError> {
    let meta = IndexMeta::read(request.dir)?;
    let (retriever, corpus) = open_index::<B>(request, &meta, device)?;
    let vectors_bytes = retriever.index().vectors().as_bytes().len() as u64;
    if vectors_bytes > CHECKED_AT_OPENING {
        retriever.index().check(request.dir, &meta)?;
    }
    let equal_vectors = equal_vectors(retriever.index().vectors());
    let (measured, found) = match queries {
        Queries::Sampled { n, seed } => {
            let (measured, _) = measure(
                &retriever,
                &sample_sentences(&corpus, n, seed)?,
                "first sentences of passages",
            )?;
            (measured, Vec::new())
        }
        Queries::Questions { texts, top_k } => {
            let (measured, neighbours) = measure(&retriever, texts, "questions")?;
            let mut found = Vec::new();
            for (search, lists) in neighbours {
                let passage = |neighbour: &Neighbour| {
                    corpus.passage(neighbour.id).map_err(RetrieverError::passed_on)
                };
                let passages =
                    |list: &Vec<Neighbour>| list.iter().take(top_k).map(passage).collect();
                found.push(Found {
                    search,
                    top_k,
                    passages: lists.iter().map(passages).collect::<Result<_, _>>()?,
                });
            }
            let by_words = Bm25Retriever::new(corpus)?.search(texts, top_k).into_iter();
            let passages = |hits: Vec<Hit>| hits.into_iter().map(|hit| hit.passage).collect();
            let passages = by_words
                .map(|hits| hits.map(passages).map_err(RetrieverError::passed_on))
                .collect::<Result<_, _>>()?;
            found.push(Found { search: "bm25", top_k, passages });
            (measured, found)
        }
    };
    let graph = meta.graph.as_ref().map(|graph| GraphInfo {
        m: graph.params.m,
        ef_construction: graph.params.ef_construction,
        ef_search: request.ef_search.unwrap_or(graph.params.ef_search),
        insertion: graph.insertion,
        build_s: graph.build_s,
        vectors_per_s: meta.n_passages as f64 / graph.build_s,
    });
    let info = IndexInfo {
        dir: request.dir.display().to_string(),
        n_passages: meta.n_passages,
        dim: meta.encoder.dim,
        graph_bytes: meta.graph.as_ref().map_or(0, |graph| graph.files.total_bytes()),
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

fn open_corpus(name: &str) -> Result<Corpus, RetrieverError> {
    let path = hub::resolve(name).map_err(RetrieverError::passed_on)?;
    Corpus::open(&path).map_err(RetrieverError::passed_on)
}

fn open_encoder<B: Backend>(
    name: &str,
    options: EncoderOptions,
    device: &B::Device,
) -> Result<Encoder<B>, RetrieverError> {
    let folder = hub::resolve(name).map_err(RetrieverError::passed_on)?;
    Encoder::open(&folder, name, options, device)
}

/// Padded tokens of a batch where no recipe says it; the result does not depend on it.
const BATCH_TOKENS: usize = 8_192;

fn open_index<B: Backend>(
    request: IndexRequest,
    meta: &IndexMeta,
    device: &B::Device,
) -> Result<(DenseRetriever<B>, Arc<Corpus>), RetrieverError> {
    let corpus = Arc::new(open_corpus(request.corpus.unwrap_or(&meta.corpus_name))?);
    let options = EncoderOptions {
        query_prefix: meta.encoder.query_prefix.clone(),
        passage_prefix: meta.encoder.passage_prefix.clone(),
        max_tokens: meta.encoder.max_tokens,
        batch_tokens: BATCH_TOKENS,
    };
    let encoder =
        open_encoder::<B>(request.encoder.unwrap_or(&meta.encoder.name), options, device)?;
    // Without a graph the value is not used.
    let ef_search =
        request.ef_search.or(meta.graph.as_ref().map(|graph| graph.params.ef_search)).unwrap_or(1);
    Ok((
        DenseRetriever::open(request.dir, encoder, corpus.clone(), request.search, ef_search)?,
        corpus,
    ))
}

/// First sentences of up to `n` different passages.
fn sample_sentences(corpus: &Corpus, n: usize, seed: u64) -> Result<Vec<String>, RetrieverError> {
    let key = Key::new(seed, Purpose::Index);
    let mut chosen = BTreeSet::new();
    let mut draws = 0..;
    while chosen.len() < n.min(corpus.len()) {
        chosen.extend(draws.next().map(|draw| key.below(draw, corpus.len())));
    }
    chosen
        .into_iter()
        .map(|idx| {
            corpus
                .passage(idx)
                .map(|passage| first_sentence(&passage))
                .map_err(RetrieverError::passed_on)
        })
        .collect()
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
) -> Result<(Measured, Neighbours), RetrieverError> {
    let index: &Index = retriever.index();
    let per_s = |started: Instant| queries.len() as f64 / started.elapsed().as_secs_f64();
    let started = Instant::now();
    let embeddings = retriever.encoder().encode_queries(queries)?;
    let encode_queries_per_s = per_s(started);
    let started = Instant::now();
    let exact = index.search_exact(&embeddings, N_MEASURED);
    let exact_queries_per_s = per_s(started);
    let mut measured = Measured {
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

/// Share of the true `k` nearest among the first `k` found, a tie with the k-th counting as found.
pub fn recall(found: &[Vec<Neighbour>], exact: &[Vec<Neighbour>], k: usize) -> f64 {
    let (mut hits, mut total) = (0, 0);
    for (found, exact) in found.iter().zip(exact) {
        let exact = &exact[..k.min(exact.len())];
        let Some(last) = exact.last() else { continue };
        hits += found
            .iter()
            .take(k)
            .filter(|neighbour| neighbour.score >= last.score - TIE)
            .count()
            .min(exact.len());
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
