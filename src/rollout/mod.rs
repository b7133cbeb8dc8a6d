//! Question -> `Episode`; episodes -> padded batches with masks; JSON Lines records.
pub mod batch;
pub mod episode;
pub mod play;
pub mod stats;
pub use batch::RolloutBatch;
pub use episode::{Episode, ObservationKind, Segment, Status};
pub use stats::EpisodeStats;
