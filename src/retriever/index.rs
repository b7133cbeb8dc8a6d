//! An index folder: what is in it, and searching it.
//!
//! ```text
//! index.json          what this is and what it was built from; written last, by rename: its presence means "finished"
//! vectors.f32         [n, dim] embeddings, row i = passage i, little-endian f32; memory-mapped
//! links.hnsw.graph    the HNSW links (kind = "hnsw" only)
//! links.hnsw.data     their row numbers
//! ```
//! An index answers with row numbers; passages stay in the corpus. It is only right together with the encoder and the corpus it was built
//! from, so it remembers the fingerprints of both and opening it checks them.
use super::{
    OnProgress, Progress, RetrieverError,
    encoder::EncoderIdentity,
    exact::{self, Metric, Neighbour},
    hnsw::{GraphFiles, HnswIndex, HnswParams, Insertion},
    vectors::Vectors,
};
use crate::data::corpus::Corpus;
use serde::{Deserialize, Serialize};
use std::{path::Path, sync::Arc};

/// How an index is searched, as a recipe says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// Exact below [`Search::EXACT_BELOW`] passages, HNSW from there.
    Auto,
    Exact,
    Hnsw,
}

impl Search {
    /// Below this many passages a batch of queries is answered exactly no slower than through a graph of good recall.
    pub const EXACT_BELOW: usize = 50_000;

    /// # Errors
    /// If the text is none of "auto", "exact", "hnsw".
    pub fn parse(text: &str) -> Result<Self, RetrieverError> {
        match text {
            "auto" => Ok(Self::Auto),
            "exact" => Ok(Self::Exact),
            "hnsw" => Ok(Self::Hnsw),
            other => Err(RetrieverError::option("retriever.search", format!("\"{other}\""), "auto, exact or hnsw")),
        }
    }

    /// Whether `n` passages get a graph.
    pub fn uses_graph(self, n: usize) -> bool {
        self == Self::Hnsw || (self == Self::Auto && n >= Self::EXACT_BELOW)
    }
}

/// The content of `index.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexMeta {
    pub version: u32,
    pub n_passages: usize,
    pub encoder: EncoderIdentity,
    /// Where the passages were read from, for messages.
    pub corpus_name: String,
    pub corpus_fingerprint: String,
    /// Seconds spent encoding, over all attempts.
    pub encode_s: f64,
    /// The graph, if there is one; without it the index is searched exactly.
    pub graph: Option<GraphMeta>,
}

/// The graph's part of `index.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphMeta {
    pub params: HnswParams,
    pub insertion: Insertion,
    pub build_s: f64,
    pub files: GraphFiles,
}

/// Files of an index folder.
pub const META_FILE: &str = "index.json";
pub const VECTORS_FILE: &str = "vectors.f32";
/// The version this program writes and reads.
pub const VERSION: u32 = 1;

impl IndexMeta {
    /// Reads `dir/index.json`.
    /// # Errors
    /// If it is missing, unreadable, or of another version.
    pub fn read(dir: &Path) -> Result<Self, RetrieverError> {
        let path = dir.join(META_FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(RetrieverError::NoIndex { dir: dir.to_owned() }),
            Err(error) => return Err(RetrieverError::io(&path, "read", error)),
        };
        let meta: Self = serde_json::from_str(&text).map_err(|error| RetrieverError::damaged(&path, error.to_string()))?;
        if meta.version != VERSION {
            return Err(RetrieverError::damaged(&path, format!("version {} where this program reads {VERSION}", meta.version)));
        }
        Ok(meta)
    }

    /// # Errors
    /// If the index was built with another encoder, with other weights under the same name, or with other prefixes or lengths.
    pub fn check_encoder(&self, dir: &Path, encoder: &EncoderIdentity) -> Result<(), RetrieverError> {
        if self.encoder.fingerprint == encoder.fingerprint {
            return Ok(());
        }
        Err(RetrieverError::WrongEncoder {
            dir: dir.to_owned(),
            built_with: describe_encoder(&self.encoder),
            built_fingerprint: short(&self.encoder.fingerprint),
            asked: describe_encoder(encoder),
            asked_fingerprint: short(&encoder.fingerprint),
        })
    }

    /// # Errors
    /// If the index was built from another corpus.
    pub fn check_corpus(&self, dir: &Path, corpus: &Corpus) -> Result<(), RetrieverError> {
        if self.corpus_fingerprint == corpus.fingerprint() && self.n_passages == corpus.len() {
            return Ok(());
        }
        Err(RetrieverError::WrongCorpus {
            dir: dir.to_owned(),
            built_from: format!("\"{}\" of {} passages", self.corpus_name, self.n_passages),
            built_fingerprint: short(&self.corpus_fingerprint),
            asked_fingerprint: format!("{} passages, {}", corpus.len(), short(&corpus.fingerprint())),
        })
    }
}

fn describe_encoder(encoder: &EncoderIdentity) -> String {
    let EncoderIdentity { name, query_prefix, passage_prefix, max_tokens, .. } = encoder;
    format!("{name} with prefixes \"{query_prefix}\" and \"{passage_prefix}\", {max_tokens} tokens")
}

/// Enough of a fingerprint to tell two apart.
fn short(fingerprint: &str) -> String {
    fingerprint.chars().take(12).collect()
}

/// Embeddings ready to be searched, from a folder or from memory.
pub struct Index {
    vectors: Arc<Vectors>,
    graph: Option<HnswIndex>,
    description: String,
}

impl Index {
    /// Wraps embeddings that are in memory; the graph, where one is used, is built at once (serially if small, hence reproducibly).
    /// # Errors
    /// If the graph cannot be built or `progress` stopped it.
    pub fn in_memory(vectors: Vectors, search: Search, params: HnswParams, progress: &mut OnProgress) -> Result<Self, RetrieverError> {
        let vectors = Arc::new(vectors);
        let graph = match search.uses_graph(vectors.len()) {
            true => {
                let mut tick = |done, total| progress(Progress { stage: "graph", done, total });
                Some(HnswIndex::build(vectors.clone(), params, Insertion::for_size(vectors.len()), &mut tick)?)
            }
            false => None,
        };
        let description = describe(&vectors, graph.is_some().then_some(params));
        Ok(Self { vectors, graph, description })
    }

    /// Opens a finished index folder. Encoder and corpus are checked by the caller with [`IndexMeta::check_encoder`] and
    /// [`IndexMeta::check_corpus`], before the large files are touched.
    /// # Errors
    /// If a file is missing or damaged, or if `search` asks for a graph the index does not have.
    pub fn open(dir: &Path, meta: &IndexMeta, search: Search, ef_search: usize) -> Result<Self, RetrieverError> {
        let vectors = Arc::new(Vectors::map(&dir.join(VECTORS_FILE), meta.n_passages, meta.encoder.dim)?);
        let graph = match (&meta.graph, search.uses_graph(meta.n_passages)) {
            (Some(graph), true) => {
                let params = HnswParams { ef_search, ..graph.params };
                params.check()?;
                Some((HnswIndex::load(dir, &graph.files, vectors.clone(), ef_search)?, params))
            }
            (None, true) if search == Search::Hnsw => {
                let hint = format!(
                    "{0} has no graph; add one with `dgpo index build --corpus CORPUS --out {0} --set retriever.search=hnsw` (the vectors are kept)",
                    dir.display()
                );
                return Err(RetrieverError::option("retriever.search", "\"hnsw\"", &hint));
            }
            (None, true) => {
                tracing::warn!("{} has no graph: searching {} passages exactly", dir.display(), meta.n_passages);
                None
            }
            (_, false) => None,
        };
        let description = describe(&vectors, graph.as_ref().map(|(_, params)| *params));
        Ok(Self { vectors, graph: graph.map(|(graph, _)| graph), description })
    }

    /// The `k` nearest passages for each query, nearest first, ties by lowest row number.
    /// # Shapes
    /// queries `[n_queries, dim]`, unit length -> `n_queries` lists of `min(k, n_passages)`
    pub fn search(&self, queries: &[f32], k: usize) -> Vec<Vec<Neighbour>> {
        match &self.graph {
            Some(graph) => graph.search(queries, k),
            None => self.search_exact(queries, k),
        }
    }

    /// As [`Index::search`], but never through the graph: the oracle of its recall.
    pub fn search_exact(&self, queries: &[f32], k: usize) -> Vec<Vec<Neighbour>> {
        exact::top_k(self.vectors.as_slice(), queries, self.vectors.dim(), k, Metric::InnerProduct)
    }

    /// True if searches go through a graph.
    pub fn uses_graph(&self) -> bool {
        self.graph.is_some()
    }

    /// "exact over 660 vectors of 64".
    pub fn describe(&self) -> &str {
        &self.description
    }
}

fn describe(vectors: &Vectors, params: Option<HnswParams>) -> String {
    let kind = match params {
        Some(HnswParams { m, ef_construction, ef_search }) => format!("hnsw (M {m}, ef {ef_construction}/{ef_search})"),
        None => "exact".to_owned(),
    };
    format!("{kind} over {} vectors of {}", vectors.len(), vectors.dim())
}
