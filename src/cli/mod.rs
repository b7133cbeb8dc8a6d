//! The command line: flags, progress, exit codes. The only layer that prints.
//!
//! One file a command: an `Args` struct (its help text is the documentation) and a `run` that calls
//! the library and shows what came back. Work on a model is a [`dgpo_run::devices::DeviceJob`], so
//! that `--device` picks the backend in one place.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | failed |
//! | 2 | the command or the recipe is wrong; nothing was started |
//! | 3 | stopped by a guard of training; checkpoints and report are there |
//! | 130 | interrupted; the checkpoint is saved |
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the command line prints")]
pub mod args;
pub mod ask;
pub mod bench;
pub mod compare;
pub mod completions;
pub mod conformance;
pub mod counter;
pub mod course;
pub mod data;
pub mod demos;
pub mod doctor;
pub mod eval;
pub mod fuzz;
pub mod index;
pub mod machine;
pub mod model;
pub mod next;
pub mod output;
pub mod plan;
pub mod portability;
pub mod progress;
pub mod report;
pub mod reproduce;
pub mod runs;
pub mod table;
pub mod train;
pub mod version;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use dgpo_run::{
    config::ConfigError,
    devices::DeviceError,
    folder::run_dir::RunDirError,
    pipeline::{PipelineError, preflight::Missing, reuse::ReuseError, steer::SteerError},
};
use std::{borrow::Cow, process::ExitCode, sync::OnceLock};
use tracing::level_filters::LevelFilter;
use version::Version;

/// Name of the program, on the command line and in completions.
const NAME: &str = "dgpo";
/// Set to 1, the program reads its command line and ends: a test of every command line in the
/// documents must not train anything.
pub const PARSE_ONLY: &str = "DGPO_PARSE_ONLY";

pub const EXIT_FAILED: u8 = 1;
pub const EXIT_USAGE: u8 = 2;
pub const EXIT_GUARD: u8 = 3;
pub const EXIT_INTERRUPTED: u8 = 130;

/// Train compact language models to search like agents: distillation from a teacher, then DGPO.
#[derive(Parser, Debug)]
#[command(name = NAME, bin_name = NAME, version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Say nothing but errors and results.
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Say more; -vv says everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,
}

#[derive(Subcommand, Debug)]
enum Command {
    Train(Box<train::Args>),
    Eval(eval::Args),
    Ask(ask::Args),
    Demos(demos::Args),
    #[command(disable_help_subcommand = true)]
    Data(data::Args),
    Plan(plan::Args),
    #[command(disable_help_subcommand = true)]
    Index(index::Args),
    #[command(disable_help_subcommand = true)]
    Model(model::Args),
    #[command(disable_help_subcommand = true)]
    Runs(runs::Args),
    Report(report::Args),
    Reproduce(reproduce::Args),
    Doctor(doctor::Args),
    Conformance(conformance::Args),
    Fuzz(fuzz::Args),
    Portability(portability::Args),
    #[command(disable_help_subcommand = true)]
    Bench(bench::Args),
    Completions(completions::Args),
}

/// End of a command that ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Done,
    /// It ran, and the result is a failure (a check that does not hold).
    Failed,
    /// Ctrl-C; everything is saved.
    Interrupted,
}

/// Facts that commands share beside their own flags.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    pub is_quiet: bool,
}

/// A wrong use of a command that clap cannot see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// All commands with their flags, and the version in full.
fn command() -> clap::Command {
    static TEXTS: OnceLock<[String; 2]> = OnceLock::new();
    let version = Version::of_this_program();
    let [short, long] = TEXTS.get_or_init(|| [version.in_short(), version.in_full()]);
    Cli::command().version(short.as_str()).long_version(long.as_str())
}

/// Runs the command given on the command line. `commit` is that of the program's source, where the
/// build knew it.
pub fn main(commit: Option<&'static str>) -> ExitCode {
    version::tell_commit(commit);
    let cli = match command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches))
    {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    if std::env::var_os(PARSE_ONLY).is_some_and(|value| value == "1") {
        return ExitCode::SUCCESS;
    }
    start_log(cli.quiet, cli.verbose);
    if cli.quiet {
        output::be_quiet();
    }
    let context = Context { is_quiet: cli.quiet };
    let result = match cli.command {
        Command::Train(args) => train::run(*args, context),
        Command::Eval(args) => eval::run(args, context),
        Command::Ask(args) => ask::run(args),
        Command::Demos(args) => demos::run(args),
        Command::Data(args) => data::run(args, context),
        Command::Plan(args) => plan::run(&args),
        Command::Index(args) => index::run(args, context),
        Command::Model(args) => model::run(args),
        Command::Runs(args) => runs::run(args),
        Command::Report(args) => report::run(&args),
        Command::Reproduce(args) => reproduce::run(&args, context),
        Command::Doctor(args) => doctor::run(&args),
        Command::Conformance(args) => conformance::run(args),
        Command::Fuzz(args) => fuzz::run(&args, context),
        Command::Portability(args) => portability::run(&args),
        Command::Bench(args) => bench::run(&args, context),
        Command::Completions(args) => completions::run(&args),
    };
    ExitCode::from(match result {
        Ok(Ended::Done) => 0,
        Ok(Ended::Failed) => EXIT_FAILED,
        Ok(Ended::Interrupted) => EXIT_INTERRUPTED,
        Err(error) if output::is_closed_pipe(&error) => 0,
        Err(error) => {
            let error = with_the_feature(error);
            output::error(&error);
            exit_code(&error)
        }
    })
}

/// Help, version, and what is wrong with the command line (exit code 2). clap prints them, in
/// colour on a terminal, and quotes what it was given; words that act on a terminal it does not get
/// to quote there.
fn explain(error: &clap::Error) -> ExitCode {
    let acts = |word: std::ffi::OsString| {
        matches!(output::visible(&word.to_string_lossy()), Cow::Owned(_))
    };
    if std::env::args_os().any(acts) {
        output::insist(&error.render().to_string());
    } else {
        // A closed pipe leaves nobody to tell.
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(EXIT_USAGE))
}

/// A binary without a backend can be built with it: says how, with the words of this command.
fn with_the_feature(error: anyhow::Error) -> anyhow::Error {
    let missing = error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(DeviceError::NotBuilt(backend)) => Some(*backend),
        _ => None,
    });
    let command = |backend: &str| {
        let words =
            std::env::args_os().skip(1).map(|word| output::shell_quoted(&word.to_string_lossy()));
        ["cargo", "xtask", "--features", backend]
            .map(str::to_owned)
            .into_iter()
            .chain(words)
            .collect::<Vec<_>>()
            .join(" ")
    };
    if let Some(backend) = missing {
        return error.context(format!(
            "this binary was built without {backend}; hint: `{}`",
            command(backend)
        ));
    }
    match error.downcast::<Missing>() {
        Ok(Missing(mut problems)) => {
            for problem in &mut problems {
                if let Some(backend) =
                    problem.message.strip_prefix("this binary was built without ")
                {
                    problem.hint = command(backend);
                }
            }
            Missing(problems).into()
        }
        Err(error) => error,
    }
}

/// 3 where a guard ended a run, 2 where the command or the recipe has to be changed before anything
/// can start, else 1.
fn exit_code(error: &anyhow::Error) -> u8 {
    if error.chain().any(|cause| matches!(cause.downcast_ref(), Some(PipelineError::Guard(_)))) {
        return EXIT_GUARD;
    }
    let is_usage = error.chain().any(|cause| {
        cause.is::<ConfigError>()
            || cause.is::<Missing>()
            || cause.downcast_ref().is_some_and(is_another_device_needed)
            || cause.is::<UsageError>()
            || cause.downcast_ref().is_some_and(is_refused)
            || cause.downcast_ref().is_some_and(is_a_question_of_the_recipe)
            || cause.downcast_ref().is_some_and(is_unfit_for_reuse)
            || cause.downcast_ref().is_some_and(is_to_be_changed)
    });
    if is_usage { EXIT_USAGE } else { EXIT_FAILED }
}

/// True if the device is not there or cannot do what is asked of it.
fn is_another_device_needed(error: &DeviceError) -> bool {
    !matches!(error, DeviceError::Failed(_))
}

/// True if a pipeline ended over what its recipe says.
fn is_a_question_of_the_recipe(error: &PipelineError) -> bool {
    match error {
        PipelineError::Steer(error) => is_refused(error),
        PipelineError::AskedTwice(_) => true,
        _ => false,
    }
}

/// True if the run named is not one whose phases can be reused.
fn is_unfit_for_reuse(error: &ReuseError) -> bool {
    !matches!(error, ReuseError::Checkpoint(_) | ReuseError::Copy { .. })
}

/// True if a run directory is not what the command takes it for.
fn is_to_be_changed(error: &RunDirError) -> bool {
    use RunDirError as E;
    matches!(error, E::Exists(_) | E::Occupied(_) | E::NotARun(_) | E::Busy { .. } | E::Recipe(_))
}

/// True if a run cannot go on as it is told.
fn is_refused(error: &SteerError) -> bool {
    match error {
        SteerError::Refused { .. }
        | SteerError::OtherModel { .. }
        | SteerError::InputChanged { .. } => true,
        SteerError::RunDir(error) => is_to_be_changed(error),
        SteerError::Checkpoint(_) | SteerError::Input(_) => false,
    }
}

fn start_log(is_quiet: bool, verbose: u8) {
    let level = match (is_quiet, verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::WARN,
        (false, 1) => LevelFilter::INFO,
        (false, _) => LevelFilter::DEBUG,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(progress::LogWriter::default)
        // What is logged may quote files: colour would have to be told from what they hold.
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_of_all_commands_are_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_command_and_flag_has_a_help_text() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{} of {} has no help",
                    argument.get_id(),
                    command.get_name()
                );
            }
            command.get_subcommands().for_each(check);
        }
        check(&command());
    }

    /// The examples of a flag's help text, each as words behind its command; what else the command
    /// needs may be missing.
    #[test]
    fn the_examples_of_every_flag_are_understood_by_its_command() {
        fn check(command: &clap::Command, path: &[String], n_checked: &mut usize) {
            let path = [path, &[command.get_name().to_owned()]].concat();
            for argument in command.get_arguments() {
                let help = argument
                    .get_long_help()
                    .or(argument.get_help())
                    .map_or(String::new(), ToString::to_string);
                for example in
                    help.split("Example: ").skip(1).filter_map(|rest| rest.lines().next())
                {
                    let words =
                        path.iter().cloned().chain(example.split_whitespace().map(str::to_owned));
                    match super::command().try_get_matches_from(words) {
                        Err(error)
                            if error.kind() != clap::error::ErrorKind::MissingRequiredArgument =>
                        {
                            panic!("{path:?}: {example}: {error}")
                        }
                        _ => *n_checked += 1,
                    }
                }
            }
            command.get_subcommands().for_each(|inner| check(inner, &path, n_checked));
        }
        let mut n_checked = 0;
        check(&command(), &[], &mut n_checked);
        assert!(n_checked >= 20, "{n_checked} examples of flags");
    }

    #[test]
    fn a_guard_exits_with_3() {
        assert_eq!(
            exit_code(
                &anyhow::Error::from(PipelineError::Guard(Vec::new()))
                    .context("the run was stopped")
            ),
            EXIT_GUARD
        );
        assert_eq!(exit_code(&PipelineError::Stopped.into()), EXIT_FAILED);
    }

    #[test]
    fn mistakes_of_the_user_exit_with_2_and_failures_with_1() {
        let recipe = ConfigError::UnknownRecipe { name: "x".into(), hint: "y".into() };
        assert_eq!(exit_code(&anyhow::Error::from(recipe).context("cannot start")), EXIT_USAGE);
        assert_eq!(exit_code(&RunDirError::Exists("runs/x".into()).into()), EXIT_USAGE);
        assert_eq!(exit_code(&DeviceError::NoAdapter.into()), EXIT_USAGE);
        assert_eq!(exit_code(&DeviceError::Failed("out of memory".into()).into()), EXIT_FAILED);
        assert_eq!(exit_code(&anyhow::anyhow!("the disk is full")), EXIT_FAILED);
    }
}
