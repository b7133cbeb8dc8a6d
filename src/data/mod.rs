//! Questions, passages, teacher episodes, the sampler, the built-in tiny world.
pub mod corpus;
pub mod questions;
pub mod sampler;
pub mod tiny;
pub mod trajectories;

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A line that cannot be read as what the file should hold.
    #[error("{}:{line}: {why}", path.display())]
    Line { path: PathBuf, line: usize, why: String },
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{} holds no {what}; hint: {hint}", path.display())]
    Empty { path: PathBuf, what: &'static str, hint: &'static str },
    #[error("{}: {why}", path.display())]
    Format { path: PathBuf, why: String },
}
