//! Text made elsewhere -> `Episode`: teacher episodes from files, scripted demonstrations, published trajectories.
//!
//! The text is split by author before it is tokenised, and every piece is encoded on its own. So a token never straddles the border between
//! agent and environment, and the loss mask covers the agent's text exactly, as it would have done had the episode been played here.
use super::{Episode, ObservationKind, Segment, Status, episode::SearchRecord};
use crate::{
    data::{
        DataError,
        questions::Question,
        trajectories::{Piece, Trajectory},
    },
    engine::StopReason,
    env::{
        protocol::{Action, INVALID_ACTION, STOP_STRINGS, parse_action},
        reward::outcome_reward,
    },
    tokenizer::{Tokenizer, TokenizerError},
};

/// Why a trajectory could not become an episode.
#[derive(Debug, thiserror::Error)]
pub enum TrajectoryError {
    #[error(transparent)]
    Data(#[from] DataError),
    #[error("trajectory \"{id}\": {source}")]
    Encode { id: String, source: TokenizerError },
    #[error("trajectory \"{id}\": the tokens of the agent's text read back as other text; hint: this tokenizer is not lossless")]
    NotLossless { id: String },
    #[error("trajectory \"{id}\" has an empty prompt or no text by the agent; hint: `response` must hold the agent's turns")]
    Empty { id: String },
}

/// Encodes a trajectory behind the prompt of its question. Sampler log-probs are empty: nobody sampled these tokens here.
///
/// Status, prediction and reward follow from the agent's last piece, read as the environment would read it; passages are not known by id, so
/// `passage_ids` is empty and a hit is looked for in the observation's text.
/// # Errors
/// If the tokenizer fails or loses text, or there is nothing to train on.
pub fn episode_from_trajectory(
    tokenizer: &Tokenizer,
    prompt: &dyn Fn(&Question) -> String,
    trajectory: &Trajectory,
) -> Result<Episode, TrajectoryError> {
    let id = || trajectory.id.clone();
    let encode = |text: &str| tokenizer.encode(text).map_err(|source| TrajectoryError::Encode { id: id(), source });
    let question = Question {
        id: id(),
        dataset: trajectory.dataset.clone(),
        question: trajectory.question.clone(),
        golden_answers: trajectory.golden_answers.clone(),
        supporting: Vec::new(),
        supporting_kind: String::new(),
    };
    let mut segments = vec![Segment::Prompt { ids: encode(&prompt(&question))? }];
    let mut searches: Vec<SearchRecord> = Vec::new();
    let mut n_invalid_actions = 0;
    let mut last_action = Action::Invalid;
    for piece in trajectory.pieces()? {
        match piece {
            Piece::Agent(text) => {
                let ids = encode(&text)?;
                if tokenizer.decode(&ids) != text {
                    return Err(TrajectoryError::NotLossless { id: id() });
                }
                last_action = parse_action(&text);
                let stop = match &last_action {
                    Action::Search(_) => stop_at("</search>"),
                    Action::Answer(_) => stop_at("</answer>"),
                    Action::Invalid => StopReason::Eos,
                };
                n_invalid_actions += usize::from(last_action == Action::Invalid);
                segments.push(Segment::Agent { ids, sample_log_probs: Vec::new(), stop });
            }
            Piece::Observation(text) => {
                let kind = if text == INVALID_ACTION { ObservationKind::InvalidAction } else { ObservationKind::Information };
                if let (ObservationKind::Information, Action::Search(query)) = (kind, &last_action) {
                    let is_hit = question.golden_answers.iter().any(|gold| text.contains(gold.as_str()));
                    searches.push(SearchRecord { query: query.clone(), passage_ids: Vec::new(), is_hit });
                }
                segments.push(Segment::Observation { ids: encode(&text)?, kind });
            }
        }
    }
    let (status, prediction) = match last_action {
        Action::Answer(prediction) => (Status::Answered, Some(prediction)),
        Action::Search(_) | Action::Invalid => (Status::TruncatedTurns, None),
    };
    let reward = outcome_reward(prediction.as_deref(), &question.golden_answers);
    let episode = Episode { question, segments, status, prediction, reward, searches, n_invalid_actions };
    if episode.prompt_len() == 0 || episode.n_agent_tokens() == 0 {
        return Err(TrajectoryError::Empty { id: id() });
    }
    Ok(episode)
}

/// A protocol's stop string as a stop reason.
fn stop_at(stop_string: &str) -> StopReason {
    StopReason::StopString(STOP_STRINGS.iter().position(|&s| s == stop_string).expect("a stop string of the protocol"))
}
