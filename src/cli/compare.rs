//! `dgpo runs compare`: two runs, or two evaluations, side by side.
use super::{UsageError, eval::stem, output, runs, table};
use anyhow::Context;
use dgpo_run::{
    config::{
        Recipe, Stage,
        load::{differences, load_part},
    },
    episodes::read_episodes,
    eval::{
        compare::{Changed, Comparison, Difference, Side, compare},
        intervals::METRICS,
        models_of,
    },
    folder::run_dir::RunDir,
};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Compare two runs, or two files of episodes: the settings that differ, every figure on the
/// questions both played with a paired bootstrap, and the questions that one side alone answered.
///
/// Example: dgpo runs compare tiny-seed0 tiny-seed1 --model rl
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A run (its name in ./runs, or its folder), or a file of episodes such as dgpo eval writes.
    #[arg(value_name = "RUN|FILE")]
    left: String,
    /// What to compare it with; a difference is this one minus the other.
    #[arg(value_name = "RUN|FILE")]
    right: String,
    /// Of runs, only this evaluated model: student, teacher, kd, gkd, rl [default: all that both
    /// have; beside a file, the last].
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// List every question that changed, not the first five gained and lost.
    #[arg(long)]
    all: bool,
    /// Seed of the resamples.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print one JSON object instead.
    #[arg(long)]
    json: bool,
}

/// Changed questions shown of each kind, unless `--all`.
const N_SHOWN: usize = 5;

/// A side as it was named on the command line.
struct Source {
    name: String,
    /// `None` where nobody knows what the episodes were played with.
    recipe: Option<Recipe>,
    /// A run's evaluations by model, in the order of [`models_of`] its stage; of a file the file
    /// itself.
    models: Vec<(String, PathBuf)>,
    is_file: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let (left, right) = (Source::open(&args.left)?, Source::open(&args.right)?);
    let mut comparisons: Vec<(String, Comparison)> = Vec::new();
    for (model, left, right) in pairs(&left, &right, args.model.as_deref())? {
        let mut comparison = compare(&read_episodes(&left)?, &read_episodes(&right)?, args.seed);
        if comparison.n_paired == 0 {
            output::warn(&format!(
                "{model}: the two sides played no question in common; hint: evaluate both on the \
                 same files"
            ));
        }
        if !args.all {
            comparison.gained.truncate(N_SHOWN);
            comparison.lost.truncate(N_SHOWN);
        }
        comparisons.push((model, comparison));
    }
    let settings = left
        .recipe
        .as_ref()
        .zip(right.recipe.as_ref())
        .map(|(left, right)| differences(left, right));
    if args.json {
        let settings = settings.map(|settings| {
            settings
                .iter()
                .map(|(key, left, right)| json!({ "key": key, "left": left, "right": right }))
                .collect::<Vec<_>>()
        });
        let models: Map<String, Value> = comparisons
            .iter()
            .map(|(model, comparison)| (model.clone(), json!(comparison)))
            .collect();
        return output::json(&json!({
            "left": left.name,
            "right": right.name,
            "recipe": settings,
            "models": models,
        }));
    }
    let mut text = format!("left  {}\nright {}\n", left.name, right.name);
    text += &match settings {
        None => format!(
            "\nno recipe beside {}: settings are not compared\n",
            nameless(&[&left, &right])
        ),
        Some(settings) if settings.is_empty() => "\nno setting differs\n".to_owned(),
        Some(settings) => {
            let rows: Vec<_> = settings
                .iter()
                .map(|(key, left, right)| vec![key.clone(), left.to_string(), right.to_string()])
                .collect();
            format!("\n{}", table::table(&["setting", "left", "right"], &rows))
        }
    };
    for (model, comparison) in &comparisons {
        text += &format!("\n{}", describe(model, comparison));
    }
    output::data(&text)
}

impl Source {
    /// # Errors
    /// If the name is neither a run nor a file.
    fn open(name: &str) -> anyhow::Result<Self> {
        let path = Path::new(name);
        if path.is_file() {
            let models = vec![("episodes".to_owned(), path.to_owned())];
            return Ok(Self {
                name: name.to_owned(),
                recipe: recipe_of(path)?,
                models,
                is_file: true,
            });
        }
        if [".jsonl", ".jsonl.gz"].iter().any(|ending| name.ends_with(ending)) {
            let hint = "`dgpo eval` writes one, and a run holds episodes/eval-MODEL.jsonl";
            return Err(UsageError(format!("there is no file {name}; hint: {hint}")).into());
        }
        let run = runs::find(name)?;
        let recipe = run.recipe()?;
        let models = evaluations(&run, recipe.stage)?;
        Ok(Self {
            name: run.path().display().to_string(),
            recipe: Some(recipe),
            models,
            is_file: false,
        })
    }

    /// The evaluation of a model, or of the last one.
    /// # Errors
    /// If the run has not evaluated it.
    fn evaluation(&self, model: Option<&str>) -> anyhow::Result<(String, PathBuf)> {
        let found = match model {
            Some(model) if !self.is_file => self.models.iter().find(|(known, _)| known == model),
            _ => self.models.last(),
        };
        found.cloned().ok_or_else(|| {
            let known: Vec<&str> = self.models.iter().map(|(known, _)| known.as_str()).collect();
            let known = if known.is_empty() { "nothing yet".to_owned() } else { known.join(", ") };
            let wanted = model.unwrap_or("a model");
            UsageError(format!(
                "{} has no evaluation of {wanted}; hint: it evaluated {known}",
                self.name
            ))
            .into()
        })
    }
}

/// The recipe that a file of episodes was played with: beside it as `STEM.toml`, or its run's.
fn recipe_of(path: &Path) -> anyhow::Result<Option<Recipe>> {
    let dir = path.parent().unwrap_or(Path::new(""));
    let of_run =
        dir.file_name().filter(|name| *name == "episodes").map(|_| dir.join("../recipe.toml"));
    let candidates = [Some(dir.join(stem(path) + ".toml")), of_run];
    let found = candidates.iter().flatten().find(|candidate| candidate.is_file());
    Ok(found
        .map(|found| load_part(&found.to_string_lossy(), &[]))
        .transpose()?
        .map(|loaded| loaded.recipe))
}

/// `episodes/eval-MODEL.jsonl` of a run, in the order of [`models_of`] its stage; others first, by
/// name.
fn evaluations(run: &RunDir, stage: Stage) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let (known, mut found) = (models_of(stage), BTreeMap::new());
    let dir = run.episodes_dir();
    let untold =
        || format!("cannot read {}; hint: check the folder and its permissions", dir.display());
    for entry in std::fs::read_dir(&dir).with_context(untold)? {
        let path = entry.with_context(untold)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let model = name.strip_prefix("eval-").and_then(|name| name.strip_suffix(".jsonl"));
        // The answers to given passages lie there too; they are no evaluation of their own.
        if let Some(model) = model.filter(|model| !model.contains("-arcap-")) {
            let place = known.iter().position(|known| *known == model);
            found.insert((place, model.to_owned()), path);
        }
    }
    Ok(found.into_iter().map(|((_, model), path)| (model, path)).collect())
}

/// Which files to compare, and under which name.
fn pairs(
    left: &Source,
    right: &Source,
    model: Option<&str>,
) -> anyhow::Result<Vec<(String, PathBuf, PathBuf)>> {
    if left.is_file || right.is_file || model.is_some() {
        let (left, right) = (left.evaluation(model)?, right.evaluation(model)?);
        let name = if left.0 == "episodes" { right.0 } else { left.0 };
        return Ok(vec![(name, left.1, right.1)]);
    }
    let common = |(model, path): &(String, PathBuf)| {
        let (_, other) = right.models.iter().find(|(known, _)| known == model)?;
        Some((model.clone(), path.clone(), other.clone()))
    };
    let pairs: Vec<_> = left.models.iter().filter_map(common).collect();
    if pairs.is_empty() {
        let message = format!("{} and {} have evaluated no model in common", left.name, right.name);
        let hint = "compare files of episodes instead: RUN/episodes/eval-MODEL.jsonl";
        return Err(UsageError(format!("{message}; hint: {hint}")).into());
    }
    Ok(pairs)
}

fn nameless(sources: &[&Source]) -> String {
    let nameless = sources.iter().filter(|source| source.recipe.is_none());
    nameless.map(|source| source.name.as_str()).collect::<Vec<_>>().join(" and ")
}

/// One model's figures and the questions that changed.
fn describe(model: &str, comparison: &Comparison) -> String {
    let Comparison {
        n_paired, n_identical, n_only_left, n_only_right, n_lost_to_retriever, ..
    } = comparison;
    let mut text = format!(
        "{model}: {n_paired} questions that both played, {n_identical} of them token by token \
         alike\n"
    );
    let unpaired = [
        (n_only_left, "played by the left side alone"),
        (n_only_right, "played by the right side alone"),
        (n_lost_to_retriever, "lost to the retriever"),
    ];
    for (n, why) in unpaired.into_iter().filter(|(n, _)| **n > 0) {
        text += &format!("not compared: {n} questions {why}\n");
    }
    if *n_paired == 0 || n_identical == n_paired {
        return text;
    }
    let mut rows: Vec<Vec<String>> = Vec::new();
    if comparison.datasets.len() > 1 {
        rows.extend(rows_of("mean over data sets", &comparison.average));
    }
    for (dataset, differences) in &comparison.datasets {
        rows.extend(rows_of(dataset, &differences.metrics));
    }
    let headers = ["figure", "left", "right", "difference", "95 % interval", "other sign"];
    text += &format!("\n{}", table::table(&headers, &rows));
    text += &list("gained (right alone answers)", comparison.n_gained, &comparison.gained);
    text + &list("lost (left alone answers)", comparison.n_lost, &comparison.lost)
}

fn rows_of(dataset: &str, metrics: &BTreeMap<&'static str, Difference>) -> Vec<Vec<String>> {
    let row = |name: &&str| {
        let Difference { left, right, difference, interval, p_value } = metrics.get(name)?;
        let cells = vec![
            format!("{dataset}: {name}"),
            format!("{left:.3}"),
            format!("{right:.3}"),
            format!("{difference:+.3}"),
            format!("[{:+.3}, {:+.3}]", interval.low, interval.high),
            p_value.map_or("-".to_owned(), |share| format!("{share:.3}")),
        ];
        Some(cells)
    };
    METRICS.iter().filter_map(row).collect()
}

fn list(title: &str, n: usize, changed: &[Changed]) -> String {
    let shown = if changed.len() < n {
        format!(", {} shown; --all lists them", changed.len())
    } else {
        String::new()
    };
    let mut text = format!("\n{title}: {n} questions{shown}\n");
    for Changed { dataset, id, question, golden_answers, left, right } in changed {
        text += &format!("  {dataset} {id}: {question} ({})\n", golden_answers.join(" | "));
        text += &format!("    left  {}\n    right {}\n", side(left), side(right));
    }
    text
}

/// `"Kel" after "Nolmar director" (hit)`.
fn side(side: &Side) -> String {
    let answer = side
        .prediction
        .as_ref()
        .map_or("no answer".to_owned(), |prediction| format!("{prediction:?}"));
    let queries: Vec<String> = side.queries.iter().map(|query| format!("{query:?}")).collect();
    match queries.is_empty() {
        true => format!("{answer} without a search"),
        false => format!(
            "{answer} after {}{}",
            queries.join(", "),
            if side.has_hit { " (hit)" } else { "" }
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dgpo_run::episodes::write_episodes;

    #[test]
    fn a_run_lists_its_evaluations_in_the_order_of_training() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDir::create(root.path(), "a", &Recipe::default(), &json!({})).unwrap();
        for name in [
            "eval-rl",
            "eval-zero",
            "eval-kd",
            "eval-kd-arcap-with-thinking",
            "rl-step-000100",
            "eval-student",
        ] {
            write_episodes(&run.episodes_dir().join(format!("{name}.jsonl")), &[]).unwrap();
        }
        let models = |stage| {
            evaluations(&run, stage)
                .unwrap()
                .into_iter()
                .map(|(model, _)| model)
                .collect::<Vec<String>>()
        };
        assert_eq!(models(Stage::Pipeline), ["zero", "student", "kd", "rl"]);
        assert_eq!(models(Stage::RlDistill), ["zero", "student", "rl", "kd"]);
    }

    #[test]
    fn a_side_is_told_in_one_line() {
        let queries = vec!["Nolmar director".to_owned()];
        let told = side(&Side { prediction: Some("Kel".to_owned()), queries, has_hit: true });
        assert_eq!(told, "\"Kel\" after \"Nolmar director\" (hit)");
        assert_eq!(
            side(&Side { prediction: None, queries: Vec::new(), has_hit: false }),
            "no answer without a search"
        );
    }
}
