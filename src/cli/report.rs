//! `dgpo report`: a run directory as pages for people.
use super::{Ended, output, runs};
use dgpo_run::report::{self, Written};

/// Write a run's report: report.html, report.md, and tb/ for TensorBoard. A training run ends with
/// one.
///
/// Example: dgpo report runs/tiny-seed0
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Name of a run in ./runs, or its folder.
    #[arg(value_name = "NAME|DIR")]
    run: String,
    /// Print where everything was written as one JSON object instead.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Ended> {
    let written = report::write(&runs::find(&args.run)?)?;
    warn(&written);
    if args.json {
        output::json(&written)?;
    } else {
        let page = format!(
            "{} ({}, {} episodes)",
            written.html.display(),
            output::bytes(written.size_bytes as u64),
            written.n_episodes
        );
        output::data(&format!(
            "{page}\n{}\n{}",
            written.markdown.display(),
            written.tensorboard.display()
        ))?;
    }
    Ok(Ended::Done)
}

/// Says what the report lacks.
pub(super) fn warn(written: &Written) {
    for warning in &written.warnings {
        output::warn(&format!("the report lacks something: {warning}"));
    }
}
