//! The RL phase: play, score, learn, save; `dgpo_core::trainer::rl` is one of its steps.
use super::{
    Inner, Pipeline, PipelineError, same_items,
    served::{Served, Waiting},
    setup::{Play, describe_model},
};
use crate::{
    data::sampler::Sampler,
    episodes::write_records,
    events::Event,
    folder::{
        checkpoint,
        state::{
            PhaseState, SideFiles, has_critic, read_critic, read_model, read_optimizer,
            write_critic, write_model, write_optimizer,
        },
    },
};
use dgpo_core::{
    algo::kl::KlController,
    env::search::Retriever,
    question::Question,
    rng::{Key, Purpose},
    rollout::{Episode, EpisodeRecord, EpisodeStats},
    settings::{Algorithm, KlMode, KlReference, Phase},
    tokenizer::Tokenizer,
    trainer::{
        metrics::{
            EVAL_AVERAGE_EM, EVAL_EM, EVAL_TEACHER_KL, Metrics, ROLLOUT_TOKENS_PER_SECOND,
            STEP_SECONDS, UPDATE_TOKENS_PER_SECOND, record_episodes,
        },
        rl::{ActorCritic, Penalty, TrainedCritic, rl_step},
        score::{Pass, mean_kl},
    },
};
use dgpo_models::{TrainBackend, decoder::Decoder};
use serde_json::{Map, Value, json};
use std::time::Instant;

impl<B: TrainBackend> Pipeline<'_, B> {
    /// PPO or GRPO from `start`, or behind the newest RL checkpoint. Returns the trained actor.
    pub(super) fn rl_phase(
        &mut self,
        tokenizer: &Tokenizer,
        retriever: &dyn Retriever,
        start: Decoder<Inner<B>>,
    ) -> Result<Decoder<Inner<B>>, PipelineError> {
        let total = self.setup.recipe.rl.steps;
        let questions = self
            .setup
            .questions(&self.setup.recipe.data.train, self.setup.recipe.data.max_train)?;
        let (kl, is_evaluated) = (&self.setup.recipe.kl, self.setup.recipe.eval.every > 0);
        let has_teacher = kl.mode != KlMode::None && kl.reference == KlReference::Teacher;
        // Evaluations between the steps measure how far from the teacher the student is, whatever
        // it is trained by.
        let teacher =
            if has_teacher || is_evaluated { self.setup.load_teacher(tokenizer)? } else { None };
        let reference = match kl.reference {
            _ if kl.mode == KlMode::None => None,
            KlReference::Teacher => teacher.clone(),
            KlReference::Initial => Some(start.clone()),
        };
        let penalty = reference.as_ref().and_then(|reference| Penalty::new(reference, kl));
        let (mut step, mut sampler, mut networks) = self.rl_start(start, questions.len())?;
        if step >= total {
            return Ok(networks.actor);
        }
        self.say(&describe_model("actor", &networks.actor));
        (self.observer)(Event::PhaseStarted { phase: Phase::Rl, done: step, total });
        let side_files = self.setup.side_files()?;
        let sampling = self.setup.recipe.episode.sampling();
        while step < total {
            if self.is_evaluation_due(Phase::Rl, step)? {
                // What was learned must not depend on whether the evaluation comes to its end.
                if !self.is_saved(Phase::Rl, step)? {
                    self.save_rl(step, total, &sampler, &networks, &side_files)?;
                }
                self.evaluate_step(
                    (Phase::Rl, step),
                    tokenizer,
                    retriever,
                    &networks.actor,
                    teacher.as_ref(),
                )?;
            }
            let started = Instant::now();
            let cursor = sampler.clone();
            let rl = &self.setup.recipe.rl;
            // The episodes of a question stand one after the other; each row draws from a key of
            // its own, so they are different.
            let rows = sampler
                .next(rl.questions_per_step)
                .into_iter()
                .flat_map(|i| std::iter::repeat_n(i, rl.episodes_per_question));
            let drawn: Vec<Question> = rows.map(|i| questions[i].clone()).collect();
            let key = Key::new(self.setup.recipe.run.seed, Purpose::Rollout).fold(step as u64);
            let mut say = |text: &str| (self.observer)(Event::Message(text));
            let mut waiting =
                Waiting { recipe: &self.setup.recipe.retriever, stop: &self.stop, say: &mut say };
            let play = Play {
                model: &networks.actor,
                questions: &drawn,
                sampling,
                key,
                is_interruptible: false,
            };
            let what = format!("RL step {}", step + 1);
            let Served { value: episodes, seconds: rollout_s } = match self.setup.play_until_served(
                &what,
                (tokenizer, retriever),
                play,
                &mut waiting,
            ) {
                // The steps done so far are worth more than a retriever that is down for now.
                Err(unserved @ (PipelineError::RetrieverDown { .. } | PipelineError::Stopped)) => {
                    if !self.is_saved(Phase::Rl, step)? {
                        self.save_rl(step, total, &cursor, &networks, &side_files)?;
                    }
                    return Err(unserved);
                }
                served => served?,
            };

            let updating = Instant::now();
            let mut metrics = Metrics::default();
            record_episodes(&EpisodeStats::of(&episodes), &mut metrics);
            let learned = rl_step::<B>(
                &mut networks,
                penalty,
                &episodes,
                self.setup.recipe.rl_settings(),
                step,
                &self.setup.device,
            );
            metrics.extend(learned.metrics);
            step += 1;
            let (seconds, update_s) =
                (started.elapsed().as_secs_f64(), updating.elapsed().as_secs_f64());
            let n_agent: usize = episodes.iter().map(Episode::n_agent_tokens).sum();
            let trained = episodes.iter().filter(|episode| episode.is_trainable());
            let n_all: usize =
                trained.map(|episode| episode.prompt_len() + episode.response_len()).sum();
            metrics.set(ROLLOUT_TOKENS_PER_SECOND, n_agent as f64 / rollout_s);
            metrics.set(UPDATE_TOKENS_PER_SECOND, n_all as f64 / update_s);
            metrics.set(STEP_SECONDS, seconds);

            // Before the checkpoint: a run resumed from it has the metrics of every step it stands
            // for.
            self.report(Phase::Rl, step, total, &metrics)?;
            if self.is_save_due(step, total) {
                let records = EpisodeRecord::beside(episodes, learned.tokens);
                write_records(
                    &self.run.episodes_dir().join(format!("rl-step-{step:06}.jsonl")),
                    &records,
                )?;
                self.save_rl(step, total, &sampler, &networks, &side_files)?;
            }
            self.stop_if_wanted(step, total)?;
        }
        (self.observer)(Event::PhaseDone { phase: Phase::Rl });
        Ok(networks.actor)
    }

    /// Whether the student is to be evaluated behind `step` of a phase and was not yet. This is
    /// asked at the begin of the next step, where a resumed run also comes by, so that an
    /// evaluation cut off by a kill is made up for.
    pub(super) fn is_evaluation_due(
        &self,
        phase: Phase,
        step: usize,
    ) -> Result<bool, PipelineError> {
        let every = self.setup.recipe.eval.every;
        if every == 0 || step == 0 || !step.is_multiple_of(every) {
            return Ok(false);
        }
        let (phase, at) = (json!(phase), json!(step));
        let is_done = |line: &Map<String, Value>| {
            line.get("phase") == Some(&phase)
                && line.get("step") == Some(&at)
                && line.contains_key(EVAL_AVERAGE_EM)
        };
        Ok(!self.run.read_metrics()?.iter().any(is_done))
    }

    /// The student behind a step of a phase on the test questions, and its KL from the teacher
    /// there, recorded as a metrics line of its own.
    pub(super) fn evaluate_step(
        &mut self,
        (phase, step): (Phase, usize),
        tokenizer: &Tokenizer,
        retriever: &dyn Retriever,
        student: &Decoder<Inner<B>>,
        teacher: Option<&Decoder<Inner<B>>>,
    ) -> Result<(), PipelineError> {
        let mut say = |text: &str| (self.observer)(Event::Message(text));
        let mut waiting =
            Waiting { recipe: &self.setup.recipe.retriever, stop: &self.stop, say: &mut say };
        let (episodes, figures) =
            self.setup.play_test(tokenizer, retriever, student, &mut waiting)?;
        let (em, average_em) = (figures.all.em, figures.average_em);
        let mut measured = vec![(EVAL_EM, em), (EVAL_AVERAGE_EM, average_em)];
        if let Some(teacher) = teacher {
            let episodes: Vec<&Episode> =
                episodes.iter().filter(|episode| episode.is_trainable()).collect();
            let (recipe, device) = (&self.setup.recipe, &self.setup.device);
            let pass = Pass {
                micro_batch_tokens: recipe.rl.micro_batch_tokens,
                temperature: recipe.episode.temperature,
                device,
            };
            measured.push((EVAL_TEACHER_KL, mean_kl(student, teacher, &episodes, &pass)));
        }
        self.metrics.append(phase, step, &measured)?;
        let average = if figures.datasets.len() > 1 {
            format!(", mean over data sets {average_em:.3}")
        } else {
            String::new()
        };
        self.say(&format!("{phase} {step}: exact match on the test questions {em:.3}{average}"));
        Ok(())
    }

    /// Step, cursor and networks to go on with.
    fn rl_start(
        &mut self,
        start: Decoder<Inner<B>>,
        n_questions: usize,
    ) -> Result<(usize, Sampler, ActorCritic<B>), PipelineError> {
        let Some(checkpoint) = self.newest(Phase::Rl)? else {
            let recipe = &self.setup.recipe;
            let networks = ActorCritic::new(
                start,
                Key::new(recipe.run.seed, Purpose::Init).bits(1),
                recipe.rl_settings(),
            );
            return Ok((0, Sampler::new(recipe.run.seed, n_questions), networks));
        };
        let state: PhaseState = checkpoint.read_state()?;
        let sampler = same_items(state.sampler, "questions", n_questions)?;
        self.guards.insert(Phase::Rl, state.guards);
        let (actor_optim, critic_optim) =
            (&self.setup.recipe.optim.actor, &self.setup.recipe.optim.critic);
        let actor = self.setup.cut_to_shared(read_model(
            &checkpoint.path,
            self.setup.dtype,
            &self.setup.device,
        )?);
        let actor_optimizer = read_optimizer(
            actor_optim,
            state.n_updates,
            &actor,
            &checkpoint.path,
            &self.setup.device,
        )?;
        let critic = match self.setup.recipe.rl.algorithm {
            Algorithm::Grpo => None,
            Algorithm::Ppo if !has_critic(&checkpoint.path) => {
                return Err(PipelineError::NoCritic(checkpoint.path));
            }
            Algorithm::Ppo => {
                let (dtype, device) = (self.setup.dtype, &self.setup.device);
                let (network, optimizer) = read_critic(
                    critic_optim,
                    state.critic_updates,
                    dtype,
                    &checkpoint.path,
                    device,
                )?;
                Some(TrainedCritic { network, optimizer })
            }
        };
        // A fixed coefficient is the recipe's; an adaptive one is what it had become.
        let kl = state
            .kl
            .filter(|_| self.setup.recipe.kl.target > 0.0)
            .unwrap_or_else(|| KlController::new(&self.setup.recipe.kl));
        let networks =
            ActorCritic { actor, actor_optimizer, critic, kl, n_skipped: state.n_skipped };
        Ok((state.step, sampler, networks))
    }

    fn save_rl(
        &mut self,
        step: usize,
        total: usize,
        sampler: &Sampler,
        networks: &ActorCritic<B>,
        side_files: &SideFiles,
    ) -> Result<(), PipelineError> {
        let state = PhaseState {
            step,
            total,
            sampler: sampler.clone(),
            n_updates: networks.actor_optimizer.n_updates(),
            critic_updates: networks
                .critic
                .as_ref()
                .map_or(0, |critic| critic.optimizer.n_updates()),
            kl: Some(networks.kl),
            n_skipped: networks.n_skipped,
            guards: self.guards_of(Phase::Rl),
            distill: None,
            wall_s: self.wall_s(),
            recipe: Some(self.setup.recipe.clone()),
        };
        self.save(Phase::Rl, step, |dir| {
            write_model(&networks.actor, side_files, dir)?;
            write_optimizer(&networks.actor_optimizer, &networks.actor, dir)?;
            if let Some(critic) = &networks.critic {
                write_critic(&critic.network, &critic.optimizer, dir)?;
            }
            checkpoint::write_state(dir, &state)
        })
    }
}
