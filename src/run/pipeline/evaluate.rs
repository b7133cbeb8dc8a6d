//! The last phase: greedy episodes of every model on the test questions, the figures, the summary.
use super::{Inner, Pipeline, PipelineError, served::Waiting};
use crate::{
    episodes::write_episodes,
    eval::{Figures, MODELS, Summary},
    events::Event,
};
use dgpo_core::{
    env::search::Retriever,
    settings::Phase,
    tokenizer::Tokenizer,
    trainer::metrics::{EVAL_AVERAGE_EM, EVAL_EM, Metrics},
};
use dgpo_models::{
    TrainBackend,
    decoder::Decoder,
    files::{sync_folder, write_file},
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

impl<B: TrainBackend> Pipeline<'_, B> {
    /// Evaluates student, teacher and what was trained, and writes the summary. A model that was
    /// evaluated already is not played again.
    pub(super) fn evaluate(
        &mut self,
        tokenizer: &Tokenizer,
        retriever: Option<&dyn Retriever>,
        trained: Vec<(Phase, Decoder<Inner<B>>)>,
    ) -> Result<Summary, PipelineError> {
        let mut summary = self.summary_so_far();
        let (Some(retriever), false) = (retriever, self.setup.recipe.data.test.is_empty()) else {
            self.run.write_summary(&summary)?;
            return Ok(summary);
        };
        let total = 2 + trained.len();
        (self.observer)(Event::PhaseStarted { phase: Phase::Eval, done: 0, total });
        self.student_of = None;
        let student = self.setup.load(&self.setup.recipe.model.student, tokenizer)?;
        let of = self.setup.recipe.model.student.clone();
        summary.set(
            MODELS[0],
            self.figures(
                tokenizer,
                retriever,
                Subject { name: MODELS[0], number: 1, total, of },
                &student,
            )?,
        );
        drop(student);
        if let Some(teacher) = self.setup.load_teacher(tokenizer)? {
            let of = self.setup.recipe.model.teacher.clone();
            summary.set(
                MODELS[1],
                self.figures(
                    tokenizer,
                    retriever,
                    Subject { name: MODELS[1], number: 2, total, of },
                    &teacher,
                )?,
            );
        }
        for (at, (phase, model)) in trained.into_iter().enumerate() {
            self.student_of = self.newest(phase)?.map(|checkpoint| (phase, checkpoint.step));
            let subject = Subject {
                name: phase.as_str(),
                number: 3 + at,
                total,
                of: self.checkpoint_name(phase)?,
            };
            summary.set(phase.as_str(), self.figures(tokenizer, retriever, subject, &model)?);
        }
        (self.observer)(Event::PhaseDone { phase: Phase::Eval });
        summary.wall_s = self.wall_s();
        self.metrics.sync()?;
        self.run.write_summary(&summary)?;
        Ok(summary)
    }

    /// "rl-step-000250": what a trained model's evaluation belongs to.
    fn checkpoint_name(&self, phase: Phase) -> Result<String, PipelineError> {
        let newest = self.newest(phase)?.and_then(|checkpoint| {
            checkpoint.path.file_name().map(|name| name.to_string_lossy().into_owned())
        });
        Ok(newest.unwrap_or_default())
    }

    /// One model's figures: from the run directory if they are there and are of this model on these
    /// questions.
    fn figures(
        &mut self,
        tokenizer: &Tokenizer,
        retriever: &dyn Retriever,
        subject: Subject,
        model: &Decoder<Inner<B>>,
    ) -> Result<Figures, PipelineError> {
        let Subject { name, number, total, of } = subject;
        let data = &self.setup.recipe.data;
        let (test, max_test, needs_arcap) =
            (data.test.clone(), data.max_test, self.setup.recipe.eval.arcap);
        let dir = self.run.evaluation_dir();
        let path = dir.join(format!("{name}.json"));
        let io = |path: &PathBuf| {
            let path = path.clone();
            move |source| PipelineError::Io { path, source }
        };
        let known = std::fs::read(&path)
            .ok()
            .and_then(|text| serde_json::from_slice::<Evaluation>(&text).ok());
        let known = known
            .filter(|known| known.of == of && known.test == test && known.max_test == max_test);
        let known = known.filter(|known| known.figures.arcap.is_some() || !needs_arcap);
        let figures = match known {
            Some(known) => known.figures,
            None => {
                let mut say = |text: &str| (self.observer)(Event::Message(text));
                let mut waiting = Waiting {
                    recipe: &self.setup.recipe.retriever,
                    stop: &self.stop,
                    say: &mut say,
                };
                let (episodes, mut figures) =
                    self.setup.play_test(tokenizer, retriever, model, &mut waiting)?;
                write_episodes(
                    &self.run.episodes_dir().join(format!("eval-{name}.jsonl")),
                    &episodes,
                )?;
                if needs_arcap {
                    let (played, arcap) = self.setup.play_arcap(
                        tokenizer,
                        retriever,
                        model,
                        &episodes,
                        &mut waiting,
                    )?;
                    played.write(&self.run.episodes_dir(), &format!("eval-{name}"))?;
                    if number == 1 && !arcap.left_out().is_empty() {
                        let left_out = arcap.left_out().join(", ");
                        self.say(&format!(
                            "source referencing leaves out {left_out}: no question there has \
                             annotated gold passages"
                        ));
                    }
                    figures.arcap = Some(arcap);
                }
                if figures.all.retriever_failed > 0.0 {
                    let n = (figures.all.retriever_failed * figures.all.n_episodes as f64).round();
                    self.say(&format!(
                        "{name}: {n} of {} test episodes were lost to the retriever and count \
                         nowhere; --resume plays the evaluation again",
                        figures.all.n_episodes
                    ));
                    figures
                } else {
                    std::fs::create_dir_all(&dir)
                        .and_then(|()| sync_folder(self.run.path()))
                        .map_err(io(&dir))?;
                    let evaluation = Evaluation { of, test, max_test, figures };
                    let text =
                        serde_json::to_vec_pretty(&evaluation).expect("figures are plain numbers");
                    write_file(&path, text).map_err(io(&path))?;
                    evaluation.figures
                }
            }
        };
        let mut metrics = Metrics::default();
        metrics.set(EVAL_EM, figures.all.em);
        metrics.set(EVAL_AVERAGE_EM, figures.average_em);
        (self.observer)(Event::Step {
            phase: Phase::Eval,
            step: number,
            total,
            metrics: &metrics.0,
        });
        if self.stop.is_requested() {
            return Err(PipelineError::Stopped);
        }
        Ok(figures)
    }
}

/// A model to evaluate.
struct Subject {
    /// Its row in the table.
    name: &'static str,
    /// Its place among those that are evaluated, from 1, and their number.
    number: usize,
    total: usize,
    /// Where it comes from: a model's name, or a checkpoint's.
    of: String,
}

/// evaluation/NAME.json: figures, and what they were measured on.
#[derive(Serialize, Deserialize)]
struct Evaluation {
    of: String,
    test: Vec<String>,
    max_test: usize,
    #[serde(flatten)]
    figures: Figures,
}
