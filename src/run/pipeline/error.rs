//! Why a run ends early.
use super::{asked::AskedTwice, steer::SteerError};
use crate::{
    data::DataError,
    devices::DeviceError,
    episodes::given::TrajectoryError,
    folder::{checkpoint::CheckpointError, run_dir::RunDirError, state::StateError},
    hub::HubError,
    models::SetupError,
    retriever::{RetrieverError, contrastive::EncoderTrainingError},
};
use dgpo_core::{
    engine::EngineError, rollout::play::RolloutError, settings::Phase, tokenizer::TokenizerError,
    trainer::guards::Alarm,
};
use dgpo_models::ModelError;
use std::path::PathBuf;

/// The end of a run before its last phase is done.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// Somebody asked; everything is saved.
    #[error("stopped as asked; everything done so far is saved")]
    Stopped,
    /// The run goes wrong; what is worth keeping is saved.
    #[error("{}", .0.iter().map(Alarm::to_string).collect::<Vec<_>>().join("\n  also: "))]
    Guard(Vec<Alarm>),
    #[error(
        "{} holds no critic: it was written with rl.algorithm = \"grpo\"; hint: set it back, or \
         begin a new run from this checkpoint's model", .0.display()
    )]
    NoCritic(PathBuf),
    #[error(
        "{phase} is to go on, but {later} has begun from what it was before and would not learn \
         from it; hint: give {phase} its steps or its last checkpoint back, or remove the \
         checkpoints of {later}, which is then made again"
    )]
    BegunFromLess { phase: Phase, later: Phase },
    #[error("{phase} has nothing to train on: {why}; hint: {hint}")]
    NothingToTrain { phase: Phase, why: String, hint: &'static str },
    #[error(
        "{what}: {n_lost} of {n_asked} that searched were lost to the retriever, more than \
         retriever.max_lost_share = {max_lost_share} allows, {lasting}: {}",
        with_hint(why)
    )]
    RetrieverDown {
        /// True if it answers with a refusal: waiting changes nothing.
        is_refused: bool,
        what: String,
        n_lost: usize,
        n_asked: usize,
        max_lost_share: f64,
        lasting: String,
        why: String,
    },
    #[error(
        "episode.max_prompt_length is {longest}, but {model} was made for {limit} positions \
         (max_position_embeddings); hint: set episode.max_prompt_length to {limit} or less"
    )]
    TooLong { model: String, longest: usize, limit: usize },
    #[error(transparent)]
    AskedTwice(#[from] AskedTwice),
    #[error(
        "the checkpoint drew from {then} {what}, and now there are {now}; hint: restore the files \
         named in the recipe, or start a new run"
    )]
    DataChanged { what: &'static str, then: usize, now: usize },
    #[error(transparent)]
    Steer(#[from] SteerError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Trajectory(#[from] TrajectoryError),
    #[error(transparent)]
    Retriever(#[from] RetrieverError),
    #[error(transparent)]
    Rollout(RolloutError),
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Encoder(#[from] EncoderTrainingError),
    #[error("cannot write {}: {source}; hint: check free space and permissions", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

/// The retriever's words, with advice where they bring none.
fn with_hint(why: &str) -> String {
    if why.contains("hint: ") {
        why.to_owned()
    } else {
        format!("{why}; hint: is the retriever as the recipe says? A run continues with --resume")
    }
}

impl From<RolloutError> for PipelineError {
    fn from(error: RolloutError) -> Self {
        match error {
            RolloutError::Engine(EngineError::Interrupted) => Self::Stopped,
            error => Self::Rollout(error),
        }
    }
}
