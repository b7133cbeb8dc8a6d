//! Typed TOML recipes: the settings of a run.
//!
//! | file | answers |
//! |---|---|
//! | [`recipe`], [`objective`] | which settings exist, what they mean, what the paper chose; those of a step itself are [`dgpo_core::settings`] |
//! | [`library`] | which recipe is called NAME: a file, or one inside the binary |
//! | [`stage`] | the order of a run's parts in each stage |
//! | [`mod@load`] | recipe file -> `extends` -> `--set` -> typed [`Recipe`]; every mistake with file, line and a hint |
//! | [`check`], `check_distill` | the rules between fields |
//! | `choice` | settings that are one of a few names |
//! | `bounds` | how large each number may be |
//! | [`plan`] | steps, tokens, memory and disk space of a run, computed before it starts |
//! | [`shapes`] | the sizes of its networks, on this machine or as published |
//!
//! [`secrets`] keeps passwords out of all of them.
mod bounds;
pub mod check;
mod check_distill;
mod choice;
pub mod library;
pub mod load;
pub mod objective;
pub mod plan;
pub mod recipe;
pub mod secrets;
pub mod shapes;
mod shell;
pub mod stage;

pub use choice::{FloatType, RetrieverKind, Search};
pub use load::{Loaded, load};
pub use objective::*;
pub use recipe::*;
pub use shell::shell_quoted;
pub use stage::Stage;

use serde::Serialize;
use std::{fmt, path::PathBuf};

/// Origin of a setting: a file's line, or a `--set` argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// File name, built-in recipe or the argument itself.
    pub source: String,
    /// Counted from 1; none for arguments.
    pub line: Option<usize>,
    /// The line's text.
    pub excerpt: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.source),
            None => write!(f, "{}", secrets::without_users(&self.source)),
        }
    }
}

/// Excerpt between a message and its hint: the offending line, as compilers show it; nothing
/// for arguments, which the message repeats.
struct Excerpt<'a>(&'a Origin);
impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.line {
            Some(line) => writeln!(f, "\n{line:>5} | {}", secrets::without_users(&self.0.excerpt)),
            None => write!(f, "; "),
        }
    }
}

/// A broken rule between fields, or a key that names something which is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Dotted key to change first.
    pub key: &'static str,
    /// Fault, with the values.
    pub message: String,
    /// Remedy.
    pub hint: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; hint: {}", self.key, self.message, self.hint)
    }
}

/// Why a recipe cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the recipe {}: {source}; hint: {hint}", path.display())]
    Read { path: PathBuf, source: std::io::Error, hint: String },
    #[error("there is no built-in recipe \"{name}\"; hint: {hint}")]
    UnknownRecipe { name: String, hint: String },
    #[error(
        "{origin}: not TOML: {why}{}hint: text needs quotation marks, a list brackets",
        Excerpt(origin)
    )]
    Syntax { origin: Box<Origin>, why: String },
    #[error(
        "recipes extend each other in a circle: {}; hint: remove one of these `extends` lines",
        chain.join(" -> ")
    )]
    Cycle { chain: Vec<String> },
    #[error(
        "--set {}: {why}; hint: write --set table.key=value, e.g. --set rl.steps=10",
        secrets::without_users(argument)
    )]
    Override { argument: String, why: String },
    #[error("{origin}: unknown key {key}{}hint: {hint}", Excerpt(origin))]
    UnknownKey { origin: Box<Origin>, key: String, hint: String },
    #[error("{origin}: {key}: {why}{}hint: {hint}", Excerpt(origin))]
    WrongType { origin: Box<Origin>, key: String, why: String, hint: String },
    #[error("{} in the recipe:\n{}", count(.0.len()), .0.iter().map(|p| format!("  {p}")).collect::<Vec<_>>().join("\n"))]
    Rules(Vec<Problem>),
}

fn count(n: usize) -> String {
    if n == 1 { "1 problem".into() } else { format!("{n} problems") }
}
