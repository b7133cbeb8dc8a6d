//! Atomic checkpoint folders: either the whole checkpoint is there, or the earlier ones are
//! unchanged.
//!
//! ```text
//! checkpoints/.tmp-rl-step-000200/   written, every file and the folder fsynced
//! checkpoints/rl-step-000200/        renamed, the parent fsynced; then old ones beyond `keep` go
//! ```
//! What lies inside is the caller's: a `state.json` (see [`write_state`]) and folders of weights.
//! Knows no models and no optimizers. A process may die at any instruction: a reader sees complete
//! folders only, and leftovers with the prefix `.tmp-` are removed by [`latest`].
use crate::config::Stage;
use dgpo_core::settings::Phase;
use dgpo_models::files::{TEMPORARY_PREFIX, sync_folder};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// Folder of the checkpoints inside a run directory.
pub const CHECKPOINTS_DIR: &str = "checkpoints";
pub(crate) const STATE_FILE: &str = "state.json";

/// An error of the caller's own writing.
pub type WriteError = Box<dyn std::error::Error + Send + Sync>;

/// Errors of writing or reading a checkpoint. The earlier checkpoints are untouched in every case.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("cannot write the checkpoint {}: {}; hint: {}", path.display(), without_hint(source.as_ref()), write_hint(source.as_ref()))]
    Write { path: PathBuf, source: WriteError },
    #[error("cannot read {}: {source}; hint: the checkpoint is damaged; remove its folder to \
             resume from the one before", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "{} is damaged or of another version: {source}; hint: remove its folder to resume from the \
         checkpoint before, or resume with the version that wrote it (see provenance.json)",
        path.display()
    )]
    State { path: PathBuf, source: serde_json::Error },
}

/// The message of the inner error without its own hint, since the checkpoint's hint is more
/// specific.
fn without_hint(source: &(dyn std::error::Error + 'static)) -> String {
    let text = source.to_string();
    text.split("; hint: ").next().unwrap_or_default().to_owned()
}

fn write_hint(source: &(dyn std::error::Error + 'static)) -> &'static str {
    let mut cause = Some(source);
    while let Some(error) = cause {
        match error.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                return "the disk is full; make room or lower run.keep, then resume: earlier \
                        checkpoints are intact";
            }
            Some(io::ErrorKind::PermissionDenied) => {
                return "the folder is not writable for this user";
            }
            _ => cause = error.source(),
        }
    }
    "free space and write permission are the usual causes; earlier checkpoints are intact"
}

/// A complete checkpoint on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunCheckpoint {
    pub path: PathBuf,
    pub phase: Phase,
    /// Steps of the phase that are done.
    pub step: usize,
}

impl RunCheckpoint {
    /// Reads what [`write_state`] wrote.
    /// # Errors
    /// If the file is unreadable or of another shape.
    pub fn read_state<T: DeserializeOwned>(&self) -> Result<T, CheckpointError> {
        let path = self.path.join(STATE_FILE);
        let text = fs::read(&path)
            .map_err(|source| CheckpointError::Read { path: path.clone(), source })?;
        serde_json::from_slice(&text).map_err(|source| CheckpointError::State { path, source })
    }

    /// The name of its folder, as in `rl-step-000250`.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Folder names are `<phase>-step-<six digits or more>`.
    fn parse(path: PathBuf) -> Option<Self> {
        let (phase, step) = path.file_name()?.to_str()?.split_once("-step-")?;
        let (phase, step) = (Phase::from_name(phase)?, step.parse().ok()?);
        path.is_dir().then_some(Self { path, phase, step })
    }
}

/// Writes the trainer's state as `state.json` into a checkpoint folder being written.
/// # Errors
/// If the file cannot be written.
pub fn write_state<T: Serialize>(dir: &Path, state: &T) -> Result<(), WriteError> {
    let mut text = serde_json::to_vec_pretty(state)?;
    text.push(b'\n');
    Ok(fs::write(dir.join(STATE_FILE), text)?)
}

/// Writes a checkpoint: `write` fills a temporary folder, which then takes its place in one rename.
/// Older checkpoints of the phase beyond the `keep` newest are removed (0 = none). A complete
/// checkpoint of the same phase and step stays as it is, and `write` is not called.
/// # Errors
/// If `write` fails or the disk does; the temporary folder is removed and earlier checkpoints are
/// untouched.
pub fn save(
    run_dir: &Path,
    phase: Phase,
    step: usize,
    keep: usize,
    write: impl FnOnce(&Path) -> Result<(), WriteError>,
) -> Result<RunCheckpoint, CheckpointError> {
    let parent = run_dir.join(CHECKPOINTS_DIR);
    let name = format!("{phase}-step-{step:06}");
    let (path, temporary) = (parent.join(&name), parent.join(format!("{TEMPORARY_PREFIX}{name}")));
    let checkpoint = RunCheckpoint { path: path.clone(), phase, step };
    if path.is_dir() {
        return Ok(checkpoint);
    }
    let written = (|| -> Result<(), WriteError> {
        fs::create_dir_all(&parent)?;
        remove_if_there(&temporary)?;
        fs::create_dir(&temporary)?;
        write(&temporary)?;
        sync_tree(&temporary)?;
        fs::rename(&temporary, &path)?;
        Ok(sync_folder(&parent)?)
    })();
    if let Err(source) = written {
        // Only the error above is reported; the next `latest` would remove a leftover.
        let _ = remove_if_there(&temporary);
        return Err(CheckpointError::Write { path, source });
    }
    prune(&parent, phase, keep);
    Ok(checkpoint)
}

/// The newest complete checkpoint of a run of a stage: the furthest phase, and in it the highest
/// step. Leftovers of interrupted writes are removed.
/// # Errors
/// If the checkpoint folder exists and cannot be read.
pub fn latest(run_dir: &Path, stage: Stage) -> Result<Option<RunCheckpoint>, CheckpointError> {
    let parent = run_dir.join(CHECKPOINTS_DIR);
    let unreadable = |source| CheckpointError::Read { path: parent.clone(), source };
    if !parent.is_dir() {
        return Ok(None);
    }
    for entry in fs::read_dir(&parent).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX) {
            remove_if_there(&entry.path()).map_err(unreadable)?;
        }
    }
    Ok(list_checkpoints(run_dir, stage)?.pop())
}

/// The complete checkpoints of a run of a stage, oldest first.
/// # Errors
/// If the folder cannot be read.
pub fn list_checkpoints(
    run_dir: &Path,
    stage: Stage,
) -> Result<Vec<RunCheckpoint>, CheckpointError> {
    let parent = run_dir.join(CHECKPOINTS_DIR);
    if !parent.is_dir() {
        return Ok(Vec::new());
    }
    let mut found =
        list(&parent).map_err(|source| CheckpointError::Read { path: parent, source })?;
    found.sort_by_key(|checkpoint| stage.place(checkpoint.phase));
    Ok(found)
}

/// The newest complete checkpoint of one phase of a run of a stage.
/// # Errors
/// If the folder cannot be read.
pub fn newest_of(
    run_dir: &Path,
    stage: Stage,
    phase: Phase,
) -> Result<Option<RunCheckpoint>, CheckpointError> {
    Ok(list_checkpoints(run_dir, stage)?.into_iter().rfind(|found| found.phase == phase))
}

/// All checkpoints in the order of their steps, whatever the phase.
fn list(parent: &Path) -> io::Result<Vec<RunCheckpoint>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(parent)? {
        found.extend(RunCheckpoint::parse(entry?.path()));
    }
    found.sort_by_key(|checkpoint| checkpoint.step);
    Ok(found)
}

/// A failure to remove old checkpoints costs disk space, not the run: it is a warning.
fn prune(parent: &Path, phase: Phase, keep: usize) {
    if keep == 0 {
        return;
    }
    let remove_old = || -> io::Result<()> {
        let mut of_phase = list(parent)?;
        of_phase.retain(|checkpoint| checkpoint.phase == phase);
        let n_old = of_phase.len().saturating_sub(keep);
        for old in &of_phase[..n_old] {
            // Renamed first, so that a removal cut short does not leave a folder that looks
            // complete.
            let doomed = parent.join(format!("{TEMPORARY_PREFIX}old-{}", old.name()));
            remove_if_there(&doomed)?;
            fs::rename(&old.path, &doomed)?;
            fs::remove_dir_all(&doomed)?;
        }
        Ok(())
    };
    if let Err(error) = remove_old() {
        tracing::warn!("cannot remove old checkpoints in {}: {error}", parent.display());
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path)?.sync_all()?;
        }
    }
    sync_folder(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct StepState {
        step: usize,
    }

    fn save_state(run: &Path, phase: Phase, step: usize, keep: usize) -> RunCheckpoint {
        save(run, phase, step, keep, |dir| {
            fs::create_dir(dir.join("actor"))?;
            fs::write(dir.join("actor/model.safetensors"), b"weights")?;
            write_state(dir, &StepState { step })
        })
        .expect("the folder is writable")
    }

    fn names(run: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(run.join(CHECKPOINTS_DIR))
            .expect("checkpoints were written")
            .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_saved_checkpoint_is_found_with_its_state_and_folders() {
        let run = tempfile::tempdir().unwrap();
        let saved = save_state(run.path(), Phase::Kd, 200, 3);
        let found = latest(run.path(), Stage::Pipeline).unwrap().expect("one was saved");
        assert_eq!(found, saved);
        assert_eq!(found.read_state::<StepState>().unwrap(), StepState { step: 200 });
        assert_eq!(fs::read(found.path.join("actor/model.safetensors")).unwrap(), b"weights");
        assert_eq!(names(run.path()), ["kd-step-000200"]);
    }

    #[test]
    fn a_run_without_checkpoints_has_no_latest() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!(latest(run.path(), Stage::Pipeline).unwrap(), None);
    }

    #[test]
    fn the_newest_is_the_highest_step_of_the_furthest_phase() {
        let run = tempfile::tempdir().unwrap();
        save_state(run.path(), Phase::Rl, 9, 0);
        save_state(run.path(), Phase::Rl, 10, 0);
        save_state(run.path(), Phase::Kd, 5000, 0);
        let newest =
            |stage| latest(run.path(), stage).unwrap().map(|newest| (newest.phase, newest.step));
        assert_eq!(newest(Stage::Pipeline), Some((Phase::Rl, 10)));
        assert_eq!(newest(Stage::RlDistill), Some((Phase::Kd, 5000)));
        assert_eq!(newest(Stage::Distill), Some((Phase::Kd, 5000)), "RL is no phase of this stage");
    }

    #[test]
    fn only_the_newest_of_the_phase_are_kept() {
        let run = tempfile::tempdir().unwrap();
        save_state(run.path(), Phase::Kd, 7, 2);
        for step in [1, 2, 3] {
            save_state(run.path(), Phase::Rl, step, 2);
        }
        assert_eq!(names(run.path()), ["kd-step-000007", "rl-step-000002", "rl-step-000003"]);
    }

    #[test]
    fn a_write_that_fails_half_way_leaves_the_earlier_checkpoint_and_nothing_else() {
        let run = tempfile::tempdir().unwrap();
        let before = save_state(run.path(), Phase::Rl, 1, 1);
        let error = save(run.path(), Phase::Rl, 2, 1, |dir| {
            fs::write(dir.join("half"), b"of the weights")?;
            Err(io::Error::from(io::ErrorKind::StorageFull).into())
        })
        .unwrap_err()
        .to_string();
        assert!(
            error.contains("rl-step-000002") && error.contains("hint: the disk is full"),
            "{error}"
        );
        assert_eq!(names(run.path()), ["rl-step-000001"]);
        assert_eq!(latest(run.path(), Stage::Pipeline).unwrap(), Some(before));
    }

    #[test]
    fn a_failed_write_gives_one_hint() {
        let run = tempfile::tempdir().unwrap();
        let source = io::Error::from(io::ErrorKind::StorageFull);
        let inner = dgpo_models::ModelError::Write { path: "model.safetensors".into(), source };
        let error =
            save(run.path(), Phase::Rl, 2, 1, |_| Err(inner.into())).unwrap_err().to_string();
        assert!(
            error.contains("model.safetensors") && error.contains("hint: the disk is full"),
            "{error}"
        );
        assert_eq!(error.matches("hint: ").count(), 1, "{error}");
    }

    #[test]
    fn leftovers_of_a_killed_process_are_ignored_and_removed() {
        let run = tempfile::tempdir().unwrap();
        let saved = save_state(run.path(), Phase::Rl, 1, 0);
        fs::create_dir(run.path().join(CHECKPOINTS_DIR).join(".tmp-rl-step-000002")).unwrap();
        assert_eq!(latest(run.path(), Stage::Pipeline).unwrap(), Some(saved));
        assert_eq!(names(run.path()), ["rl-step-000001"]);
    }

    #[test]
    fn a_leftover_of_the_same_step_does_not_leak_into_the_new_checkpoint() {
        let run = tempfile::tempdir().unwrap();
        let leftover = run.path().join(CHECKPOINTS_DIR).join(".tmp-rl-step-000001");
        fs::create_dir_all(&leftover).unwrap();
        fs::write(leftover.join("stale"), b"").unwrap();
        let saved = save_state(run.path(), Phase::Rl, 1, 0);
        assert!(!saved.path.join("stale").exists());
    }

    #[test]
    fn saving_the_same_step_again_keeps_the_complete_one() {
        let run = tempfile::tempdir().unwrap();
        let first = save_state(run.path(), Phase::Rl, 1, 0);
        let again =
            save(run.path(), Phase::Rl, 1, 0, |_| Err("must not be called".into())).unwrap();
        assert_eq!(again, first);
    }

    #[test]
    fn a_damaged_state_is_an_error_with_its_path() {
        let run = tempfile::tempdir().unwrap();
        let saved = save_state(run.path(), Phase::Rl, 1, 0);
        fs::write(saved.path.join(STATE_FILE), b"{\"step\":").unwrap();
        let error = saved.read_state::<StepState>().unwrap_err().to_string();
        assert!(error.contains(STATE_FILE) && error.contains("hint"), "{error}");
    }
}
