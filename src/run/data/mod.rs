//! Questions, passages, teacher episodes as text, the sampler.
//!
//! Every reader checks every row when it opens a file: a broken one is an error with file, line,
//! field and a hint, never a skipped row. Knows no tokens.
pub mod corpus;
pub mod head;
pub(crate) mod jsonl;
mod lenient;
pub mod overlap;
mod parquet_check;
mod passage;
pub mod questions;
pub mod sample;
pub mod sampler;
mod search_r1;
pub mod trajectories;

use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A line (or a Parquet row, counted from 1) that cannot be read as what the file should hold.
    #[error("{}:{line}: {why}", path.display())]
    Line { path: PathBuf, line: usize, why: String },
    #[error("cannot read {}: {source}; hint: check the path and its permissions", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("cannot write {}: {source}; hint: check free space and permissions", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{} holds no {what}; hint: {hint}", path.display())]
    Empty { path: PathBuf, what: &'static str, hint: &'static str },
    #[error("{}: {why}", path.display())]
    Format { path: PathBuf, why: String },
    /// An episode's text that cannot be split into what the agent and what the environment wrote.
    #[error(
        "episode {id}: {why}; hint: every <information> needs its own </information> behind it"
    )]
    Episode { id: String, why: String },
}

impl DataError {
    /// A file that cannot be read.
    fn io(path: &Path) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    fn format(path: &Path, why: impl Into<String>) -> Self {
        Self::Format { path: path.to_owned(), why: why.into() }
    }

    fn line(path: &Path, line: usize, why: String) -> Self {
        Self::Line { path: path.to_owned(), line, why }
    }

    /// Refuses a file without rows.
    pub(crate) fn if_empty<T>(
        path: &Path,
        rows: Vec<T>,
        what: &'static str,
        hint: &'static str,
    ) -> Result<Vec<T>, Self> {
        match rows.is_empty() {
            true => Err(Self::Empty { path: path.to_owned(), what, hint }),
            false => Ok(rows),
        }
    }

    /// The same, of the file that the one read was a part of.
    fn at(self, path: &Path) -> Self {
        let path = path.to_owned();
        match self {
            Self::Line { line, why, .. } => Self::Line { path, line, why },
            Self::Io { source, .. } => Self::Io { path, source },
            Self::Write { source, .. } => Self::Write { path, source },
            Self::Empty { what, hint, .. } => Self::Empty { path, what, hint },
            Self::Format { why, .. } => Self::Format { path, why },
            Self::Episode { id, why } => Self::Episode { id, why },
        }
    }
}
