//! A distillation phase of any kind: draw episodes, learn from them; `dgpo_core::trainer::distill`
//! is one of its steps, [`EpisodeSource`] says whose they are.
use super::{
    Inner, PipelineError,
    phase_loop::{LearnedStep, Learner, PhaseLoop},
    run::{Resumed, Run},
    setup::describe_model,
    source::{EpisodeSource, StepDraw},
};
use crate::folder::{
    checkpoint::WriteError,
    state::{DistillState, PhaseState, read_optimizer, write_optimizer},
};
use dgpo_core::{
    algo::{distill::TaidSchedule, schedule::learning_rate},
    rollout::{Episode, EpisodeRecord, RolloutBatch, TokenRecord},
    settings::{DistillDivergence, DistillRecipe, Phase},
    trainer::{
        distill::{DistillLoss, DistillStep, Student, distill_step},
        metrics::{
            DISTILL_KL, ENTROPY, LEARNING_RATE, SKIPPED_UPDATES, TAID_T, UPDATE_TOKENS_PER_SECOND,
        },
        optimizer::AdamW,
        score::record_log_prob_difference,
    },
};
use dgpo_models::{TrainBackend, decoder::Decoder};
use std::{path::Path, time::Instant};

/// A phase of distillation, before its first step.
pub(super) struct Distillation<'s, B: TrainBackend> {
    pub phase: Phase,
    pub teacher: Option<Decoder<Inner<B>>>,
    pub source: EpisodeSource<'s>,
    /// Loss and batch; its `steps` and `epochs` have become `total`.
    pub recipe: DistillRecipe,
    pub total: usize,
}

/// The student of a distillation, and everything that changes with its steps.
struct DistillLearner<'s, B: TrainBackend> {
    teacher: Option<&'s Decoder<Inner<B>>>,
    source: EpisodeSource<'s>,
    recipe: DistillRecipe,
    total: usize,
    student: Student<B>,
    taid: TaidSchedule,
}

/// Distils from `start`, or from the phase's newest checkpoint on, and returns the student.
/// # Errors
/// As [`PhaseLoop::run`]; if models cannot be read.
pub(super) fn distil<B: TrainBackend>(
    run: &mut Run<'_, B>,
    start: Decoder<Inner<B>>,
    task: Distillation<'_, B>,
) -> Result<Decoder<Inner<B>>, PipelineError> {
    let Distillation { phase, teacher, mut source, recipe, total } = task;
    let optim = &run.setup.recipe.optim.distill.clone();
    let mut taid = TaidSchedule::of(&recipe.taid);
    let (done, student) = match run.resumed(phase)? {
        None => (0, Student { model: start, optimizer: AdamW::new(optim.clone()), n_skipped: 0 }),
        Some(Resumed { state, dir }) => {
            source.restore(&state, &dir)?;
            if let Some(distill) = &state.distill {
                // The limits are the recipe's, and where the target is between them is what it had
                // become.
                let TaidSchedule { t, momentum, prev_loss, .. } = distill.taid;
                taid = TaidSchedule { t, momentum, prev_loss, ..taid };
            }
            let model = run.read_student(&dir)?;
            let optimizer =
                read_optimizer(optim, state.n_updates, &model, &dir, &run.setup.device)?;
            (state.step, Student { model, optimizer, n_skipped: state.n_skipped })
        }
    };
    run.say(&describe_model("student", &student.model));
    let (player, teacher) = (source.player(), teacher.as_ref());
    let mut learner = DistillLearner { teacher, source, recipe, total, student, taid };
    PhaseLoop { phase, done, total, player, teacher }.run(run, &mut learner)?;
    Ok(learner.student.model)
}

impl<B: TrainBackend> Learner<B> for DistillLearner<'_, B> {
    fn student(&self) -> &Decoder<Inner<B>> {
        &self.student.model
    }

    fn step(&mut self, run: &mut Run<'_, B>, done: usize) -> Result<LearnedStep, PipelineError> {
        let (setup, mut waiting) = run.playing();
        let of = StepDraw { step: done, total: self.total, n: self.recipe.batch };
        let drawn = self.source.draw(setup, &self.student.model, of, &mut waiting)?;

        let updating = Instant::now();
        let trainable: Vec<&Episode> =
            drawn.episodes.iter().filter(|episode| episode.is_trainable()).collect();
        let batch = RolloutBatch::new(&trainable);
        let loss = DistillLoss::of(&self.recipe, self.taid.t, setup.recipe.model.activations());
        let lr = learning_rate(&setup.recipe.optim.distill, done, self.total);
        let (student, teacher) = (&mut self.student, self.teacher);
        let DistillStep { metrics: learned, log_probs, divergence, entropy } =
            distill_step::<B>(student, teacher, &batch, &loss, lr, &setup.device);
        let mut metrics = drawn.metrics;
        if self.recipe.divergence == DistillDivergence::Taid {
            metrics.set(TAID_T, self.taid.t);
            // One loss that is no number must not be remembered for good.
            if let Some(loss) = learned.get(DISTILL_KL).filter(|loss| loss.is_finite()) {
                self.taid.update(loss, done, self.total);
            }
        }
        metrics.extend(learned);
        // Of what the student wrote itself: on the teacher's tokens it should fall.
        if let (true, Some(entropy)) = (drawn.is_played, entropy) {
            metrics.set(ENTROPY, entropy);
        }
        // `log_probs` are those at temperature 1: of a policy played at another one they say
        // nothing.
        if drawn.is_played && setup.recipe.episode.temperature == 1.0 {
            record_log_prob_difference(&batch, &log_probs, &mut metrics);
        }
        let n_tokens: usize = batch.lengths.iter().sum();
        metrics.set(LEARNING_RATE, lr);
        metrics.set(SKIPPED_UPDATES, self.student.n_skipped as f64);
        metrics.set(UPDATE_TOKENS_PER_SECOND, n_tokens as f64 / updating.elapsed().as_secs_f64());
        let records = drawn.is_played.then(|| {
            let of_row = |row| TokenRecord::of_distilled_row(&batch, row, &log_probs, &divergence);
            let tokens = (0..batch.n_rows).map(of_row).collect();
            EpisodeRecord::beside(drawn.episodes, tokens)
        });
        Ok(LearnedStep { metrics, records })
    }

    fn add_to(&self, state: &mut PhaseState) {
        let mut distill = DistillState { taid: self.taid, share: None, questions: None };
        self.source.add_to(&mut distill);
        state.distill = Some(distill);
        state.sampler = self.source.sampler().clone();
        state.n_updates = self.student.optimizer.n_updates();
        state.n_skipped = self.student.n_skipped;
    }

    fn write(&self, dir: &Path) -> Result<(), WriteError> {
        write_optimizer(&self.student.optimizer, &self.student.model, dir)?;
        self.source.write(dir)
    }
}
