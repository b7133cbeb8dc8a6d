//! What a set of episodes says about the agent that played them: the figures of a training step and of an evaluation alike.
use super::{Episode, Status};
use crate::env::reward::substring_match;
use serde::{Deserialize, Serialize};

/// Means over episodes. Episodes whose retriever failed are counted in `retriever_failed` and in nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EpisodeStats {
    /// Episodes, failed ones included.
    pub n_episodes: usize,
    /// Exact match = mean outcome reward.
    pub em: f64,
    /// A gold answer occurs inside the prediction. Reported, never trained on.
    pub substring_em: f64,
    /// Executed searches an episode.
    pub searches: f64,
    /// Share of episodes one of whose searches brought a passage with a gold answer.
    pub hit_ratio: f64,
    /// Invalid actions an episode.
    pub invalid_actions: f64,
    /// Tokens behind the prompt, and those of them the agent wrote.
    pub response_tokens: f64,
    pub agent_tokens: f64,
    /// Shares of episodes by how they ended.
    pub answered: f64,
    pub truncated: f64,
    /// Share of all episodes that were lost to the retriever.
    pub retriever_failed: f64,
}

impl EpisodeStats {
    pub fn of<'e>(episodes: impl IntoIterator<Item = &'e Episode>) -> Self {
        let mut stats = Self::default();
        let mut n_failed = 0usize;
        for episode in episodes {
            stats.n_episodes += 1;
            if matches!(episode.status, Status::RetrieverFailed(_)) {
                n_failed += 1;
                continue;
            }
            let share = |is: bool| f64::from(u8::from(is));
            let prediction = episode.prediction.as_deref();
            stats.em += f64::from(episode.reward);
            stats.substring_em += share(prediction.is_some_and(|p| substring_match(p, &episode.question.golden_answers)));
            stats.searches += episode.searches.len() as f64;
            stats.hit_ratio += share(episode.searches.iter().any(|search| search.is_hit));
            stats.invalid_actions += episode.n_invalid_actions as f64;
            stats.response_tokens += episode.response_len() as f64;
            stats.agent_tokens += episode.n_agent_tokens() as f64;
            stats.answered += share(episode.status == Status::Answered);
            stats.truncated += share(matches!(episode.status, Status::TruncatedTurns | Status::TruncatedLength | Status::PromptTooLong));
        }
        let n_played = (stats.n_episodes - n_failed).max(1) as f64;
        for mean in [
            &mut stats.em,
            &mut stats.substring_em,
            &mut stats.searches,
            &mut stats.hit_ratio,
            &mut stats.invalid_actions,
            &mut stats.response_tokens,
            &mut stats.agent_tokens,
            &mut stats.answered,
            &mut stats.truncated,
        ] {
            *mean /= n_played;
        }
        stats.retriever_failed = n_failed as f64 / stats.n_episodes.max(1) as f64;
        stats
    }
}
