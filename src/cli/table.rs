//! The tables that commands print.
use super::output;
use dgpo_run::eval::Summary;
pub use dgpo_run::report::table::table;

/// The table a run ends with: student, teacher and what each phase left, side by side. Nothing
/// where no model was evaluated, as in a run that trains an encoder.
pub fn summary(summary: &Summary) -> String {
    let headers = [
        "model",
        "EM",
        "substring EM",
        "searches/episode",
        "hit ratio",
        "response tokens",
        "questions",
    ];
    let rows = summary.rows().into_iter().filter_map(|(name, figures)| {
        let all = &figures?.all;
        Some(vec![
            name.to_owned(),
            format!("{:.3}", all.em),
            format!("{:.3}", all.substring_em),
            format!("{:.2}", all.searches),
            format!("{:.3}", all.hit_ratio),
            format!("{:.1}", all.response_tokens),
            output::grouped(all.n_episodes as u64),
        ])
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        return String::new();
    }
    let text = table(&headers, &rows);
    let averages = summary.rows().into_iter().filter_map(|(name, figures)| {
        let figures = figures.filter(|figures| figures.datasets.len() > 1)?;
        Some(format!("{name} {:.3}", figures.average_em))
    });
    match averages.collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => text,
        averages => format!(
            "{text}EM is over all questions; the unweighted mean over data sets: {averages}\n"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dgpo_core::rollout::EpisodeStats;
    use dgpo_run::eval::Figures;

    #[test]
    fn models_that_were_not_evaluated_have_no_row() {
        assert_eq!(summary(&Summary::default()), "");
        let stats = EpisodeStats { em: 0.25, n_episodes: 310, ..Default::default() };
        let text = summary(&Summary {
            kd: Some(Figures { all: stats, ..Default::default() }),
            ..Default::default()
        });
        assert_eq!(text.lines().count(), 3);
        assert!(text.contains("| kd ") && text.contains("0.250"), "{text}");
    }

    #[test]
    fn the_two_averages_of_exact_match_have_names() {
        let of = |em, n_episodes| EpisodeStats { em, n_episodes, ..Default::default() };
        let datasets = [("a".to_owned(), of(1.0, 1)), ("b".to_owned(), of(0.0, 3))].into();
        let figures = Figures { all: of(0.25, 4), average_em: 0.5, datasets, ..Default::default() };
        let text = summary(&Summary { rl: Some(figures), ..Default::default() });
        assert!(text.contains("| rl    | 0.250 |"), "{text}");
        assert!(
            text.ends_with(
                "|\nEM is over all questions; the unweighted mean over data sets: rl 0.500\n"
            ),
            "{text}"
        );
    }
}
