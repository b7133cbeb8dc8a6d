//! Query -> passages.
//!
//! Three implementations of one trait: dense (an E5 encoder over exact or HNSW search), BM25, and a
//! client of somebody's `/retrieve` server (method §6). [`open`] makes the one a recipe asks for;
//! nothing else needs to know which it is.
//!
//! Reading order: [`exact`] and [`hnsw`] find vectors near a vector; [`vectors`] is where those
//! lie; [`encoder`] makes them from text; [`index`] keeps them in a folder and [`build`] fills it;
//! [`dense`] joins them; [`measure`] says how well an index works. [`remote`] asks a server
//! at an [`address`], in [`batches`]. [`contrastive`] trains an encoder.
//!
//! Their contract is that of [`dgpo_core::env::search`]; ties go to the passage that comes first in
//! the corpus.
pub mod address;
pub mod answer;
pub mod batches;
pub mod bm25;
pub mod build;
pub mod contrastive;
pub mod declared;
pub mod dense;
pub mod encoder;
pub mod equal;
pub mod exact;
pub mod graph_files;
pub mod hnsw;
pub mod index;
pub mod measure;
pub mod remote;
pub mod vectors;

use crate::{
    config::{RetrieverKind, RetrieverRecipe, Search, shell_quoted},
    data::{DataError, corpus::Corpus},
    hub::{self, HubError},
};
use build::{BuildOptions, BuildReport};
use dense::DenseRetriever;
use dgpo_core::{
    env::search::{Retriever, SearchError},
    tokenizer::TokenizerError,
};
use dgpo_models::{Backend, ModelError};
use encoder::{Encoder, EncoderOptions};
use hnsw::HnswParams;
use index::IndexMeta;
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Progress of a long operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageProgress {
    /// "encode" (passages) or "graph" (vectors).
    pub stage: &'static str,
    pub done: usize,
    pub total: usize,
}

/// Listener to progress; `Break` ends the operation at the next safe point with
/// [`RetrieverError::Interrupted`].
pub type OnProgress<'a> = dyn FnMut(StageProgress) -> ControlFlow<()> + 'a;

/// Listener to (done, total) of one stage; `Break` stops it.
pub type Tick<'a> = dyn FnMut(usize, usize) -> ControlFlow<()> + 'a;

/// Errors of a search, or of building or opening a retriever.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RetrieverError {
    #[error("cannot {doing} {}: {why}; hint: check that the path exists, that you may write there, \
             and that the disk is not full", path.display())]
    Io { path: PathBuf, doing: &'static str, why: String },
    /// A file of an index that is not what index.json says.
    #[error("{} is damaged: {why}; hint: rebuild the index with `{command}`", path.display())]
    Damaged { path: PathBuf, why: String, command: String },
    #[error("{} holds no finished index (no index.json); hint: build it, or continue an \
             interrupted build, with `{command}`", dir.display())]
    NoIndex { dir: PathBuf, command: String },
    /// A file where an index folder should be.
    #[error("{} is a file, and an index is a folder{found}; hint: `{command}` makes one of the \
             passages", path.display())]
    NotAFolder { path: PathBuf, found: &'static str, command: String },
    #[error(
        "{} already holds an index of {found}; hint: give another folder, or replace it with \
         `{command}`",
        dir.display()
    )]
    IndexExists { dir: PathBuf, found: String, command: String },
    #[error(
        "the index {} was built with encoder {built_with}, not with {asked}; hint: rebuild it with \
         `{command}`, or set retriever.encoder, its prefixes and max_tokens to those of the index",
        dir.display()
    )]
    WrongEncoder { dir: PathBuf, built_with: String, asked: String, command: String },
    #[error(
        "the index {} was built from corpus {built_from}, not from the one given ({asked}); \
         hint: rebuild it with `{command}`, or set data.corpus to the corpus of the index",
        dir.display()
    )]
    WrongCorpus { dir: PathBuf, built_from: String, asked: String, command: String },
    #[error(
        "the corpus holds no passages; hint: data.corpus must be JSON Lines with `id` and \
         `contents`"
    )]
    EmptyCorpus,
    #[error("{key} = {value} is not possible; hint: {hint}")]
    Option { key: String, value: String, hint: String },
    /// An encoder whose files ask for something that is not computed here.
    #[error("{}: {why}; hint: {hint}", path.display())]
    Encoder { path: PathBuf, why: String, hint: String },
    /// The encoder gave NaN or infinity.
    #[error(
        "the embedding of {what} is not finite; hint: the encoder's weights are broken, or its \
         dtype is too narrow (use f32)"
    )]
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
    /// True if a server refused the search (a redirect or 4xx, but for time-outs and too many
    /// requests) instead of failing at it: asked again, it would do so again.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Remote { status: Some(300..=407 | 409..=428 | 430..=499), .. })
    }

    fn io(path: &Path, doing: &'static str, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), doing, why: source.to_string() }
    }

    /// The folder of the file is the index to be rebuilt.
    fn damaged(path: &Path, why: impl Into<String>) -> Self {
        let command = build_command(path.parent().unwrap_or(path), &unknown_source());
        Self::Damaged { path: path.to_owned(), why: why.into(), command: command + force(path) }
    }

    fn no_index(dir: &Path) -> Self {
        Self::NoIndex { dir: dir.to_owned(), command: build_command(dir, &unknown_source()) }
    }

    /// The same with a command that says everything, where more than the folder is known.
    pub(crate) fn rebuilt_with(mut self, complete: impl FnOnce(&Path) -> String) -> Self {
        match &mut self {
            Self::Damaged { path, command, .. } => {
                *command = complete(path.parent().unwrap_or(path)) + force(path)
            }
            Self::NoIndex { dir, command } => *command = complete(dir),
            Self::NotAFolder { path, command, .. } => *command = complete(&beside(path)),
            _ => {}
        }
        self
    }

    /// An encoder that asks for what is not computed here.
    pub(crate) fn encoder(path: &Path, why: impl Into<String>, hint: &str) -> Self {
        Self::Encoder { path: path.to_owned(), why: why.into(), hint: hint.to_owned() }
    }

    fn option(key: &str, value: impl ToString, hint: &str) -> Self {
        Self::Option { key: key.to_owned(), value: value.to_string(), hint: hint.to_owned() }
    }
}

/// The words of what lies below. Its errors hold `std::io::Error` and the like, which cannot be
/// cloned, and one failure must be told to every query of a batch.
macro_rules! failed_from {
    ($($error:ty),+) => {
        $(impl From<$error> for RetrieverError {
            fn from(error: $error) -> Self {
                Self::Failed(error.to_string())
            }
        })+
    };
}
failed_from!(DataError, HubError, TokenizerError, ModelError, SearchError);

impl From<RetrieverError> for SearchError {
    fn from(error: RetrieverError) -> Self {
        Self { why: error.to_string(), is_refusal: error.is_refusal() }
    }
}

/// The command that builds the index `dir`, followed by more words.
fn build_command(dir: &Path, words: &[String]) -> String {
    let words: String = words.iter().map(|word| format!(" {}", shell_quoted(word))).collect();
    format!("dgpo index build --out {}{words}", shell_quoted(&dir.display().to_string()))
}

/// The words of [`build_command`] for these passages and this encoder.
fn source_words(corpus: &str, encoder: &str) -> Vec<String> {
    ["--corpus", corpus, "--encoder", encoder].map(str::to_owned).to_vec()
}

/// The file a corpus was read from; empty for one in memory.
fn path_of(corpus: &Corpus) -> String {
    corpus.path().map_or_else(String::new, |path| path.display().to_string())
}

/// A word to be replaced, where nobody knows which passages.
fn unknown_source() -> [String; 2] {
    ["--corpus", "CORPUS"].map(str::to_owned)
}

/// Without index.json nobody knows what would be replaced.
fn force(damaged: &Path) -> &'static str {
    if damaged.ends_with(index::META_FILE) { " --force" } else { "" }
}

/// A folder's name where a file takes the one that was asked for.
fn beside(path: &Path) -> PathBuf {
    path.with_extension("dgpo-index")
}

/// Makes the retriever a recipe asks for.
///
/// `kind = "dense"`: the index folder `retriever.index` is opened and checked against encoder and
/// corpus. Where the recipe names none, a corpus below [`Search::EXACT_BELOW`] passages is encoded
/// in memory, a larger one into `run_dir/index` (resumably). `corpus` may be `None` for `kind =
/// "remote"` alone.
/// # Errors
/// An unknown kind or search, a missing corpus, an encoder that cannot be read, an index that does
/// not fit.
pub fn open<B: Backend>(
    recipe: &RetrieverRecipe,
    corpus: Option<Arc<Corpus>>,
    run_dir: &Path,
    device: &B::Device,
    progress: &mut OnProgress,
) -> Result<Box<dyn Retriever>, RetrieverError> {
    let corpus = || corpus.clone().ok_or(RetrieverError::EmptyCorpus);
    match recipe.kind {
        RetrieverKind::Dense => {
            Ok(Box::new(open_dense::<B>(recipe, corpus()?, run_dir, device, progress)?))
        }
        RetrieverKind::Bm25 => Ok(Box::new(bm25::Bm25Retriever::new(corpus()?)?)),
        RetrieverKind::Remote => Ok(Box::new(remote::RemoteRetriever::new(recipe)?)),
    }
}

fn open_dense<B: Backend>(
    recipe: &RetrieverRecipe,
    corpus: Arc<Corpus>,
    run_dir: &Path,
    device: &B::Device,
    progress: &mut OnProgress,
) -> Result<DenseRetriever<B>, RetrieverError> {
    let encoder = open_encoder::<B>(recipe, device)?;
    let (search, params) = (encoder.identity().search(recipe.search)?, hnsw_params(recipe));
    if !recipe.index.is_empty() {
        let dir = hub::expand(&recipe.index)?;
        let corpus_name = path_of(&corpus);
        let command = |dir: &Path| build_command(dir, &source_words(&corpus_name, &recipe.encoder));
        let dir = Path::new(&dir);
        // What index.json says about how it was built is better still.
        IndexMeta::read(dir).map_err(|error| error.rebuilt_with(command))?;
        return DenseRetriever::open(dir, encoder, corpus, search, params.ef_search);
    }
    if corpus.len() < Search::EXACT_BELOW {
        return DenseRetriever::build_in_memory(encoder, corpus, search, params, progress);
    }
    let dir = run_dir.join("index");
    build_index(recipe, &encoder, (&path_of(&corpus), &corpus), &dir, false, progress)?;
    DenseRetriever::open(&dir, encoder, corpus, search, params.ef_search)
}

/// Opens the encoder of a recipe, and warns where its prompts are not the declared ones.
/// # Errors
/// If it cannot be read.
pub fn open_encoder<B: Backend>(
    recipe: &RetrieverRecipe,
    device: &B::Device,
) -> Result<Encoder<B>, RetrieverError> {
    let folder = hub::resolve(&recipe.encoder)?;
    let encoder = Encoder::open(&folder, &recipe.encoder, encoder_options(recipe), device)?;
    encoder.warn_of_other_prompts();
    Ok(encoder)
}

/// Builds (or continues, or completes with a graph) the index folder `dir` of a named corpus with
/// the parameters of a recipe.
/// # Errors
/// As [`build::build`].
pub fn build_index<B: Backend>(
    recipe: &RetrieverRecipe,
    encoder: &Encoder<B>,
    (corpus_name, corpus): (&str, &Corpus),
    dir: &Path,
    replace: bool,
    progress: &mut OnProgress,
) -> Result<BuildReport, RetrieverError> {
    let (search, hnsw) = (encoder.identity().search(recipe.search)?, hnsw_params(recipe));
    let options = BuildOptions { corpus_name: corpus_name.to_owned(), search, hnsw, replace };
    let mut embed = |texts: &[String], tick: &mut Tick| encoder.encode_passages(texts, tick);
    build::build(dir, &options, encoder.identity(), corpus, &mut embed, progress)
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
    HnswParams {
        m: recipe.hnsw_m,
        ef_construction: recipe.hnsw_ef_construction,
        ef_search: recipe.hnsw_ef_search,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_place_and_what_to_do() {
        let errors = [
            RetrieverError::no_index(Path::new("somewhere")),
            RetrieverError::damaged(Path::new("somewhere/vectors.f32"), "12 bytes instead of 16"),
            RetrieverError::option("somewhere", 3, "4"),
            RetrieverError::IndexExists {
                dir: "somewhere".into(),
                found: "encoder a".into(),
                command: "dgpo".into(),
            },
        ];
        for error in errors {
            let message = error.to_string();
            assert!(message.contains("somewhere") && message.contains("hint: "), "{message}");
        }
    }
}
