//! Question -> `Episode`; episodes -> padded batches with masks; JSON Lines records.
pub mod batch;
pub mod episode;
pub mod play;
pub use batch::RolloutBatch;
pub use episode::{Episode, ObservationKind, Segment, Status};
