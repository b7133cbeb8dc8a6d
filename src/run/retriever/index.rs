//! An index folder: what is in it, and searching it.
//!
//! ```text
//! index.json          what this is and what it was built from; written last, by rename: its presence means "finished"
//! vectors.f32         [n, dim] embeddings, row i = passage i, little-endian f32; memory-mapped
//! links.hnsw.graph    the HNSW links (kind = "hnsw" only)
//! links.hnsw.data     their row numbers
//! ```
//! An index answers with row numbers; passages stay in the corpus. It is only right together with
//! the encoder and the corpus it was built from, so it remembers the fingerprints of both and
//! opening it checks them.
//!
//! What is damaged is found before it is used: sizes always, the graph's files whole
//! ([`super::graph_files`]), the vectors' checksum where they are no larger than
//! [`CHECKED_AT_OPENING`]. Reading larger ones only to add them up would take minutes before every
//! run; `dgpo index info` and `dgpo index build` check those, whatever their size.
use super::{
    OnProgress, RetrieverError, StageProgress, beside, build_command,
    declared::E5_PREFIXES,
    encoder::EncoderIdentity,
    exact::{self, Metric, Neighbour},
    graph_files::GraphFiles,
    hnsw::{HnswIndex, HnswParams, Insertion},
    path_of, source_words, unknown_source,
    vectors::Vectors,
};
use crate::config::Search;
use crate::{config::RetrieverRecipe, data::corpus::Corpus};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{ErrorKind, Read},
    path::Path,
    sync::Arc,
};

/// The content of `index.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexMeta {
    pub version: u32,
    pub n_passages: usize,
    pub encoder: EncoderIdentity,
    /// File that the passages were read from, for messages.
    pub corpus_name: String,
    pub corpus_fingerprint: String,
    /// SHA-256 of the vectors; indexes built before it was kept have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vectors_sha256: Option<String>,
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
/// Vectors of up to so many bytes are checked whole whenever an index is opened: a second or two.
pub const CHECKED_AT_OPENING: u64 = 1 << 30;
/// No index.json is larger.
const MAX_META_BYTES: u64 = 1 << 20;

impl IndexMeta {
    /// Reads `dir/index.json`.
    /// # Errors
    /// If it is missing, unreadable, or of another version.
    pub fn read(dir: &Path) -> Result<Self, RetrieverError> {
        let path = dir.join(META_FILE);
        let mut text = Vec::new();
        match File::open(&path)
            .and_then(|file| file.take(MAX_META_BYTES + 1).read_to_end(&mut text))
        {
            Ok(_) => {}
            Err(_) if dir.is_file() => return Err(not_a_folder(dir)),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(RetrieverError::no_index(dir));
            }
            Err(error) => return Err(RetrieverError::io(&path, "read", error)),
        }
        let damaged = |why| Err(RetrieverError::damaged(&path, why));
        if text.len() as u64 > MAX_META_BYTES {
            return damaged(format!("more than {MAX_META_BYTES} bytes"));
        }
        let meta: Self = match serde_json::from_slice(&text) {
            Ok(meta) => meta,
            Err(error) => return damaged(error.to_string()),
        };
        let Self { version, n_passages, encoder: EncoderIdentity { dim, .. }, .. } = meta;
        if version != VERSION {
            return damaged(format!("version {version} where this program reads {VERSION}"));
        }
        if n_passages == 0 || dim == 0 {
            return damaged(format!("an index of {n_passages} vectors of {dim} numbers"));
        }
        Ok(meta)
    }

    /// The command that builds this index anew in `dir`, with all that decides what is in it.
    pub fn build_command(&self, dir: &Path) -> String {
        let graph = self.graph.as_ref().map(|graph| graph.params);
        complete_build_command(dir, &self.corpus_name, &self.encoder, graph)
    }

    /// # Errors
    /// If the index was built with another encoder, with other weights under the same name, or with
    /// other prefixes or lengths.
    pub fn check_encoder(
        &self,
        dir: &Path,
        encoder: &EncoderIdentity,
    ) -> Result<(), RetrieverError> {
        if self.encoder.fingerprint == encoder.fingerprint {
            return Ok(());
        }
        Err(RetrieverError::WrongEncoder {
            dir: dir.to_owned(),
            built_with: format!(
                "{} ({})",
                describe_encoder(&self.encoder),
                short(&self.encoder.fingerprint)
            ),
            asked: format!("{} ({})", describe_encoder(encoder), short(&encoder.fingerprint)),
            command: Self { encoder: encoder.clone(), ..self.clone() }.build_command(dir)
                + " --force",
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
            built_from: format!(
                "\"{}\" of {} passages ({})",
                self.corpus_name,
                self.n_passages,
                short(&self.corpus_fingerprint)
            ),
            asked: format!("{} passages, {}", corpus.len(), short(&corpus.fingerprint())),
            command: Self { corpus_name: path_of(corpus), ..self.clone() }.build_command(dir)
                + " --force",
        })
    }
}

/// The command that builds an index of these passages with this encoder in `dir`, with all that
/// decides what is in it.
pub fn complete_build_command(
    dir: &Path,
    corpus: &str,
    encoder: &EncoderIdentity,
    graph: Option<HnswParams>,
) -> String {
    let defaults = RetrieverRecipe::default();
    let EncoderIdentity { name, query_prefix, passage_prefix, max_tokens, .. } = encoder;
    let mut words = source_words(corpus, name);
    let mut set = |key: &str, value: String| {
        words.extend(["--set".to_owned(), format!("retriever.{key}={value}")])
    };
    if (query_prefix.as_str(), passage_prefix.as_str()) != E5_PREFIXES {
        set("query_prefix", format!("{query_prefix:?}"));
        set("passage_prefix", format!("{passage_prefix:?}"));
    }
    if *max_tokens != defaults.max_tokens {
        set("max_tokens", max_tokens.to_string());
    }
    if let Some(HnswParams { m, ef_construction, .. }) = graph {
        set("search", "hnsw".to_owned());
        if (m, ef_construction) != (defaults.hnsw_m, defaults.hnsw_ef_construction) {
            set("hnsw_m", m.to_string());
            set("hnsw_ef_construction", ef_construction.to_string());
        }
    }
    build_command(dir, &words)
}

/// The error of a file that was named as an index. FAISS files begin with four characters that say
/// which kind of index it is: IxFI and IxF2 (flat), IxMp and IxM2 (with ids), IHNf (HNSW), IwFl and
/// IwPQ (inverted lists), IBxF (of bits), and more of these families.
fn not_a_folder(path: &Path) -> RetrieverError {
    let mut start = [0; 4];
    let is_read = File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok();
    let is_faiss = is_read
        && start[0] == b'I'
        && b"xwHBvNL2".contains(&start[1])
        && start[2..].iter().all(u8::is_ascii_alphanumeric);
    let found = match is_faiss {
        true => {
            "; it begins as FAISS indexes do, and those cannot be read: they do not say which \
             encoder made their vectors"
        }
        false => "",
    };
    RetrieverError::NotAFolder {
        path: path.to_owned(),
        found,
        command: build_command(&beside(path), &unknown_source()),
    }
}

fn describe_encoder(encoder: &EncoderIdentity) -> String {
    let EncoderIdentity { name, query_prefix, passage_prefix, max_tokens, head, .. } = encoder;
    format!(
        "{name} with prefixes \"{query_prefix}\" and \"{passage_prefix}\", {max_tokens} tokens, \
         {head}"
    )
}

/// Enough of a fingerprint to tell two apart.
fn short(fingerprint: &str) -> String {
    fingerprint.chars().take(12).collect()
}

/// Embeddings ready to be searched, from a folder or from memory.
pub struct Index {
    vectors: Arc<Vectors>,
    graph: Option<HnswIndex>,
}

impl Index {
    /// Wraps embeddings that are in memory; the graph, where one is used, is built at once
    /// (serially if small, hence reproducibly).
    /// # Errors
    /// If the graph cannot be built or `progress` stopped it.
    pub fn in_memory(
        vectors: Vectors,
        search: Search,
        params: HnswParams,
        progress: &mut OnProgress,
    ) -> Result<Self, RetrieverError> {
        let vectors = Arc::new(vectors);
        let mut tick = |done, total| progress(StageProgress { stage: "graph", done, total });
        let insertion = Insertion::for_size(vectors.len());
        let graph = match search.uses_graph(vectors.len()) {
            true => Some(HnswIndex::build(vectors.clone(), params, insertion, &mut tick)?),
            false => None,
        };
        Ok(Self { vectors, graph })
    }

    /// Opens a finished index folder. Encoder and corpus are checked by the caller with
    /// [`IndexMeta::check_encoder`] and [`IndexMeta::check_corpus`], before the large files are
    /// touched.
    /// # Errors
    /// If a file is missing or damaged, or if `search` asks for a graph the index does not have.
    pub fn open(
        dir: &Path,
        meta: &IndexMeta,
        search: Search,
        ef_search: usize,
    ) -> Result<Self, RetrieverError> {
        Self::open_checked(dir, meta, search, ef_search)
            .map_err(|error| error.rebuilt_with(|dir| meta.build_command(dir)))
    }

    fn open_checked(
        dir: &Path,
        meta: &IndexMeta,
        search: Search,
        ef_search: usize,
    ) -> Result<Self, RetrieverError> {
        let search = meta.encoder.search(search)?;
        let vectors =
            Arc::new(Vectors::map(&dir.join(VECTORS_FILE), meta.n_passages, meta.encoder.dim)?);
        if vectors.as_bytes().len() as u64 <= CHECKED_AT_OPENING {
            check_vectors(dir, &vectors, meta)?;
        }
        let graph = match (&meta.graph, search.uses_graph(meta.n_passages)) {
            (Some(graph), true) => {
                graph.params.check().map_err(|_| {
                    let why = format!("{} are no parameters of a graph", graph.params);
                    RetrieverError::damaged(&dir.join(META_FILE), why)
                })?;
                let params = HnswParams { ef_search, ..graph.params };
                Some(HnswIndex::load(dir, &graph.files, vectors.clone(), params)?)
            }
            (None, true) if search == Search::Hnsw => {
                let command = meta.build_command(dir);
                let hint = format!(
                    "{} has no graph; add one with `{command} --set retriever.search=hnsw` (the \
                     vectors are kept)",
                    dir.display()
                );
                return Err(RetrieverError::option("retriever.search", "\"hnsw\"", &hint));
            }
            (None, true) => {
                tracing::warn!(
                    "{} has no graph: searching {} passages exactly",
                    dir.display(),
                    meta.n_passages
                );
                None
            }
            (_, false) => None,
        };
        Ok(Self { vectors, graph })
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

    /// Checks the vectors whole, whatever their size.
    /// # Errors
    /// If they are not those that were written, or one is not finite.
    pub fn check(&self, dir: &Path, meta: &IndexMeta) -> Result<(), RetrieverError> {
        check_vectors(dir, &self.vectors, meta)
            .map_err(|error| error.rebuilt_with(|dir| meta.build_command(dir)))
    }

    /// The embeddings, row i of passage i.
    pub fn vectors(&self) -> &Vectors {
        &self.vectors
    }

    /// True if searches go through a graph.
    pub fn uses_graph(&self) -> bool {
        self.graph.is_some()
    }

    /// "exact over 660 vectors of 64".
    pub fn describe(&self) -> String {
        let kind = match &self.graph {
            Some(graph) => format!("hnsw ({})", graph.params()),
            None => "exact".to_owned(),
        };
        format!("{kind} over {} vectors of {}", self.vectors.len(), self.vectors.dim())
    }
}

/// SHA-256 of vectors.
pub fn vectors_sha256(vectors: &Vectors) -> String {
    format!("{:x}", Sha256::digest(vectors.as_bytes()))
}

/// # Errors
/// If the vectors are not those that were written; where nothing says which those are, if a number
/// is not finite.
pub fn check_vectors(
    dir: &Path,
    vectors: &Vectors,
    meta: &IndexMeta,
) -> Result<(), RetrieverError> {
    let why = match &meta.vectors_sha256 {
        Some(sha256) if *sha256 != vectors_sha256(vectors) => {
            "its checksum is not the one in index.json".to_owned()
        }
        None if !vectors.as_slice().iter().all(|number| number.is_finite()) => {
            "a number in it is not finite".to_owned()
        }
        _ => return Ok(()),
    };
    Err(RetrieverError::damaged(&dir.join(VECTORS_FILE), why))
}
