//! `dgpo bench kernels|step|rollout`: how fast the operations, the training steps and the engine
//! are on this machine.
mod kernels;
mod rollout;
mod step;

use super::{Context, Ended, UsageError, args::DeviceArgs, output, portability::adapter};
use burn::tensor::{DType, Device, backend::Backend};
use clap::Subcommand;
use dgpo_kernels::suite::probes::Budget;
use dgpo_models::config::DecoderConfig;
use dgpo_run::{
    config::{FloatType, shapes::published_decoder},
    devices::DeviceChoice,
};
use serde_json::json;
use std::time::Duration;

/// Measure how fast the operations, the training steps and rollouts are on this machine.
///
/// Example: dgpo bench kernels --device cuda --rows 4096 --vocab 151936
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    Kernels(kernels::Args),
    Step(step::Args),
    Rollout(rollout::Args),
}

pub(super) fn run(args: &Args, context: Context) -> anyhow::Result<Ended> {
    match &args.what {
        What::Kernels(args) => kernels::run(args, context),
        What::Step(args) => step::run(args),
        What::Rollout(args) => rollout::run(args),
    }
}

/// Arguments of every measurement.
#[derive(clap::Args, Debug)]
struct Measuring {
    #[command(flatten)]
    device: DeviceArgs,
    /// Float type: f32, f16 or bf16.
    #[arg(long, default_value = "f32")]
    dtype: FloatType,
    /// Print one JSON object instead.
    #[arg(long)]
    json: bool,
}

impl Measuring {
    fn choice(&self) -> DeviceChoice {
        self.device.device
    }

    /// Prints `facts` and the figures as one JSON object, or `head` and `table`.
    fn show(
        &self,
        facts: serde_json::Value,
        head: &str,
        table: impl FnOnce() -> String,
    ) -> anyhow::Result<Ended> {
        let (choice, dtype) = (self.choice(), self.dtype);
        let (adapter, kernels) = (adapter(choice), dgpo_kernels::bodies());
        if self.json {
            let mut all = json!({
                "device": choice.to_string(), "adapter": adapter, "dtype": dtype,
                "kernels": kernels,
            });
            if let (Some(all), serde_json::Value::Object(facts)) = (all.as_object_mut(), facts) {
                all.extend(facts);
            }
            output::json(&all)?;
        } else {
            let head = format!("{choice} ({adapter}), {dtype}, kernels: {kernels}{head}");
            output::data(&format!("{head}\n\n{}", table()))?;
        }
        Ok(Ended::Done)
    }
}

/// Runs of one figure.
fn budget(seconds: f64) -> anyhow::Result<Budget> {
    let time = Duration::try_from_secs_f64(seconds)
        .map_err(|_| UsageError(format!("--time {seconds} is no time")))?;
    Ok(Budget { time, most_runs: 20 })
}

/// # Errors
/// If the device does not compute in this type.
fn check_dtype<B: Backend>(
    choice: DeviceChoice,
    dtype: FloatType,
    device: &Device<B>,
) -> Result<DType, UsageError> {
    match B::supports_dtype(device, dtype.dtype()) {
        true => Ok(dtype.dtype()),
        false => {
            Err(UsageError(format!("{choice} does not compute in {dtype}; hint: --dtype f32")))
        }
    }
}

/// The larger shape with as many layers as asked for, by name; none for 0. All of them take a CPU
/// minutes a step.
fn larger_shape(n_layers: Option<usize>, choice: DeviceChoice) -> Option<(String, DecoderConfig)> {
    let n_layers = n_layers.unwrap_or(if choice == DeviceChoice::Cpu { 2 } else { 24 });
    let whole = published_decoder("Qwen/Qwen2.5-0.5B").filter(|_| n_layers > 0)?;
    let name = format!("Qwen2.5-0.5B shape, {n_layers} of {} layers", whole.num_hidden_layers);
    Some((name, DecoderConfig { num_hidden_layers: n_layers, ..whole }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_is_none_is_refused() {
        assert!(budget(-1.0).is_err() && budget(f64::NAN).is_err() && budget(0.5).is_ok());
    }

    #[test]
    fn no_layers_are_no_shape() {
        assert!(larger_shape(Some(0), DeviceChoice::Cpu).is_none());
        let layers =
            |n, choice| larger_shape(n, choice).map(|(_, config)| config.num_hidden_layers);
        assert_eq!(
            [
                layers(None, DeviceChoice::Cpu),
                layers(None, DeviceChoice::Cuda(0)),
                layers(Some(3), DeviceChoice::Cpu)
            ],
            [Some(2), Some(24), Some(3)]
        );
    }
}
