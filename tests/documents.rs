//! What the documents, help texts and hints tell somebody to type is understood, and what they link
//! to is there.
//!
//! Command lines are taken out of the files themselves. Each goes through the launcher's own
//! reading of its words and through the real program, which with `DGPO_PARSE_ONLY=1` ends behind
//! its command line: training, cards and downloads are for other tests. The quick ones are run.
use crate::support::{Ended, World, repository};
use dgpo::cli::PARSE_ONLY;
use dgpo_run::config;
use extract::CommandLine;
use std::{collections::BTreeSet, fs, path::Path};

mod extract;
#[allow(dead_code)]
#[path = "../xtask/src/launcher.rs"]
mod launcher;

/// Places with the least number of command lines found in each: what was there, so that none is
/// lost to a change of the reading.
const AT_LEAST: [(&str, usize); 6] = [
    ("README.md", 30),
    ("configs/", 10),
    ("docs/", 18),
    ("kernels/", 10),
    ("src/", 70),
    ("xtask/", 8),
];
/// Links of the documents, in the same way.
const N_LINKS: usize = 38;

fn verbs() -> Vec<&'static str> {
    launcher::COMMANDS.into_iter().chain(launcher::Own::ALL.map(launcher::Own::name)).collect()
}

/// Every command line that somebody may read, in whatever file of the repository.
fn command_lines() -> Vec<CommandLine> {
    let verbs = verbs();
    let read = |(name, text): &(String, String)| match name.rsplit_once('.') {
        Some((_, "md")) => extract::of_markdown(name, text),
        Some((_, "toml")) => extract::of_recipe(name, text),
        _ => extract::of_source(name, text, &verbs),
    };
    let all: Vec<CommandLine> =
        extract::files(&repository(""), &["md", "toml", "rs"]).iter().flat_map(read).collect();
    for (place, at_least) in AT_LEAST {
        let found: Vec<_> = all.iter().filter(|line| line.place.starts_with(place)).collect();
        assert!(
            found.len() >= at_least,
            "{place}: {} command lines found, {at_least} were there:\n{found:#?}",
            found.len()
        );
    }
    all
}

/// What dgpo would be given; `None` for a command of the launcher's own.
fn arguments(words: &[String]) -> Result<Option<Vec<String>>, String> {
    match words.first().map(String::as_str) {
        Some("dgpo") => Ok(Some(words[1..].to_vec())),
        _ => match launcher::task(words[2..].to_vec())? {
            launcher::Task::Dgpo { arguments, .. } => Ok(Some(arguments)),
            _ => Ok(None),
        },
    }
}

/// Whether the program understands its arguments; a mention may leave out what is required.
fn understood(world: &World, arguments: &[String], is_mention: bool) -> Result<(), String> {
    let mut command = world.command(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let ended = Ended::of(command.env(PARSE_ONLY, "1"));
    let lacks =
        ["required arguments were not provided", "a value is required for", "\nCommands:\n"]
            .iter()
            .any(|text| ended.stderr.contains(text));
    if ended.code == Some(0) || (is_mention && lacks) { Ok(()) } else { Err(ended.stderr) }
}

/// Loads the recipe that the command names, with its settings, if it is one of the repository's.
fn recipe_is_there(arguments: &[String]) -> Result<(), String> {
    const WITH_A_RECIPE: [&str; 5] = ["train", "plan", "eval", "ask", "demos"];
    let behind = |flag: &str| {
        arguments
            .windows(2)
            .filter(|pair| pair[0] == flag)
            .map(|pair| pair[1].clone())
            .collect::<Vec<_>>()
    };
    let name = behind("--config").pop();
    let is_ours = match &name {
        Some(name) => !name.ends_with(".toml") || name.starts_with("configs/"),
        None => arguments.first().is_some_and(|verb| WITH_A_RECIPE.contains(&verb.as_str())),
    };
    // Values that the reader is to put in.
    let settings: Vec<String> = behind("--set")
        .into_iter()
        .filter(|set| !set.ends_with("=..") && !set.ends_with("=N"))
        .collect();
    if !is_ours || arguments.first().is_some_and(|verb| verb == "index") {
        return Ok(());
    }
    config::load(name.as_deref().unwrap_or("tiny"), &settings)
        .map(drop)
        .map_err(|error| error.to_string())
}

#[test]
fn every_command_line_of_documents_help_and_hints_is_understood() {
    let world = World::new();
    let mut wrong = Vec::new();
    let mut known = BTreeSet::new();
    for line in command_lines() {
        for words in extract::alternatives(&extract::words(&line.text)) {
            if !known.insert((words.clone(), line.is_mention)) {
                continue;
            }
            let result = arguments(&words).and_then(|arguments| match arguments {
                Some(arguments) => understood(&world, &arguments, line.is_mention)
                    .and_then(|()| recipe_is_there(&arguments)),
                None => Ok(()),
            });
            wrong.extend(result.err().map(|why| format!("{}: {}\n{why}", line.place, line.text)));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} command lines are not understood:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// Whether a command needs neither a file that the reader has to bring nor more than seconds.
fn is_quick(arguments: &[String]) -> bool {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let has = |text: &str| words.iter().any(|word| word.contains(text));
    match words[..] {
        ["doctor"] | ["runs", "list"] | ["help" | "completions", ..] | ["--version" | "--help"] => {
            true
        }
        ["plan", ..] => !has(".toml") && !has("paper/") || has("configs/tiny"),
        ["ask", ..] => has("builtin:tiny/"),
        _ => false,
    }
}

#[test]
fn the_quick_command_lines_of_the_documents_do_what_they_say() {
    let world = World::new();
    // Where the recipes lie.
    fs::create_dir(world.path("configs")).unwrap();
    fs::copy(repository("configs/tiny.toml"), world.path("configs/tiny.toml")).unwrap();
    let lines = command_lines();
    let arguments = lines
        .iter()
        .flat_map(|line| extract::alternatives(&extract::words(&line.text)))
        .filter_map(|words| arguments(&words).ok()?);
    let quick: BTreeSet<Vec<String>> = arguments.filter(|arguments| is_quick(arguments)).collect();
    for verb in ["doctor", "runs", "help", "completions", "--version", "plan", "ask"] {
        assert!(quick.iter().any(|arguments| arguments[0] == verb), "no {verb} in {quick:?}");
    }
    for arguments in quick {
        let ended = world.dgpo(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(
            ended.code == Some(0) && !ended.stdout.is_empty() | (arguments[0] == "runs"),
            "{arguments:?}: {ended:?}"
        );
    }
}

#[test]
fn the_episode_of_the_readme_is_what_its_command_shows() {
    let readme = fs::read_to_string(repository("README.md")).unwrap();
    let (_, block) = readme.split_once("$ cargo xtask ask ").unwrap();
    let (command, shown) = block.split_once("```").unwrap().0.split_once("\n...\n").unwrap();
    let words = extract::words(&format!("ask {command}"));
    let asked = World::new().dgpo(&words.iter().map(String::as_str).collect::<Vec<_>>()).done();
    // Empty lines aside, which the README leaves out.
    let text = |text: &str| {
        text.lines()
            .filter(|line| !line.trim().is_empty())
            .map(|line| line.trim_end().to_owned() + "\n")
            .collect::<String>()
    };
    assert!(text(&asked.stdout).contains(&text(shown)), "{}\nis not in\n{}", shown, asked.stdout);
}

#[test]
fn the_launcher_knows_the_commands_of_dgpo() {
    let help = World::new().dgpo(&["--help"]).done().stdout;
    assert_eq!(crate::cli::commands_in(&help), launcher::COMMANDS);
}

/// Targets of links and images outside of code: `[text](target)`.
fn links(text: &str) -> Vec<String> {
    let mut is_code = false;
    let prose = text.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    });
    let outside_of_code = |line: &str| line.split('`').step_by(2).collect::<Vec<_>>().join("`");
    let prose: String = prose.map(|line| outside_of_code(line) + "\n").collect();
    prose.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect()
}

/// The anchor that a heading gets.
fn anchors(text: &str) -> Vec<String> {
    let slug = |title: &str| {
        let kept = title
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
            .collect::<String>();
        kept.trim().replace(' ', "-")
    };
    text.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| slug(line.trim_start_matches('#')))
        .collect()
}

/// Why a link leads nowhere. Of addresses only the form is looked at: no test goes out.
fn dead_end(document: &str, target: &str) -> Option<String> {
    if let Some(address) =
        target.strip_prefix("https://").or_else(|| target.strip_prefix("http://"))
    {
        let host = address.split(['/', ':', '?', '#']).next().unwrap_or_default();
        let is_host = host.contains('.')
            && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-".contains(c));
        return (!is_host || address.contains(char::is_whitespace))
            .then(|| "is no address".to_owned());
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let file = match path {
        "" => repository(document),
        path => repository(document).parent().unwrap_or(Path::new("")).join(path),
    };
    if !file.exists() {
        return Some("there is no such file".to_owned());
    }
    let is_there =
        || anchors(&fs::read_to_string(&file).unwrap()).iter().any(|known| known == anchor);
    (!anchor.is_empty() && !is_there()).then(|| "there is no such heading".to_owned())
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    let mut n = 0;
    for (name, text) in extract::files(&repository(""), &["md"]) {
        for target in links(&text) {
            assert_eq!(dead_end(&name, &target), None, "{name}: {target}");
            n += 1;
        }
    }
    assert!(n >= N_LINKS, "{n} links found, {N_LINKS} were there");
}

#[test]
fn a_link_that_leads_nowhere_is_found() {
    for (target, is_dead) in [
        ("docs/benchmarks.md", false),
        ("#hardware", false),
        ("docs/benchmark.md", true),
        ("#hardwear", true),
        ("https://burn.dev", false),
        ("https://burn dev", true),
    ] {
        assert_eq!(dead_end("README.md", target).is_some(), is_dead, "{target}");
    }
}

#[test]
fn no_command_line_is_overlooked() {
    let document = "Say `dgpo runs list` or\n```text\n$ dgpo plan --config a.toml   # why\ncargo xtask train \\\n  --json\n```\n";
    let found: Vec<String> =
        extract::of_markdown("a", document).into_iter().map(|line| line.text).collect();
    assert_eq!(
        found,
        ["dgpo runs list", "dgpo plan --config a.toml   # why", "cargo xtask train --json"]
    );
    let code = "/// Example: dgpo ask \"Who?\" --model x\nfn f() { g(\"no; hint: dgpo report {} \\\n writes\", '\"', r\"`dgpo eval`\"); }\n// dgpo train\n";
    let found: Vec<String> = extract::of_source("a", code, &["report", "eval"])
        .into_iter()
        .map(|line| line.text)
        .collect();
    assert_eq!(found, ["dgpo ask \"Who?\" --model x", "dgpo report 1 writes", "dgpo eval"]);
    let words = extract::words("dgpo ask \"Who is it?\" --x a|b > file # c");
    assert_eq!(
        extract::alternatives(&words)[1],
        ["dgpo", "ask", "Who is it?", "--x", "b"].map(str::to_owned)
    );
}
