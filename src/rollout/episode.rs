//! What happened in one episode, token by token, with its author.
use crate::{data::questions::Question, engine::StopReason};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObservationKind {
    Information,
    InvalidAction,
}

/// A run of tokens by one author. The ids of all segments in order are exactly what the model saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "author", rename_all = "snake_case")]
pub enum Segment {
    Prompt { ids: Vec<u32> },
    Agent { ids: Vec<u32>, sample_log_probs: Vec<f32>, stop: StopReason },
    Observation { ids: Vec<u32>, kind: ObservationKind },
}
impl Segment {
    pub fn ids(&self) -> &[u32] {
        match self {
            Self::Prompt { ids } | Self::Agent { ids, .. } | Self::Observation { ids, .. } => ids,
        }
    }
    pub fn is_agent(&self) -> bool {
        matches!(self, Self::Agent { .. })
    }
    pub fn is_prompt(&self) -> bool {
        matches!(self, Self::Prompt { .. })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Answered,
    TruncatedTurns,
    TruncatedLength,
    PromptTooLong,
    RetrieverFailed(String),
}

/// One search of an episode: the query and what came back (for hit ratios and the viewer).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SearchRecord {
    pub query: String,
    pub passage_ids: Vec<String>,
    /// A gold answer occurs in one of the passages.
    pub is_hit: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Episode {
    pub question: Question,
    pub segments: Vec<Segment>,
    pub status: Status,
    pub prediction: Option<String>,
    /// r_EM (method §2).
    pub reward: f32,
    pub searches: Vec<SearchRecord>,
    pub n_invalid_actions: usize,
}
impl Episode {
    pub fn ids(&self) -> Vec<u32> {
        self.segments.iter().flat_map(|s| s.ids().iter().copied()).collect()
    }
    /// Tokens of the leading prompt.
    pub fn prompt_len(&self) -> usize {
        self.segments.iter().take_while(|s| s.is_prompt()).map(|s| s.ids().len()).sum()
    }
    /// Tokens behind the prompt.
    pub fn response_len(&self) -> usize {
        self.segments.iter().filter(|s| !s.is_prompt()).map(|s| s.ids().len()).sum()
    }
    pub fn n_agent_tokens(&self) -> usize {
        self.segments.iter().filter(|s| s.is_agent()).map(|s| s.ids().len()).sum()
    }
    pub fn is_correct(&self) -> bool {
        self.reward > 0.5
    }
    /// Whether the episode may be trained on (method §1: retriever failures are excluded; so is a prompt that did not fit).
    pub fn is_trainable(&self) -> bool {
        !matches!(self.status, Status::RetrieverFailed(_) | Status::PromptTooLong) && self.n_agent_tokens() > 0
    }
}
