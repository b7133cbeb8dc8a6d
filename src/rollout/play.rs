//! Plays questions: a generator writes the agent's turns, the environment answers, every question becomes an [`Episode`] (method §1).
//!
//! # The turn table
//! Turns 0..max_turns may search; one last turn follows in which a search is no longer executed. After each generation:
//!
//! | the agent wrote | turn < max_turns | last turn |
//! |---|---|---|
//! | an answer | `Answered` | `Answered` |
//! | a search | observation, next turn | `TruncatedTurns` |
//! | neither (EOS, or the turn's token limit) | invalid-action message, next turn | `TruncatedTurns` |
//!
//! Whatever the turn: a row that has reached `max_prompt_length` tokens without an answer, or whose next observation would leave no room for one
//! more token, ends as `TruncatedLength`; a failed search ends the episode as `RetrieverFailed`.
//!
//! # Tokens
//! Sampled ids are appended as they were sampled, EOS included. The prompt (its last `max_start_length` tokens) and each observation (its
//! first `max_obs_length` tokens) are encoded on their own and concatenated. Nothing the agent wrote is ever encoded again.
//!
//! # Order
//! All questions are submitted at once; the generator takes as many as it has rows for and the next as rows leave. Rows that wait for a
//! search do not hold up the others. The waiting searches run in one batched call, in the order of their rows, as soon as they are at least
//! one in [`SEARCH_SHARE`] of the open rows the generator can hold, or nobody is generating. That rule looks at counts alone, never at a
//! clock, so a run is reproducible; and since draws are counter-based, it decides about speed, not about tokens.
use super::{Episode, ObservationKind, Segment, Status, episode::SearchRecord};
use crate::{
    config::recipe::EpisodeRecipe,
    data::questions::Question,
    engine::{Completion, Engine, EngineError, Request, StopReason},
    env::protocol::{Action, INVALID_ACTION, parse_action, search_observation},
    retriever::{Hit, RetrieverError},
    rng::Key,
    tokenizer::TokenizerError,
};
use dgpo_models::Backend;

/// Searches run when one in this many open rows waits for one: large enough batches for the retriever's encoder, and most rows still decoding.
const SEARCH_SHARE: usize = 4;

/// Who writes the agent's turns: the engine, or a script.
pub trait Generator {
    /// Queues a row's next generation; see [`Engine::submit`].
    fn submit(&mut self, request: Request);
    /// Goes on with all rows; returns the generations that ended.
    fn step(&mut self) -> Result<Vec<Completion>, EngineError>;
    /// Whether a step would do something.
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

/// Everything an episode is played by, besides the generator.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    /// The prompt's text.
    pub prompt: &'a dyn Fn(&Question) -> String,
    /// One result a query, in order.
    pub search: &'a dyn Fn(&[String]) -> Vec<Result<Vec<Hit>, RetrieverError>>,
    /// Text to ids, without special tokens of its own.
    pub encode: &'a dyn Fn(&str) -> Result<Vec<u32>, TokenizerError>,
    /// Whether a prediction equals one of the gold answers (r_EM, method §2).
    pub is_match: &'a dyn Fn(&str, &[String]) -> bool,
    pub limits: &'a EpisodeRecipe,
}

/// Why episodes could not be played. (What goes wrong within one episode is its `Status`.)
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("question \"{question_id}\": {source}")]
    Encode { question_id: String, source: TokenizerError },
    #[error("question \"{question_id}\" has an empty prompt; hint: is episode.instruction empty, or does the tokenizer drop all of it?")]
    EmptyPrompt { question_id: String },
}

/// Plays every question once; episode i belongs to question i and draws from `keys[i]`, folded by the turn.
/// # Errors
/// If the generator fails (logits that are not finite) or a text cannot be encoded.
/// # Panics
/// If there is not one key a question.
/// # Source
/// method §1; `omron-sinicx/dgpo` search_r1/llm_agent/generation.py, `run_llm_loop`.
pub fn play(generator: &mut impl Generator, rules: Rules<'_>, questions: &[Question], keys: &[Key]) -> Result<Vec<Episode>, RolloutError> {
    assert_eq!(questions.len(), keys.len(), "one key a question");
    let mut table = Table { rules, keys, games: Vec::with_capacity(questions.len()), waiting: Vec::new(), n_open: 0 };
    for question in questions {
        table.open(generator, question)?;
    }
    let n_cut = table.games.iter().filter(|game| game.is_prompt_cut).count();
    if n_cut > 0 {
        tracing::warn!(
            "{n_cut} of {} prompts were cut to their last {} tokens; hint: raise episode.max_start_length",
            questions.len(),
            rules.limits.max_start_length
        );
    }
    while table.n_open > 0 {
        assert!(generator.is_busy() || !table.waiting.is_empty(), "an open row neither generates nor waits");
        if generator.is_busy() {
            for completion in generator.step()? {
                table.take_turn(generator, completion)?;
            }
        }
        let n_playing = table.n_open.min(rules.limits.max_rows.max(1));
        if table.waiting.len() * SEARCH_SHARE >= n_playing || !generator.is_busy() {
            table.search(generator)?;
        }
    }
    Ok(table.games.into_iter().map(|game| game.episode).collect())
}

/// All episodes under way.
struct Table<'a> {
    rules: Rules<'a>,
    keys: &'a [Key],
    /// By row; a row is the index of its question.
    games: Vec<Game>,
    /// Rows whose turn ended with a search, and the query.
    waiting: Vec<(usize, String)>,
    n_open: usize,
}

/// One episode and where it stands.
struct Game {
    episode: Episode,
    /// Generations that have ended.
    turn: usize,
    /// Tokens so far.
    n_tokens: usize,
    is_prompt_cut: bool,
}

impl Table<'_> {
    /// Encodes the prompt and submits the first turn.
    fn open(&mut self, generator: &mut impl Generator, question: &Question) -> Result<(), RolloutError> {
        let limits = self.rules.limits;
        let mut ids = self.encode(question, &(self.rules.prompt)(question))?;
        let n_dropped = ids.len().saturating_sub(limits.max_start_length);
        ids.drain(..n_dropped);
        if ids.is_empty() {
            return Err(RolloutError::EmptyPrompt { question_id: question.id.clone() });
        }
        let row = self.games.len();
        let n_tokens = ids.len();
        let episode = Episode {
            question: question.clone(),
            segments: vec![Segment::Prompt { ids: ids.clone() }],
            status: Status::PromptTooLong,
            prediction: None,
            reward: 0.0,
            searches: Vec::new(),
            n_invalid_actions: 0,
        };
        self.games.push(Game { episode, turn: 0, n_tokens, is_prompt_cut: n_dropped > 0 });
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
            max_new_tokens: limits.max_response_length.min(limits.max_prompt_length - game.n_tokens),
            sampling: limits.sampling(),
        });
    }

    /// A generation has ended: the turn table.
    fn take_turn(&mut self, generator: &mut impl Generator, completion: Completion) -> Result<(), RolloutError> {
        let Completion { row, ids, log_probs, text, stop } = completion;
        let limits = self.rules.limits;
        let game = &mut self.games[row];
        game.n_tokens += ids.len();
        game.episode.segments.push(Segment::Agent { ids, sample_log_probs: log_probs, stop });
        let action = parse_action(&text);
        if action == Action::Invalid {
            game.episode.n_invalid_actions += 1;
        }
        match action {
            Action::Answer(prediction) => {
                game.episode.reward = if (self.rules.is_match)(&prediction, &game.episode.question.golden_answers) { 1.0 } else { 0.0 };
                game.episode.prediction = Some(prediction);
                self.close(generator, row, Status::Answered);
            }
            _ if stop == StopReason::Capacity || game.n_tokens >= limits.max_prompt_length => {
                self.close(generator, row, Status::TruncatedLength)
            }
            _ if game.turn >= limits.max_turns => self.close(generator, row, Status::TruncatedTurns),
            Action::Search(query) => self.waiting.push((row, query)),
            Action::Invalid => self.observe(generator, row, INVALID_ACTION, ObservationKind::InvalidAction)?,
        }
        Ok(())
    }

    /// Runs the waiting searches in one batch and lets their rows go on.
    fn search(&mut self, generator: &mut impl Generator) -> Result<(), RolloutError> {
        let mut waiting = std::mem::take(&mut self.waiting);
        if waiting.is_empty() {
            return Ok(());
        }
        waiting.sort_by_key(|&(row, _)| row);
        let (rows, queries): (Vec<usize>, Vec<String>) = waiting.into_iter().unzip();
        let results = (self.rules.search)(&queries);
        assert_eq!(results.len(), queries.len(), "one result a query");
        for ((row, query), result) in rows.into_iter().zip(queries).zip(results) {
            match result {
                Err(error) => self.close(generator, row, Status::RetrieverFailed(error.to_string())),
                Ok(hits) => {
                    let episode = &mut self.games[row].episode;
                    let golden_answers = &episode.question.golden_answers;
                    let is_hit = hits.iter().any(|hit| golden_answers.iter().any(|gold| hit.passage.contents.contains(gold.as_str())));
                    let passages: Vec<_> = hits.into_iter().map(|hit| hit.passage).collect();
                    let passage_ids = passages.iter().map(|passage| passage.id.clone()).collect();
                    episode.searches.push(SearchRecord { query, passage_ids, is_hit });
                    self.observe(generator, row, &search_observation(&passages), ObservationKind::Information)?;
                }
            }
        }
        Ok(())
    }

    /// Appends an observation and submits the next turn, if it leaves room for one token.
    fn observe(&mut self, generator: &mut impl Generator, row: usize, text: &str, kind: ObservationKind) -> Result<(), RolloutError> {
        let limits = self.rules.limits;
        let mut ids = self.encode(&self.games[row].episode.question, text)?;
        ids.truncate(limits.max_obs_length);
        let game = &mut self.games[row];
        if game.n_tokens + ids.len() >= limits.max_prompt_length {
            // Differs from the reference, which drops the oldest tokens and plays on: then the model would be trained on a context it did not see.
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

    fn encode(&self, question: &Question, text: &str) -> Result<Vec<u32>, RolloutError> {
        (self.rules.encode)(text).map_err(|source| RolloutError::Encode { question_id: question.id.clone(), source })
    }
}

#[cfg(test)]
mod tests;
