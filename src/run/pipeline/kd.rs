//! Supervised phases and what they learn from: KD from teacher episodes or trajectories, language
//! modelling from passages and trajectories.
use super::{
    Inner, PipelineError,
    demos::demos_phase,
    distill::{Distillation, distil},
    run::Run,
    source::{EpisodeSource, GivenSource, MixedSource},
};
use crate::{
    config::{DemosRecipe, plan::distill_steps},
    data::corpus::Corpus,
    episodes::given::{GivenEpisode, episode_from_given, read_given},
    hub,
};
use dgpo_core::{
    engine::StopReason,
    env::{prompt, search::Retriever},
    question::Question,
    rollout::{Episode, Segment, Status},
    settings::{DistillRecipe, Phase},
    tokenizer::{Tokenizer, first_tokens},
};
use dgpo_models::{TrainBackend, decoder::Decoder};

/// KD on `data.trajectories` if there are any, else on the teacher's episodes; with DistiLLM's
/// scheduler on the student's own, too.
/// # Errors
/// As [`distil`]; if there is nothing to learn from.
pub(super) fn kd_phase<B: TrainBackend>(
    run: &mut Run<'_, B>,
    tokenizer: &Tokenizer,
    retriever: Option<&dyn Retriever>,
    start: Decoder<Inner<B>>,
) -> Result<Decoder<Inner<B>>, PipelineError> {
    let phase = Phase::Kd;
    let episodes = match retriever {
        Some(retriever) if run.setup.recipe.data.trajectories.is_empty() => {
            demos_phase(run, (tokenizer, retriever))?
        }
        _ => given_episodes(run, tokenizer)?,
    };
    let (recipe, seed) = (run.setup.recipe.distill.clone(), run.setup.recipe.run.seed);
    let teacher = match recipe.kl_weight == 0.0 {
        true => None,
        false => run.setup.load_teacher(tokenizer)?,
    };
    let outputs = &recipe.student_outputs;
    let source = match retriever {
        Some(retriever) if outputs.is_adaptive => {
            let questions = run.training_questions(phase)?;
            let player = (tokenizer, retriever);
            let mixed = MixedSource::new(episodes, player, questions, seed, outputs)?;
            EpisodeSource::Mixed(Box::new(mixed))
        }
        _ => EpisodeSource::Given(GivenSource::new(episodes, seed)),
    };
    let total = distill_steps(&recipe, source.sampler().n_items);
    distil(run, start, Distillation { phase, teacher, source, recipe, total })
}

/// The trajectories of the recipe's files that `demos` keeps: as if the teacher had played them
/// here.
fn given_episodes<B: TrainBackend>(
    run: &mut Run<'_, B>,
    tokenizer: &Tokenizer,
) -> Result<Vec<Episode>, PipelineError> {
    let mut episodes = trajectory_episodes(run, tokenizer, usize::MAX)?;
    let (n_all, DemosRecipe { only_correct, max_kept, .. }) =
        (episodes.len(), run.setup.recipe.demos.clone());
    // Records hold episodes that the retriever failed, too.
    episodes.retain(|episode| episode.is_trainable() && (episode.is_correct() || !only_correct));
    episodes.truncate(if max_kept == 0 { usize::MAX } else { max_kept });
    let which = if only_correct { "correct ones" } else { "right or wrong" };
    run.say(&format!("trajectories: {} of {n_all} kept ({which})", episodes.len()));
    if n_all > 0 && episodes.is_empty() {
        let why = format!("none of the {n_all} trajectories ends in a gold answer");
        let hint = "check golden_answers of data.trajectories, or set demos.only_correct to false";
        return Err(PipelineError::NothingToTrain { phase: Phase::Kd, why, hint });
    }
    at_least_one(Phase::Kd, episodes)
}

/// Language modelling on passages as plain text and on some trajectories (for their format).
/// # Errors
/// As [`distil`]; if there is nothing to learn from.
pub(super) fn pretrain<B: TrainBackend>(
    run: &mut Run<'_, B>,
    tokenizer: &Tokenizer,
    start: Decoder<Inner<B>>,
) -> Result<Decoder<Inner<B>>, PipelineError> {
    let phase = Phase::Pretrain;
    let settings = run.setup.recipe.pretrain.clone();
    let limit = if settings.max_trajectories == 0 { usize::MAX } else { settings.max_trajectories };
    let mut episodes = passage_episodes(run, tokenizer, &start)?;
    episodes.extend(trajectory_episodes(run, tokenizer, limit)?);
    let episodes = at_least_one(phase, episodes)?;
    let recipe = DistillRecipe {
        ce_weight: 1.0,
        kl_weight: 0.0,
        batch: settings.batch,
        ..run.setup.recipe.distill.clone()
    };
    let source = EpisodeSource::Given(GivenSource::new(episodes, run.setup.recipe.run.seed));
    let task = Distillation { phase, teacher: None, source, recipe, total: settings.steps };
    distil(run, start, task)
}

/// The first `limit` trajectories of each of the recipe's files as episodes.
fn trajectory_episodes<B: TrainBackend>(
    run: &Run<'_, B>,
    tokenizer: &Tokenizer,
    limit: usize,
) -> Result<Vec<Episode>, PipelineError> {
    let mut given: Vec<GivenEpisode> = Vec::new();
    for name in &run.setup.recipe.data.trajectories {
        given.extend(read_given(&hub::resolve(name)?)?.into_iter().take(limit));
    }
    let instruction = &run.setup.recipe.episode.instruction;
    let prompt =
        |question: &Question| prompt::prompt(instruction, tokenizer.chat(), &question.question);
    let mut episodes = Vec::with_capacity(given.len());
    let mut cut: Vec<String> = Vec::new();
    for one in &given {
        let imported = episode_from_given(tokenizer, &prompt, one)?;
        let episode = imported.episode;
        if imported.is_cut {
            cut.push(episode.question.id.clone());
        }
        if episode.prompt_len() + episode.response_len()
            <= run.setup.recipe.episode.max_prompt_length
        {
            episodes.push(episode);
        }
    }
    let n_long = given.len() - episodes.len();
    if n_long > 0 {
        tracing::warn!(
            "{n_long} trajectories are longer than episode.max_prompt_length and were left out"
        );
    }
    if let Some(first) = cut.first() {
        tracing::warn!(
            "{} of {} trajectories hold text behind the first </search> or </answer> of a \
             turn, where generation stops; it is left out, and an answer there is the \
             episode's answer (first: {first:?}); hint: in data.trajectories, end every turn \
             with its action, and write no tags inside thoughts",
            cut.len(),
            given.len()
        );
    }
    Ok(episodes)
}

/// Passages as plain text to continue: an end-of-sequence token as the prompt, then the passage and
/// the same token as the text to learn.
fn passage_episodes<B: TrainBackend>(
    run: &Run<'_, B>,
    tokenizer: &Tokenizer,
    model: &Decoder<Inner<B>>,
) -> Result<Vec<Episode>, PipelineError> {
    if run.setup.recipe.data.corpus.is_empty() {
        return Ok(Vec::new());
    }
    let corpus = Corpus::open(&hub::resolve(&run.setup.recipe.data.corpus)?)?;
    let config = model.config();
    let boundary = config.bos_token_id.or(config.eos_token_ids.first().copied()).unwrap_or(0);
    (0..corpus.len())
        .map(|i| {
            let passage = corpus.passage(i)?;
            let n_kept = run.setup.recipe.episode.max_prompt_length.saturating_sub(2).max(1);
            let mut ids =
                first_tokens(&passage.contents, n_kept, |text| tokenizer.encode_text(text))?;
            ids.truncate(n_kept);
            ids.push(boundary);
            let question =
                Question { id: passage.id, dataset: "passages".to_owned(), ..Question::default() };
            let segments = vec![
                Segment::Prompt { ids: vec![boundary] },
                Segment::Agent { ids, sample_log_probs: Vec::new(), stop: StopReason::Eos },
            ];
            Ok(Episode {
                question,
                segments,
                status: Status::TruncatedTurns,
                prediction: None,
                reward: 0.0,
                searches: Vec::new(),
                n_invalid_actions: 0,
            })
        })
        .collect()
}

/// The episodes of a phase, if there are any.
fn at_least_one(phase: Phase, episodes: Vec<Episode>) -> Result<Vec<Episode>, PipelineError> {
    match episodes.is_empty() {
        true => {
            let hint = "check data.trajectories and data.corpus";
            Err(PipelineError::NothingToTrain { phase, why: "there is no episode".into(), hint })
        }
        false => Ok(episodes),
    }
}
