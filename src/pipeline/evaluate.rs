//! The last phase: greedy episodes of every model on the test questions, the figures, the summary.
use super::{Inner, Pipeline, PipelineError};
use crate::{
    eval::{Figures, Summary},
    retriever::Retriever,
    rollout::episode::write_episodes,
    tokenizer::Tokenizer,
    trainer::{
        events::{Event, Phase},
        metrics::{EVAL_EM, Metrics},
    },
};
use dgpo_models::{TrainBackend, decoder::Decoder};
use std::path::PathBuf;

/// Folder of the evaluations inside a run directory.
const EVALUATION_DIR: &str = "evaluation";

impl<B: TrainBackend> Pipeline<'_, B> {
    /// Evaluates student, teacher and what was trained, and writes the summary. A model that was evaluated already is not played again.
    pub(super) fn evaluate(
        &mut self,
        tokenizer: &Tokenizer,
        retriever: Option<&dyn Retriever>,
        kd: Option<Decoder<Inner<B>>>,
        dgpo: Option<Decoder<Inner<B>>>,
    ) -> Result<Summary, PipelineError> {
        let mut summary = self.summary_so_far();
        let (Some(retriever), false) = (retriever, self.setup.recipe.data.test.is_empty()) else {
            self.run.write_summary(&summary)?;
            return Ok(summary);
        };
        (self.observer)(Event::PhaseStarted { phase: Phase::Eval, done: 0, total: 4 });
        let student = self.setup.load(&self.setup.recipe.model.student, tokenizer)?;
        summary.student = Some(self.figures(tokenizer, retriever, "student", 1, &student)?);
        drop(student);
        if let Some(teacher) = self.setup.load_teacher(tokenizer)? {
            summary.teacher = Some(self.figures(tokenizer, retriever, "teacher", 2, &teacher)?);
        }
        if let Some(model) = kd {
            summary.kd = Some(self.figures(tokenizer, retriever, "kd", 3, &model)?);
        }
        if let Some(model) = dgpo {
            summary.dgpo = Some(self.figures(tokenizer, retriever, "dgpo", 4, &model)?);
        }
        (self.observer)(Event::PhaseDone { phase: Phase::Eval });
        summary.wall_s = self.wall_s();
        self.run.write_summary(&summary)?;
        Ok(summary)
    }

    /// One model's figures, from the run directory if they are there.
    fn figures(
        &mut self,
        tokenizer: &Tokenizer,
        retriever: &dyn Retriever,
        name: &str,
        number: usize,
        model: &Decoder<Inner<B>>,
    ) -> Result<Figures, PipelineError> {
        let dir = self.run.path().join(EVALUATION_DIR);
        let path = dir.join(format!("{name}.json"));
        let io = |path: &PathBuf| {
            let path = path.clone();
            move |source| PipelineError::Io { path, source }
        };
        let figures = match std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Figures>(&text).ok()) {
            Some(known) => known,
            None => {
                let (episodes, figures) = self.setup.play_test(tokenizer, retriever, model)?;
                write_episodes(&self.run.episodes_dir().join(format!("eval-{name}.jsonl")), &episodes)?;
                std::fs::create_dir_all(&dir).map_err(io(&dir))?;
                let text = serde_json::to_vec_pretty(&figures).expect("figures are plain numbers");
                std::fs::write(&path, text).map_err(io(&path))?;
                figures
            }
        };
        let mut metrics = Metrics::default();
        metrics.set(EVAL_EM, figures.average_em);
        (self.observer)(Event::Step { phase: Phase::Eval, step: number, total: 4, metrics: &metrics.0 });
        if self.stop.is_requested() {
            return Err(PipelineError::Stopped);
        }
        Ok(figures)
    }
}
