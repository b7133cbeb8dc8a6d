//! Text in, observation out: the protocol of method §1.2 and method §1.3. Knows no token ids.
//!
//! The environment is stateless; the rollout keeps track of turns. All searches that become due
//! together go to the retriever in one call. A failed search ends its episode as failed and never
//! becomes an empty list of passages.

pub mod prompt;
pub mod protocol;
pub mod reward;
pub mod search;

use crate::{
    question::Question,
    tokenizer::chat::{Chat, ChatError},
};
use prompt::Prompt;
use protocol::Action;
use search::{Hit, Passage, Retriever};

/// The environment of an episode: instruction, chat template and retriever.
pub struct Env<'a> {
    /// The user message, with `{question}` in it ([`crate::settings::EpisodeRecipe`]).
    pub instruction: String,
    /// The model's chat format.
    pub chat: Chat,
    /// The search engine.
    pub retriever: &'a dyn Retriever,
    /// Passages a search returns.
    pub top_k: usize,
}

/// A turn that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The action that was read in its text.
    pub action: Action,
    /// True in the last turn, after which no generation follows: a search is not executed any more.
    pub is_last: bool,
}

/// The environment's reply to a turn.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The observation is appended and the agent continues.
    Observation(Observation),
    /// The agent answered.
    Done {
        /// The text between the answer tags.
        prediction: String,
    },
    /// The last turn ended without an answer.
    OutOfTurns,
    /// The search failed; the episode must not be trained on.
    Failed(String),
}

/// Text that the environment appends to an episode.
#[derive(Clone, Debug, PartialEq)]
pub enum Observation {
    /// Passages for a query, best first; where there are none, the text says so.
    Information {
        /// The whole block, tags included.
        text: String,
        /// The query that was searched for.
        query: String,
        /// Hits of the retriever.
        hits: Vec<Hit>,
    },
    /// The turn held no action.
    InvalidAction {
        /// The message about it.
        text: String,
    },
}

impl Observation {
    /// The text that is appended to the episode.
    pub fn text(&self) -> &str {
        match self {
            Self::Information { text, .. } | Self::InvalidAction { text } => text,
        }
    }
}

impl Env<'_> {
    /// The rendered chat that an episode starts with: everything up to the agent's first token.
    /// # Errors
    /// If the chat template refuses it.
    pub fn prompt(&self, question: &Question) -> Result<Prompt, ChatError> {
        prompt::prompt(&self.instruction, &self.chat, &question.question)
    }

    /// Answers the turns of several rows, in their order, with at most one call of the retriever.
    pub fn observe(&self, turns: &[Turn]) -> Vec<Outcome> {
        let due = |turn: &Turn| match &turn.action {
            Action::Search(query) if !turn.is_last => Some(query.clone()),
            _ => None,
        };
        let queries: Vec<String> = turns.iter().filter_map(due).collect();
        let results = if queries.is_empty() {
            Vec::new()
        } else {
            self.retriever.search(&queries, self.top_k)
        };
        let n_results = results.len();
        let mut results = results.into_iter();
        let outcome = |turn: &Turn| match &turn.action {
            Action::Answer(prediction) => Outcome::Done { prediction: prediction.clone() },
            _ if turn.is_last => Outcome::OutOfTurns,
            Action::Invalid => Outcome::Observation(Observation::InvalidAction {
                text: protocol::INVALID_ACTION.to_owned(),
            }),
            Action::Search(query) => match results.next() {
                // With a result too many or too few, results cannot be matched with queries.
                _ if n_results != queries.len() => Outcome::Failed(format!(
                    "the retriever returned {n_results} results for {} queries",
                    queries.len()
                )),
                Some(Ok(hits)) => {
                    let passages: Vec<Passage> =
                        hits.iter().map(|hit| hit.passage.clone()).collect();
                    let text = protocol::search_observation(&passages);
                    Outcome::Observation(Observation::Information {
                        text,
                        query: query.clone(),
                        hits,
                    })
                }
                Some(Err(error)) => Outcome::Failed(error.to_string()),
                None => Outcome::Failed("the retriever returned nothing".to_owned()),
            },
        };
        turns.iter().map(outcome).collect()
    }
}

/// A hit: true if a gold answer occurs in one of the passages as an exact substring
/// ([`reward::contains_answer_verbatim`]).
///
/// # Source
/// `method §8`
pub fn is_hit<'p>(
    passages: impl IntoIterator<Item = &'p Passage>,
    golden_answers: &[String],
) -> bool {
    passages
        .into_iter()
        .any(|passage| reward::contains_answer_verbatim(&passage.contents, golden_answers))
}

/// As [`is_hit`], both sides normalised as for the score: "the U.S.A." is found in "USA".
pub fn is_hit_normalised<'p>(
    passages: impl IntoIterator<Item = &'p Passage>,
    golden_answers: &[String],
) -> bool {
    passages.into_iter().any(|passage| reward::contains_answer(&passage.contents, golden_answers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{env::search::SearchError, settings::ChatTemplate};
    use std::cell::RefCell;

    /// Answers with the query as a passage; fails on "down"; remembers the calls.
    #[derive(Default)]
    struct Scripted {
        calls: RefCell<Vec<Vec<String>>>,
        extra_results: usize,
    }
    impl Retriever for Scripted {
        fn search(&self, queries: &[String], top_k: usize) -> Vec<Result<Vec<Hit>, SearchError>> {
            self.calls.borrow_mut().push(queries.to_vec());
            let hit = |query: &String| Hit {
                passage: Passage { id: query.clone(), contents: format!("\"T\"\n{query}") },
                score: 1.0,
            };
            let mut results: Vec<_> = queries
                .iter()
                .map(|query| {
                    if query == "down" {
                        Err(SearchError::failed("timeout"))
                    } else {
                        Ok(vec![hit(query); top_k])
                    }
                })
                .collect();
            results.extend((0..self.extra_results).map(|_| Ok(Vec::new())));
            results
        }
        fn describe(&self) -> String {
            "scripted".to_owned()
        }
    }

    fn env(retriever: &Scripted) -> Env<'_> {
        let chat = Chat::built_in(ChatTemplate::Llama3, "26 Jul 2024").expect("a built-in format");
        Env { instruction: "Q: {question}\n".into(), chat, retriever, top_k: 1 }
    }
    fn search(query: &str, is_last: bool) -> Turn {
        Turn { action: Action::Search(query.into()), is_last }
    }

    #[test]
    fn a_prompt_is_the_rendered_instruction() {
        let question = Question {
            id: "0".into(),
            dataset: String::new(),
            question: "who?".into(),
            golden_answers: vec!["A".into()],
            supporting: Vec::new(),
            supporting_kind: String::new(),
        };
        let expected = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nQ: \
                        who?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
        assert_eq!(env(&Scripted::default()).prompt(&question).expect("renders").text, expected);
    }

    #[test]
    fn all_rows_are_served_by_one_call_and_each_gets_its_own_outcome() {
        let retriever = Scripted::default();
        let turns = [
            search("one", false),
            Turn { action: Action::Answer("A".into()), is_last: false },
            search("down", false),
            Turn { action: Action::Invalid, is_last: false },
            search("late", true),
            Turn { action: Action::Invalid, is_last: true },
            search("two", false),
            Turn { action: Action::Answer("B".into()), is_last: true },
        ];
        let outcomes = env(&retriever).observe(&turns);
        assert_eq!(*retriever.calls.borrow(), [["one", "down", "two"]]);
        let text = |i: usize| match &outcomes[i] {
            Outcome::Observation(observation) => observation.text(),
            other => panic!("row {i}: {other:?}"),
        };
        assert_eq!(text(0), "\n\n<information>Doc 1(Title: \"T\") one</information>\n\n");
        assert_eq!(outcomes[1], Outcome::Done { prediction: "A".into() });
        assert_eq!(outcomes[2], Outcome::Failed("timeout".into()));
        assert_eq!(text(3), protocol::INVALID_ACTION);
        assert_eq!((&outcomes[4], &outcomes[5]), (&Outcome::OutOfTurns, &Outcome::OutOfTurns));
        assert_eq!(text(6), "\n\n<information>Doc 1(Title: \"T\") two</information>\n\n");
        assert_eq!(outcomes[7], Outcome::Done { prediction: "B".into() });
    }

    #[test]
    fn a_search_that_finds_nothing_is_an_observation_in_words() {
        let retriever = Scripted::default();
        let outcomes = Env { top_k: 0, ..env(&retriever) }.observe(&[search("one", false)]);
        let [Outcome::Observation(Observation::Information { text, hits, .. })] = &outcomes[..]
        else {
            panic!("{outcomes:?}")
        };
        assert!(hits.is_empty() && text.contains(protocol::NOTHING_FOUND), "{text}");
    }

    #[test]
    fn without_a_due_search_the_retriever_is_not_asked() {
        let retriever = Scripted::default();
        env(&retriever).observe(&[search("late", true)]);
        assert!(retriever.calls.borrow().is_empty());
    }

    #[test]
    fn a_wrong_number_of_results_fails_every_search() {
        let retriever = Scripted { extra_results: 1, ..Scripted::default() };
        let outcomes = env(&retriever).observe(&[search("one", false), search("two", false)]);
        let is_told = |outcome: &Outcome| match outcome {
            Outcome::Failed(why) => why.contains("3 results for 2 queries"),
            _ => false,
        };
        assert!(outcomes.iter().all(is_told));
    }

    #[test]
    fn a_hit_is_a_gold_answer_inside_a_passage() {
        let passages =
            [Passage { id: "0".into(), contents: "\"Hugo\"\nborn in the USA, 1,802.".into() }];
        let golds = |gold: &str| vec!["nowhere".to_owned(), gold.to_owned()];
        assert!(
            is_hit(&passages, &golds("USA, 1"))
                && !is_hit(&passages, &golds("usa"))
                && !is_hit(&passages, &golds(""))
        );
        assert!(
            is_hit_normalised(&passages, &golds("the U.S.A."))
                && is_hit_normalised(&passages, &golds("1802"))
        );
        assert!(!is_hit_normalised(&passages, &golds("France")));
        // Normalised, these two would be part of every passage, so they are searched for as words.
        assert!(is_hit(&passages, &golds("the")) && is_hit_normalised(&passages, &golds("The")));
        assert!(!is_hit(&passages, &golds("A")) && !is_hit_normalised(&passages, &golds("A")));
    }
}
