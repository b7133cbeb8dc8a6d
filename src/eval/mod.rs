//! Exact match per data set: greedy episodes on held-out questions.
use crate::rollout::{Episode, EpisodeStats};
use serde::{Deserialize, Serialize};

/// One data set's row of the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetScore {
    pub dataset: String,
    #[serde(flatten)]
    pub stats: EpisodeStats,
}

/// One model's evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Over all questions together.
    #[serde(flatten)]
    pub all: EpisodeStats,
    /// Unweighted mean of the data sets' EM, as the paper's tables average.
    pub average_em: f64,
    pub datasets: Vec<DatasetScore>,
}

impl Evaluation {
    /// Groups episodes by their question's data set, in order of first appearance.
    pub fn of(episodes: &[Episode]) -> Self {
        let mut names: Vec<&str> = Vec::new();
        for episode in episodes {
            if !names.contains(&episode.question.dataset.as_str()) {
                names.push(&episode.question.dataset);
            }
        }
        let datasets: Vec<DatasetScore> = names
            .into_iter()
            .map(|name| DatasetScore {
                dataset: name.to_owned(),
                stats: EpisodeStats::of(episodes.iter().filter(|episode| episode.question.dataset == name)),
            })
            .collect();
        let average_em = datasets.iter().map(|d| d.stats.em).sum::<f64>() / datasets.len().max(1) as f64;
        Self { all: EpisodeStats::of(episodes), average_em, datasets }
    }
}
