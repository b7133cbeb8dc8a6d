//! `dgpo portability`: does this device compute what the definitions say, and how fast?
use super::{Ended, args::DeviceArgs, machine, output};
use dgpo_lab::portability::{
    self, About, DeviceReport, NotTimed, Operation, Speed, StepComparison,
};
use dgpo_models::TrainBackend;
use dgpo_run::devices::{self, DeviceChoice, DeviceJob, with_device};
use std::collections::BTreeMap;

/// Check every operation and one training step on this machine's device, and measure how fast they
/// are.
///
/// Takes about two minutes; exit code 1 if anything deviates. Everything is compared with
/// definitions in f64, training with the CPU.
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

/// The report goes into `report`: what the device says after the job (see [`with_device`]) must not
/// take it away.
struct Examine<'a> {
    about: About,
    report: &'a mut Option<DeviceReport>,
}

impl DeviceJob for Examine<'_> {
    type Output = ();
    fn run<B: TrainBackend>(self, device: &B::Device) {
        *self.report =
            Some(portability::run::<B>(self.about, device, &|what| tracing::info!("{what}")));
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<Ended> {
    let choice = args.device.device;
    let about = About {
        device: choice.to_string(),
        adapter: adapter(choice),
        is_cpu: choice == DeviceChoice::Cpu,
    };
    let mut report = None;
    let ended = with_device(choice, Examine { about, report: &mut report });
    let Some(mut report) = report else {
        ended?;
        anyhow::bail!("the device was not examined");
    };
    if let Err(error) = ended {
        report.fail(output::without_hint(&error.to_string()).to_owned());
    }
    if args.json {
        output::json(&report)?;
    } else {
        output::data(&describe(&report))?;
    }
    Ok(if report.failed == 0 { Ended::Done } else { Ended::Failed })
}

/// Description of what computes.
pub(super) fn adapter(choice: DeviceChoice) -> String {
    match choice {
        DeviceChoice::Cpu => {
            format!(
                "{} {}, {} threads",
                std::env::consts::ARCH,
                machine::cpu_features().join(" "),
                machine::n_cores()
            )
        }
        DeviceChoice::Wgpu(_) | DeviceChoice::Cuda(_) => devices::describe(choice),
    }
}

fn describe(report: &DeviceReport) -> String {
    let mut text = String::new();
    let mut fact = |name: &str, value: &str| text += &format!("{name:<30} {value}\n");
    fact("device", &report.about.device);
    fact("adapter", &report.about.adapter);
    fact("runtime", &report.runtime);
    report.dtypes.iter().for_each(|(name, says)| fact(name, says));
    report.features.iter().for_each(|(name, value)| fact(name, value));
    report.limits.iter().for_each(|(name, value)| fact(name, &output::grouped(*value)));
    fact("kernels", report.kernels);
    if let Some(rate) = report.rates.copy_bytes_per_s {
        fact("copy", &format!("{:.1} GB/s", rate / 1e9));
    }
    for (dtype, rate) in &report.rates.product_flops_per_s {
        fact(&format!("matrix product, {dtype}"), &format!("{:.1} GFLOP/s", rate / 1e9));
    }
    report
        .rates
        .errors
        .iter()
        .for_each(|(what, why)| fact(what, &format!("{}: {why}", status(false))));
    text.push('\n');
    report.operations.iter().for_each(|operation| text += &describe_operation(operation));
    text.push('\n');
    report.training.iter().for_each(|comparison| text += &describe_comparison(comparison));
    if let Some(error) = &report.device_error {
        text += &format!("{:<7} the device, asked at the end: {error}\n", status(false));
    }
    text += &describe_not_timed(&report.not_timed);
    text + &format!("\n{}\n", verdict(report))
}

fn status(passed: bool) -> &'static str {
    if passed { "ok" } else { "FAILED" }
}

fn error_of(worst: Option<f64>, tolerance: f64, error: Option<&str>) -> String {
    let found =
        worst.map_or(String::new(), |worst| format!("worst error {worst:.1e} of {tolerance:.1e}"));
    match error {
        Some(error) if found.is_empty() => error.to_owned(),
        Some(error) => format!("{found}: {error}"),
        None => found,
    }
}

fn describe_operation(operation: &Operation) -> String {
    let Operation { name, dtype, shape, passed, quantity, worst_error, tolerance, error, speeds } =
        operation;
    let found = error_of(*worst_error, *tolerance, error.as_deref());
    let mut text = format!("{:<7} {name:<18} {dtype:<5} {shape}: {found}", status(*passed));
    if !quantity.is_empty() {
        text += &format!(" ({quantity})");
    }
    text.push('\n');
    for Speed { shape, pass, best_ms, unit, rate, fraction } in speeds {
        let most = if *unit == "GB/s" { "copy" } else { "product" };
        let fraction =
            fraction.map_or(String::new(), |fraction| format!(", {fraction:.2} of the {most}"));
        text +=
            &format!("        {pass:<20} {best_ms:9.2} ms {rate:9.1} {unit}{fraction}; {shape}\n");
    }
    text
}

/// A line for each float type and reason.
fn describe_not_timed(not_timed: &[NotTimed]) -> String {
    let mut lines: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for NotTimed { name, dtype, why, .. } in not_timed {
        let names = lines.entry((dtype, why)).or_default();
        if !names.contains(name) {
            names.push(name);
        }
    }
    let lines: String = lines
        .iter()
        .map(|((dtype, why), names)| format!("not timed in {dtype}: {}; {why}\n", names.join(", ")))
        .collect();
    if lines.is_empty() { lines } else { format!("\n{lines}") }
}

fn describe_comparison(comparison: &StepComparison) -> String {
    let found = error_of(comparison.worst_error, comparison.tolerance, comparison.error.as_deref());
    format!("{:<7} {}: {found}\n", status(comparison.passed), comparison.name)
}

fn verdict(report: &DeviceReport) -> String {
    let n = report.passed + report.failed;
    match report.failed {
        0 => format!("{} computes correctly: {n} of {n} checks hold", report.about.device),
        failed => format!(
            "{} does NOT compute correctly: {failed} of {n} checks failed",
            report.about.device
        ),
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
            speeds: vec![Speed {
                shape: "N 64".into(),
                pass: "forward",
                best_ms: 0.5,
                unit: "GB/s",
                rate: 80.0,
                fraction: Some(0.8),
            }],
        }
    }

    #[test]
    fn an_operation_shows_error_tolerance_and_speed() {
        let text = describe_operation(&operation(true, None));
        assert!(
            text.starts_with(
                "ok      rotary             f16   N 2: worst error 1.0e-4 of 2.0e-4 (dx)\n"
            ),
            "{text}"
        );
        assert!(text.contains("80.0 GB/s, 0.80 of the copy; N 64"), "{text}");
    }

    #[test]
    fn a_failed_operation_says_why() {
        let text = describe_operation(&operation(false, Some("no such kernel")));
        assert!(text.starts_with("FAILED  rotary") && text.contains("no such kernel"), "{text}");
    }

    #[test]
    fn what_was_not_timed_or_failed_late_is_said() {
        let left =
            |name, dtype| NotTimed { name, dtype, shape: "N 2".into(), why: "no time".into() };
        let mut report = DeviceReport {
            about: About { device: "gpu".into(), adapter: "a card".into(), is_cpu: false },
            runtime: "none".into(),
            features: BTreeMap::new(),
            limits: BTreeMap::new(),
            kernels: "fused",
            dtypes: BTreeMap::new(),
            rates: portability::Rates {
                errors: [("matrix product, bf16".into(), "no such kernel".into())].into(),
                ..Default::default()
            },
            operations: vec![operation(true, None)],
            not_timed: vec![
                left("rotary", "f16"),
                left("sample", "f16"),
                left("rotary", "f16"),
                left("rotary", "bf16"),
            ],
            training: Vec::new(),
            device_error: None,
            passed: 1,
            failed: 1,
        };
        report.fail("lost".into());
        let text = describe(&report);
        let expected = [
            "matrix product, bf16           FAILED: no such kernel\n",
            "FAILED  the device, asked at the end: lost\n",
            "not timed in bf16: rotary; no time\nnot timed in f16: rotary, sample; no time\n",
            "gpu does NOT compute correctly: 2 of 3 checks failed\n",
        ];
        expected.iter().for_each(|line| assert!(text.contains(line), "{line} in {text}"));
    }
}
