//! Episodes made elsewhere -> `Episode`: text (teacher episodes from files, scripted
//! demonstrations, published trajectories) and records (the files of `dgpo demos` and of a run).
//!
//! # Text
//! The text is split by author before it is tokenised, and every piece is encoded on its own. So a
//! token never straddles the border between agent and environment, and the loss mask covers the
//! agent's text exactly, as in an episode that was played here.
//!
//! The engine would have ended a turn at its first complete `</search>` or `</answer>`, even within
//! a thought. So a turn is cut there (`|`), an answer ends the episode, and status, prediction and
//! reward follow from the rest:
//!
//! ```text
//! prediction  response
//! sailor      <think> maybe <answer> sailor </answer>| or not </think> <answer> cook </answer>
//! a           <search> q </search>| I wait.\n\n<information> … </…>\n\n<answer> a </answer>
//! ```
//! Text after a stop is not part of the episode: it could not have been sampled there, and a
//! student that learned it would be stopped before it could write it. Scoring by a later answer
//! would reward a prefix that does not lead to it. Callers are told which episodes lost more than
//! white space.
//!
//! # Records
//! The ids of agent and environment are taken as they are, the prompt is this recipe's. Nothing
//! says with which tokenizer they were sampled; so they must read here as the searches and the
//! answer that stand beside them.
use crate::data::{
    DataError, jsonl,
    questions::UnstrippedGolds,
    trajectories::{Piece, Trajectory},
};
use dgpo_core::{
    engine::StopReason,
    env::{
        prompt::Prompt,
        protocol::{Action, INVALID_ACTION, NOTHING_FOUND, STOP_STRINGS, parse_action},
        reward::{contains_answer_verbatim, outcome_reward},
    },
    question::Question,
    rollout::{Episode, ObservationKind, Segment, Status, episode::SearchRecord},
    text::strip,
    tokenizer::{Tokenizer, TokenizerError, chat::ChatError, stream::find_stop},
};
use serde::Deserialize;
use std::path::Path;

/// Errors of a trajectory that cannot become an episode.
#[derive(Debug, thiserror::Error)]
pub enum TrajectoryError {
    #[error(transparent)]
    Data(#[from] DataError),
    #[error("trajectory \"{id}\": {source}")]
    Encode { id: String, source: TokenizerError },
    #[error(
        "trajectory \"{id}\": the tokens of the agent's text read back as other text; hint: this \
         tokenizer is not lossless"
    )]
    NotLossless { id: String },
    #[error(
        "trajectory \"{id}\" has an empty prompt or no text by the agent; hint: `response` must \
         hold the agent's turns"
    )]
    Empty { id: String },
    #[error(
        "episode \"{id}\" was played with another tokenizer: {why}; hint: take the tokenizer of \
         the model that played it, or give its text as `response`"
    )]
    OtherTokenizer { id: String, why: String },
}

/// A row of a file of `data.trajectories`.
#[derive(Clone, Debug, PartialEq)]
pub enum GivenEpisode {
    /// {id, question, golden_answers, response}.
    Text(Trajectory),
    /// A record of an episode, known by its `segments`.
    Record(Episode),
}

impl GivenEpisode {
    /// The question that was played.
    pub fn question(&self) -> Question {
        match self {
            Self::Record(episode) => episode.question.clone(),
            Self::Text(trajectory) => Question {
                id: trajectory.id.clone(),
                dataset: trajectory.dataset.clone(),
                question: trajectory.question.clone(),
                golden_answers: trajectory.golden_answers.clone(),
                ..Question::default()
            },
        }
    }
}

/// Reads all episodes of a file, in order; texts and records may alternate.
///
/// # Errors
/// If a row is neither (with file and line), or a file has no rows.
pub fn read_given(path: &Path) -> Result<Vec<GivenEpisode>, DataError> {
    let (mut given, mut unstripped) = (Vec::new(), UnstrippedGolds::default());
    jsonl::for_each_row(path, |row| {
        let has = |key| row.object.contains_key(key);
        let is_record = row.get("segments").is_some() || (has("segments") && !has("response"));
        let one = match is_record {
            true => {
                row.value("segments")?;
                let episode = Episode::deserialize(&row.object)
                    .map_err(|error| format!("not an episode record: {error}"))?;
                episode.check()?;
                GivenEpisode::Record(episode)
            }
            false => GivenEpisode::Text(Trajectory::of_row(row)?),
        };
        let Question { id, golden_answers, .. } = one.question();
        unstripped.add(&id, &golden_answers, row.line);
        given.push(one);
        Ok(())
    })?;
    unstripped.tell(path);
    DataError::if_empty(path, given, "episodes", "one JSON object a line")
}

/// An episode made from a given one.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    pub episode: Episode,
    /// True if more than white space followed a stop and was left out.
    pub is_cut: bool,
}

/// Makes an episode of a given one, after the prompt of its question.
///
/// # Errors
/// As [`episode_from_trajectory`]; a record whose ids decode to another text here than where they
/// were sampled.
pub fn episode_from_given(
    tokenizer: &Tokenizer,
    prompt: &dyn Fn(&Question) -> Result<Prompt, ChatError>,
    given: &GivenEpisode,
) -> Result<Imported, TrajectoryError> {
    match given {
        GivenEpisode::Text(trajectory) => episode_from_trajectory(tokenizer, prompt, trajectory),
        GivenEpisode::Record(episode) => Ok(Imported {
            episode: episode_from_record(tokenizer, prompt, episode)?,
            is_cut: false,
        }),
    }
}

/// Encodes a trajectory after the prompt of its question. Sampler log-probs are empty, because
/// these tokens were not sampled here.
///
/// Status, prediction and reward follow from the agent's last turn, read as the environment would
/// read it; passages are not known by id, so `passage_ids` is empty and a hit is searched for in
/// the observation's text.
/// # Errors
/// If the tokenizer fails or loses text, or there is nothing to train on.
pub fn episode_from_trajectory(
    tokenizer: &Tokenizer,
    prompt: &dyn Fn(&Question) -> Result<Prompt, ChatError>,
    trajectory: &Trajectory,
) -> Result<Imported, TrajectoryError> {
    let id = || trajectory.id.clone();
    let failed = |source| TrajectoryError::Encode { id: id(), source };
    // A special token that is spelled in a passage is ordinary text.
    let encode = |text: &str| tokenizer.encode_text(text).map_err(failed);
    let question = GivenEpisode::Text(trajectory.clone()).question();
    let mut segments =
        vec![Segment::Prompt { ids: encoded(tokenizer, prompt(&question)).map_err(failed)? }];
    let mut searches: Vec<SearchRecord> = Vec::new();
    let (mut n_invalid_actions, mut is_cut) = (0, false);
    let mut last_action = Action::Invalid;
    for piece in trajectory.pieces()? {
        if matches!(last_action, Action::Answer(_)) {
            // Nothing is played after the answer.
            is_cut |= !strip(piece.text()).is_empty();
            continue;
        }
        match piece {
            Piece::Agent(whole) => {
                let text = cut_at_first_stop(&whole);
                is_cut |= !strip(&whole[text.len()..]).is_empty();
                let ids = tokenizer.encode_turn(text).map_err(failed)?;
                if tokenizer.decode(&ids) != text {
                    return Err(TrajectoryError::NotLossless { id: id() });
                }
                last_action = parse_action(text);
                let stop = match &last_action {
                    Action::Search(_) => stop_at("</search>"),
                    Action::Answer(_) => stop_at("</answer>"),
                    Action::Invalid => StopReason::Eos,
                };
                n_invalid_actions += usize::from(last_action == Action::Invalid);
                segments.push(Segment::Agent { ids, sample_log_probs: Vec::new(), stop });
            }
            Piece::Observation(text) => {
                let kind = if text == INVALID_ACTION {
                    ObservationKind::InvalidAction
                } else {
                    ObservationKind::Information
                };
                if let (ObservationKind::Information, Action::Search(query)) = (kind, &last_action)
                {
                    let is_hit = contains_answer_verbatim(&text, &question.golden_answers);
                    let found_nothing = text.contains(NOTHING_FOUND);
                    searches.push(SearchRecord {
                        query: query.clone(),
                        passage_ids: Vec::new(),
                        is_hit,
                        is_cut: false,
                        found_nothing,
                    });
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
    let episode =
        Episode { question, segments, status, prediction, reward, searches, n_invalid_actions };
    if episode.prompt_len() == 0 || episode.n_agent_tokens() == 0 {
        return Err(TrajectoryError::Empty { id: id() });
    }
    Ok(Imported { episode, is_cut })
}

/// A recorded episode after this recipe's prompt, scored anew. Its log-probs belong to the prompt
/// it had and are dropped.
fn episode_from_record(
    tokenizer: &Tokenizer,
    prompt: &dyn Fn(&Question) -> Result<Prompt, ChatError>,
    record: &Episode,
) -> Result<Episode, TrajectoryError> {
    let id = || record.question.id.clone();
    check_tokenizer(tokenizer, record)
        .map_err(|why| TrajectoryError::OtherTokenizer { id: id(), why })?;
    let mut episode = record.clone();
    for segment in &mut episode.segments {
        match segment {
            Segment::Prompt { ids } => {
                *ids = encoded(tokenizer, prompt(&record.question))
                    .map_err(|source| TrajectoryError::Encode { id: id(), source })?;
            }
            Segment::Agent { sample_log_probs, .. } => sample_log_probs.clear(),
            Segment::Observation { .. } => {}
        }
    }
    episode.reward =
        outcome_reward(episode.prediction.as_deref(), &episode.question.golden_answers);
    Ok(episode)
}

/// A prompt's ids.
fn encoded(
    tokenizer: &Tokenizer,
    prompt: Result<Prompt, ChatError>,
) -> Result<Vec<u32>, TokenizerError> {
    let Prompt { text, outside } = prompt?;
    tokenizer.encode_outside(&text, outside)
}

/// The agent's ids read as the recorded searches and the recorded answer.
fn check_tokenizer(tokenizer: &Tokenizer, record: &Episode) -> Result<(), String> {
    let n_tokens = tokenizer.n_tokens();
    if let Some(id) = record.ids().into_iter().find(|&id| id as usize >= n_tokens) {
        return Err(format!(
            "it has the id {id}, and {} ends at {}",
            tokenizer.path().display(),
            n_tokens.saturating_sub(1)
        ));
    }
    let (mut last_action, mut begun, mut queries) = (Action::Invalid, String::new(), Vec::new());
    for segment in &record.segments {
        match segment {
            Segment::Prompt { .. } => {}
            Segment::Agent { ids, .. } => {
                last_action = parse_action(&(std::mem::take(&mut begun) + &tokenizer.decode(ids)))
            }
            Segment::Observation { ids, kind: ObservationKind::ForcedPrefix } => {
                begun = tokenizer.decode(ids)
            }
            Segment::Observation { kind: ObservationKind::Information, .. } => {
                if let Action::Search(query) = &last_action {
                    queries.push(query.clone());
                }
            }
            Segment::Observation { kind: ObservationKind::InvalidAction, .. } => {}
        }
    }
    let found = match last_action {
        Action::Answer(prediction) => Some(prediction),
        Action::Search(_) | Action::Invalid => None,
    };
    if found != record.prediction {
        let said = |answer: &Option<String>| {
            answer
                .as_ref()
                .map_or("no answer".to_owned(), |answer| format!("the answer {answer:?}"))
        };
        return Err(format!(
            "its ids read as {} and the record has {}",
            said(&found),
            said(&record.prediction)
        ));
    }
    // A search whose observation did not fit into the episode has a record and no segment.
    let recorded = || record.searches.iter().map(|search| &search.query);
    match queries.iter().zip(recorded()).find(|(found, recorded)| found != recorded) {
        Some((found, recorded)) => {
            Err(format!("its ids read as the search {found:?} and the record has {recorded:?}"))
        }
        None => Ok(()),
    }
}

/// The part of a generation that this project's engine keeps: everything up to the stop string that
/// is complete first.
pub fn cut_at_first_stop(generation: &str) -> &str {
    find_stop(0, generation, &STOP_STRINGS).map_or(generation, |(end, _)| &generation[..end])
}

/// A protocol's stop string as a stop reason.
fn stop_at(stop_string: &str) -> StopReason {
    StopReason::StopString(
        STOP_STRINGS.iter().position(|&s| s == stop_string).expect("a stop string of the protocol"),
    )
}

#[cfg(test)]
mod tests;
