//! Rules about the source that the compiler does not check: the direction of imports, the length of
//! files, who prints, what tests on a GPU are called, whether citations lead somewhere.
//!
//! The rules read text, not syntax: comments are cut off, and a file's test code (from
//! `#[cfg(test)]` on, and files of tests) may import what it likes.
use crate::citations;
use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

/// The modules of each crate in `src/`, left to right: each imports from itself and from those
/// before it. Which crate imports from which is Cargo's affair. A file belongs to the first folder
/// it lies in.
const LAYERS: [(&str, &[&str]); 4] = [
    (
        "src/core/",
        &[
            "rng",
            "contained",
            "text",
            "question",
            "settings",
            "tokenizer",
            "engine",
            "env",
            "rollout",
            "algo",
            "trainer",
            "testing",
        ],
    ),
    (
        "src/run/",
        &[
            "hub",
            "config",
            "data",
            "episodes",
            "retriever",
            "units",
            "events",
            "devices",
            "models",
            "folder",
            "eval",
            "pipeline",
            "report",
        ],
    ),
    (
        "src/lab/",
        &["reference", "tiny", "reproduce", "conformance", "portability", "fuzz", "bench"],
    ),
    ("src/", &["cli"]),
];
/// The same of `kernels/src/`: what an operation is told and made of, the operations, the trait of
/// all of them (in lib.rs), and what holds them to their definitions.
const KERNEL_LAYERS: [&str; 24] = [
    "types",
    "device",
    "select",
    "nan",
    "host",
    "cpu",
    "cube",
    "graph",
    "operation",
    "rows",
    "erf_gelu",
    "swiglu",
    "rotary",
    "rms_norm",
    "vocabulary",
    "log_probs",
    "log_softmax_kl",
    "linear_log_probs",
    "linear_kl",
    "sample",
    "cache_write",
    "attention",
    "KernelOps",
    "suite",
];
const MAX_LINES: usize = 650;
/// Columns of a comment; code has the same width from rustfmt.toml.
const MAX_WIDTH: usize = 100;
/// Folders with Rust source.
const SOURCES: [&str; 5] = ["src", "models", "kernels", "xtask", "tests"];
/// Calls that write a file in one go.
const WRITING: [&str; 2] = ["fs::write(", "File::create("];
/// Files that may write where nobody else relies on it, or in the way that others have to use. Test
/// code may do as it likes.
const MAY_WRITE: [&str; 7] = [
    "models/src/files.rs",
    "src/lab/bench/memory.rs",
    "src/lab/conformance/generation.rs",
    "src/lab/fuzz/",
    "src/run/folder/checkpoint.rs",
    "src/run/retriever/hnsw.rs",
    "xtask/",
];

/// A line that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Relative to the workspace, with `/`.
    path: String,
    line: usize,
    message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// Checks every Rust file of the workspace.
pub(crate) fn check(root: &Path) -> io::Result<Vec<Problem>> {
    let mut files = Vec::new();
    for folder in SOURCES {
        collect(&root.join(folder), &mut files)?;
    }
    files.sort();
    let mut problems = Vec::new();
    for file in files {
        let path = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().replace('\\', "/");
        let text = fs::read_to_string(&file)?;
        problems.extend(check_file(&path, &text));
    }
    let broken = citations::check(root)?.into_iter();
    problems.extend(broken.map(|(path, line, message)| Problem { path, line, message }));
    Ok(problems)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn check_file(path: &str, text: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut report = |line: usize, message: String| {
        problems.push(Problem { path: path.to_owned(), line, message })
    };
    let n_lines = text.lines().count();
    if n_lines > MAX_LINES {
        report(
            n_lines,
            format!("{n_lines} lines; at most {MAX_LINES}: a file answers one question"),
        );
    }
    for line in wide_comments(text) {
        report(line, format!("a comment wider than {MAX_WIDTH} columns"));
    }
    let code: String = text.lines().map(|line| without_comment(line).to_owned() + "\n").collect();
    let is_library =
        ["src/", "models/src/", "kernels/src/"].iter().any(|place| path.starts_with(place))
            && !path.contains("tests");
    if is_library && !MAY_WRITE.iter().any(|place| path.starts_with(place)) {
        let own = code.split("#[cfg(test)]").next().unwrap_or_default();
        for (line_idx, line) in own.lines().enumerate() {
            if let Some(name) = WRITING.iter().find(|name| line.contains(**name)) {
                report(
                    line_idx + 1,
                    format!("{name}..) follows links and is not synced; use dgpo_models::files"),
                );
            }
        }
    }
    for (line, message) in hidden_gpu_tests(&code) {
        report(line, message);
    }
    if let Some((layers, layer)) = layer_of(path) {
        let position = |name: &str| layers.iter().position(|known| *known == name);
        let own = code.split("#[cfg(test)]").next().unwrap_or_default();
        for (line, name) in imports(own) {
            match (position(&name), position(layer)) {
                (Some(imported), Some(importing)) if imported > importing => {
                    report(
                        line,
                        format!(
                            "{layer} imports {name}, which lies to its right; see LAYERS in \
                             xtask/src/tidy.rs"
                        ),
                    );
                }
                (None, _) => report(
                    line,
                    format!("crate::{name} is no layer; add it to LAYERS in xtask/src/tidy.rs"),
                ),
                _ => {}
            }
        }
    }
    problems.extend(kernel_imports(path, &code));
    problems
}

/// Imports of a file of the kernels that run to the right in [`KERNEL_LAYERS`].
fn kernel_imports(path: &str, code: &str) -> Vec<Problem> {
    let Some(inside) = path.strip_prefix("kernels/src/") else { return Vec::new() };
    let layer = inside.split('/').next().unwrap_or_default().trim_end_matches(".rs");
    if inside.ends_with("tests.rs") || ["lib", "testing"].contains(&layer) {
        return Vec::new();
    }
    let position = |name: &str| KERNEL_LAYERS.iter().position(|known| *known == name);
    let own = code.split("#[cfg(test)]").next().unwrap_or_default();
    let runs_back = |name: &str| match (position(name), position(layer)) {
        (Some(imported), Some(importing)) => imported > importing,
        _ => true,
    };
    let problem = |(line, name): (usize, String)| Problem {
        path: path.to_owned(),
        line,
        message: format!(
            "{layer} imports {name}, which does not lie to its left in KERNEL_LAYERS of \
             xtask/src/tidy.rs"
        ),
    };
    imports(own).into_iter().filter(|(_, name)| runs_back(name)).map(problem).collect()
}

/// Comments of more than [`MAX_WIDTH`] columns outside tables and drawings (code blocks). The width
/// of code is rustfmt's affair.
fn wide_comments(text: &str) -> Vec<usize> {
    let mut is_drawing = false;
    let mut found = Vec::new();
    for (line_idx, line) in text.lines().enumerate() {
        let Some(comment) = line.trim_start().strip_prefix("//") else {
            is_drawing = false;
            continue;
        };
        let words = comment.trim_start_matches(['/', '!']).trim_start();
        is_drawing ^= words.starts_with("```");
        if !is_drawing && !words.starts_with('|') && line.chars().count() > MAX_WIDTH {
            found.push(line_idx + 1);
        }
    }
    found
}

/// Modules of tests for one GPU backend whose names `test-wgpu` and `test-cuda` would not find:
/// nothing would ever run them.
fn hidden_gpu_tests(code: &str) -> Vec<(usize, String)> {
    let lines: Vec<&str> = code.lines().map(str::trim).collect();
    let mut found = Vec::new();
    for (i, pair) in lines.windows(2).enumerate() {
        let has_tests = || lines[i..].contains(&"#[test]");
        for backend in ["wgpu", "cuda"] {
            let is_for_backend = pair[0].starts_with("#[cfg(")
                && !pair[0].contains("not(")
                && pair[0].contains(&format!("\"{backend}\""));
            let name = pair[1].strip_prefix("mod ").and_then(|rest| rest.strip_suffix(" {"));
            if let Some(name) = name.filter(|name| {
                is_for_backend && !name.contains(&format!("on_{backend}")) && has_tests()
            }) {
                found.push((
                    i + 2,
                    format!(
                        "tests in mod {name} run only where their path has on_{backend} in it; \
                         rename the module"
                    ),
                ));
            }
        }
    }
    found
}

/// The layers of a file's crate in src/ and the file's own; none for lib.rs, main.rs, other crates
/// and files of tests.
fn layer_of(path: &str) -> Option<(&'static [&'static str], &str)> {
    let (folder, layers) = LAYERS.into_iter().find(|(folder, _)| path.starts_with(folder))?;
    let inside = &path[folder.len()..];
    let is_tests = inside.ends_with("tests.rs") || inside.contains("/tests/");
    let first = inside.split('/').next()?.trim_end_matches(".rs");
    (!is_tests && first != "lib" && first != "main").then_some((layers, first))
}

/// A line up to its comment. `://` is an address, not a comment.
fn without_comment(line: &str) -> &str {
    let mut from = 0;
    while let Some(at) = line[from..].find("//").map(|at| at + from) {
        if !line[..at].ends_with(':') {
            return &line[..at];
        }
        from = at + 2;
    }
    line
}

/// First module of every `crate::` path, with its line. Groups are opened: `use crate::{a::X, b}`
/// names a and b.
fn imports(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        // `dgpo_models::…` and `$crate::…` are other things.
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let start = at + "crate::".len();
        match code[start..].strip_prefix('{') {
            Some(group) => group_members(group, start + 1, code, &mut found),
            None => {
                found.extend(identifier(&code[start..]).map(|name| (line_of(code, start), name)))
            }
        }
    }
    found
}

/// The first identifiers of the members of a `{a::b, c::{d, e}}` group, without the opening brace;
/// `offset` is where it begins in `code`.
fn group_members(group: &str, offset: usize, code: &str, found: &mut Vec<(usize, String)>) {
    let (mut depth, mut expects_member) = (0, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return,
            '}' => depth -= 1,
            ',' if depth == 0 => expects_member = true,
            _ if c.is_whitespace() => {}
            _ if expects_member => {
                found.extend(
                    identifier(&group[at..]).map(|name| (line_of(code, offset + at), name)),
                );
                expects_member = false;
            }
            _ => {}
        }
    }
}

fn identifier(text: &str) -> Option<String> {
    let name: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(path: &str, text: &str) -> Vec<String> {
        check_file(path, text).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_import_from_the_right_is_reported_with_its_line() {
        let problems =
            messages("src/core/algo/kl.rs", "use std::fmt;\nuse crate::trainer::update;\n");
        assert_eq!(
            problems,
            [
                "src/core/algo/kl.rs:2: algo imports trainer, which lies to its right; see LAYERS in \
              xtask/src/tidy.rs"
            ]
        );
    }

    #[test]
    fn imports_from_the_left_and_from_the_own_layer_are_fine() {
        assert_eq!(
            messages(
                "src/core/algo/kl.rs",
                "use crate::{settings::KlMode, rollout::RolloutBatch, algo::ppo};\n"
            ),
            [""; 0]
        );
    }

    #[test]
    fn every_member_of_a_group_is_looked_at() {
        let text = "use \
                    crate::{\n    settings::{KlMode, testing},\n    testing,\n    trainer::{rl::Step, metrics},\n};\n";
        let lines: Vec<usize> =
            check_file("src/core/algo/kl.rs", text).iter().map(|problem| problem.line).collect();
        assert_eq!(lines, [3, 4]);
    }

    #[test]
    fn a_path_in_the_middle_of_code_counts_as_an_import() {
        assert_eq!(messages("src/core/rng.rs", "fn f() -> crate::algo::Outcome {}\n").len(), 1);
    }

    #[test]
    fn comments_and_test_code_may_name_what_they_like() {
        let text = "//! See [`crate::algo`].\nlet x = 1; // crate::algo\n#[cfg(test)]\nmod \
                    tests { use crate::algo; }\n";
        assert_eq!(messages("src/core/rng.rs", text), [""; 0]);
        assert_eq!(messages("src/run/config/load_tests.rs", "use crate::report;\n"), [""; 0]);
    }

    #[test]
    fn an_unknown_module_must_be_given_a_place() {
        assert!(
            messages("src/core/rng.rs", "use crate::dashboard;\n")[0]
                .contains("crate::dashboard is no layer")
        );
    }

    #[test]
    fn an_operation_imports_from_the_left_alone() {
        let text = "use crate::{types::CausalRows, cpu::simd};\nuse crate::KernelOps;\n";
        assert_eq!(
            messages("kernels/src/attention/cpu.rs", text),
            ["kernels/src/attention/cpu.rs:2: attention imports KernelOps, which does not lie to \
              its left in KERNEL_LAYERS of xtask/src/tidy.rs"]
        );
        assert_eq!(messages("kernels/src/suite/mod.rs", text), [""; 0]);
        assert_eq!(messages("kernels/src/attention/tests.rs", text), [""; 0]);
        assert_eq!(messages("kernels/src/gelu.rs", "use crate::types;\n").len(), 1);
    }

    #[test]
    fn other_crates_and_lib_rs_have_no_layer() {
        assert_eq!(messages("models/src/bert.rs", "use crate::config;\n"), [""; 0]);
        assert_eq!(messages("src/lib.rs", "pub use crate::cli;\n"), [""; 0]);
        assert_eq!(messages("src/run/lib.rs", "use crate::report;\n"), [""; 0]);
    }

    #[test]
    fn tests_that_no_command_runs_are_reported() {
        let text = |name: &str| {
            format!(
                "#[cfg(all(test, feature = \"wgpu\"))]\nmod {name} {{\n    #[test]\n    fn f() \
                 {{}}\n}}\n"
            )
        };
        assert!(
            messages("kernels/src/a.rs", &text("tests"))[0]
                .starts_with("kernels/src/a.rs:2: tests in mod tests run only")
        );
        assert_eq!(messages("kernels/src/a.rs", &text("fusion_on_wgpu")), [""; 0]);
    }

    #[test]
    fn a_long_file_is_reported() {
        assert_eq!(messages("models/src/a.rs", &"\n".repeat(MAX_LINES)), [""; 0]);
        assert!(
            messages("models/src/a.rs", &"\n".repeat(651))[0]
                .starts_with("models/src/a.rs:651: 651 lines")
        );
    }

    #[test]
    fn a_wide_comment_is_reported_and_a_wide_drawing_is_not() {
        let wide = "x ".repeat(60);
        let text =
            format!("//! ```text\n//! {wide}\n//! ```\n//! | {wide}|\nlet a = \"{wide}\";\n");
        assert_eq!(messages("models/src/a.rs", &text), [""; 0]);
        assert_eq!(messages("models/src/a.rs", &format!("    /// {wide}\n")).len(), 1);
    }

    #[test]
    fn files_are_written_in_one_way() {
        let text = "fn f() {\n    std::fs::write(path, text)\n}\n";
        assert!(
            messages("src/run/report/mod.rs", text)[0]
                .starts_with("src/run/report/mod.rs:2: fs::write(..) follows links")
        );
        assert_eq!(messages("models/src/files.rs", text), [""; 0]);
        assert_eq!(
            messages("src/run/report/mod.rs", &format!("#[cfg(test)]\nmod tests {{\n{text}}}\n")),
            [""; 0]
        );
    }
}
