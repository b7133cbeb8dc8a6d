//! `--from RUN`: what another run has finished, and this one would do in the same way, is reused
//! instead of done again.
//!
//! A phase is the same where everything it depends on is equal in both recipes and in the files
//! they name (`crate::folder::provenance`), and the student comes to it in the same way:
//!
//! | phase | depends on |
//! |---|---|
//! | demos | the models, training questions, passages, `retriever`, `episode`, `demos`, the seed |
//! | kd | the same, `data.trajectories`, `distill`, `optim.distill` |
//! | gkd | models to `episode`, the seed, `gkd`, `optim.distill`; every training phase before it |
//! | rl | models to `episode`, the seed, `rl`, `kl`, `gae`, `optim.actor`, `optim.critic`; every training phase before it |
//!
//! Guards, evaluations, and how often checkpoints are written may differ: no finished phase
//! computes anything else because of them.
//!
//! Files are linked, or copied where the file system has no links; nothing in a run directory is
//! changed in place, so both runs stay whole whatever becomes of the other. Checkpoints come last:
//! a process that dies on the way leaves a run that does the rest itself.
use super::blocks::{block_path, counts_path, n_blocks_done};
use crate::{
    config::{Recipe, load::differences},
    folder::{
        checkpoint::{self, CheckpointError, RunCheckpoint, newest_of},
        provenance::{TakenOver, changed_input},
        run_dir::{RunDir, RunDirError},
        state::PhaseState,
    },
};
use dgpo_core::settings::Phase;
use dgpo_models::files::sync_folder;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

/// Settings that every phase that plays or trains depends on.
const COMMON: [&str; 8] = [
    "model",
    "data.train",
    "data.max_train",
    "data.corpus",
    "data.max_passages",
    "retriever",
    "episode",
    "run.seed",
];

/// Settings of how long and in which portions a retriever is asked: its answers in the end are the
/// same.
const PATIENCE: [&str; 5] = [
    "retriever.timeout_s",
    "retriever.max_retries",
    "retriever.first_pause_s",
    "retriever.batch_queries",
    "retriever.max_outage_s",
];

/// Settings that a phase depends on beside [`COMMON`]: keys, or tables of keys.
fn own_keys(phase: Phase) -> &'static [&'static str] {
    match phase {
        Phase::Demos => &["demos"],
        Phase::Kd => &["demos", "data.trajectories", "distill", "optim.distill"],
        Phase::Gkd => &["gkd", "optim.distill"],
        Phase::Rl => &["rl", "kl", "gae", "optim.actor", "optim.critic"],
        Phase::Pretrain | Phase::Encoder | Phase::Eval => &[],
    }
}

/// Reasons why nothing is reused.
#[derive(Debug, thiserror::Error)]
pub enum ReuseError {
    #[error("nothing of the run {} can be taken over: {why}; hint: make the settings equal (--set \
             KEY=VALUE), or leave --from out", run.display())]
    Different { run: PathBuf, why: String },
    #[error(
        "the run {} has finished no phase that this run (stage {stage}) goes through in the same \
         way; hint: `dgpo runs show {}` says how far it is",
        run.display(), run.display()
    )]
    Nothing { run: PathBuf, stage: String },
    #[error(
        "{name} has changed since the run {} was started, so what that run learned is not what \
         this one would; hint: restore the file, or leave --from out",
        run.display()
    )]
    FileChanged { run: PathBuf, name: String },
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("cannot copy {}: {source}; hint: check free space and permissions", path.display())]
    Copy { path: PathBuf, source: io::Error },
}

/// A phase that both runs have and do differently.
#[derive(Clone, Debug, PartialEq)]
struct OtherPhase {
    phase: Phase,
    /// (key, there, here)
    keys: Vec<(String, toml::Value, toml::Value)>,
}

impl fmt::Display for OtherPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<String> = self
            .keys
            .iter()
            .map(|(key, there, here)| format!("{key}, which is {there} there and {here} here"))
            .collect();
        write!(f, "{} depends on {}", self.phase, keys.join(", on "))
    }
}

/// The phases that a new run reuses of another one.
#[derive(Clone, Debug)]
pub struct Reuse {
    source: RunDir,
    /// The record for the new run's provenance; its phases are in the order of the new run's stage.
    pub taken: TakenOver,
    /// Phases that the other run has finished too, and that are done again.
    refused: Vec<OtherPhase>,
    /// The last checkpoint of each phase that has one.
    checkpoints: Vec<RunCheckpoint>,
}

impl Reuse {
    /// Compares a finished run (or the finished part of one) with the recipe of a new run; `files`
    /// are the fingerprints of the new run's inputs.
    /// # Errors
    /// If nothing can be reused, with the reason; if the other run cannot be read.
    pub fn plan(
        source: &RunDir,
        recipe: &Recipe,
        files: &BTreeMap<String, String>,
    ) -> Result<Self, ReuseError> {
        let theirs = source.recipe()?;
        let different = differences(&theirs, recipe);
        let run = source.path().to_owned();
        let mut taken = TakenOver { run: run.clone(), phases: Vec::new(), wall_s: 0.0 };
        let (mut refused, mut checkpoints) = (Vec::new(), Vec::new());
        let mut their_training = theirs.stage.training_phases();
        let mut is_same_student = true;
        for &phase in recipe.stage.phases() {
            let finished = match phase {
                Phase::Pretrain | Phase::Encoder | Phase::Eval => continue,
                // A run goes on after the furthest phase of which it has anything: none before it
                // may be missing.
                _ if !is_same_student => None,
                Phase::Demos => {
                    let have_both = theirs.stage.place(Phase::Demos).is_some()
                        && recipe.data.trajectories.is_empty();
                    let n_blocks = n_blocks_done(source, theirs.retriever.max_lost_share)?;
                    (have_both && n_blocks > 0).then_some(None)
                }
                Phase::Kd | Phase::Gkd | Phase::Rl => {
                    let finished = match their_training.next() {
                        Some(theirs_now) if theirs_now == phase => {
                            finished_checkpoint(source, &theirs, phase)?
                        }
                        _ => None,
                    };
                    is_same_student = finished.is_some();
                    finished.map(Some)
                }
            };
            let Some(checkpoint) = finished else { continue };
            let is_input = |key: &str| {
                COMMON.iter().chain(own_keys(phase)).any(|table| is_in(key, table))
                    && !PATIENCE.contains(&key)
            };
            let keys: Vec<_> =
                different.iter().filter(|(key, ..)| is_input(key)).cloned().collect();
            if keys.is_empty() {
                taken.phases.push(phase);
                if let Some((checkpoint, wall_s)) = checkpoint {
                    checkpoints.push(checkpoint);
                    taken.wall_s = wall_s;
                }
            } else {
                is_same_student = is_same_student && phase == Phase::Demos;
                refused.push(OtherPhase { phase, keys });
            }
        }
        if taken.phases.is_empty() {
            return Err(match refused.first() {
                Some(refused) => ReuseError::Different { run, why: refused.to_string() },
                None => {
                    let stage = json!(recipe.stage).as_str().unwrap_or_default().to_owned();
                    ReuseError::Nothing { run, stage }
                }
            });
        }
        match changed_input(&source.provenance()?, recipe, files) {
            Some(name) => Err(ReuseError::FileChanged { run, name: name.to_owned() }),
            None => Ok(Self { source: source.clone(), taken, refused, checkpoints }),
        }
    }

    /// Sentences for the log: what is reused, and what is not.
    pub fn describe(&self) -> Vec<String> {
        let TakenOver { run, phases, .. } = &self.taken;
        let names: Vec<&str> = phases.iter().map(|phase| phase.as_str()).collect();
        let taken = format!("taken over from {}: {}", run.display(), names.join(", "));
        let refused = self.refused.iter().map(|refused| format!("not taken over: {refused}"));
        [taken].into_iter().chain(refused).collect()
    }

    /// Fills a new run, whose recipe is `recipe`.
    /// # Errors
    /// If files cannot be read or written.
    pub fn apply(&self, run: &RunDir, recipe: &Recipe) -> Result<(), ReuseError> {
        let (from, to) = (self.source.episodes_dir(), run.episodes_dir());
        let n_blocks = match self.taken.phases.contains(&Phase::Demos) {
            true => n_blocks_done(&self.source, recipe.retriever.max_lost_share)?,
            false => 0,
        };
        for block in 0..n_blocks {
            for file in [block_path, counts_path] {
                let path = file(&from, block);
                // A block from before there were counts goes without them.
                if path.is_file() {
                    link(&path, &file(&to, block))
                        .map_err(|source| ReuseError::Copy { path, source })?;
                }
            }
        }
        sync_folder(&to).map_err(|source| ReuseError::Copy { path: to, source })?;
        run.take_metrics(&self.source, &self.taken.phases)?;
        for taken in &self.checkpoints {
            let mut state: Value = taken.read_state()?;
            // What the run is told to do is what it was always told: nothing was changed since.
            state["recipe"] = json!(recipe);
            checkpoint::save(run.path(), taken.phase, taken.step, 0, |dir| {
                link_contents(&taken.path, dir)?;
                checkpoint::write_state(dir, &state)
            })?;
        }
        Ok(())
    }
}

/// True if a dotted key is `table` or lies in it.
pub(super) fn is_in(key: &str, table: &str) -> bool {
    key.strip_prefix(table).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The checkpoint of a phase's last step with the seconds of work up to it, if the run has come
/// that far.
fn finished_checkpoint(
    run: &RunDir,
    recipe: &Recipe,
    phase: Phase,
) -> Result<Option<(RunCheckpoint, f64)>, ReuseError> {
    let Some(newest) = newest_of(run.path(), recipe.stage, phase)? else { return Ok(None) };
    let state: PhaseState = newest.read_state()?;
    Ok((state.step >= state.total).then_some((newest, state.wall_s)))
}

/// Everything in a checkpoint's folder but its state, which is written anew.
fn link_contents(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            fs::create_dir_all(&target)?;
            link_contents(&path, &target)?;
        } else if entry.file_name() != checkpoint::STATE_FILE {
            link(&path, &target)?;
        }
    }
    Ok(())
}

fn link(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        // Another file system, or one without links.
        Err(_) => fs::copy(from, to).and_then(|_| fs::File::open(to)?.sync_all()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Stage,
        pipeline::blocks::{BlockCounts, write_block},
    };
    use dgpo_core::settings::KlMode;

    const INPUT: &str = "q.jsonl";

    fn recipe(stage: Stage) -> Recipe {
        let mut recipe = Recipe { stage, ..Recipe::default() };
        (recipe.data.train, recipe.data.test) = (vec![INPUT.into()], vec!["t.jsonl".into()]);
        recipe.data.corpus = "c.jsonl".into();
        recipe
    }

    fn files(print: &str) -> BTreeMap<String, String> {
        [(INPUT.to_owned(), print.to_owned()), ("t.jsonl".to_owned(), print.to_owned())].into()
    }

    /// A run with a block of teacher episodes, and checkpoints of 3 of 3 KD steps and of `rl_step`
    /// of 3 RL steps.
    fn run_with(root: &Path, name: &str, recipe: &Recipe, rl_step: usize) -> RunDir {
        let run =
            RunDir::create(root, name, recipe, &json!({ "files": files("sha256:a") })).unwrap();
        write_block(&run, 0, BlockCounts::default(), &[]).unwrap();
        let mut log = run.metrics(None).unwrap();
        for (phase, step) in [(Phase::Demos, 1), (Phase::Kd, 3), (Phase::Rl, rl_step)] {
            log.append(phase, step, &[]).unwrap();
            if phase != Phase::Demos {
                let state = json!({
                    "step": step, "total": 3, "sampler": crate::data::sampler::Sampler::new(0, 5), "n_updates": step, "critic_updates": 0, "kl": null,
                    "n_skipped": 0, "wall_s": 12.5, "recipe": recipe,
                });
                checkpoint::save(run.path(), phase, step, 0, |dir| {
                    fs::create_dir(dir.join("model"))?;
                    fs::write(dir.join("model/model.safetensors"), format!("{phase}"))?;
                    checkpoint::write_state(dir, &state)
                })
                .unwrap();
            }
        }
        run
    }

    fn plan(root: &Path, rl_step: usize, new: &Recipe) -> Result<Reuse, ReuseError> {
        Reuse::plan(
            &run_with(root, "old", &recipe(Stage::Pipeline), rl_step),
            new,
            &files("sha256:a"),
        )
    }

    fn phases_of(rl_step: usize, new: &Recipe) -> Vec<Phase> {
        plan(tempfile::tempdir().unwrap().path(), rl_step, new).unwrap().taken.phases
    }

    #[test]
    fn finished_phases_are_reused_and_unfinished_ones_are_not() {
        assert_eq!(phases_of(3, &recipe(Stage::Pipeline)), [Phase::Demos, Phase::Kd, Phase::Rl]);
        assert_eq!(phases_of(2, &recipe(Stage::Pipeline)), [Phase::Demos, Phase::Kd]);
    }

    #[test]
    fn a_phase_that_does_something_else_is_done_again_and_said() {
        let mut new = recipe(Stage::Pipeline);
        new.kl.mode = KlMode::Uniform;
        let root = tempfile::tempdir().unwrap();
        let plan = plan(root.path(), 3, &new).unwrap();
        assert_eq!(
            (plan.taken.phases.clone(), plan.taken.wall_s),
            (vec![Phase::Demos, Phase::Kd], 12.5)
        );
        let told = plan.describe().join("\n");
        assert!(
            told.contains(
                "not taken over: rl depends on kl.mode, which is \"selective\" there and \
                 \"uniform\" here"
            ),
            "{told}"
        );
    }

    #[test]
    fn a_phase_after_a_different_one_is_done_again() {
        let mut new = recipe(Stage::Pipeline);
        new.distill.steps = 7;
        assert_eq!(phases_of(3, &new), [Phase::Demos]);
    }

    #[test]
    fn the_same_phase_from_another_start_is_another_phase() {
        // KD comes after RL in this stage, and RL from the student before it is not the RL after
        // KD. The teacher's episodes come after it too.
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(
            plan(root.path(), 3, &recipe(Stage::RlDistill)),
            Err(ReuseError::Nothing { .. })
        ));
        assert_eq!(phases_of(3, &recipe(Stage::DistillGkd)), [Phase::Demos, Phase::Kd]);
    }

    #[test]
    fn what_no_finished_phase_depends_on_may_differ() {
        let mut new = recipe(Stage::Pipeline);
        (new.eval.every, new.eval.arcap, new.run.save_every) = (5, true, 1);
        (new.data.test, new.guards.window) = (vec!["other.jsonl".into()], 3);
        (new.retriever.max_retries, new.retriever.max_outage_s) = (9, 60.0);
        assert_eq!(phases_of(3, &new), [Phase::Demos, Phase::Kd, Phase::Rl]);
    }

    #[test]
    fn a_run_of_which_nothing_fits_names_the_keys() {
        let mut new = recipe(Stage::Pipeline);
        new.run.seed = 1;
        let root = tempfile::tempdir().unwrap();
        let error = plan(root.path(), 3, &new).unwrap_err().to_string();
        assert!(
            error.contains("demos depends on run.seed, which is 0 there and 1 here")
                && error.contains("hint: make"),
            "{error}"
        );
    }

    #[test]
    fn a_run_without_a_phase_in_common_says_so() {
        let root = tempfile::tempdir().unwrap();
        let error = plan(root.path(), 3, &recipe(Stage::Gkd)).unwrap_err().to_string();
        assert!(
            error.contains("has finished no phase that this run (stage gkd)")
                && error.contains("hint: "),
            "{error}"
        );
    }

    #[test]
    fn an_input_that_changed_is_named_and_test_questions_may() {
        let root = tempfile::tempdir().unwrap();
        let run = run_with(root.path(), "old", &recipe(Stage::Pipeline), 3);
        let error = Reuse::plan(&run, &recipe(Stage::Pipeline), &files("sha256:b"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("q.jsonl has changed since"), "{error}");
        let mut now = files("sha256:a");
        now.insert("t.jsonl".into(), "sha256:b".into());
        assert!(Reuse::plan(&run, &recipe(Stage::Pipeline), &now).is_ok());
    }

    #[test]
    fn a_filled_run_holds_the_phases_their_metrics_and_its_own_recipe() {
        let root = tempfile::tempdir().unwrap();
        let mut new = recipe(Stage::DistillGkd);
        new.run.name = "new".into();
        let plan = plan(root.path(), 3, &new).unwrap();
        let run = RunDir::create(root.path(), "new", &new, &json!({})).unwrap();
        plan.apply(&run, &new).unwrap();
        let checkpoints = checkpoint::list_checkpoints(run.path(), new.stage).unwrap();
        assert_eq!(
            checkpoints.iter().map(|c| (c.phase, c.step)).collect::<Vec<_>>(),
            [(Phase::Kd, 3)]
        );
        assert_eq!(
            fs::read_to_string(checkpoints[0].path.join("model/model.safetensors")).unwrap(),
            "kd"
        );
        let state: PhaseState = checkpoints[0].read_state().unwrap();
        assert_eq!((state.step, state.wall_s, state.recipe), (3, 12.5, Some(new)));
        assert_eq!(n_blocks_done(&run, 0.0).unwrap(), 1);
        let phases: Vec<Value> =
            run.read_metrics().unwrap().into_iter().map(|line| line["phase"].clone()).collect();
        assert_eq!(phases, ["demos", "kd"]);
    }
}
