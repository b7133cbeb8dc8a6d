//! Supervised phases: KD on teacher episodes or trajectories, and language modelling for a base student.
use super::{Inner, Pipeline, PipelineError, same_items, setup::describe_model};
use crate::{
    algo::schedule::learning_rate,
    config::{DistillRecipe, plan::distill_steps},
    data::{
        corpus::Corpus,
        questions::Question,
        sampler::Sampler,
        trajectories::{Trajectory, read_trajectories},
    },
    engine::StopReason,
    env::protocol,
    hub,
    retriever::Retriever,
    rollout::{Episode, RolloutBatch, Segment, Status, trajectory::episode_from_trajectory},
    tokenizer::{Tokenizer, chat::Message},
    trainer::{
        checkpoint,
        distill::{Student, distill_step},
        events::{Event, Phase},
        metrics::{LEARNING_RATE, SKIPPED_UPDATES, STEP_SECONDS, UPDATE_TOKENS_PER_SECOND},
        optimizer::AdamW,
        state::{PhaseState, read_model, read_optimizer, write_model, write_optimizer},
        update::Activations,
    },
};
use dgpo_models::{TrainBackend, decoder::Decoder};
use std::time::Instant;

impl<B: TrainBackend> Pipeline<'_, B> {
    /// KD from the student's start, on `data.trajectories` if there are any, else on the teacher's correct episodes.
    pub(super) fn kd_phase(
        &mut self,
        tokenizer: &Tokenizer,
        retriever: Option<&dyn Retriever>,
    ) -> Result<Decoder<Inner<B>>, PipelineError> {
        if let Some(finished) = self.finished_model(Phase::Kd)? {
            return Ok(finished);
        }
        let episodes = match retriever {
            Some(retriever) if self.setup.recipe.data.trajectories.is_empty() => self.demos_phase(tokenizer, retriever)?,
            _ => self.trajectory_episodes(tokenizer, usize::MAX)?,
        };
        let start = self.setup.load(&self.setup.recipe.model.student, tokenizer)?;
        let teacher = if self.setup.recipe.distill.kl_weight == 0.0 { None } else { self.setup.load_teacher(tokenizer)? };
        let recipe = self.setup.recipe.distill.clone();
        self.supervised_phase(Phase::Kd, start, teacher, &episodes, &recipe)
    }

    /// Language modelling on passages as plain text and on some trajectories (for their format).
    pub(super) fn pretrain(&mut self, tokenizer: &Tokenizer) -> Result<Decoder<Inner<B>>, PipelineError> {
        if let Some(finished) = self.finished_model(Phase::Pretrain)? {
            return Ok(finished);
        }
        let start = self.setup.load(&self.setup.recipe.model.student, tokenizer)?;
        let mut episodes = self.passage_episodes(tokenizer, &start)?;
        let limit = self.setup.recipe.pretrain.max_trajectories;
        episodes.extend(self.trajectory_episodes(tokenizer, if limit == 0 { usize::MAX } else { limit })?);
        let (steps, batch) = (self.setup.recipe.pretrain.steps, self.setup.recipe.pretrain.batch);
        let recipe = DistillRecipe { ce_weight: 1.0, kl_weight: 0.0, steps, batch, ..self.setup.recipe.distill.clone() };
        self.supervised_phase(Phase::Pretrain, start, None, &episodes, &recipe)
    }

    /// The model of a phase that has ended already.
    fn finished_model(&self, phase: Phase) -> Result<Option<Decoder<Inner<B>>>, PipelineError> {
        let Some(checkpoint) = self.newest(phase)? else { return Ok(None) };
        let state: PhaseState = checkpoint.read_state()?;
        if state.step < state.total {
            return Ok(None);
        }
        Ok(Some(self.setup.cut_to_shared(read_model(&checkpoint.path, self.setup.dtype, &self.setup.device)?)))
    }

    /// Steps over shuffled episodes with checkpoints, from the start or behind the phase's newest checkpoint.
    fn supervised_phase(
        &mut self,
        phase: Phase,
        start: Decoder<Inner<B>>,
        teacher: Option<Decoder<Inner<B>>>,
        episodes: &[Episode],
        recipe: &DistillRecipe,
    ) -> Result<Decoder<Inner<B>>, PipelineError> {
        if episodes.is_empty() {
            let hint = "check data.trajectories and data.corpus";
            return Err(PipelineError::NothingToTrain { phase, why: "there is no episode".into(), hint });
        }
        let total = distill_steps(recipe, episodes.len());
        let activations = Activations::of(&self.setup.recipe.model);
        let optim = self.setup.recipe.optim.distill.clone();
        let mut sampler = Sampler::new(self.setup.recipe.run.seed, episodes.len());
        let mut step = 0;
        let mut student = match self.newest(phase)? {
            Some(checkpoint) => {
                let state: PhaseState = checkpoint.read_state()?;
                (step, sampler) = (state.step, same_items(state.sampler, "episodes", episodes.len())?);
                self.guards.insert(phase, state.guards);
                let model = self.setup.cut_to_shared(read_model(&checkpoint.path, self.setup.dtype, &self.setup.device)?);
                let optimizer = read_optimizer(&optim, state.n_updates, &model, &checkpoint.path, &self.setup.device)?;
                Student { model, optimizer, n_skipped: state.n_skipped }
            }
            None => Student { model: start, optimizer: AdamW::new(optim.clone()), n_skipped: 0 },
        };
        self.say(&describe_model("student", &student.model));
        (self.observer)(Event::PhaseStarted { phase, done: step, total });
        let side_files = self.setup.side_files()?;
        while step < total {
            let started = Instant::now();
            let drawn: Vec<&Episode> = sampler.next(recipe.batch).into_iter().map(|i| &episodes[i]).collect();
            let batch = RolloutBatch::new(&drawn);
            let lr = learning_rate(&optim, step, total);
            let mut metrics = distill_step::<B>(&mut student, teacher.as_ref(), &batch, recipe, activations, lr, &self.setup.device);
            step += 1;
            let seconds = started.elapsed().as_secs_f64();
            metrics.set(LEARNING_RATE, lr);
            metrics.set(SKIPPED_UPDATES, student.n_skipped as f64);
            metrics.set(UPDATE_TOKENS_PER_SECOND, batch.lengths.iter().sum::<usize>() as f64 / seconds);
            metrics.set(STEP_SECONDS, seconds);
            self.report(phase, step, total, &metrics)?;
            if self.is_save_due(step, total) {
                let state = PhaseState {
                    step,
                    total,
                    sampler: sampler.clone(),
                    n_updates: student.optimizer.n_updates(),
                    critic_updates: 0,
                    kl: None,
                    n_skipped: student.n_skipped,
                    guards: self.guards_of(phase),
                    wall_s: self.wall_s(),
                    recipe: Some(self.setup.recipe.clone()),
                };
                let saved = checkpoint::save(self.run.path(), phase, step, self.setup.recipe.run.keep, |dir| {
                    write_model(&student.model, &side_files, dir)?;
                    write_optimizer(&student.optimizer, &student.model, dir)?;
                    checkpoint::write_state(dir, &state)
                })?;
                (self.observer)(Event::CheckpointSaved { path: &saved.path });
            }
            self.stop_if_wanted(step, total)?;
        }
        (self.observer)(Event::PhaseDone { phase });
        Ok(student.model)
    }

    /// The first `limit` trajectories of the recipe's files as episodes.
    fn trajectory_episodes(&self, tokenizer: &Tokenizer, limit: usize) -> Result<Vec<Episode>, PipelineError> {
        let mut trajectories: Vec<Trajectory> = Vec::new();
        for name in &self.setup.recipe.data.trajectories {
            trajectories.extend(read_trajectories(&hub::resolve(name)?)?);
        }
        trajectories.truncate(limit);
        let (instruction, template) = (&self.setup.recipe.episode.instruction, self.setup.recipe.model.chat_template);
        let prompt = |question: &Question| {
            let content = protocol::user_message(instruction, &question.question);
            template.render(&[Message { role: "user".to_owned(), content }], true, super::setup::TEMPLATE_DATE)
        };
        let mut episodes = Vec::with_capacity(trajectories.len());
        for trajectory in &trajectories {
            let episode = episode_from_trajectory(tokenizer, &prompt, trajectory)?;
            if episode.prompt_len() + episode.response_len() <= self.setup.recipe.episode.max_prompt_length {
                episodes.push(episode);
            }
        }
        let n_long = trajectories.len() - episodes.len();
        if n_long > 0 {
            tracing::warn!("{n_long} trajectories are longer than episode.max_prompt_length and were left out");
        }
        Ok(episodes)
    }

    /// Passages as plain text to continue: an end-of-sequence token in front, the passage and the same token behind as the text to learn.
    fn passage_episodes(&self, tokenizer: &Tokenizer, model: &Decoder<Inner<B>>) -> Result<Vec<Episode>, PipelineError> {
        if self.setup.recipe.data.corpus.is_empty() {
            return Ok(Vec::new());
        }
        let corpus = Corpus::open(&hub::resolve(&self.setup.recipe.data.corpus)?)?;
        let config = model.config();
        let boundary = config.bos_token_id.or(config.eos_token_ids.first().copied()).unwrap_or(0);
        (0..corpus.len())
            .map(|i| {
                let passage = corpus.passage(i)?;
                let mut ids = tokenizer.encode(&passage.contents)?;
                ids.truncate(self.setup.recipe.episode.max_prompt_length.saturating_sub(2).max(1));
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
