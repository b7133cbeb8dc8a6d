//! Before anything starts: is everything there that it will read, and does it fit together?
//!
//! Everything is looked at, and all that is missing is told at once, each with the command that
//! gets it. What costs nothing is checked to the end: names, config.json, the headers of the
//! weights, tokenizers, the description of an index, float type and device, position limits, disk
//! space, questions and episodes. Of long corpora the first records are read (`data::head`); a bad
//! line further down is found when the file is read. Nothing is written, and no server is asked.
mod commands;
mod files;
mod models;
mod space;

use crate::{
    config::{Problem, Recipe, RetrieverKind},
    devices::DeviceChoice,
    folder::{checkpoint, run_dir::RunDir},
};
use dgpo_core::settings::{KlMode, KlReference, Phase};
use std::path::Path;

pub(crate) use commands::word;
pub use files::n_passages;

/// Work that is about to begin.
#[derive(Clone, Copy, Debug)]
pub enum PlannedWork<'a> {
    /// A run: a new one, or one that goes on after its newest checkpoint.
    Train(Option<&'a RunDir>),
    /// `model.student` plays the test questions.
    Evaluate,
    /// `model.student` plays a question from the command line.
    Ask,
    /// The teacher plays training questions.
    Demos,
    /// `data.corpus` becomes an index in this folder.
    Index(&'a Path),
}

/// Problems of inputs: what is missing, or does not fit.
#[derive(Debug, thiserror::Error)]
#[error("{}, and nothing was started:\n{}{}", counted(.0.len()), listed(.0), where_hf_comes_from(.0))]
pub struct Missing(pub Vec<Problem>);

impl Missing {
    /// # Errors
    /// If there is a problem.
    pub fn none(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self(problems)) }
    }
}

fn counted(n: usize) -> String {
    if n == 1 {
        "1 thing is missing or does not fit".into()
    } else {
        format!("{n} things are missing or do not fit")
    }
}

fn listed(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("  {problem}")).collect::<Vec<_>>().join("\n")
}

fn where_hf_comes_from(problems: &[Problem]) -> &'static str {
    match problems.iter().any(|problem| problem.hint.contains("hf download")) {
        true => "\n  (hf is part of huggingface_hub: pip install -U huggingface_hub)",
        false => "",
    }
}

/// Everything that `work` will read and that is not there or does not fit, in the order in which it
/// is needed.
pub fn missing(work: PlannedWork<'_>, recipe: &Recipe, device: DeviceChoice) -> Vec<Problem> {
    let needs = Needs::of(work, recipe);
    let mut found = ProblemList::default();
    files::check_variables(&needs, recipe, &mut found);
    models::check(&needs, recipe, device, &mut found);
    files::check(&needs, recipe, device, &mut found);
    space::check(work, recipe, &mut found);
    found.problems
}

/// Inputs of a recipe that are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Needs {
    student: bool,
    teacher: bool,
    train: bool,
    test: bool,
    trajectories: bool,
    corpus: bool,
    /// To search `data.corpus`, or a server.
    retriever: bool,
    /// To encode passages, where no retriever is opened.
    encoder: bool,
}

impl Needs {
    fn of(work: PlannedWork<'_>, recipe: &Recipe) -> Self {
        match work {
            PlannedWork::Evaluate => {
                Self { student: true, test: true, retriever: true, ..Self::default() }
            }
            PlannedWork::Ask => Self { student: true, retriever: true, ..Self::default() },
            // The student's folder has the tokenizer.
            PlannedWork::Demos => Self {
                student: true,
                teacher: true,
                train: true,
                retriever: true,
                ..Self::default()
            },
            PlannedWork::Index(_) => Self { corpus: true, encoder: true, ..Self::default() },
            PlannedWork::Train(run) => {
                let stage = recipe.stage;
                let reached = run
                    .and_then(|run| checkpoint::list_checkpoints(run.path(), stage).ok()?.pop())
                    .map(|newest| newest.phase);
                let is_left = |phase: &&Phase| {
                    reached.is_none_or(|reached| stage.place(**phase) >= stage.place(reached))
                };
                let needs = stage
                    .phases()
                    .iter()
                    .filter(is_left)
                    .map(|&phase| Self::of_phase(phase, recipe));
                needs.fold(Self::default(), Self::or)
            }
        }
    }

    fn of_phase(phase: Phase, recipe: &Recipe) -> Self {
        let (data, is_evaluated) = (&recipe.data, recipe.eval.every > 0);
        let (has_tests, has_teacher) = (!data.test.is_empty(), !recipe.model.teacher.is_empty());
        let has_demos = data.trajectories.is_empty();
        let trained = Self { student: true, test: has_tests, ..Self::default() };
        match phase {
            Phase::Encoder => Self { train: true, corpus: true, encoder: true, ..Self::default() },
            Phase::Pretrain => {
                Self { corpus: !data.corpus.is_empty(), trajectories: true, ..trained }
            }
            Phase::Demos if !has_demos => Self::default(),
            Phase::Demos => Self { teacher: has_teacher, train: true, retriever: true, ..trained },
            Phase::Kd => {
                let is_adaptive = recipe.distill.student_outputs.is_adaptive;
                let teacher = has_teacher && recipe.distill.kl_weight > 0.0;
                Self {
                    teacher,
                    trajectories: true,
                    train: is_adaptive,
                    retriever: is_adaptive || has_demos,
                    ..trained
                }
            }
            Phase::Gkd => Self { teacher: has_teacher, train: true, retriever: true, ..trained },
            Phase::Rl => {
                let is_reference =
                    recipe.kl.mode != KlMode::None && recipe.kl.reference == KlReference::Teacher;
                Self {
                    teacher: has_teacher && (is_reference || is_evaluated),
                    train: true,
                    retriever: true,
                    ..trained
                }
            }
            Phase::Eval if has_tests => Self { teacher: has_teacher, retriever: true, ..trained },
            Phase::Eval => trained,
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            student: self.student | other.student,
            teacher: self.teacher | other.teacher,
            train: self.train | other.train,
            test: self.test | other.test,
            trajectories: self.trajectories | other.trajectories,
            corpus: self.corpus | other.corpus,
            retriever: self.retriever | other.retriever,
            encoder: self.encoder | other.encoder,
        }
    }

    /// True if passages are read, by whomever.
    fn passages(&self, recipe: &Recipe) -> bool {
        self.corpus
            || (self.retriever
                && (recipe.retriever.kind != RetrieverKind::Remote
                    || !recipe.data.corpus.is_empty()))
    }

    /// True if an encoder is read.
    fn encodes(&self, recipe: &Recipe) -> bool {
        self.encoder || (self.retriever && recipe.retriever.kind == RetrieverKind::Dense)
    }
}

/// The list that grows.
#[derive(Debug, Default)]
struct ProblemList {
    problems: Vec<Problem>,
}

impl ProblemList {
    fn push(&mut self, key: &'static str, message: impl Into<String>, hint: impl Into<String>) {
        let (message, hint) = (message.into().replace('\n', "\n    "), hint.into());
        let problem = Problem { key, message, hint };
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// An error of whoever will read the thing, whose text may end in a hint.
    fn error(&mut self, key: &'static str, error: &dyn std::fmt::Display) {
        let text = error.to_string();
        let split = ["; hint: ", "\nhint: "]
            .into_iter()
            .filter_map(|mark| text.split_once(mark))
            .min_by_key(|(message, _)| message.len());
        match split {
            Some((message, hint)) => self.push(key, message, hint.replace("; hint: ", "; ")),
            None => self.push(key, text.as_str(), format!("change {key}")),
        }
    }
}

#[cfg(test)]
mod tests;
