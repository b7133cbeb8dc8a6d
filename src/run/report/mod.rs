//! Run directory -> `report.md`, `report.html`, TensorBoard events: what a run did, for people.
//!
//! Everything is read from the files of the run, so a report can be made at any time, also of a run
//! that is still going on, was interrupted, or was made by an earlier version. What is missing or
//! damaged is left out and named on the page; only a disk that cannot be written is an error.
//!
//! | file | answers |
//! |---|---|
//! | [`facts`] | what was run, with what; figures of the evaluated models |
//! | [`curves`] | which metrics stand together in a chart |
//! | [`episodes`] | which episodes are shown, with which numbers |
//! | [`html`] | the page: one file, nothing loaded from anywhere, all text escaped |
//! | [`markdown`], [`table`] | the same facts where only text can go |
//! | [`tensorboard`] | the metrics for TensorBoard |
//!
//! `page/` holds what the browser runs: a style sheet and three short scripts without any library.
pub mod curves;
pub mod episodes;
pub mod facts;
pub mod html;
pub mod markdown;
pub mod table;
pub mod tensorboard;

use crate::{
    config::Stage,
    folder::{
        checkpoint,
        run_dir::{RunDir, RunDirError, alarms},
        state::MODEL_DIR,
    },
    models::load_tokenizer,
};
use dgpo_core::tokenizer::Tokenizer;
use std::{
    io,
    path::{Path, PathBuf},
};

const HTML_FILE: &str = "report.html";
const MARKDOWN_FILE: &str = "report.md";

/// Why a report was not written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error("cannot {verb} {}: {source}; hint: check free space and permissions", path.display())]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
}

fn io_error(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ReportError {
    let path = path.to_owned();
    move |source| ReportError::Io { verb, path, source }
}

/// All that a report says.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub facts: facts::Facts,
    pub sections: Vec<curves::Section>,
    pub episodes: episodes::Episodes,
    /// Alarms, with the likely cause and what to change.
    pub alarms: Vec<String>,
    /// Missing parts, and why.
    pub warnings: Vec<String>,
}

/// Written files.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Written {
    pub html: PathBuf,
    pub markdown: PathBuf,
    pub tensorboard: PathBuf,
    /// Of the page.
    pub size_bytes: usize,
    /// Episodes on the page.
    pub n_episodes: usize,
    pub warnings: Vec<String>,
}

/// Reads a run and writes its report into its folder, over an earlier one.
/// # Errors
/// If the metrics cannot be read or the disk cannot be written.
pub fn write(run: &RunDir) -> Result<Written, ReportError> {
    let lines = run.read_metrics()?;
    let mut warnings = Vec::new();
    let facts = facts::gather(run, &mut warnings);
    let tokenizer = tokenizer(run, &mut warnings);
    let episodes = episodes::gather(&run.episodes_dir(), tokenizer.as_ref(), &mut warnings);
    let alarms =
        alarms(&lines).into_iter().map(|(what, advice)| format!("{what}; {advice}")).collect();
    let report = Report { facts, sections: curves::sections(&lines), episodes, alarms, warnings };
    let page = html::page(&report);
    let size_bytes = page.len();
    run.write(HTML_FILE, page)?;
    run.write(MARKDOWN_FILE, markdown::page(&report))?;
    Ok(Written {
        html: run.path().join(HTML_FILE),
        markdown: run.path().join(MARKDOWN_FILE),
        tensorboard: tensorboard::write(run, &lines)?,
        size_bytes,
        n_episodes: report.episodes.n_shown(),
        warnings: report.warnings,
    })
}

/// The tokenizer that lies in the run's newest checkpoint, else the one its recipe names: models
/// may have moved since.
fn tokenizer(run: &RunDir, warnings: &mut Vec<String>) -> Option<Tokenizer> {
    // A recipe that does not load was named when the facts were gathered; of a folder of
    // checkpoints any will do.
    let recipe = run.recipe().ok();
    let stage = recipe.as_ref().map_or(Stage::Pipeline, |recipe| recipe.stage);
    let newest = checkpoint::list_checkpoints(run.path(), stage)
        .ok()
        .and_then(|mut checkpoints| checkpoints.pop());
    if let Some(known) =
        newest.and_then(|newest| Tokenizer::from_path(&newest.path.join(MODEL_DIR)).ok())
    {
        return Some(known);
    }
    let recipe = recipe?;
    let loaded = load_tokenizer(&recipe.model.tokenizer, &recipe.model.student);
    loaded
        .map_err(|error| warnings.push(format!("tokens are shown by their numbers: {error}")))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Recipe;
    use dgpo_core::{
        settings::{GuardAction, Phase},
        trainer::guards::{Alarm, Symptom},
    };
    use serde_json::json;

    #[test]
    fn a_run_that_has_only_begun_has_a_report() {
        let root = tempfile::tempdir().expect("temporary folder");
        let mut recipe = Recipe::default();
        (recipe.data.train, recipe.data.test) = (vec!["q.jsonl".into()], vec!["t.jsonl".into()]);
        recipe.data.corpus = "c.jsonl".into();
        recipe.model.student = "no/such/model".into();
        let run = RunDir::create(root.path(), "young", &recipe, &json!({})).expect("a run");
        run.metrics(None)
            .expect("opened")
            .append(Phase::Kd, 1, &[("losses/distill_loss", 3.5)])
            .expect("appended");
        let written = write(&run).expect("a report");
        assert_eq!(written.n_episodes, 0);
        assert!(
            written.warnings.len() == 1
                && written.warnings[0].contains("tokens are shown by their numbers"),
            "{:?}",
            written.warnings
        );
        let [page, text] = [&written.html, &written.markdown]
            .map(|path| std::fs::read_to_string(path).expect("written"));
        assert_eq!(written.size_bytes, page.len());
        assert!(page.contains("young") && page.contains("losses/distill_loss"), "{page}");
        assert!(text.contains("# Run young") && text.contains("3.5"), "{text}");
        assert!(written.tensorboard.join("kd").is_dir());
    }

    #[test]
    fn what_the_guards_saw_is_told_whatever_the_recipe_says_now() {
        let root = tempfile::tempdir().expect("temporary folder");
        let mut recipe = Recipe::default();
        (recipe.data.train, recipe.data.test) = (vec!["q.jsonl".into()], vec!["t.jsonl".into()]);
        recipe.data.corpus = "c.jsonl".into();
        recipe.guards.action = GuardAction::Off;
        let run = RunDir::create(root.path(), "sick", &recipe, &json!({})).expect("a run");
        let mut log = run.metrics(None).expect("opened");
        log.append(Phase::Rl, 2, &[("rollout/repetition", 0.9)]).expect("appended");
        let seen = "it writes in loops".to_owned();
        log.append_alarm(&Alarm {
            phase: Phase::Rl,
            step: 2,
            sign: Symptom::Repetition,
            seen,
            first_bad_step: 2,
        })
        .expect("appended");
        let written = write(&run).expect("a report");
        for path in [&written.html, &written.markdown] {
            let page = std::fs::read_to_string(path).expect("written");
            assert!(
                page.contains("What the guards saw")
                    && page.contains("rl step 2: repetition: it writes in loops"),
                "{page}"
            );
            assert!(page.contains("lower optim.actor.lr"), "{page}");
        }
    }
}
