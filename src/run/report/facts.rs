//! Facts of a run: everything of a report that is neither a curve nor
//! an episode.
use crate::{
    config::{
        Recipe,
        load::{differences, to_toml},
    },
    eval::{Figures, MODELS, Summary, bootstrap::Interval},
    folder::{provenance::changes, run_dir::RunDir},
    units::duration,
};
use dgpo_core::{
    rollout::EpisodeStats,
    settings::{KlMode, KlReference},
};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// A run without its curves and episodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    pub name: String,
    /// One line under the name.
    pub subtitle: String,
    /// (what, value), for people.
    pub settings: Vec<(String, String)>,
    /// (key, default, this run), as text.
    pub changed: Vec<[String; 3]>,
    /// The whole resolved recipe, as TOML.
    pub recipe: String,
    /// (what, value) of the program and the machine.
    pub provenance: Vec<(String, String)>,
    /// (file, fingerprint) of every input.
    pub inputs: Vec<(String, String)>,
    /// Whose log-probs stand beside the policy's: "teacher" or "start".
    pub reference: &'static str,
    /// Which episodes carry the KL penalty; `None` without RL.
    pub kl: Option<KlMode>,
    pub models: Vec<Model>,
}

/// An evaluated model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    pub name: String,
    /// Origin of its weights; empty where that was not recorded.
    pub weights: String,
    pub figures: Figures,
}

impl Model {
    /// `[0.790, 0.865]`: the 95 % interval of its EM over the questions of a data set, over all
    /// questions, or of the mean over data sets.
    pub fn em_interval(&self, of: Of<'_>) -> Option<String> {
        let intervals = self.figures.intervals.as_ref()?;
        let figures = match of {
            Of::Dataset(name) => intervals.datasets.get(name)?,
            Of::All => &intervals.all,
            Of::Average => &intervals.average,
        };
        figures.get("em").map(|Interval { low, high }| format!("[{low:.3}, {high:.3}]"))
    }
}

/// Range of a mean.
#[derive(Clone, Copy, Debug)]
pub enum Of<'n> {
    Dataset(&'n str),
    /// All questions together.
    All,
    /// Data sets, each counting the same.
    Average,
}

/// A column of the table of all figures.
pub struct Column {
    pub title: &'static str,
    pub value: fn(&EpisodeStats) -> String,
}

/// Title of the column that has intervals beside its figures.
pub const EM: &str = "EM";

/// Every figure of an evaluation, in the order of the tables.
pub const COLUMNS: [Column; 11] = [
    Column { title: EM, value: |s| format!("{:.3}", s.em) },
    Column { title: "substring EM", value: |s| format!("{:.3}", s.substring_em) },
    Column { title: "hit ratio", value: |s| format!("{:.3}", s.hit_ratio) },
    Column { title: "searches", value: |s| format!("{:.2}", s.searches) },
    Column { title: "that found nothing", value: |s| format!("{:.3}", s.nothing_found) },
    Column { title: "invalid actions", value: |s| format!("{:.3}", s.invalid_actions) },
    Column { title: "response tokens", value: |s| format!("{:.1}", s.response_tokens) },
    Column { title: "agent tokens", value: |s| format!("{:.1}", s.agent_tokens) },
    Column { title: "answered", value: |s| format!("{:.3}", s.answered) },
    Column { title: "lost to the retriever", value: |s| format!("{:.3}", s.retriever_failed) },
    Column { title: "questions", value: |s| s.n_episodes.to_string() },
];

/// Reads everything but metrics and episodes. What is missing or damaged is left out and named in
/// `warnings`.
pub fn gather(run: &RunDir, warnings: &mut Vec<String>) -> Facts {
    let recipe = run
        .recipe()
        .map_err(|error| warnings.push(format!("the recipe is left out: {error}")))
        .ok();
    let provenance =
        run.provenance().map_err(|error| warnings.push(error.to_string())).unwrap_or_default();
    let summary: Summary = run
        .summary()
        .map_err(|error| warnings.push(error.to_string()))
        .unwrap_or_default()
        .unwrap_or_default();
    let mut facts =
        Facts { name: run.name(), models: models(run, &summary, warnings), ..Facts::default() };
    if let Some(recipe) = &recipe {
        facts.settings = settings(recipe);
        facts.reference = match recipe.kl.reference {
            KlReference::Teacher => "teacher",
            KlReference::Initial => "start",
        };
        let text =
            |value: toml::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let changed = differences(&Recipe::default(), recipe).into_iter();
        facts.kl = recipe.stage.has_rl().then_some(recipe.kl.mode);
        facts.changed =
            changed.map(|(key, default, value)| [key, text(default), text(value)]).collect();
        facts.recipe = to_toml(recipe);
    }
    facts.provenance = described(&provenance, &summary);
    let files = provenance.get("files").and_then(Value::as_object).into_iter().flatten();
    facts.inputs = files.map(|(name, fingerprint)| (name.clone(), text(fingerprint))).collect();
    let stage = recipe.as_ref().map(|recipe| format!("stage {}", stage_name(recipe)));
    let seed = recipe.as_ref().map(|recipe| format!("seed {}", recipe.run.seed));
    let device =
        provenance.get("device").and_then(Value::as_str).map(|device| format!("on {device}"));
    let time = (summary.wall_s > 0.0).then(|| format!("{} of work", duration(summary.wall_s)));
    facts.subtitle =
        [stage, seed, device, time].into_iter().flatten().collect::<Vec<_>>().join(" · ");
    facts
}

fn stage_name(recipe: &Recipe) -> String {
    text(&serde_json::json!(recipe.stage))
}

/// A JSON value without the quotation marks of text.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The settings somebody asks for first.
fn settings(recipe: &Recipe) -> Vec<(String, String)> {
    let value = |value: Value| text(&value);
    let named = |name: &str| if name.is_empty() { "none".to_owned() } else { name.to_owned() };
    let mut settings = vec![
        ("stage", stage_name(recipe)),
        ("student", named(&recipe.model.student)),
        ("teacher", named(&recipe.model.teacher)),
        ("training questions", named(&recipe.data.train.join(", "))),
        ("test questions", named(&recipe.data.test.join(", "))),
        ("passages", named(&recipe.data.corpus)),
        (
            "retriever",
            format!(
                "{}, top {}",
                value(serde_json::json!(recipe.retriever.kind)),
                recipe.retriever.top_k
            ),
        ),
    ];
    if recipe.stage.has_distillation() {
        let distill = &recipe.distill;
        let divergence = value(serde_json::json!(distill.divergence));
        let weights =
            format!("{} · cross-entropy + {} · {divergence}", distill.ce_weight, distill.kl_weight);
        let from = match (recipe.data.trajectories.is_empty(), recipe.demos.only_correct) {
            (false, true) => "the correct episodes of files",
            (false, false) => "all episodes of files",
            (true, true) => "the teacher's correct episodes",
            (true, false) => "all of the teacher's episodes",
        };
        let own = if distill.student_outputs.is_adaptive { " and the student's own" } else { "" };
        let sizes = format!("batch {}, learning rate {}", distill.batch, recipe.optim.distill.lr);
        settings.push(("distillation", format!("{weights}; {from}{own}; {sizes}")));
    }
    if recipe.stage.has_gkd() {
        let gkd = &recipe.gkd;
        let sizes = format!(
            "{} steps of {} questions; learning rate {}",
            gkd.steps, gkd.questions_per_step, recipe.optim.distill.lr
        );
        settings.push((
            "on-policy distillation",
            format!("generalised JSD with β {}; {sizes}", gkd.jsd_beta),
        ));
    }
    if recipe.stage.has_rl() {
        let (rl, kl) = (&recipe.rl, &recipe.kl);
        let episodes = match rl.episodes_per_question {
            1 => String::new(),
            n => format!(", {n} episodes each"),
        };
        let steps = format!("{} steps of {} questions{episodes}", rl.steps, rl.questions_per_step);
        let algorithm = value(serde_json::json!(rl.algorithm));
        settings
            .push(("RL", format!("{algorithm}, {steps}; learning rate {}", recipe.optim.actor.lr)));
        let placed = format!(
            "{} in the {}",
            value(serde_json::json!(kl.estimator)),
            value(serde_json::json!(kl.placement))
        );
        let penalty = format!(
            "{}, reference {}, {placed}, β {}",
            value(serde_json::json!(kl.mode)),
            value(serde_json::json!(kl.reference)),
            kl.coef
        );
        settings.push(("KL penalty", penalty));
    }
    settings.into_iter().map(|(what, value)| (what.to_owned(), value)).collect()
}

fn described(provenance: &Value, summary: &Summary) -> Vec<(String, String)> {
    let known = |what: &str, key: &str| {
        provenance
            .get(key)
            .filter(|value| !value.is_null())
            .map(|value| (what.to_owned(), text(value)))
    };
    let words = provenance.get("command_line").and_then(Value::as_array).into_iter().flatten();
    let command = words.map(text).collect::<Vec<_>>().join(" ");
    let facts = [
        known("version", "version"),
        (!command.is_empty()).then(|| ("command".to_owned(), command)),
        known("device", "device"),
        known("kernels", "kernels"),
        known("hardware threads", "n_host_cores"),
        known("seed", "seed"),
        (summary.wall_s > 0.0).then(|| ("time of work".to_owned(), duration(summary.wall_s))),
        known("executable", "executable"),
        taken_over(provenance),
    ];
    let changes =
        changes(provenance).into_iter().map(|change| ("changed on the way".to_owned(), change));
    facts.into_iter().flatten().chain(changes).collect()
}

/// Part of this run that another run did.
fn taken_over(provenance: &Value) -> Option<(String, String)> {
    let taken = provenance.get("taken_over")?;
    let phases: Vec<String> = taken.get("phases")?.as_array()?.iter().map(text).collect();
    Some((
        "taken over".to_owned(),
        format!("{} from {}", phases.join(", "), text(taken.get("run")?)),
    ))
}

/// evaluation/NAME.json: the figures, and the weights they belong to.
#[derive(Deserialize)]
struct Evaluation {
    #[serde(default)]
    of: String,
    #[serde(flatten)]
    figures: Figures,
}

/// Every evaluated model. The summary is written at the end of a run, the files of the folder after
/// each model, so both are asked.
fn models(run: &RunDir, summary: &Summary, warnings: &mut Vec<String>) -> Vec<Model> {
    let mut models: BTreeMap<(usize, String), Model> = BTreeMap::new();
    // Others than a run's own follow by name.
    let place = |name: &str| MODELS.iter().position(|known| *known == name).unwrap_or(MODELS.len());
    for (name, figures) in summary.rows() {
        if let Some(figures) = figures {
            let model =
                Model { name: name.to_owned(), weights: String::new(), figures: figures.clone() };
            models.insert((place(name), name.to_owned()), model);
        }
    }
    // A run that was not evaluated has no such folder.
    for entry in std::fs::read_dir(run.evaluation_dir()).into_iter().flatten().flatten() {
        let path = entry.path();
        let Some(name) = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_suffix(".json"))
            .map(str::to_owned)
        else {
            continue;
        };
        let read = std::fs::read(&path)
            .map_err(|e| e.to_string())
            .and_then(|text| serde_json::from_slice(&text).map_err(|e| e.to_string()));
        match read {
            Ok(Evaluation { of, figures }) => {
                models.insert((place(&name), name.clone()), Model { name, weights: of, figures });
            }
            Err(why) => {
                warnings.push(format!("an evaluation is left out: {}: {why}", path.display()))
            }
        }
    }
    models.into_values().collect()
}

/// Names of the data sets of all models, in order.
pub fn datasets(models: &[Model]) -> Vec<&str> {
    let mut names: Vec<&str> =
        models.iter().flat_map(|model| model.figures.datasets.keys().map(String::as_str)).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    fn run_with_provenance(root: &Path, provenance: &Value) -> RunDir {
        let mut recipe = Recipe::default();
        (recipe.data.train, recipe.data.test) = (vec!["q.jsonl".into()], vec!["t.jsonl".into()]);
        recipe.data.corpus = "c.jsonl".into();
        recipe.run.seed = 7;
        RunDir::create(root, "mine", &recipe, provenance).expect("a run")
    }

    #[test]
    fn the_evaluation_that_names_its_weights_wins_over_the_summary_and_known_models_come_first() {
        let root = tempfile::tempdir().expect("temporary folder");
        let run = run_with_provenance(root.path(), &json!({}));
        let figures = |em: f64| Figures { average_em: em, ..Figures::default() };
        run.write_summary(&Summary {
            kd: Some(figures(0.25)),
            student: Some(figures(0.125)),
            ..Summary::default()
        })
        .expect("written");
        let folder = run.evaluation_dir();
        std::fs::create_dir(&folder).expect("made");
        for (name, em) in [("kd", 0.5), ("another", 0.75)] {
            let mut evaluation = serde_json::to_value(figures(em)).expect("plain figures");
            evaluation["of"] = json!("kd-step-000300");
            std::fs::write(folder.join(format!("{name}.json")), evaluation.to_string())
                .expect("written");
        }
        let facts = gather(&run, &mut Vec::new());
        let rows: Vec<_> = facts
            .models
            .iter()
            .map(|m| (m.name.as_str(), m.weights.as_str(), m.figures.average_em))
            .collect();
        assert_eq!(
            rows,
            [
                ("student", "", 0.125),
                ("kd", "kd-step-000300", 0.5),
                ("another", "kd-step-000300", 0.75)
            ]
        );
    }

    #[test]
    fn damaged_files_are_named_and_the_rest_is_there() {
        let root = tempfile::tempdir().expect("temporary folder");
        let run = run_with_provenance(
            root.path(),
            &json!({"device": "cpu", "command_line": ["dgpo", "train"], "taken_over": {"run": "runs/cold", "phases": ["demos", "kd"]}}),
        );
        std::fs::write(run.path().join("summary.json"), "{").expect("written");
        let mut warnings = Vec::new();
        let facts = gather(&run, &mut warnings);
        assert!(warnings.len() == 1 && warnings[0].contains("summary.json"), "{warnings:?}");
        assert_eq!(facts.subtitle, "stage pipeline · seed 7 · on cpu");
        for (what, value) in [("command", "dgpo train"), ("taken over", "demos, kd from runs/cold")]
        {
            assert!(
                facts.provenance.contains(&(what.to_owned(), value.to_owned())),
                "{:?}",
                facts.provenance
            );
        }
        assert!(
            facts.changed.iter().any(|[key, _, value]| key == "run.seed" && value == "7"),
            "{:?}",
            facts.changed
        );
    }
}
