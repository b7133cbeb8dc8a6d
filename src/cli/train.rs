//! `dgpo train`: a whole run, or the part of it that a recipe's stage names.
use super::{
    Context, Ended, UsageError,
    args::{DeviceArgs, RecipeArgs, stop_on_interrupt},
    next, output, plan,
    progress::Progress,
    report, runs, table,
};
use dgpo_core::trainer::guards::Alarm;
use dgpo_models::TrainBackend;
use dgpo_run::{
    config::{Loaded, Recipe, Stage, check},
    devices::{self, DeviceChoice, DeviceError, DeviceJob, with_device},
    eval::Summary,
    events::Stop,
    folder::{
        checkpoint,
        provenance::Provenance,
        run_dir::{RECIPE_FILE, RUNS_DIR, RunDir, RunDirError},
    },
    pipeline::{
        self, PipelineError,
        preflight::{Missing, PlannedWork, missing},
        reuse::Reuse,
        steer::{self, Steered, steered},
    },
    units::duration,
};
use std::path::{Path, PathBuf};

/// Train: teacher episodes, KD cold start, DGPO, evaluation, or whatever phases the recipe's stage
/// names. Without arguments: the built-in tiny world.
///
/// Example: dgpo train --config configs/tiny.toml --name first --set run.seed=1
///
/// Exit codes: 0 done, 1 failed, 2 wrong recipe or flags, 3 stopped by a guard (`guards` in the
/// recipe), 130 interrupted; after 3 and 130 `--resume` goes on from the newest checkpoint.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Name of the run: its folder is runs/NAME. Default: the recipe's run.name, or its file name
    /// and the seed, with a number where that exists.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Take over what another run has finished and this one would do in the same way: teacher
    /// episodes, KD, GKD, RL. Example: --from tiny-kd-seed0
    #[arg(long, value_name = "NAME|DIR", conflicts_with_all = ["resume", "dry_run"])]
    from: Option<String>,
    /// Continue an interrupted run with its own recipe, or with --set a finished one for longer.
    /// Example: --resume runs/tiny-seed0
    ///
    /// --set changes what is still to come: lengths of phases and episodes, learning rates,
    /// kl.coef, rl.entropy_coef, guards.*, eval.*, data.test, run.keep and run.save_every, memory
    /// and servers (configs/README.md lists the keys). Example: --set rl.steps=1500
    #[arg(long, value_parser = super::args::path, value_name = "DIR", conflicts_with_all = ["name", "config", "dry_run"])]
    resume: Option<PathBuf>,
    /// Show what the run would do, what it costs and what is missing for it, and start nothing (the
    /// same as `dgpo plan`).
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
impl DeviceJob for Train<'_> {
    type Output = Result<Summary, PipelineError>;
    fn run<B: TrainBackend>(self, device: &B::Device) -> Self::Output {
        let Self { recipe, run, progress, stop } = self;
        let mut observer = |event: dgpo_run::events::Event<'_>| progress.on(event);
        pipeline::run::<B>(recipe, run, &mut observer, stop, device)
    }
}

/// Goes through the phases of a run that are not done yet.
pub(super) fn work(
    recipe: Recipe,
    run: RunDir,
    device: DeviceChoice,
    progress: &mut Progress,
    stop: Stop,
) -> Result<Result<Summary, PipelineError>, DeviceError> {
    progress.follow(&recipe);
    with_device(device, Train { recipe, run, progress, stop })
}

pub(super) fn run(args: Args, context: Context) -> anyhow::Result<Ended> {
    if args.dry_run {
        return plan::show(&load(&args)?, args.device.device, args.json);
    }
    let mut told: Option<Steered> = None;
    let (recipe, run, made) = match &args.resume {
        Some(path) => {
            let run = RunDir::open(path)?;
            let steered = steered(&run, &args.recipe.overrides)?;
            Missing::none(missing(
                PlannedWork::Train(Some(&run)),
                &steered.recipe,
                args.device.device,
            ))?;
            let recipe = steered.recipe.clone();
            told = Some(steered);
            (recipe, run, None)
        }
        None => {
            let loaded = load(&args)?;
            Missing::none(missing(PlannedWork::Train(None), &loaded.recipe, args.device.device))?;
            let from = args.from.as_deref().map(runs::find).transpose()?;
            let (recipe, run) = create(loaded, args.device.device, from.as_ref())?;
            let made = run.contents();
            (recipe, run, Some(made))
        }
    };
    let (path, finished, made_from) = (run.path().to_owned(), run.clone(), recipe.clone());
    // Held until the process ends: a second one would write into the same files.
    let lock = run.lock()?;
    if let Some(told) = told {
        told.record(&run, &std::env::args().collect::<Vec<_>>())?;
    }
    output::say(&format!(
        "run {} (seed {}, {})",
        path.display(),
        recipe.run.seed,
        args.device.device
    ));
    let stop = stop_on_interrupt("stopping after this step, then saving")?;
    let mut progress = Progress::new(context.is_quiet);
    let result = work(recipe, run, args.device.device, &mut progress, stop);
    progress.finish();
    let has_done_nothing = made.is_some_and(|made| finished.contents() == made);
    // A device that fails ends a run like everything else.
    match result.map_err(PipelineError::from).flatten() {
        Ok(summary) => {
            let figures = table::summary(&summary);
            if args.json {
                output::json(&summary)?
            } else if !figures.is_empty() {
                output::data(&figures)?
            }
            write_report(&finished);
            output::say(&format!(
                "{}; everything is in {}",
                duration(summary.wall_s),
                path.display()
            ));
            output::say(&format!(
                "next: {}",
                next::command(&finished, &made_from, args.device.device)
            ));
            Ok(Ended::Done)
        }
        Err(PipelineError::Stopped) if has_done_nothing => {
            drop(lock);
            finished.remove()?;
            output::insist(&format!(
                "stopped before anything was done; {} is gone again",
                path.display()
            ));
            Ok(Ended::Interrupted)
        }
        Err(PipelineError::Stopped) => {
            // The training of an encoder does not resume.
            let how = if made_from.stage == Stage::Encoder { "begin it again" } else { "continue" };
            output::insist(&format!(
                "stopped; {how} with: {}",
                resume_command(&path, args.device.device)
            ));
            Ok(Ended::Interrupted)
        }
        Err(PipelineError::Guard(alarms)) => {
            // With what the guard saw in its curves.
            write_report(&finished);
            let context = format!(
                "a guard stopped the run {}; {}",
                path.display(),
                behind_a_guard(&alarms, &finished, args.device.device)
            );
            Err(anyhow::Error::from(PipelineError::Guard(alarms)).context(context))
        }
        // An outage passes, and the run waits for its end.
        Err(error)
            if has_done_nothing
                && !matches!(error, PipelineError::RetrieverDown { is_refused: false, .. }) =>
        {
            drop(lock);
            finished.remove()?;
            Err(anyhow::Error::from(error).context(format!(
                "the run {} failed before it did anything; its folder is gone again",
                path.display()
            )))
        }
        Err(error) => {
            let next = resume_command(&path, args.device.device);
            Err(with_advice(error, &path, made_from.stage)
                .context(format!("the run {} failed; continue with: {next}", path.display())))
        }
    }
}

/// The run is done whatever becomes of its report, which can be written again at any time.
fn write_report(run: &RunDir) {
    match dgpo_run::report::write(run) {
        Ok(written) => {
            report::warn(&written);
            output::say(&format!("report: {}", written.html.display()));
        }
        Err(error) => output::warn(&format!(
            "the report was not written: {error}; hint: `dgpo report {}` writes it again",
            output::shell_quoted(&run.path().display().to_string())
        )),
    }
}

/// The command that continues a run on the same device.
fn resume_command(run: &Path, device: DeviceChoice) -> String {
    let (features, device) = device.launcher_flags();
    format!(
        "cargo xtask {features}train {device}--resume {}",
        output::shell_quoted(&run.display().to_string())
    )
}

/// Continuation of a run that a guard has stopped: with half the learning rate, or where that is no
/// cure, as another run.
fn behind_a_guard(alarms: &[Alarm], run: &RunDir, device: DeviceChoice) -> String {
    let Ok(recipe) = run.recipe() else {
        return format!("see {}", run.path().join(RECIPE_FILE).display());
    };
    let newest = checkpoint::list_checkpoints(run.path(), recipe.stage).unwrap_or_default().pop();
    match alarms.iter().find_map(Alarm::rate_to_lower) {
        Some(key) => {
            let rates = &recipe.optim;
            let rate = if key == "optim.actor.lr" { rates.actor.lr } else { rates.distill.lr };
            let next = resume_command(run.path(), device);
            format!(
                "continue from its newest checkpoint with another setting, as with: {next} --set \
                 {key}={:e} (to go on from before the first bad step, remove the checkpoints from \
                 that step on)",
                rate / 2.0
            )
        }
        None => {
            let settings =
                ["model.dtype=f32", "episode.top_p=1", "episode.top_k=0"].map(str::to_owned);
            format!(
                "begin another one from its newest checkpoint: {}",
                steer::own_run(run, newest.as_ref(), &settings)
            )
        }
    }
}

/// What lies in a checkpoint was written by the run itself, so the advice for models from elsewhere
/// (fetch it again) is wrong for it.
fn with_advice(error: PipelineError, run: &Path, stage: Stage) -> anyhow::Error {
    let PipelineError::State(damage) = &error else { return error.into() };
    let told = damage.to_string();
    let checkpoints = checkpoint::list_checkpoints(run, stage).unwrap_or_default();
    let damaged = checkpoints
        .iter()
        .map(|checkpoint| checkpoint.path.display().to_string())
        .find(|folder| told.contains(folder));
    match damaged {
        Some(folder) => anyhow::anyhow!(
            "{}; hint: this checkpoint is damaged: remove the folder {}, and the run goes on from \
             the checkpoint before it",
            output::without_hint(&told),
            output::shell_quoted(&folder)
        ),
        None => error.into(),
    }
}

/// The recipe, with the name that `--name` gives the run.
fn load(args: &Args) -> anyhow::Result<Loaded> {
    let mut loaded = args.recipe.load()?;
    let Some(name) = &args.name else { return Ok(loaded) };
    loaded.recipe.run.name.clone_from(name);
    // The rule that the run's own recipe has to pass when the run is opened again.
    let broken =
        check::check(&loaded.recipe).errors.into_iter().find(|problem| problem.key == "run.name");
    match broken {
        Some(problem) => {
            Err(UsageError(format!("--name: {}; hint: {}", problem.message, problem.hint)).into())
        }
        None if name.is_empty() => Err(UsageError(
            "--name is empty; hint: leave it out, and the run is named after its recipe".into(),
        )
        .into()),
        None => Ok(loaded),
    }
}

/// A new run directory for the recipe, filled with the phases that it reuses.
fn create(
    loaded: Loaded,
    device: DeviceChoice,
    from: Option<&RunDir>,
) -> anyhow::Result<(Recipe, RunDir)> {
    let base = loaded.run_name();
    let recipe = loaded.recipe;
    let (provenance, reuse) = prepare(&recipe, device, from)?;
    let root = Path::new(RUNS_DIR);
    let mut number = 1;
    let run = loop {
        let name = if number == 1 { base.clone() } else { format!("{base}-{number}") };
        match RunDir::create(root, &name, &recipe, &provenance) {
            Err(RunDirError::Exists(_) | RunDirError::Occupied(_))
                if recipe.run.name.is_empty() =>
            {
                number += 1
            }
            created => break created?,
        }
    };
    if let Some(reuse) = reuse {
        reuse.apply(&run, &recipe)?;
        reuse.describe().iter().for_each(|line| output::say(line));
    }
    Ok((recipe, run))
}

/// Facts that are known before there is a run directory: what the run is made with, and the phases
/// that it reuses.
pub(super) fn prepare(
    recipe: &Recipe,
    device: DeviceChoice,
    from: Option<&RunDir>,
) -> anyhow::Result<(Provenance, Option<Reuse>)> {
    let mut provenance = Provenance::collect(&devices::describe(device), recipe)?;
    let reuse = from.map(|source| Reuse::plan(source, recipe, &provenance.files)).transpose()?;
    provenance.taken_over = reuse.as_ref().map(|reuse| reuse.taken.clone());
    Ok((provenance, reuse))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resume_line_can_be_pasted() {
        let cpu = resume_command(Path::new("my runs/a"), DeviceChoice::Cpu);
        assert_eq!(cpu, "cargo xtask train --resume 'my runs/a'");
        let gpu = resume_command(Path::new("runs/a"), DeviceChoice::Cuda(1));
        assert_eq!(gpu, "cargo xtask --features cuda train --device cuda:1 --resume runs/a");
    }
}
