//! The method page and what leads to it.
//!
//! Four rules over every Rust, TOML and Markdown file of the workspace:
//!
//! | written | names |
//! |---|---|
//! | a section sign with a number | a heading of `docs/method.md` |
//! | `Eq.` with a number | an equation that stands there, in bold: `**Paper Eq. 3**` |
//! | a path of modules between backticks, in the pages of [`EXPLAINED`] | an item, or a module, of just that file of the source |
//! | a key in the table of settings | a key of `configs/base.toml`, each of them in one row |
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

const METHOD: &str = "docs/method.md";
const RECIPE: &str = "configs/base.toml";
/// Pages whose module paths are looked up.
const EXPLAINED: [&str; 2] = [METHOD, "docs/glossary.md"];
/// Heading of the table of settings.
const SETTINGS: &str = "Settings";
/// Folders that a build or a run makes.
const NOT_ENTERED: [&str; 3] = ["target", "runs", "indexes"];
/// Keywords before a name that is defined.
const DEFINING: [&str; 8] = ["fn", "struct", "enum", "const", "static", "trait", "type", "mod"];

/// A broken rule: file (with `/`), line, message.
pub(crate) type Broken = (String, usize, String);

/// The rules of this page, for the workspace in `root`.
/// # Errors
/// If a file cannot be read.
pub(crate) fn check(root: &Path) -> io::Result<Vec<Broken>> {
    let mut files = Vec::new();
    collect(root, root, &mut files)?;
    files.sort();
    Ok(check_files(&files))
}

/// Files of the workspace as (path from `root`, text).
fn collect(root: &Path, folder: &Path, files: &mut Vec<(String, String)>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && !NOT_ENTERED.contains(&name.as_str()) {
                collect(root, &path, files)?;
            }
        } else if [".rs", ".toml", ".md"].iter().any(|ending| name.ends_with(ending)) {
            let from_root = path.strip_prefix(root).unwrap_or(&path);
            files
                .push((from_root.to_string_lossy().replace('\\', "/"), fs::read_to_string(&path)?));
        }
    }
    Ok(())
}

fn check_files(files: &[(String, String)]) -> Vec<Broken> {
    let text_of = |wanted: &str| {
        files.iter().find(|(path, _)| path == wanted).map_or("", |(_, text)| text.as_str())
    };
    let method = text_of(METHOD);
    let (sections, equations) = (sections(method), equations(method));
    let modules = modules(files);
    let mut broken = Vec::new();
    for (path, text) in files {
        let mut report = |line: usize, message: String| broken.push((path.clone(), line, message));
        for (line, text) in (1..).zip(text.lines()) {
            for section in numbers_after(text, "§").into_iter().flatten() {
                if !sections.contains(&section) {
                    report(line, format!("{METHOD} has no §{section}"));
                }
            }
            for equation in numbers_after(text, "Eq. ") {
                match equation {
                    Some(equation) if !equations.contains(&equation) => {
                        report(line, format!("{METHOD} has no **Paper Eq. {equation}**"));
                    }
                    _ => {}
                }
            }
            if text.trim_end().ends_with("Eq.") {
                report(line, "the number of this equation stands on the next line".to_owned());
            }
            if EXPLAINED.contains(&path.as_str()) {
                for name in module_paths(text).filter(|name| !leads_somewhere(name, &modules)) {
                    report(line, format!("no {name} in the source"));
                }
            }
        }
    }
    broken.extend(check_settings(method, text_of(RECIPE)));
    broken
}

/// Numbers of the headings, such as `4` and `4.2`.
fn sections(method: &str) -> BTreeSet<String> {
    let headings = method.lines().filter(|line| line.starts_with('#'));
    headings.flat_map(|line| numbers_after(line, "§").into_iter().flatten()).collect()
}

fn equations(method: &str) -> BTreeSet<String> {
    numbers_after(method, "**Paper Eq. ").into_iter().flatten().collect()
}

/// What follows each `mark`: `4.2` of "§4.2, line 3"; `None` where it is no number. A full stop at
/// the end belongs to the sentence.
fn numbers_after(text: &str, mark: &str) -> Vec<Option<String>> {
    let number = |rest: &str| {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number = rest[..end].trim_end_matches('.');
        number.starts_with(|c: char| c.is_ascii_digit()).then(|| number.to_owned())
    };
    text.split(mark).skip(1).map(number).collect()
}

/// A file of the source: its path as modules, and the names that it defines.
type Module<'a> = (Vec<&'a str>, BTreeSet<&'a str>);

fn modules(files: &[(String, String)]) -> Vec<Module<'_>> {
    let is_no_module = |part: &&str| !["src", "mod", "lib"].contains(part);
    files
        .iter()
        .filter_map(|(path, text)| {
            let parts = path.strip_suffix(".rs")?.split('/').filter(is_no_module).collect();
            let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            let defined = words.windows(2).filter(|pair| DEFINING.contains(&pair[0]));
            Some((parts, defined.map(|pair| pair[1]).collect()))
        })
        .collect()
}

/// True if the first parts of a path such as `algo::kl::estimate` are the last ones of a file's,
/// and the others, if any, are names that it defines.
fn leads_somewhere(path: &str, modules: &[Module<'_>]) -> bool {
    let parts: Vec<&str> = path.split("::").collect();
    (1..=parts.len()).any(|n| {
        let (file, items) = parts.split_at(n);
        modules.iter().any(|(module, names)| {
            module.ends_with(file) && items.iter().all(|item| names.contains(item))
        })
    })
}

/// Each `a::b` between backticks.
fn module_paths(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2).filter(|span| span.contains("::"))
}

/// The table of settings against the recipe: a row for each key, and no other row.
fn check_settings(method: &str, recipe: &str) -> Vec<Broken> {
    let rows = settings(method);
    let keys = keys(recipe);
    let mut broken = Vec::new();
    let mut seen = BTreeSet::new();
    for (line, key) in &rows {
        if !keys.contains_key(key) {
            broken.push((METHOD.to_owned(), *line, format!("{RECIPE} has no key {key}")));
        }
        if !seen.insert(key) {
            broken.push((METHOD.to_owned(), *line, format!("{key} has a row already")));
        }
    }
    for (key, line) in keys.iter().filter(|(key, _)| !seen.contains(key)) {
        let message = format!("{key} has no row in the table of settings of {METHOD}");
        broken.push((RECIPE.to_owned(), *line, message));
    }
    broken
}

/// Lines and keys of the table: the code between backticks in the second column.
fn settings(method: &str) -> Vec<(usize, String)> {
    let mut is_settings = false;
    let mut found = Vec::new();
    for (line, text) in (1..).zip(method.lines()) {
        if text.starts_with("## ") {
            is_settings = text.ends_with(SETTINGS);
        }
        let second = text.strip_prefix('|').and_then(|row| row.split('|').nth(1));
        let key = second.and_then(|cell| cell.trim().strip_prefix('`')?.strip_suffix('`'));
        if let Some(key) = key.filter(|_| is_settings) {
            found.push((line, key.to_owned()));
        }
    }
    found
}

/// Keys of a recipe with the names of their tables in front, and their lines.
fn keys(recipe: &str) -> BTreeMap<String, usize> {
    let mut table = String::new();
    let mut found = BTreeMap::new();
    for (line, text) in (1..).zip(recipe.lines()) {
        if let Some(rest) = text.strip_prefix('[') {
            table = rest.split(']').next().unwrap_or_default().to_owned() + ".";
        } else if let Some((key, _)) = text.split_once('=')
            && !key.trim().is_empty()
            && key.trim().chars().all(|c| c.is_alphanumeric() || c == '_')
        {
            found.insert(format!("{table}{}", key.trim()), line);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A workspace of a method page with two sections, an equation and a setting, the recipe, and
    /// one more file. The section sign is put in here, so that this file cites nothing.
    fn problems(path: &str, text: &str) -> Vec<String> {
        let page = "## @4 RL\n### @4.2 Rewards\n**Paper Eq. 3**, `algo::kl::estimate`\n\
                    ## @5 Settings\n| a | `kl.coef` | 1 |\n";
        let files = [
            (METHOD, page),
            (RECIPE, "# no = key\n[kl]     # why\ncoef = 1  # = 2\n"),
            ("src/algo/kl.rs", "fn estimate() {}\n"),
            (path, text),
        ];
        let files = files.map(|(path, text)| (path.to_owned(), text.replace('@', "§")));
        let described = |(path, line, message)| format!("{path}:{line}: {message}");
        check_files(&files).into_iter().map(described).collect()
    }

    #[test]
    fn what_leads_somewhere_is_fine() {
        let text = "// method @4, @4.2.\n// paper Eq. 3; @ is a sign\n";
        assert_eq!(problems("src/a.rs", text), [""; 0]);
    }

    #[test]
    fn a_section_that_is_not_there_is_reported_with_file_and_line() {
        let text = "\n/// `method @4, @7`\n// (method\n// @4.3).\n";
        let broken = problems("src/a.rs", text);
        assert_eq!(broken.len(), 2);
        assert!(broken[0].starts_with("src/a.rs:2: ") && broken[0].ends_with("no \u{a7}7"));
        assert!(broken[1].starts_with("src/a.rs:4: ") && broken[1].ends_with("no \u{a7}4.3"));
    }

    #[test]
    fn an_equation_that_is_not_there_is_reported_with_file_and_line() {
        let text = format!("a = 1 # paper {0} 3\n# paper {0} 9, paper {0}\n# 3\n", "Eq.");
        let broken = problems("configs/a.toml", &text);
        assert_eq!(broken.len(), 2, "{broken:?}");
        assert!(broken[0].starts_with("configs/a.toml:2: ") && broken[0].ends_with("9**"));
        assert!(broken[1].contains(":2: the number of this equation stands on the next line"));
    }

    #[test]
    fn a_name_that_is_not_there_is_reported_in_the_pages_that_explain() {
        let text = "`algo::kl::estimate`, `kl.coef`, `algo::kl`\nor `algo::kl::estimat`\n\
                    `kl::estimate`, `ppo::estimate`\n";
        let expected =
            ["2: no algo::kl::estimat in the source", "3: no ppo::estimate in the source"];
        assert_eq!(
            problems("docs/glossary.md", text),
            expected.map(|text| format!("docs/glossary.md:{text}"))
        );
        assert_eq!(problems("README.md", text), [""; 0]);
    }

    #[test]
    fn every_setting_has_one_row() {
        let method = "## Settings\n| b | `kl.in` |\n| a | `kl.coef` |\n| c | `kl.coef` |\n";
        let broken = check_settings(method, "stage = 1\n[kl]\ncoef = 1\n");
        let expected = [
            (METHOD, 2, "configs/base.toml has no key kl.in"),
            (METHOD, 4, "kl.coef has a row already"),
            (RECIPE, 1, "stage has no row in the table of settings of docs/method.md"),
        ];
        let expected = expected.map(|(path, line, text)| (path.to_owned(), line, text.to_owned()));
        assert_eq!(broken, expected);
    }
}
