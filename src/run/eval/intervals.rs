//! The figures of an evaluation question by question, and how sure their means are.
use super::bootstrap::{Interval, interval, key_of, resampled_means};
use dgpo_core::rollout::{Episode, EpisodeStats, Status};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Figures of an episode that have a mean over questions; the names of [`EpisodeStats`].
pub const METRICS: [&str; 7] = [
    "em",
    "substring_em",
    "searches",
    "hit_ratio",
    "invalid_actions",
    "response_tokens",
    "agent_tokens",
];

/// The 95 % intervals of every metric.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Intervals {
    /// Of the mean over all questions together.
    pub all: BTreeMap<String, Interval>,
    /// Of the unweighted mean over data sets.
    pub average: BTreeMap<String, Interval>,
    /// Of each data set by its name. One whose episodes were all lost to the retriever has none.
    pub datasets: BTreeMap<String, BTreeMap<String, Interval>>,
}

/// [`METRICS`] of one episode, as its own [`EpisodeStats`] have them; `None` if the episode was
/// lost to the retriever and counts nowhere.
pub fn row(episode: &Episode) -> Option<[f64; METRICS.len()]> {
    if matches!(episode.status, Status::RetrieverFailed(_)) {
        return None;
    }
    let stats = EpisodeStats::of([episode]);
    Some([
        stats.em,
        stats.substring_em,
        stats.searches,
        stats.hit_ratio,
        stats.invalid_actions,
        stats.response_tokens,
        stats.agent_tokens,
    ])
}

/// Identity of a question: data set, id, wording.
pub type QuestionName<'a> = (&'a str, &'a str, &'a str);

/// The name of an episode's question.
pub fn name_of(episode: &Episode) -> QuestionName<'_> {
    let question = &episode.question;
    (&question.dataset, &question.id, &question.question)
}

/// Episodes by the data set of their question.
pub fn by_dataset(episodes: &[Episode]) -> BTreeMap<&str, Vec<&Episode>> {
    let mut by_name: BTreeMap<&str, Vec<&Episode>> = BTreeMap::new();
    for episode in episodes {
        by_name.entry(&episode.question.dataset).or_default().push(episode);
    }
    by_name
}

impl Intervals {
    /// Resamples the questions of each data set for itself; the average over data sets goes over
    /// these resamples.
    pub fn of(episodes: &[Episode], seed: u64) -> Self {
        let mut intervals = Self::default();
        let (mut means_of_datasets, mut sizes) = (Vec::new(), Vec::new());
        for (dataset, episodes) in by_dataset(episodes) {
            let rows: Vec<_> = episodes.into_iter().filter_map(row).collect();
            let means = resampled_means(&rows, key_of(seed, dataset));
            if !means.is_empty() {
                intervals.datasets.insert(dataset.to_owned(), of_means(&means));
                means_of_datasets.push(means);
                sizes.push(rows.len() as f64);
            }
        }
        intervals.average = of_means(&average(&means_of_datasets));
        intervals.all = of_means(&weighted(&means_of_datasets, &sizes));
        intervals
    }
}

/// The unweighted mean over data sets, resample by resample. -> `[N_RESAMPLES][M]`, or nothing
/// without data sets
pub fn average<const M: usize>(means_of_datasets: &[Vec<[f64; M]>]) -> Vec<[f64; M]> {
    weighted(means_of_datasets, &vec![1.0; means_of_datasets.len()])
}

fn weighted<const M: usize>(means_of_datasets: &[Vec<[f64; M]>], weights: &[f64]) -> Vec<[f64; M]> {
    let n_resamples = means_of_datasets.first().map_or(0, Vec::len);
    let of_resample = |r: usize| {
        let mut sums = [0.0; M];
        for (means, weight) in means_of_datasets.iter().zip(weights) {
            sums.iter_mut().zip(means[r]).for_each(|(sum, mean)| *sum += weight * mean);
        }
        sums.map(|sum| sum / weights.iter().sum::<f64>())
    };
    (0..n_resamples).map(of_resample).collect()
}

fn of_means(means: &[[f64; METRICS.len()]]) -> BTreeMap<String, Interval> {
    let of_metric = |(at, name): (usize, &&str)| {
        Some(((*name).to_owned(), interval(means.iter().map(|mean| mean[at]))?))
    };
    METRICS.iter().enumerate().filter_map(of_metric).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dgpo_core::testing::drawn_episode;

    /// `n_right` of `n` questions of a data set answered.
    fn played(dataset: &str, n: usize, n_right: usize) -> Vec<Episode> {
        let episode = |i: usize| {
            let mut episode =
                Episode { reward: f32::from(u8::from(i < n_right)), ..drawn_episode() };
            episode.question.dataset = dataset.to_owned();
            episode
        };
        (0..n).map(episode).collect()
    }

    #[test]
    fn a_row_holds_the_figures_of_the_drawn_episode() {
        // One search that hits, a right answer, eleven tokens of response, six of them the agent's.
        assert_eq!(row(&drawn_episode()), Some([1.0, 1.0, 1.0, 1.0, 0.0, 11.0, 6.0]));
    }

    #[test]
    fn episodes_lost_to_the_retriever_are_not_resampled() {
        let mut episodes = played("a", 10, 10);
        for lost in &mut episodes[..4] {
            *lost = Episode {
                status: Status::RetrieverFailed("503".to_owned()),
                reward: 0.0,
                ..lost.clone()
            };
        }
        assert_eq!(
            Intervals::of(&episodes, 0).datasets["a"]["em"],
            Interval { low: 1.0, high: 1.0 }
        );
        assert!(Intervals::of(&episodes[..4], 0).datasets.is_empty());
    }

    #[test]
    fn the_average_of_independent_data_sets_has_the_closed_forms_error() {
        let episodes = [played("a", 400, 120), played("b", 100, 50)].concat();
        let Interval { low, high } = Intervals::of(&episodes, 5).average["em"];
        // Var of the mean of two shares: (p_a (1 - p_a) / n_a + p_b (1 - p_b) / n_b) / 4.
        let error = ((0.3 * 0.7 / 400.0 + 0.25 / 100.0) / 4.0f64).sqrt();
        // Each end is known to 0.06 of the error (see `bootstrap`); five of them.
        assert!(
            ((0.4 - low) / error - 1.96).abs() < 0.3 && ((high - 0.4) / error - 1.96).abs() < 0.3,
            "{low} {high} {error}"
        );
    }

    #[test]
    fn the_mean_over_all_questions_has_the_closed_forms_error() {
        let episodes = [played("a", 400, 120), played("b", 100, 50)].concat();
        let Interval { low, high } = Intervals::of(&episodes, 5).all["em"];
        // 170 of 500; Var of a sum of shares weighted 4 to 1.
        let error = (0.64 * 0.3 * 0.7 / 400.0 + 0.04 * 0.25 / 100.0f64).sqrt();
        assert!(
            ((0.34 - low) / error - 1.96).abs() < 0.3 && ((high - 0.34) / error - 1.96).abs() < 0.3,
            "{low} {high} {error}"
        );
    }

    #[test]
    fn a_data_sets_interval_does_not_depend_on_its_neighbours() {
        let (a, b) = (played("a", 50, 20), played("b", 30, 3));
        let (alone, together) = (Intervals::of(&a, 1), Intervals::of(&[b, a.clone()].concat(), 1));
        assert_eq!(alone.datasets["a"], together.datasets["a"]);
        assert_eq!(alone.average, alone.datasets["a"]);
    }
}
