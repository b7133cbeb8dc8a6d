//! Aligned tables that are also Markdown.

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

/// True if a character acts on what shows it instead of being shown: control characters (C0, DEL,
/// C1), and those that order the text around them anew, so that it reads otherwise than it is
/// written.
pub fn acts_on_display(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Text that stays inside its cell, and is text there: Markdown would read `|`, a line's end, `<`
/// and emphasis as its own.
pub fn cell(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '|' | '*' | '`' | '\\' | '<' | '[' | ']' => safe.extend(['\\', c]),
            c if acts_on_display(c) => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let text = table(
            &["a", "count"],
            &[vec!["longer".into(), "1".into()], vec!["b".into(), "1234567".into()]],
        );
        let expected = "\
| a      |   count |
| ------ | ------: |
| longer |       1 |
| b      | 1234567 |
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_cell_is_text_whatever_it_says() {
        assert_eq!(cell("a|b\n<script>"), "a\\|b \\<script>");
        assert_eq!(cell("plain 1-2.x"), "plain 1-2.x");
        assert_eq!(cell("a\u{1b}[31mb\u{9b}c\u{202e}d"), "a \\[31mb c d");
    }
}
