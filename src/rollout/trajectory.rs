//! Episodes made elsewhere -> `Episode`: text (teacher episodes from files, scripted demonstrations, published trajectories) and records (what
//! `dgpo demos` and a run write).
//!
//! # Text
//! The text is split by author before it is tokenised, and every piece is encoded on its own. So a token never straddles the border between
//! agent and environment, and the loss mask covers the agent's text exactly, as it would have done had the episode been played here.
//!
//! Had it been played here, the engine would have ended a turn at its first complete `</search>` or `</answer>`, also within a thought. So a
//! turn is cut there, an answer ends the episode, and status, prediction and reward follow from what remains:
//!
//! ```text
//! <think> maybe <answer> sailor </answer>| or not </think> <answer> cook </answer>        prediction: sailor
//! <search> q </search>| I wait.\n\n<information>..</information>\n\n<answer> a </answer>|\n        prediction: a
//! ```
//! What lies behind a stop is no part of the episode: nobody could have sampled it behind its prefix, and a student that learned it would be cut
//! off before it came to write it. A judgement by a later answer would reward that prefix for what it does not lead to. Callers are told
//! which episodes lost more than white space.
//!
//! # Records
//! The ids of agent and environment are taken as they are, the prompt is this recipe's. Nothing says with which tokenizer they were sampled; so
//! they must read here as the searches and the answer that stand beside them.
use super::{Episode, ObservationKind, Segment, Status, episode::SearchRecord, episode::check_record};
use crate::{
    data::{
        DataError, jsonl,
        questions::{Question, UnstrippedGolds},
        text::strip,
        trajectories::{Piece, Trajectory},
    },
    engine::StopReason,
    env::{
        prompt::Prompt,
        protocol::{Action, INVALID_ACTION, NOTHING_FOUND, STOP_STRINGS, cut_at_first_stop, parse_action},
        reward::{contains_answer_verbatim, outcome_reward},
    },
    tokenizer::{Tokenizer, TokenizerError, chat::ChatError},
};
use serde::Deserialize;
use std::path::Path;

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
    #[error(
        "episode \"{id}\" was played with another tokenizer: {why}; hint: take the tokenizer of the model that played it, \
         or give its text as `response`"
    )]
    OtherTokenizer { id: String, why: String },
}

/// A row of a file of `data.trajectories`.
#[derive(Clone, Debug, PartialEq)]
pub enum Given {
    /// {id, question, golden_answers, response}.
    Text(Trajectory),
    /// A record of an episode, known by its `segments`.
    Record(Episode),
}

impl Given {
    /// The question that was played.
    pub fn question(&self) -> Question {
        match self {
            Self::Record(episode) => episode.question.clone(),
            Self::Text(trajectory) => Question {
                id: trajectory.id.clone(),
                dataset: trajectory.dataset.clone(),
                question: trajectory.question.clone(),
                golden_answers: trajectory.golden_answers.clone(),
                supporting: Vec::new(),
                supporting_kind: String::new(),
            },
        }
    }
}

/// Reads all episodes of a file, in order; texts and records may alternate.
///
/// # Errors
/// A row that is neither (with file and line), a file without rows.
pub fn read_given(path: &Path) -> Result<Vec<Given>, DataError> {
    let (mut given, mut unstripped) = (Vec::new(), UnstrippedGolds::default());
    jsonl::for_each_row(path, |row| {
        let one = match row.get("segments") {
            Some(_) => {
                let episode = Episode::deserialize(&row.object).map_err(|error| format!("not an episode record: {error}"))?;
                check_record(&episode)?;
                Given::Record(episode)
            }
            None => Given::Text(Trajectory::of_row(row)?),
        };
        let Question { id, golden_answers, .. } = one.question();
        unstripped.add(&id, &golden_answers, row.line);
        given.push(one);
        Ok(())
    })?;
    if given.is_empty() {
        return Err(DataError::Empty { path: path.to_owned(), what: "episodes", hint: "one JSON object a line" });
    }
    unstripped.tell(path);
    Ok(given)
}

/// An episode made of a given one.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    pub episode: Episode,
    /// More than white space stood behind a stop and was left out.
    pub is_cut: bool,
}

/// Makes an episode of a given one, behind the prompt of its question.
///
/// # Errors
/// As [`episode_from_trajectory`]; a record whose ids say something else here than where they were sampled.
pub fn episode_from_given(
    tokenizer: &Tokenizer,
    prompt: &dyn Fn(&Question) -> Result<Prompt, ChatError>,
    given: &Given,
) -> Result<Imported, TrajectoryError> {
    match given {
        Given::Text(trajectory) => episode_from_trajectory(tokenizer, prompt, trajectory),
        Given::Record(episode) => Ok(Imported { episode: episode_from_record(tokenizer, prompt, episode)?, is_cut: false }),
    }
}

/// Encodes a trajectory behind the prompt of its question. Sampler log-probs are empty: nobody sampled these tokens here.
///
/// Status, prediction and reward follow from the agent's last turn, read as the environment would read it; passages are not known by id, so
/// `passage_ids` is empty and a hit is looked for in the observation's text.
/// # Errors
/// If the tokenizer fails or loses text, or there is nothing to train on.
pub fn episode_from_trajectory(
    tokenizer: &Tokenizer,
    prompt: &dyn Fn(&Question) -> Result<Prompt, ChatError>,
    trajectory: &Trajectory,
) -> Result<Imported, TrajectoryError> {
    let id = || trajectory.id.clone();
    let failed = |source| TrajectoryError::Encode { id: id(), source };
    // The letters of a special token in a passage are letters.
    let encode = |text: &str| tokenizer.encode_text(text).map_err(failed);
    let question = Given::Text(trajectory.clone()).question();
    let mut segments = vec![Segment::Prompt { ids: encoded(tokenizer, prompt(&question)).map_err(failed)? }];
    let mut searches: Vec<SearchRecord> = Vec::new();
    let (mut n_invalid_actions, mut is_cut) = (0, false);
    let mut last_action = Action::Invalid;
    for piece in trajectory.pieces()? {
        if matches!(last_action, Action::Answer(_)) {
            // Behind the answer nothing was played any more.
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
                let kind = if text == INVALID_ACTION { ObservationKind::InvalidAction } else { ObservationKind::Information };
                if let (ObservationKind::Information, Action::Search(query)) = (kind, &last_action) {
                    let is_hit = contains_answer_verbatim(&text, &question.golden_answers);
                    let found_nothing = text.contains(NOTHING_FOUND);
                    searches.push(SearchRecord { query: query.clone(), passage_ids: Vec::new(), is_hit, is_cut: false, found_nothing });
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
    Ok(Imported { episode, is_cut })
}

/// A recorded episode behind this recipe's prompt, judged anew. Its log-probs belong to the prompt it had and are dropped.
fn episode_from_record(
    tokenizer: &Tokenizer,
    prompt: &dyn Fn(&Question) -> Result<Prompt, ChatError>,
    record: &Episode,
) -> Result<Episode, TrajectoryError> {
    let id = || record.question.id.clone();
    check_tokenizer(tokenizer, record).map_err(|why| TrajectoryError::OtherTokenizer { id: id(), why })?;
    let mut episode = record.clone();
    for segment in &mut episode.segments {
        match segment {
            Segment::Prompt { ids } => {
                *ids = encoded(tokenizer, prompt(&record.question)).map_err(|source| TrajectoryError::Encode { id: id(), source })?;
            }
            Segment::Agent { sample_log_probs, .. } => sample_log_probs.clear(),
            Segment::Observation { .. } => {}
        }
    }
    episode.reward = outcome_reward(episode.prediction.as_deref(), &episode.question.golden_answers);
    Ok(episode)
}

/// A prompt's ids.
fn encoded(tokenizer: &Tokenizer, prompt: Result<Prompt, ChatError>) -> Result<Vec<u32>, TokenizerError> {
    let Prompt { text, outside } = prompt?;
    tokenizer.encode_outside(&text, outside)
}

/// The agent's ids read as the recorded searches and the recorded answer.
fn check_tokenizer(tokenizer: &Tokenizer, record: &Episode) -> Result<(), String> {
    let n_tokens = tokenizer.n_tokens();
    if let Some(id) = record.ids().into_iter().find(|&id| id as usize >= n_tokens) {
        return Err(format!("it has the id {id}, and {} ends at {}", tokenizer.path().display(), n_tokens.saturating_sub(1)));
    }
    let (mut last_action, mut begun, mut queries) = (Action::Invalid, String::new(), Vec::new());
    for segment in &record.segments {
        match segment {
            Segment::Prompt { .. } => {}
            Segment::Agent { ids, .. } => last_action = parse_action(&(std::mem::take(&mut begun) + &tokenizer.decode(ids))),
            Segment::Observation { ids, kind: ObservationKind::ForcedPrefix } => begun = tokenizer.decode(ids),
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
        let said = |answer: &Option<String>| answer.as_ref().map_or("no answer".to_owned(), |answer| format!("the answer {answer:?}"));
        return Err(format!("its ids read as {} and the record has {}", said(&found), said(&record.prediction)));
    }
    // A search whose observation did not fit into the episode has a record and no segment.
    let recorded = || record.searches.iter().map(|search| &search.query);
    match queries.iter().zip(recorded()).find(|(found, recorded)| found != recorded) {
        Some((found, recorded)) => Err(format!("its ids read as the search {found:?} and the record has {recorded:?}")),
        None => Ok(()),
    }
}

/// A protocol's stop string as a stop reason.
fn stop_at(stop_string: &str) -> StopReason {
    StopReason::StopString(STOP_STRINGS.iter().position(|&s| s == stop_string).expect("a stop string of the protocol"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        data::test_data,
        rollout::RolloutBatch,
        tokenizer::{chat::Chat, tests::byte_level_tokenizer},
    };

    fn prompt(question: &Question) -> Result<Prompt, ChatError> {
        crate::env::prompt::prompt("Question: {question}\n", &Chat::plain(), &question.question)
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
        let episode = episode_from_trajectory(&tokenizer, &prompt, &trajectory(response)).expect("an episode").episode;
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
        let episode = |response: &str| episode_from_trajectory(&tokenizer, &prompt, &trajectory(response)).expect("an episode").episode;
        let right = episode("<search> q </search>\n\n<information>by Vex</information>\n\n<answer> vex. </answer>");
        assert_eq!((&right.status, right.reward, right.prediction.as_deref()), (&Status::Answered, 1.0, Some("vex.")));
        let expected = SearchRecord { query: "q".to_owned(), passage_ids: Vec::new(), is_hit: true, is_cut: false, found_nothing: false };
        assert_eq!(right.searches, [expected]);
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
    fn a_turn_ends_where_the_engine_would_have_stopped() {
        let tokenizer = byte_level_tokenizer();
        // (response, what the agent keeps, prediction, text was lost)
        for (response, kept, prediction, is_cut) in [
            (
                "<think> maybe <answer> Vex </answer> or not </think><answer> cook </answer>",
                "<think> maybe <answer> Vex </answer>",
                "Vex",
                true,
            ),
            ("<answer> Vex </answer>\n", "<answer> Vex </answer>", "Vex", false),
            ("<answer> cook </answer><answer> Vex </answer>", "<answer> cook </answer>", "cook", true),
            (
                "<search> q </search> I wait.\n\n<information>x</information>\n\n<answer> Vex </answer>",
                "<search> q </search><answer> Vex </answer>",
                "Vex",
                true,
            ),
            ("<answer> cook </answer>\n\n<information>x</information>\n\n<answer> Vex </answer>", "<answer> cook </answer>", "cook", true),
        ] {
            let Imported { episode, is_cut: was_cut } =
                episode_from_trajectory(&tokenizer, &prompt, &trajectory(response)).expect("an episode");
            assert_eq!(agent_text(&tokenizer, &episode), kept, "{response}");
            assert_eq!((episode.prediction.as_deref(), was_cut), (Some(prediction), is_cut), "{response}");
            assert_eq!(episode.is_correct(), prediction == "Vex", "{response}");
        }
    }

    #[test]
    fn an_empty_answer_is_wrong_even_where_the_gold_answer_normalises_to_nothing() {
        let tokenizer = byte_level_tokenizer();
        let blank = Trajectory { golden_answers: vec!["A".to_owned()], ..trajectory("<answer> </answer>") };
        let Imported { episode, .. } = episode_from_trajectory(&tokenizer, &prompt, &blank).expect("an episode");
        assert_eq!((episode.prediction.as_deref(), episode.is_correct()), (Some(""), false));
    }

    /// An episode of the text above as a record of one that was played: with log-probs, behind another prompt.
    fn record(tokenizer: &Tokenizer) -> Episode {
        let response = "<search> q </search>\n\n<information>by Vex</information>\n\n<answer> Vex </answer>";
        let mut episode =
            episode_from_trajectory(tokenizer, &|_| Ok(Prompt { text: "other".to_owned(), outside: 0..0 }), &trajectory(response))
                .expect("an episode")
                .episode;
        for segment in &mut episode.segments {
            if let Segment::Agent { ids, sample_log_probs, .. } = segment {
                *sample_log_probs = vec![-0.5; ids.len()];
            }
        }
        episode
    }

    #[test]
    fn a_record_keeps_its_ids_behind_this_recipes_prompt_and_is_judged_anew() {
        let tokenizer = byte_level_tokenizer();
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("demos.jsonl");
        let written = Episode { reward: 0.0, ..record(&tokenizer) };
        crate::rollout::episode::write_episodes(&path, std::slice::from_ref(&written)).expect("written");
        let [given] = read_given(&path).expect("read").try_into().expect("one episode");
        let Imported { episode, is_cut } = episode_from_given(&tokenizer, &prompt, &given).expect("an episode");
        assert_eq!(tokenizer.decode(episode.segments[0].ids()), "Question: who?\n");
        let ids = |episode: &Episode| episode.segments[1..].iter().flat_map(|segment| segment.ids().to_vec()).collect::<Vec<u32>>();
        assert_eq!(ids(&episode), ids(&written));
        assert!(episode.is_correct() && !is_cut);
        assert!(episode.segments.iter().all(|s| !matches!(s, Segment::Agent { sample_log_probs, .. } if !sample_log_probs.is_empty())));
    }

    #[test]
    fn a_record_whose_ids_say_something_else_here_is_refused() {
        let tokenizer = byte_level_tokenizer();
        let played = record(&tokenizer);
        let unknown = tokenizer.n_tokens() as u32;
        let mut damaged = [played.clone(), played.clone(), played];
        damaged[0].prediction = Some("cook".to_owned());
        damaged[1].searches[0].query = "other".to_owned();
        damaged[2].segments.push(Segment::Observation { ids: vec![unknown], kind: ObservationKind::Information });
        for (episode, what) in damaged.into_iter().zip(["the answer \"Vex\"", "the search \"q\"", "it has the id"]) {
            let error = episode_from_given(&tokenizer, &prompt, &Given::Record(episode)).expect_err("another tokenizer").to_string();
            assert!(error.contains("another tokenizer") && error.contains(what) && error.contains("hint: "), "{error}");
        }
    }

    #[test]
    fn the_real_trajectories_become_episodes_whose_masks_cover_exactly_the_agents_text() {
        let (Some(folder), Some(file)) = (test_data("tokenizers/qwen2.5"), test_data("trajectories/r1_searcher_tgo.jsonl.gz")) else {
            return;
        };
        let tokenizer = Tokenizer::from_path(&folder).expect("tokenizer");
        let given = read_given(&file).expect("trajectories");
        assert_eq!(given.len(), 1750);
        let mut n_correct = 0;
        for one in &given {
            let Given::Text(trajectory) = one else { panic!("a record") };
            let Imported { episode, is_cut } = episode_from_given(&tokenizer, &prompt, one).expect("an episode");
            assert!(!is_cut, "{}", trajectory.id);
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
