//! report.md: the facts and figures of a run as text, for a terminal, a review or a commit.
use super::{
    Report,
    curves::{Curve, Section},
    facts::{COLUMNS, EM, Model, Of, datasets},
    html::number,
    table::{cell, table},
};

/// Columns of a curve drawn in one line.
const SPARK_WIDTH: usize = 24;
const SPARKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The whole file.
pub fn page(report: &Report) -> String {
    let facts = &report.facts;
    let mut text = format!("# Run {}\n\n{}\n\n", cell(&facts.name), facts.subtitle);
    for (title, lines) in [("What the guards saw", &report.alarms), ("Left out", &report.warnings)]
    {
        if !lines.is_empty() {
            let items: String = lines.iter().map(|line| format!("- {}\n", cell(line))).collect();
            text += &format!("## {title}\n\n{items}\n");
        }
    }
    text += "## What was run\n\n";
    let settings = facts.settings.iter().chain(&facts.provenance);
    settings.for_each(|(what, value)| text += &format!("- {what}: {}\n", cell(value)));
    if !facts.models.is_empty() {
        let note = "In brackets 95 % intervals over the questions.";
        text += &format!(
            "\n## Exact match on the test questions\n\n{note}\n\n{}",
            exact_match(&facts.models)
        );
        text += &format!("\n## All figures\n\n{}", all_figures(&facts.models));
    }
    for section in &report.sections {
        text += &format!("\n## {}: metrics\n\n{}", section.title, metrics(section));
    }
    if !facts.changed.is_empty() {
        text += "\n## Settings that differ from the defaults\n\n";
        facts.changed.iter().for_each(|[key, default, value]| {
            text += &format!("- `{key}` = {} (default {})\n", cell(value), cell(default))
        });
    }
    text += "\nCurves and episodes, token by token, are in report.html beside this file; `tb/` is \
             for TensorBoard.\n";
    text
}

/// EM of every model on every data set.
fn exact_match(models: &[Model]) -> String {
    let names = datasets(models);
    let headers: Vec<String> = ["model"]
        .into_iter()
        .chain(names.iter().copied())
        .map(cell)
        .chain(["mean over data sets".to_owned(), "weights".to_owned()])
        .collect();
    let row = |model: &Model| -> Vec<String> {
        let em = |em: f64, of: Of<'_>| with_interval(format!("{em:.3}"), model, of);
        let of_set = |name: &&str| {
            model
                .figures
                .datasets
                .get(*name)
                .map_or("–".to_owned(), |stats| em(stats.em, Of::Dataset(name)))
        };
        let ends = [em(model.figures.average_em, Of::Average), cell(&model.weights)];
        [cell(&model.name)].into_iter().chain(names.iter().map(of_set)).chain(ends).collect()
    };
    table(
        &headers.iter().map(String::as_str).collect::<Vec<_>>(),
        &models.iter().map(row).collect::<Vec<_>>(),
    )
}

/// Every figure of every model, over all questions and for each data set.
fn all_figures(models: &[Model]) -> String {
    let headers: Vec<&str> = ["model", "questions of"]
        .into_iter()
        .chain(COLUMNS.iter().map(|column| column.title))
        .collect();
    let rows = models.iter().flat_map(|model| {
        let of_sets = model
            .figures
            .datasets
            .iter()
            .map(|(name, stats)| (name.as_str(), Of::Dataset(name), stats));
        [("all", Of::All, &model.figures.all)].into_iter().chain(of_sets).map(
            move |(set, of, stats)| {
                let figures = COLUMNS.iter().map(|column| match (column.value)(stats) {
                    em if column.title == EM => with_interval(em, model, of),
                    other => other,
                });
                [cell(&model.name), cell(set)].into_iter().chain(figures).collect()
            },
        )
    });
    table(&headers, &rows.collect::<Vec<Vec<String>>>())
}

/// An EM with its interval, where there is one.
fn with_interval(em: String, model: &Model, of: Of<'_>) -> String {
    model.em_interval(of).map_or(em.clone(), |interval| cell(&format!("{em} {interval}")))
}

/// One line a curve.
fn metrics(section: &Section) -> String {
    let rows = section.charts.iter().flat_map(|chart| &chart.curves).filter_map(|curve| {
        let figures = curve.figures()?.map(number);
        Some([cell(&curve.metric)].into_iter().chain(figures).chain([spark(curve)]).collect())
    });
    table(
        &["metric", "first", "last tenth", "min", "max", "course"],
        &rows.collect::<Vec<Vec<String>>>(),
    )
}

/// A curve in one line of text: the mean of each stretch, between the smallest and the largest of
/// them.
pub fn spark(curve: &Curve) -> String {
    let known: Vec<f64> = curve.values.iter().flatten().copied().collect();
    let means: Vec<f64> = known
        .chunks(known.len().div_ceil(SPARK_WIDTH).max(1))
        .map(|part| part.iter().sum::<f64>() / part.len() as f64)
        .collect();
    let (min, max) = means
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), &x| (min.min(x), max.max(x)));
    let level = |x: f64| {
        if max > min {
            ((x - min) / (max - min) * (SPARKS.len() - 1) as f64).round() as usize
        } else {
            0
        }
    };
    means.into_iter().map(|x| SPARKS[level(x)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        eval::{Figures, bootstrap::Interval, intervals::Intervals},
        report::facts::Facts,
    };
    use dgpo_core::rollout::EpisodeStats;
    use std::collections::BTreeMap;

    fn model(name: &str, em: f64) -> Model {
        let stats = EpisodeStats { em, n_episodes: 8, ..EpisodeStats::default() };
        let figures = Figures {
            all: stats,
            average_em: em,
            datasets: BTreeMap::from([("a|b".to_owned(), stats)]),
            ..Figures::default()
        };
        Model { name: name.to_owned(), weights: "kd-step-000300".to_owned(), figures }
    }

    #[test]
    fn models_and_data_sets_meet_in_a_table_that_no_name_breaks() {
        let report = Report {
            facts: Facts { models: vec![model("kd", 0.5)], ..Facts::default() },
            ..Report::default()
        };
        let text = page(&report);
        assert!(
            text.contains("| kd    | 0.500 |               0.500 | kd-step-000300 |"),
            "{text}"
        );
        assert!(text.contains("| model |  a\\|b | mean over data sets |"), "{text}");
    }

    #[test]
    fn every_em_has_its_interval_beside_it() {
        let of = |low, high| BTreeMap::from([("em".to_owned(), Interval { low, high })]);
        let datasets = BTreeMap::from([("a|b".to_owned(), of(0.25, 0.75))]);
        let mut kd = model("kd", 0.5);
        kd.figures.intervals =
            Some(Intervals { all: of(0.125, 0.875), average: of(0.375, 0.625), datasets });
        let text = page(&Report {
            facts: Facts { models: vec![kd], ..Facts::default() },
            ..Report::default()
        });
        for (interval, n) in [("0.375, 0.625", 1), ("0.250, 0.750", 2), ("0.125, 0.875", 1)] {
            assert_eq!(
                text.matches(&format!("0.500 \\[{interval}\\]")).count(),
                n,
                "{interval} in {text}"
            );
        }
        assert_eq!(text.matches("0.500").count(), 4, "{text}");
    }

    #[test]
    fn a_curve_in_one_line_rises_where_its_values_do() {
        let curve = |values: &[f64]| Curve {
            metric: String::new(),
            label: String::new(),
            steps: (0..values.len() as u64).collect(),
            values: values.iter().copied().map(Some).collect(),
            steps_per_point: 1,
            band: None,
        };
        assert_eq!(spark(&curve(&[0.0, 1.0, 2.0, 7.0])), "▁▂▃█");
        assert_eq!(spark(&curve(&[3.0, 3.0])), "▁▁");
        assert_eq!(
            spark(&curve(&(0..240).map(f64::from).collect::<Vec<_>>())).chars().count(),
            SPARK_WIDTH
        );
    }
}
