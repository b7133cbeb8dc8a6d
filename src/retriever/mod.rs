//! Query -> passages.
pub mod bm25;
pub mod dense;
pub mod encoder;
pub mod exact;
pub mod hnsw;
pub mod index;
pub mod remote;

use crate::data::corpus::Passage;

/// A passage with the retriever's score (inner product, BM25 score).
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    pub passage: Passage,
    pub score: f32,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum RetrieverError {
    #[error("{0}")]
    Failed(String),
}

/// Three real implementations: dense (E5 + HNSW or exact), BM25, a client of `/retrieve`.
pub trait Retriever {
    /// One result a query, in order. A failure concerns its query alone where the implementation can tell; it is never an empty list of passages.
    fn search(&self, queries: &[String], top_k: usize) -> Vec<Result<Vec<Hit>, RetrieverError>>;
    /// For logs and provenance: kind, size, parameters.
    fn describe(&self) -> String;
}
