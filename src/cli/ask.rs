//! `dgpo ask`: one question, one episode, shown by author.
use super::{
    Ended,
    args::{DeviceArgs, RecipeArgs, temperature},
    output,
};
use dgpo_core::{
    question::Question,
    rng::{Key, Purpose},
    rollout::{Episode, Segment, Status},
    settings::Sampling,
};
use dgpo_models::TrainBackend;
use dgpo_run::{
    config::{Recipe, RetrieverKind},
    data::corpus::Corpus,
    devices::{DeviceJob, with_device},
    events::Stop,
    hub,
    pipeline::{
        PipelineError,
        preflight::{Missing, PlannedWork, missing},
        setup::setup_of,
    },
};
use serde_json::json;
use std::path::Path;

/// Ask one question and watch the agent think, search and answer.
///
/// Example: dgpo ask "Where was the founder of Teil Press born?" --model builtin:tiny/teacher
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The question.
    question: String,
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Model: folder, owner/name or builtin:NAME [default: model.student of the recipe].
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Sampling temperature; 0 is greedy.
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature, allow_negative_numbers = true)]
    temperature: f64,
    /// Print the episode as one JSON object instead.
    #[arg(long)]
    json: bool,
}

/// Plays the question on a backend: the episode and each segment's text.
struct Ask {
    recipe: Recipe,
    question: String,
    temperature: f64,
}
impl DeviceJob for Ask {
    type Output = Result<(Episode, Vec<String>), PipelineError>;
    fn run<B: TrainBackend>(self, device: &B::Device) -> Self::Output {
        let setup = setup_of::<B>(self.recipe, device)?;
        let tokenizer = setup.tokenizer()?;
        let model = setup.load(&setup.recipe.model.student, &tokenizer)?;
        let retriever = setup.retriever(Path::new("."), &Stop::default())?;
        let question = Question {
            id: "asked".to_owned(),
            dataset: "asked".to_owned(),
            question: self.question,
            golden_answers: Vec::new(),
            supporting: Vec::new(),
            supporting_kind: String::new(),
        };
        let sampling = Sampling { temperature: self.temperature, ..Sampling::GREEDY };
        let key = Key::new(setup.recipe.run.seed, Purpose::Eval);
        let player = setup.player(&tokenizer, retriever.as_ref(), &|| false);
        let mut episodes = player.play(&model, &[question], sampling, key, &setup.device)?;
        let episode = episodes.remove(0);
        let texts =
            episode.segments.iter().map(|segment| tokenizer.decode(segment.ids())).collect();
        Ok((episode, texts))
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<Ended> {
    let recipe = args.recipe.load_to_play(|recipe| {
        if let Some(model) = args.model {
            recipe.model.student = model;
        }
    })?;
    Missing::none(missing(PlannedWork::Ask, &recipe, args.device.device))?;
    if let Some(warning) = about_the_invented_world(&recipe, &args.question)? {
        output::warn(&warning);
    }
    let job = Ask { recipe, question: args.question, temperature: args.temperature };
    let (episode, texts) = with_device(args.device.device, job)??;
    if args.json {
        output::json(&json!({ "episode": episode, "texts": texts }))?;
        return outcome_of(&episode);
    }
    let mut shown = String::new();
    for (segment, text) in episode.segments.iter().zip(&texts) {
        let author = match segment {
            Segment::Prompt { .. } => "prompt",
            Segment::Agent { .. } => "agent",
            Segment::Observation { .. } => "environment",
        };
        shown += &format!("--- {author} ({} tokens)\n{}\n", segment.ids().len(), text.trim());
    }
    shown += &match &episode.prediction {
        Some(answer) => format!("--- answer\n{answer}\n"),
        None => format!("--- no answer: {}\n", ending(&episode.status)),
    };
    output::data(&shown)?;
    outcome_of(&episode)
}

/// What to say where the passages are the built-in invented ones and the model was not made for
/// them, or the question is not about them.
/// # Errors
/// If the passages cannot be read.
fn about_the_invented_world(recipe: &Recipe, question: &str) -> anyhow::Result<Option<String>> {
    const BUILT_IN: &str = "builtin:";
    if recipe.retriever.kind == RetrieverKind::Remote || !recipe.data.corpus.starts_with(BUILT_IN) {
        return Ok(None);
    }
    let corpus = Corpus::open(&hub::resolve(&recipe.data.corpus)?)?;
    let asked = question.to_lowercase();
    let titles = (0..corpus.len())
        .filter_map(|i| corpus.passage(i).ok())
        .map(|passage| passage.title().trim_matches('"').to_lowercase());
    let is_about = titles.into_iter().any(|title| asked.contains(&title));
    let what = match (is_about, recipe.model.student.starts_with(BUILT_IN)) {
        (true, true) => return Ok(None),
        (true, false) => "the model is searching",
        (false, _) => "the question names nothing that is in",
    };
    Ok(Some(format!(
        "{what} the built-in encyclopaedia, an invented world of {} passages; hint: --set \
         data.corpus=FILE searches passages of your own, with --set retriever.kind=bm25 without an \
         index",
        corpus.len()
    )))
}

/// An episode that a failed search ended is a failure of this command: nothing was found out about
/// the agent.
fn outcome_of(episode: &Episode) -> anyhow::Result<Ended> {
    match &episode.status {
        Status::RetrieverFailed(why) => {
            Err(anyhow::anyhow!("a search of the episode failed: {why}"))
        }
        _ => Ok(Ended::Done),
    }
}

fn ending(status: &Status) -> &'static str {
    match status {
        Status::Answered => "the answer is blank",
        Status::TruncatedTurns => "out of turns",
        Status::TruncatedLength => "out of tokens",
        Status::PromptTooLong => "the prompt left no room for an answer",
        Status::RetrieverFailed(_) => "a search failed",
    }
}
