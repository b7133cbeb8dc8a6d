//! Sources of the episodes of a distillation step: given ones, the student's own, or now these
//! and now those.
use super::{
    PipelineError,
    run::same_items,
    served::{Served, Waiting},
    setup::{Play, Setup},
};
use crate::{
    data::sampler::Sampler,
    episodes::{read_episodes, write_episodes},
    folder::{
        checkpoint::WriteError,
        state::{DistillState, PhaseState},
    },
};
use dgpo_core::{
    algo::student_outputs::{Author, StudentShare},
    env::search::Retriever,
    question::Question,
    rng::{Key, Purpose},
    rollout::{Episode, EpisodeStats, RolloutBatch},
    settings::{Phase, StudentOutputsRecipe},
    tokenizer::Tokenizer,
    trainer::{
        metrics::{
            EPISODE_SOURCE, Metrics, ROLLOUT_TOKENS_PER_SECOND, STUDENT_SHARE, VALIDATION_LOSS,
            record_episodes,
        },
        score::{self, Pass},
    },
};
use dgpo_models::{Backend, decoder::Decoder};
use std::path::Path;

/// Inside a checkpoint.
const REPLAY_FILE: &str = "replay.jsonl";

/// Streams of [`Purpose::StudentOutputs`].
const HELD_OUT: u64 = 0;
const QUESTIONS: u64 = 1;
const STEPS: u64 = 2;
const ROLLOUTS: u64 = 3;

/// A source and its place in it.
pub(super) enum EpisodeSource<'s> {
    /// The teacher's episodes, or others that were there before the phase.
    Given(GivenSource),
    /// Every step plays new ones with the student.
    Played(PlayedSource<'s>),
    /// DistiLLM: one or the other, or earlier ones of the student.
    Mixed(Box<MixedSource<'s>>),
}

/// Which episodes are drawn: `n` for step `step` (from 0) of `total`.
#[derive(Clone, Copy)]
pub(super) struct StepDraw {
    pub step: usize,
    pub total: usize,
    pub n: usize,
}

/// Episodes that a step learns from.
pub(super) struct DrawnEpisodes {
    pub episodes: Vec<Episode>,
    /// True if the student played them for this step.
    pub is_played: bool,
    pub metrics: Metrics,
}

impl<'s> EpisodeSource<'s> {
    /// The cursor of what the phase is counted by.
    pub(crate) fn sampler(&self) -> &Sampler {
        match self {
            Self::Given(given) => &given.sampler,
            Self::Played(played) => &played.sampler,
            Self::Mixed(mixed) => &mixed.given.sampler,
        }
    }

    /// The retriever of a source that plays, for evaluations between its steps.
    pub(crate) fn player(&self) -> Option<(&'s Tokenizer, &'s dyn Retriever)> {
        match self {
            Self::Played(played) => Some(played.player),
            Self::Given(_) | Self::Mixed(_) => None,
        }
    }

    /// Adds the source's part to a checkpoint's state.
    pub(crate) fn add_to(&self, state: &mut DistillState) {
        if let Self::Mixed(mixed) = self {
            (state.share, state.questions) =
                (Some(mixed.share), Some(mixed.played.sampler.clone()));
        }
    }

    /// Writes what does not fit into the state.
    /// # Errors
    /// If the disk fails.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), WriteError> {
        match self {
            Self::Mixed(mixed) => Ok(write_episodes(&dir.join(REPLAY_FILE), &mixed.replay)?),
            Self::Given(_) | Self::Played(_) => Ok(()),
        }
    }

    /// Goes on where a checkpoint left the source.
    /// # Errors
    /// If the replay buffer is damaged, or there are other episodes or questions now than there
    /// were then.
    pub(crate) fn restore(&mut self, state: &PhaseState, dir: &Path) -> Result<(), PipelineError> {
        let episodes = |given: &mut GivenSource| -> Result<(), PipelineError> {
            given.sampler = same_items(state.sampler.clone(), "episodes", given.episodes.len())?;
            Ok(())
        };
        match self {
            Self::Given(given) => episodes(given),
            Self::Played(played) => {
                played.sampler =
                    same_items(state.sampler.clone(), "questions", played.questions.len())?;
                Ok(())
            }
            Self::Mixed(mixed) => {
                episodes(&mut mixed.given)?;
                // A checkpoint without them is of a recipe that had no such episodes yet: they
                // begin here.
                if let Some(DistillState {
                    share: Some(share), questions: Some(questions), ..
                }) = &state.distill
                {
                    mixed.share = *share;
                    mixed.played.sampler =
                        same_items(questions.clone(), "questions", mixed.played.questions.len())?;
                    mixed.replay = read_episodes(&dir.join(REPLAY_FILE))?;
                }
                Ok(())
            }
        }
    }

    /// The episodes of a step. Where the retriever did not serve them, the source is left as it
    /// was.
    /// # Errors
    /// If the student breaks, the retriever is away for too long, or a stop was requested while it
    /// was.
    pub(crate) fn draw<I: Backend>(
        &mut self,
        setup: &Setup<I>,
        student: &Decoder<I>,
        of: StepDraw,
        waiting: &mut Waiting<'_>,
    ) -> Result<DrawnEpisodes, PipelineError> {
        let mut metrics = Metrics::default();
        let (episodes, played_s) = match self {
            Self::Given(given) => (given.draw(of.n), None),
            Self::Played(played) => {
                let Served { value, seconds } = played.play(setup, student, of, waiting)?;
                (value, Some(seconds))
            }
            Self::Mixed(mixed) => mixed.draw(setup, student, of, waiting, &mut metrics)?,
        };
        if let Some(seconds) = played_s {
            record_episodes(&EpisodeStats::of(&episodes), &mut metrics);
            metrics.set(
                ROLLOUT_TOKENS_PER_SECOND,
                episodes.iter().map(Episode::n_agent_tokens).sum::<usize>() as f64 / seconds,
            );
        }
        Ok(DrawnEpisodes { episodes, is_played: played_s.is_some(), metrics })
    }
}

/// Episodes in a shuffled order, epoch after epoch.
pub(super) struct GivenSource {
    episodes: Vec<Episode>,
    sampler: Sampler,
}

impl GivenSource {
    pub(crate) fn new(episodes: Vec<Episode>, seed: u64) -> Self {
        Self { sampler: Sampler::new(seed, episodes.len()), episodes }
    }

    fn draw(&mut self, n: usize) -> Vec<Episode> {
        self.sampler.next(n).into_iter().map(|i| self.episodes[i].clone()).collect()
    }
}

/// Training questions in a shuffled order, played by the student as it is.
pub(super) struct PlayedSource<'s> {
    pub phase: Phase,
    pub player: (&'s Tokenizer, &'s dyn Retriever),
    pub questions: Vec<Question>,
    pub sampler: Sampler,
    /// Step s draws its tokens from this folded by s.
    pub key: Key,
}

impl PlayedSource<'_> {
    fn play<I: Backend>(
        &mut self,
        setup: &Setup<I>,
        student: &Decoder<I>,
        StepDraw { step, n, .. }: StepDraw,
        waiting: &mut Waiting<'_>,
    ) -> Result<Served<Vec<Episode>>, PipelineError> {
        let mut sampler = self.sampler.clone();
        let drawn: Vec<Question> =
            sampler.next(n).into_iter().map(|i| self.questions[i].clone()).collect();
        let (sampling, key) = (setup.recipe.episode.sampling(), self.key.fold(step as u64));
        let play =
            Play { model: student, questions: &drawn, sampling, key, is_interruptible: false };
        let what = format!("{} step {}", self.phase, step + 1);
        let served = setup.play_until_served(&what, self.player, play, waiting)?;
        self.sampler = sampler;
        Ok(served)
    }
}

/// Given episodes and the student's own, mixed by DistiLLM's scheduler (method §5).
pub(super) struct MixedSource<'s> {
    given: GivenSource,
    played: PlayedSource<'s>,
    /// Given episodes that are never trained on.
    held_out: RolloutBatch,
    share: StudentShare,
    /// The student's latest episodes, oldest first.
    replay: Vec<Episode>,
    recipe: StudentOutputsRecipe,
    key: Key,
}

impl<'s> MixedSource<'s> {
    /// Holds out `n_validation` of the given episodes, but never more than half of them.
    /// # Errors
    /// If there are not two: one to hold out and one to learn from.
    pub(crate) fn new(
        episodes: Vec<Episode>,
        player: (&'s Tokenizer, &'s dyn Retriever),
        questions: Vec<Question>,
        seed: u64,
        recipe: &StudentOutputsRecipe,
    ) -> Result<Self, PipelineError> {
        let key = Key::new(seed, Purpose::StudentOutputs);
        let n_held_out = recipe.n_held_out(episodes.len());
        if n_held_out == 0 {
            return Err(PipelineError::NothingToTrain {
                phase: Phase::Kd,
                why: format!(
                    "of {} teacher episodes, one has to be held out of training and one to remain",
                    episodes.len()
                ),
                hint: "raise demos.n_episodes, or name more data.trajectories",
            });
        }
        let mut is_held_out = vec![false; episodes.len()];
        for at in key.fold(HELD_OUT).permutation(episodes.len()).into_iter().take(n_held_out) {
            is_held_out[at] = true;
        }
        let (held_out, kept): (Vec<_>, Vec<_>) =
            episodes.into_iter().zip(is_held_out).partition(|(_, is_held_out)| *is_held_out);
        let held_out: Vec<Episode> = held_out.into_iter().map(|(episode, _)| episode).collect();
        let sampler = Sampler::new(key.fold(QUESTIONS).bits(0), questions.len());
        Ok(Self {
            given: GivenSource::new(kept.into_iter().map(|(episode, _)| episode).collect(), seed),
            played: PlayedSource {
                phase: Phase::Kd,
                player,
                questions,
                sampler,
                key: key.fold(ROLLOUTS),
            },
            held_out: RolloutBatch::new(&held_out.iter().collect::<Vec<_>>()),
            share: StudentShare::new(recipe),
            replay: Vec::new(),
            recipe: recipe.clone(),
            key: key.fold(STEPS),
        })
    }

    fn draw<I: Backend>(
        &mut self,
        setup: &Setup<I>,
        student: &Decoder<I>,
        of: StepDraw,
        waiting: &mut Waiting<'_>,
        metrics: &mut Metrics,
    ) -> Result<(Vec<Episode>, Option<f64>), PipelineError> {
        let StepDraw { step, total, n } = of;
        let mut played_s = None;
        let mut share = self.share;
        if step.is_multiple_of(self.recipe.validate_every) {
            let loss = self.held_out_loss(setup, student);
            share.observe(loss, &self.recipe);
            metrics.set(VALIDATION_LOSS, loss);
        }
        let key = self.key.fold(step as u64);
        let author =
            share.author(key.uniform(0), step, total, self.replay.len() >= self.recipe.capacity);
        let episodes = match author {
            Author::Teacher => self.given.draw(n),
            Author::Student => {
                let Served { value: episodes, seconds } =
                    self.played.play(setup, student, of, waiting)?;
                played_s = Some(seconds);
                self.replay
                    .extend(episodes.iter().filter(|episode| episode.is_trainable()).cloned());
                let n_old = self.replay.len().saturating_sub(self.recipe.capacity);
                self.replay.drain(..n_old);
                episodes
            }
            Author::Replay => key
                .fold(1)
                .permutation(self.replay.len())
                .into_iter()
                .take(n)
                .map(|i| self.replay[i].clone())
                .collect(),
        };
        self.share = share;
        metrics.set(STUDENT_SHARE, share.share);
        metrics.set(EPISODE_SOURCE, author.number());
        Ok((episodes, played_s))
    }

    /// Cross-entropy a token on the held-out episodes, as the published script has it: no teacher
    /// is needed.
    fn held_out_loss<I: Backend>(&self, setup: &Setup<I>, student: &Decoder<I>) -> f64 {
        let rows: Vec<usize> = (0..self.held_out.n_rows).collect();
        let pass = Pass {
            micro_batch_tokens: setup.recipe.distill.micro_batch_tokens,
            temperature: 1.0,
            device: &setup.device,
        };
        let log_probs = score::log_probs(student, &self.held_out, &rows, &pass);
        -log_probs.into_iter().map(f64::from).sum::<f64>()
            / self.held_out.n_agent_tokens(&rows).max(1) as f64
    }
}
