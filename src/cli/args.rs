//! Flags that several commands share.
use clap::Args;
use dgpo_run::{
    config::{self, ConfigError, Loaded, Recipe, check},
    devices::DeviceChoice,
    events::Stop,
    hub,
};
use std::path::PathBuf;

/// The recipe that `train` and its relatives use when none is named.
pub const DEFAULT_RECIPE: &str = "tiny";

/// Which recipe, with which changes.
#[derive(Args, Clone, Debug)]
pub struct RecipeArgs {
    /// Recipe: a file, or the name of a built-in one. Example: --config configs/smoke.toml
    #[arg(long, value_name = "FILE|NAME", default_value = DEFAULT_RECIPE)]
    pub config: String,
    /// Change one setting of the recipe; may be repeated. Example: --set rl.steps=20 --set
    /// kl.mode=uniform
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

impl RecipeArgs {
    /// Loads the recipe for a command that only plays with a model: `change` adds what other flags
    /// say, and then no rule is asked for that concerns training.
    /// # Errors
    /// Every mistake in what is used of the recipe; exit code 2.
    pub fn load_to_play(&self, change: impl FnOnce(&mut Recipe)) -> anyhow::Result<Recipe> {
        let mut recipe = config::load::load_part(&self.config, &self.overrides)?.recipe;
        change(&mut recipe);
        match check::check_play(&recipe).errors {
            problems if problems.is_empty() => Ok(recipe),
            problems => Err(ConfigError::Rules(problems).into()),
        }
    }

    /// Loads the recipe and prints its warnings.
    /// # Errors
    /// Every mistake in the recipe; exit code 2.
    pub fn load(&self) -> anyhow::Result<Loaded> {
        let loaded = config::load(&self.config, &self.overrides)?;
        for warning in &loaded.warnings {
            super::output::warn(&warning.to_string());
        }
        Ok(loaded)
    }
}

/// Where to compute.
#[derive(Args, Clone, Copy, Debug)]
pub struct DeviceArgs {
    /// Device: cpu, `wgpu[:N]` (number N of the list that `dgpo doctor --device wgpu` prints) or
    /// `cuda[:N]`. Example: --device cuda:0
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: DeviceChoice,
}

/// Parses a count of something that must not be nothing.
/// # Errors
/// If the text is no whole number from 1 on.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("nothing would be done; hint: 1 is the smallest".to_owned()),
        parsed => parsed.map_err(|error: std::num::ParseIntError| {
            format!("{error}; hint: a whole number from 1 on")
        }),
    }
}

/// A path; `~` is the home folder, which shells put there neither in quotes nor in `--out=~/x`.
/// # Errors
/// If an environment variable in it is not set.
pub fn path(text: &str) -> Result<PathBuf, String> {
    hub::expand(text).map(PathBuf::from).map_err(|error| error.to_string())
}

/// Parses a sampling temperature, with the limits a recipe has.
/// # Errors
/// If the text is no finite number from 0 on.
pub fn temperature(text: &str) -> Result<f64, String> {
    let parsed = text.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0);
    parsed.ok_or_else(|| {
        "out of range; hint: a temperature is a number from 0 on, and 0 is greedy".to_owned()
    })
}

/// Lets Ctrl-C (and SIGTERM) end the work at its next safe point; a second one ends the process at
/// once. `what_follows` tells the person who pressed it what they wait for.
/// # Errors
/// If the handler cannot be installed.
pub fn stop_on_interrupt(what_follows: &'static str) -> anyhow::Result<Stop> {
    let stop = Stop::default();
    let shared = stop.clone();
    ctrlc::set_handler(move || {
        if shared.request() {
            std::process::exit(i32::from(super::EXIT_INTERRUPTED));
        }
        super::output::say(&format!("\n{what_follows}; Ctrl-C again stops at once"));
    })?;
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_temperatures_out_of_range_are_refused_with_a_hint() {
        assert_eq!(
            (at_least_one("1"), temperature("0"), temperature("0.7")),
            (Ok(1), Ok(0.0), Ok(0.7))
        );
        for refused in ["0", "-1", "x"].map(at_least_one) {
            assert!(refused.unwrap_err().contains("hint: "));
        }
        for refused in ["nan", "-1", "inf", "warm"].map(temperature) {
            assert!(refused.unwrap_err().contains("hint: "));
        }
    }
}
