//! Question -> `Episode`; episodes -> padded batches with masks; JSON Lines records.
//!
//! Read `episode` first (the type, with a drawn example), then `play` (the loop that makes
//! episodes), then `batch` (the arrays for training).
pub mod batch;
pub mod episode;
pub mod play;
pub mod record;
pub mod scripted;
pub mod shown;
pub mod stats;
pub use batch::{RolloutBatch, TokenIndex};
pub use episode::{Episode, ObservationKind, Segment, Status};
pub use record::{EpisodeRecord, TokenRecord};
pub use stats::EpisodeStats;
