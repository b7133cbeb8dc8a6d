//! Query -> passages.
//!
//! Three implementations of one trait: dense (an E5 encoder over exact or HNSW search), BM25, and a client of somebody's `/retrieve`
//! server (method §6). [`open`] makes the one a recipe asks for; nothing else needs to know which it is.
//!
//! Reading order: [`exact`] and [`hnsw`] find vectors near a vector; [`vectors`] is where those lie; [`encoder`] makes them from
//! text; [`index`] keeps them in a folder and [`build`] fills it; [`dense`] joins them; [`commands`] is `dgpo index …` without its flags.
//! [`remote`] asks a server at an [`address`], in [`batches`].
//!
//! Contract: a query gets the passages that have something to do with it, at most k, or an error. An empty list says that nothing was
//! found: what the agent reads then is the environment's business ([`crate::env`]). The same query gets the same passages whatever else
//! is in the batch; ties go to the passage that comes first in the corpus. Nobody asks for a blank query.
pub mod address;
pub(crate) mod answer;
pub mod batches;
pub mod bm25;
pub mod build;
pub mod commands;
pub mod dense;
pub mod encoder;
pub mod exact;
pub mod hnsw;
pub mod index;
pub mod remote;
pub mod vectors;

use crate::{
    config::RetrieverRecipe,
    data::corpus::{Corpus, Passage},
    hub,
};
use build::BuildOptions;
use dense::DenseRetriever;
use dgpo_models::Backend;
use encoder::{Encoder, EncoderOptions};
use hnsw::HnswParams;
use index::Search;
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A passage with the retriever's score (inner product, BM25 score; 0 where a server gives none).
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    pub passage: Passage,
    pub score: f32,
}

/// Query -> passages.
pub trait Retriever {
    /// One result a query, in order; no passage where nothing was found. A failure concerns its query alone where the implementation
    /// can tell, and is never an empty list of passages.
    fn search(&self, queries: &[String], top_k: usize) -> Vec<Result<Vec<Hit>, RetrieverError>>;
    /// For logs and provenance: kind, size, parameters.
    fn describe(&self) -> String;
}

/// How far a long operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// "encode" (passages) or "graph" (vectors).
    pub stage: &'static str,
    pub done: usize,
    pub total: usize,
}

/// Hears of progress; `Break` ends the operation at the next safe point with [`RetrieverError::Interrupted`].
pub type OnProgress<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// Hears (done, total) of one stage; `Break` stops it.
pub type Tick<'a> = dyn FnMut(usize, usize) -> ControlFlow<()> + 'a;

/// Why a search, or the building or opening of a retriever, failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RetrieverError {
    #[error("cannot {doing} {}: {why}; hint: check that the path exists, that you may write there, and that the disk is not full", path.display())]
    Io { path: PathBuf, doing: &'static str, why: String },
    /// A file of an index that is not what index.json says.
    #[error("{} is damaged: {why}; hint: rebuild the index with `dgpo index build --corpus CORPUS --out {}`", path.display(), path.parent().unwrap_or(path).display())]
    Damaged { path: PathBuf, why: String },
    #[error(
        "{0} holds no finished index (no index.json); hint: build it, or continue an interrupted build, with `dgpo index build --corpus CORPUS --out {0}`",
        dir.display()
    )]
    NoIndex { dir: PathBuf },
    #[error(
        "{0} already holds an index of {found}; hint: give another folder, or replace it with `dgpo index build --corpus CORPUS --out {0} --force`",
        dir.display()
    )]
    IndexExists { dir: PathBuf, found: String },
    #[error(
        "the index {0} was built with encoder {built_with} ({built_fingerprint}), not with {asked} ({asked_fingerprint}); \
         hint: rebuild it with `dgpo index build --corpus CORPUS --out {0} --force`, or set retriever.encoder, its prefixes and max_tokens to those of the index",
        dir.display()
    )]
    WrongEncoder { dir: PathBuf, built_with: String, built_fingerprint: String, asked: String, asked_fingerprint: String },
    #[error(
        "the index {0} was built from corpus {built_from} ({built_fingerprint}), not from the one given ({asked_fingerprint}); \
         hint: rebuild it with `dgpo index build --corpus CORPUS --out {0} --force`, or set data.corpus to the corpus of the index",
        dir.display()
    )]
    WrongCorpus { dir: PathBuf, built_from: String, built_fingerprint: String, asked_fingerprint: String },
    #[error("the corpus holds no passages; hint: data.corpus must be JSON Lines with `id` and `contents`")]
    EmptyCorpus,
    #[error("{key} = {value} is not possible; hint: {hint}")]
    Option { key: String, value: String, hint: String },
    /// The encoder gave NaN or infinity.
    #[error("the embedding of {what} is not finite; hint: the encoder's weights are broken, or its dtype is too narrow (use f32)")]
    NotFinite { what: String },
    /// A failure of what lies below (encoder, tokenizer, corpus, hub), in its own words.
    #[error("{0}")]
    Failed(String),
    #[error("stopped at {done} of {total} ({stage}); hint: the same command continues there")]
    Interrupted { stage: &'static str, done: usize, total: usize },
    /// The `/retrieve` server could not be reached or did not answer as it should.
    #[error("{url}: {why} (attempts: {attempts}); hint: {hint}")]
    Remote { url: String, status: Option<u16>, why: String, attempts: usize, hint: String },
}

impl RetrieverError {
    fn io(path: &Path, doing: &'static str, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), doing, why: source.to_string() }
    }

    fn damaged(path: &Path, why: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), why: why.into() }
    }

    fn option(key: &str, value: impl ToString, hint: &str) -> Self {
        Self::Option { key: key.to_owned(), value: value.to_string(), hint: hint.to_owned() }
    }

    /// The sources hold `std::io::Error` and the like, which cannot be cloned; one failure must be told to every query of a batch.
    fn passed_on(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Makes the retriever a recipe asks for.
///
/// `kind = "dense"`: the index folder `retriever.index` is opened and checked against encoder and corpus. Where the recipe names none,
/// a corpus below [`Search::EXACT_BELOW`] passages is encoded in memory, a larger one into `run_dir/index` (resumably).
/// `corpus` may be `None` for `kind = "remote"` alone.
/// # Errors
/// An unknown kind or search, a missing corpus, an encoder that cannot be read, an index that does not fit.
pub fn open<B: Backend>(
    recipe: &RetrieverRecipe,
    corpus: Option<Arc<Corpus>>,
    run_dir: &Path,
    device: &B::Device,
    progress: &mut OnProgress,
) -> Result<Box<dyn Retriever>, RetrieverError> {
    let corpus = || corpus.clone().ok_or(RetrieverError::EmptyCorpus);
    match recipe.kind.as_str() {
        "dense" => Ok(Box::new(open_dense::<B>(recipe, corpus()?, run_dir, device, progress)?)),
        "bm25" => Ok(Box::new(bm25::Bm25Retriever::new(corpus()?)?)),
        "remote" => Ok(Box::new(remote::RemoteRetriever::new(recipe)?)),
        other => Err(RetrieverError::option("retriever.kind", format!("\"{other}\""), "dense, bm25 or remote")),
    }
}

fn open_dense<B: Backend>(
    recipe: &RetrieverRecipe,
    corpus: Arc<Corpus>,
    run_dir: &Path,
    device: &B::Device,
    progress: &mut OnProgress,
) -> Result<DenseRetriever<B>, RetrieverError> {
    let folder = hub::resolve(&recipe.encoder).map_err(RetrieverError::passed_on)?;
    let encoder = Encoder::<B>::open(&folder, &recipe.encoder, encoder_options(recipe), device)?;
    let (search, params) = (Search::parse(&recipe.search)?, hnsw_params(recipe));
    if !recipe.index.is_empty() {
        let dir = hub::expand(&recipe.index).map_err(RetrieverError::passed_on)?;
        return DenseRetriever::open(Path::new(&dir), encoder, corpus, search, params.ef_search);
    }
    if corpus.len() < Search::EXACT_BELOW {
        return DenseRetriever::build_in_memory(encoder, corpus, search, params, progress);
    }
    let dir = run_dir.join("index");
    let corpus_name = corpus.path().map_or_else(String::new, |path| path.display().to_string());
    let options = BuildOptions { corpus_name, search, hnsw: params, replace: false };
    build::build(&dir, &options, encoder.identity(), &corpus, &mut |texts, tick| encoder.encode_passages(texts, tick), progress)?;
    DenseRetriever::open(&dir, encoder, corpus, search, params.ef_search)
}

/// The encoder's part of a recipe.
pub fn encoder_options(recipe: &RetrieverRecipe) -> EncoderOptions {
    EncoderOptions {
        query_prefix: recipe.query_prefix.clone(),
        passage_prefix: recipe.passage_prefix.clone(),
        max_tokens: recipe.max_tokens,
        batch_tokens: recipe.batch_tokens,
    }
}

/// The graph's part of a recipe.
pub fn hnsw_params(recipe: &RetrieverRecipe) -> HnswParams {
    HnswParams { m: recipe.hnsw_m, ef_construction: recipe.hnsw_ef_construction, ef_search: recipe.hnsw_ef_search }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_place_and_what_to_do() {
        let errors = [
            RetrieverError::NoIndex { dir: "somewhere".into() },
            RetrieverError::damaged(Path::new("somewhere/vectors.f32"), "12 bytes instead of 16"),
            RetrieverError::option("somewhere", 3, "4"),
            RetrieverError::IndexExists { dir: "somewhere".into(), found: "encoder a".into() },
        ];
        for error in errors {
            let message = error.to_string();
            assert!(message.contains("somewhere") && message.contains("hint: "), "{message}");
        }
    }
}
