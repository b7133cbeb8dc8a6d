//! A whole run: teacher episodes → KD → RL → evaluation, or other phases in another order, with
//! checkpoints between the steps.
//!
//! A run is a sequence of phases, and each phase first looks at what the run directory already
//! holds: a finished phase is skipped, an interrupted one goes on behind its newest checkpoint, a
//! missing one starts. So resuming is running again, and there is one code path for both. And so is
//! beginning with what another run has finished: [`takeover`] puts its phases into the new run's
//! directory.
//!
//! | phase | what it leaves |
//! |---|---|
//! | demos | `episodes/demos-NNNNNN.jsonl`: what is kept of each block of questions the teacher played; `.json`: its counts |
//! | kd, pretrain | `checkpoints/kd-step-NNNNNN/` |
//! | gkd, rl | `checkpoints/rl-step-NNNNNN/`, and `episodes/rl-step-NNNNNN.jsonl` with the numbers of every token |
//! | eval | `evaluation/NAME.json` and `episodes/eval-NAME.jsonl` for student, teacher and what each phase left; then `summary.json` |
//! | eval, with `eval.arcap` | beside them `episodes/eval-NAME-arcap-with(out)-thinking.jsonl`: the answers to given gold passages |
pub mod arcap;
pub mod asked;
mod blocks;
pub mod cut_share;
mod demos;
mod distill;
mod encoder;
mod evaluate;
mod gkd;
mod kd;
pub mod overlap;
mod phase_loop;
pub mod preflight;
mod rl;
pub mod served;
pub mod setup;
mod source;
pub mod steer;
pub mod takeover;

use crate::{
    config::{Recipe, check::plays_episodes},
    data::{DataError, sampler::Sampler},
    devices::{self, DeviceError},
    episodes::given::TrajectoryError,
    eval::Summary,
    events::{Event, Observer, Stop},
    folder::{
        checkpoint::{self, Checkpoint, CheckpointError, WriteError},
        run_dir::{MetricsLog, RunDir, RunDirError},
        state::{PhaseState, StateError, read_model},
    },
    hub::HubError,
    models::SetupError,
    retriever::{RetrieverError, contrastive::EncoderTrainingError},
};
use dgpo_core::{
    engine::EngineError,
    env::search::Retriever,
    question::Question,
    rollout::play::RolloutError,
    settings::{GuardAction, Phase},
    tokenizer::{Tokenizer, TokenizerError},
    trainer::{
        guards::{Alarm, Guards},
        metrics::Metrics,
    },
};
use dgpo_models::{ModelError, TrainBackend, decoder::Decoder};
use served::Waiting;
use setup::SetupOf;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Instant,
};
use steer::{Change, SteerError};

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// Somebody asked; everything is saved.
    #[error("stopped as asked; everything done so far is saved")]
    Stopped,
    /// The run goes wrong; what is worth keeping is saved.
    #[error("{}", .0.iter().map(Alarm::to_string).collect::<Vec<_>>().join("\n  also: "))]
    Guard(Vec<Alarm>),
    #[error(
        "{} holds no critic: it was written with rl.algorithm = \"grpo\"; hint: set it back, or \
         begin a new run from this checkpoint's model", .0.display()
    )]
    NoCritic(PathBuf),
    #[error(
        "{phase} is to go on, but {later} has begun from what it was before and would not learn \
         from it; hint: give {phase} its steps or its last checkpoint back, or remove the \
         checkpoints of {later}, which is then made again"
    )]
    BegunFromLess { phase: Phase, later: Phase },
    #[error("{phase} has nothing to train on: {why}; hint: {hint}")]
    NothingToTrain { phase: Phase, why: String, hint: &'static str },
    #[error(
        "{what}: {n_lost} of {n_asked} that searched were lost to the retriever, more than \
         retriever.max_lost_share = {max_lost_share} allows, {lasting}: {}",
        with_hint(why)
    )]
    RetrieverDown {
        /// Whether it answers, with a refusal: waiting changes nothing.
        is_refused: bool,
        what: String,
        n_lost: usize,
        n_asked: usize,
        max_lost_share: f64,
        lasting: String,
        why: String,
    },
    #[error(
        "episode.max_prompt_length is {longest}, but {model} was made for {limit} positions \
         (max_position_embeddings); hint: set episode.max_prompt_length to {limit} or less"
    )]
    TooLong { model: String, longest: usize, limit: usize },
    #[error(transparent)]
    AskedTwice(#[from] asked::AskedTwice),
    #[error(
        "the checkpoint drew from {then} {what}, and now there are {now}; hint: restore the files \
         named in the recipe, or start a new run"
    )]
    DataChanged { what: &'static str, then: usize, now: usize },
    #[error(transparent)]
    Steer(#[from] SteerError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Trajectory(#[from] TrajectoryError),
    #[error(transparent)]
    Retriever(#[from] RetrieverError),
    #[error(transparent)]
    Rollout(RolloutError),
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Encoder(#[from] EncoderTrainingError),
    #[error("cannot write {}: {source}; hint: check free space and permissions", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

/// The retriever's words, with advice where they bring none.
fn with_hint(why: &str) -> String {
    if why.contains("hint: ") {
        why.to_owned()
    } else {
        format!("{why}; hint: is the retriever as the recipe says? A run continues with --resume")
    }
}

impl From<RolloutError> for PipelineError {
    fn from(error: RolloutError) -> Self {
        match error {
            RolloutError::Engine(EngineError::Interrupted) => Self::Stopped,
            error => Self::Rollout(error),
        }
    }
}

/// What a run works on and reports to.
pub struct Pipeline<'a, B: TrainBackend> {
    setup: SetupOf<B>,
    run: RunDir,
    observer: &'a mut Observer<'a>,
    stop: Stop,
    metrics: MetricsLog,
    /// What the guards remember of each phase; a part of its checkpoints.
    guards: HashMap<Phase, Guards>,
    /// Seen in the last step, and to end the run behind its checkpoint.
    alarms: Vec<Alarm>,
    /// The step that made the student what it is, if it was trained here.
    student_of: Option<(Phase, usize)>,
    started: Instant,
    /// Seconds of work of earlier processes of this run.
    earlier_wall_s: f64,
}

impl<'a, B: TrainBackend> Pipeline<'a, B> {
    /// Opens the run's metrics behind its newest checkpoint.
    /// # Errors
    /// If the run directory is damaged or the recipe names an unknown dtype.
    pub fn new(
        recipe: Recipe,
        run: RunDir,
        observer: &'a mut Observer<'a>,
        stop: Stop,
        device: &B::Device,
    ) -> Result<Self, PipelineError> {
        let stage = recipe.stage;
        let newest = checkpoint::latest(run.path(), stage)?;
        // The teacher's episodes leave no checkpoint: where they came last, the lines of their
        // blocks are kept.
        let n_blocks = blocks::n_blocks_done(&run, recipe.retriever.max_lost_share)?;
        let reached = [
            newest.as_ref().map(|c| (c.phase, c.step)),
            (n_blocks > 0).then_some((Phase::Demos, n_blocks)),
        ];
        let furthest = reached.into_iter().flatten().max_by_key(|&(phase, _)| stage.place(phase));
        let metrics = run.metrics(furthest.map(|(phase, step)| (stage, phase, step)))?;
        let mut earlier_wall_s = 0.0;
        if let Some(checkpoint) = &newest {
            let earlier: Earlier = checkpoint.read_state()?;
            earlier_wall_s = earlier.wall_s;
            for Change { key, was, now } in steer::check(&run, &recipe, Some(checkpoint))? {
                observer(Event::Message(&format!(
                    "{RECIPE_CHANGED} {}: {key} is {now} (was {was})",
                    checkpoint.path.display()
                )));
            }
        }
        let setup = setup::setup_of::<B>(recipe, device)?;
        let (guards, alarms, student_of) = (HashMap::new(), Vec::new(), None);
        Ok(Self {
            setup,
            run,
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

    /// Runs (or continues) every phase of the recipe's stage.
    /// # Errors
    /// [`PipelineError::Stopped`] after a stop request and [`PipelineError::Guard`] after an alarm,
    /// with a checkpoint of the last step written (but of a student that cannot play, where the
    /// earlier ones are better); otherwise what went wrong.
    pub fn run(mut self) -> Result<Summary, PipelineError> {
        let ended = self.run_phases();
        ended.or_else(|error| Err(self.guarded(error)?))
    }

    /// A student that was trained until its logits are no numbers is what the guards are for,
    /// whoever finds out; every other error is as it was.
    /// # Errors
    /// If the alarm cannot be recorded.
    fn guarded(&mut self, error: PipelineError) -> Result<PipelineError, PipelineError> {
        let broken = match &error {
            PipelineError::Rollout(RolloutError::Engine(EngineError::NotFinite {
                row,
                position,
            })) => Some((*row, *position)),
            _ => None,
        };
        match (broken, self.student_of) {
            (Some((row, position)), Some((phase, step)))
                if self.setup.recipe.guards.action == GuardAction::Stop =>
            {
                let why = format!(
                    "in row {row} of the batch the logits at position {position} hold NaN or no \
                     finite value"
                );
                let alarm = self.guards_of(phase).unplayable(phase, step, &why);
                self.metrics.append_alarm(&alarm)?;
                Ok(PipelineError::Guard(vec![alarm]))
            }
            _ => Ok(error),
        }
    }

    fn run_phases(&mut self) -> Result<Summary, PipelineError> {
        let stage = self.setup.recipe.stage;
        if stage.phases().contains(&Phase::Encoder) {
            self.train_encoder()?;
            return Ok(self.summary_so_far());
        }
        let tokenizer = self.setup.tokenizer()?;
        // Training may take days; what the evaluation behind it cannot read is found out now.
        self.setup.test_questions()?;
        if let Some(overlap) = overlap::overlap_of(&self.setup.recipe) {
            tracing::warn!("{overlap}");
        }
        let is_evaluated = stage.phases().contains(&Phase::Eval);
        let asks = plays_episodes(&self.setup.recipe)
            || (is_evaluated && !self.setup.recipe.data.test.is_empty());
        let retriever = if asks { Some(self.open_retriever()?) } else { None };
        let mut trained: Vec<(Phase, Decoder<Inner<B>>)> = Vec::new();
        for phase in stage.training_phases() {
            self.student_of =
                self.newest(phase)?.map(|checkpoint| (phase, checkpoint.step)).or(self.student_of);
            let model = match (self.finished_model(phase)?, trained.last()) {
                (Some(finished), _) => finished,
                (None, _) if let Some(later) = self.begun_behind(phase)? => {
                    return Err(PipelineError::BegunFromLess { phase, later });
                }
                (None, Some((_, start))) => {
                    self.train(phase, &tokenizer, retriever.as_deref(), start.clone())?
                }
                (None, None) => {
                    let start = self.setup.load(&self.setup.recipe.model.student, &tokenizer)?;
                    self.train(phase, &tokenizer, retriever.as_deref(), start)?
                }
            };
            trained.push((phase, model));
        }
        if is_evaluated {
            self.evaluate(&tokenizer, retriever.as_deref(), trained)
        } else {
            Ok(self.summary_so_far())
        }
    }

    /// One phase, from `start` or behind its newest checkpoint.
    fn train(
        &mut self,
        phase: Phase,
        tokenizer: &Tokenizer,
        retriever: Option<&dyn Retriever>,
        start: Decoder<Inner<B>>,
    ) -> Result<Decoder<Inner<B>>, PipelineError> {
        let needed = || retriever.expect("a stage that plays episodes opens a retriever");
        match phase {
            Phase::Pretrain => kd::pretrain(self, tokenizer, start),
            Phase::Kd => kd::kd_phase(self, tokenizer, retriever, start),
            Phase::Gkd => gkd::gkd_phase(self, (tokenizer, needed()), start),
            Phase::Rl => rl::rl_phase(self, (tokenizer, needed()), start),
            Phase::Encoder | Phase::Demos | Phase::Eval => {
                unreachable!("{phase} trains no student")
            }
        }
    }

    /// The model of a phase that has ended already.
    fn finished_model(&self, phase: Phase) -> Result<Option<Decoder<Inner<B>>>, PipelineError> {
        let Some(checkpoint) = self.newest(phase)? else { return Ok(None) };
        let state: PhaseState = checkpoint.read_state()?;
        // A run that is told to go on longer goes on.
        if state.step
            < steer::total_now(phase, state.total, state.recipe.as_ref(), &self.setup.recipe)
        {
            return Ok(None);
        }
        Ok(Some(self.read_student(&checkpoint.path)?))
    }

    /// The student of a checkpoint.
    fn read_student(&self, checkpoint: &Path) -> Result<Decoder<Inner<B>>, PipelineError> {
        let model = read_model(checkpoint, self.setup.dtype, &self.setup.device)?;
        Ok(self.setup.cut_to_shared(model))
    }

    /// The state that a phase goes on from, and its checkpoint's folder; the guards remember again
    /// what they knew there.
    fn resumed(&mut self, phase: Phase) -> Result<Option<Resumed>, PipelineError> {
        let Some(checkpoint) = self.newest(phase)? else { return Ok(None) };
        let state: PhaseState = checkpoint.read_state()?;
        self.guards.insert(phase, state.guards.clone());
        Ok(Some(Resumed { state, dir: checkpoint.path }))
    }

    /// The questions that the student plays in a phase.
    /// # Errors
    /// If their files cannot be read or hold none.
    fn training_questions(&self, phase: Phase) -> Result<Vec<Question>, PipelineError> {
        let questions = self.setup.training_questions()?;
        let (why, hint) = ("there is no question".to_owned(), "check data.train");
        match questions.is_empty() {
            true => Err(PipelineError::NothingToTrain { phase, why, hint }),
            false => Ok(questions),
        }
    }

    /// The setup for playing episodes, and the patience with its retriever.
    fn playing(&mut self) -> (&SetupOf<B>, Waiting<'_>) {
        let Self { setup, stop, observer, .. } = self;
        let say = Box::new(|text: &str| observer(Event::Message(text)));
        (setup, Waiting { recipe: &setup.recipe.retriever, stop, say })
    }

    /// The first phase behind `phase` that has a checkpoint.
    fn begun_behind(&self, phase: Phase) -> Result<Option<Phase>, PipelineError> {
        let stage = self.setup.recipe.stage;
        let behind = checkpoint::list_checkpoints(self.run.path(), stage)?
            .into_iter()
            .map(|checkpoint| checkpoint.phase);
        Ok(behind
            .filter(|&other| stage.place(other) > stage.place(phase))
            .min_by_key(|&other| stage.place(other)))
    }

    fn open_retriever(&mut self) -> Result<Box<dyn Retriever>, PipelineError> {
        let retriever = self.setup.retriever(self.run.path(), &self.stop)?;
        self.say(&format!("retriever: {}", retriever.describe()));
        Ok(retriever)
    }

    /// The newest checkpoint of a phase.
    fn newest(&self, phase: Phase) -> Result<Option<Checkpoint>, PipelineError> {
        Ok(checkpoint::list_checkpoints(self.run.path(), self.setup.recipe.stage)?
            .into_iter()
            .rev()
            .find(|c| c.phase == phase))
    }

    fn say(&mut self, text: &str) {
        (self.observer)(Event::Message(text));
    }

    /// Records a finished step (counted from 1) and tells the observer, if the device says that it
    /// computed all of it: a checkpoint follows. Then the guards look at it.
    fn report(
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
    fn save(
        &mut self,
        phase: Phase,
        step: usize,
        write: impl FnOnce(&Path) -> Result<(), WriteError>,
    ) -> Result<(), PipelineError> {
        self.metrics.sync()?;
        let saved =
            checkpoint::save(self.run.path(), phase, step, self.setup.recipe.run.keep, write)?;
        (self.observer)(Event::CheckpointSaved { path: &saved.path });
        Ok(())
    }

    /// What the guards remember of a phase, for its checkpoint.
    fn guards_of(&self, phase: Phase) -> Guards {
        self.guards.get(&phase).cloned().unwrap_or_default()
    }

    /// Ends the run between two steps, behind the checkpoint of the first, where a guard or
    /// somebody wants it.
    fn stop_if_wanted(&mut self, step: usize, total: usize) -> Result<(), PipelineError> {
        if !self.alarms.is_empty() {
            return Err(PipelineError::Guard(std::mem::take(&mut self.alarms)));
        }
        if self.stop.is_requested() && step < total { Err(PipelineError::Stopped) } else { Ok(()) }
    }

    fn wall_s(&self) -> f64 {
        self.earlier_wall_s + self.started.elapsed().as_secs_f64()
    }

    fn summary_so_far(&self) -> Summary {
        Summary { seed: self.setup.recipe.run.seed, wall_s: self.wall_s(), ..Summary::default() }
    }

    /// Whether step `step` of `total` (counted from 1) is followed by a checkpoint.
    fn is_save_due(&self, step: usize, total: usize) -> bool {
        let every = self.setup.recipe.run.save_every;
        step == total
            || (every > 0 && step.is_multiple_of(every))
            || self.stop.is_requested()
            || !self.alarms.is_empty()
    }
}

/// A phase as its newest checkpoint has it.
struct Resumed {
    state: PhaseState,
    dir: PathBuf,
}

/// The part of a checkpoint's state that every phase writes.
#[derive(serde::Deserialize)]
struct Earlier {
    wall_s: f64,
}

/// Begins the line that says how the recipe of a resumed run was edited.
const RECIPE_CHANGED: &str = "the recipe was changed since";

/// The sampler of a checkpoint, if there are as many items now as there were then: its cursor means
/// nothing in another set.
fn same_items(sampler: Sampler, what: &'static str, now: usize) -> Result<Sampler, PipelineError> {
    match sampler.n_items == now {
        true => Ok(sampler),
        false => Err(PipelineError::DataChanged { what, then: sampler.n_items, now }),
    }
}

/// A module's own device type is the inner backend's: one name for the pair.
type Inner<B> = <B as burn::tensor::backend::AutodiffBackend>::InnerBackend;
