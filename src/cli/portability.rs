//! `dgpo portability`: does this device compute what the definitions say, and how fast?
use super::{Outcome, args::DeviceArgs, machine, output};
use crate::{
    portability::{self, About, Comparison, Operation, Report, Speed},
    trainer::devices::{self, DeviceChoice, Job, with_device},
};
use dgpo_models::TrainBackend;

/// Check every operation and one training step on this machine's device, and measure how fast they are.
///
/// Takes about two minutes; exit code 1 if anything deviates. Everything is compared with definitions in f64, training with the CPU.
///
/// Example: dgpo portability --device wgpu
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    device: DeviceArgs,
    /// Print one JSON object instead.
    #[arg(long)]
    json: bool,
}

struct Examine(About);
impl Job for Examine {
    type Output = Report;
    fn run<B: TrainBackend>(self, device: &B::Device) -> Self::Output {
        portability::run::<B>(self.0, device, &|what| tracing::info!("{what}"))
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let choice = args.device.device;
    let about = About { device: choice.to_string(), adapter: adapter(choice), is_cpu: choice == DeviceChoice::Cpu };
    let report = with_device(choice, Examine(about))?;
    if args.json {
        output::json(&report)?;
    } else {
        output::data(&describe(&report))?;
    }
    Ok(if report.failed == 0 { Outcome::Done } else { Outcome::Failed })
}

/// What computes, in words.
pub(super) fn adapter(choice: DeviceChoice) -> String {
    match choice {
        DeviceChoice::Cpu => {
            format!("{} {}, {} threads", std::env::consts::ARCH, machine::cpu_features().join(" "), machine::n_cores())
        }
        DeviceChoice::Wgpu(_) | DeviceChoice::Cuda(_) => devices::describe(choice),
    }
}

fn describe(report: &Report) -> String {
    let mut text = String::new();
    let mut fact = |name: &str, value: &str| text += &format!("{name:<30} {value}\n");
    fact("device", &report.about.device);
    fact("adapter", &report.about.adapter);
    fact("runtime", &report.runtime);
    report.dtypes.iter().for_each(|(name, says)| fact(name, says));
    report.features.iter().for_each(|(name, value)| fact(name, value));
    report.limits.iter().for_each(|(name, value)| fact(name, &output::grouped(*value)));
    fact("copy", &format!("{:.1} GB/s", report.rates.copy_bytes_per_s / 1e9));
    for (dtype, rate) in &report.rates.product_flops_per_s {
        fact(&format!("matrix product, {dtype}"), &format!("{:.1} GFLOP/s", rate / 1e9));
    }
    text.push('\n');
    report.operations.iter().for_each(|operation| text += &describe_operation(operation));
    text.push('\n');
    report.training.iter().for_each(|comparison| text += &describe_comparison(comparison));
    if report.operations.iter().all(|operation| operation.speeds.is_empty()) {
        text += "\nnothing was timed: the device is too slow, or busy with other work\n";
    }
    text + &format!("\n{}\n", verdict(report))
}

fn status(passed: bool) -> &'static str {
    if passed { "ok" } else { "FAILED" }
}

fn error_of(worst: Option<f64>, tolerance: f64, error: Option<&str>) -> String {
    let found = worst.map_or(String::new(), |worst| format!("worst error {worst:.1e} of {tolerance:.1e}"));
    match error {
        Some(error) if found.is_empty() => error.to_owned(),
        Some(error) => format!("{found}: {error}"),
        None => found,
    }
}

fn describe_operation(operation: &Operation) -> String {
    let Operation { name, dtype, shape, passed, quantity, worst_error, tolerance, error, speeds } = operation;
    let found = error_of(*worst_error, *tolerance, error.as_deref());
    let mut text = format!("{:<7} {name:<18} {dtype:<5} {shape}: {found}", status(*passed));
    if !quantity.is_empty() {
        text += &format!(" ({quantity})");
    }
    text.push('\n');
    for Speed { shape, pass, best_ms, unit, rate, fraction } in speeds {
        let most = if *unit == "GB/s" { "copy" } else { "product" };
        text += &format!("        {pass:<20} {best_ms:9.2} ms {rate:9.1} {unit}, {fraction:.2} of the {most}; {shape}\n");
    }
    text
}

fn describe_comparison(comparison: &Comparison) -> String {
    let found = error_of(comparison.worst_error, comparison.tolerance, comparison.error.as_deref());
    format!("{:<7} {}: {found}\n", status(comparison.passed), comparison.name)
}

fn verdict(report: &Report) -> String {
    let n = report.passed + report.failed;
    match report.failed {
        0 => format!("{} computes correctly: {n} of {n} checks hold", report.about.device),
        failed => format!("{} does NOT compute correctly: {failed} of {n} checks failed", report.about.device),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(passed: bool, error: Option<&str>) -> Operation {
        Operation {
            name: "rotary",
            dtype: "f16",
            shape: "N 2".to_owned(),
            passed,
            quantity: "dx",
            worst_error: error.is_none().then_some(1e-4),
            tolerance: 2e-4,
            error: error.map(str::to_owned),
            speeds: vec![Speed { shape: "N 64".into(), pass: "forward", best_ms: 0.5, unit: "GB/s", rate: 80.0, fraction: 0.8 }],
        }
    }

    #[test]
    fn an_operation_shows_error_tolerance_and_speed() {
        let text = describe_operation(&operation(true, None));
        assert!(text.starts_with("ok      rotary             f16   N 2: worst error 1.0e-4 of 2.0e-4 (dx)\n"), "{text}");
        assert!(text.contains("80.0 GB/s, 0.80 of the copy; N 64"), "{text}");
    }

    #[test]
    fn a_failed_operation_says_why() {
        let text = describe_operation(&operation(false, Some("no such kernel")));
        assert!(text.starts_with("FAILED  rotary") && text.contains("no such kernel"), "{text}");
    }
}
