//! Does what the paper found hold here? Each of its orderings, against our own figures.
//!
//! An ordering says that one figure is above another. Ours is the mean difference over seeds.
//! Beside it stand in how many seeds it has the paper's sign, its standard deviation over seeds,
//! and a 95 % interval: both sides answered the same questions from the same seeds, so their
//! differences are resampled, seeds and questions (paired bootstrap on two levels,
//! `dgpo_run::eval::bootstrap`).
//!
//! The verdict is the interval's: it holds above 0, is reversed below, and is within noise around
//! 0. Of one seed it says only what other questions would show of the same models. Of a few it is
//! too narrow, as a bootstrap of a few draws is: the deviation and the signs say how far to trust
//! it.
use super::{
    paper,
    results::{Score, SeedResults},
    rows::{ModelPair, name},
};
use dgpo_run::eval::bootstrap::{Interval, interval, key_of, resampled_over_runs};
use std::collections::BTreeMap;

/// Draws the resamples. Fixed: the page is a function of the results.
const BOOTSTRAP_SEED: u64 = 0;

/// One side of an ordering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderingSide {
    /// Row of the results.
    pub row: String,
    pub of: Measure,
}

/// Subject of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Exact match, the unweighted mean over data sets.
    Average,
    /// Exact match with the gold passages given, on the data set with that many hops.
    WithoutThinking(usize),
    WithThinking(usize),
}

/// Something the paper found.
#[derive(Clone, Debug, PartialEq)]
pub struct Ordering {
    pub text: String,
    pub source: &'static str,
    /// The paper's difference, above 0.
    pub paper: f64,
    pub above: OrderingSide,
    pub below: OrderingSide,
}

/// Verdict on it here.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Difference of each seed in which both rows were measured.
    pub differences: Vec<f64>,
    pub mean: f64,
    /// Over seeds; `None` of one seed.
    pub deviation: Option<f64>,
    /// Over seeds and questions.
    pub interval: Interval,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Holds,
    WithinNoise,
    Reversed,
    NotMeasured,
}

impl Verdict {
    pub const ALL: [Self; 4] = [Self::Holds, Self::WithinNoise, Self::Reversed, Self::NotMeasured];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::WithinNoise => "within noise",
            Self::Reversed => "reversed",
            Self::NotMeasured => "not measured",
        }
    }
}

impl Found {
    /// Seeds whose difference has the paper's sign.
    pub fn n_holding(&self) -> usize {
        self.differences.iter().filter(|difference| **difference > 0.0).count()
    }
}

pub fn verdict(found: Option<&Found>) -> Verdict {
    match found {
        None => Verdict::NotMeasured,
        Some(found) if found.interval.low > 0.0 => Verdict::Holds,
        Some(found) if found.interval.high < 0.0 => Verdict::Reversed,
        Some(_) => Verdict::WithinNoise,
    }
}

/// The orderings that the paper reports.
pub fn all() -> Vec<Ordering> {
    const TABLE_2: &[(&str, &str)] = &[
        ("dgpo", "ppo"),
        ("dgpo", "sft-ppo"),
        ("dgpo", "gkd"),
        ("dgpo", "seqkd"),
        ("dgpo", "kd"),
        ("dgpo", "distillm"),
        ("dgpo", "taid"),
        ("teacher", "dgpo"),
        ("kd", "seqkd"),
        ("kd", "sft-ppo"),
        ("kd", "gkd"),
        ("kd", "ppo"),
        ("kd", "distillm"),
        ("kd", "taid"),
        ("distillm", "taid"),
        ("seqkd", "gkd"),
        ("seqkd", "ppo"),
        ("sft-ppo", "seqkd"),
        ("ppo", "student"),
    ];
    const TABLE_6: &[(&str, &str)] = &[
        ("dgpo", "dgpo-no-kd"),
        ("dgpo", "dgpo-uniform-kl"),
        ("dgpo", "dgpo-no-teacher"),
        ("dgpo", "ppo-kd"),
        ("dgpo-no-kd", "dgpo-uniform-kl"),
        ("dgpo-uniform-kl", "dgpo-no-teacher"),
        ("dgpo-no-teacher", "ppo-kd"),
    ];
    const TABLE_5: &[(&str, &str)] = &[
        ("dgpo", "student"),
        ("dgpo", "ppo"),
        ("dgpo", "kd"),
        ("teacher", "dgpo"),
        ("kd", "student"),
        ("ppo", "student"),
    ];
    const TABLE_3: &[(&str, &str)] =
        &[("teacher", "dgpo"), ("dgpo", "kd"), ("dgpo", "ppo"), ("kd", "ppo"), ("ppo", "student")];
    let line =
        |row: &str| paper::line_of(row).expect("every row of the lists above stands in a table");
    let side = |pair, row: &str| OrderingSide { row: name(pair, row), of: Measure::Average };
    let mut orderings = Vec::new();
    for (source, pairs) in [("Table 2", TABLE_2), ("Table 6", TABLE_6)] {
        orderings.extend(pairs.iter().map(|&(above, below)| Ordering {
            text: format!("{} > {}", line(above).title, line(below).title),
            source,
            paper: line(above).average() - line(below).average(),
            above: side(ModelPair::Qwen, above),
            below: side(ModelPair::Qwen, below),
        }));
    }
    let of_llama = |row: &str| {
        paper::TABLE_3.iter().find(|(known, ..)| *known == row).expect("a row of Table 3")
    };
    orderings.extend(TABLE_3.iter().map(|&(above, below)| {
        let ((_, above_title, above_em), (_, below_title, below_em)) =
            (of_llama(above), of_llama(below));
        Ordering {
            text: format!("{above_title} > {below_title} (Llama)"),
            source: "Table 3",
            paper: above_em[2] - below_em[2],
            above: side(ModelPair::Llama, above),
            below: side(ModelPair::Llama, below),
        }
    }));
    orderings.extend(
        TABLE_5
            .iter()
            .flat_map(|pair| [(pair, 1), (pair, 2)])
            .map(|(&(one, other), hops)| referencing([one, other], hops)),
    );
    orderings.extend(
        paper::TABLE_5
            .iter()
            .flat_map(|line| [(line, 1), (line, 2)])
            .map(|(line, hops)| thinking(line, hops)),
    );
    orderings
}

/// The paper's data set and ours.
fn set_title(hops: usize) -> &'static str {
    if hops == 1 { "NQ / 1 hop" } else { "MuSiQue / 2 hops" }
}

/// Which of two models answers better from given passages, without thinking.
fn referencing(rows: [&str; 2], hops: usize) -> Ordering {
    let line =
        |row: &str| paper::TABLE_5.iter().find(|line| line.row == row).expect("a row of Table 5");
    let em = |line: &paper::Referencing| line.em[2 * hops - 2];
    let [mut above, mut below] = rows.map(line);
    if em(above) < em(below) {
        (above, below) = (below, above);
    }
    let side = |line: &paper::Referencing| OrderingSide {
        row: name(ModelPair::Qwen, line.row),
        of: Measure::WithoutThinking(hops),
    };
    Ordering {
        text: format!(
            "{} answers given passages better than {}, {}",
            above.title,
            below.title,
            set_title(hops)
        ),
        source: "Table 5",
        paper: em(above) - em(below),
        above: side(above),
        below: side(below),
    }
}

/// Gain that thinking brings a model to answer from given passages.
fn thinking(line: &paper::Referencing, hops: usize) -> Ordering {
    let [without, with] = [line.em[2 * hops - 2], line.em[2 * hops - 1]];
    let side = |of| OrderingSide { row: name(ModelPair::Qwen, line.row), of };
    let (with_side, without_side) =
        (side(Measure::WithThinking(hops)), side(Measure::WithoutThinking(hops)));
    let set = set_title(hops);
    let (word, paper, above, below) = match with > without {
        true => ("better", with - without, with_side, without_side),
        false => ("worse", without - with, without_side, with_side),
    };
    Ordering {
        text: format!("{} answers given passages {word} with thinking, {set}", line.title),
        source: "Table 5",
        paper,
        above,
        below,
    }
}

/// Compares an ordering with the results of seeds; `None` where no seed has both sides, or has them
/// on other questions.
pub fn found(ordering: &Ordering, seeds: &[&SeedResults]) -> Option<Found> {
    let mut differences = Vec::new();
    // The difference of each question in each seed, by data set.
    let mut by_question: BTreeMap<String, Vec<Vec<f64>>> = BTreeMap::new();
    for results in seeds {
        let (Some(above), Some(below)) =
            (answers(results, &ordering.above), answers(results, &ordering.below))
        else {
            continue;
        };
        let mut means = Vec::new();
        for (set, above) in &above {
            let below = below.get(set)?;
            let seeds = by_question.entry(set.clone()).or_default();
            if above.len() != below.len()
                || seeds.first().is_some_and(|first| first.len() != above.len())
            {
                return None;
            }
            let difference: Vec<f64> =
                above.iter().zip(below).map(|(above, below)| above - below).collect();
            means.push(mean(&difference));
            seeds.push(difference);
        }
        differences.push(mean(&means));
    }
    // A seed that had another data set than the others cannot be averaged with them.
    if by_question.values().any(|seeds| seeds.len() != differences.len()) {
        return None;
    }
    let of_seeds = key_of(BOOTSTRAP_SEED, "seeds");
    let resampled: Vec<Vec<f64>> = by_question
        .iter()
        .map(|(set, seeds)| resampled_over_runs(seeds, of_seeds, key_of(BOOTSTRAP_SEED, set)))
        .collect();
    let n_resamples = resampled.iter().map(Vec::len).min()?;
    let averages = (0..n_resamples)
        .map(|at| mean(&resampled.iter().map(|means| means[at]).collect::<Vec<_>>()));
    Some(Found {
        mean: mean(&differences),
        deviation: deviation(&differences),
        interval: interval(averages)?,
        differences,
    })
}

/// Correctness of each answer, 0 or 1, by data set; `None` where it was not measured.
fn answers(results: &SeedResults, side: &OrderingSide) -> Option<BTreeMap<String, Vec<f64>>> {
    let score = &results.rows.get(&side.row)?.done()?.score;
    let numbers =
        |marks: &str| marks.bytes().map(|mark| f64::from(mark == b'1')).collect::<Vec<f64>>();
    let given = |hops: usize, marks: fn(&super::results::SetArcap) -> &String| {
        let set = set_of(score, hops)?;
        let marks = marks(score.datasets[&set].arcap.as_ref()?);
        Some([(set, numbers(marks))].into())
    };
    let answers: BTreeMap<String, Vec<f64>> = match side.of {
        Measure::Average => score
            .datasets
            .iter()
            .map(|(set, score)| (set.clone(), numbers(&score.answered)))
            .collect(),
        Measure::WithoutThinking(hops) => given(hops, |arcap| &arcap.answered_without)?,
        Measure::WithThinking(hops) => given(hops, |arcap| &arcap.answered_with)?,
    };
    (!answers.is_empty() && answers.values().all(|marks| !marks.is_empty())).then_some(answers)
}

/// The tiny world's data set of questions with that many hops.
pub fn set_of(score: &Score, hops: usize) -> Option<String> {
    score.datasets.keys().find(|name| name.ends_with(&format!("{hops}hop"))).cloned()
}

pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Standard deviation of a sample; `None` of fewer than two values.
pub fn deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::reproduce::results::{Done, Outcome, SetArcap, SetScore};

    /// A finished row that answers the first `one` of 100 one-hop and the first `two` of 50 two-hop
    /// questions.
    pub(crate) fn answering(one: usize, two: usize) -> Outcome {
        let set = |n: usize, n_right: usize| {
            let answered: String = (0..n).map(|i| if i < n_right { '1' } else { '0' }).collect();
            SetScore { em: n_right as f64 / n as f64, n_questions: n, answered, arcap: None }
        };
        let datasets: BTreeMap<String, SetScore> =
            [("tiny-1hop".to_owned(), set(100, one)), ("tiny-2hop".to_owned(), set(50, two))]
                .into();
        let score = Score {
            average_em: (one as f64 / 100.0 + two as f64 / 50.0) / 2.0,
            datasets,
            n_questions: 150,
            ..Score::default()
        };
        Outcome::Done(Box::new(Done { score, ..Done::default() }))
    }

    pub(crate) fn seed(seed: u64, rows: &[(&str, Outcome)]) -> SeedResults {
        SeedResults {
            seed,
            settings: Vec::new(),
            rows: rows
                .iter()
                .map(|(row, outcome)| (format!("qwen-{row}"), outcome.clone()))
                .collect(),
        }
    }

    fn ordering(text: &str) -> Ordering {
        let all = all();
        let known: Vec<&str> = all.iter().map(|ordering| ordering.text.as_str()).collect();
        all.iter()
            .find(|ordering| ordering.text == text)
            .unwrap_or_else(|| panic!("no {text} in {known:?}"))
            .clone()
    }

    #[test]
    fn every_ordering_is_one_that_the_papers_numbers_show() {
        for ordering in all() {
            assert!(ordering.paper > 0.0, "{ordering:?}");
        }
        let dgpo_kd = ordering("DGPO > KD");
        assert!((dgpo_kd.paper - (0.329 - 0.298)).abs() < 1e-12);
    }

    #[test]
    fn an_ordering_that_all_questions_show_holds() {
        let seeds = [
            seed(0, &[("dgpo", answering(90, 40)), ("kd", answering(60, 20))]),
            seed(1, &[("dgpo", answering(80, 30)), ("kd", answering(60, 20))]),
        ];
        let found = found(&ordering("DGPO > KD"), &seeds.iter().collect::<Vec<_>>()).unwrap();
        // (0.3 + 0.4) / 2 and (0.2 + 0.2) / 2.
        assert!(
            (found.differences[0] - 0.35).abs() < 1e-12
                && (found.differences[1] - 0.2).abs() < 1e-12,
            "{found:?}"
        );
        assert!(
            (found.mean - 0.275).abs() < 1e-12
                && (found.deviation.unwrap() - 0.15 / 2f64.sqrt()).abs() < 1e-12,
            "{found:?}"
        );
        assert!(
            found.interval.low > 0.0 && found.interval.low < 0.275 && found.interval.high > 0.275,
            "{found:?}"
        );
        assert_eq!((found.n_holding(), verdict(Some(&found))), (2, Verdict::Holds));
    }

    #[test]
    fn one_question_of_a_hundred_is_within_noise_and_a_large_loss_is_reversed() {
        let judged = |dgpo: Outcome| {
            let results = seed(0, &[("dgpo", dgpo), ("kd", answering(60, 20))]);
            verdict(found(&ordering("DGPO > KD"), &[&results]).as_ref())
        };
        assert_eq!(judged(answering(61, 20)), Verdict::WithinNoise);
        assert_eq!(judged(answering(60, 20)), Verdict::WithinNoise);
        assert_eq!(judged(answering(30, 5)), Verdict::Reversed);
        assert_eq!(judged(Outcome::Failed { why: "x".into() }), Verdict::NotMeasured);
    }

    #[test]
    fn seeds_that_disagree_widen_the_interval() {
        let of = |dgpo: [usize; 3]| {
            let seeds: Vec<SeedResults> = (0..)
                .zip(dgpo)
                .map(|(n, dgpo)| {
                    seed(n, &[("dgpo", answering(dgpo, 20)), ("kd", answering(60, 20))])
                })
                .collect();
            found(&ordering("DGPO > KD"), &seeds.iter().collect::<Vec<_>>()).unwrap()
        };
        let (agreed, torn) = (of([80, 80, 80]), of([100, 90, 50]));
        assert!((agreed.mean - torn.mean).abs() < 1e-12, "{agreed:?} {torn:?}");
        assert_eq!(
            (verdict(Some(&agreed)), verdict(Some(&torn))),
            (Verdict::Holds, Verdict::WithinNoise)
        );
    }

    #[test]
    fn seeds_that_lack_a_side_do_not_count() {
        let whole = seed(0, &[("dgpo", answering(90, 40)), ("kd", answering(60, 20))]);
        let failed =
            seed(1, &[("dgpo", Outcome::Failed { why: "x".into() }), ("kd", answering(60, 20))]);
        let found = found(&ordering("DGPO > KD"), &[&whole, &failed]).unwrap();
        assert_eq!((found.differences.len(), found.deviation), (1, None));
    }

    #[test]
    fn thinking_is_compared_on_the_data_set_with_as_many_hops() {
        let Outcome::Done(mut done) = answering(10, 10) else { unreachable!("made above") };
        let arcap = SetArcap {
            answered_without: "0001".into(),
            answered_with: "1111".into(),
            ..SetArcap::default()
        };
        done.score.datasets.get_mut("tiny-1hop").unwrap().arcap = Some(arcap);
        let results = seed(0, &[("dgpo", Outcome::Done(done))]);
        let better = ordering("DGPO answers given passages better with thinking, NQ / 1 hop");
        assert_eq!(found(&better, &[&results]).unwrap().mean, 0.75);
        let worse = ordering("DGPO answers given passages worse with thinking, MuSiQue / 2 hops");
        assert_eq!(verdict(found(&worse, &[&results]).as_ref()), Verdict::NotMeasured);
    }
}
