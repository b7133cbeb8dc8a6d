//! Takes command lines out of documents and out of the source: nothing here knows which there are.
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What the program may be called by.
const PROGRAMS: [&str; 2] = ["cargo xtask", "dgpo"];

/// A command line as somebody reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CommandLine {
    /// `README.md:12`
    pub place: String,
    pub text: String,
    /// Named in prose, where its arguments may be left out.
    pub is_mention: bool,
}

/// Every command line of a Markdown file: whole lines of code blocks, and code inside of prose.
pub(super) fn of_markdown(name: &str, text: &str) -> Vec<CommandLine> {
    let (mut found, mut prose, mut is_code) = (Vec::new(), String::new(), false);
    let (mut line_of_prose, mut begun) = (1, String::new());
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if is_code {
            begun += line.trim();
            if begun.ends_with('\\') {
                begun.pop();
                continue;
            }
            let line = std::mem::take(&mut begun);
            let line = line.strip_prefix("$ ").unwrap_or(&line);
            if PROGRAMS.iter().any(|program| begins_with_word(line, program)) {
                found.push(CommandLine {
                    place: format!("{name}:{}", at + 1),
                    text: line.to_owned(),
                    is_mention: false,
                });
            }
            continue;
        } else if !line.trim().is_empty() {
            prose += &format!("{line}\n");
            continue;
        }
        found.extend(of_prose(&format!("{name}:{line_of_prose}"), &std::mem::take(&mut prose)));
        line_of_prose = at + 2;
    }
    found.extend(of_prose(&format!("{name}:{line_of_prose}"), &prose));
    found
}

/// Every command line in the comments of a recipe: lines that are indented behind the `#`, and code
/// between backticks.
pub(super) fn of_recipe(name: &str, text: &str) -> Vec<CommandLine> {
    let (mut found, mut prose) = (Vec::new(), String::new());
    for (at, line) in text.lines().chain([""]).enumerate() {
        let comment = line.strip_prefix('#').unwrap_or_default();
        let command = comment.trim();
        if comment.starts_with("  ")
            && PROGRAMS.iter().any(|program| begins_with_word(command, program))
        {
            found.push(CommandLine {
                place: format!("{name}:{}", at + 1),
                text: command.to_owned(),
                is_mention: false,
            });
        } else if comment.is_empty() {
            found.extend(of_prose(&format!("{name}:{at}"), &std::mem::take(&mut prose)));
        } else {
            prose += &format!("{command}\n");
        }
    }
    found
}

/// Code between backticks, and what follows `Example: ` up to the end of the paragraph.
fn of_prose(place: &str, prose: &str) -> Vec<CommandLine> {
    let prose = prose.replace('\n', " ");
    let command = |text: &str, is_mention| CommandLine {
        place: place.to_owned(),
        text: text.trim().to_owned(),
        is_mention,
    };
    let is_ours = |text: &&str| PROGRAMS.iter().any(|program| begins_with_word(text, program));
    let spans = prose.split('`').skip(1).step_by(2).filter(is_ours).map(|span| command(span, true));
    let examples =
        prose.split("Example: ").skip(1).filter(is_ours).map(|example| command(example, false));
    spans.chain(examples).collect()
}

fn begins_with_word(text: &str, word: &str) -> bool {
    text.strip_prefix(word).is_some_and(|rest| rest.starts_with(' '))
}

/// Every command line of a Rust file up to its tests: in doc comments as in Markdown, in literals
/// wherever a program's name is followed by one of `verbs` or stands between backticks.
pub(super) fn of_source(name: &str, code: &str, verbs: &[&str]) -> Vec<CommandLine> {
    let code = code.split("#[cfg(test)]").next().unwrap_or_default();
    let mut found = Vec::new();
    let mut docs: Vec<String> = Vec::new();
    for (at, line) in code.lines().chain([""]).enumerate() {
        let line = line.trim();
        match line.strip_prefix("///").or_else(|| line.strip_prefix("//!")) {
            Some(text) => docs.push(text.trim().to_owned()),
            None => {
                let text = std::mem::take(&mut docs).join("\n");
                found.extend(of_markdown(&format!("{name}:{at}, doc"), &text));
            }
        }
    }
    for (line, literal) in literals(code) {
        found.extend(of_literal(&format!("{name}:{line}"), &literal, verbs));
    }
    found
}

/// String literals with their lines; comments and characters are passed over.
fn literals(code: &str) -> Vec<(usize, String)> {
    let chars: Vec<char> = code.chars().collect();
    let (mut found, mut at) = (Vec::new(), 0);
    let ahead = |at: usize, text: &str| {
        text.chars().enumerate().all(|(i, c)| chars.get(at + i) == Some(&c))
    };
    while at < chars.len() {
        if ahead(at, "//") {
            while at < chars.len() && chars[at] != '\n' {
                at += 1;
            }
        } else if ahead(at, "/*") {
            while at < chars.len() && !ahead(at, "*/") {
                at += 1;
            }
        } else if chars[at] == '\''
            && (chars.get(at + 1) == Some(&'\\') || chars.get(at + 2) == Some(&'\''))
        {
            at += if chars[at + 1] == '\\' { 3 } else { 2 };
            while at < chars.len() && chars[at] != '\'' && chars[at - 1] != '\'' {
                at += 1;
            }
        } else if chars[at] == 'r'
            && (ahead(at, "r\"") || ahead(at, "r#\""))
            && !at.checked_sub(1).is_some_and(|i| chars[i].is_alphanumeric())
        {
            let end = if ahead(at, "r\"") { "\"" } else { "\"#" };
            let start = at + 1 + end.len();
            at = start;
            while at < chars.len() && !ahead(at, end) {
                at += 1;
            }
            found.push((start, chars[start..at].iter().collect()));
            at += end.len();
            continue;
        } else if chars[at] == '"' {
            let start = at;
            let mut text = String::new();
            at += 1;
            while at < chars.len() && chars[at] != '"' {
                if chars[at] != '\\' {
                    text.push(chars[at]);
                } else {
                    at += 1;
                    match chars.get(at) {
                        Some('n') => text.push('\n'),
                        Some('t') => text.push('\t'),
                        Some('\n') => {
                            while chars.get(at + 1).is_some_and(|c| c.is_whitespace()) {
                                at += 1;
                            }
                        }
                        Some(&c) => text.push(c),
                        None => {}
                    }
                }
                at += 1;
            }
            found.push((start, text));
        }
        at += 1;
    }
    let line = |start: usize| 1 + chars[..start].iter().filter(|c| **c == '\n').count();
    found.into_iter().map(|(start, text)| (line(start), text)).collect()
}

fn of_literal(place: &str, literal: &str, verbs: &[&str]) -> Vec<CommandLine> {
    let mut found = Vec::new();
    for line in literal.lines().filter(|line| !line.starts_with("Usage:")) {
        for (at, part) in line.split('`').enumerate() {
            let is_code = at % 2 == 1;
            let mut rest = part;
            while let Some(start) = first_command(rest, verbs, is_code) {
                let text = &rest[start..];
                let end = if is_code {
                    text.len()
                } else {
                    [";", " (", ", "]
                        .iter()
                        .filter_map(|end| text.find(end))
                        .min()
                        .unwrap_or(text.len())
                };
                found.push(CommandLine {
                    place: place.to_owned(),
                    text: filled_in(&text[..end]),
                    is_mention: false,
                });
                rest = &text[end..];
            }
        }
    }
    found
}

/// Where a program is named and a verb of it follows; at the start of code whatever follows. A flag
/// or a placeholder may stand between them.
fn first_command(text: &str, verbs: &[&str], is_code: bool) -> Option<usize> {
    let named = PROGRAMS.iter().flat_map(|program| {
        text.match_indices(program).map(move |(at, _)| (at, at + program.len()))
    });
    let is_command = |&(start, end): &(usize, usize)| {
        let rest = &text[end..];
        let is_word = !text[..start].ends_with(|c: char| c.is_alphanumeric() || "/-_".contains(c))
            && rest.starts_with(' ');
        let next = rest.trim_start().trim_start_matches("{features}");
        let word: String = next.chars().take_while(|c| c.is_alphanumeric() || *c == '-').collect();
        is_word
            && ((is_code && start == 0) || verbs.contains(&word.as_str()) || word.starts_with("--"))
    };
    named.filter(is_command).map(|(start, _)| start).min()
}

/// What `format!` would make of the text: a value for each placeholder, or nothing where one is
/// glued to the word behind it.
fn filled_in(text: &str) -> String {
    let (mut filled, mut rest) = (String::new(), text);
    while let Some((before, behind)) = rest.split_once('{') {
        filled += before;
        let (_, behind) = behind.split_once('}').unwrap_or(("", behind));
        let before_it = filled.trim_end().rsplit(' ').next().unwrap_or_default();
        filled += match before_it {
            _ if behind.starts_with(|c: char| c.is_alphanumeric() || c == '-') => "",
            "--features" => "wgpu",
            "--device" => "cpu",
            "--config" => "mine.toml",
            "xtask" => "tidy",
            "help" => "train",
            _ => "1",
        };
        rest = behind;
    }
    filled + rest
}

/// The words that a shell would make of it, up to a comment, a pipe or a redirection; letters that
/// stand for something become it.
pub(super) fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote): (Vec<String>, Option<String>, Option<char>) =
        (Vec::new(), None, None);
    for c in text.chars().chain([' ']) {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    let end = words
        .iter()
        .position(|word| word.starts_with('#') || ["|", ">", "&&", "…"].contains(&word.as_str()));
    words.truncate(end.unwrap_or(words.len()));
    let meant = |word: String| match word.as_str() {
        "VERB" => "train".to_owned(),
        "SHELL" => "bash".to_owned(),
        "N" => "1".to_owned(),
        "FILE" => "mine.toml".to_owned(),
        _ => word.replace("METHOD", "dgpo"),
    };
    words.into_iter().map(meant).collect()
}

/// `a b|c` -> `a b`, `a c`.
pub(super) fn alternatives(words: &[String]) -> Vec<Vec<String>> {
    let Some(at) = words.iter().position(|word| word.contains('|')) else {
        return vec![words.to_vec()];
    };
    let one = |alternative: &str| {
        alternatives(&[&words[..at], &[alternative.to_owned()], &words[at + 1..]].concat())
    };
    words[at].split('|').flat_map(one).collect()
}

/// Files of the repository with one of these endings, by their paths from `root`: neither tests nor
/// what a build or a run makes.
pub(super) fn files(root: &Path, endings: &[&str]) -> Vec<(String, String)> {
    const NOT_ENTERED: [&str; 4] = ["target", "runs", "indexes", "tests"];
    let mut folders: Vec<PathBuf> = vec![root.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.extend(
                    (!name.starts_with('.') && !NOT_ENTERED.contains(&name.as_str()))
                        .then_some(path),
                );
            } else if endings.iter().any(|ending| name.ends_with(&format!(".{ending}")))
                && name != "tests.rs"
            {
                let name = path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}
