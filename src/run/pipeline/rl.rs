//! The RL phase: play, score, learn; `dgpo_core::trainer::rl` is one of its steps.
use super::{
    Inner, PipelineError,
    phase_loop::{LearnedStep, Learner, PhaseLoop},
    run::{Resumed, Run, same_items},
    served::Served,
    setup::{Play, describe_model},
};
use crate::{
    data::sampler::Sampler,
    folder::{
        checkpoint::WriteError,
        state::{
            PhaseState, has_critic, read_critic, read_optimizer, write_critic, write_optimizer,
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
        metrics::{Metrics, ROLLOUT_TOKENS_PER_SECOND, UPDATE_TOKENS_PER_SECOND, record_episodes},
        rl::{ActorCritic, Penalty, TrainedCritic, rl_step},
    },
};
use dgpo_models::{TrainBackend, decoder::Decoder};
use std::{path::Path, time::Instant};

/// Actor and critic, and the questions that the actor plays.
struct RlLearner<'p, B: TrainBackend> {
    player: (&'p Tokenizer, &'p dyn Retriever),
    questions: Vec<Question>,
    sampler: Sampler,
    networks: ActorCritic<B>,
    penalty: Option<Penalty<'p, Inner<B>>>,
}

/// Runs PPO or GRPO from `start`, or from the newest RL checkpoint on, and returns the actor.
/// # Errors
/// As [`PhaseLoop::run`]; if data or models cannot be read.
pub(super) fn rl_phase<B: TrainBackend>(
    run: &mut Run<'_, B>,
    player: (&Tokenizer, &dyn Retriever),
    start: Decoder<Inner<B>>,
) -> Result<Decoder<Inner<B>>, PipelineError> {
    let questions = run.training_questions(Phase::Rl)?;
    let recipe = run.setup.recipe.clone();
    let has_teacher = recipe.kl.mode != KlMode::None && recipe.kl.reference == KlReference::Teacher;
    // Evaluations between the steps measure how far from the teacher the student is, whatever it is
    // trained by.
    let teacher = match has_teacher || recipe.eval.every > 0 {
        true => run.setup.load_teacher(player.0)?,
        false => None,
    };
    let reference = match recipe.kl.reference {
        _ if recipe.kl.mode == KlMode::None => None,
        KlReference::Teacher => teacher.clone(),
        KlReference::Initial => Some(start.clone()),
    };
    let penalty = reference.as_ref().and_then(|reference| Penalty::new(reference, &recipe.kl));
    let (done, sampler, networks) = match run.resumed(Phase::Rl)? {
        None => {
            let critic_seed = Key::new(recipe.run.seed, Purpose::Init).bits(1);
            let networks = ActorCritic::new(start, critic_seed, recipe.rl_settings());
            (0, Sampler::new(recipe.run.seed, questions.len()), networks)
        }
        Some(Resumed { state, dir }) => {
            let sampler = same_items(state.sampler.clone(), "questions", questions.len())?;
            (state.step, sampler, read_networks(run, &state, &dir)?)
        }
    };
    run.say(&describe_model("actor", &networks.actor));
    let mut learner = RlLearner { player, questions, sampler, networks, penalty };
    let (total, teacher) = (recipe.rl.steps, teacher.as_ref());
    let phase = PhaseLoop { phase: Phase::Rl, done, total, player: Some(player), teacher };
    phase.run(run, &mut learner)?;
    Ok(learner.networks.actor)
}

impl<B: TrainBackend> Learner<B> for RlLearner<'_, B> {
    fn student(&self) -> &Decoder<Inner<B>> {
        &self.networks.actor
    }

    fn step(&mut self, run: &mut Run<'_, B>, done: usize) -> Result<LearnedStep, PipelineError> {
        let (setup, mut waiting) = run.playing();
        let rl = &setup.recipe.rl;
        let mut sampler = self.sampler.clone();
        // The episodes of a question stand one after the other; each row draws from a key of its
        // own, so they are different.
        let rows = sampler
            .next(rl.questions_per_step)
            .into_iter()
            .flat_map(|i| std::iter::repeat_n(i, rl.episodes_per_question));
        let drawn: Vec<Question> = rows.map(|i| self.questions[i].clone()).collect();
        let play = Play {
            model: &self.networks.actor,
            questions: &drawn,
            sampling: setup.recipe.episode.sampling(),
            key: Key::new(setup.recipe.run.seed, Purpose::Rollout).fold(done as u64),
            is_interruptible: false,
        };
        let what = format!("RL step {}", done + 1);
        let Served { value: episodes, seconds: rollout_s } =
            setup.play_until_served(&what, self.player, play, &mut waiting)?;
        self.sampler = sampler;

        let updating = Instant::now();
        let mut metrics = Metrics::default();
        record_episodes(&EpisodeStats::of(&episodes), &mut metrics);
        let learned = rl_step::<B>(
            &mut self.networks,
            self.penalty,
            &episodes,
            setup.recipe.rl_settings(),
            done,
            &setup.device,
        );
        metrics.extend(learned.metrics);
        let update_s = updating.elapsed().as_secs_f64();
        let n_agent: usize = episodes.iter().map(Episode::n_agent_tokens).sum();
        let trained = episodes.iter().filter(|episode| episode.is_trainable());
        let n_all: usize =
            trained.map(|episode| episode.prompt_len() + episode.response_len()).sum();
        metrics.set(ROLLOUT_TOKENS_PER_SECOND, n_agent as f64 / rollout_s);
        metrics.set(UPDATE_TOKENS_PER_SECOND, n_all as f64 / update_s);
        let records = EpisodeRecord::beside(episodes, learned.tokens);
        Ok(LearnedStep { metrics, records: Some(records) })
    }

    fn add_to(&self, state: &mut PhaseState) {
        let ActorCritic { actor_optimizer, critic, kl, n_skipped, .. } = &self.networks;
        state.sampler = self.sampler.clone();
        state.n_updates = actor_optimizer.n_updates();
        state.critic_updates = critic.as_ref().map_or(0, |critic| critic.optimizer.n_updates());
        (state.kl, state.n_skipped) = (Some(*kl), *n_skipped);
    }

    fn write(&self, dir: &Path) -> Result<(), WriteError> {
        write_optimizer(&self.networks.actor_optimizer, &self.networks.actor, dir)?;
        match &self.networks.critic {
            Some(critic) => write_critic(&critic.network, &critic.optimizer, dir),
            None => Ok(()),
        }
    }
}

/// The networks of a checkpoint, with their optimizers.
fn read_networks<B: TrainBackend>(
    run: &Run<'_, B>,
    state: &PhaseState,
    dir: &Path,
) -> Result<ActorCritic<B>, PipelineError> {
    let (recipe, device) = (&run.setup.recipe, &run.setup.device);
    let actor = run.read_student(dir)?;
    let actor_optimizer =
        read_optimizer(&recipe.optim.actor, state.n_updates, &actor, dir, device)?;
    let critic = match recipe.rl.algorithm {
        Algorithm::Grpo => None,
        Algorithm::Ppo if !has_critic(dir) => {
            return Err(PipelineError::NoCritic(dir.to_owned()));
        }
        Algorithm::Ppo => {
            let (recipe, n_updates) = (&recipe.optim.critic, state.critic_updates);
            let (network, optimizer) =
                read_critic(recipe, n_updates, run.setup.dtype, dir, device)?;
            Some(TrainedCritic { network, optimizer })
        }
    };
    // A fixed coefficient is the recipe's; an adaptive one is what it had become.
    let kl = state
        .kl
        .filter(|_| recipe.kl.target > 0.0)
        .unwrap_or_else(|| KlController::new(&recipe.kl));
    Ok(ActorCritic { actor, actor_optimizer, critic, kl, n_skipped: state.n_skipped })
}
