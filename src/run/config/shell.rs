//! Quoting of a text in a command line that somebody pastes.

/// `text` as one word of a shell's command line.
pub fn shell_quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_quoted_where_a_shell_would_split_it() {
        assert_eq!(
            ["runs/a-1", "my runs/a", "it's", ""].map(shell_quoted),
            ["runs/a-1", "'my runs/a'", "'it'\\''s'", "''"]
        );
    }
}
