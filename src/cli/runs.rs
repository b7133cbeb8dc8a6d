//! `dgpo runs list|show|compare`: what was run here, and what came out.
use super::{Ended, UsageError, compare, output, table};
use clap::Subcommand;
use dgpo_core::trainer::metrics;
use dgpo_run::{
    config::{Recipe, Stage, load::differences},
    eval::{MODELS, Summary},
    folder::{
        checkpoint, provenance,
        run_dir::{ALARM, RUNS_DIR, RunDir, alarms, list_runs},
    },
    hub,
    units::duration,
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// List runs, show one (its settings, figures and last metrics), or compare two.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// List the runs of a folder with their stage, progress and exact match.
    ///
    /// Example: dgpo runs list
    List {
        /// Folder that holds the runs.
        #[arg(long, value_parser = super::args::path, value_name = "DIR", default_value = RUNS_DIR)]
        dir: PathBuf,
        /// Print a JSON array instead.
        #[arg(long)]
        json: bool,
    },
    /// Show what a run changed from the defaults, its final figures and its last metrics.
    ///
    /// Example: dgpo runs show tiny-seed0
    Show {
        /// Name of a run in ./runs, or its folder.
        #[arg(value_name = "NAME|DIR")]
        run: String,
        /// Print one JSON object instead.
        #[arg(long)]
        json: bool,
    },
    Compare(compare::Args),
}

pub(super) fn run(args: Args) -> anyhow::Result<Ended> {
    match args.command {
        Command::List { dir, json } => list(&dir, json)?,
        Command::Show { run, json } => show(&run, json)?,
        Command::Compare(args) => compare::run(&args)?,
    }
    Ok(Ended::Done)
}

/// A run in the list.
#[derive(Debug, Serialize)]
struct RunRow {
    name: String,
    stage: Option<Stage>,
    /// Phase and step of the last metrics line.
    phase: Option<String>,
    step: Option<u64>,
    /// Exact match of the evaluated models.
    em: BTreeMap<&'static str, f64>,
    /// Seconds since the run last wrote.
    age_s: Option<u64>,
    /// Why parts of the row are missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl RunRow {
    /// A damaged run is a row with its error, not the end of the list.
    fn of(run: &RunDir) -> Self {
        let mut error = None;
        let mut keep = |e: &dyn std::fmt::Display| error = Some(e.to_string());
        let stage = run.recipe().map(|recipe| recipe.stage).map_err(|e| keep(&e)).ok();
        let last =
            run.read_metrics().map_err(|e| keep(&e)).unwrap_or_default().pop().unwrap_or_default();
        let summary: Summary =
            run.summary().map_err(|e| keep(&e)).unwrap_or_default().unwrap_or_default();
        Self {
            name: run.name(),
            stage,
            phase: last.get("phase").and_then(Value::as_str).map(str::to_owned),
            step: last.get("step").and_then(Value::as_u64),
            em: summary
                .rows()
                .into_iter()
                .filter_map(|(name, figures)| Some((name, figures?.all.em)))
                .collect(),
            age_s: last_change(run.path())
                .and_then(|time| SystemTime::now().duration_since(time).ok())
                .map(|age| age.as_secs()),
            error,
        }
    }
}

/// When the newest file directly in the run's folder was written.
fn last_change(dir: &Path) -> Option<SystemTime> {
    let files = std::fs::read_dir(dir).ok()?.filter_map(Result::ok);
    files.filter_map(|entry| entry.metadata().ok()?.modified().ok()).max()
}

fn list(dir: &Path, as_json: bool) -> anyhow::Result<()> {
    let rows: Vec<RunRow> = list_runs(dir)?.iter().map(RunRow::of).collect();
    if as_json {
        return output::json(&rows);
    }
    if rows.is_empty() {
        output::say(&format!("no runs in {}", dir.display()));
        return Ok(());
    }
    let cells = |row: &RunRow| {
        let em = |model: &str| row.em.get(model).map_or("-".to_owned(), |em| format!("{em:.3}"));
        let at = match (&row.phase, row.step) {
            (Some(phase), Some(step)) => format!("{phase} {step}"),
            _ => "-".to_owned(),
        };
        let stage = row.stage.map_or("?".to_owned(), stage_name);
        let age = row.age_s.map_or("-".to_owned(), |s| duration(s as f64));
        [vec![row.name.clone(), stage, at], MODELS.map(em).to_vec(), vec![age]].concat()
    };
    let of_models = MODELS.map(|model| format!("{model} EM"));
    let headers: Vec<&str> = ["run", "stage", "at step"]
        .into_iter()
        .chain(of_models.iter().map(String::as_str))
        .chain(["age"])
        .collect();
    output::data(&table::table(&headers, &rows.iter().map(cells).collect::<Vec<_>>()))?;
    for row in &rows {
        if let Some(error) = &row.error {
            output::warn(&format!("{}: {error}", row.name));
        }
    }
    Ok(())
}

fn stage_name(stage: Stage) -> String {
    json!(stage).as_str().unwrap_or_default().to_owned()
}

/// The run called `name`: a folder, or a folder in ./runs.
pub(super) fn find(name: &str) -> anyhow::Result<RunDir> {
    let inside = Path::new(RUNS_DIR).join(name);
    let path = hub::expand(name)?;
    if let Ok(run) = RunDir::open(Path::new(&path)).or_else(|_| RunDir::open(&inside)) {
        return Ok(run);
    }
    let known: Vec<String> = list_runs(Path::new(RUNS_DIR))?.iter().map(RunDir::name).collect();
    let hint = match dgpo_models::suggest::did_you_mean(name, known.iter().map(String::as_str)) {
        Some(guess) => format!("did you mean {guess}?"),
        None => "`dgpo runs list` shows the runs there are".to_owned(),
    };
    Err(UsageError(format!("there is no run {name}; hint: {hint}")).into())
}

fn show(name: &str, as_json: bool) -> anyhow::Result<()> {
    let run = find(name)?;
    let recipe = run.recipe()?;
    let changed = differences(&Recipe::default(), &recipe);
    let (summary, lines) = (run.summary::<Summary>()?, run.read_metrics()?);
    let newest = checkpoint::list_checkpoints(run.path(), recipe.stage)?.pop();
    let (last, last_eval) =
        (last_of_each_phase(&lines), lines.iter().rev().find(|line| is_evaluation(line)));
    let alarms = alarms(&lines);
    let made_with = run.provenance()?;
    if as_json {
        let changed: Map<String, Value> =
            changed.iter().map(|(key, _, value)| (key.clone(), json!(value))).collect();
        return output::json(&json!({
            "name": run.name(),
            "stage": recipe.stage,
            "changed": changed,
            "changes": made_with["changes"],
            "summary": summary,
            "last_metrics": last,
            "last_eval": last_eval,
            "alarms": alarms.iter().map(|(what, _)| what).collect::<Vec<_>>(),
            "checkpoint": newest.map(|checkpoint| checkpoint.path),
        }));
    }
    let mut text = format!(
        "{} ({})\n\nsettings that differ from the defaults\n",
        run.path().display(),
        stage_name(recipe.stage)
    );
    for (key, default, value) in changed {
        text += &format!("  {key} = {value}    (default {default})\n");
    }
    let changes = provenance::changes(&made_with);
    if !changes.is_empty() {
        text += &format!("\nsettings that changed on the way\n  {}\n", changes.join("\n  "));
    }
    if let Some(summary) = &summary {
        text += &format!("\n{}", describe_summary(summary));
    }
    let titled = last
        .into_iter()
        .map(|line| ("last of", line))
        .chain(last_eval.map(|line| ("last evaluation in", line)));
    for (title, line) in titled {
        text += &format!(
            "\n{title} {}\n",
            line.get("phase").and_then(Value::as_str).unwrap_or_default()
        );
        for (key, value) in line.iter().filter(|(key, _)| *key != "phase") {
            text += &format!("  {key} {value}\n");
        }
    }
    for (what, advice) in alarms {
        text += &format!("\nthe guards saw: {what}\n  {advice}\n");
    }
    if let Some(checkpoint) = newest {
        text += &format!("\nnewest checkpoint {}\n", checkpoint.path.display());
    }
    output::data(&text)
}

fn describe_summary(summary: &Summary) -> String {
    format!("{}\nseed {}, {}\n", table::summary(summary), summary.seed, duration(summary.wall_s))
}

/// An evaluation between steps has a line of its own, under the phase and step it interrupts.
fn is_evaluation(line: &Map<String, Value>) -> bool {
    line.contains_key(metrics::EVAL_AVERAGE_EM)
}

/// The last training line of each phase, in the order of the phases' first lines.
fn last_of_each_phase(metrics: &[Map<String, Value>]) -> Vec<&Map<String, Value>> {
    let mut last: Vec<&Map<String, Value>> = Vec::new();
    for line in metrics.iter().filter(|line| !is_evaluation(line) && !line.contains_key(ALARM)) {
        match last.iter_mut().find(|known| known.get("phase") == line.get("phase")) {
            Some(known) => *known = line,
            None => last.push(line),
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use dgpo_core::settings::Phase;
    use dgpo_run::eval::Figures;

    #[test]
    fn a_row_shows_how_far_a_run_is_and_what_it_reached() {
        let root = tempfile::tempdir().unwrap();
        let mut recipe = Recipe { stage: Stage::Rl, ..Default::default() };
        (recipe.data.train, recipe.data.corpus) = (vec!["q.jsonl".into()], "c.jsonl".into());
        let run = RunDir::create(root.path(), "a", &recipe, &json!({})).unwrap();
        run.metrics(None).unwrap().append(Phase::Rl, 7, &[]).unwrap();
        let mut figures = Figures::default();
        figures.all.em = 0.5;
        run.write_summary(&Summary { rl: Some(figures), ..Default::default() }).unwrap();
        let row = RunRow::of(&run);
        assert_eq!(
            (row.stage, row.phase.as_deref(), row.step),
            (Some(Stage::Rl), Some("rl"), Some(7))
        );
        assert_eq!((row.em, row.error), (BTreeMap::from([("rl", 0.5)]), None));
    }

    #[test]
    fn a_damaged_run_is_a_row_with_its_error() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDir::create(root.path(), "a", &Recipe::default(), &json!({})).unwrap();
        std::fs::write(run.path().join("summary.json"), "{").unwrap();
        assert!(RunRow::of(&run).error.is_some_and(|error| error.contains("summary.json")));
    }

    #[test]
    fn each_phase_shows_its_last_line() {
        let line = |phase: &str, step: u64| {
            Map::from_iter([("phase".to_owned(), json!(phase)), ("step".to_owned(), json!(step))])
        };
        let mut evaluation = line("rl", 1);
        evaluation.insert(metrics::EVAL_AVERAGE_EM.to_owned(), json!(0.5));
        let mut alarm = line("kd", 2);
        alarm.insert(ALARM.to_owned(), json!("repetition"));
        let lines = [line("kd", 1), line("kd", 2), alarm, line("rl", 1), evaluation];
        assert_eq!(last_of_each_phase(&lines), [&line("kd", 2), &line("rl", 1)]);
    }
}
