//! Is one model better than another, or were its questions easier? Two evaluations question by
//! question.
//!
//! Only questions that both played count: the differences of their figures are resampled (paired
//! bootstrap), which takes out how hard the questions are and leaves what the models do
//! differently. Questions are the same if data set, id and wording are; where a question was played
//! several times, the first plays are paired, then the second ones.
//!
//! An interval of a difference that excludes 0 says that other questions of the same kind would
//! most likely show the same sign. It says nothing about another seed of the training: that takes
//! runs.
use super::{
    bootstrap::{Interval, interval, key_of, p_value, resampled_means},
    intervals::{METRICS, QuestionName, average, name_of, row},
};
use dgpo_core::rollout::Episode;
use serde::Serialize;
use std::collections::BTreeMap;

const N_METRICS: usize = METRICS.len();

/// Two evaluations side by side.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// Questions that both played.
    pub n_paired: usize,
    /// Questions that one side alone played.
    pub n_only_left: usize,
    pub n_only_right: usize,
    /// Questions of both that one side or the other lost to the retriever; they are not among the
    /// paired ones.
    pub n_lost_to_retriever: usize,
    /// Paired questions on which both wrote the same text, token by token.
    pub n_identical: usize,
    /// Of the unweighted mean over data sets.
    pub average: BTreeMap<&'static str, Difference>,
    pub datasets: BTreeMap<String, DatasetDifferences>,
    /// Questions that the right side alone answered, and those that the left side alone answered
    /// (exact match): how many, and which.
    pub n_gained: usize,
    pub n_lost: usize,
    pub gained: Vec<Changed>,
    pub lost: Vec<Changed>,
}

/// The differences on one data set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DatasetDifferences {
    pub n_paired: usize,
    #[serde(flatten)]
    pub metrics: BTreeMap<&'static str, Difference>,
}

/// Right minus left of one figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Difference {
    pub left: f64,
    pub right: f64,
    pub difference: f64,
    /// 95 % interval of the difference over questions.
    #[serde(flatten)]
    pub interval: Interval,
    /// Fraction of the resamples whose difference does not lie on this one's side of 0; absent
    /// where there is no difference.
    #[serde(rename = "other_sign")]
    pub p_value: Option<f64>,
}

/// A question whose score changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Changed {
    pub dataset: String,
    pub id: String,
    pub question: String,
    pub golden_answers: Vec<String>,
    pub left: Side,
    pub right: Side,
}

/// Result of one side on a question.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Side {
    /// Absent where the episode ended without an answer.
    pub prediction: Option<String>,
    pub queries: Vec<String>,
    pub has_hit: bool,
}

impl Side {
    fn of(episode: &Episode) -> Self {
        Self {
            prediction: episode.prediction.clone(),
            queries: episode.searches.iter().map(|search| search.query.clone()).collect(),
            has_hit: episode.searches.iter().any(|search| search.is_hit),
        }
    }
}

/// Compares what two models did with the same questions; `seed` draws the resamples.
pub fn compare(left: &[Episode], right: &[Episode], seed: u64) -> Comparison {
    let (left_games, right_games) = (by_question(left), by_question(right));
    let mut comparison = Comparison {
        n_only_left: left_games.keys().filter(|name| !right_games.contains_key(*name)).count(),
        n_only_right: right_games.keys().filter(|name| !left_games.contains_key(*name)).count(),
        ..Comparison::default()
    };
    // [left, right] figures of each paired question.
    let mut rows: BTreeMap<&str, Vec<[f64; 2 * N_METRICS]>> = BTreeMap::new();
    for (name, &left) in &left_games {
        let Some(&right) = right_games.get(name) else { continue };
        let (Some(left_row), Some(right_row)) = (row(left), row(right)) else {
            comparison.n_lost_to_retriever += 1;
            continue;
        };
        let mut pair = [0.0; 2 * N_METRICS];
        pair[..N_METRICS].copy_from_slice(&left_row);
        pair[N_METRICS..].copy_from_slice(&right_row);
        rows.entry(&left.question.dataset).or_default().push(pair);
        comparison.n_paired += 1;
        comparison.n_identical += usize::from(left.ids() == right.ids());
        match (left.is_correct(), right.is_correct()) {
            (false, true) => comparison.gained.push(changed(left, right)),
            (true, false) => comparison.lost.push(changed(left, right)),
            _ => {}
        }
    }
    (comparison.n_gained, comparison.n_lost) = (comparison.gained.len(), comparison.lost.len());
    let (mut observed, mut resampled) = (Vec::new(), Vec::new());
    for (dataset, rows) in rows {
        let mean = mean_of(&rows);
        let means = resampled_means(&rows, key_of(seed, dataset));
        let metrics = differences(&mean, &means);
        comparison
            .datasets
            .insert(dataset.to_owned(), DatasetDifferences { n_paired: rows.len(), metrics });
        observed.push(vec![mean]);
        resampled.push(means);
    }
    if let Some(mean) = average(&observed).first() {
        comparison.average = differences(mean, &average(&resampled));
    }
    comparison
}

/// Episodes by question and how often that question was played before.
fn by_question(episodes: &[Episode]) -> BTreeMap<(QuestionName<'_>, usize), &Episode> {
    let mut n_played: BTreeMap<QuestionName<'_>, usize> = BTreeMap::new();
    let mut games = BTreeMap::new();
    for episode in episodes {
        let n = n_played.entry(name_of(episode)).or_default();
        games.insert((name_of(episode), *n), episode);
        *n += 1;
    }
    games
}

fn mean_of(rows: &[[f64; 2 * N_METRICS]]) -> [f64; 2 * N_METRICS] {
    let mut mean = [0.0; 2 * N_METRICS];
    for row in rows {
        mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
    mean.map(|sum| sum / rows.len() as f64)
}

/// Every metric's difference: `mean` as observed, `means` as resampled.
fn differences(
    mean: &[f64; 2 * N_METRICS],
    means: &[[f64; 2 * N_METRICS]],
) -> BTreeMap<&'static str, Difference> {
    let difference_of = |mean: &[f64; 2 * N_METRICS], at: usize| mean[N_METRICS + at] - mean[at];
    let of_metric = |(at, name): (usize, &&'static str)| {
        let difference = difference_of(mean, at);
        let resampled = || means.iter().map(|mean| difference_of(mean, at));
        let interval = interval(resampled())?;
        let p_value = p_value(difference, resampled());
        Some((
            *name,
            Difference {
                left: mean[at],
                right: mean[N_METRICS + at],
                difference,
                interval,
                p_value,
            },
        ))
    };
    METRICS.iter().enumerate().filter_map(of_metric).collect()
}

fn changed(left: &Episode, right: &Episode) -> Changed {
    let question = &left.question;
    Changed {
        dataset: question.dataset.clone(),
        id: question.id.clone(),
        question: question.question.clone(),
        golden_answers: question.golden_answers.clone(),
        left: Side::of(left),
        right: Side::of(right),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dgpo_core::{rollout::Status, testing::drawn_episode};

    /// Question number `id` of "nq", right or wrong.
    fn played(id: usize, is_right: bool) -> Episode {
        let mut episode = drawn_episode();
        episode.question.dataset = "nq".to_owned();
        episode.question.id = id.to_string();
        if !is_right {
            (episode.reward, episode.prediction) = (0.0, Some("Kel".to_owned()));
            let last = episode.segments.last_mut().expect("a turn");
            *last = dgpo_core::rollout::Segment::Agent {
                ids: vec![9, 513, 10],
                sample_log_probs: Vec::new(),
                stop: dgpo_core::engine::StopReason::StopString(1),
            };
        }
        episode
    }

    /// 300 questions, of which the left side answers the first 120, the right side those from 60 to
    /// 210.
    fn two_sides() -> (Vec<Episode>, Vec<Episode>) {
        (
            (0..300).map(|i| played(i, i < 120)).collect(),
            (0..300).map(|i| played(i, (60..210).contains(&i))).collect(),
        )
    }

    #[test]
    fn the_interval_of_a_paired_difference_has_the_closed_forms_width() {
        let (left, right) = two_sides();
        let em = compare(&left, &right, 1).average["em"];
        assert!(
            (em.left - 0.4).abs() < 1e-12
                && (em.right - 0.5).abs() < 1e-12
                && (em.difference - 0.1).abs() < 1e-12,
            "{em:?}"
        );
        // 90 questions gained and 60 lost of 300: Var = (0.3 + 0.2 - 0.1²) / 300.
        let error = (0.49f64 / 300.0).sqrt();
        let Interval { low, high } = em.interval;
        // Each end of a bootstrap interval is known to 0.06 of the error (see `bootstrap`), and a
        // step of the difference is 1/300 = 0.08 of it.
        assert!(
            ((0.1 - low) / error - 1.96).abs() < 0.4 && ((high - 0.1) / error - 1.96).abs() < 0.4,
            "{low} {high} {error}"
        );
        // Φ(-0.1 / error) = Φ(-2.474) = 0.0067 without the resamples of exactly 0; 2,000 draws know
        // it to 0.002.
        assert!((0.0..0.018).contains(&em.p_value.expect("a difference")), "{em:?}");
    }

    #[test]
    fn what_changed_is_listed_by_question() {
        let (left, right) = two_sides();
        let comparison = compare(&left, &right, 1);
        assert_eq!((comparison.n_paired, comparison.n_gained, comparison.n_lost), (300, 90, 60));
        assert_eq!(comparison.n_identical, 150);
        let gained = &comparison.gained[0];
        assert_eq!(
            (gained.left.prediction.as_deref(), gained.right.prediction.as_deref()),
            (Some("Kel"), Some("Vex"))
        );
        assert_eq!((&gained.left.queries, gained.left.has_hit), (&vec!["Nolmar".to_owned()], true));
    }

    #[test]
    fn a_model_differs_from_itself_in_nothing() {
        let (left, _) = two_sides();
        let comparison = compare(&left, &left, 0);
        assert_eq!(
            (comparison.n_identical, comparison.gained.len(), comparison.lost.len()),
            (300, 0, 0)
        );
        for difference in comparison.average.values() {
            assert_eq!(
                (difference.difference, difference.interval),
                (0.0, Interval { low: 0.0, high: 0.0 })
            );
            assert_eq!(difference.p_value, None);
        }
    }

    #[test]
    fn questions_of_one_side_alone_and_lost_ones_are_counted_and_not_compared() {
        let mut left: Vec<Episode> = (0..10).map(|i| played(i, true)).collect();
        let right: Vec<Episode> = (4..16).map(|i| played(i, false)).collect();
        left[5].status = Status::RetrieverFailed("503".to_owned());
        // The same id with another wording is another question.
        left[6].question.question = "Who wrote Nolmar?".to_owned();
        let comparison = compare(&left, &right, 0);
        assert_eq!(
            (
                comparison.n_only_left,
                comparison.n_only_right,
                comparison.n_lost_to_retriever,
                comparison.n_paired
            ),
            (5, 7, 1, 4)
        );
        assert_eq!(comparison.average["em"].difference, -1.0);
        assert!(compare(&left[..4], &right, 0).average.is_empty());
    }

    #[test]
    fn plays_of_one_question_are_paired_in_their_order() {
        let left = [played(0, false), played(0, true)];
        let right = [played(0, false), played(0, true), played(0, true)];
        let comparison = compare(&left, &right, 0);
        assert_eq!(
            (comparison.n_paired, comparison.n_identical, comparison.n_only_right),
            (2, 2, 1)
        );
    }
}
