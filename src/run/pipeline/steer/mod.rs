//! A run that goes on may go on longer, and in some things otherwise: `train --resume RUN --set
//! KEY=VALUE`.
//!
//! What may change is what only concerns steps that are still to come ([`keys::STEERABLE`]);
//! everything else is refused with the reason, since everything up to the newest checkpoint was
//! computed with it. The same holds for a recipe.toml that was edited by hand, and it is how
//! another run's recipe or another model's checkpoint in the folder is found out. What changed is
//! recorded in provenance.json:
//!
//! ```text
//! "changes": [{"behind": "rl-step-000050", "settings": {"rl.steps": {"was": 100, "now": 1500}}, "command_line": [..]}]
//! ```
//! Values that were "was" are those of the checkpoint; before the first checkpoint, those of the
//! recipe.
mod keys;
#[cfg(test)]
mod tests;

pub use keys::STEERABLE;

use super::preflight::word;
use crate::{
    config::{
        Recipe,
        load::{differences, recorded_recipe},
        secrets::without_users,
    },
    folder::{
        checkpoint::{self, CheckpointError, RunCheckpoint},
        provenance::{changed_input, fingerprints, index_description},
        run_dir::{RECIPE_FILE, RunDir, RunDirError},
        state::MODEL_DIR,
    },
    hub,
    models::RANDOM_PREFIX,
};
use dgpo_core::{settings::Phase, tokenizer::TOKENIZER_FILE};
use dgpo_models::config::DecoderConfig;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// A setting that is another one from here on.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub key: String,
    pub was: toml::Value,
    pub now: toml::Value,
}

/// A change that is not possible, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct RefusedChange {
    pub change: Change,
    pub why: String,
}

/// Why a run does not go on as it is told.
#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    #[error("{} cannot be changed in the run {}:{}\nhint: {hint}", counted(refused.len()), run.display(), listed(refused))]
    Refused { run: PathBuf, refused: Vec<RefusedChange>, hint: String },
    #[error(
        "{} is a checkpoint of another model than {student}: {what}; hint: remove that folder if \
         it came from another run, or write the model of this run into {}", checkpoint.display(), recipe.display()
    )]
    OtherModel { checkpoint: PathBuf, student: String, what: String, recipe: PathBuf },
    #[error(
        "{name} has changed since the run {} was started, and the run would go on with what it did \
         not begin with; hint: restore the file, or begin a run of its own with it: {}",
        run.path().display(), own_run(run, None, &[])
    )]
    InputChanged { run: RunDir, name: String },
    #[error("cannot read an input of the run: {0}; hint: check its permissions")]
    Input(std::io::Error),
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

fn counted(n: usize) -> String {
    if n == 1 { "1 setting".to_owned() } else { format!("{n} settings") }
}

fn listed(refused: &[RefusedChange]) -> String {
    let line = |RefusedChange { change: Change { key, was, now }, why }: &RefusedChange| {
        format!("\n  {key} = {now} (it is {was}): {why}")
    };
    refused.iter().map(line).collect()
}

/// The part of a checkpoint's state that says what it was made with and how far it is.
#[derive(Deserialize)]
struct EarlierState {
    #[serde(default)]
    step: usize,
    #[serde(default)]
    total: usize,
    #[serde(default, deserialize_with = "recorded_recipe")]
    recipe: Option<Recipe>,
}

/// Progress of a run.
struct Reached {
    phase: Phase,
    step: usize,
    /// Steps that the phase has under the new recipe.
    total: usize,
}

/// A run with the recipe it goes on with.
#[derive(Clone, Debug, PartialEq)]
pub struct Steered {
    pub recipe: Recipe,
    /// Name of the newest checkpoint.
    behind: Option<String>,
    /// Against that checkpoint; without one, against recipe.toml.
    pub changes: Vec<Change>,
}

/// Reads what a run is to do, with `overrides` (`KEY=VALUE`) laid over it. Writes nothing.
/// # Errors
/// [`SteerError::Refused`] if one of them, or an edit of recipe.toml, concerns what is done
/// already; [`SteerError::InputChanged`]; [`SteerError::OtherModel`].
pub fn steered(run: &RunDir, overrides: &[String]) -> Result<Steered, SteerError> {
    let (before, recipe) = (run.recipe()?, run.recipe_with(overrides)?);
    let newest = checkpoint::list_checkpoints(run.path(), before.stage)?.pop();
    let asked = changes_between(&before, &recipe, true);
    let earlier = newest.as_ref().map(RunCheckpoint::read_state).transpose()?;
    let refused = refused_of(&asked, run, &recipe, newest.as_ref().zip(earlier.as_ref()));
    if !refused.is_empty() {
        let hint = anew(run, newest.as_ref(), overrides);
        return Err(SteerError::Refused { run: run.path().to_owned(), refused, hint });
    }
    check_inputs(run, &recipe)?;
    let changes = if newest.is_some() { check(run, &recipe, newest.as_ref())? } else { asked };
    Ok(Steered { recipe, behind: newest.map(|newest| newest.name()), changes })
}

/// Checks that the files which a run learns from are those that it was started with.
/// # Errors
/// [`SteerError::InputChanged`] if one is not; if one that is there cannot be read.
pub fn check_inputs(run: &RunDir, recipe: &Recipe) -> Result<(), SteerError> {
    let mut now = fingerprints(recipe).map_err(SteerError::Input)?;
    // An index may have been built again, which gives a large one another graph; it is checked
    // against encoder and corpus where it is opened.
    now.remove(&index_description(recipe));
    match changed_input(&run.provenance()?, recipe, &now) {
        Some(name) => Err(SteerError::InputChanged { run: run.clone(), name: name.to_owned() }),
        None => Ok(()),
    }
}

/// Checks that `recipe` goes on from the run's newest checkpoint, and returns what it changes.
/// # Errors
/// As [`steered`].
pub fn check(
    run: &RunDir,
    recipe: &Recipe,
    newest: Option<&RunCheckpoint>,
) -> Result<Vec<Change>, SteerError> {
    let Some(newest) = newest else { return Ok(Vec::new()) };
    let earlier: EarlierState = newest.read_state()?;
    let changes = earlier
        .recipe
        .as_ref()
        .map_or(Vec::new(), |earlier| changes_between(earlier, recipe, false));
    let refused = refused_of(&changes, run, recipe, Some((newest, &earlier)));
    if !refused.is_empty() {
        let hint = format!(
            "write the old values back into {}; or, if {} came from another run, remove that \
             folder",
            run.path().join(RECIPE_FILE).display(),
            newest.path.display()
        );
        return Err(SteerError::Refused { run: run.path().to_owned(), refused, hint });
    }
    match other_model(newest, &recipe.model.student, &recipe.model.tokenizer) {
        Some(what) => Err(SteerError::OtherModel {
            checkpoint: newest.path.clone(),
            student: recipe.model.student.clone(),
            what,
            recipe: run.path().join(RECIPE_FILE),
        }),
        None => Ok(changes),
    }
}

impl Steered {
    /// Writes what the run goes on with, and records what changed. To be called while the run is
    /// locked.
    /// # Errors
    /// If the disk fails.
    pub fn record(&self, run: &RunDir, command_line: &[String]) -> Result<(), RunDirError> {
        let before = run.provenance()?;
        let mut provenance = if before.is_object() { before.clone() } else { json!({}) };
        let mut entries = provenance["changes"].as_array().cloned().unwrap_or_default();
        if self.behind.is_some() {
            // Nothing was computed since the last time the run was told something after this
            // checkpoint.
            entries.retain(|entry| entry["behind"] != json!(self.behind));
        }
        if !self.changes.is_empty() {
            let setting = |change: &Change| {
                (change.key.clone(), json!({ "was": change.was, "now": change.now }))
            };
            let settings: Map<String, Value> = self.changes.iter().map(setting).collect();
            let command_line: Vec<String> =
                command_line.iter().map(|word| without_users(word)).collect();
            entries.push(json!({ "behind": self.behind, "settings": settings, "command_line": command_line }));
        }
        match entries.is_empty() {
            true => drop(provenance.as_object_mut().and_then(|fields| fields.remove("changes"))),
            false => provenance["changes"] = json!(entries),
        }
        if provenance == before && run.recipe()? == self.recipe {
            return Ok(());
        }
        run.steer(&self.recipe, &provenance)
    }
}

/// Steps that a phase has under `recipe`, of which `earlier` counted `total`.
pub(super) fn total_now(
    phase: Phase,
    total: usize,
    earlier: Option<&Recipe>,
    recipe: &Recipe,
) -> usize {
    match (phase, earlier) {
        (Phase::Rl, _) => recipe.rl.steps,
        (Phase::Gkd, _) => recipe.gkd.steps,
        (Phase::Pretrain, _) => recipe.pretrain.steps,
        (Phase::Kd, _) if recipe.distill.steps > 0 => recipe.distill.steps,
        // Epochs of the same episodes.
        (Phase::Kd, Some(earlier)) if earlier.distill.steps == 0 && earlier.distill.epochs > 0 => {
            total / earlier.distill.epochs * recipe.distill.epochs
        }
        _ => total,
    }
}

/// `is_asked`: somebody gave the new value on purpose. A recipe carries the name of its run, which
/// was not known when the run began.
fn changes_between(was: &Recipe, now: &Recipe, is_asked: bool) -> Vec<Change> {
    let changes =
        differences(was, now).into_iter().filter(|(key, ..)| is_asked || key != "run.name");
    changes.map(|(key, was, now)| Change { key, was, now }).collect()
}

fn refused_of(
    changes: &[Change],
    run: &RunDir,
    recipe: &Recipe,
    newest: Option<(&RunCheckpoint, &EarlierState)>,
) -> Vec<RefusedChange> {
    let reached = newest.map(|(checkpoint, earlier)| Reached {
        phase: checkpoint.phase,
        step: earlier.step,
        total: total_now(checkpoint.phase, earlier.total, earlier.recipe.as_ref(), recipe),
    });
    let refused = |change: &Change| {
        Some(RefusedChange {
            change: change.clone(),
            why: refusal(&change.key, run, recipe, reached.as_ref())?,
        })
    };
    changes.iter().filter_map(refused).collect()
}

/// Why a key cannot change here; None if it can.
fn refusal(key: &str, run: &RunDir, recipe: &Recipe, reached: Option<&Reached>) -> Option<String> {
    let Some(readers) = keys::readers(key) else { return Some(keys::why_fixed(key).to_owned()) };
    let stage = recipe.stage;
    if readers.is_empty() {
        return None;
    }
    let here: Vec<Phase> =
        readers.iter().copied().filter(|&phase| stage.place(phase).is_some()).collect();
    let Some(&last) = here.last() else {
        return Some(format!("this run has no phase {}", readers[0]));
    };
    if key == "kl.coef" && recipe.kl.target > 0.0 {
        return Some("kl.target steers it from where it has come to".to_owned());
    }
    let Some(Reached { phase, step, total }) = reached else {
        let plays_first = key.starts_with("episode.") && stage.has_distillation();
        let has_begun = plays_first
            && std::fs::read_dir(run.episodes_dir()).is_ok_and(|mut files| files.next().is_some());
        return has_begun.then(|| keys::why_fixed(key).to_owned());
    };
    // KD reads again what was kept by the old lengths.
    if key.starts_with("episode.") && !matches!(phase, Phase::Rl | Phase::Gkd) {
        return Some(keys::why_fixed(key).to_owned());
    }
    if key.ends_with(".steps") && last == *phase && total < step {
        return Some(format!("{step} steps are done; {key}={step} ends the phase there"));
    }
    // The length of a phase that has ended is what makes it go on, as long as none has begun from
    // it.
    let is_over = |reader: &Phase| match stage.place(*reader).cmp(&stage.place(*phase)) {
        std::cmp::Ordering::Less => true,
        std::cmp::Ordering::Equal => step >= total && !is_length(key),
        std::cmp::Ordering::Greater => false,
    };
    if here.iter().all(is_over) {
        return Some(format!("{last} is over, and nothing that is still to come reads it"));
    }
    None
}

fn is_length(key: &str) -> bool {
    key.ends_with(".steps") || key.ends_with(".epochs")
}

/// Advice for whoever wants the change all the same.
fn anew(run: &RunDir, newest: Option<&RunCheckpoint>, overrides: &[String]) -> String {
    format!(
        "leave it out, or begin a run of its own from here: {}",
        own_run(run, newest, overrides)
    )
}

/// The command of a new run from where this one is, with settings that this one cannot take.
pub fn own_run(run: &RunDir, newest: Option<&RunCheckpoint>, overrides: &[String]) -> String {
    let path = |path: &Path| path.display().to_string();
    let recipe = path(&run.path().join(RECIPE_FILE));
    let mut command = format!(
        "cargo xtask train --config {} --name {}",
        word(&recipe),
        word(&(run.name() + "-2"))
    );
    if let Some(newest) = newest {
        command += &format!(
            " --set {}",
            word(&format!("model.student={}", path(&newest.path.join(MODEL_DIR))))
        );
        if newest.phase == Phase::Rl {
            command += " --set stage=rl";
        }
    }
    // What stands in the command already would only be said twice.
    let is_said = |setting: &String| {
        let key = setting.split('=').next().unwrap_or_default().trim();
        newest.is_some_and(|newest| {
            key == "model.student" || key == "stage" && newest.phase == Phase::Rl
        })
    };
    for setting in overrides.iter().filter(|setting| !is_said(setting)) {
        command += &format!(" --set {}", word(setting));
    }
    command
}

/// In what the network or the tokenizer of a checkpoint is not the one the recipe names, as far as
/// that one is on this machine.
fn other_model(checkpoint: &RunCheckpoint, student: &str, tokenizer: &str) -> Option<String> {
    let inside = checkpoint.path.join(MODEL_DIR);
    let folder = |name: &str| hub::resolve(name.strip_prefix(RANDOM_PREFIX).unwrap_or(name)).ok();
    let theirs = DecoderConfig::from_file(&inside.join("config.json")).ok()?;
    if let Some(ours) =
        folder(student).and_then(|dir| DecoderConfig::from_file(&dir.join("config.json")).ok())
        && let Some((key, there, here)) = first_difference(&theirs, &ours)
    {
        return Some(format!("{key} is {there} there and {here} here"));
    }
    let file = |dir: PathBuf| if dir.is_dir() { dir.join(TOKENIZER_FILE) } else { dir };
    let ours = folder(if tokenizer.is_empty() { student } else { tokenizer })
        .and_then(|dir| std::fs::read(file(dir)).ok())?;
    let theirs = std::fs::read(inside.join(TOKENIZER_FILE)).ok()?;
    (ours != theirs).then(|| format!("{TOKENIZER_FILE} is another one"))
}

/// The first field of config.json in which two networks differ: (key, left, right).
fn first_difference(left: &DecoderConfig, right: &DecoderConfig) -> Option<(String, Value, Value)> {
    // What generation and training begin with is no part of the network.
    const NO_SHAPE: [&str; 3] = ["bos_token_id", "eos_token_id", "initializer_range"];
    let fields = |config: &DecoderConfig| {
        serde_json::from_str::<Map<String, Value>>(&config.to_json()).unwrap_or_default()
    };
    let (left, mut right) = (fields(left), fields(right));
    left.into_iter()
        .map(|(key, there)| (right.remove(&key).unwrap_or_default(), key, there))
        .find(|(here, key, there)| here != there && !NO_SHAPE.contains(&key.as_str()))
        .map(|(here, key, there)| (key, there, here))
}
