//! `dgpo reproduce`: the paper's whole experiment on the built-in tiny world, one page with the
//! paper's numbers beside ours.
//!
//! Every row is an ordinary run in a folder of its own. The command may be given again at any time:
//! finished rows are left alone, an interrupted one goes on, and a row that failed is tried again.
use super::{
    Context, Ended, UsageError,
    args::{DeviceArgs, stop_on_interrupt},
    output,
    progress::Progress,
    train,
};
use anyhow::Context as _;
use dgpo_lab::reproduce::{
    forecast::{Forecast, forecast},
    page,
    results::{self, SeedResults, is_finished},
    rows::{ROWS, TableRow},
};
use dgpo_models::files::write_file;
use dgpo_run::{
    config::{Recipe, load::differences},
    eval::Summary,
    events::Stop,
    folder::run_dir::{RunDir, RunDirError},
    pipeline::{
        PipelineError,
        preflight::{Missing, PlannedWork, missing},
        steer::check_inputs,
    },
    report::table::table,
    units::duration,
};
use std::path::{Path, PathBuf};

/// Train every row of the paper's tables on the tiny world, and set the results beside the paper's
/// in docs/reproduction.md and .html.
///
/// Finished rows are skipped and interrupted ones go on, so the same command continues a
/// reproduction that was broken off. Example: dgpo reproduce --seed 1
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Seed of all rows; each has results of its own, and the page shows their mean and spread.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Change one setting of every row; may be repeated. The page says so. Example: --set
    /// rl.steps=2 --set distill.steps=2
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Train nothing: write the pages anew from the results of all seeds.
    #[arg(long, conflicts_with_all = ["seed", "settings", "runs"])]
    render: bool,
    /// Folder for the runs, DIR/seed-N/ROW.
    #[arg(long, value_parser = super::args::path, value_name = "DIR", default_value = "runs/reproduce")]
    runs: PathBuf,
    /// Folder for the pages, and the results in DIR/reproduction/seed-N.json.
    #[arg(long, value_parser = super::args::path, value_name = "DIR", default_value = "docs")]
    out: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print the results (with --render, what was written) as one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, context: Context) -> anyhow::Result<Ended> {
    if args.render {
        let written = page::write(&args.out)?;
        match args.json {
            true => output::json(&written)?,
            false => output::data(&format!(
                "{}\n{}",
                written.markdown.display(),
                written.html.display()
            ))?,
        }
        return Ok(Ended::Done);
    }
    let rows = rows(args)?;
    // All rows read the same models, questions and passages.
    Missing::none(missing(PlannedWork::Train(None), &rows[0].1, args.device.device))?;
    let folder = args.out.join(page::RESULTS_DIR);
    let earlier = results::read_all(&folder)?;
    refuse_other_settings(args, &earlier)?;
    let stop = stop_on_interrupt("stopping after this step, then saving")?;
    let mut experiment = Experiment {
        args,
        folder: args.runs.join(format!("seed-{}", args.seed)),
        progress: Progress::new(context.is_quiet),
        stop,
        results: SeedResults {
            seed: args.seed,
            settings: args.settings.clone(),
            ..SeedResults::default()
        },
    };
    for (at, (row, recipe)) in rows.iter().enumerate() {
        let place = format!("[{}/{}] {}", at + 1, rows.len(), row.name());
        let left = forecast(&rows, at, &experiment.results, &earlier);
        if experiment.stop.is_requested()
            || experiment.make(row, recipe, &place, left)? == Made::Stopped
        {
            output::insist(&format!("stopped; continue with: {}", resume_command(args)));
            return Ok(Ended::Interrupted);
        }
    }
    let path = results::path_of(&folder, args.seed);
    std::fs::create_dir_all(&folder)
        .and_then(|()| write_file(&path, experiment.results.to_json()))
        .with_context(|| {
            format!("cannot write {}; hint: check free space and permissions", path.display())
        })?;
    let written = page::write(&args.out)?;
    match args.json {
        true => output::json(&experiment.results)?,
        false => output::data(&summary(&experiment.results))?,
    }
    output::say(&format!(
        "results: {}; pages: {} and {}",
        path.display(),
        written.markdown.display(),
        written.html.display()
    ));
    let n_failed = experiment.results.failed().count();
    if n_failed > 0 {
        let hint = format!("the page names the reasons; {} tries them again", resume_command(args));
        output::insist(&format!("{n_failed} of {} rows failed; hint: {hint}", rows.len()));
        return Ok(Ended::Failed);
    }
    Ok(Ended::Done)
}

/// Every row with its recipe: a wrong setting is found before anything starts.
fn rows(args: &Args) -> anyhow::Result<Vec<(TableRow, Recipe)>> {
    let is_own = |setting: &&String| {
        ["run.seed", "run.name"].iter().any(|key| setting.trim_start().starts_with(key))
    };
    if let Some(setting) = args.settings.iter().find(is_own) {
        return Err(UsageError(format!(
            "--set {setting}: a reproduction names its runs itself; hint: --seed N, --runs DIR"
        ))
        .into());
    }
    let load = |row: &TableRow| {
        let mut recipe = row
            .recipe(args.seed, &args.settings)
            .with_context(|| format!("the row {}", row.name()))?;
        recipe.run.name = row.name();
        Ok((*row, recipe))
    };
    ROWS.iter().map(load).collect()
}

/// Results at one size are not written over by results at another.
fn refuse_other_settings(args: &Args, known: &[SeedResults]) -> Result<(), UsageError> {
    let other =
        known.iter().find(|results| results.seed == args.seed && results.settings != args.settings);
    let Some(other) = other else { return Ok(()) };
    let path = results::path_of(&args.out.join(page::RESULTS_DIR), args.seed);
    let with = if other.settings.is_empty() {
        "no settings of their own".to_owned()
    } else {
        other.settings.join(", ")
    };
    let hint = "choose another folder with --out, or remove the file";
    Err(UsageError(format!("{} holds results made with {with}; hint: {hint}", path.display())))
}

/// Result of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    /// Done or failed; the results say which.
    Entered,
    /// Ctrl-C.
    Stopped,
}

/// The rows of one seed under way.
struct Experiment<'a> {
    args: &'a Args,
    /// Folder of their runs.
    folder: PathBuf,
    progress: Progress,
    stop: Stop,
    results: SeedResults,
}

impl Experiment<'_> {
    /// Makes a row, unless it is there. A failure is a result too: it must not cost the other rows.
    /// # Errors
    /// If the row's folder holds something else, or finished results cannot be read.
    fn make(
        &mut self,
        row: &TableRow,
        recipe: &Recipe,
        place: &str,
        left: Forecast,
    ) -> anyhow::Result<Made> {
        let existing = existing(&self.folder.join(row.name()), recipe)?;
        if let Some(run) = &existing
            && is_finished(run, recipe)?
        {
            self.results.enter(row, run, recipe)?;
            output::say(&format!("{place}: done before"));
            return Ok(Made::Entered);
        }
        let failed_source = row
            .source()
            .filter(|source| self.results.failed().any(|(failed, _)| failed == source.name()));
        if let Some(source) = failed_source {
            self.fail(
                row,
                place,
                format!("it begins with what {} learned, and that row failed", source.name()),
            );
            return Ok(Made::Entered);
        }
        let verb = if existing.is_some() { "goes on" } else { "starts" };
        output::say(&format!("{place} {verb}{}", told(left)));
        match self.work(row, recipe, existing) {
            Ok((run, Some(summary))) => {
                self.results.enter(row, &run, recipe)?;
                let em =
                    self.results.rows[&row.name()].done().map_or(0.0, |done| done.score.average_em);
                output::say(&format!(
                    "{place}: exact match {em:.3}, {} of work in all",
                    duration(summary.wall_s)
                ));
                Ok(Made::Entered)
            }
            Ok((_, None)) => Ok(Made::Stopped),
            // Another process makes this row: that is no result of it.
            Err(error) if matches!(error.downcast_ref(), Some(RunDirError::Busy { .. })) => {
                Err(error)
            }
            Err(error) => {
                self.fail(row, place, output::without_hint(&format!("{error:#}")).to_owned());
                Ok(Made::Entered)
            }
        }
    }

    fn fail(&mut self, row: &TableRow, place: &str, why: String) {
        output::warn(&format!("{place} failed: {why}"));
        self.results.rows.insert(row.name(), results::Outcome::Failed { why });
    }

    /// Trains and evaluates; no summary after a stop request.
    fn work(
        &mut self,
        row: &TableRow,
        recipe: &Recipe,
        existing: Option<RunDir>,
    ) -> anyhow::Result<(RunDir, Option<Summary>)> {
        let device = self.args.device.device;
        let run = match existing {
            Some(run) => run,
            None => {
                let from = row
                    .source()
                    .map(|source| RunDir::open(&self.folder.join(source.name())))
                    .transpose()?;
                let (provenance, reuse) = train::prepare(recipe, device, from.as_ref())?;
                let run = RunDir::create(&self.folder, &row.name(), recipe, &provenance)?;
                reuse.map_or(Ok(()), |reuse| reuse.apply(&run, recipe))?;
                run
            }
        };
        let _lock = run.lock()?;
        let result =
            train::work(recipe.clone(), run.clone(), device, &mut self.progress, self.stop.clone());
        self.progress.finish();
        match result? {
            Ok(summary) => Ok((run, Some(summary))),
            Err(PipelineError::Stopped) => Ok((run, None)),
            Err(error) => Err(error.into()),
        }
    }
}

/// The run in a row's folder, if it has begun.
/// # Errors
/// If it was made with another recipe or with other files.
fn existing(path: &Path, recipe: &Recipe) -> anyhow::Result<Option<RunDir>> {
    let Ok(run) = RunDir::open(path) else { return Ok(None) };
    match differences(&run.recipe()?, recipe).into_iter().next() {
        None => {
            check_inputs(&run, recipe)?;
            Ok(Some(run))
        }
        Some((key, there, here)) => {
            let hint = "remove its folder, or choose another one for all with --runs and --out";
            Err(UsageError(format!(
                "the run {} was made with {key} = {there}, and now it is {here}; hint: {hint}",
                path.display()
            ))
            .into())
        }
    }
}

/// Time that the rest takes, as far as anything is known of it.
fn told(left: Forecast) -> String {
    let known = duration(left.known_s);
    match left.n_unknown {
        0 => format!("; about {known} left in all"),
        n if left.known_s > 0.0 => {
            format!("; {known} left in all, and {n} rows of kinds that were not measured yet")
        }
        _ => "; the first rows will show how long it takes".to_owned(),
    }
}

/// The averages, row by row.
fn summary(results: &SeedResults) -> String {
    let row = |(name, outcome): (&String, &results::Outcome)| {
        let cells = match outcome.done() {
            Some(done) => [
                format!("{:.3}", done.score.average_em),
                format!("{:.2}", done.score.searches),
                duration(done.own_wall_s),
            ],
            None => ["failed".to_owned(), "-".to_owned(), "-".to_owned()],
        };
        [name.clone()].into_iter().chain(cells).collect()
    };
    table(
        &["row", "average EM", "searches", "own work"],
        &results.rows.iter().map(row).collect::<Vec<_>>(),
    )
}

/// The command that continues.
fn resume_command(args: &Args) -> String {
    let (features, device) = args.device.device.launcher_flags();
    let mut words = vec![format!("cargo xtask {features}reproduce {device}--seed {}", args.seed)];
    words.extend(
        args.settings.iter().map(|setting| format!("--set {}", output::shell_quoted(setting))),
    );
    for (flag, value, default) in
        [("--runs", &args.runs, "runs/reproduce"), ("--out", &args.out, "docs")]
    {
        if value != Path::new(default) {
            words.push(format!("{flag} {}", output::shell_quoted(&value.display().to_string())));
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn args(words: &[&str]) -> Args {
        Command::parse_from([&["reproduce"], words].concat()).args
    }

    #[test]
    fn the_command_that_continues_says_everything_that_was_said() {
        assert_eq!(resume_command(&args(&[])), "cargo xtask reproduce --seed 0");
        let words = ["--seed", "3", "--set", "data.test=[\"a b\"]", "--runs", "my runs"];
        assert_eq!(
            resume_command(&args(&words)),
            "cargo xtask reproduce --seed 3 --set 'data.test=[\"a b\"]' --runs 'my runs'"
        );
    }

    #[test]
    fn results_of_another_size_are_not_written_over() {
        let known = [SeedResults {
            seed: 1,
            settings: vec!["rl.steps=2".into()],
            ..SeedResults::default()
        }];
        let error = refuse_other_settings(&args(&["--seed", "1"]), &known).unwrap_err().to_string();
        assert!(
            error.contains("seed-1.json holds results made with rl.steps=2")
                && error.contains("--out"),
            "{error}"
        );
        assert!(
            refuse_other_settings(&args(&["--seed", "1", "--set", "rl.steps=2"]), &known).is_ok()
        );
        assert!(refuse_other_settings(&args(&["--seed", "0"]), &known).is_ok());
    }

    #[test]
    fn the_seed_is_not_a_setting() {
        assert!(rows(&args(&["--set", "run.seed=3"])).unwrap_err().to_string().contains("--seed"));
        assert_eq!(rows(&args(&["--seed", "4"])).unwrap().len(), ROWS.len());
    }
}
