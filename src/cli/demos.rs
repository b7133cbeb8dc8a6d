//! `dgpo demos`: episodes of the teacher, for a look or for another run's `data`.
use super::{
    Ended, UsageError,
    args::{DeviceArgs, RecipeArgs, at_least_one, stop_on_interrupt},
    output,
};
use dgpo_core::{
    rng::{Key, Purpose},
    rollout::{Episode, EpisodeStats},
    settings::Sampling,
};
use dgpo_models::TrainBackend;
use dgpo_run::{
    config::Recipe,
    data::sampler::Sampler,
    devices::{DeviceJob, with_device},
    episodes::write_episodes,
    events::Stop,
    pipeline::{
        PipelineError,
        preflight::{Missing, PlannedWork, missing},
        served::Waiting,
        setup::{Play, setup_of},
    },
};
use std::path::{Path, PathBuf};

/// Let the teacher play training questions and keep its correct episodes.
///
/// Example: dgpo demos --config configs/tiny.toml --episodes 64 --out demos.jsonl
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Questions to play.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    episodes: usize,
    /// Where the episodes go, JSON Lines.
    #[arg(long, value_parser = super::args::path, value_name = "FILE")]
    out: PathBuf,
    /// Keep wrong episodes too.
    #[arg(long)]
    all: bool,
    /// Print the teacher's figures as JSON.
    #[arg(long)]
    json: bool,
}

/// Plays the questions on a backend.
struct Demos {
    recipe: Recipe,
    n_episodes: usize,
    stop: Stop,
}
impl DeviceJob for Demos {
    type Output = Result<Vec<Episode>, PipelineError>;
    fn run<B: TrainBackend>(self, device: &B::Device) -> Self::Output {
        let setup = setup_of::<B>(self.recipe, device)?;
        let (recipe, tokenizer) = (&setup.recipe, setup.tokenizer()?);
        let teacher = setup.load(&recipe.model.teacher, &tokenizer)?;
        let retriever = setup.retriever(Path::new("."), &self.stop)?;
        let questions = setup.questions(&recipe.data.train, recipe.data.max_train)?;
        let drawn = Sampler::new(recipe.run.seed, questions.len()).next(self.n_episodes);
        let drawn: Vec<_> = drawn.into_iter().map(|i| questions[i].clone()).collect();
        let sampling = Sampling { temperature: recipe.demos.temperature, ..Sampling::GREEDY };
        let key = Key::new(recipe.run.seed, Purpose::Teacher);
        let mut waiting =
            Waiting { recipe: &recipe.retriever, stop: &self.stop, say: Box::new(output::say) };
        let play =
            Play { model: &teacher, questions: &drawn, sampling, key, is_interruptible: true };
        Ok(setup
            .play_until_served(
                "the teacher's episodes",
                (&tokenizer, retriever.as_ref()),
                play,
                &mut waiting,
            )?
            .value)
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<Ended> {
    let recipe = args.recipe.load_to_play(|_| {})?;
    for (key, is_empty) in [
        ("model.teacher", recipe.model.teacher.is_empty()),
        ("data.train", recipe.data.train.is_empty()),
    ] {
        if is_empty {
            return Err(UsageError(format!(
                "{key} is empty, and the teacher plays nothing; hint: dgpo demos --help"
            ))
            .into());
        }
    }
    Missing::none(missing(PlannedWork::Demos, &recipe, args.device.device))?;
    let job = Demos {
        recipe,
        n_episodes: args.episodes,
        stop: stop_on_interrupt("stopping at the end of the work under way")?,
    };
    let mut episodes = match with_device(args.device.device, job)? {
        Err(PipelineError::Stopped) => return Ok(Ended::Interrupted),
        played => played?,
    };
    let stats = EpisodeStats::of(&episodes);
    episodes.retain(|episode| args.all || (episode.is_trainable() && episode.is_correct()));
    write_episodes(&args.out, &episodes)?;
    if args.json {
        output::json(&stats)?;
    } else {
        let (n, path) = (episodes.len(), args.out.display());
        output::data(&format!(
            "{n} of {} episodes written to {path} (EM {:.3}, {:.2} searches)",
            stats.n_episodes, stats.em, stats.searches
        ))?;
    }
    Ok(Ended::Done)
}
