//! `dgpo train`: a whole run, or the part of it that a recipe's stage names.
use super::{
    Context, Outcome, UsageError,
    args::{DeviceArgs, RecipeArgs, stop_on_interrupt},
    output, plan,
    progress::Progress,
    table,
};
use crate::{
    config::Recipe,
    eval::Summary,
    pipeline::{Pipeline, PipelineError},
    trainer::{
        devices::{Job, with_device},
        events::Stop,
        provenance::Provenance,
        run_dir::{RUNS_DIR, RunDir, RunDirError},
    },
};
use dgpo_models::TrainBackend;
use std::path::{Path, PathBuf};

/// Train: teacher episodes, KD cold start, DGPO, evaluation. Without arguments: the built-in tiny world.
///
/// Example: dgpo train --config configs/tiny.toml --name first --set run.seed=1
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Name of the run: its folder is runs/NAME. Default: the recipe's run.name, or its file name and the seed, with a number where that exists.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Continue an interrupted run with its own recipe. Example: --resume runs/tiny-seed0
    #[arg(long, value_name = "DIR", conflicts_with_all = ["name", "config", "overrides", "dry_run"])]
    resume: Option<PathBuf>,
    /// Show the resolved recipe and what it will cost, and start nothing (the same as `dgpo plan`).
    #[arg(long)]
    dry_run: bool,
    /// Print the final figures as one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// The run on a backend.
struct Train<'a> {
    recipe: Recipe,
    run: RunDir,
    progress: &'a mut Progress,
    stop: Stop,
}
impl Job for Train<'_> {
    type Output = Result<Summary, PipelineError>;
    fn run<B: TrainBackend>(self, device: &B::Device) -> Self::Output {
        let Self { recipe, run, progress, stop } = self;
        let mut observer = |event: crate::trainer::events::Event<'_>| progress.on(event);
        Pipeline::<B>::new(recipe, run, &mut observer, stop, device)?.run()
    }
}

/// Does nothing: a device that this binary cannot use is refused before a run directory is made.
struct Probe;
impl Job for Probe {
    type Output = ();
    fn run<B: TrainBackend>(self, _: &B::Device) {}
}

pub(super) fn run(args: Args, context: Context) -> anyhow::Result<Outcome> {
    if args.dry_run {
        plan::show(&args.recipe.load()?, args.json)?;
        return Ok(Outcome::Done);
    }
    with_device(args.device.device, Probe)?;
    let (recipe, run) = match &args.resume {
        Some(path) => {
            let run = RunDir::open(path)?;
            (run.recipe()?, run)
        }
        None => create(&args)?,
    };
    let path = run.path().to_owned();
    output::say(&format!("run {} (seed {}, {})", path.display(), recipe.run.seed, args.device.device));
    let stop = stop_on_interrupt()?;
    let mut progress = Progress::new(context.is_quiet);
    let result = with_device(args.device.device, Train { recipe, run, progress: &mut progress, stop })?;
    progress.finish();
    match result {
        Ok(summary) => {
            if args.json {
                output::json(&summary)?
            } else {
                output::data(&table::summary(&summary))?
            }
            output::say(&format!("{}; everything is in {}", output::duration(summary.wall_s), path.display()));
            Ok(Outcome::Done)
        }
        Err(PipelineError::Stopped) => {
            output::say(&format!("stopped; continue with: cargo xtask train --resume {}", path.display()));
            Ok(Outcome::Interrupted)
        }
        Err(error) => {
            Err(anyhow::Error::from(error)
                .context(format!("the run {} failed; continue with: cargo xtask train --resume {0}", path.display())))
        }
    }
}

/// A new run directory for the recipe.
fn create(args: &Args) -> anyhow::Result<(Recipe, RunDir)> {
    let loaded = args.recipe.load()?;
    let base = loaded.run_name();
    let recipe = loaded.recipe;
    let provenance = Provenance::collect(&args.device.device.to_string(), &recipe)?;
    let root = Path::new(RUNS_DIR);
    let chosen = args.name.as_ref().or(Some(&recipe.run.name).filter(|name| !name.is_empty()));
    if let Some(name) = chosen {
        if name.contains(['/', '\\']) || name.starts_with('.') {
            return Err(UsageError(format!("\"{name}\" is no name for a run; hint: letters, digits, - and _; it becomes runs/NAME")).into());
        }
        let run = RunDir::create(root, name, &recipe, &provenance)?;
        return Ok((recipe, run));
    }
    let mut number = 1;
    loop {
        let name = if number == 1 { base.clone() } else { format!("{base}-{number}") };
        match RunDir::create(root, &name, &recipe, &provenance) {
            Err(RunDirError::Exists(_)) => number += 1,
            created => return Ok((recipe, created?)),
        }
    }
}
