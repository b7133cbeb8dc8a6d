//! Runs recorded reference numbers through the project's own code: `dgpo conformance DIR`.
//!
//! DIR holds families of fixtures (models, step, losses, ppo, text, ann; any subset), or is one
//! family, or one model folder. Fixtures are read by the keys they hold, parameters are parsed from
//! names, and whatever is not understood is a failed check: nothing is skipped silently. A file
//! that cannot be read, and a panic in the code under test, are failed checks of their case.
mod ann;
mod bert;
mod fixtures;
mod formula;
mod generation;
mod losses;
mod models;
mod network;
mod ppo;
mod report;
mod rl_step;
mod rollouts;
mod step;
mod text;

use dgpo_core::contained::caught;
use dgpo_models::TrainBackend;
use fixtures::{FixtureError, Tensors};
use formula::Formula;
pub use report::{Case, Check, FixtureReport, Tolerance};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// Why nothing could be compared at all.
#[derive(Debug, thiserror::Error)]
pub enum ConformanceError {
    #[error("cannot list {}: {source}", dir.display())]
    List { dir: PathBuf, source: std::io::Error },
    #[error("{} holds no fixtures; hint: give a folder with one or more of models, step, losses, \
             ppo, text, ann", dir.display())]
    Nothing { dir: PathBuf },
}

/// A family of fixtures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Models,
    Step,
    Losses,
    Ppo,
    Text,
    Ann,
}

impl Family {
    const ALL: [Self; 6] =
        [Self::Models, Self::Step, Self::Losses, Self::Ppo, Self::Text, Self::Ann];

    fn name(self) -> &'static str {
        match self {
            Self::Models => "models",
            Self::Step => "step",
            Self::Losses => "losses",
            Self::Ppo => "ppo",
            Self::Text => "text",
            Self::Ann => "ann",
        }
    }

    fn run<B: TrainBackend>(self, dir: &Path, device: &B::Device) -> Vec<Case> {
        match self {
            Self::Models => models::run::<B>(dir, device),
            Self::Step => step::run::<B>(dir, device),
            Self::Losses => losses::run::<B>(dir, device),
            Self::Ppo => ppo::run::<B>(dir, device),
            Self::Text => text::run(dir),
            Self::Ann => ann::run(dir),
        }
    }

    /// The family of a folder: by its name, or by the files in it.
    fn of(dir: &Path) -> Option<Self> {
        let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        Self::ALL.into_iter().find(|family| family.name() == name).or_else(|| Self::by_files(dir))
    }

    fn by_files(dir: &Path) -> Option<Self> {
        let files: BTreeSet<String> =
            entries(dir).ok()?.into_iter().map(|(name, _)| name).collect();
        let has_any = |names: &[&str]| names.iter().any(|&name| files.contains(name));
        if has_any(&["config.json"]) {
            return Some(Self::Models);
        }
        if has_any(&["step.json"]) {
            return Some(Self::Step);
        }
        if has_any(&["ann.json", "ann.safetensors"]) {
            return Some(Self::Ann);
        }
        if has_any(&[
            "scoring.json",
            "actions.json",
            "documents.json",
            "format_reward.json",
            "rollouts.json",
            "chat_templates.json",
        ]) {
            return Some(Self::Text);
        }
        // Both of the others have values.json; episodes have a shape and pieces are called so.
        let values = fixtures::read_json(&dir.join("values.json")).ok();
        let is_ppo = |values: &serde_json::Value| {
            values.as_object().is_some_and(|cases| {
                cases.iter().any(|(name, case)| name == "pieces" || case.get("shape").is_some())
            })
        };
        if values.as_ref().is_some_and(is_ppo) {
            return Some(Self::Ppo);
        }
        (values.is_some() || has_any(&["taid_schedule.json", "large_vocab.json"]))
            .then_some(Self::Losses)
    }
}

/// Compares everything found in `dir`.
/// # Errors
/// If `dir` cannot be listed or holds no family. What goes wrong inside a family is a failed check.
pub fn run<B: TrainBackend>(
    dir: &Path,
    device: &B::Device,
) -> Result<FixtureReport, ConformanceError> {
    // The whole path: families are known by their folder's name, and `step` finds the models beside
    // its folder.
    let dir = &dir
        .canonicalize()
        .map_err(|source| ConformanceError::List { dir: dir.to_owned(), source })?;
    let mut report = FixtureReport::default();
    if let Some(family) = Family::of(dir) {
        report.add(family.name(), family.run::<B>(dir, device));
        return Ok(report);
    }
    for (name, path) in entries(dir)?.into_iter().filter(|(_, path)| path.is_dir()) {
        if let Some(family) = Family::of(&path) {
            report.add(family.name(), family.run::<B>(&path, device));
        } else {
            let mut case = Case::new(&name);
            case.fail_unknown([name.clone()]);
            report.add(&name, vec![case]);
        }
    }
    if report.families.is_empty() {
        Err(ConformanceError::Nothing { dir: dir.to_owned() })
    } else {
        Ok(report)
    }
}

/// Files and folders of a directory by name; notes (`*.md`, `*.txt`) and hidden entries are not
/// fixtures.
fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>, ConformanceError> {
    let error = |source| ConformanceError::List { dir: dir.to_owned(), source };
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(error)? {
        let path = entry.map_err(error)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.starts_with(['.', '_']) && !name.ends_with(".md") && !name.ends_with(".txt") {
            entries.push((name, path));
        }
    }
    entries.sort();
    Ok(entries)
}

/// One case for each entry of a family's folder.
fn cases_of(
    dir: &Path,
    compare: impl Fn(&str, &Path, &mut Case) -> Result<(), FixtureError>,
) -> Vec<Case> {
    match entries(dir) {
        Ok(entries) => entries
            .iter()
            .map(|(name, path)| one_case(stem(name), |case| compare(name, path, case)))
            .collect(),
        Err(error) => vec![one_case("folder", |case| {
            case.fail("folder", error.to_string());
            Ok(())
        })],
    }
}

fn stem(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// Runs one case; errors and panics end it as failed, the checks made so far stay.
fn one_case(name: &str, compare: impl FnOnce(&mut Case) -> Result<(), FixtureError>) -> Case {
    let mut case = Case::new(name);
    // A panic is a bug of the code under test (or a shape no check foresaw): it fails this case,
    // and the other cases still run.
    match caught(|| compare(&mut case)) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => case.fail("fixture", error.to_string()),
        Err(panic) => case.fail("panic", panic),
    }
    if case.checks.is_empty() {
        case.fail("case", "nothing in it was compared");
    }
    case
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod wrong_fixture_tests;
