//! `dgpo conformance DIR`: the project's own code against recorded reference numbers.
use super::{Ended, args::DeviceArgs, output};
use dgpo_lab::conformance::{self, Case, Check, ConformanceError, FixtureReport};
use dgpo_models::TrainBackend;
use dgpo_run::devices::{DeviceJob, with_device};
use std::path::{Path, PathBuf};

/// Compare this program with recorded reference numbers; exit code 1 if anything deviates.
///
/// Example: dgpo conformance tests/oracles
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder with one or more families: models, step, losses, ppo, text, ann.
    #[arg(value_parser = super::args::path)]
    dir: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print one JSON object on one line instead.
    #[arg(long)]
    json: bool,
}

/// The comparison on a backend.
struct Compare<'a>(&'a Path);
impl DeviceJob for Compare<'_> {
    type Output = Result<FixtureReport, ConformanceError>;
    fn run<B: TrainBackend>(self, device: &B::Device) -> Self::Output {
        conformance::run::<B>(self.0, device)
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<Ended> {
    let report = with_device(args.device.device, Compare(&args.dir))??;
    if args.json {
        output::json_line(&report)?;
    } else {
        output::data(&describe(&report))?;
    }
    Ok(if report.failed == 0 { Ended::Done } else { Ended::Failed })
}

fn describe(report: &FixtureReport) -> String {
    let mut text = String::new();
    for (family, cases) in &report.families {
        for case in cases {
            text += &describe_case(family, case);
        }
    }
    text + &format!("{} passed, {} failed\n", report.passed, report.failed)
}

/// One line a case with its worst deviation, and one line for each check that failed or differs on
/// purpose.
fn describe_case(family: &str, case: &Case) -> String {
    let status = if case.passed() { "pass" } else { "FAIL" };
    let mut text = format!("{status}  {family}/{}: {} checks", case.name, case.checks.len());
    // The share of its tolerance that a deviation uses makes different checks comparable.
    let used = |check: &Check| Some(check.deviation? / check.tolerance?.max(f64::MIN_POSITIVE));
    let worst = case
        .checks
        .iter()
        .filter_map(|check| Some((used(check)?, check)))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((_, check)) = worst {
        let (deviation, tolerance) =
            (check.deviation.unwrap_or_default(), check.tolerance.unwrap_or_default());
        text += &format!(", worst deviation {deviation:.1e} of {tolerance:.1e} at {}", check.key);
    }
    text.push('\n');
    for check in &case.checks {
        if let Some(message) = &check.message {
            let kind = if check.passed { "note" } else { "FAIL" };
            text += &format!("      {kind}  {}: {message}\n", check.key);
        } else if !check.passed {
            text += &format!("      FAIL  {}\n", check.key);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use dgpo_lab::conformance::Tolerance;

    #[test]
    fn a_case_shows_the_check_that_uses_most_of_its_tolerance() {
        let mut case = Case::new("a");
        case.close("loose", &[1.5], &[1.0], Tolerance::abs(1.0));
        case.close("tight", &[1.001], &[1.0], Tolerance::abs(0.002));
        let text = describe_case("losses", &case);
        assert!(
            text.starts_with("pass  losses/a: 2 checks, worst deviation 1.0e-3 of 2.0e-3 at tight"),
            "{text}"
        );
    }

    #[test]
    fn a_failed_check_is_named_with_its_reason() {
        let mut case = Case::new("a");
        case.fail("shape", "3 values, expected 4");
        let text = describe_case("ppo", &case);
        assert!(
            text.starts_with("FAIL  ppo/a") && text.contains("FAIL  shape: 3 values, expected 4"),
            "{text}"
        );
    }
}
