//! Building an index folder, resumably.
//!
//! ```text
//! vectors.f32.part, progress.json   while passages are encoded: whole blocks only
//! vectors.f32, progress.json        while the graph is built
//! vectors.f32, index.json           finished
//! ```
//! A block is appended and synced before `progress.json` counts it, and `index.json` is renamed
//! into place last: killing the build at any point loses at most one block or the graph; asking it
//! to stop loses no passage, because the block under way is finished first. Blocks are cut at the
//! same passages every time, so a resumed build has the bytes of an uninterrupted one.
use super::{
    OnProgress, RetrieverError, StageProgress, Tick,
    encoder::EncoderIdentity,
    hnsw::{HnswIndex, HnswParams, Insertion},
    index::{
        GraphMeta, IndexMeta, META_FILE, VECTORS_FILE, VERSION, check_vectors,
        complete_build_command, vectors_sha256,
    },
    vectors::Vectors,
};
use crate::config::Search;
use crate::data::corpus::Corpus;
use dgpo_models::files::write_file;
use serde::{Deserialize, Serialize};
use std::{
    fs::OpenOptions,
    io::{Seek, Write},
    ops::ControlFlow,
    path::Path,
    sync::Arc,
    time::Instant,
};

/// Settings of a build.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// File that the passages come from, for `index.json`.
    pub corpus_name: String,
    /// Kind of search: decides if a graph is built.
    pub search: Search,
    pub hnsw: HnswParams,
    /// Replace an index of another encoder or corpus.
    pub replace: bool,
}

/// Report of a build.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BuildReport {
    pub n_passages: usize,
    pub dim: usize,
    /// Passages whose embeddings were there already.
    pub n_reused: usize,
    /// Seconds and rate of this call's encoding.
    pub encode_s: f64,
    pub passages_per_s: f64,
    /// Seconds of this call's graph building; 0 without a graph or when it was there.
    pub graph_s: f64,
}

/// Passage texts -> embeddings `[n, dim]`, reporting to the tick.
pub type Embed<'a> = dyn FnMut(&[String], &mut Tick) -> Result<Vec<f32>, RetrieverError> + 'a;

/// Passages encoded between two syncs: what a kill loses, and what a request to stop waits for
/// (half a minute on two busy CPU cores with e5-small). Also the unit of length sorting.
pub const BLOCK_PASSAGES: usize = 512;
const PART_FILE: &str = "vectors.f32.part";
const PROGRESS_FILE: &str = "progress.json";
const GRAPH_BASENAME: &str = "links";

/// progress.json: how far the encoding of which passages with which encoder is.
#[derive(Debug, Serialize, Deserialize)]
struct EncodedSoFar {
    encoder_fingerprint: String,
    corpus_fingerprint: String,
    n_encoded: usize,
    encode_s: f64,
}

/// Builds the index of `corpus` in `dir`, or continues, or does nothing if it is there.
///
/// An index of the same encoder and corpus but without the graph asked for (or with other
/// parameters) keeps its vectors.
/// # Errors
/// Empty corpus, files that cannot be written, a failing encoder, an index of something else
/// without `replace`, or an interruption (`progress` said stop; everything that was encoded is
/// kept).
pub fn build(
    dir: &Path,
    options: &BuildOptions,
    encoder: &EncoderIdentity,
    corpus: &Corpus,
    embed: &mut Embed,
    progress: &mut OnProgress,
) -> Result<BuildReport, RetrieverError> {
    if corpus.is_empty() {
        return Err(RetrieverError::EmptyCorpus);
    }
    options.hnsw.check()?;
    std::fs::create_dir_all(dir).map_err(|source| RetrieverError::io(dir, "create", source))?;
    let finished = existing(dir, options, encoder, corpus)?;
    let mut state = EncodedSoFar {
        encoder_fingerprint: encoder.fingerprint.clone(),
        corpus_fingerprint: corpus.fingerprint(),
        n_encoded: finished.as_ref().map_or(0, |meta| meta.n_passages),
        encode_s: finished.as_ref().map_or(0.0, |meta| meta.encode_s),
    };
    if finished.is_none() {
        state = resume(dir, state, encoder, corpus.len());
    }
    let (n_reused, before_s) = (state.n_encoded, state.encode_s);
    if finished.is_none() {
        encode(dir, &mut state, encoder, corpus, embed, progress)?;
    }
    let vectors_sha256 = match finished.as_ref().and_then(|meta| meta.vectors_sha256.clone()) {
        Some(sha256) => sha256,
        None => vectors_sha256(&Vectors::map(&dir.join(VECTORS_FILE), corpus.len(), encoder.dim)?),
    };
    // `ef_search` is a matter of searching, not of the graph.
    let is_the_one = |graph: &GraphMeta| {
        (graph.params.m, graph.params.ef_construction)
            == (options.hnsw.m, options.hnsw.ef_construction)
            && graph.files.check(dir, HnswIndex::expected(corpus.len(), graph.params)).is_ok()
    };
    let mut graph_s = 0.0;
    let graph =
        match (finished.and_then(|meta| meta.graph), options.search.uses_graph(corpus.len())) {
            (graph, false) => graph,
            (Some(graph), true) if is_the_one(&graph) => {
                Some(GraphMeta { params: options.hnsw, ..graph })
            }
            (_, true) => {
                let graph = link(dir, options, encoder, corpus, progress)?;
                graph_s = graph.build_s;
                Some(graph)
            }
        };
    let meta = IndexMeta {
        version: VERSION,
        n_passages: corpus.len(),
        encoder: encoder.clone(),
        corpus_name: options.corpus_name.clone(),
        corpus_fingerprint: corpus.fingerprint(),
        vectors_sha256: Some(vectors_sha256),
        encode_s: state.encode_s,
        graph,
    };
    write_json(dir, META_FILE, &meta)?;
    remove(dir, PROGRESS_FILE)?;
    let (n_encoded, encode_s) = (corpus.len() - n_reused, state.encode_s - before_s);
    Ok(BuildReport {
        n_passages: corpus.len(),
        dim: encoder.dim,
        n_reused,
        encode_s,
        passages_per_s: if n_encoded == 0 { 0.0 } else { n_encoded as f64 / encode_s },
        graph_s,
    })
}

/// The finished index in `dir`, if it is of this encoder and corpus. One of something else is an
/// error, or deleted if `replace`.
fn existing(
    dir: &Path,
    options: &BuildOptions,
    encoder: &EncoderIdentity,
    corpus: &Corpus,
) -> Result<Option<IndexMeta>, RetrieverError> {
    let found = match IndexMeta::read(dir) {
        Ok(meta)
            if meta
                .check_encoder(dir, encoder)
                .and_then(|()| meta.check_corpus(dir, corpus))
                .is_ok() =>
        {
            let vectors = Vectors::map(&dir.join(VECTORS_FILE), meta.n_passages, encoder.dim);
            match vectors.and_then(|vectors| check_vectors(dir, &vectors, &meta)) {
                Ok(()) => return Ok(Some(meta)),
                // Damage is repaired by encoding again.
                Err(_) => None,
            }
        }
        Ok(meta) => {
            Some(format!("encoder {} and corpus \"{}\"", meta.encoder.name, meta.corpus_name))
        }
        Err(RetrieverError::NoIndex { .. }) => return Ok(None),
        Err(error @ RetrieverError::Io { .. }) => return Err(error),
        Err(_) => Some("an unreadable kind".to_owned()),
    };
    if let (Some(found), false) = (found, options.replace) {
        let graph = options.search.uses_graph(corpus.len()).then_some(options.hnsw);
        let command =
            complete_build_command(dir, &options.corpus_name, encoder, graph) + " --force";
        return Err(RetrieverError::IndexExists { dir: dir.to_owned(), found, command });
    }
    remove(dir, META_FILE)?;
    remove(dir, PROGRESS_FILE)?;
    Ok(None)
}

/// Progress of an interrupted build of the same index; `fresh` if there is none.
fn resume(
    dir: &Path,
    fresh: EncodedSoFar,
    encoder: &EncoderIdentity,
    n_passages: usize,
) -> EncodedSoFar {
    let is_ours = |state: &EncodedSoFar| {
        let is_renamed = state.n_encoded == n_passages && !dir.join(PART_FILE).exists();
        let file = dir.join(if is_renamed { VECTORS_FILE } else { PART_FILE });
        let size_bytes = std::fs::metadata(file).map_or(0, |meta| meta.len());
        (&state.encoder_fingerprint, &state.corpus_fingerprint)
            == (&fresh.encoder_fingerprint, &fresh.corpus_fingerprint)
            && state.n_encoded <= n_passages
            && state.encode_s >= 0.0
            && size_bytes >= row_bytes(encoder) * state.n_encoded as u64
    };
    let written = std::fs::read(dir.join(PROGRESS_FILE)).ok();
    let state = written.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    state.filter(is_ours).unwrap_or(fresh)
}

fn row_bytes(encoder: &EncoderIdentity) -> u64 {
    (encoder.dim * size_of::<f32>()) as u64
}

/// Appends the embeddings that are missing, then renames the file to its final name.
fn encode(
    dir: &Path,
    state: &mut EncodedSoFar,
    encoder: &EncoderIdentity,
    corpus: &Corpus,
    embed: &mut Embed,
    progress: &mut OnProgress,
) -> Result<(), RetrieverError> {
    let (part, total) = (dir.join(PART_FILE), corpus.len());
    if state.n_encoded == total && !part.exists() {
        return Ok(());
    }
    let io = |source| RetrieverError::io(&part, "write", source);
    // A part is ours if it is a plain file; a link that somebody put there is not written through.
    if std::fs::symlink_metadata(&part).is_ok_and(|found| !found.is_file()) {
        return Err(RetrieverError::damaged(&part, "it is no plain file".to_owned()));
    }
    let mut file =
        OpenOptions::new().create(true).write(true).truncate(false).open(&part).map_err(io)?;
    // Bytes after the last counted block are of a block that was cut short.
    file.set_len(row_bytes(encoder) * state.n_encoded as u64).map_err(io)?;
    file.seek(std::io::SeekFrom::End(0)).map_err(io)?;
    let mut is_stop_asked = false;
    while state.n_encoded < total {
        if is_stop_asked {
            let done = state.n_encoded;
            return Err(RetrieverError::Interrupted { stage: "encode", done, total });
        }
        let (started, first) = (Instant::now(), state.n_encoded);
        let end = (first + BLOCK_PASSAGES).min(total);
        let texts = passage_texts(corpus, first..end)?;
        // A stop inside a block waits for its end: half a block cannot be kept, because its
        // passages are encoded in order of length.
        let mut tick = |done: usize, _: usize| -> ControlFlow<()> {
            is_stop_asked |=
                progress(StageProgress { stage: "encode", done: first + done, total }).is_break();
            ControlFlow::Continue(())
        };
        let embeddings = embed(&texts, &mut tick)?;
        if embeddings.len() != texts.len() * encoder.dim {
            let (size, hint) = (embeddings.len() / texts.len(), "the encoder's dim is another");
            return Err(RetrieverError::option("embedding size", size, hint));
        }
        file.write_all(bytemuck::cast_slice(&embeddings))
            .and_then(|()| file.sync_data())
            .map_err(io)?;
        state.n_encoded = end;
        state.encode_s += started.elapsed().as_secs_f64();
        write_json(dir, PROGRESS_FILE, state)?;
    }
    let vectors = dir.join(VECTORS_FILE);
    std::fs::rename(&part, &vectors).map_err(|source| RetrieverError::io(&vectors, "write", source))
}

/// `contents` of a range of passages.
pub fn passage_texts(
    corpus: &Corpus,
    range: std::ops::Range<usize>,
) -> Result<Vec<String>, RetrieverError> {
    range.map(|idx| Ok(corpus.passage(idx)?.contents)).collect()
}

/// Builds and saves the graph over the finished vectors.
fn link(
    dir: &Path,
    options: &BuildOptions,
    encoder: &EncoderIdentity,
    corpus: &Corpus,
    progress: &mut OnProgress,
) -> Result<GraphMeta, RetrieverError> {
    let vectors = Arc::new(Vectors::map(&dir.join(VECTORS_FILE), corpus.len(), encoder.dim)?);
    let (started, insertion) = (Instant::now(), Insertion::for_size(corpus.len()));
    let mut tick = |done, total| progress(StageProgress { stage: "graph", done, total });
    let graph = HnswIndex::build(vectors, options.hnsw, insertion, &mut tick)?;
    let files = graph.save(dir, GRAPH_BASENAME)?;
    let build_s = started.elapsed().as_secs_f64();
    Ok(GraphMeta { params: options.hnsw, insertion, build_s, files })
}

fn write_json(dir: &Path, name: &str, value: &impl Serialize) -> Result<(), RetrieverError> {
    let path = dir.join(name);
    let io = |source| RetrieverError::io(&path, "write", source);
    let text = serde_json::to_vec_pretty(value).map_err(|error| io(error.into()))?;
    write_file(&path, text).map_err(io)
}

fn remove(dir: &Path, name: &str) -> Result<(), RetrieverError> {
    let path = dir.join(name);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(RetrieverError::io(&path, "remove", error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
