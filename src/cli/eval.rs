//! `dgpo eval`: one model on question files.
use super::{
    Context, Ended, UsageError,
    args::{DeviceArgs, RecipeArgs, at_least_one, stop_on_interrupt},
    output, table,
};
use anyhow::Context as _;
use dgpo_core::rollout::{Episode, EpisodeStats};
use dgpo_models::{TrainBackend, files::write_file};
use dgpo_run::{
    config::{Recipe, load::to_toml},
    devices::{DeviceJob, with_device},
    episodes::write_episodes,
    eval::{
        Figures,
        arcap::{Arcap, Capabilities, SourceReferencing},
        bootstrap::{Estimate, Interval},
    },
    events::Stop,
    pipeline::{
        PipelineError,
        arcap::ArcapEpisodes,
        overlap::overlap_of,
        preflight::{Missing, PlannedWork, missing},
        served::Waiting,
        setup::setup_of,
    },
};
use std::path::{Path, PathBuf};

/// Where episodes go unless `--out` says otherwise.
const EVALUATIONS_DIR: &str = "evaluations";

/// Evaluate a model: exact match per question file with 95 % intervals, greedy, with the retriever
/// and the protocol of a recipe.
///
/// Example: dgpo eval --model runs/tiny-seed0/checkpoints/rl-step-000100/model --arcap
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Model: folder, owner/name or builtin:NAME [default: model.student of the recipe].
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Question file; may be repeated [default: data.test of the recipe].
    #[arg(long, value_name = "FILE")]
    data: Vec<String>,
    /// At most this many questions of each file.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    limit: Option<usize>,
    /// Measure the capabilities one by one too: source referencing, query rewriting, thinking
    /// (eval.arcap).
    #[arg(long)]
    arcap: bool,
    /// Write every episode to this file, JSON Lines, and the recipe beside it [default: a new file
    /// evaluations/MODEL.jsonl].
    #[arg(long, value_parser = super::args::path, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// Result of an evaluation.
struct Evaluated {
    episodes: Vec<Episode>,
    arcap: Option<ArcapEpisodes>,
    figures: Figures,
}

/// Plays the test questions on a backend.
struct Evaluate {
    recipe: Recipe,
    stop: Stop,
}
impl DeviceJob for Evaluate {
    type Output = Result<Evaluated, PipelineError>;
    fn run<B: TrainBackend>(self, device: &B::Device) -> Self::Output {
        let setup = setup_of::<B>(self.recipe, device)?;
        let tokenizer = setup.tokenizer()?;
        let model = setup.load(&setup.recipe.model.student, &tokenizer)?;
        let retriever = setup.retriever(Path::new("."), &self.stop)?;
        let mut waiting = Waiting {
            recipe: &setup.recipe.retriever,
            stop: &self.stop,
            say: Box::new(output::say),
        };
        let player = (&tokenizer, retriever.as_ref());
        let (episodes, mut figures) = setup.play_test(player, &model, &mut waiting)?;
        let mut arcap = None;
        if setup.recipe.eval.arcap {
            let (played, capabilities) =
                setup.play_arcap(player, &model, &episodes, &mut waiting)?;
            (arcap, figures.arcap) = (Some(played), Some(capabilities));
        }
        Ok(Evaluated { episodes, arcap, figures })
    }
}

pub(super) fn run(args: Args, context: Context) -> anyhow::Result<Ended> {
    let recipe = args.recipe.load_to_play(|recipe| {
        if let Some(model) = args.model {
            recipe.model.student = model;
        }
        if !args.data.is_empty() {
            recipe.data.test = args.data;
        }
        recipe.data.max_test = args.limit.unwrap_or(recipe.data.max_test);
        recipe.eval.arcap |= args.arcap;
    })?;
    if recipe.data.test.is_empty() {
        return Err(UsageError(
            "there is no question to ask: data.test is empty; hint: --data FILE names a question \
             file"
                .into(),
        )
        .into());
    }
    Missing::none(missing(PlannedWork::Evaluate, &recipe, args.device.device))?;
    if !context.is_quiet {
        output::say(&format!(
            "evaluating {} on {}",
            recipe.model.student,
            recipe.data.test.join(", ")
        ));
    }
    if let Some(overlap) = overlap_of(&recipe) {
        output::warn(&overlap.to_string());
    }
    let stop = stop_on_interrupt("stopping at the end of the work under way")?;
    let evaluated =
        match with_device(args.device.device, Evaluate { recipe: recipe.clone(), stop })? {
            Err(PipelineError::Stopped) => return Ok(Ended::Interrupted),
            played => played?,
        };
    let out =
        args.out.unwrap_or_else(|| new_file(Path::new(EVALUATIONS_DIR), &recipe.model.student));
    let written = write(&out, &evaluated, &recipe)?;
    if args.json {
        output::json(&evaluated.figures)?;
    } else {
        output::data(&describe(&evaluated.figures))?;
    }
    output::say(&format!("episodes: {}", written.join(", ")));
    Ok(Ended::Done)
}

/// The first of `DIR/MODEL.jsonl`, `DIR/MODEL-2.jsonl`, … that is not there yet: no evaluation is
/// overwritten by the next one.
fn new_file(dir: &Path, model: &str) -> PathBuf {
    let plain = model.replace(|c: char| !(c.is_alphanumeric() || "._+".contains(c)), "-");
    let name = plain.trim_matches(['-', '.']);
    let file = |n: usize| {
        dir.join(if n == 1 { format!("{name}.jsonl") } else { format!("{name}-{n}.jsonl") })
    };
    (1..).map(file).find(|path| !path.exists()).expect("the numbers do not end")
}

/// Writes the episodes, those of ARCap beside them, and the recipe they were played with as
/// `STEM.toml`; returns the episode files.
fn write(out: &Path, evaluated: &Evaluated, recipe: &Recipe) -> anyhow::Result<Vec<String>> {
    write_episodes(out, &evaluated.episodes)?;
    let mut written = vec![out.display().to_string()];
    let dir = out.parent().unwrap_or(Path::new(""));
    if let Some(arcap) = &evaluated.arcap {
        let names = arcap.write(dir, &stem(out))?;
        written.extend(names.iter().map(|name| dir.join(name).display().to_string()));
    }
    let path = dir.join(stem(out) + ".toml");
    write_file(&path, to_toml(recipe)).with_context(|| {
        format!("cannot write {}; hint: check free space and permissions", path.display())
    })?;
    Ok(written)
}

/// The name of an episode file without `.jsonl` or `.jsonl.gz`.
pub(super) fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    name.strip_suffix(".jsonl").unwrap_or(name).to_owned()
}

/// One row a data set, and the row of all questions; then the capabilities.
fn describe(figures: &Figures) -> String {
    let interval = |dataset: &str, metric: &str| {
        figures.intervals.as_ref()?.datasets.get(dataset)?.get(metric)
    };
    let row = |name: &str, s: &EpisodeStats| {
        let sure = [("em", s.em), ("substring_em", s.substring_em)]
            .map(|(metric, value)| with_interval(value, interval(name, metric)));
        let means = [s.searches, s.nothing_found, s.hit_ratio, s.invalid_actions]
            .map(|x| format!("{x:.3}"));
        let n_lost = (s.retriever_failed * s.n_episodes as f64).round();
        let counts = vec![
            format!("{:.1}", s.response_tokens),
            s.n_episodes.to_string(),
            format!("{n_lost}"),
        ];
        [vec![name.to_owned()], sure.to_vec(), means.to_vec(), counts].concat()
    };
    let mut rows: Vec<_> = figures.datasets.iter().map(|(name, stats)| row(name, stats)).collect();
    rows.push(row("all questions", &figures.all));
    let headers = [
        "data set",
        "EM",
        "substring EM",
        "searches",
        "found nothing",
        "hit ratio",
        "invalid actions",
        "response tokens",
        "questions",
        "lost to retriever",
    ];
    let average = with_interval(
        figures.average_em,
        figures.intervals.as_ref().and_then(|intervals| intervals.average.get("em")),
    );
    let table = table::table(&headers, &rows);
    let text =
        format!("{table}\nunweighted mean of EM over {} data sets: {average}", rows.len() - 1);
    match &figures.arcap {
        Some(arcap) => format!("{text}\n\n{}", describe_arcap(arcap)),
        None => text,
    }
}

/// "0.735 [0.684, 0.781]".
fn with_interval(value: f64, interval: Option<&Interval>) -> String {
    interval.map_or_else(
        || format!("{value:.3}"),
        |Interval { low, high }| format!("{value:.3} [{low:.3}, {high:.3}]"),
    )
}

/// The capabilities of each data set, and what they leave out.
fn describe_arcap(arcap: &Arcap) -> String {
    let cell = |estimate: Option<&Estimate>| {
        estimate.map_or("-".to_owned(), |e| with_interval(e.value, Some(&e.interval)))
    };
    let em = |referencing: &Option<SourceReferencing>| cell(referencing.as_ref().map(|r| &r.em));
    let substring_em = |referencing: &Option<SourceReferencing>| {
        cell(referencing.as_ref().map(|r| &r.substring_em))
    };
    let rows = arcap.datasets.iter().map(|(name, row)| {
        let (rewriting, thinking) = (row.query_rewriting.as_ref(), row.thinking.as_ref());
        vec![
            name.clone(),
            row.n_annotated.to_string(),
            em(&row.without_thinking),
            substring_em(&row.without_thinking),
            em(&row.with_thinking),
            substring_em(&row.with_thinking),
            cell(rewriting.map(|r| &r.first_query_hit_ratio)),
            cell(rewriting.and_then(|r| r.question_hit_ratio.as_ref())),
            cell(thinking.map(|t| &t.hit_ratio)),
            cell(thinking.map(|t| &t.searches)),
            cell(thinking.map(|t| &t.searched)),
        ]
    });
    let headers = [
        "capabilities",
        "with gold passages",
        "EM without thinking",
        "substring EM",
        "EM with thinking",
        "substring EM",
        "first query hits",
        "question hits",
        "any query hits",
        "searches",
        "searched",
    ];
    let mut text = table::table(&headers, &rows.collect::<Vec<_>>());
    let left_out = arcap.left_out();
    if !left_out.is_empty() {
        text += &format!(
            "\nleft out of source referencing, because no question has annotated gold passages: {}",
            left_out.join(", ")
        );
    }
    let part: Vec<String> = arcap
        .in_part()
        .into_iter()
        .map(|name| {
            format!(
                "{name} ({} of {})",
                arcap.datasets[name].n_annotated, arcap.datasets[name].n_questions
            )
        })
        .collect();
    if !part.is_empty() {
        text += &format!(
            "\nsource referencing on the questions with annotated gold passages alone: {}",
            part.join(", ")
        );
    }
    let referencing =
        |row: &Capabilities| row.without_thinking.as_ref().map_or(0, |r| r.n_without_room);
    let n_without_room: usize = arcap.datasets.values().map(referencing).sum();
    if n_without_room > 0 {
        text += &format!(
            "\n{n_without_room} questions count as wrong because their gold passages leave no \
             room; raise episode.max_prompt_length"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_evaluation_gets_a_file_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let first = new_file(dir.path(), "runs/a/checkpoints/rl-step-000100/model");
        assert_eq!(first, dir.path().join("runs-a-checkpoints-rl-step-000100-model.jsonl"));
        std::fs::write(&first, "").unwrap();
        assert_eq!(
            new_file(dir.path(), "runs/a/checkpoints/rl-step-000100/model"),
            dir.path().join("runs-a-checkpoints-rl-step-000100-model-2.jsonl")
        );
        assert_eq!(new_file(dir.path(), "../x"), dir.path().join("x.jsonl"));
    }

    #[test]
    fn the_recipe_has_the_name_of_the_episodes() {
        assert_eq!(
            ["a/b.jsonl", "b.jsonl.gz", "b.txt", "b"].map(|path| stem(Path::new(path))),
            ["b", "b", "b.txt", "b"]
        );
    }

    #[test]
    fn what_has_no_interval_is_shown_without() {
        assert_eq!(with_interval(0.5, None), "0.500");
        assert_eq!(
            with_interval(0.5, Some(&Interval { low: 0.25, high: 0.75 })),
            "0.500 [0.250, 0.750]"
        );
    }
}
