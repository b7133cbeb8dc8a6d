//! Results of one seed's runs: gathered from their folders, written as one small JSON
//! file, read back for the page.
//!
//! The file holds, of every row, its figures, whether each test question was answered (one
//! character a question, which is all that a paired comparison needs), and its courses of training
//! in at most [`MAX_POINTS`] points. A row that failed is there with the reason.
use super::{
    ReproduceError,
    rows::{Extra, TableRow, name},
};
use dgpo_core::{rollout::Episode, settings::Phase, trainer::metrics::*};
use dgpo_run::{
    config::{Recipe, load::to_toml},
    episodes::read_episodes,
    eval::{Figures, Summary, arcap::Capabilities, bootstrap::Interval, models_of},
    folder::run_dir::{RunDir, alarms},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Points of a course: a longer one is cut into stretches of equal length, and a point is a
/// stretch's mean.
pub const MAX_POINTS: usize = 50;

/// Metrics of the figures on dynamics.
pub const COURSES: [&str; 12] = [
    REWARD,
    EVAL_AVERAGE_EM,
    EVAL_TEACHER_KL,
    ENTROPY,
    RESPONSE_TOKENS,
    SEARCHES,
    INVALID_ACTIONS,
    CLIP_FRACTION,
    EXPLAINED_VARIANCE,
    ACTOR_GRAD_NORM,
    DISTILL_LOSS,
    DISTILL_GRAD_NORM,
];

/// Everything of one seed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SeedResults {
    pub seed: u64,
    /// `--set` of every row, as given; none in a reproduction at the size of the recipes.
    pub settings: Vec<String>,
    /// Rows by their names, and the models they start from ("qwen-student", "qwen-teacher").
    pub rows: BTreeMap<String, Outcome>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    Done(Box<Done>),
    /// The run ended with an error or a guard stopped it, or the row that it begins with did.
    Failed {
        why: String,
    },
}

impl Outcome {
    pub fn done(&self) -> Option<&Done> {
        match self {
            Self::Done(done) => Some(done),
            Self::Failed { .. } => None,
        }
    }
}

/// A row that was trained and evaluated.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Done {
    /// Fingerprint of the resolved recipe, without name and seed: rows of two seeds that have the
    /// same one were made in the same way.
    pub recipe: String,
    /// Fingerprint of the program, the device, and the phases taken over, as the run's provenance
    /// has them.
    pub provenance: Map<String, Value>,
    /// Seconds of all phases, and of those that this row did itself.
    pub wall_s: f64,
    pub own_wall_s: f64,
    pub score: Score,
    /// Courses of the last phase in which the student played.
    pub courses: BTreeMap<String, LearningCurve>,
    /// Exact match of the sampled episodes on training questions, mean over the last tenth of the
    /// steps in which the student played, where that is what the row ends with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_reward: Option<f64>,
    /// Alarms along the way; in a reproduction they only warn.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alarms: Vec<String>,
}

/// Figures of a model on the test questions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Score {
    /// Unweighted mean over data sets, as the paper's tables average.
    pub average_em: f64,
    /// Its 95 % interval over questions.
    pub interval: Option<Interval>,
    pub datasets: BTreeMap<String, SetScore>,
    pub substring_em: f64,
    pub searches: f64,
    pub hit_ratio: f64,
    pub invalid_actions: f64,
    pub response_tokens: f64,
    pub n_questions: usize,
}

/// Figures on one data set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SetScore {
    pub em: f64,
    pub n_questions: usize,
    /// "1" for a question answered exactly, "0" for another, in the order of the file.
    pub answered: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arcap: Option<SetArcap>,
}

/// The capabilities one by one (method §8); `None` where nothing was played for a figure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SetArcap {
    pub without_thinking: Option<f64>,
    pub with_thinking: Option<f64>,
    /// As `answered`, over the questions with gold passages.
    pub answered_without: String,
    pub answered_with: String,
    pub first_query_hit_ratio: Option<f64>,
    pub question_hit_ratio: Option<f64>,
    pub hit_ratio: Option<f64>,
    pub searches: Option<f64>,
}

/// A metric along the steps of a phase.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LearningCurve {
    pub steps: Vec<u64>,
    /// `None` where it was not finite.
    pub values: Vec<Option<f64>>,
    /// Steps whose mean a point is.
    pub steps_per_point: usize,
}

/// Fingerprint of a recipe without its name and seed.
pub fn digest(recipe: &Recipe) -> String {
    let mut recipe = recipe.clone();
    (recipe.run.name, recipe.run.seed) = (String::new(), 0);
    let digest = Sha256::digest(to_toml(&recipe));
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// True if a run has come to its end: the model it was for is evaluated.
/// # Errors
/// If its summary is damaged.
pub fn is_finished(run: &RunDir, recipe: &Recipe) -> Result<bool, ReproduceError> {
    Ok(figures_of(&run.summary()?.unwrap_or_default(), target(recipe)).is_some())
}

/// The model that a run was for.
fn target(recipe: &Recipe) -> &'static str {
    models_of(recipe.stage).pop().expect("a run evaluates the student at least")
}

fn figures_of<'s>(summary: &'s Summary, model: &str) -> Option<&'s Figures> {
    summary.rows().into_iter().find(|(name, _)| *name == model)?.1
}

impl SeedResults {
    /// Enters a finished row, and the models it started from, where no earlier row has said more
    /// about them.
    /// # Errors
    /// If files of the run cannot be read.
    pub fn enter(
        &mut self,
        row: &TableRow,
        run: &RunDir,
        recipe: &Recipe,
    ) -> Result<(), ReproduceError> {
        let summary: Summary = run.summary()?.unwrap_or_default();
        let model = target(recipe);
        let missing = || ReproduceError::NotEvaluated { run: run.path().to_owned(), model };
        let provenance = run.provenance()?;
        let taken_wall_s =
            provenance.pointer("/taken_over/wall_s").and_then(Value::as_f64).unwrap_or(0.0);
        let lines = run.read_metrics()?;
        let kept = ["version", "executable", "device", "n_host_cores"];
        let provenance_kept =
            kept.iter().filter_map(|key| Some(((*key).to_owned(), provenance.get(*key)?.clone())));
        let own = score(run, model, figures_of(&summary, model).ok_or_else(missing)?)?;
        let mut courses = if row.extra.contains(&Extra::LearningCurve) {
            courses(&lines, recipe)
        } else {
            BTreeMap::new()
        };
        // Behind the last step of the course the evaluation is that of the row itself.
        let n_steps = [(Phase::Rl, recipe.rl.steps), (Phase::Gkd, recipe.gkd.steps)]
            .into_iter()
            .find(|(phase, _)| phase.as_str() == model);
        if let (Some(course), Some((_, n_steps))) = (courses.get_mut(EVAL_AVERAGE_EM), n_steps) {
            course.steps.push(n_steps as u64);
            course.values.push(Some(rounded(own.average_em)));
        }
        let done = Done {
            recipe: digest(recipe),
            provenance: provenance_kept.chain(taken_over(&provenance)).collect(),
            wall_s: summary.wall_s,
            own_wall_s: (summary.wall_s - taken_wall_s).max(0.0),
            score: own,
            courses,
            train_reward: train_reward(&lines, model),
            alarms: alarms(&lines).into_iter().map(|(what, _)| what).collect(),
        };
        self.rows.insert(row.name(), Outcome::Done(Box::new(done)));
        for start in ["student", "teacher"] {
            let name = name(row.pair, start);
            let is_known = self
                .rows
                .get(&name)
                .and_then(Outcome::done)
                .is_some_and(|known| has_arcap(&known.score) || !recipe.eval.arcap);
            if let (Some(figures), false) = (figures_of(&summary, start), is_known) {
                let done = Done { score: score(run, start, figures)?, ..Done::default() };
                self.rows.insert(name, Outcome::Done(Box::new(done)));
            }
        }
        Ok(())
    }

    /// The rows that failed, with the reasons.
    pub fn failed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.rows.iter().filter_map(|(name, outcome)| match outcome {
            Outcome::Failed { why } => Some((name.as_str(), why.as_str())),
            Outcome::Done(_) => None,
        })
    }

    /// As it is written: a row a line, so that two versions of the file can be compared.
    pub fn to_json(&self) -> String {
        let rows: Vec<String> = self
            .rows
            .iter()
            .map(|(name, outcome)| format!("{}: {}", json!(name), json!(outcome)))
            .collect();
        format!(
            "{{\n\"seed\": {},\n\"settings\": {},\n\"rows\": {{\n{}\n}}\n}}\n",
            self.seed,
            json!(self.settings),
            rows.join(",\n")
        )
    }
}

/// Which phases a row took over and from which one: its name alone, the folder is the machine's
/// own.
fn taken_over(provenance: &Value) -> Option<(String, Value)> {
    let taken = provenance.get("taken_over").filter(|taken| !taken.is_null())?;
    let row = taken.get("run").and_then(Value::as_str).and_then(|run| Path::new(run).file_name());
    Some((
        "taken_over".to_owned(),
        json!({"run": row.map(|row| row.to_string_lossy()), "phases": taken.get("phases"), "wall_s": taken.get("wall_s")}),
    ))
}

fn has_arcap(score: &Score) -> bool {
    score.datasets.values().any(|set| set.arcap.is_some())
}

/// Reads the figures of one of a run's models, with what became of each question.
fn score(run: &RunDir, model: &str, figures: &Figures) -> Result<Score, ReproduceError> {
    let played = |end: &str| -> Result<BTreeMap<String, String>, ReproduceError> {
        let path = run.episodes_dir().join(format!("eval-{model}{end}.jsonl"));
        Ok(answered(&if path.is_file() { read_episodes(&path)? } else { Vec::new() }))
    };
    let (ordinary, without, with) =
        (played("")?, played("-arcap-without-thinking")?, played("-arcap-with-thinking")?);
    let marks = |of: &BTreeMap<String, String>, set: &str| of.get(set).cloned().unwrap_or_default();
    let arcap = figures.arcap.as_ref();
    let set = |(name, stats): (&String, &dgpo_core::rollout::EpisodeStats)| {
        let capabilities = arcap.and_then(|arcap| arcap.datasets.get(name));
        let arcap =
            capabilities.map(|row| set_arcap(row, marks(&without, name), marks(&with, name)));
        (
            name.clone(),
            SetScore {
                em: stats.em,
                n_questions: stats.n_episodes,
                answered: marks(&ordinary, name),
                arcap,
            },
        )
    };
    let all = &figures.all;
    Ok(Score {
        average_em: figures.average_em,
        interval: figures
            .intervals
            .as_ref()
            .and_then(|intervals| intervals.average.get("em"))
            .copied(),
        datasets: figures.datasets.iter().map(set).collect(),
        substring_em: all.substring_em,
        searches: all.searches,
        hit_ratio: all.hit_ratio,
        invalid_actions: all.invalid_actions,
        response_tokens: all.response_tokens,
        n_questions: all.n_episodes,
    })
}

fn set_arcap(row: &Capabilities, answered_without: String, answered_with: String) -> SetArcap {
    SetArcap {
        without_thinking: row.without_thinking.as_ref().map(|played| played.em.value),
        with_thinking: row.with_thinking.as_ref().map(|played| played.em.value),
        answered_without,
        answered_with,
        first_query_hit_ratio: row
            .query_rewriting
            .as_ref()
            .map(|rewriting| rewriting.first_query_hit_ratio.value),
        question_hit_ratio: row
            .query_rewriting
            .as_ref()
            .and_then(|rewriting| rewriting.question_hit_ratio)
            .map(|ratio| ratio.value),
        hit_ratio: row.thinking.as_ref().map(|thinking| thinking.hit_ratio.value),
        searches: row.thinking.as_ref().map(|thinking| thinking.searches.value),
    }
}

/// A mark a question, in the order played, of each data set.
fn answered(episodes: &[Episode]) -> BTreeMap<String, String> {
    let mut marks: BTreeMap<String, String> = BTreeMap::new();
    for episode in episodes {
        marks.entry(episode.question.dataset.clone()).or_default().push(if episode.is_correct() {
            '1'
        } else {
            '0'
        });
    }
    marks
}

/// The courses of the last phase of the recipe in which the student plays.
fn courses(lines: &[Map<String, Value>], recipe: &Recipe) -> BTreeMap<String, LearningCurve> {
    let phase = recipe
        .stage
        .training_phases()
        .filter(|phase| matches!(phase, Phase::Rl | Phase::Gkd))
        .last();
    let lines: Vec<_> =
        lines.iter().filter(|line| line.get("phase") == Some(&json!(phase))).collect();
    let course = |metric: &&str| {
        let recorded = lines
            .iter()
            .filter_map(|line| Some((line.get("step")?.as_u64()?, line.get(*metric)?.as_f64())));
        let points: Vec<(u64, Option<f64>)> = recorded.collect();
        (!points.is_empty()).then(|| ((*metric).to_owned(), thinned(&points)))
    };
    COURSES.iter().filter_map(course).collect()
}

/// The mean reward over the last tenth of the steps of a phase, in which the student played.
fn train_reward(lines: &[Map<String, Value>], phase: &str) -> Option<f64> {
    let is_played = [Phase::Rl, Phase::Gkd].iter().any(|played| played.as_str() == phase);
    let of_phase = lines
        .iter()
        .filter(|line| is_played && line.get("phase").and_then(Value::as_str) == Some(phase));
    let rewards: Vec<f64> = of_phase.filter_map(|line| line.get(REWARD)?.as_f64()).collect();
    let last = &rewards[rewards.len() - rewards.len().div_ceil(10)..];
    (!last.is_empty()).then(|| rounded(last.iter().sum::<f64>() / last.len() as f64))
}

fn thinned(points: &[(u64, Option<f64>)]) -> LearningCurve {
    let steps_per_point = points.len().div_ceil(MAX_POINTS);
    let mean = |stretch: &[(u64, Option<f64>)]| {
        let known: Vec<f64> = stretch.iter().filter_map(|(_, value)| *value).collect();
        (!known.is_empty()).then(|| rounded(known.iter().sum::<f64>() / known.len() as f64))
    };
    LearningCurve {
        steps: points
            .chunks(steps_per_point)
            .filter_map(|stretch| Some(stretch.last()?.0))
            .collect(),
        values: points.chunks(steps_per_point).map(mean).collect(),
        steps_per_point,
    }
}

/// Five significant digits: more than a figure shows, and a file of a fifth of the size.
fn rounded(x: f64) -> f64 {
    format!("{x:.4e}").parse().unwrap_or(x)
}

/// Path of a seed's results in the folder of results.
pub fn path_of(folder: &Path, seed: u64) -> PathBuf {
    folder.join(format!("seed-{seed}.json"))
}

/// Reads one file.
/// # Errors
/// If it cannot be read or is none of these files.
pub fn read(path: &Path) -> Result<SeedResults, ReproduceError> {
    let text = fs::read_to_string(path).map_err(|source| ReproduceError::Io {
        verb: "read",
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_str(&text)
        .map_err(|source| ReproduceError::Damaged { path: path.to_owned(), source })
}

/// The results of every seed in a folder, by seed; none where there is no such folder.
/// # Errors
/// As [`read`]; if a file holds another seed than its name says.
pub fn read_all(folder: &Path) -> Result<Vec<SeedResults>, ReproduceError> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let failed = |source| ReproduceError::Io { verb: "read", path: folder.to_owned(), source };
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("seed-") && name.ends_with(".json") {
            let results = read(&path)?;
            if path != path_of(folder, results.seed) {
                return Err(ReproduceError::OtherSeed { path, seed: results.seed });
            }
            all.push(results);
        }
    }
    all.sort_by_key(|results| results.seed);
    Ok(all)
}

#[cfg(test)]
mod tests;
