//! `dgpo eval`: one model on question files.
use super::{
    Context, Outcome,
    args::{DeviceArgs, RecipeArgs, at_least_one, stop_on_interrupt},
    output, table,
};
use crate::{
    config::Recipe,
    eval::Figures,
    pipeline::{PipelineError, setup::setup_of},
    rollout::{Episode, EpisodeStats, episode::write_episodes},
    trainer::{
        devices::{Job, with_device},
        events::Stop,
    },
};
use dgpo_models::TrainBackend;
use std::path::{Path, PathBuf};

/// Evaluate a model: exact match per question file, greedy, with the retriever and the protocol of a recipe.
///
/// Example: dgpo eval --model runs/tiny-seed0/checkpoints/rl-step-000100/model
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
    /// Write every episode to this file, JSON Lines.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// Plays the test questions on a backend.
struct Evaluate {
    recipe: Recipe,
    stop: Stop,
}
impl Job for Evaluate {
    type Output = Result<(Vec<Episode>, Figures), PipelineError>;
    fn run<B: TrainBackend>(self, device: &B::Device) -> Self::Output {
        let setup = setup_of::<B>(self.recipe, device)?;
        let tokenizer = setup.tokenizer()?;
        let model = setup.load(&setup.recipe.model.student, &tokenizer)?;
        let retriever = setup.retriever(Path::new("."), &self.stop)?;
        setup.play_test(&tokenizer, retriever.as_ref(), &model, &self.stop)
    }
}

pub(super) fn run(args: Args, context: Context) -> anyhow::Result<Outcome> {
    let mut recipe = args.recipe.load()?.recipe;
    if let Some(model) = args.model {
        recipe.model.student = model;
    }
    if !args.data.is_empty() {
        recipe.data.test = args.data;
    }
    recipe.data.max_test = args.limit.unwrap_or(recipe.data.max_test);
    let name = recipe.model.student.clone();
    if !context.is_quiet {
        output::say(&format!("evaluating {name} on {}", recipe.data.test.join(", ")));
    }
    let stop = stop_on_interrupt("stopping at the end of the work under way")?;
    let (episodes, figures) = match with_device(args.device.device, Evaluate { recipe, stop })? {
        Err(PipelineError::Stopped) => return Ok(Outcome::Interrupted),
        played => played?,
    };
    if let Some(path) = &args.out {
        write_episodes(path, &episodes)?;
    }
    if args.json {
        output::json(&figures)?;
    } else {
        output::data(&describe(&figures))?;
    }
    Ok(Outcome::Done)
}

/// One row a data set, and the row of all questions.
fn describe(figures: &Figures) -> String {
    let row = |name: &str, s: &EpisodeStats| {
        let means = [s.em, s.substring_em, s.searches, s.hit_ratio, s.invalid_actions].map(|x| format!("{x:.3}"));
        let n_lost = (s.retriever_failed * s.n_episodes as f64).round();
        let counts = vec![format!("{:.1}", s.response_tokens), s.n_episodes.to_string(), format!("{n_lost}")];
        [vec![name.to_owned()], means.to_vec(), counts].concat()
    };
    let mut rows: Vec<_> = figures.datasets.iter().map(|(name, stats)| row(name, stats)).collect();
    rows.push(row("all questions", &figures.all));
    let headers =
        ["data set", "EM", "substring EM", "searches", "hit ratio", "invalid actions", "response tokens", "questions", "lost to retriever"];
    format!("{}\nunweighted average EM over {} data sets: {:.3}", table::table(&headers, &rows), rows.len() - 1, figures.average_em)
}
