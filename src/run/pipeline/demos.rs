//! Teacher-generated outputs: the teacher plays training questions, its correct episodes are kept
//! (method §3.1), or all of them (DistiLLM, method §5).
use super::{
    Pipeline, PipelineError,
    blocks::{Counts, block_path, counts_of, lost_in_words, n_blocks_done, write_block},
    served::Waiting,
    setup::Play,
};
use crate::{data::sampler::Sampler, episodes::read_episodes, events::Event};
use dgpo_core::{
    env::search::Retriever,
    question::Question,
    rng::{Key, Purpose},
    rollout::{Episode, EpisodeStats},
    settings::{Phase, Sampling},
    tokenizer::Tokenizer,
    trainer::metrics::{Metrics, record_episodes},
};
use dgpo_models::TrainBackend;

/// Questions played between two writes: a block is what an interruption loses.
const BLOCK: usize = 256;

impl<B: TrainBackend> Pipeline<'_, B> {
    /// Plays `demos.n_episodes` questions with the teacher and returns the episodes to learn from,
    /// at most `demos.max_kept`.
    ///
    /// Every block of questions leaves files of its own ([`super::blocks`]), so that an interrupted
    /// phase goes on at its first missing block.
    pub(super) fn demos_phase(
        &mut self,
        tokenizer: &Tokenizer,
        retriever: &dyn Retriever,
    ) -> Result<Vec<Episode>, PipelineError> {
        let questions = self
            .setup
            .questions(&self.setup.recipe.data.train, self.setup.recipe.data.max_train)?;
        let (n_episodes, max_kept) =
            (self.setup.recipe.demos.n_episodes, self.setup.recipe.demos.max_kept);
        let only_correct = self.setup.recipe.demos.only_correct;
        let is_kept =
            |episode: &Episode| episode.is_trainable() && (episode.is_correct() || !only_correct);
        let is_enough = |kept: &[Episode]| max_kept > 0 && kept.len() >= max_kept;
        let (n_blocks, n_done) = (
            n_episodes.div_ceil(BLOCK),
            n_blocks_done(&self.run, self.setup.recipe.retriever.max_lost_share)?,
        );
        let left_behind = block_path(&self.run.episodes_dir(), n_done);
        if n_done < n_blocks && left_behind.exists() {
            tracing::warn!(
                "{}: an outage or a power cut left no whole block; it and those behind it are \
                 played again",
                left_behind.display()
            );
        }
        let mut n_lost = 0;
        let mut sampler = Sampler::new(
            Key::new(self.setup.recipe.run.seed, Purpose::Teacher).bits(0),
            questions.len(),
        );
        let mut kept: Vec<Episode> = Vec::new();
        let mut teacher = None;
        for block in 0..n_blocks {
            if is_enough(&kept) {
                break;
            }
            let indexes = sampler.next(BLOCK.min(n_episodes - block * BLOCK));
            if block < n_done {
                n_lost += counts_of(&self.run, block).map_or(0, |counts| counts.n_lost);
                let episodes = read_episodes(&block_path(&self.run.episodes_dir(), block))?;
                kept.extend(episodes.into_iter().filter(is_kept));
                continue;
            }
            if teacher.is_none() {
                (self.observer)(Event::PhaseStarted {
                    phase: Phase::Demos,
                    done: block,
                    total: n_blocks,
                });
                teacher = self.setup.load_teacher(tokenizer)?;
            }
            let Some(teacher) = &teacher else {
                let why = "model.teacher is empty and data.trajectories too".to_owned();
                return Err(PipelineError::NothingToTrain {
                    phase: Phase::Demos,
                    why,
                    hint: "name a teacher, or a file of episodes",
                });
            };
            let batch: Vec<Question> = indexes.iter().map(|&i| questions[i].clone()).collect();
            let sampling =
                Sampling { temperature: self.setup.recipe.demos.temperature, top_p: 1.0, top_k: 0 };
            let key = Key::new(self.setup.recipe.run.seed, Purpose::Teacher).fold(block as u64);
            let mut say = |text: &str| (self.observer)(Event::Message(text));
            let mut waiting =
                Waiting { recipe: &self.setup.recipe.retriever, stop: &self.stop, say: &mut say };
            let play =
                Play { model: teacher, questions: &batch, sampling, key, is_interruptible: true };
            let what = format!("block {} of the teacher's episodes", block + 1);
            let episodes = self
                .setup
                .play_until_served(&what, (tokenizer, retriever), play, &mut waiting)?
                .value;
            let counts = Counts::of(&episodes);
            n_lost += counts.n_lost;
            let mut metrics = Metrics::default();
            record_episodes(&EpisodeStats::of(&episodes), &mut metrics);
            let of_block: Vec<Episode> = episodes.into_iter().filter(is_kept).collect();
            // Before the file: a run resumed with the block has its metrics, and without it their
            // line is cut off.
            self.report(Phase::Demos, block + 1, n_blocks, &metrics)?;
            self.metrics.sync()?;
            write_block(&self.run, block, counts, &of_block)?;
            kept.extend(of_block);
        }
        if max_kept > 0 {
            kept.truncate(max_kept);
        }
        if teacher.is_some() {
            (self.observer)(Event::PhaseDone { phase: Phase::Demos });
        }
        let (n, which) = (kept.len(), if only_correct { "correct ones" } else { "right or wrong" });
        let lost = lost_in_words(n_lost);
        self.say(&format!("teacher episodes: {n} kept ({which}){lost}"));
        if kept.is_empty() {
            let why = match only_correct {
                true => {
                    format!("the teacher answered none of {n_episodes} questions correctly{lost}")
                }
                false => {
                    format!("none of the teacher's {n_episodes} episodes can be trained on{lost}")
                }
            };
            return Err(PipelineError::NothingToTrain {
                phase: Phase::Kd,
                why,
                hint: "raise demos.n_episodes, or check the teacher",
            });
        }
        Ok(kept)
    }
}
