//! A whole run: teacher episodes → KD → RL → evaluation, or other phases in another order, with
//! checkpoints between the steps.
//!
//! A run is a sequence of phases, and each phase first looks at what the run directory already
//! holds: a finished phase is skipped, an interrupted one goes on after its newest checkpoint, a
//! missing one starts. So resuming is running again, and there is one code path for both. So is
//! beginning with what another run has finished: [`reuse`] puts its phases into the new run's
//! directory. A phase is a function over the [`run::Run`]; those that train a student share one
//! loop ([`phase_loop`]).
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
mod error;
mod evaluate;
mod gkd;
mod kd;
pub mod overlap;
mod phase_loop;
pub mod preflight;
pub mod reuse;
mod rl;
mod run;
pub mod served;
pub mod setup;
mod source;
pub mod steer;

use crate::{
    config::{Recipe, check::plays_episodes},
    eval::Summary,
    events::{Observer, Stop},
    folder::{checkpoint, run_dir::RunDir, state::PhaseState},
};
use dgpo_core::{
    engine::EngineError,
    env::search::Retriever,
    rollout::play::RolloutError,
    settings::{GuardAction, Phase},
    tokenizer::Tokenizer,
};
use dgpo_models::{TrainBackend, decoder::Decoder};
use run::Run;

pub use error::PipelineError;

/// A module's own device type is the inner backend's: one name for the pair.
type Inner<B> = <B as burn::tensor::backend::AutodiffBackend>::InnerBackend;

/// Goes through every phase of the recipe's stage that `folder` does not hold yet.
/// # Errors
/// [`PipelineError::Stopped`] after a stop request and [`PipelineError::Guard`] after an alarm. A
/// checkpoint of the last step is written then, except of a student that cannot play: there the
/// earlier ones are better. Otherwise what went wrong.
pub fn run<'a, B: TrainBackend>(
    recipe: Recipe,
    folder: RunDir,
    observer: &'a mut Observer<'a>,
    stop: Stop,
    device: &B::Device,
) -> Result<Summary, PipelineError> {
    let mut run = Run::<B>::open(recipe, folder, observer, stop, device)?;
    let ended = phases(&mut run);
    ended.or_else(|error| Err(guarded(&mut run, error)?))
}

fn phases<B: TrainBackend>(run: &mut Run<'_, B>) -> Result<Summary, PipelineError> {
    let stage = run.setup.recipe.stage;
    if stage.phases().contains(&Phase::Encoder) {
        encoder::encoder_phase(run)?;
        return Ok(run.summary_so_far());
    }
    let tokenizer = run.setup.tokenizer()?;
    // Training may take days; what the evaluation after it cannot read is found out now.
    run.setup.test_questions()?;
    if let Some(overlap) = overlap::overlap_of(&run.setup.recipe) {
        tracing::warn!("{overlap}");
    }
    let is_evaluated = stage.phases().contains(&Phase::Eval);
    let asks = plays_episodes(&run.setup.recipe)
        || (is_evaluated && !run.setup.recipe.data.test.is_empty());
    let retriever = if asks { Some(run.open_retriever()?) } else { None };
    let retriever = retriever.as_deref();
    let mut trained: Vec<(Phase, Decoder<Inner<B>>)> = Vec::new();
    for phase in stage.training_phases() {
        let newest = run.newest(phase)?;
        run.student_of = newest.map(|checkpoint| (phase, checkpoint.step)).or(run.student_of);
        let model = match finished_model(run, phase)? {
            Some(finished) => finished,
            None => {
                if let Some(later) = begun_after(run, phase)? {
                    return Err(PipelineError::BegunFromLess { phase, later });
                }
                let start = match trained.last() {
                    Some((_, model)) => model.clone(),
                    None => run.setup.load(&run.setup.recipe.model.student, &tokenizer)?,
                };
                train(run, phase, &tokenizer, retriever, start)?
            }
        };
        trained.push((phase, model));
    }
    match is_evaluated {
        true => evaluate::evaluate(run, &tokenizer, retriever, trained),
        false => Ok(run.summary_so_far()),
    }
}

/// Runs one phase, from `start` or from its newest checkpoint on.
fn train<B: TrainBackend>(
    run: &mut Run<'_, B>,
    phase: Phase,
    tokenizer: &Tokenizer,
    retriever: Option<&dyn Retriever>,
    start: Decoder<Inner<B>>,
) -> Result<Decoder<Inner<B>>, PipelineError> {
    let player = || (tokenizer, retriever.expect("a stage that plays episodes opens a retriever"));
    match phase {
        Phase::Pretrain => kd::pretrain(run, tokenizer, start),
        Phase::Kd => kd::kd_phase(run, tokenizer, retriever, start),
        Phase::Gkd => gkd::gkd_phase(run, player(), start),
        Phase::Rl => rl::rl_phase(run, player(), start),
        Phase::Encoder | Phase::Demos | Phase::Eval => unreachable!("{phase} trains no student"),
    }
}

/// The model of a phase that has ended already.
fn finished_model<B: TrainBackend>(
    run: &Run<'_, B>,
    phase: Phase,
) -> Result<Option<Decoder<Inner<B>>>, PipelineError> {
    let Some(checkpoint) = run.newest(phase)? else { return Ok(None) };
    let state: PhaseState = checkpoint.read_state()?;
    let total = steer::total_now(phase, state.total, state.recipe.as_ref(), &run.setup.recipe);
    // A run that is told to go on longer goes on.
    match state.step < total {
        true => Ok(None),
        false => run.read_student(&checkpoint.path).map(Some),
    }
}

/// The first phase after `phase` that has a checkpoint.
fn begun_after<B: TrainBackend>(
    run: &Run<'_, B>,
    phase: Phase,
) -> Result<Option<Phase>, PipelineError> {
    let stage = run.setup.recipe.stage;
    let checkpoints = checkpoint::list_checkpoints(run.folder.path(), stage)?;
    let phases = checkpoints.into_iter().map(|checkpoint| checkpoint.phase);
    let later = phases.filter(|&other| stage.place(other) > stage.place(phase));
    Ok(later.min_by_key(|&other| stage.place(other)))
}

/// Turns the error of a student whose logits are not finite into the alarm of a guard, whoever
/// found it out; leaves every other error as it is.
/// # Errors
/// If the alarm cannot be recorded.
fn guarded<B: TrainBackend>(
    run: &mut Run<'_, B>,
    error: PipelineError,
) -> Result<PipelineError, PipelineError> {
    if let PipelineError::Rollout(RolloutError::Engine(EngineError::NotFinite { row, position })) =
        &error
        && let Some((phase, step)) = run.student_of
        && run.setup.recipe.guards.action == GuardAction::Stop
    {
        let why = format!(
            "in row {row} of the batch the logits at position {position} hold NaN or no finite \
             value"
        );
        let alarm = run.guards_of(phase).unplayable(phase, step, &why);
        run.metrics.append_alarm(&alarm)?;
        return Ok(PipelineError::Guard(vec![alarm]));
    }
    Ok(error)
}
