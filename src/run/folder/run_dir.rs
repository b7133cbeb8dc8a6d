//! The folder of a run: its recipe, its provenance and its results.
//!
//! ```text
//! runs/NAME/  recipe.toml (resolved)  provenance.json  metrics.jsonl  summary.json
//!             episodes/  checkpoints/  lock
//!             report.md  report.html  tb/        (written by `crate::report` from the others)
//! ```
//! One process at a time writes into a run: it holds the operating system's lock on the file
//! `lock`, which is released however the process ends. A metrics line is one flat object,
//! `{"phase":"rl","step":3,"rollout/reward":0.41,...}`, flushed as it is written. The step is the
//! number of finished steps, so a run resumed from step s cuts the file after (phase, s) and
//! continues as if it had never stopped. An alarm of a step follows it in a line of its own,
//! `{"phase":"rl","step":3,"alarm":"..","advice":".."}`, which stays whatever the recipe says
//! later.
mod leftovers;
mod orders;

use super::checkpoint::CHECKPOINTS_DIR;
use crate::config::{self, ConfigError, Recipe, Stage};
use dgpo_core::{
    settings::Phase,
    trainer::{guards::Alarm, metrics::rename_old},
};
use dgpo_models::files::{sync_folder, write_file};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
};

/// Folder of the runs, relative to the current directory.
pub const RUNS_DIR: &str = "runs";
/// Name of the resolved recipe inside a run; a resumed run reads it again.
pub const RECIPE_FILE: &str = "recipe.toml";
pub(crate) const PROVENANCE_FILE: &str = "provenance.json";
const METRICS_FILE: &str = "metrics.jsonl";
const SUMMARY_FILE: &str = "summary.json";
const EPISODES_DIR: &str = "episodes";
const EVALUATION_DIR: &str = "evaluation";
const LOCK_FILE: &str = "lock";

/// Errors of making, opening or writing a run directory.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    #[error("the run {path} exists; hint: continue it with --resume {path}, or choose another \
             --name", path = .0.display())]
    Exists(PathBuf),
    #[error(
        "the folder {path} exists and is no run that could go on: it holds no {RECIPE_FILE}; hint: \
         remove it, or choose another --name",
        path = .0.display()
    )]
    Occupied(PathBuf),
    #[error("{} is not a run: {}; hint: `dgpo runs list` shows the runs in ./{RUNS_DIR}", .0.display(), what_is_missing(.0))]
    NotARun(PathBuf),
    #[error(
        "another process{} works on the run {}; hint: wait for its end, or stop it and continue \
         with --resume",
        pid.map_or(String::new(), |pid| format!(" ({pid})")), path.display()
    )]
    Busy { path: PathBuf, pid: Option<u32> },
    #[error("cannot {verb} {}: {source}; hint: check free space and permissions", path.display())]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
    #[error("{}:{line}: {why}; hint: the file was changed by hand or by another version", path.display())]
    Damaged { path: PathBuf, line: usize, why: String },
    #[error(transparent)]
    Recipe(#[from] ConfigError),
}

fn what_is_missing(path: &Path) -> String {
    match path.is_dir() {
        true => format!("it holds no {RECIPE_FILE}, which every run begins with"),
        false => "there is no such folder".to_owned(),
    }
}

fn io_error(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RunDirError {
    let path = path.to_owned();
    move |source| RunDirError::Io { verb, path, source }
}

/// The lock of a run: the right to write into it, until it is dropped.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

/// An open run directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Makes `root/name` with the resolved recipe (`run.name` filled in) and the provenance.
    /// # Errors
    /// [`RunDirError::Exists`] or [`RunDirError::Occupied`] if the folder is there already: nothing
    /// is ever overwritten.
    pub fn create(
        root: &Path,
        name: &str,
        recipe: &Recipe,
        provenance: &impl Serialize,
    ) -> Result<Self, RunDirError> {
        let path = root.join(name);
        fs::create_dir_all(root).map_err(io_error("create", root))?;
        fs::create_dir(&path).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists if path.join(RECIPE_FILE).is_file() => {
                RunDirError::Exists(path.clone())
            }
            io::ErrorKind::AlreadyExists => RunDirError::Occupied(path.clone()),
            _ => RunDirError::Io { verb: "create", path: path.clone(), source },
        })?;
        let run = Self { path };
        let mut resolved = recipe.clone();
        resolved.run.name = name.to_owned();
        for folder in [EPISODES_DIR, CHECKPOINTS_DIR] {
            fs::create_dir(run.path.join(folder))
                .map_err(io_error("create", &run.path.join(folder)))?;
        }
        run.write(PROVENANCE_FILE, pretty(provenance))?;
        // The recipe makes the folder a run, so it is written last.
        run.write(RECIPE_FILE, config::load::to_toml(&resolved))?;
        sync_folder(root).map_err(io_error("write", root))?;
        Ok(run)
    }

    /// Opens an existing run.
    /// # Errors
    /// If the folder is not one.
    pub fn open(path: &Path) -> Result<Self, RunDirError> {
        match path.join(RECIPE_FILE).is_file() {
            true => Ok(Self { path: path.to_owned() }),
            false => Err(RunDirError::NotARun(path.to_owned())),
        }
    }

    /// Locks the run for this process. A process that trains holds the lock; readers need none.
    /// # Errors
    /// [`RunDirError::Busy`] while another process has it. A killed process leaves a file without a
    /// lock.
    pub fn lock(&self) -> Result<RunLock, RunDirError> {
        let path = self.path.join(LOCK_FILE);
        let opened = refuse_link(&path).and_then(|()| {
            OpenOptions::new().create(true).read(true).write(true).truncate(false).open(&path)
        });
        let mut file = opened.map_err(io_error("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // The process id is for the message alone; where the lock forbids reading too, the
                // message has none.
                let _ = file.read_to_string(&mut pid);
                return Err(RunDirError::Busy {
                    path: self.path.clone(),
                    pid: pid.trim().parse().ok(),
                });
            }
            // Some network file systems have no locks, and a run there must be possible.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                tracing::warn!(
                    "{} cannot be locked here; hint: start no second process on this run",
                    path.display()
                );
            }
            Err(TryLockError::Error(error)) => return Err(io_error("lock", &path)(error)),
        }
        let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(io_error("write", &path))?;
        Ok(RunLock { _file: file })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Folder of the episodes.
    pub fn episodes_dir(&self) -> PathBuf {
        self.path.join(EPISODES_DIR)
    }

    /// Folder of each evaluated model's figures, `NAME.json`; made with the first of them.
    pub fn evaluation_dir(&self) -> PathBuf {
        self.path.join(EVALUATION_DIR)
    }

    /// The metrics file, open for appending. `done` = the phase and step of its stage that a
    /// resumed run starts from: later lines are cut off, and so is a line that a killed process
    /// left incomplete. `None` starts an empty file.
    /// # Errors
    /// If a line before the cut is not a metrics line, or the disk fails.
    pub fn metrics(&self, done: Option<(Stage, Phase, usize)>) -> Result<MetricsLog, RunDirError> {
        let path = self.path.join(METRICS_FILE);
        let n_bytes = match done {
            Some(done) if path.is_file() => bytes_until(&path, done)?,
            _ => 0,
        };
        let opened = refuse_link(&path)
            .and_then(|()| OpenOptions::new().create(true).append(true).open(&path))
            .and_then(|file| {
                file.set_len(n_bytes)?;
                sync_folder(&self.path)?;
                Ok(file)
            });
        Ok(MetricsLog { file: opened.map_err(io_error("open", &path))?, path })
    }

    /// Every metrics line, oldest first, under the present names ([`rename_old`]); an incomplete
    /// last line is left out.
    /// # Errors
    /// If the file cannot be read.
    pub fn read_metrics(&self) -> Result<Vec<Map<String, Value>>, RunDirError> {
        let path = self.path.join(METRICS_FILE);
        if !path.is_file() {
            return Ok(Vec::new());
        }
        let text = fs::read_to_string(&path).map_err(io_error("read", &path))?;
        let mut lines: Vec<Map<String, Value>> =
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        lines.iter_mut().for_each(rename_old);
        Ok(lines)
    }

    /// Starts the metrics with those of some phases of another run, in the order of its lines.
    /// # Errors
    /// If that run's file cannot be read or the disk fails.
    pub fn take_metrics(&self, from: &Self, phases: &[Phase]) -> Result<(), RunDirError> {
        let is_wanted = |line: &&Map<String, Value>| {
            phases.iter().any(|phase| line.get("phase") == Some(&json!(phase)))
        };
        let lines = from.read_metrics()?;
        let text: String =
            lines.iter().filter(is_wanted).map(|line| json!(line).to_string() + "\n").collect();
        self.write(METRICS_FILE, text)
    }

    /// Writes the final figures (`crate::eval::Summary`; this layer only stores them).
    /// # Errors
    /// If the disk fails.
    pub fn write_summary(&self, summary: &impl Serialize) -> Result<(), RunDirError> {
        self.write(SUMMARY_FILE, pretty(summary))
    }

    /// The final figures, if the run has come that far.
    /// # Errors
    /// If the file is damaged.
    pub fn summary<T: DeserializeOwned>(&self) -> Result<Option<T>, RunDirError> {
        self.read_json(SUMMARY_FILE)
    }

    /// A small JSON file, if it is there.
    fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, RunDirError> {
        let path = self.path.join(name);
        if !path.is_file() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).map_err(io_error("read", &path))?;
        let damaged = |e: serde_json::Error| RunDirError::Damaged {
            path: path.clone(),
            line: e.line(),
            why: e.to_string(),
        };
        serde_json::from_str(&text).map(Some).map_err(damaged)
    }

    /// Replaces a small file as a whole: a reader never sees half of it, not even after a power
    /// cut.
    /// # Errors
    /// If the disk fails.
    pub fn write(&self, name: &str, text: String) -> Result<(), RunDirError> {
        let path = self.path.join(name);
        write_file(&path, text).map_err(io_error("write", &path))
    }
}

/// Files that are appended to are not replaced as a whole, so a link at their name would be
/// followed.
fn refuse_link(path: &Path) -> io::Result<()> {
    match path.is_symlink() {
        true => Err(io::Error::other("it is a link, which may lead anywhere")),
        false => Ok(()),
    }
}

fn pretty(value: &impl Serialize) -> String {
    let mut text =
        serde_json::to_string_pretty(value).expect("keys are text and values are finite or null");
    text.push('\n');
    text
}

/// The run directories in `root`, by name.
/// # Errors
/// If `root` exists and cannot be read.
pub fn list_runs(root: &Path) -> Result<Vec<RunDir>, RunDirError> {
    if !root.is_dir() {
        return Ok(Vec::new());
    }
    let mut runs = Vec::new();
    for entry in fs::read_dir(root).map_err(io_error("read", root))? {
        runs.extend(RunDir::open(&entry.map_err(io_error("read", root))?.path()));
    }
    runs.sort_by_key(RunDir::name);
    Ok(runs)
}

/// Appends metrics lines.
#[derive(Debug)]
pub struct MetricsLog {
    file: File,
    path: PathBuf,
}

impl MetricsLog {
    /// Writes one line: a killed process loses at most the line being written, a power cut those
    /// since [`Self::sync`]. Values that are not finite become `null`.
    /// # Errors
    /// If the disk fails.
    pub fn append(
        &mut self,
        phase: Phase,
        step: usize,
        metrics: &[(&'static str, f64)],
    ) -> Result<(), RunDirError> {
        let mut line =
            Map::from_iter([("phase".to_owned(), json!(phase)), ("step".to_owned(), json!(step))]);
        line.extend(metrics.iter().map(|&(name, value)| (name.to_owned(), json!(value))));
        self.write(line)
    }

    /// Records an alarm after the line of its step.
    /// # Errors
    /// If the disk fails.
    pub fn append_alarm(&mut self, alarm: &Alarm) -> Result<(), RunDirError> {
        let line = json!({"phase": alarm.phase, "step": alarm.step, ALARM: alarm.what(), ADVICE: alarm.advice()});
        self.write(line.as_object().cloned().unwrap_or_default())
    }

    /// Syncs the appended lines to the disk, before a checkpoint is written that relies on the
    /// lines of its steps.
    /// # Errors
    /// If the disk fails.
    pub fn sync(&self) -> Result<(), RunDirError> {
        self.file.sync_data().map_err(io_error("write", &self.path))
    }

    fn write(&mut self, line: Map<String, Value>) -> Result<(), RunDirError> {
        let mut text = Value::Object(line).to_string();
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(io_error("write", &self.path))
    }
}

/// Keys of an alarm's line.
pub const ALARM: &str = "alarm";
const ADVICE: &str = "advice";

/// Alarms of a run, from its metrics lines: (symptom and step, advice).
pub fn alarms(lines: &[Map<String, Value>]) -> Vec<(String, String)> {
    let text = |line: &Map<String, Value>, key: &str| Some(line.get(key)?.as_str()?.to_owned());
    lines
        .iter()
        .filter_map(|line| Some((text(line, ALARM)?, text(line, ADVICE).unwrap_or_default())))
        .collect()
}

/// Length of the file up to and including the lines of `done`.
fn bytes_until(
    path: &Path,
    (stage, phase, step): (Stage, Phase, usize),
) -> Result<u64, RunDirError> {
    #[derive(Deserialize)]
    struct LineHead {
        phase: Phase,
        step: usize,
    }
    let mut reader = BufReader::new(File::open(path).map_err(io_error("open", path))?);
    let (mut n_bytes, mut text) = (0, String::new());
    for line in 1.. {
        text.clear();
        let n_read = reader.read_line(&mut text).map_err(io_error("read", path))?;
        // The end, or an incomplete line.
        if n_read == 0 || !text.ends_with('\n') {
            break;
        }
        let head: LineHead = serde_json::from_str(&text).map_err(|e| RunDirError::Damaged {
            path: path.to_owned(),
            line,
            why: e.to_string(),
        })?;
        if (stage.place(head.phase), head.step) > (stage.place(phase), step) {
            break;
        }
        n_bytes += n_read as u64;
    }
    Ok(n_bytes)
}

#[cfg(test)]
mod tests;
