//! Text -> embedding: a BERT encoder (E5), its tokenizer and its prefixes as one thing.
//!
//! An embedding is the L2-normalised masked mean of the last hidden states (method §6), so the
//! inner product of two is their cosine; an encoder whose folder declares CLS pooling, or vectors
//! as they are, gets those ([`super::declared`]). Texts are cut to `max_tokens`; the closing
//! special token (`[SEP]`, `</s>`), where the tokenizer adds one, stays the last.
//! - Passages: sorted by length and packed into batches of at most `batch_tokens` padded tokens;
//!   independent of the batching up to rounding.
//! - Queries: padded to fixed shapes ([`QUERY_ROWS`] rows, lengths in steps of [`QUERY_STEP`]), so
//!   that a query's embedding depends on its own length alone: an episode's passages must not
//!   depend on which episodes share its batch, not even by rounding.
use super::{
    RetrieverError, Tick,
    declared::{EncoderDeclaration, Prompts},
};
use crate::config::Search;
use burn::tensor::{DType, Int, Tensor, TensorData};
use dgpo_core::tokenizer::{Tokenizer, first_tokens};
use dgpo_models::{
    Backend,
    bert::{BertEncoder, Pooling, SentenceHead},
    weights::load_bert,
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Preparation of texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncoderOptions {
    /// Put before a query ("query: " for E5); "auto" = what the folder declares.
    pub query_prefix: String,
    /// Put before a passage ("passage: " for E5); "auto" = what the folder declares.
    pub passage_prefix: String,
    /// Tokens of a text with its prefix and special tokens. Paper: 256.
    pub max_tokens: usize,
    /// Padded tokens of a passage batch: memory and speed, never the result.
    pub batch_tokens: usize,
}

/// The record of an encoder in an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderIdentity {
    /// The name it was opened under, for messages.
    pub name: String,
    /// SHA-256 over everything that decides an embedding: weights, config, tokenizer, prefixes,
    /// `max_tokens`.
    pub fingerprint: String,
    pub dim: usize,
    pub query_prefix: String,
    pub passage_prefix: String,
    pub max_tokens: usize,
    /// Pooling and length of the vectors; absent where they are E5's.
    #[serde(default, skip_serializing_if = "is_e5s")]
    pub head: SentenceHead,
}

impl EncoderIdentity {
    /// The kind of search for vectors of this encoder where the recipe says `asked`: those of any
    /// length are searched exactly.
    /// # Errors
    /// If a graph is asked for over vectors that have no unit length.
    pub fn search(&self, asked: Search) -> Result<Search, RetrieverError> {
        if self.head.is_unit_length {
            return Ok(asked);
        }
        if asked != Search::Hnsw {
            return Ok(Search::Exact);
        }
        let hint = format!(
            "a graph needs vectors of unit length, and {} declares inner products of vectors as \
             they are (similarity_fn_name = \"dot\", no Normalize module); use exact",
            self.name
        );
        Err(RetrieverError::option("retriever.search", "\"hnsw\"", &hint))
    }
}

fn is_e5s(head: &SentenceHead) -> bool {
    *head == SentenceHead::default()
}

/// Network, tokenizer and declarations of an encoder.
pub struct EncoderParts<B: Backend> {
    pub model: BertEncoder<B>,
    pub tokenizer: Tokenizer,
    pub declared: EncoderDeclaration,
}

/// An encoder ready to embed.
pub struct Encoder<B: Backend> {
    parts: EncoderParts<B>,
    identity: EncoderIdentity,
    /// The special token that closes every text.
    closing: Option<u32>,
    pad: u32,
    batch_tokens: usize,
    device: B::Device,
}

/// Rows of a query batch.
const QUERY_ROWS: usize = 8;
/// Query lengths are padded to a multiple of this many tokens.
const QUERY_STEP: usize = 16;

impl<B: Backend> Encoder<B> {
    /// Reads `config.json`, safetensors and `tokenizer.json` of a folder; `name` is what messages
    /// call it.
    /// # Errors
    /// If a file is missing or broken, if the folder declares a pooling that is not computed here,
    /// if the tokenizer has more tokens than the embedding table, or if `max_tokens` exceeds the
    /// positions the model was trained with.
    pub fn open(
        folder: &Path,
        name: &str,
        mut options: EncoderOptions,
        device: &B::Device,
    ) -> Result<Self, RetrieverError> {
        let declared = declared_by(folder, &mut options)?;
        let model = load_bert::<B>(folder, DType::F32, device)?;
        let tokenizer = Tokenizer::from_path(folder)?;
        let fingerprint = fingerprint(folder, &options, &declared)?;
        Self::from_parts(
            EncoderParts { model, tokenizer, declared },
            name,
            fingerprint,
            options,
            device,
        )
    }

    /// Joins a model that is in memory with its tokenizer. `fingerprint` must change whenever an
    /// embedding would.
    /// # Errors
    /// As [`Encoder::open`].
    pub fn from_parts(
        parts: EncoderParts<B>,
        name: &str,
        fingerprint: String,
        options: EncoderOptions,
        device: &B::Device,
    ) -> Result<Self, RetrieverError> {
        let (config, tokenizer, declared) =
            (parts.model.config(), &parts.tokenizer, &parts.declared);
        tokenizer.check_fits(config.vocab_size)?;
        let EncoderOptions { query_prefix, passage_prefix, max_tokens, batch_tokens } = options;
        if !(2..=config.max_position_embeddings).contains(&max_tokens) {
            let hint = format!(
                "{name} has {} positions, and a text needs its two special tokens",
                config.max_position_embeddings
            );
            return Err(RetrieverError::option("retriever.max_tokens", max_tokens, &hint));
        }
        let dim = config.hidden_size;
        if let Some(declared) = declared.dim.filter(|&declared| declared != dim) {
            let why = format!("its pooling is of {declared} numbers, and its network has {dim}");
            let hint = "fetch the encoder's files again: they are of different models";
            return Err(RetrieverError::encoder(Path::new(name), why, hint));
        }
        let encode = |text: &str| tokenizer.encode_with_special(text);
        if declared.lowercases && encode("A SMALL TEXT")? != encode("a small text")? {
            let why =
                "sentence_bert_config.json says do_lower_case, and its tokenizer does not do it";
            let hint = "use an encoder whose tokenizer.json lower-cases";
            return Err(RetrieverError::encoder(Path::new(name), why, hint));
        }
        // What is put around a text is what the empty text becomes.
        let closing = encode("")?.last().copied();
        let head = declared.head;
        let identity = EncoderIdentity {
            name: name.to_owned(),
            fingerprint,
            dim,
            query_prefix,
            passage_prefix,
            max_tokens,
            head,
        };
        Ok(Self {
            parts,
            identity,
            closing,
            pad: config.pad_token_id,
            batch_tokens,
            device: device.clone(),
        })
    }

    /// Says where the texts before queries and passages are others than those the folder declares.
    pub fn warn_of_other_prompts(&self) {
        let EncoderIdentity { name, query_prefix, passage_prefix, .. } = &self.identity;
        let used = Prompts { query: query_prefix.clone(), passage: passage_prefix.clone() };
        if let Some(warning) = self.parts.declared.other_prompts(name, &used) {
            tracing::warn!("{warning}");
        }
    }

    /// Name, fingerprint, size and text preparation.
    pub fn identity(&self) -> &EncoderIdentity {
        &self.identity
    }

    /// Embeddings of passages, `[n, dim]` row-major, in the order of the texts. `tick` hears (done,
    /// total) after each batch and may stop.
    /// # Errors
    /// If a text cannot be tokenised, an embedding is not finite, or `tick` said stop.
    pub fn encode_passages(
        &self,
        texts: &[String],
        tick: &mut Tick,
    ) -> Result<Vec<f32>, RetrieverError> {
        let rows = self.tokenise(&self.identity.passage_prefix, texts)?;
        let lengths: Vec<usize> = rows.iter().map(Vec::len).collect();
        let (mut embeddings, mut done) = (vec![0.0; texts.len() * self.identity.dim], 0);
        for batch in length_sorted_batches(&lengths, self.batch_tokens) {
            let n_tokens = batch.iter().map(|&text| lengths[text]).max().unwrap_or_default();
            let ids: Vec<&[u32]> = batch.iter().map(|&text| rows[text].as_slice()).collect();
            self.scatter(&self.embed(&ids, n_tokens)?, &batch, texts, &mut embeddings)?;
            done += batch.len();
            if tick(done, texts.len()).is_break() {
                let total = texts.len();
                return Err(RetrieverError::Interrupted { stage: "encode", done, total });
            }
        }
        Ok(embeddings)
    }

    /// Embeddings of queries, `[n, dim]` row-major, in the order of the texts; each independent of
    /// the others to the last bit.
    /// # Errors
    /// If a text cannot be tokenised or an embedding is not finite.
    pub fn encode_queries(&self, texts: &[String]) -> Result<Vec<f32>, RetrieverError> {
        let rows = self.tokenise(&self.identity.query_prefix, texts)?;
        let padded = |text: usize| {
            rows[text].len().next_multiple_of(QUERY_STEP).min(self.identity.max_tokens)
        };
        // A batch without any padding skips the mask, which may round differently: such rows have
        // batches of their own.
        let shape = |text: usize| (padded(text), padded(text) == rows[text].len());
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&text| shape(text));
        let mut embeddings = vec![0.0; texts.len() * self.identity.dim];
        for bucket in order.chunk_by(|&a, &b| shape(a) == shape(b)) {
            for batch in bucket.chunks(QUERY_ROWS) {
                // Missing rows repeat the last one: a row of padding alone has no mean.
                let ids: Vec<&[u32]> = (0..QUERY_ROWS)
                    .map(|row| rows[batch[row.min(batch.len() - 1)]].as_slice())
                    .collect();
                self.scatter(&self.embed(&ids, padded(batch[0]))?, batch, texts, &mut embeddings)?;
            }
        }
        Ok(embeddings)
    }

    fn tokenise(&self, prefix: &str, texts: &[String]) -> Result<Vec<Vec<u32>>, RetrieverError> {
        let tokenise_one = |text: &String| {
            let encode = |text: &str| self.parts.tokenizer.encode_with_special(text);
            let ids = first_tokens(&format!("{prefix}{text}"), self.identity.max_tokens, encode);
            let mut ids = ids?;
            truncate(&mut ids, self.identity.max_tokens, self.closing);
            if ids.is_empty() {
                // Without prefix and special tokens an empty query has no tokens, and no mean; it
                // gets a neutral one.
                ids.push(self.pad);
            }
            Ok(ids)
        };
        texts.par_iter().map(tokenise_one).collect()
    }

    /// Embeds rows of at most `n_tokens` ids, padded to `n_tokens`. -> `[rows, dim]`
    fn embed(&self, rows: &[&[u32]], n_tokens: usize) -> Result<Vec<f32>, RetrieverError> {
        let [ids, mask] = padded(rows, n_tokens, self.pad, &self.device);
        let embeddings = self.parts.model.embed_with(self.identity.head, ids, mask).into_data();
        // A kernel that could not run says so only when the device is asked; what was read is noise
        // then.
        B::sync(&self.device)
            .map_err(|error| RetrieverError::Failed(format!("the device failed: {error}")))?;
        Ok(embeddings.convert::<f32>().into_vec().expect("converted to f32 above"))
    }

    /// Puts the rows of a batch where their texts belong.
    fn scatter(
        &self,
        rows: &[f32],
        batch: &[usize],
        texts: &[String],
        embeddings: &mut [f32],
    ) -> Result<(), RetrieverError> {
        let dim = self.identity.dim;
        for (row, &text) in rows.chunks_exact(dim).zip(batch) {
            if !row.iter().all(|number| number.is_finite()) {
                let start: String = texts[text].chars().take(60).collect();
                return Err(RetrieverError::NotFinite { what: format!("\"{start}…\"") });
            }
            embeddings[text * dim..][..dim].copy_from_slice(row);
        }
        Ok(())
    }
}

/// Ids and mask of ragged rows of at most `n_tokens` ids, right-padded. -> `[rows, n_tokens]` each
pub(super) fn padded<B: Backend>(
    rows: &[&[u32]],
    n_tokens: usize,
    pad: u32,
    device: &B::Device,
) -> [Tensor<B, 2, Int>; 2] {
    let (mut ids, mut mask) = (Vec::new(), Vec::new());
    for (row, end) in rows.iter().zip((1..).map(|row| row * n_tokens)) {
        ids.extend(row.iter().map(|&id| i64::from(id)));
        ids.resize(end, i64::from(pad));
        mask.resize(end - n_tokens + row.len(), 1);
        mask.resize(end, 0);
    }
    [ids, mask]
        .map(|numbers| Tensor::from_data(TensorData::new(numbers, [rows.len(), n_tokens]), device))
}

/// Cuts to `max_tokens` ids, of which the last is the closing token if there is one.
fn truncate(ids: &mut Vec<u32>, max_tokens: usize, closing: Option<u32>) {
    if ids.len() > max_tokens {
        ids.truncate(max_tokens);
        if let (Some(last), Some(closing)) = (ids.last_mut(), closing) {
            *last = closing;
        }
    }
}

/// Indexes of texts in batches of similar length, longest first (so that memory runs out at once or
/// never); each batch has at most `batch_tokens` tokens when padded to its longest text, but at
/// least one text.
fn length_sorted_batches(lengths: &[usize], batch_tokens: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&text| std::cmp::Reverse(lengths[text]));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for text in order {
        match batches.last_mut() {
            Some(batch) if (batch.len() + 1) * lengths[batch[0]] <= batch_tokens => {
                batch.push(text)
            }
            _ => batches.push(vec![text]),
        }
    }
    batches
}

/// Fingerprint that [`Encoder::open`] would find, without making a network of the folder.
/// # Errors
/// If a file cannot be read, or the folder declares what is not computed here.
pub fn fingerprint_of(
    folder: &Path,
    mut options: EncoderOptions,
) -> Result<String, RetrieverError> {
    let declared = declared_by(folder, &mut options)?;
    fingerprint(folder, &options, &declared)
}

/// Reads what a folder declares, and puts it into `options` where those leave it to the folder.
fn declared_by(
    folder: &Path,
    options: &mut EncoderOptions,
) -> Result<EncoderDeclaration, RetrieverError> {
    let declared = EncoderDeclaration::read(folder)?;
    let prompts = declared.resolve(&options.query_prefix, &options.passage_prefix);
    (options.query_prefix, options.passage_prefix) = (prompts.query, prompts.passage);
    Ok(declared)
}

/// SHA-256 over the folder's weights, config and tokenizer, over the text preparation, and over
/// pooling and length of the vectors where they are not E5's. Every part is preceded by its name
/// and length.
fn fingerprint(
    folder: &Path,
    options: &EncoderOptions,
    declared: &EncoderDeclaration,
) -> Result<String, RetrieverError> {
    let io = |path: &Path, source| RetrieverError::io(path, "read", source);
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|source| io(folder, source))? {
        let path = entry.map_err(|source| io(folder, source))?.path();
        let is_weights = path.extension().is_some_and(|extension| extension == "safetensors");
        let is_named =
            path.file_name().is_some_and(|name| name == "config.json" || name == "tokenizer.json");
        if is_weights || is_named {
            files.push(path);
        }
    }
    files.sort();
    let mut hasher = Sha256::new();
    let mut add = |name: &[u8], content: &[u8]| {
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name);
        hasher.update((content.len() as u64).to_le_bytes());
        hasher.update(content);
    };
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        add(name.as_bytes(), &std::fs::read(&path).map_err(|source| io(&path, source))?);
    }
    add(b"query_prefix", options.query_prefix.as_bytes());
    add(b"passage_prefix", options.passage_prefix.as_bytes());
    add(b"max_tokens", &(options.max_tokens as u64).to_le_bytes());
    if declared.head.pooling == Pooling::Cls {
        add(b"pooling", b"cls");
    }
    if !declared.head.is_unit_length {
        add(b"length", b"as it is");
    }
    Ok(format!("{:x}", hasher.finalize()))
}

#[cfg(test)]
#[path = "encoder_tests.rs"]
pub mod tests;
