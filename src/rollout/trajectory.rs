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
        prompt::Prompt,
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
    prompt: &dyn Fn(&Question) -> Prompt,
    trajectory: &Trajectory,
) -> Result<Episode, TrajectoryError> {
    let id = || trajectory.id.clone();
    let failed = |source| TrajectoryError::Encode { id: id(), source };
    // The letters of a special token in a passage are letters.
    let encode = |text: &str| tokenizer.encode_text(text).map_err(failed);
    let question = Question {
        id: id(),
        dataset: trajectory.dataset.clone(),
        question: trajectory.question.clone(),
        golden_answers: trajectory.golden_answers.clone(),
        supporting: Vec::new(),
        supporting_kind: String::new(),
    };
    let Prompt { text, outside } = prompt(&question);
    let mut segments = vec![Segment::Prompt { ids: tokenizer.encode_outside(&text, outside).map_err(failed)? }];
    let mut searches: Vec<SearchRecord> = Vec::new();
    let mut n_invalid_actions = 0;
    let mut last_action = Action::Invalid;
    for piece in trajectory.pieces()? {
        match piece {
            Piece::Agent(text) => {
                let ids = tokenizer.encode_turn(&text).map_err(failed)?;
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
                    searches.push(SearchRecord { query: query.clone(), passage_ids: Vec::new(), is_hit, is_cut: false });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::ChatTemplate,
        data::{test_data, trajectories::read_trajectories},
        rollout::RolloutBatch,
        tokenizer::tests::byte_level_tokenizer,
    };

    fn prompt(question: &Question) -> Prompt {
        crate::env::prompt::prompt("Question: {question}\n", ChatTemplate::Plain, "", &question.question)
    }

    fn trajectory(response: &str) -> Trajectory {
        let golden_answers = vec!["Vex".to_owned()];
        Trajectory {
            id: "t0".to_owned(),
            dataset: "tiny".to_owned(),
            question: "who?".to_owned(),
            golden_answers,
            response: response.to_owned(),
        }
    }

    fn agent_text(tokenizer: &Tokenizer, episode: &Episode) -> String {
        episode.segments.iter().filter(|s| s.is_agent()).map(|s| tokenizer.decode(s.ids())).collect()
    }

    #[test]
    fn the_mask_covers_exactly_the_agents_text() {
        let tokenizer = byte_level_tokenizer();
        let response = "<think> naïve </think><search> Nolmar </search>\n\n<information>Doc 1(Title: \"N\") by Vex</information>\n\n\
                        <think> 中 </think><answer> Vex </answer>";
        let episode = episode_from_trajectory(&tokenizer, &prompt, &trajectory(response)).expect("an episode");
        let agent = "<think> naïve </think><search> Nolmar </search><think> 中 </think><answer> Vex </answer>";
        assert_eq!(agent_text(&tokenizer, &episode), agent);
        assert_eq!(tokenizer.decode(&episode.ids()), format!("Question: who?\n{response}"));
        let batch = RolloutBatch::new(&[&episode]);
        let masked: Vec<u32> = batch.agent_tokens(&[0]).labels;
        assert_eq!(tokenizer.decode(&masked), agent);
    }

    #[test]
    fn status_reward_and_searches_follow_from_the_text() {
        let tokenizer = byte_level_tokenizer();
        let episode = |response: &str| episode_from_trajectory(&tokenizer, &prompt, &trajectory(response)).expect("an episode");
        let right = episode("<search> q </search>\n\n<information>by Vex</information>\n\n<answer> vex. </answer>");
        assert_eq!((&right.status, right.reward, right.prediction.as_deref()), (&Status::Answered, 1.0, Some("vex.")));
        assert_eq!(right.searches, [SearchRecord { query: "q".to_owned(), passage_ids: Vec::new(), is_hit: true, is_cut: false }]);
        let stops: Vec<_> =
            right.segments.iter().filter_map(|s| if let Segment::Agent { stop, .. } = s { Some(*stop) } else { None }).collect();
        assert_eq!(stops, [StopReason::StopString(0), StopReason::StopString(1)]);
        let open = episode(&format!("well{INVALID_ACTION}<search> q </search>"));
        assert_eq!((&open.status, open.reward, open.n_invalid_actions), (&Status::TruncatedTurns, 0.0, 1));
    }

    #[test]
    fn a_trajectory_without_agent_text_is_refused() {
        let tokenizer = byte_level_tokenizer();
        let error =
            episode_from_trajectory(&tokenizer, &prompt, &trajectory("<information>x</information>")).expect_err("nothing to train on");
        assert!(matches!(error, TrajectoryError::Empty { .. }), "{error}");
    }

    #[test]
    fn the_real_trajectories_become_episodes_whose_masks_cover_exactly_the_agents_text() {
        let (Some(folder), Some(file)) = (test_data("tokenizers/qwen2.5"), test_data("trajectories/r1_searcher_tgo.jsonl.gz")) else {
            return;
        };
        let tokenizer = Tokenizer::from_path(&folder).expect("tokenizer");
        let trajectories = read_trajectories(&file).expect("trajectories");
        assert_eq!(trajectories.len(), 1750);
        let mut n_correct = 0;
        for trajectory in &trajectories {
            let episode = episode_from_trajectory(&tokenizer, &prompt, trajectory).expect("an episode");
            let expected: String = trajectory
                .pieces()
                .expect("read once already")
                .iter()
                .filter_map(|piece| match piece {
                    Piece::Agent(text) => Some(text.as_str()),
                    Piece::Observation(_) => None,
                })
                .collect();
            assert_eq!(agent_text(&tokenizer, &episode), expected, "{}", trajectory.id);
            n_correct += usize::from(episode.is_correct());
        }
        // The number its publishers count as right by EM.
        assert_eq!(n_correct, 967);
    }
}
