//! `dgpo bench step`: the training steps, and what the fused operations gain in them.
use super::{Measuring, budget, check_dtype, larger_shape};
use crate::cli::{Ended, UsageError, args::at_least_one, output, table::table};
use dgpo_core::trainer::update::Activations;
use dgpo_kernels::suite::probes::Budget;
use dgpo_lab::{
    bench::step::{self, PlainFigure, Setting, StepFigure},
    portability::workload::Shape,
};
use dgpo_models::TrainBackend;
use dgpo_run::{
    config::FloatType,
    devices::{DeviceChoice, DeviceJob, with_device},
};
use serde::Deserialize;
use serde_json::json;
use std::process::Command;

/// One KD step and one PPO step, with AdamW, of the tiny shape and of Qwen2.5-0.5B's with random
/// weights.
///
/// Beside them the same steps on the plain reference bodies, from a process of their own
/// (DGPO_KERNELS=reference).
///
/// Example: dgpo bench step --device cuda --dtype bf16 --batch 64 --tokens 1024
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    measuring: Measuring,
    /// Layers of the larger shape, of 24; 0 leaves the shape out. Default: 24, and 2 on the CPU.
    #[arg(long)]
    layers: Option<usize>,
    /// Episodes of a step of the larger shape.
    #[arg(long, default_value = "4", value_parser = at_least_one)]
    batch: usize,
    /// Tokens of an episode of the larger shape.
    #[arg(long, default_value = "256", value_parser = at_least_one)]
    tokens: usize,
    /// Padded tokens of a micro-batch of the larger shape.
    #[arg(long, default_value = "16384", value_parser = at_least_one)]
    micro_batch_tokens: usize,
    /// Compute activations again in the backward pass.
    #[arg(long)]
    recompute: bool,
    /// Time for each figure, in seconds; at most 20 runs.
    #[arg(long, default_value = "20", value_name = "SECONDS")]
    time: f64,
    /// Leave out the steps on the plain reference bodies.
    #[arg(long)]
    without_plain: bool,
}

struct TimeSteps {
    settings: Vec<Setting>,
    choice: DeviceChoice,
    dtype: FloatType,
    budget: Budget,
}

impl DeviceJob for TimeSteps {
    type Output = Result<Vec<StepFigure>, UsageError>;
    fn run<B: TrainBackend>(self, device: &B::Device) -> Self::Output {
        let dtype = check_dtype::<B::InnerBackend>(self.choice, self.dtype, device)?;
        Ok(self
            .settings
            .iter()
            .flat_map(|setting| step::run::<B>(setting, dtype, self.budget, device))
            .collect())
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<Ended> {
    let Measuring { dtype, .. } = args.measuring;
    let (choice, budget) = (args.measuring.choice(), budget(args.time)?);
    let settings = settings(args)?;
    // First, while this process holds nothing on the device.
    let plain = plain_figures(args);
    let mut figures = with_device(choice, TimeSteps { settings, choice, dtype, budget })??;
    if let Ok(plain) = &plain {
        step::put_beside(&mut figures, plain);
    }
    let why_no_plain = plain.err();
    if let (Some(why), false) = (&why_no_plain, args.measuring.json) {
        output::say(&format!("without the plain steps: {why}"));
    }
    let facts = json!({ "why_no_plain": why_no_plain, "figures": figures });
    args.measuring.show(facts, "", || figures_table(&figures))
}

fn settings(args: &Args) -> anyhow::Result<Vec<Setting>> {
    let mut settings = vec![Setting {
        name: "tiny".into(),
        config: step::tiny()?,
        shape: Shape { n_rows: 16, n_prompt: 32, n_agent: 24, n_observation: 48 },
        micro_batch_tokens: 16_384,
        activations: Activations::Kept,
    }];
    if let Some((name, config)) = larger_shape(args.layers, args.measuring.choice()) {
        settings.push(Setting {
            name,
            config,
            shape: shares(args.batch, args.tokens)?,
            micro_batch_tokens: args.micro_batch_tokens,
            activations: if args.recompute { Activations::Recomputed } else { Activations::Kept },
        });
    }
    Ok(settings)
}

/// This command again, on the reference bodies: which ones run is decided once in a process.
/// # Errors
/// A sentence that says why there are no such figures.
fn plain_figures(args: &Args) -> Result<Vec<PlainFigure>, String> {
    #[derive(Deserialize)]
    struct Printed {
        figures: Vec<PlainFigure>,
    }
    if args.without_plain {
        return Err("--without-plain".to_owned());
    }
    if dgpo_kernels::is_reference_only() {
        return Err("DGPO_KERNELS=reference is set, so these steps are the plain ones".to_owned());
    }
    output::say("first the steps on the plain reference bodies, in a process of their own");
    let program =
        std::env::current_exe().map_err(|error| format!("this program is not found: {error}"))?;
    let mut command = Command::new(program);
    command.env("DGPO_KERNELS", "reference").args(["bench", "step", "--without-plain", "--json"]);
    let values = [
        ("--device", args.measuring.choice().to_string()),
        ("--batch", args.batch.to_string()),
        ("--tokens", args.tokens.to_string()),
        ("--micro-batch-tokens", args.micro_batch_tokens.to_string()),
        ("--dtype", args.measuring.dtype.to_string()),
        ("--time", args.time.to_string()),
    ];
    for (flag, value) in &values {
        command.args([flag, value.as_str()]);
    }
    if let Some(n_layers) = args.layers {
        command.args(["--layers", &n_layers.to_string()]);
    }
    if args.recompute {
        command.arg("--recompute");
    }
    let ended = command.output().map_err(|error| format!("the process does not start: {error}"))?;
    if !ended.status.success() {
        let said = String::from_utf8_lossy(&ended.stderr);
        return Err(format!(
            "{}: {}",
            ended.status,
            said.lines().last().unwrap_or("it failed without a word")
        ));
    }
    let printed: Printed = serde_json::from_slice(&ended.stdout)
        .map_err(|error| format!("it printed something else than figures: {error}"))?;
    Ok(printed.figures)
}

fn figures_table(figures: &[StepFigure]) -> String {
    let headers = [
        "model",
        "step",
        "parameters",
        "tokens",
        "best ms",
        "median ms",
        "tokens/s",
        "plain best ms",
        "plain / fused",
    ];
    let rows = figures.iter().map(|f| {
        vec![
            f.model.clone(),
            f.step.to_owned(),
            output::grouped(f.n_parameters as u64),
            output::grouped(f.n_tokens as u64),
            format!("{:.1}", f.best_ms),
            format!("{:.1}", f.median_ms),
            output::grouped(f.tokens_per_s as u64),
            f.plain.as_ref().map_or("-".to_owned(), |plain| format!("{:.1}", plain.best_ms)),
            f.plain_over_fused.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
        ]
    });
    table(&headers, &rows.collect::<Vec<_>>())
}

/// An eighth prompt, half of the rest observation, the rest the agent's.
fn shares(n_rows: usize, n_tokens: usize) -> anyhow::Result<Shape> {
    const LEAST: usize = 16;
    if n_tokens < LEAST {
        return Err(
            UsageError(format!("--tokens {n_tokens} is less than {LEAST}; hint: 256")).into()
        );
    }
    let n_prompt = n_tokens / 8;
    let n_agent = (n_tokens - n_prompt) / 4;
    Ok(Shape { n_rows, n_prompt, n_agent, n_observation: n_tokens - n_prompt - 2 * n_agent })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_an_episode_add_up() {
        for n_tokens in [16, 100, 1024] {
            assert_eq!(shares(3, n_tokens).unwrap().n_tokens(), 3 * n_tokens);
        }
        assert!(shares(3, 15).unwrap_err().to_string().contains("hint: "));
    }
}
