//! Aligned tables that are also Markdown.
use super::output;
use crate::eval::Summary;

/// Rows of text under headers; the first column is aligned left, the others right.
pub fn table(headers: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        // Markdown wants at least three dashes.
        cells.chain([headers[column].chars().count(), 3]).max().unwrap_or(3)
    };
    let widths: Vec<usize> = (0..headers.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
            0 => format!(" {cell:<width$} "),
            _ => format!(" {cell:>width$} "),
        });
        format!("|{}|\n", padded.collect::<Vec<_>>().join("|"))
    };
    let dashes = widths.iter().enumerate().map(|(column, width)| match column {
        0 => format!(" {} ", "-".repeat(*width)),
        _ => format!(" {}: ", "-".repeat(width - 1)),
    });
    let mut text = line(&mut headers.iter().copied());
    text += &format!("|{}|\n", dashes.collect::<Vec<_>>().join("|"));
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

/// The table a run ends with: student, teacher, KD and DGPO side by side.
pub fn summary(summary: &Summary) -> String {
    let headers = ["model", "EM", "substring EM", "searches/episode", "hit ratio", "response tokens", "questions"];
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
    table(&headers, &rows.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{eval::Figures, rollout::EpisodeStats};

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let text = table(&["a", "count"], &[vec!["longer".into(), "1".into()], vec!["b".into(), "1234567".into()]]);
        let expected = "\
| a      |   count |
| ------ | ------: |
| longer |       1 |
| b      | 1234567 |
";
        assert_eq!(text, expected);
    }

    #[test]
    fn models_that_were_not_evaluated_have_no_row() {
        let stats = EpisodeStats { em: 0.25, n_episodes: 310, ..Default::default() };
        let text = summary(&Summary { kd: Some(Figures { all: stats, ..Default::default() }), ..Default::default() });
        assert_eq!(text.lines().count(), 3);
        assert!(text.contains("| kd ") && text.contains("0.250"), "{text}");
    }
}
