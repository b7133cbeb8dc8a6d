//! Every setting that the heart reads, as plain structs. A recipe is made of them; whoever uses
//! this crate alone fills them in by hand, from their `Default` on.
//!
//! [`BASE`] alone states the defaults: the published DGPO run wherever the paper or its scripts
//! have a value (method §14).
mod chat;
pub mod date;
mod distill;
mod episode;
mod guards;
mod optim;
mod phase;
mod rl;

pub use chat::ChatTemplate;
pub use distill::*;
pub use episode::*;
pub use guards::*;
pub use optim::*;
pub use phase::Phase;
pub use rl::*;

use serde::de::DeserializeOwned;
use std::sync::LazyLock;
use toml::{Table, Value};

/// `configs/base.toml`: every key of a recipe with its default.
pub const BASE: &str = include_str!("../../../configs/base.toml");

/// The settings that [`BASE`] has under a dotted `path`; all of them under "".
/// # Panics
/// If there is no such table, or it is none of T's: an error of this program, not of its input.
pub fn base<T: DeserializeOwned>(path: &str) -> T {
    static TABLE: LazyLock<Table> =
        LazyLock::new(|| BASE.parse().expect("configs/base.toml is TOML"));
    let whole = Value::Table(TABLE.clone());
    let names = path.split('.').filter(|name| !name.is_empty());
    let found = names.fold(&whole, |table, name| &table[name]).clone();
    found.try_into().unwrap_or_else(|error| panic!("configs/base.toml, [{path}]: {error}"))
}

/// `Default` of types by their tables in [`BASE`].
#[macro_export]
macro_rules! default_from_base {
    ($($type:ty = $path:literal),+ $(,)?) => {
        $(impl Default for $type {
            fn default() -> Self {
                $crate::settings::base($path)
            }
        })+
    };
}

default_from_base! {
    DistillRecipe = "distill",
    TaidRecipe = "distill.taid",
    StudentOutputsRecipe = "distill.student_outputs",
    EpisodeRecipe = "episode",
    GaeRecipe = "gae",
    GuardsRecipe = "guards",
    KlRecipe = "kl",
    OptimRecipe = "optim",
    AdamWRecipe = "optim.distill",
    RlRecipe = "rl",
}
