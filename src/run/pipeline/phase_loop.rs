//! The one loop of every phase that trains a student: evaluate, step, record, save, stop. Each
//! phase says what a step is ([`Learner`]).
//!
//! A resumed phase enters at the top with what its newest checkpoint holds, which is what the
//! uninterrupted one had there. So nothing in the loop depends on whether a run was resumed.
//! (The training of an encoder is not resumable and keeps no state between its steps; it has the
//! loop of `crate::retriever::contrastive`.)
use super::{
    Inner, PipelineError,
    evaluate::{evaluate_step, is_evaluation_due},
    run::Run,
};
use crate::{
    episodes::write_records,
    events::Event,
    folder::{
        checkpoint::{self, WriteError},
        state::{PhaseState, SideFiles, write_model},
    },
};
use dgpo_core::{
    env::search::Retriever,
    rollout::EpisodeRecord,
    settings::Phase,
    tokenizer::Tokenizer,
    trainer::metrics::{Metrics, STEP_SECONDS},
};
use dgpo_models::{TrainBackend, decoder::Decoder};
use std::{path::Path, time::Instant};

/// A network in training, with everything that changes with its steps.
pub(super) trait Learner<B: TrainBackend> {
    /// The student as it is now.
    fn student(&self) -> &Decoder<Inner<B>>;

    /// Takes the step after `done` of them.
    /// # Errors
    /// Whatever the step fails with. Where the retriever did not serve its episodes, the learner is
    /// left as it was.
    fn step(&mut self, run: &mut Run<'_, B>, done: usize) -> Result<LearnedStep, PipelineError>;

    /// Adds the learner's part to a checkpoint's state.
    fn add_to(&self, state: &mut PhaseState);

    /// Writes what a checkpoint holds beside the state and the student.
    /// # Errors
    /// If the disk fails.
    fn write(&self, dir: &Path) -> Result<(), WriteError>;
}

/// Result of a step, beside the changed learner.
pub(super) struct LearnedStep {
    pub metrics: Metrics,
    /// The episodes that the student played for this step, with the numbers of their tokens.
    pub records: Option<Vec<EpisodeRecord>>,
}

/// The frame of a phase around its learner.
pub(super) struct PhaseLoop<'p, B: TrainBackend> {
    pub phase: Phase,
    /// Steps done by earlier processes.
    pub done: usize,
    pub total: usize,
    /// Tokenizer and retriever of the evaluations between the steps; `None` where there are none.
    pub player: Option<(&'p Tokenizer, &'p dyn Retriever)>,
    /// The teacher whose distance those evaluations measure.
    pub teacher: Option<&'p Decoder<Inner<B>>>,
}

impl<B: TrainBackend> PhaseLoop<'_, B> {
    /// Takes the remaining steps of a phase, with a checkpoint after the last one at least.
    /// # Errors
    /// [`PipelineError::Stopped`] after a stop request and [`PipelineError::Guard`] after an alarm,
    /// with a checkpoint of the last step; otherwise what went wrong.
    pub(crate) fn run(
        self,
        run: &mut Run<'_, B>,
        learner: &mut impl Learner<B>,
    ) -> Result<(), PipelineError> {
        let Self { phase, mut done, total, player, teacher } = self;
        let side_files = run.setup.side_files()?;
        (run.observer)(Event::PhaseStarted { phase, done, total });
        while done < total {
            if let Some(player) = player
                && is_evaluation_due(run, phase, done)?
            {
                // What was learned must not depend on whether the evaluation comes to its end.
                save_once(run, (phase, done, total), learner, &side_files)?;
                evaluate_step(run, (phase, done), player, learner.student(), teacher)?;
            }

            let started = Instant::now();
            let LearnedStep { mut metrics, records } = match learner.step(run, done) {
                // The steps done so far are worth more than a retriever that is down for now.
                Err(unserved @ (PipelineError::RetrieverDown { .. } | PipelineError::Stopped)) => {
                    save_once(run, (phase, done, total), learner, &side_files)?;
                    return Err(unserved);
                }
                learned => learned?,
            };
            done += 1;
            metrics.set(STEP_SECONDS, started.elapsed().as_secs_f64());

            // Before the checkpoint: a run resumed from it has the metrics of every step it stands
            // for.
            run.report(phase, done, total, &metrics)?;
            if run.is_save_due(done, total) {
                if let Some(records) = records {
                    let file = format!("{phase}-step-{done:06}.jsonl");
                    write_records(&run.folder.episodes_dir().join(file), &records)?;
                }
                save_once(run, (phase, done, total), learner, &side_files)?;
            }
            run.stop_if_wanted(done, total)?;
        }
        (run.observer)(Event::PhaseDone { phase });
        Ok(())
    }
}

/// Writes the checkpoint after step `done` of `total`, if there is anything to save that is not on
/// disk.
fn save_once<B: TrainBackend>(
    run: &mut Run<'_, B>,
    (phase, done, total): (Phase, usize, usize),
    learner: &impl Learner<B>,
    side_files: &SideFiles,
) -> Result<(), PipelineError> {
    if done == 0 || run.newest(phase)?.is_some_and(|newest| newest.step == done) {
        return Ok(());
    }
    let mut state = PhaseState {
        step: done,
        total,
        guards: run.guards_of(phase),
        wall_s: run.wall_s(),
        recipe: Some(run.setup.recipe.clone()),
        ..PhaseState::default()
    };
    learner.add_to(&mut state);
    run.save(phase, done, |dir| {
        write_model(learner.student(), side_files, dir)?;
        learner.write(dir)?;
        checkpoint::write_state(dir, &state)
    })
}
