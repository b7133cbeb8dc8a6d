//! A distillation phase of any kind: draw episodes, learn from them, save;
//! `dgpo_core::trainer::distill` is one of its steps, [`Source`] says whose they are.
use super::{
    Inner, Pipeline, PipelineError,
    served::Waiting,
    setup::describe_model,
    source::{Batch, Source},
};
use crate::{
    episodes::write_records,
    events::Event,
    folder::{
        checkpoint,
        state::{
            DistillState, PhaseState, SideFiles, read_model, read_optimizer, write_model,
            write_optimizer,
        },
    },
};
use dgpo_core::{
    algo::{distill::TaidSchedule, schedule::learning_rate},
    rollout::{Episode, EpisodeRecord, RolloutBatch, TokenRecord},
    settings::{DistillDivergence, DistillRecipe, Phase},
    trainer::{
        distill::{DistillLoss, DistillStep, Student, distill_step},
        metrics::{
            DISTILL_KL, ENTROPY, LEARNING_RATE, SKIPPED_UPDATES, STEP_SECONDS, TAID_T,
            UPDATE_TOKENS_PER_SECOND,
        },
        optimizer::AdamW,
        score::record_log_prob_difference,
    },
};
use dgpo_models::{TrainBackend, decoder::Decoder};
use std::time::Instant;

/// A phase of distillation, before its first step.
pub(super) struct Distillation<'s, B: TrainBackend> {
    pub phase: Phase,
    pub teacher: Option<Decoder<Inner<B>>>,
    pub source: Source<'s>,
    /// Loss and batch; its `steps` and `epochs` have become `total`.
    pub recipe: DistillRecipe,
    pub total: usize,
}

/// And everything that changes with its steps.
struct Running<'s, B: TrainBackend> {
    task: Distillation<'s, B>,
    student: Student<B>,
    taid: TaidSchedule,
    /// Steps done.
    step: usize,
    side_files: SideFiles,
}

impl<B: TrainBackend> Pipeline<'_, B> {
    /// Steps with checkpoints, from `start` or behind the phase's newest checkpoint. Returns the
    /// trained student.
    pub(super) fn distil(
        &mut self,
        start: Decoder<Inner<B>>,
        task: Distillation<'_, B>,
    ) -> Result<Decoder<Inner<B>>, PipelineError> {
        let (phase, total) = (task.phase, task.total);
        let mut running = self.start_or_restore(start, task)?;
        self.say(&describe_model("student", &running.student.model));
        (self.observer)(Event::PhaseStarted { phase, done: running.step, total });
        while running.step < total {
            if let Some((tokenizer, retriever)) = running.task.source.player()
                && self.is_evaluation_due(phase, running.step)?
            {
                // What was learned must not depend on whether the evaluation comes to its end.
                self.save_unless_done(&running)?;
                self.evaluate_step(
                    (phase, running.step),
                    tokenizer,
                    retriever,
                    &running.student.model,
                    running.task.teacher.as_ref(),
                )?;
            }
            self.distil_step(&mut running)?;
            if self.is_save_due(running.step, total) {
                self.save_distilled(&running)?;
            }
            self.stop_if_wanted(running.step, total)?;
        }
        (self.observer)(Event::PhaseDone { phase });
        Ok(running.student.model)
    }

    fn start_or_restore<'s>(
        &mut self,
        start: Decoder<Inner<B>>,
        mut task: Distillation<'s, B>,
    ) -> Result<Running<'s, B>, PipelineError> {
        let optim = self.setup.recipe.optim.distill.clone();
        let side_files = self.setup.side_files()?;
        let mut taid = TaidSchedule::of(&task.recipe.taid);
        let Some(checkpoint) = self.newest(task.phase)? else {
            let student = Student { model: start, optimizer: AdamW::new(optim), n_skipped: 0 };
            return Ok(Running { task, student, taid, step: 0, side_files });
        };
        let state: PhaseState = checkpoint.read_state()?;
        task.source.restore(&state, &checkpoint.path)?;
        let model = self.setup.cut_to_shared(read_model(
            &checkpoint.path,
            self.setup.dtype,
            &self.setup.device,
        )?);
        let optimizer =
            read_optimizer(&optim, state.n_updates, &model, &checkpoint.path, &self.setup.device)?;
        if let Some(distill) = &state.distill {
            // The limits are the recipe's, and where the target is between them is what it had
            // become.
            taid = TaidSchedule {
                t: distill.taid.t,
                momentum: distill.taid.momentum,
                prev_loss: distill.taid.prev_loss,
                ..taid
            };
        }
        self.guards.insert(task.phase, state.guards);
        let student = Student { model, optimizer, n_skipped: state.n_skipped };
        Ok(Running { task, student, taid, step: state.step, side_files })
    }

    /// Draws, learns, and reports; where a checkpoint follows, the episodes that were played are
    /// written too.
    fn distil_step(&mut self, running: &mut Running<'_, B>) -> Result<(), PipelineError> {
        let started = Instant::now();
        let (phase, total, step) = (running.task.phase, running.task.total, running.step);
        let recipe = &running.task.recipe;
        let mut say = |text: &str| (self.observer)(Event::Message(text));
        let mut waiting =
            Waiting { recipe: &self.setup.recipe.retriever, stop: &self.stop, say: &mut say };
        let of = Batch { step, total, n: recipe.batch };
        let drawn =
            match running.task.source.draw(&self.setup, &running.student.model, of, &mut waiting) {
                // The steps done so far are worth more than a retriever that is down for now.
                Err(unserved @ (PipelineError::RetrieverDown { .. } | PipelineError::Stopped)) => {
                    self.save_unless_done(running)?;
                    return Err(unserved);
                }
                drawn => drawn?,
            };
        let updating = Instant::now();
        let trainable: Vec<&Episode> =
            drawn.episodes.iter().filter(|episode| episode.is_trainable()).collect();
        let batch = RolloutBatch::new(&trainable);
        let loss = DistillLoss::of(recipe, running.taid.t, self.setup.recipe.model.activations());
        let lr = learning_rate(&self.setup.recipe.optim.distill, step, total);
        let DistillStep { metrics: learned, log_probs, divergence, entropy } = distill_step::<B>(
            &mut running.student,
            running.task.teacher.as_ref(),
            &batch,
            &loss,
            lr,
            &self.setup.device,
        );
        let mut metrics = drawn.metrics;
        if recipe.divergence == DistillDivergence::Taid {
            metrics.set(TAID_T, running.taid.t);
            // One loss that is no number must not be remembered for good.
            if let Some(loss) = learned.get(DISTILL_KL).filter(|loss| loss.is_finite()) {
                running.taid.update(loss, step, total);
            }
        }
        metrics.extend(learned);
        // Of what the student wrote itself: on the teacher's tokens it should fall.
        if let (true, Some(entropy)) = (drawn.is_played, entropy) {
            metrics.set(ENTROPY, entropy);
        }
        // `log_probs` are those at temperature 1: of a policy played at another one they say
        // nothing.
        if drawn.is_played && self.setup.recipe.episode.temperature == 1.0 {
            record_log_prob_difference(&batch, &log_probs, &mut metrics);
        }
        running.step += 1;
        let (seconds, update_s) =
            (started.elapsed().as_secs_f64(), updating.elapsed().as_secs_f64());
        metrics.set(LEARNING_RATE, lr);
        metrics.set(SKIPPED_UPDATES, running.student.n_skipped as f64);
        metrics
            .set(UPDATE_TOKENS_PER_SECOND, batch.lengths.iter().sum::<usize>() as f64 / update_s);
        metrics.set(STEP_SECONDS, seconds);
        // Before the checkpoint: a run resumed from it has the metrics of every step it stands for.
        self.report(phase, running.step, total, &metrics)?;
        if drawn.is_played && self.is_save_due(running.step, total) {
            let tokens = (0..batch.n_rows)
                .map(|row| TokenRecord::of_distilled_row(&batch, row, &log_probs, &divergence))
                .collect();
            let path =
                self.run.episodes_dir().join(format!("{phase}-step-{:06}.jsonl", running.step));
            write_records(&path, &EpisodeRecord::beside(drawn.episodes, tokens))?;
        }
        Ok(())
    }

    /// A checkpoint out of turn, if there is anything to save that is not on disk.
    fn save_unless_done(&mut self, running: &Running<'_, B>) -> Result<(), PipelineError> {
        if self.is_saved(running.task.phase, running.step)? {
            Ok(())
        } else {
            self.save_distilled(running)
        }
    }

    fn save_distilled(&mut self, running: &Running<'_, B>) -> Result<(), PipelineError> {
        let Running { task, student, taid, step, side_files } = running;
        let mut distill = DistillState { taid: *taid, share: None, questions: None };
        task.source.add_to(&mut distill);
        let state = PhaseState {
            step: *step,
            total: task.total,
            sampler: task.source.sampler().clone(),
            n_updates: student.optimizer.n_updates(),
            critic_updates: 0,
            kl: None,
            n_skipped: student.n_skipped,
            guards: self.guards_of(task.phase),
            distill: Some(distill),
            wall_s: self.wall_s(),
            recipe: Some(self.setup.recipe.clone()),
        };
        self.save(task.phase, *step, |dir| {
            write_model(&student.model, side_files, dir)?;
            write_optimizer(&student.optimizer, &student.model, dir)?;
            task.source.write(dir)?;
            checkpoint::write_state(dir, &state)
        })
    }
}
