//! What the supervised phases learn from: KD from teacher episodes or trajectories, language
//! modelling from passages and trajectories.
use super::{
    Inner, Pipeline, PipelineError,
    distill::Distillation,
    source::{Given, Mixed, Source},
};
use crate::{
    config::{DemosRecipe, plan::distill_steps},
    data::corpus::Corpus,
    episodes::given::{Given as GivenEpisode, episode_from_given, read_given},
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

impl<B: TrainBackend> Pipeline<'_, B> {
    /// KD on `data.trajectories` if there are any, else on the teacher's episodes; with DistiLLM's
    /// scheduler on the student's own, too.
    pub(super) fn kd_phase(
        &mut self,
        tokenizer: &Tokenizer,
        retriever: Option<&dyn Retriever>,
        start: Decoder<Inner<B>>,
    ) -> Result<Decoder<Inner<B>>, PipelineError> {
        let episodes = match retriever {
            Some(retriever) if self.setup.recipe.data.trajectories.is_empty() => {
                self.demos_phase(tokenizer, retriever)?
            }
            _ => self.given_episodes(tokenizer)?,
        };
        let (recipe, seed) = (self.setup.recipe.distill.clone(), self.setup.recipe.run.seed);
        let teacher =
            if recipe.kl_weight == 0.0 { None } else { self.setup.load_teacher(tokenizer)? };
        let (source, n_episodes) = match retriever {
            Some(retriever) if recipe.student_outputs.is_adaptive => {
                let questions = self.training_questions(Phase::Kd)?;
                let mixed = Mixed::new(
                    episodes,
                    (tokenizer, retriever),
                    questions,
                    seed,
                    &recipe.student_outputs,
                )?;
                let n_trained = mixed.n_trained();
                (Source::Mixed(Box::new(mixed)), n_trained)
            }
            _ => {
                let n_episodes = episodes.len();
                (Source::Given(Given::new(episodes, seed)), n_episodes)
            }
        };
        let total = distill_steps(&recipe, n_episodes);
        self.distil(start, Distillation { phase: Phase::Kd, teacher, source, recipe, total })
    }

    /// The trajectories of the recipe's files of which `demos` says that they are kept: as if the
    /// teacher had played them here.
    fn given_episodes(&mut self, tokenizer: &Tokenizer) -> Result<Vec<Episode>, PipelineError> {
        let mut episodes = self.trajectory_episodes(tokenizer, usize::MAX)?;
        let (n_all, DemosRecipe { only_correct, max_kept, .. }) =
            (episodes.len(), self.setup.recipe.demos.clone());
        // Records hold episodes that the retriever failed, too.
        episodes
            .retain(|episode| episode.is_trainable() && (episode.is_correct() || !only_correct));
        episodes.truncate(if max_kept == 0 { usize::MAX } else { max_kept });
        let which = if only_correct { "correct ones" } else { "right or wrong" };
        self.say(&format!("trajectories: {} of {n_all} kept ({which})", episodes.len()));
        if n_all > 0 && episodes.is_empty() {
            let why = format!("none of the {n_all} trajectories ends in a gold answer");
            let hint =
                "check golden_answers of data.trajectories, or set demos.only_correct to false";
            return Err(PipelineError::NothingToTrain { phase: Phase::Kd, why, hint });
        }
        some(Phase::Kd, episodes)
    }

    /// Language modelling on passages as plain text and on some trajectories (for their format).
    pub(super) fn pretrain(
        &mut self,
        tokenizer: &Tokenizer,
        start: Decoder<Inner<B>>,
    ) -> Result<Decoder<Inner<B>>, PipelineError> {
        let mut episodes = self.passage_episodes(tokenizer, &start)?;
        let limit = self.setup.recipe.pretrain.max_trajectories;
        episodes.extend(
            self.trajectory_episodes(tokenizer, if limit == 0 { usize::MAX } else { limit })?,
        );
        let episodes = some(Phase::Pretrain, episodes)?;
        let (total, batch) = (self.setup.recipe.pretrain.steps, self.setup.recipe.pretrain.batch);
        let recipe = DistillRecipe {
            ce_weight: 1.0,
            kl_weight: 0.0,
            batch,
            ..self.setup.recipe.distill.clone()
        };
        let source = Source::Given(Given::new(episodes, self.setup.recipe.run.seed));
        self.distil(
            start,
            Distillation { phase: Phase::Pretrain, teacher: None, source, recipe, total },
        )
    }

    /// The questions that the student plays in a phase.
    /// # Errors
    /// If their files cannot be read or hold none.
    pub(super) fn training_questions(&self, phase: Phase) -> Result<Vec<Question>, PipelineError> {
        let questions = self
            .setup
            .questions(&self.setup.recipe.data.train, self.setup.recipe.data.max_train)?;
        match questions.is_empty() {
            true => Err(PipelineError::NothingToTrain {
                phase,
                why: "there is no question".into(),
                hint: "check data.train",
            }),
            false => Ok(questions),
        }
    }

    /// The first `limit` trajectories of each of the recipe's files as episodes.
    fn trajectory_episodes(
        &self,
        tokenizer: &Tokenizer,
        limit: usize,
    ) -> Result<Vec<Episode>, PipelineError> {
        let mut given: Vec<GivenEpisode> = Vec::new();
        for name in &self.setup.recipe.data.trajectories {
            given.extend(read_given(&hub::resolve(name)?)?.into_iter().take(limit));
        }
        let instruction = &self.setup.recipe.episode.instruction;
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
                <= self.setup.recipe.episode.max_prompt_length
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

    /// Passages as plain text to continue: an end-of-sequence token in front, the passage and the
    /// same token behind as the text to learn.
    fn passage_episodes(
        &self,
        tokenizer: &Tokenizer,
        model: &Decoder<Inner<B>>,
    ) -> Result<Vec<Episode>, PipelineError> {
        if self.setup.recipe.data.corpus.is_empty() {
            return Ok(Vec::new());
        }
        let corpus = Corpus::open(&hub::resolve(&self.setup.recipe.data.corpus)?)?;
        let config = model.config();
        let boundary = config.bos_token_id.or(config.eos_token_ids.first().copied()).unwrap_or(0);
        (0..corpus.len())
            .map(|i| {
                let passage = corpus.passage(i)?;
                let n_kept = self.setup.recipe.episode.max_prompt_length.saturating_sub(2).max(1);
                let mut ids =
                    first_tokens(&passage.contents, n_kept, |text| tokenizer.encode_text(text))?;
                ids.truncate(n_kept);
                ids.push(boundary);
                let question = Question {
                    id: passage.id,
                    dataset: "passages".to_owned(),
                    question: String::new(),
                    golden_answers: Vec::new(),
                    supporting: Vec::new(),
                    supporting_kind: String::new(),
                };
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
}

/// Episodes, at least one.
fn some(phase: Phase, episodes: Vec<Episode>) -> Result<Vec<Episode>, PipelineError> {
    match episodes.is_empty() {
        true => {
            let hint = "check data.trajectories and data.corpus";
            Err(PipelineError::NothingToTrain { phase, why: "there is no episode".into(), hint })
        }
        false => Ok(episodes),
    }
}
