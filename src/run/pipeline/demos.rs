//! Teacher-generated outputs: the teacher plays training questions, its correct episodes are kept
//! (method §3.1), or all of them (DistiLLM, method §5).
use super::{
    PipelineError,
    blocks::{BlockCounts, block_path, counts_of, lost_in_words, n_blocks_done, write_block},
    run::Run,
    setup::Play,
};
use crate::{config::DemosRecipe, data::sampler::Sampler, episodes::read_episodes, events::Event};
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

/// Plays `demos.n_episodes` questions with the teacher and returns the episodes to learn from, at
/// most `demos.max_kept`.
///
/// Every block of questions leaves files of its own ([`super::blocks`]), so that an interrupted
/// phase goes on at its first missing block.
/// # Errors
/// If there is no teacher or nothing to keep; if the retriever is away for too long.
pub(super) fn demos_phase<B: TrainBackend>(
    run: &mut Run<'_, B>,
    player: (&Tokenizer, &dyn Retriever),
) -> Result<Vec<Episode>, PipelineError> {
    let (phase, seed) = (Phase::Demos, run.setup.recipe.run.seed);
    let DemosRecipe { n_episodes, max_kept, only_correct, temperature } =
        run.setup.recipe.demos.clone();
    let questions = run.setup.training_questions()?;
    let is_kept =
        |episode: &Episode| episode.is_trainable() && (episode.is_correct() || !only_correct);
    let n_blocks = n_episodes.div_ceil(BLOCK);
    let n_done = n_blocks_done(&run.folder, run.setup.recipe.retriever.max_lost_share)?;
    let episodes_dir = run.folder.episodes_dir();
    let unfinished = block_path(&episodes_dir, n_done);
    if n_done < n_blocks && unfinished.exists() {
        tracing::warn!(
            "{}: an outage or a power cut left no whole block; it and those behind it are played \
             again",
            unfinished.display()
        );
    }
    let mut sampler = Sampler::new(Key::new(seed, Purpose::Teacher).bits(0), questions.len());
    let (mut kept, mut n_lost): (Vec<Episode>, usize) = (Vec::new(), 0);
    let mut teacher = None;
    for block in 0..n_blocks {
        if max_kept > 0 && kept.len() >= max_kept {
            break;
        }
        let indexes = sampler.next(BLOCK.min(n_episodes - block * BLOCK));
        if block < n_done {
            n_lost += counts_of(&run.folder, block).map_or(0, |counts| counts.n_lost);
            let episodes = read_episodes(&block_path(&episodes_dir, block))?;
            kept.extend(episodes.into_iter().filter(is_kept));
            continue;
        }
        if teacher.is_none() {
            (run.observer)(Event::PhaseStarted { phase, done: block, total: n_blocks });
            teacher = run.setup.load_teacher(player.0)?;
        }
        let Some(model) = &teacher else {
            let why = "model.teacher is empty and data.trajectories too".to_owned();
            let hint = "name a teacher, or a file of episodes";
            return Err(PipelineError::NothingToTrain { phase, why, hint });
        };
        let drawn: Vec<Question> = indexes.iter().map(|&i| questions[i].clone()).collect();
        let play = Play {
            model,
            questions: &drawn,
            sampling: Sampling { temperature, top_p: 1.0, top_k: 0 },
            key: Key::new(seed, Purpose::Teacher).fold(block as u64),
            is_interruptible: true,
        };
        let what = format!("block {} of the teacher's episodes", block + 1);
        let (setup, mut waiting) = run.playing();
        let episodes = setup.play_until_served(&what, player, play, &mut waiting)?.value;
        let counts = BlockCounts::of(&episodes);
        n_lost += counts.n_lost;
        let mut metrics = Metrics::default();
        record_episodes(&EpisodeStats::of(&episodes), &mut metrics);
        let of_block: Vec<Episode> = episodes.into_iter().filter(is_kept).collect();
        // Before the file: a run resumed with the block has its metrics, and without it their line
        // is cut off.
        drop(waiting);
        run.report(phase, block + 1, n_blocks, &metrics)?;
        run.metrics.sync()?;
        write_block(&run.folder, block, counts, &of_block)?;
        kept.extend(of_block);
    }
    if max_kept > 0 {
        kept.truncate(max_kept);
    }
    if teacher.is_some() {
        (run.observer)(Event::PhaseDone { phase });
    }
    let (n, which) = (kept.len(), if only_correct { "correct ones" } else { "right or wrong" });
    let lost = lost_in_words(n_lost);
    run.say(&format!("teacher episodes: {n} kept ({which}){lost}"));
    if kept.is_empty() {
        let why = match only_correct {
            true => format!("the teacher answered none of {n_episodes} questions correctly{lost}"),
            false => format!("none of the teacher's {n_episodes} episodes can be trained on{lost}"),
        };
        let hint = "raise demos.n_episodes, or check the teacher";
        return Err(PipelineError::NothingToTrain { phase: Phase::Kd, why, hint });
    }
    Ok(kept)
}
