//! A run at work: its recipe on a device, its folder, whoever watches it, and what every phase does
//! with them.
use super::{
    Inner, PipelineError, blocks,
    served::Waiting,
    setup::{SetupOf, setup_of},
    steer::{self, Change},
};
use crate::{
    config::Recipe,
    data::sampler::Sampler,
    devices,
    eval::Summary,
    events::{Event, Observer, Stop},
    folder::{
        checkpoint::{self, RunCheckpoint, WriteError},
        run_dir::{MetricsLog, RunDir},
        state::{PhaseState, read_model},
    },
};
use dgpo_core::{
    env::search::Retriever,
    question::Question,
    settings::{GuardAction, Phase},
    trainer::{
        guards::{Alarm, Guards},
        metrics::Metrics,
    },
};
use dgpo_models::{TrainBackend, decoder::Decoder};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Instant,
};

/// A run at work.
pub(super) struct Run<'a, B: TrainBackend> {
    pub setup: SetupOf<B>,
    pub folder: RunDir,
    pub observer: &'a mut Observer<'a>,
    pub stop: Stop,
    pub metrics: MetricsLog,
    /// Memory of the guards for each phase; a part of its checkpoints.
    guards: HashMap<Phase, Guards>,
    /// Seen in the last step, and to end the run after its checkpoint.
    alarms: Vec<Alarm>,
    /// The step that made the student what it is, if it was trained here.
    pub student_of: Option<(Phase, usize)>,
    started: Instant,
    /// Seconds of work of earlier processes of this run.
    earlier_wall_s: f64,
}

impl<'a, B: TrainBackend> Run<'a, B> {
    /// Opens a run's folder; its metrics go on after its newest checkpoint.
    /// # Errors
    /// If the run directory is damaged or the recipe names an unknown dtype.
    pub(crate) fn open(
        recipe: Recipe,
        folder: RunDir,
        observer: &'a mut Observer<'a>,
        stop: Stop,
        device: &B::Device,
    ) -> Result<Self, PipelineError> {
        let stage = recipe.stage;
        let newest = checkpoint::latest(folder.path(), stage)?;
        // The teacher's episodes leave no checkpoint: where they came last, the lines of their
        // blocks are kept.
        let n_blocks = blocks::n_blocks_done(&folder, recipe.retriever.max_lost_share)?;
        let reached = [
            newest.as_ref().map(|c| (c.phase, c.step)),
            (n_blocks > 0).then_some((Phase::Demos, n_blocks)),
        ];
        let furthest = reached.into_iter().flatten().max_by_key(|&(phase, _)| stage.place(phase));
        let metrics = folder.metrics(furthest.map(|(phase, step)| (stage, phase, step)))?;
        let mut earlier_wall_s = 0.0;
        if let Some(checkpoint) = &newest {
            let earlier: ElapsedSoFar = checkpoint.read_state()?;
            earlier_wall_s = earlier.wall_s;
            for Change { key, was, now } in steer::check(&folder, &recipe, Some(checkpoint))? {
                observer(Event::Message(&format!(
                    "the recipe was changed since {}: {key} is {now} (was {was})",
                    checkpoint.path.display()
                )));
            }
        }
        let setup = setup_of::<B>(recipe, device)?;
        let (guards, alarms, student_of) = (HashMap::new(), Vec::new(), None);
        Ok(Self {
            setup,
            folder,
            observer,
            stop,
            metrics,
            guards,
            alarms,
            student_of,
            started: Instant::now(),
            earlier_wall_s,
        })
    }

    /// The student of a checkpoint.
    pub(crate) fn read_student(
        &self,
        checkpoint: &Path,
    ) -> Result<Decoder<Inner<B>>, PipelineError> {
        let model = read_model(checkpoint, self.setup.dtype, &self.setup.device)?;
        Ok(self.setup.cut_to_shared(model))
    }

    /// The state that a phase goes on from, and its checkpoint's folder; the guards remember again
    /// what they knew there.
    pub(crate) fn resumed(&mut self, phase: Phase) -> Result<Option<Resumed>, PipelineError> {
        let Some(checkpoint) = self.newest(phase)? else { return Ok(None) };
        let state: PhaseState = checkpoint.read_state()?;
        self.guards.insert(phase, state.guards.clone());
        Ok(Some(Resumed { state, dir: checkpoint.path }))
    }

    /// The questions that the student plays in a phase.
    /// # Errors
    /// If their files cannot be read or hold none.
    pub(crate) fn training_questions(&self, phase: Phase) -> Result<Vec<Question>, PipelineError> {
        let questions = self.setup.training_questions()?;
        let (why, hint) = ("there is no question".to_owned(), "check data.train");
        match questions.is_empty() {
            true => Err(PipelineError::NothingToTrain { phase, why, hint }),
            false => Ok(questions),
        }
    }

    /// The setup for playing episodes, and the patience with its retriever.
    pub(crate) fn playing(&mut self) -> (&SetupOf<B>, Waiting<'_>) {
        let Self { setup, stop, observer, .. } = self;
        let say = Box::new(|text: &str| observer(Event::Message(text)));
        (setup, Waiting { recipe: &setup.recipe.retriever, stop, say })
    }

    pub(crate) fn open_retriever(&mut self) -> Result<Box<dyn Retriever>, PipelineError> {
        let retriever = self.setup.retriever(self.folder.path(), &self.stop)?;
        self.say(&format!("retriever: {}", retriever.describe()));
        Ok(retriever)
    }

    /// The newest checkpoint of a phase.
    pub(crate) fn newest(&self, phase: Phase) -> Result<Option<RunCheckpoint>, PipelineError> {
        Ok(checkpoint::newest_of(self.folder.path(), self.setup.recipe.stage, phase)?)
    }

    pub(crate) fn say(&mut self, text: &str) {
        (self.observer)(Event::Message(text));
    }

    /// Records a finished step (counted from 1) and tells the observer, if the device says that it
    /// computed all of it: a checkpoint follows. Then the guards look at it.
    pub(crate) fn report(
        &mut self,
        phase: Phase,
        step: usize,
        total: usize,
        metrics: &Metrics,
    ) -> Result<(), PipelineError> {
        devices::check::<Inner<B>>(&self.setup.device)?;
        self.metrics.append(phase, step, &metrics.0)?;
        (self.observer)(Event::Step { phase, step, total, metrics: &metrics.0 });
        self.student_of = Guards::watches(phase).then_some((phase, step));
        let recipe = &self.setup.recipe.guards;
        let alarms =
            self.guards.entry(phase).or_default().observe(recipe, phase, (step, total), metrics);
        for alarm in &alarms {
            self.metrics.append_alarm(alarm)?;
        }
        if recipe.action == GuardAction::Stop {
            self.alarms = alarms;
        } else {
            alarms.iter().for_each(|alarm| self.say(&format!("warning: {alarm}")));
        }
        Ok(())
    }

    /// Writes a checkpoint, which stands for the metrics of every step before it.
    pub(crate) fn save(
        &mut self,
        phase: Phase,
        step: usize,
        write: impl FnOnce(&Path) -> Result<(), WriteError>,
    ) -> Result<(), PipelineError> {
        self.metrics.sync()?;
        let saved =
            checkpoint::save(self.folder.path(), phase, step, self.setup.recipe.run.keep, write)?;
        (self.observer)(Event::CheckpointSaved { path: &saved.path });
        Ok(())
    }

    /// Memory of the guards for a phase, for its checkpoint.
    pub(crate) fn guards_of(&self, phase: Phase) -> Guards {
        self.guards.get(&phase).cloned().unwrap_or_default()
    }

    /// Ends the run between two steps, after the checkpoint of the first, where a guard or somebody
    /// wants it.
    pub(crate) fn stop_if_wanted(
        &mut self,
        step: usize,
        total: usize,
    ) -> Result<(), PipelineError> {
        if !self.alarms.is_empty() {
            return Err(PipelineError::Guard(std::mem::take(&mut self.alarms)));
        }
        if self.stop.is_requested() && step < total { Err(PipelineError::Stopped) } else { Ok(()) }
    }

    pub(crate) fn wall_s(&self) -> f64 {
        self.earlier_wall_s + self.started.elapsed().as_secs_f64()
    }

    pub(crate) fn summary_so_far(&self) -> Summary {
        Summary { seed: self.setup.recipe.run.seed, wall_s: self.wall_s(), ..Summary::default() }
    }

    /// True if step `step` of `total` (counted from 1) is followed by a checkpoint.
    pub(crate) fn is_save_due(&self, step: usize, total: usize) -> bool {
        let every = self.setup.recipe.run.save_every;
        step == total
            || (every > 0 && step.is_multiple_of(every))
            || self.stop.is_requested()
            || !self.alarms.is_empty()
    }
}

/// A phase as its newest checkpoint has it.
pub(super) struct Resumed {
    pub state: PhaseState,
    pub dir: PathBuf,
}

/// The part of a checkpoint's state that every phase writes.
#[derive(serde::Deserialize)]
struct ElapsedSoFar {
    wall_s: f64,
}

/// The sampler of a checkpoint, if there are as many items now as there were then: its cursor means
/// nothing in another set.
pub(super) fn same_items(
    sampler: Sampler,
    what: &'static str,
    now: usize,
) -> Result<Sampler, PipelineError> {
    match sampler.n_items {
        then if then == now => Ok(sampler),
        then => Err(PipelineError::DataChanged { what, then, now }),
    }
}
