//! Figures of a model from its greedy episodes on held-out questions (method §7.3), and the summary
//! of a run.
//!
//! | file | answers |
//! |---|---|
//! | this one | exact match, searches, hits of each data set; the summary of a run |
//! | [`bootstrap`], [`intervals`] | how sure are those means? |
//! | [`arcap`] | which capability is it: reading, asking, or deciding what to do? (method §8) |
//! | [`compare`] | is one model better than another on the same questions, and on which? |
//! | [`retrieval`] | does a search find what a question needs, whoever asks? |
pub mod arcap;
pub mod bootstrap;
pub mod compare;
pub mod intervals;
pub mod retrieval;

use crate::config::Stage;
use arcap::Arcap;
use dgpo_core::{
    rollout::{Episode, EpisodeStats},
    settings::Phase,
};
use intervals::{Intervals, by_dataset};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The figures of one model on the test questions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// Over all questions together.
    #[serde(flatten)]
    pub all: EpisodeStats,
    /// Unweighted mean of the data sets' EM, as the paper's tables average (method §7.3).
    pub average_em: f64,
    /// Each data set by its name.
    pub datasets: BTreeMap<String, EpisodeStats>,
    /// 95 % intervals of these figures over the questions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intervals: Option<Intervals>,
    /// The capabilities one by one, where the recipe asks for them (`eval.arcap`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arcap: Option<Arcap>,
}

impl Figures {
    /// Groups episodes by their question's data set.
    pub fn of(episodes: &[Episode]) -> Self {
        let datasets: BTreeMap<String, EpisodeStats> = by_dataset(episodes)
            .into_iter()
            .map(|(name, episodes)| (name.to_owned(), EpisodeStats::of(episodes)))
            .collect();
        let average_em =
            datasets.values().map(|stats| stats.em).sum::<f64>() / datasets.len().max(1) as f64;
        Self { all: EpisodeStats::of(episodes), average_em, datasets, intervals: None, arcap: None }
    }
}

/// Names of the models a run evaluates, in the order of its tables: what it has from the start,
/// then what a phase leaves, by the phase's name.
pub const MODELS: [&str; 5] = ["student", "teacher", "kd", "gkd", "rl"];

/// Those of a stage, in the order of its phases: the last one is what the run was for.
pub fn models_of(stage: Stage) -> Vec<&'static str> {
    MODELS[..2].iter().copied().chain(stage.training_phases().map(Phase::as_str)).collect()
}

/// summary.json: the final figures of a run. Models that were not evaluated are absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student: Option<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kd: Option<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gkd: Option<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rl: Option<Figures>,
    pub seed: u64,
    /// Seconds of work, over all processes of the run.
    pub wall_s: f64,
}

impl Summary {
    /// The models in the order of [`MODELS`], with their figures.
    pub fn rows(&self) -> [(&'static str, Option<&Figures>); MODELS.len()] {
        let figures = [&self.student, &self.teacher, &self.kd, &self.gkd, &self.rl];
        std::array::from_fn(|at| (MODELS[at], figures[at].as_ref()))
    }

    /// Enters the figures of one of [`MODELS`].
    /// # Panics
    /// If it is none of them.
    pub fn set(&mut self, model: &str, figures: Figures) {
        let place = match model {
            "student" => &mut self.student,
            "teacher" => &mut self.teacher,
            "kd" => &mut self.kd,
            "gkd" => &mut self.gkd,
            "rl" => &mut self.rl,
            other => panic!("a run evaluates no model called {other}"),
        };
        *place = Some(figures);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn the_summary_has_the_keys_other_tools_read() {
        let kd = Figures {
            all: EpisodeStats { em: 0.5, ..EpisodeStats::default() },
            ..Figures::default()
        };
        let summary = Summary { kd: Some(kd), seed: 3, wall_s: 1.5, ..Summary::default() };
        let written: Value = serde_json::to_value(&summary).expect("plain figures");
        assert_eq!(
            (&written["kd"]["em"], &written["seed"], &written["wall_s"]),
            (&json!(0.5), &json!(3), &json!(1.5))
        );
        assert_eq!(written.get("rl"), None);
        assert_eq!(serde_json::from_value::<Summary>(written).expect("what was written"), summary);
    }
    #[test]
    fn every_model_of_every_stage_is_entered_in_its_row() {
        for stage in [Stage::Pipeline, Stage::DistillGkd, Stage::RlDistill] {
            for model in models_of(stage) {
                let mut summary = Summary::default();
                summary.set(model, Figures { average_em: 0.5, ..Figures::default() });
                let entered: Vec<&str> = summary
                    .rows()
                    .into_iter()
                    .filter_map(|(name, figures)| figures.map(|_| name))
                    .collect();
                assert_eq!(entered, [model]);
            }
        }
        assert_eq!(models_of(Stage::RlDistill), ["student", "teacher", "rl", "kd"]);
    }
}
