//! `dgpo bench kernels|step|rollout`: how fast the operations, the training steps and the engine
//! are on this machine.
mod kernels;
mod rollout;
mod step;

use super::{Context, Ended, UsageError};
use burn::tensor::{DType, Device, backend::Backend};
use clap::Subcommand;
use dgpo_kernels::suite::probes::Budget;
use dgpo_lab::{bench::step as shapes, portability::dtype_name};
use dgpo_models::config::DecoderConfig;
use dgpo_run::{config::FloatType, devices::DeviceChoice};
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

/// Runs of one figure.
fn budget(seconds: f64) -> anyhow::Result<Budget> {
    let time = Duration::try_from_secs_f64(seconds)
        .map_err(|_| UsageError(format!("--time {seconds} is no time")))?;
    Ok(Budget { time, most_runs: 20 })
}

fn dtype(name: &str) -> anyhow::Result<DType> {
    name.parse::<FloatType>().map(FloatType::dtype).map_err(|_| {
        UsageError(format!("--dtype {name} is not known; hint: f32, f16 or bf16")).into()
    })
}

/// # Errors
/// If the device does not compute in this type.
fn check_dtype<B: Backend>(
    choice: DeviceChoice,
    dtype: DType,
    device: &Device<B>,
) -> Result<(), UsageError> {
    match B::supports_dtype(device, dtype) {
        true => Ok(()),
        false => Err(UsageError(format!(
            "{choice} does not compute in {}; hint: --dtype f32",
            dtype_name(dtype)
        ))),
    }
}

/// The larger shape with as many layers as asked for, by name; none for 0. All of them take a CPU
/// minutes a step.
fn larger_shape(n_layers: Option<usize>, choice: DeviceChoice) -> Option<(String, DecoderConfig)> {
    let n_layers = n_layers.unwrap_or(if choice == DeviceChoice::Cpu { 2 } else { 24 });
    (n_layers > 0).then(|| {
        (
            format!("Qwen2.5-0.5B shape, {n_layers} of 24 layers"),
            shapes::qwen_half_billion(n_layers),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_is_none_and_an_unknown_type_are_refused() {
        assert!(budget(-1.0).is_err() && budget(f64::NAN).is_err() && budget(0.5).is_ok());
        assert!(dtype("f64").is_err() && dtype("bf16").is_ok());
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
