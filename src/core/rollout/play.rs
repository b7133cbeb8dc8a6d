//! The episode loop: a generator writes the agent's turns, the environment answers, every question
//! becomes an [`Episode`] (method §1).
//!
//! # The turn table (method §1.2)
//! Turns 0..max_turns may search; one last turn follows in which a search is no longer executed.
//! After each generation:
//!
//! | the agent wrote | turn < max_turns | last turn |
//! |---|---|---|
//! | an answer | `Answered` | `Answered` |
//! | a search | observation, next turn | `TruncatedTurns` |
//! | neither | message about it, next turn | `TruncatedTurns` |
//!
//! Neither: EOS, the turn's token limit, or a search without a query.
//!
//! Whatever the turn (method §1.4): a row that has reached `max_prompt_length` tokens without an
//! answer, or whose next observation would leave no room for one more token, ends as
//! `TruncatedLength`; a failed search ends the episode as `RetrieverFailed`.
//!
//! # Tokens
//! Sampled ids are appended as they were sampled, EOS included. The prompt (its last
//! `max_start_length` tokens) and each observation (at most `max_obs_length` tokens, see
//! [`shown`](super::shown)) are encoded on their own and concatenated. Nothing the agent wrote is
//! ever encoded again.
//!
//! # Openings
//! An evaluation may put something between the prompt and the agent's first token ([`Opening`],
//! method §8): passages that the agent did not search for, and the start of the first turn. They
//! are segments of the environment, encoded on their own as its other text is, so no loss counts
//! them:
//!
//! ```text
//! segment  Prompt            Observation(Information)    Observation(ForcedPrefix)  Agent, turn 1
//! text     <user> … <agent>  <information> Doc 1 … </…>  <answer>                   Vex </answer>
//! turn     -                 -                           read as one: `<answer> Vex </answer>`
//! ```
//!
//! # Order
//! All questions are submitted at once; the generator takes as many as it has slots for, and the
//! next ones as slots become free. Rows that wait for a search do not hold up the others. The
//! waiting searches run in one batched call, in the order of their rows, as soon as at least one in
//! [`SEARCH_SHARE`] of the open rows that the generator can hold is waiting, or no row is
//! generating. That rule depends on counts alone, never on a clock, so a run is reproducible; and
//! since draws are counter-based, it affects speed, not tokens.
use super::{
    Episode, ObservationKind, Segment, Status,
    episode::SearchRecord,
    shown::{Shown, fit},
};
use crate::{
    engine::{Completion, Engine, EngineError, Request, StopReason},
    env::{
        Env, Observation, Outcome, Turn, is_hit,
        protocol::{Action, parse_action, shown_passages},
        reward::outcome_reward,
        search::Passage,
    },
    question::Question,
    rng::Key,
    settings::EpisodeRecipe,
    tokenizer::{TokenizerError, chat::ChatError, first_tokens},
};
use dgpo_models::Backend;
use std::ops::Range;

/// Searches run when one in this many open rows waits for one: the retriever's encoder gets large
/// enough batches while most rows are still decoding.
const SEARCH_SHARE: usize = 4;

/// The writer of the agent's turns: the engine, or a script.
pub trait Generator {
    /// Queues a row's next generation; see [`Engine::submit`].
    fn submit(&mut self, request: Request);
    /// Advances all rows; returns the generations that ended.
    fn step(&mut self) -> Result<Vec<Completion>, EngineError>;
    /// True if a step would do something.
    fn is_busy(&self) -> bool;
    /// Forgets a row.
    fn release(&mut self, row: usize);
}

impl<B: Backend> Generator for Engine<'_, B> {
    fn submit(&mut self, request: Request) {
        self.submit(request);
    }
    fn step(&mut self) -> Result<Vec<Completion>, EngineError> {
        self.step()
    }
    fn is_busy(&self) -> bool {
        self.is_busy()
    }
    fn release(&mut self, row: usize) {
        self.release(row);
    }
}

/// Encoder of text, given the range of its bytes that is outside text.
pub type Encode<'a> = &'a dyn Fn(&str, Range<usize>) -> Result<Vec<u32>, TokenizerError>;

/// Everything that an episode needs besides the generator.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    /// Prompt, protocol and retriever.
    pub env: &'a Env<'a>,
    /// Text to ids; outside text has no special tokens:
    /// `&|text, outside| tokenizer.encode_outside(text, outside)`.
    pub encode: Encode<'a>,
    /// Lengths and turns.
    pub limits: &'a EpisodeRecipe,
}

/// Errors that end the play of all episodes. (A failure within one episode is its `Status`.)
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum RolloutError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("question \"{question_id}\": {source}")]
    Encode { question_id: String, source: TokenizerError },
    #[error(
        "question \"{question_id}\" has an empty prompt; hint: is episode.instruction empty, or \
         does the tokenizer drop all of it?"
    )]
    EmptyPrompt { question_id: String },
}

/// Text between the prompt and the agent's first token. Empty in training.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opening {
    /// An `<information>` block that the agent did not search for. Given whole: `max_obs_length`
    /// does not cut it.
    pub information: String,
    /// The start of the first turn, which the agent continues.
    pub forced_prefix: String,
}

impl Opening {
    /// The opening of an ordinary episode.
    pub fn none(_: &Question) -> Self {
        Self::default()
    }
}

/// Plays every question once; episode i belongs to question i and draws from `keys[i]`, folded by
/// the turn.
/// # Errors
/// If the generator fails (logits that are not finite) or a text cannot be encoded.
/// # Panics
/// If the numbers of keys and of questions differ.
/// # Source
/// `method §1`; `omron-sinicx/dgpo` search_r1/llm_agent/generation.py, `run_llm_loop`.
pub fn play(
    generator: &mut impl Generator,
    rules: Rules<'_>,
    questions: &[Question],
    keys: &[Key],
) -> Result<Vec<Episode>, RolloutError> {
    play_from(generator, rules, &Opening::none, questions, keys)
}

/// As [`play`], from the opening that `opening` gives each question. An opening that leaves no room
/// for one more token ends its episode as `TruncatedLength`.
/// # Errors
/// As [`play`].
/// # Panics
/// As [`play`].
pub fn play_from(
    generator: &mut impl Generator,
    rules: Rules<'_>,
    opening: &dyn Fn(&Question) -> Opening,
    questions: &[Question],
    keys: &[Key],
) -> Result<Vec<Episode>, RolloutError> {
    assert_eq!(questions.len(), keys.len(), "one key a question");
    let mut table = Slots {
        rules,
        keys,
        games: Vec::with_capacity(questions.len()),
        searching: Vec::new(),
        n_open: 0,
        n_cut_prompts: 0,
    };
    for question in questions {
        table.open(generator, question, opening(question))?;
    }
    if table.n_cut_prompts > 0 {
        let (n_cut, n, limit) =
            (table.n_cut_prompts, questions.len(), rules.limits.max_start_length);
        tracing::warn!(
            "{n_cut} of {n} prompts were cut to their last {limit} tokens; hint: raise \
             episode.max_start_length"
        );
    }
    while table.n_open > 0 {
        assert!(
            generator.is_busy() || !table.searching.is_empty(),
            "an open row neither generates nor waits"
        );
        if generator.is_busy() {
            let completions = generator.step()?;
            table.take(generator, completions)?;
        }
        let n_playing = table.n_open.min(rules.limits.max_rows.max(1));
        if table.searching.len() * SEARCH_SHARE >= n_playing || !generator.is_busy() {
            let mut searching = std::mem::take(&mut table.searching);
            searching.sort_by_key(|&(row, _)| row);
            table.go_on(generator, searching)?;
        }
    }
    Ok(table.games.into_iter().map(|game| game.episode).collect())
}

/// All episodes under way, one slot each.
struct Slots<'a> {
    rules: Rules<'a>,
    keys: &'a [Key],
    /// The slots, by row; a row is the index of its question.
    games: Vec<Slot>,
    /// Rows whose turn ended with a search that has not been executed yet.
    searching: Vec<(usize, Turn)>,
    n_open: usize,
    n_cut_prompts: usize,
}

/// A rollout slot: one episode under way.
struct Slot {
    episode: Episode,
    /// Generations that have ended.
    turn: usize,
    /// Tokens so far.
    n_tokens: usize,
    /// The start of the next turn; empty after the first.
    forced_prefix: String,
}

impl Slots<'_> {
    /// Encodes the prompt and the opening, and submits the first turn.
    fn open(
        &mut self,
        generator: &mut impl Generator,
        question: &Question,
        opening: Opening,
    ) -> Result<(), RolloutError> {
        let limits = self.rules.limits;
        let failed = |error: ChatError| RolloutError::Encode {
            question_id: question.id.clone(),
            source: error.into(),
        };
        let prompt = self.rules.env.prompt(question).map_err(failed)?;
        let mut ids = self.encode(question, &prompt.text, prompt.outside)?;
        if ids.is_empty() {
            return Err(RolloutError::EmptyPrompt { question_id: question.id.clone() });
        }
        let n_dropped = ids.len().saturating_sub(limits.max_start_length);
        ids.drain(..n_dropped);
        self.n_cut_prompts += usize::from(n_dropped > 0);
        let row = self.games.len();
        let status = if ids.len() < limits.max_prompt_length {
            Status::TruncatedLength
        } else {
            Status::PromptTooLong
        };
        let mut segments = vec![Segment::Prompt { ids: ids.clone() }];
        for (kind, text) in [
            (ObservationKind::Information, &opening.information),
            (ObservationKind::ForcedPrefix, &opening.forced_prefix),
        ] {
            if status == Status::TruncatedLength && !text.is_empty() {
                // Tokens beyond the context need not be counted: the episode is too long either
                // way.
                let given = first_tokens(text, limits.max_prompt_length, |text| {
                    self.encode(question, text, 0..text.len())
                })?;
                ids.extend(&given);
                segments.push(Segment::Observation { ids: given, kind });
            }
        }
        let n_tokens = ids.len();
        let episode = Episode {
            question: question.clone(),
            segments,
            status,
            prediction: None,
            reward: 0.0,
            searches: Vec::new(),
            n_invalid_actions: 0,
        };
        self.games.push(Slot { episode, turn: 0, n_tokens, forced_prefix: opening.forced_prefix });
        if n_tokens < limits.max_prompt_length {
            self.n_open += 1;
            self.submit(generator, row, ids);
        }
        Ok(())
    }

    fn submit(&self, generator: &mut impl Generator, row: usize, ids: Vec<u32>) {
        let (limits, game) = (self.rules.limits, &self.games[row]);
        generator.submit(Request {
            row,
            ids,
            key: self.keys[row].fold(game.turn as u64),
            max_new_tokens: limits
                .max_response_length
                .min(limits.max_prompt_length - game.n_tokens),
            sampling: limits.sampling(),
        });
    }

    /// Appends the agent's text. Rows with a search wait for it; all others continue at once.
    fn take(
        &mut self,
        generator: &mut impl Generator,
        completions: Vec<Completion>,
    ) -> Result<(), RolloutError> {
        let limits = self.rules.limits;
        let mut ready = Vec::new();
        for Completion { row, ids, log_probs, text, stop } in completions {
            let game = &mut self.games[row];
            game.n_tokens += ids.len();
            game.episode.segments.push(Segment::Agent { ids, sample_log_probs: log_probs, stop });
            let text = std::mem::take(&mut game.forced_prefix) + &text;
            let turn = Turn { action: parse_action(&text), is_last: game.turn >= limits.max_turns };
            game.episode.n_invalid_actions += usize::from(turn.action == Action::Invalid);
            let is_full = stop == StopReason::Capacity || game.n_tokens >= limits.max_prompt_length;
            match &turn.action {
                Action::Search(_) | Action::Invalid if is_full => {
                    self.close(generator, row, Status::TruncatedLength)
                }
                Action::Search(_) if !turn.is_last => self.searching.push((row, turn)),
                _ => ready.push((row, turn)),
            }
        }
        self.go_on(generator, ready)
    }

    /// Has the environment answer some turns, all searches among them in one call.
    fn go_on(
        &mut self,
        generator: &mut impl Generator,
        turns: Vec<(usize, Turn)>,
    ) -> Result<(), RolloutError> {
        let (rows, turns): (Vec<usize>, Vec<Turn>) = turns.into_iter().unzip();
        for (row, outcome) in rows.into_iter().zip(self.rules.env.observe(&turns)) {
            let episode = &mut self.games[row].episode;
            match outcome {
                Outcome::Observation(observation) => self.append(generator, row, observation)?,
                Outcome::OutOfTurns => self.close(generator, row, Status::TruncatedTurns),
                Outcome::Failed(why) => self.close(generator, row, Status::RetrieverFailed(why)),
                Outcome::Done { prediction } => {
                    episode.reward =
                        outcome_reward(Some(&prediction), &episode.question.golden_answers);
                    episode.prediction = Some(prediction);
                    self.close(generator, row, Status::Answered);
                }
            }
        }
        Ok(())
    }

    /// Appends an observation and submits the next turn, if there is room for one more token after
    /// it.
    fn append(
        &mut self,
        generator: &mut impl Generator,
        row: usize,
        observation: Observation,
    ) -> Result<(), RolloutError> {
        let limits = self.rules.limits;
        let encode =
            |text: &str| self.encode(&self.games[row].episode.question, text, 0..text.len());
        let Shown { ids, n_document_bytes } =
            fit(observation.text(), limits.max_obs_length, limits.cut_observations, &encode)?;
        let game = &mut self.games[row];
        let has_room = game.n_tokens + ids.len() < limits.max_prompt_length;
        let kind = match observation {
            Observation::InvalidAction { .. } => ObservationKind::InvalidAction,
            Observation::Information { query, hits, .. } => {
                let passage_ids = hits.iter().map(|hit| hit.passage.id.clone()).collect();
                let found_nothing = hits.is_empty();
                let mut passages: Vec<Passage> = hits.into_iter().map(|hit| hit.passage).collect();
                if let Some(n_bytes) = n_document_bytes {
                    passages = shown_passages(&passages, n_bytes);
                }
                // The agent sees nothing of an observation that does not fit.
                let is_hit = has_room && is_hit(&passages, &game.episode.question.golden_answers);
                let is_cut = n_document_bytes.is_some();
                game.episode.searches.push(SearchRecord {
                    query,
                    passage_ids,
                    is_hit,
                    is_cut,
                    found_nothing,
                });
                ObservationKind::Information
            }
        };
        if !has_room {
            // Differs from the reference, which drops the oldest tokens and plays on: training
            // would then see a context the agent never saw.
            self.close(generator, row, Status::TruncatedLength);
            return Ok(());
        }
        game.n_tokens += ids.len();
        game.turn += 1;
        game.episode.segments.push(Segment::Observation { ids: ids.clone(), kind });
        self.submit(generator, row, ids);
        Ok(())
    }

    fn close(&mut self, generator: &mut impl Generator, row: usize, status: Status) {
        self.games[row].episode.status = status;
        self.n_open -= 1;
        generator.release(row);
    }

    fn encode(
        &self,
        question: &Question,
        text: &str,
        outside: Range<usize>,
    ) -> Result<Vec<u32>, RolloutError> {
        (self.rules.encode)(text, outside)
            .map_err(|source| RolloutError::Encode { question_id: question.id.clone(), source })
    }
}

#[cfg(test)]
mod tests;
