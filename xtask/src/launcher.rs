//! Parser of the words after `cargo xtask`. Nothing is started here, so that a test can ask about
//! every command line that the documents show.

/// Commands of dgpo. Known here because a mistyped one should not cost a build.
pub(super) const COMMANDS: [&str; 18] = [
    "train",
    "eval",
    "ask",
    "demos",
    "data",
    "plan",
    "index",
    "model",
    "runs",
    "report",
    "reproduce",
    "doctor",
    "conformance",
    "fuzz",
    "portability",
    "bench",
    "completions",
    "help",
];

/// Names for `--features`: the features of the package `dgpo`.
pub(super) const FEATURES: [&str; 3] = ["wgpu", "cuda", "autotune"];

pub(super) const HELP: &str = "\
Usage: cargo xtask [--features F] VERB [ARGUMENTS]

Commands of dgpo (built in release, then run; `cargo xtask help train` explains one):
  train        teacher episodes, KD, DGPO and evaluation; without arguments the built-in tiny
               recipe on the CPU
  eval         evaluate a model on question files
  ask          one question, played step by step
  demos        episodes of the teacher
  data         tiny: make the files of the built-in world anew
  plan         the resolved recipe, its steps, tokens and memory; starts nothing
  index        build | search | info: passages made searchable
  model        info | export: look into a model folder, or write it in another dtype
  runs         list | show | compare: what was run, what came out, and what two runs differ in
  report       a run as report.html, report.md and TensorBoard events
  reproduce    every row of the paper's tables on the tiny world, and a page with the paper's
               numbers beside them; --seed N, --render
  doctor       check the machine
  conformance  compare with recorded reference numbers
  fuzz         damaged files for every reader: nothing may panic, abort, hang or eat memory
  portability  every operation and a training step on this machine's CPU or GPU: whether they
               work and how fast
  bench        kernels | step | rollout: measured beside plain operations, matrix products and
               PyTorch
  completions  completions of dgpo for a shell
  help         explain a command, of either kind

Commands of its own:
  test         tidy, then all tests, with those on wgpu where a graphics driver is installed; more
               arguments go to cargo test, which then builds for the CPU alone
  test-wgpu    the kernels, the recorded references and a small run through wgpu; arguments are
               names of tests (a software driver will do, Debian: mesa-vulkan-drivers;
               DGPO_REQUIRE_WGPU=1 makes its absence a failure)
  test-cuda    the same on a CUDA device, where there is one (DGPO_REQUIRE_CUDA=1 makes its
               absence a failure)
  tidy         layers, lengths of files and comments, names of tests on a GPU, citations of
               docs/method.md
  check-gpu    clippy with the backends wgpu and cuda built in; needs neither GPU nor toolkit
  ci           format, the build without a GPU, pages of cargo doc, tidy, tests, check-gpu

Flags, in front of the verb or behind it:
  --features F  build dgpo with backends: wgpu, cuda, or one of them with autotune
                (`cargo xtask --features wgpu train --device wgpu`)
";

/// Work to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Task {
    Help,
    /// Explain a command of its own.
    Explain(Own),
    Run(Own, Vec<String>),
    /// Build dgpo with these features, and run it with these arguments.
    Dgpo {
        features: Option<String>,
        arguments: Vec<String>,
    },
}

/// The commands that are not dgpo's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Own {
    Test,
    TestWgpu,
    TestCuda,
    Tidy,
    CheckGpu,
    Ci,
}

impl Own {
    pub(super) const ALL: [Self; 6] =
        [Self::Test, Self::TestWgpu, Self::TestCuda, Self::Tidy, Self::CheckGpu, Self::Ci];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::TestWgpu => "test-wgpu",
            Self::TestCuda => "test-cuda",
            Self::Tidy => "tidy",
            Self::CheckGpu => "check-gpu",
            Self::Ci => "ci",
        }
    }

    /// True if its arguments go to `cargo test`.
    fn takes_flags_of_cargo(self) -> bool {
        matches!(self, Self::Test | Self::Ci)
    }

    /// Its lines of the help text.
    pub(super) fn help(self) -> String {
        let begins = |line: &str| {
            line.strip_prefix("  ").is_some_and(|line| line.split(' ').next() == Some(self.name()))
        };
        let mut lines = HELP.lines().skip_while(|line| !begins(line));
        let first = lines.next().unwrap_or_default();
        let more = lines.take_while(|line| line.starts_with("     "));
        [first].into_iter().chain(more).map(|line| format!("{line}\n")).collect()
    }
}

/// Reads the words behind `cargo xtask`.
/// # Errors
/// Fault of the words, and a hint.
pub(super) fn task(mut arguments: Vec<String>) -> Result<Task, String> {
    let features = take_features(&mut arguments)?;
    let Some(at) = arguments.iter().position(|argument| !argument.starts_with('-')) else {
        // `--version` and flags that nobody knows are dgpo's affair.
        return Ok(
            match arguments.iter().all(|argument| matches!(argument.as_str(), "-h" | "--help")) {
                true => Task::Help,
                false => Task::Dgpo { features, arguments },
            },
        );
    };
    let verb = arguments[at].clone();
    let own = |name: &str| Own::ALL.into_iter().find(|own| own.name() == name);
    if let Some(own) = own(&verb) {
        let in_front: Vec<String> = arguments.drain(..=at).take(at).collect();
        return run(own, &in_front, features, arguments);
    }
    if verb == "help" {
        match arguments.get(at + 1).map(String::as_str) {
            None => return Ok(Task::Help),
            Some(name) if own(name).is_some() => {
                return Ok(own(name).map_or(Task::Help, Task::Explain));
            }
            Some(_) => {}
        }
    }
    if !COMMANDS.contains(&verb.as_str()) {
        return Err(format!("there is no command {verb}; hint: `cargo xtask help` lists them"));
    }
    Ok(Task::Dgpo { features, arguments })
}

fn run(
    own: Own,
    in_front: &[String],
    features: Option<String>,
    mut arguments: Vec<String>,
) -> Result<Task, String> {
    let name = own.name();
    let end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    if in_front
        .iter()
        .chain(&arguments[..end])
        .any(|argument| matches!(argument.as_str(), "-h" | "--help"))
    {
        return Ok(Task::Explain(own));
    }
    if let Some(flag) = in_front.first() {
        return Err(format!(
            "{flag} in front of {name} is a flag of dgpo, and {name} does not run it; hint: `cargo \
             xtask help {name}`"
        ));
    }
    match features {
        Some(features) if own.takes_flags_of_cargo() => {
            arguments.splice(0..0, ["--features".to_owned(), features]).for_each(drop)
        }
        Some(_) => {
            return Err(format!("{name} chooses its features itself; hint: `cargo xtask {name}`"));
        }
        None => {}
    }
    match arguments.first() {
        Some(argument) if matches!(own, Own::Tidy | Own::CheckGpu) => Err(format!(
            "{name} takes no arguments, and there is {argument}; hint: `cargo xtask {name}`"
        )),
        _ => Ok(Task::Run(own, arguments)),
    }
}

/// Removes every `--features F` and `--features=F`, which are for the build; what stands behind
/// `--` is left alone.
fn take_features(arguments: &mut Vec<String>) -> Result<Option<String>, String> {
    const HINT: &str = "hint: `cargo xtask --features wgpu train --device wgpu`";
    let mut features: Vec<String> = Vec::new();
    loop {
        let end = arguments.iter().position(|a| a == "--").unwrap_or(arguments.len());
        let Some(at) =
            arguments[..end].iter().position(|a| a == "--features" || a.starts_with("--features="))
        else {
            break;
        };
        let value = match arguments.remove(at).split_once('=') {
            Some((_, value)) => value.to_owned(),
            None if arguments.get(at).is_some_and(|value| !value.starts_with('-')) => {
                arguments.remove(at)
            }
            None => return Err(format!("--features needs a value; {HINT}")),
        };
        for feature in value.split([',', ' ']).filter(|feature| !feature.is_empty()) {
            if !FEATURES.contains(&feature) {
                return Err(format!(
                    "dgpo has no feature {feature}, but {}; {HINT}",
                    FEATURES.join(", ")
                ));
            }
            features.push(feature.to_owned());
        }
    }
    Ok((!features.is_empty()).then(|| features.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Task, String> {
        task(line.split_whitespace().map(str::to_owned).collect())
    }

    fn dgpo(features: Option<&str>, line: &str) -> Result<Task, String> {
        let arguments = line.split_whitespace().map(str::to_owned).collect();
        Ok(Task::Dgpo { features: features.map(str::to_owned), arguments })
    }

    #[test]
    fn features_are_understood_in_front_of_the_verb_and_behind_it() {
        for line in [
            "--features wgpu train --device wgpu",
            "--features=wgpu train --device wgpu",
            "train --features wgpu --device wgpu",
            "train --device wgpu --features=wgpu",
        ] {
            assert_eq!(read(line), dgpo(Some("wgpu"), "train --device wgpu"), "{line}");
        }
        assert_eq!(
            read("--features wgpu train --features autotune"),
            dgpo(Some("wgpu,autotune"), "train")
        );
        assert_eq!(read("train --json"), dgpo(None, "train --json"));
    }

    #[test]
    fn flags_of_dgpo_may_stand_in_front_of_its_verb() {
        assert_eq!(read("-q --features cuda train --json"), dgpo(Some("cuda"), "-q train --json"));
        assert_eq!(read("--version"), dgpo(None, "--version"));
    }

    #[test]
    fn features_without_a_value_or_of_another_name_are_an_error() {
        for line in ["train --features", "--features --json train", "--features wgu train"] {
            assert!(read(line).is_err_and(|why| why.contains("; hint: ")), "{line}");
        }
    }

    #[test]
    fn what_stands_behind_two_dashes_is_left_alone() {
        assert_eq!(read("ask -- --features x"), dgpo(None, "ask -- --features x"));
        assert_eq!(
            read("test -- --help"),
            Ok(Task::Run(Own::Test, vec!["--".into(), "--help".into()]))
        );
    }

    #[test]
    fn help_is_its_own_or_that_of_a_command() {
        for line in ["", "-h", "--help", "help", "--features wgpu --help"] {
            assert_eq!(read(line), Ok(Task::Help), "{line}");
        }
        assert_eq!(read("help runs show"), dgpo(None, "help runs show"));
        for line in ["help tidy", "tidy --help", "tidy -h", "--help tidy"] {
            assert_eq!(read(line), Ok(Task::Explain(Own::Tidy)), "{line}");
        }
    }

    #[test]
    fn every_command_has_a_line_of_the_help() {
        for own in Own::ALL {
            assert!(own.help().starts_with(&format!("  {}", own.name())), "{}", own.name());
        }
        assert_eq!(Own::Test.help().lines().count(), 2);
        for name in COMMANDS {
            assert!(HELP.lines().any(|line| line.starts_with(&format!("  {name} "))), "{name}");
        }
    }

    #[test]
    fn own_commands_refuse_what_they_would_ignore() {
        assert_eq!(
            read("test --features wgpu a"),
            Ok(Task::Run(Own::Test, ["--features", "wgpu", "a"].map(str::to_owned).to_vec()))
        );
        for line in ["tidy now", "-q tidy", "--features wgpu test-wgpu", "check-gpu x"] {
            assert!(read(line).is_err_and(|why| why.contains("; hint: ")), "{line}");
        }
    }

    #[test]
    fn a_mistyped_command_is_refused_before_anything_is_built() {
        assert!(read("trian").is_err_and(|why| why.starts_with("there is no command trian")));
    }

    #[test]
    fn the_features_are_those_of_the_package() {
        let manifest = include_str!("../../Cargo.toml");
        let (_, features) =
            manifest.split_once("\n[features]\n").expect("the package has features");
        let names = features
            .lines()
            .take_while(|line| !line.starts_with('['))
            .filter_map(|line| Some(line.split_once(" = ")?.0));
        assert_eq!(names.filter(|name| *name != "default").collect::<Vec<_>>(), FEATURES);
    }
}
