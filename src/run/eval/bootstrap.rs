//! Intervals of means over questions. The percentile bootstrap: draw as many questions again, with
//! replacement, take the mean, [`N_RESAMPLES`] times; the middle 95 % of those means is the
//! interval.
//!
//! It says how much the figure would move with other questions of the same kind. It knows nothing
//! of other seeds of the training, unless several were made: [`resampled_over_runs`] draws them
//! again too.
//!
//! Data sets are resampled each for itself, and a draw is a function of (seed, data set, resample,
//! place): an interval depends neither on which other data sets were evaluated nor on their order,
//! and two models on the same questions are resampled alike. Metrics of one question are drawn
//! together: one pass over the questions serves them all (2,000 resamples of the seven published
//! test sets are 100 million draws, about a second).
//!
//! # Source
//! Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13; paired comparison as
//! in Koehn, "Statistical significance tests for machine translation evaluation" (2004).
use dgpo_core::rng::{Key, Purpose};
use serde::{Deserialize, Serialize};

/// Enough that an interval's ends move by a tenth of its half width from seed to seed.
pub const N_RESAMPLES: usize = 2000;

/// Share of the resampled means inside an interval.
pub const CONFIDENCE: f64 = 0.95;

/// Interval of the mean of resampled questions in [`CONFIDENCE`] of the cases.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

/// A mean over questions and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    pub value: f64,
    #[serde(flatten)]
    pub interval: Interval,
}

/// The key that resamples a data set.
pub fn key_of(seed: u64, dataset: &str) -> Key {
    dataset.bytes().fold(Key::new(seed, Purpose::Bootstrap), |key, byte| key.fold(u64::from(byte)))
}

/// Means of `M` metrics over each of [`N_RESAMPLES`] resamples of the questions; none without
/// questions.
/// # Shapes
/// rows `[n_questions][M]` -> `[N_RESAMPLES][M]`
pub fn resampled_means<const M: usize>(rows: &[[f64; M]], key: Key) -> Vec<[f64; M]> {
    if rows.is_empty() {
        return Vec::new();
    }
    let resample = |r: usize| {
        let key = key.fold(r as u64);
        let mut sums = [0.0; M];
        for place in 0..rows.len() {
            let drawn = &rows[key.below(place as u64, rows.len())];
            sums.iter_mut().zip(drawn).for_each(|(sum, value)| *sum += value);
        }
        sums.map(|sum| sum / rows.len() as f64)
    };
    (0..N_RESAMPLES).map(resample).collect()
}

/// Means over each of [`N_RESAMPLES`] resamples of runs and of questions: as many runs as there
/// are, with replacement, and the same drawn questions of each. `of_runs` decides which runs,
/// `of_questions` which questions: what shares a key is drawn together. None without runs or
/// without questions.
/// # Shapes
/// runs `[n_runs][n_questions]` -> `[N_RESAMPLES]`
/// # Panics
/// If the runs have different numbers of questions.
pub fn resampled_over_runs(runs: &[Vec<f64>], of_runs: Key, of_questions: Key) -> Vec<f64> {
    let n_questions = runs.first().map_or(0, Vec::len);
    assert!(runs.iter().all(|run| run.len() == n_questions), "every run has the same questions");
    if n_questions == 0 {
        return Vec::new();
    }
    let resample = |r: usize| {
        let (of_runs, of_questions) = (of_runs.fold(r as u64), of_questions.fold(r as u64));
        let drawn: Vec<&Vec<f64>> =
            (0..runs.len()).map(|place| &runs[of_runs.below(place as u64, runs.len())]).collect();
        let question = |place: usize| of_questions.below(place as u64, n_questions);
        let sum: f64 = (0..n_questions)
            .map(question)
            .map(|question| drawn.iter().map(|run| run[question]).sum::<f64>())
            .sum();
        sum / (n_questions * runs.len()) as f64
    };
    (0..N_RESAMPLES).map(resample).collect()
}

/// The mean of each metric with its interval; `None` without questions.
pub fn estimates<const M: usize>(rows: &[[f64; M]], key: Key) -> Option<[Estimate; M]> {
    let means = resampled_means(rows, key);
    let estimate = |metric: usize| {
        let value = rows.iter().map(|row| row[metric]).sum::<f64>() / rows.len() as f64;
        Some(Estimate { value, interval: interval(means.iter().map(|mean| mean[metric]))? })
    };
    let all: Option<Vec<Estimate>> = (0..M).map(estimate).collect();
    all?.try_into().ok()
}

/// The middle [`CONFIDENCE`] of the values, by linear interpolation between order statistics;
/// `None` without values.
pub fn interval(values: impl IntoIterator<Item = f64>) -> Option<Interval> {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let quantile = |share: f64| {
        let at = share * last as f64;
        let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        below + (above - below) * at.fract()
    };
    let tail = (1.0 - CONFIDENCE) / 2.0;
    Some(Interval { low: quantile(tail), high: quantile(1.0 - tail) })
}

/// Bootstrap p-value of a difference: the fraction of resampled ones that do not lie on the side of
/// the observed one (0 lies on neither); `None` where there is no difference to doubt.
pub fn p_value(observed: f64, resampled: impl IntoIterator<Item = f64>) -> Option<f64> {
    if observed == 0.0 {
        return None;
    }
    let (mut n, mut n_other) = (0usize, 0usize);
    for difference in resampled {
        n += 1;
        n_other += usize::from(difference * observed <= 0.0);
    }
    (n > 0).then(|| n_other as f64 / n as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n_right` ones among `n` answers.
    fn answers(n: usize, n_right: usize) -> Vec<[f64; 1]> {
        (0..n).map(|i| [f64::from(u8::from(i < n_right))]).collect()
    }

    /// Standard error of a share: sqrt(p (1 - p) / n).
    fn binomial_error(n: usize, n_right: usize) -> f64 {
        let p = n_right as f64 / n as f64;
        (p * (1.0 - p) / n as f64).sqrt()
    }

    #[test]
    fn the_spread_of_a_share_is_the_binomial_standard_error() {
        for (n, n_right) in [(400, 120), (125, 40), (3610, 1400)] {
            let means: Vec<f64> = resampled_means(&answers(n, n_right), key_of(3, "nq"))
                .iter()
                .map(|mean| mean[0])
                .collect();
            let centre = means.iter().sum::<f64>() / means.len() as f64;
            let spread = (means.iter().map(|mean| (mean - centre).powi(2)).sum::<f64>()
                / means.len() as f64)
                .sqrt();
            let expected = binomial_error(n, n_right);
            // A standard deviation of 2,000 normal draws is known to 1/sqrt(4,000) = 1.6 %, their
            // mean to 1/sqrt(2,000) = 2.2 % of it; five of each.
            assert!((spread / expected - 1.0).abs() < 0.08, "{n}: {spread} {expected}");
            assert!((centre - n_right as f64 / n as f64).abs() < 0.112 * expected, "{n}: {centre}");
        }
    }

    #[test]
    fn an_interval_of_a_share_is_1_96_standard_errors_wide_on_each_side() {
        let (n, n_right) = (3610, 1400);
        let [Estimate { value, interval }] =
            estimates(&answers(n, n_right), key_of(0, "nq")).expect("questions");
        let error = binomial_error(n, n_right);
        assert_eq!(value, n_right as f64 / n as f64);
        for side in [value - interval.low, interval.high - value] {
            // The 2.5 % quantile of 2,000 normal draws is known to sqrt(0.025 · 0.975 / 2000) /
            // φ(1.96) = 0.06 of their deviation; five of them.
            assert!((side / error - 1.96).abs() < 0.3, "{side} {error}");
        }
    }

    #[test]
    fn an_interval_depends_on_the_seed_and_the_data_set_alone() {
        // Values without ties: the ends of two intervals of a share often fall on the same count.
        let rows: Vec<[f64; 1]> = (0..200).map(|i| [f64::from(i).sqrt()]).collect();
        let interval_of =
            |seed, dataset| estimates(&rows, key_of(seed, dataset)).expect("questions");
        assert_eq!(interval_of(1, "nq"), interval_of(1, "nq"));
        assert_ne!(interval_of(1, "nq"), interval_of(2, "nq"));
        assert_ne!(interval_of(1, "nq"), interval_of(1, "qn"));
    }

    #[test]
    fn metrics_of_one_question_are_drawn_together() {
        let rows: Vec<[f64; 2]> =
            (0..50).map(|i| [f64::from(i % 7), 3.0 * f64::from(i % 7)]).collect();
        assert!(
            resampled_means(&rows, key_of(0, "x"))
                .iter()
                .all(|[one, three]| (3.0 * one - three).abs() < 1e-9)
        );
    }

    #[test]
    fn over_runs_the_spread_is_that_of_runs_and_questions_together() {
        let runs: Vec<Vec<f64>> = (0..8)
            .map(|run| (0..200).map(|q| f64::from(run) + f64::from(q % 5)).collect())
            .collect();
        let means = resampled_over_runs(&runs, key_of(0, "runs"), key_of(0, "x"));
        let centre = means.iter().sum::<f64>() / means.len() as f64;
        let variance =
            means.iter().map(|mean| (mean - centre).powi(2)).sum::<f64>() / means.len() as f64;
        // Variances of 0..8 and of 0..5, each over the number of its draws.
        let expected = (64.0 - 1.0) / 12.0 / 8.0 + (25.0 - 1.0) / 12.0 / 200.0;
        assert!((variance / expected - 1.0).abs() < 0.16, "{variance} {expected}");
        assert!((centre - 5.5).abs() < 0.112 * expected.sqrt(), "{centre}");
    }

    #[test]
    fn of_one_run_only_the_questions_are_drawn() {
        let rows = answers(60, 20);
        let run: Vec<f64> = rows.iter().map(|row| row[0]).collect();
        let means = resampled_over_runs(&[run], key_of(0, "runs"), key_of(0, "x"));
        assert_eq!(
            means,
            resampled_means(&rows, key_of(0, "x")).iter().map(|mean| mean[0]).collect::<Vec<_>>()
        );
        assert!(resampled_over_runs(&[], key_of(0, "runs"), key_of(0, "x")).is_empty());
    }

    #[test]
    fn what_never_varies_has_an_interval_of_no_width() {
        let [always] = estimates(&answers(30, 30), key_of(0, "x")).expect("questions");
        assert_eq!((always.value, always.interval), (1.0, Interval { low: 1.0, high: 1.0 }));
        assert_eq!((estimates::<1>(&[], key_of(0, "x")), interval([])), (None, None));
    }

    #[test]
    fn quantiles_lie_between_order_statistics() {
        // 0..=100: the 2.5 % quantile of 101 equally spaced values is 2.5.
        let Interval { low, high } = interval((0..=100).map(f64::from)).expect("values");
        assert!((low - 2.5).abs() < 1e-9 && (high - 97.5).abs() < 1e-9, "{low} {high}");
    }

    #[test]
    fn the_p_value_counts_everything_not_on_the_observed_side() {
        let resampled = [0.1, -0.2, 0.0, 0.3];
        assert_eq!(p_value(0.05, resampled), Some(0.5));
        assert_eq!(p_value(-0.05, resampled), Some(0.75));
        assert_eq!(p_value(0.0, resampled), None);
    }
}
