//! One episode, token by token, with the author of each; its record in JSON Lines.
//!
//! The loss mask (method §1.5, paper Eq. 6) starts here: a [`Segment`] knows its author, and
//! everything downstream (losses, KL, entropy, advantages) derives its mask from that. No token id
//! is ever compared with a pad or EOS id to find out what it is.
//!
//! # One episode, drawn
//! "Who directed Nolmar?", one search, then the answer. (Ids of an invented tokenizer; `</search>`
//! and `</answer>` are one token each here.)
//!
//! ```text
//! segment    Prompt            Agent, turn 1         Observation(Information)      Agent, turn 2
//! text       <user> … <agent>  <search> Nolmar </…>  <information> Doc 1 … </…>    <answer> Vex …
//! stop                         StopString(0)                                       StopString(1)
//! ids         2  41  42   3     5   310   6           7   402  403  88   8           9   512  10
//! column      0   1   2   3     4    5    6           7    8    9   10   11         12   13   14
//! loss_mask   0   0   0   0     1    1    1           0    0    0    0    0          1    1    1
//! read at                       3    4    5                                         11   12   13
//! ```
//!
//! - `ids()` is its row read from left to right: exactly what the model saw when the episode was
//!   played, and what it is trained on. Nothing is decoded and encoded again.
//! - The log-prob of the token in column t is read off the hidden state of the column before it
//!   ("read at"). So `<answer>` is predicted from the last token of the observation: observations
//!   are context, never targets.
//! - `prompt_len()` = 4, `response_len()` = 11, `n_agent_tokens()` = 6: a loss is the mean over
//!   those 6.
//! - The outcome reward (1 if `Vex` is a gold answer) lies on column 14, the last token of the
//!   response.
//!
//! The unit test `the_drawn_episode_has_the_mask_of_the_drawing` holds these numbers to the code.
use crate::{engine::StopReason, question::Question};
use serde::{Deserialize, Serialize};

/// Kinds of text that the environment appends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObservationKind {
    /// Passages of an executed search.
    Information,
    /// The message after a turn without an action.
    InvalidAction,
    /// Text that an evaluation puts at the start of the agent's first turn. The turn is read as if
    /// the agent had written it; no loss counts it.
    ForcedPrefix,
}

/// A run of tokens by one author. The ids of all segments in order are exactly what the model saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "author", rename_all = "snake_case")]
pub enum Segment {
    /// The rendered chat up to the agent's first token; always the first segment.
    Prompt {
        /// Its tokens.
        ids: Vec<u32>,
    },
    /// One turn of the agent.
    Agent {
        /// The sampled ids, a closing EOS included.
        ids: Vec<u32>,
        /// Log-prob of each id as the sampler saw it; empty where the text was made elsewhere.
        sample_log_probs: Vec<f32>,
        /// The event that ended the turn.
        stop: StopReason,
    },
    /// Text that the environment appended.
    Observation {
        /// Its tokens.
        ids: Vec<u32>,
        /// The occasion of it.
        kind: ObservationKind,
    },
}

impl Segment {
    /// The segment's tokens.
    pub fn ids(&self) -> &[u32] {
        match self {
            Self::Prompt { ids } | Self::Agent { ids, .. } | Self::Observation { ids, .. } => ids,
        }
    }
    /// True if the agent wrote it.
    pub fn is_agent(&self) -> bool {
        matches!(self, Self::Agent { .. })
    }
    /// True of the first segment.
    pub fn is_prompt(&self) -> bool {
        matches!(self, Self::Prompt { .. })
    }
}

/// The end of an episode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The agent wrote an answer (right or wrong).
    Answered,
    /// No answer in the last turn.
    TruncatedTurns,
    /// Prompt + response reached the limit, or the next observation would not have fitted.
    TruncatedLength,
    /// The prompt left no room for a single token; the agent never wrote.
    PromptTooLong,
    /// A search of this episode failed, and why. Excluded from training.
    RetrieverFailed(String),
}

/// One search of an episode: the query and what came back (for hit ratios and the viewer).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SearchRecord {
    /// Text between the tags, trimmed.
    pub query: String,
    /// Ids of the passages that came back, best first.
    pub passage_ids: Vec<String>,
    /// A gold answer occurs in the part of the passages that was shown.
    pub is_hit: bool,
    /// The passages were longer than `episode.max_obs_length`. Records written before it was kept
    /// read as false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_cut: bool,
    /// The retriever had no passage for the query. (An imported episode has no ids of passages that
    /// it did find.)
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub found_nothing: bool,
}

/// One question played to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Episode {
    /// The question that was played.
    pub question: Question,
    /// Prompt first, then agent and environment in order of time.
    pub segments: Vec<Segment>,
    /// End of the episode.
    pub status: Status,
    /// The agent's answer, trimmed; only where `status` is `Answered`.
    pub prediction: Option<String>,
    /// r_EM (method §2.1, paper Eq. 3).
    pub reward: f32,
    /// Executed searches, in order.
    pub searches: Vec<SearchRecord>,
    /// Turns without an answer or a search with a query.
    pub n_invalid_actions: usize,
}

impl Episode {
    /// All tokens, as the model saw them.
    pub fn ids(&self) -> Vec<u32> {
        self.segments.iter().flat_map(|s| s.ids().iter().copied()).collect()
    }
    /// Tokens of the leading prompt.
    pub fn prompt_len(&self) -> usize {
        self.segments.iter().take_while(|s| s.is_prompt()).map(|s| s.ids().len()).sum()
    }
    /// Tokens after the prompt.
    pub fn response_len(&self) -> usize {
        self.segments.iter().filter(|s| !s.is_prompt()).map(|s| s.ids().len()).sum()
    }
    /// Tokens the agent wrote, over which a loss is averaged.
    pub fn n_agent_tokens(&self) -> usize {
        self.segments.iter().filter(|s| s.is_agent()).map(|s| s.ids().len()).sum()
    }
    /// True if r_EM is 1.
    pub fn is_correct(&self) -> bool {
        self.reward > 0.5
    }
    /// True if the agent sent the retriever a query, whether it was answered or not.
    pub fn has_searched(&self) -> bool {
        !self.searches.is_empty() || self.lost_to().is_some()
    }
    /// The retriever's message, where its failure ended the episode.
    pub fn lost_to(&self) -> Option<&str> {
        match &self.status {
            Status::RetrieverFailed(why) => Some(why),
            _ => None,
        }
    }
    /// True if the episode may be trained on. Failures of the retriever are excluded (method §1.3),
    /// and prompts that did not fit (method §1.4).
    pub fn is_trainable(&self) -> bool {
        !matches!(self.status, Status::RetrieverFailed(_) | Status::PromptTooLong)
            && self.n_agent_tokens() > 0
    }

    /// Checks what every consumer of an episode relies on and JSON alone does not guarantee.
    /// # Errors
    /// Its fault.
    pub fn check(&self) -> Result<(), String> {
        if !self.segments.first().is_some_and(Segment::is_prompt) {
            return Err("the first segment is not the prompt".to_owned());
        }
        for (idx, segment) in self.segments.iter().enumerate() {
            if idx > 0 && segment.is_prompt() {
                return Err(format!("segment {idx} is a second prompt"));
            }
            if let Segment::Agent { ids, sample_log_probs, .. } = segment
                && !sample_log_probs.is_empty()
                && sample_log_probs.len() != ids.len()
            {
                return Err(format!(
                    "segment {idx} has {} ids but {} sample_log_probs",
                    ids.len(),
                    sample_log_probs.len()
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::drawn_episode;

    #[test]
    fn the_drawn_episode_has_the_counts_of_the_drawing() {
        let episode = drawn_episode();
        assert_eq!(episode.ids(), [2, 41, 42, 3, 5, 310, 6, 7, 402, 403, 88, 8, 9, 512, 10]);
        assert_eq!(
            (episode.prompt_len(), episode.response_len(), episode.n_agent_tokens()),
            (4, 11, 6)
        );
    }

    #[test]
    fn a_retriever_failure_is_not_trained_on() {
        let failed =
            Episode { status: Status::RetrieverFailed("timeout".to_owned()), ..drawn_episode() };
        assert!(drawn_episode().is_trainable() && !failed.is_trainable());
    }
}
