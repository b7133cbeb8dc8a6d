//! Agentic RAG capabilities, one by one (ARCap): where a model fails, is it reading, asking, or
//! deciding what to do?
//!
//! | capability | what is played | figure |
//! |---|---|---|
//! | source referencing, without thinking | gold passages as `<information>`, the turn begins with `<answer>`, one turn | EM |
//! | source referencing, with thinking | gold passages as `<information>`, the turn begins with `<think>`, then the ordinary episode: search again, answer | EM |
//! | query rewriting | the ordinary episodes | hit ratio of the first query |
//! | thinking: when | the ordinary episodes | hit ratio over all retrieved passages, searches an episode |
//!
//! A hit is a gold answer that stands letter by letter in a retrieved passage. An episode that
//! never searches has none. Beside the first query's hit ratio stands that of the question itself
//! as a query: what rewriting wins or loses.
//!
//! Gold passages are those the data set itself names (`supporting` with `supporting_kind`
//! "annotated"), all of them, in the protocol's own format, not cut to `max_obs_length`. MuSiQue
//! has several, NQ one (its long answer). Questions without any are not asked for source
//! referencing; a data set that has none is left out of it, and [`Arcap::left_out`] names it.
//!
//! The paper reports source referencing and query rewriting on NQ, source referencing and thinking
//! on MuSiQue; here every data set has every figure.
//!
//! # Source
//! `method §8`; the paper's sections 5.3 to 5.5
use super::{
    bootstrap::{Estimate, estimates, key_of},
    intervals::{QuestionName, by_dataset, name_of},
    retrieval::ANNOTATED,
};
use dgpo_core::{
    env::{
        is_hit,
        protocol::search_observation,
        search::{Hit, Passage, SearchError},
    },
    question::{Question, Supporting},
    rng::Key,
    rollout::{Episode, EpisodeStats, Status, play::Opening},
    tokenizer::{Tokenizer, TokenizerError},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The capabilities on each data set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Arcap {
    pub datasets: BTreeMap<String, Capabilities>,
}

/// One data set's row. A figure is `None` where no episode says anything about it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Questions played in the ordinary way.
    pub n_questions: usize,
    /// Those of them whose gold passages are annotated; 0: the data set is left out of source
    /// referencing.
    pub n_annotated: usize,
    pub without_thinking: Option<SourceReferencing>,
    pub with_thinking: Option<SourceReferencing>,
    pub query_rewriting: Option<QueryRewriting>,
    pub thinking: Option<Thinking>,
}

/// Answers of a model from gold passages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceReferencing {
    /// Questions that count: those not lost to the retriever.
    pub n_questions: usize,
    pub em: Estimate,
    pub substring_em: Estimate,
    /// Searches an episode, beyond what was given.
    pub searches: Estimate,
    /// Questions whose gold passages left no room for an answer. They count as wrong.
    pub n_without_room: usize,
}

/// Quality of the first query.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueryRewriting {
    /// Share of episodes whose first search brought a passage with a gold answer.
    pub first_query_hit_ratio: Estimate,
    /// The same with the question itself as the query, over the questions whose search did not
    /// fail.
    pub question_hit_ratio: Option<Estimate>,
    pub n_failed_searches: usize,
}

/// Agreement of the model's searches with what it lacks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thinking {
    /// Share of episodes one of whose searches brought a passage with a gold answer.
    pub hit_ratio: Estimate,
    /// Searches an episode.
    pub searches: Estimate,
    /// Share of episodes with a search.
    pub searched: Estimate,
}

/// Episodes played for ARCap.
#[derive(Clone, Copy, Debug)]
pub struct Played<'a> {
    /// Every question in the ordinary way.
    pub ordinary: &'a [Episode],
    /// Hits of the retriever for each of their questions as a query, in their order.
    pub searched: &'a [Result<Vec<Hit>, SearchError>],
    /// The annotated questions from [`gold_opening`], with `<answer>` forced and with `<think>`.
    pub without_thinking: &'a [Episode],
    pub with_thinking: &'a [Episode],
}

/// True if the data set itself names passages that answer the question.
pub fn has_gold_passages(question: &Question) -> bool {
    question.supporting_kind == ANNOTATED && !question.supporting.is_empty()
}

/// All gold passages as one `<information>` block, and what the agent's first turn is made to begin
/// with.
pub fn gold_opening(question: &Question, forced_prefix: &str) -> Opening {
    let passage = |gold: &Supporting| Passage {
        id: gold.pid.clone().unwrap_or_default(),
        contents: format!("\"{}\"\n{}", gold.title, gold.text),
    };
    let passages: Vec<Passage> = question.supporting.iter().map(passage).collect();
    Opening { information: search_observation(&passages), forced_prefix: forced_prefix.to_owned() }
}

/// A tag, `<answer>` or `<think>`, as this tokenizer's models write it: with a blank in front where
/// that is fewer tokens. A vocabulary made for the protocol may know ` <answer>` as one token, and
/// its models have never seen the tag in pieces.
/// # Errors
/// If the tokenizer fails.
pub fn tag_prefix(tokenizer: &Tokenizer, tag: &str) -> Result<String, TokenizerError> {
    let spaced = format!(" {tag}");
    let is_shorter = tokenizer.encode(&spaced)?.len() < tokenizer.encode(tag)?.len();
    Ok(if is_shorter { spaced } else { tag.to_owned() })
}

impl Arcap {
    /// The figures of what was played, with intervals over questions.
    /// # Panics
    /// If there is not one result of a search a question.
    pub fn of(played: Played<'_>, seed: u64) -> Self {
        assert_eq!(played.ordinary.len(), played.searched.len(), "one result a question");
        let searched: Searched = played.ordinary.iter().map(name_of).zip(played.searched).collect();
        let without = by_dataset(played.without_thinking);
        let with = by_dataset(played.with_thinking);
        let capabilities = |(dataset, episodes): (&str, Vec<&Episode>)| {
            let key = key_of(seed, dataset);
            let capabilities = Capabilities {
                n_questions: episodes.len(),
                n_annotated: episodes
                    .iter()
                    .filter(|episode| has_gold_passages(&episode.question))
                    .count(),
                without_thinking: without
                    .get(dataset)
                    .and_then(|episodes| source_referencing(episodes, key)),
                with_thinking: with
                    .get(dataset)
                    .and_then(|episodes| source_referencing(episodes, key)),
                query_rewriting: query_rewriting(&episodes, &searched, key),
                thinking: thinking(&episodes, key),
            };
            (dataset.to_owned(), capabilities)
        };
        Self { datasets: by_dataset(played.ordinary).into_iter().map(capabilities).collect() }
    }

    /// Data sets that source referencing says nothing about, because none of the questions played
    /// has annotated gold passages.
    pub fn left_out(&self) -> Vec<&str> {
        self.datasets
            .iter()
            .filter(|(_, row)| row.n_annotated == 0)
            .map(|(name, _)| name.as_str())
            .collect()
    }

    /// Data sets of whose questions only a part has annotated gold passages.
    pub fn in_part(&self) -> BTreeSet<&str> {
        let is_part = |row: &Capabilities| row.n_annotated > 0 && row.n_annotated < row.n_questions;
        self.datasets
            .iter()
            .filter(|(_, row)| is_part(row))
            .map(|(name, _)| name.as_str())
            .collect()
    }
}

/// Episodes that were not lost to the retriever: the others count nowhere.
fn counting<'e>(episodes: &[&'e Episode]) -> impl Iterator<Item = &'e Episode> {
    episodes.iter().copied().filter(|episode| !matches!(episode.status, Status::RetrieverFailed(_)))
}

fn share(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn source_referencing(episodes: &[&Episode], key: Key) -> Option<SourceReferencing> {
    let row = |episode: &Episode| {
        let stats = EpisodeStats::of([episode]);
        [stats.em, stats.substring_em, stats.searches]
    };
    let [em, substring_em, searches] =
        estimates(&counting(episodes).map(row).collect::<Vec<_>>(), key)?;
    let n_without_room = counting(episodes).filter(|episode| episode.n_agent_tokens() == 0).count();
    Some(SourceReferencing {
        n_questions: counting(episodes).count(),
        em,
        substring_em,
        searches,
        n_without_room,
    })
}

/// Hits for each question as a query.
type Searched<'a> = BTreeMap<QuestionName<'a>, &'a Result<Vec<Hit>, SearchError>>;

/// The passages of an episode's question as a query; `None` where that search failed.
fn found<'s>(searched: &'s Searched<'s>, episode: &'s Episode) -> Option<&'s Vec<Hit>> {
    searched.get(&name_of(episode))?.as_ref().ok()
}

fn query_rewriting(
    episodes: &[&Episode],
    searched: &Searched<'_>,
    key: Key,
) -> Option<QueryRewriting> {
    let first =
        |episode: &Episode| [share(episode.searches.first().is_some_and(|search| search.is_hit))];
    let itself = |episode: &Episode| {
        let is_hit = is_hit(
            found(searched, episode)?.iter().map(|hit| &hit.passage),
            &episode.question.golden_answers,
        );
        Some([share(is_hit)])
    };
    let [first_query_hit_ratio] =
        estimates(&counting(episodes).map(first).collect::<Vec<_>>(), key)?;
    let of_questions: Vec<[f64; 1]> = counting(episodes).filter_map(itself).collect();
    let n_failed_searches = counting(episodes).count() - of_questions.len();
    let question_hit_ratio = estimates(&of_questions, key).map(|[estimate]| estimate);
    Some(QueryRewriting { first_query_hit_ratio, question_hit_ratio, n_failed_searches })
}

fn thinking(episodes: &[&Episode], key: Key) -> Option<Thinking> {
    let row = |episode: &Episode| {
        let stats = EpisodeStats::of([episode]);
        [stats.hit_ratio, stats.searches, share(!episode.searches.is_empty())]
    };
    let [hit_ratio, searches, searched] =
        estimates(&counting(episodes).map(row).collect::<Vec<_>>(), key)?;
    Some(Thinking { hit_ratio, searches, searched })
}

#[cfg(test)]
mod tests;
