//! Flags that several commands share.
use crate::{
    config::{self, Loaded},
    trainer::{devices::DeviceChoice, events::Stop},
};
use clap::Args;

/// The recipe that `train` and its relatives use when none is named.
pub const DEFAULT_RECIPE: &str = "tiny";

/// Which recipe, with which changes.
#[derive(Args, Clone, Debug)]
pub struct RecipeArgs {
    /// Recipe: a file, or the name of a built-in one. Example: --config configs/smoke.toml
    #[arg(long, value_name = "FILE|NAME", default_value = DEFAULT_RECIPE)]
    pub config: String,
    /// Change one setting of the recipe; may be repeated. Example: --set rl.steps=20 --set kl.mode=uniform
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

impl RecipeArgs {
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
    /// Device: cpu, wgpu[:N] or cuda[:N]. Example: --device cuda:0
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: DeviceChoice,
}

/// Lets Ctrl-C (and SIGTERM) end a run at the next step's end; a second one ends the process at once.
/// # Errors
/// If the handler cannot be installed.
pub fn stop_on_interrupt() -> anyhow::Result<Stop> {
    let stop = Stop::default();
    let shared = stop.clone();
    ctrlc::set_handler(move || {
        if shared.request() {
            std::process::exit(i32::from(super::EXIT_INTERRUPTED));
        }
        super::output::say("\nstopping after this step, then saving; Ctrl-C again stops at once");
    })?;
    Ok(stop)
}
