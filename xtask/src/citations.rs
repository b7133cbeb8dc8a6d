//! Whether what the source cites is on the page: `method §N` names a heading of docs/method.md, and
//! `paper Eq. N` an equation that stands there.
use std::collections::BTreeSet;

/// The page, from the workspace's folder.
pub const PAGE: &str = "docs/method.md";

const SECTION: &str = "method §";
const EQUATION: &str = "paper Eq. ";

/// Sections and equations of the page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Method {
    /// `4`, `3.2`; a line of a numbered list in section 11 is `11.4`.
    sections: BTreeSet<String>,
    equations: BTreeSet<String>,
}

impl Method {
    /// Reads the page.
    pub fn of(page: &str) -> Self {
        let mut method = Self::default();
        let mut section = String::new();
        for line in page.lines() {
            let words = line.trim_start_matches('#');
            if let Some(heading) = words.strip_prefix(" §").filter(|_| words.len() < line.len()) {
                section = number(heading);
                method.sections.insert(section.clone());
            } else if let Some((item, _)) =
                line.split_once(". ").filter(|(item, _)| is_number(item))
            {
                method.sections.insert(format!("{section}.{item}"));
            }
            let equations = line.split("Eq. ").skip(1).map(number);
            method.equations.extend(equations.filter(|number| !number.is_empty()));
        }
        method
    }

    /// Lines of a file, from 1, that cite what is not there, and what that is.
    pub fn wrong_citations(&self, text: &str) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        for (line_idx, line) in text.lines().enumerate() {
            for (mark, known) in [(SECTION, &self.sections), (EQUATION, &self.equations)] {
                let cited = line.split(mark).skip(1).map(number);
                let wrong = cited.filter(|cited| is_number(cited) && !known.contains(cited));
                found.extend(
                    wrong.map(|cited| (line_idx + 1, format!("{mark}{cited} is not in {PAGE}"))),
                );
            }
        }
        found
    }
}

/// The number that a text begins with: `11.4` of "11.4, 12".
fn number(text: &str) -> String {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text[..end].trim_end_matches('.').to_owned()
}

fn is_number(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit()) && number(text) == text
}

#[cfg(test)]
mod tests {
    use super::*;

    const METHOD: &str = "# The method\n## §3 Start\n### §3.2 Loss\nEq. 1: L = …\n## §11 Less\n1. \
                          One\n4. Four\n";

    #[test]
    fn sections_items_and_equations_of_the_page_may_be_cited() {
        let text =
            "/// `method §3.2`, paper Eq. 1; method §3, §9 of another page\n// method §11.4.\n";
        assert_eq!(Method::of(METHOD).wrong_citations(text), []);
    }

    #[test]
    fn what_is_not_on_the_page_is_reported_with_its_line() {
        let text = "fine\n// method §4\n// `method §3.1` paper Eq. 2\n";
        let wrong: Vec<String> = Method::of(METHOD)
            .wrong_citations(text)
            .into_iter()
            .map(|(line, what)| format!("{line}: {what}"))
            .collect();
        let expected = [
            "2: method §4 is not in docs/method.md",
            "3: method §3.1 is not in docs/method.md",
            "3: paper Eq. 2 is not in docs/method.md",
        ];
        assert_eq!(wrong, expected);
    }
}
