//! The dense retriever: encoder + index + corpus.
//!
//! Results of recent queries are kept (reinforcement learning asks the same questions again and
//! again). A kept result is what a new search would give to the last bit, because a query's
//! embedding does not depend on its neighbours ([`Encoder::encode_queries`]) and a search of a
//! given index is deterministic: the cache changes speed, never an episode.
use super::{
    OnProgress, RetrieverError, StageProgress,
    build::passage_texts,
    encoder::Encoder,
    exact::Neighbour,
    hnsw::HnswParams,
    index::{Index, IndexMeta},
    vectors::Vectors,
};
use crate::config::Search;
use crate::data::corpus::Corpus;
use dgpo_core::env::search::{Hit, Retriever, SearchError};
use dgpo_models::Backend;
use std::{
    collections::{HashMap, VecDeque},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Query -> embedding -> nearest passages.
pub struct DenseRetriever<B: Backend> {
    encoder: Encoder<B>,
    index: Index,
    corpus: Arc<Corpus>,
    recent: Mutex<Recent>,
}

/// Results of the last [`Recent::CAPACITY`] distinct queries; the oldest leaves first.
#[derive(Default)]
struct Recent {
    results: HashMap<(String, usize), Vec<Neighbour>>,
    arrivals: VecDeque<(String, usize)>,
}

impl Recent {
    /// About 4 MB at three passages a query.
    const CAPACITY: usize = 16_384;

    fn insert(&mut self, key: (String, usize), result: Vec<Neighbour>) {
        if self.results.insert(key.clone(), result).is_none() {
            self.arrivals.push_back(key);
        }
        while self.arrivals.len() > Self::CAPACITY {
            if let Some(oldest) = self.arrivals.pop_front() {
                self.results.remove(&oldest);
            }
        }
    }
}

impl<B: Backend> DenseRetriever<B> {
    /// Encodes the whole corpus now and keeps the index in memory: for worlds of some thousand
    /// passages.
    /// # Errors
    /// Empty corpus, a failing encoder, or `progress` said stop.
    pub fn build_in_memory(
        encoder: Encoder<B>,
        corpus: Arc<Corpus>,
        search: Search,
        params: HnswParams,
        progress: &mut OnProgress,
    ) -> Result<Self, RetrieverError> {
        if corpus.is_empty() {
            return Err(RetrieverError::EmptyCorpus);
        }
        let texts = passage_texts(&corpus, 0..corpus.len())?;
        let embeddings = encoder.encode_passages(&texts, &mut |done, total| {
            progress(StageProgress { stage: "encode", done, total })
        })?;
        let vectors = Vectors::from_rows(embeddings, encoder.identity().dim);
        let index = Index::in_memory(vectors, search, params, progress)?;
        Ok(Self { encoder, index, corpus, recent: Mutex::default() })
    }

    /// Opens a built index folder.
    /// # Errors
    /// If the index is not finished, damaged, or built with another encoder or from another corpus.
    pub fn open(
        dir: &Path,
        encoder: Encoder<B>,
        corpus: Arc<Corpus>,
        search: Search,
        ef_search: usize,
    ) -> Result<Self, RetrieverError> {
        let meta = IndexMeta::read(dir)?;
        meta.check_encoder(dir, encoder.identity())?;
        meta.check_corpus(dir, &corpus)?;
        let index = Index::open(dir, &meta, search, ef_search)?;
        Ok(Self { encoder, index, corpus, recent: Mutex::default() })
    }

    /// The encoder, for measuring and for other queries.
    pub fn encoder(&self) -> &Encoder<B> {
        &self.encoder
    }

    /// The index, for measuring it.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The passages.
    pub fn corpus(&self) -> &Arc<Corpus> {
        &self.corpus
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        // A panic elsewhere cannot leave a result half written: each is inserted whole.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Searches queries that are not among the recent ones.
    fn search_new(
        &self,
        queries: &[String],
        top_k: usize,
    ) -> Vec<Result<Vec<Neighbour>, RetrieverError>> {
        match self.encoder.encode_queries(queries) {
            Ok(embeddings) => self.index.search(&embeddings, top_k).into_iter().map(Ok).collect(),
            Err(error) if queries.len() == 1 => vec![Err(error)],
            // One of them cannot be encoded: the others must not suffer.
            Err(_) => queries
                .iter()
                .flat_map(|query| self.search_new(std::slice::from_ref(query), top_k))
                .collect(),
        }
    }

    fn hits(&self, neighbours: &[Neighbour]) -> Result<Vec<Hit>, RetrieverError> {
        let hit = |neighbour: &Neighbour| {
            let passage = self.corpus.passage(neighbour.id)?;
            Ok(Hit { passage, score: neighbour.score })
        };
        neighbours.iter().map(hit).collect()
    }
}

impl<B: Backend> Retriever for DenseRetriever<B> {
    fn search(&self, queries: &[String], top_k: usize) -> Vec<Result<Vec<Hit>, SearchError>> {
        if top_k == 0 {
            return vec![
                Err(RetrieverError::option("retriever.top_k", 0, "3 is the paper's").into());
                queries.len()
            ];
        }
        let mut new: Vec<String> = queries.to_vec();
        new.sort_unstable();
        new.dedup();
        new.retain(|query| !self.recent().results.contains_key(&(query.clone(), top_k)));
        let found: HashMap<String, Result<Vec<Neighbour>, RetrieverError>> =
            new.iter().cloned().zip(self.search_new(&new, top_k)).collect();
        let mut recent = self.recent();
        // The answers first: inserting new results may drop recent ones this batch asked for.
        let answer = |query: &String| match (
            found.get(query),
            recent.results.get(&(query.clone(), top_k)),
        ) {
            (Some(Ok(neighbours)), _) | (None, Some(neighbours)) => {
                self.hits(neighbours).map_err(SearchError::from)
            }
            (Some(Err(error)), _) => Err(error.clone().into()),
            (None, None) => unreachable!("a query is either new or recent"),
        };
        let answers = queries.iter().map(answer).collect();
        // In the sorted order of `new`, not in that of the map, so that what is dropped is
        // reproducible.
        for query in new {
            if let Some(Ok(neighbours)) = found.get(&query) {
                recent.insert((query, top_k), neighbours.clone());
            }
        }
        answers
    }

    fn describe(&self) -> String {
        format!("dense: {}, {}", self.encoder.identity().name, self.index.describe())
    }
}

#[cfg(test)]
#[path = "dense_tests.rs"]
mod tests;
