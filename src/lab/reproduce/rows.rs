//! Which runs are made: every row of the paper's tables for the main pair of models, and those of
//! Table 3 for another student.
//!
//! A row begins with the phases that an earlier row of the same pair has finished, where they are
//! the same (`dgpo_run::pipeline::reuse` decides).
use dgpo_run::config::{ConfigError, Recipe, load};

/// A teacher and a student.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ModelPair {
    /// The Qwen2.5-shaped student, in the place of the paper's 3B -> 0.5B.
    Qwen,
    /// The Llama-3-shaped student, in the place of the paper's 8B -> 1B.
    Llama,
}

impl ModelPair {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qwen => "qwen",
            Self::Llama => "llama",
        }
    }

    /// The built-in recipe that says with which models and data.
    pub fn world(self) -> &'static str {
        match self {
            Self::Qwen => "tiny",
            Self::Llama => "tiny-llama",
        }
    }
}

/// One run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRow {
    pub pair: ModelPair,
    /// Name of the method's recipe.
    pub method: &'static str,
    /// Method of the row whose finished phases this one begins with.
    pub from: Option<&'static str>,
    /// Measurements of the row beside its figures.
    pub extra: &'static [Extra],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    /// Capabilities one by one (Table 5).
    Arcap,
    /// Exact match on the test questions along the course of training (Figures 4 and 6).
    LearningCurve,
}

/// Steps between two points of a course.
const COURSE_EVERY: usize = 25;

const fn row(
    method: &'static str,
    from: Option<&'static str>,
    extra: &'static [Extra],
) -> TableRow {
    TableRow { pair: ModelPair::Qwen, method, from, extra }
}

const fn llama(method: &'static str, from: Option<&'static str>) -> TableRow {
    TableRow { pair: ModelPair::Llama, method, from, extra: &[] }
}

/// All rows; a row comes behind the one it begins with.
pub const ROWS: [TableRow; 19] = [
    row("kd", None, &[Extra::Arcap]),
    row("dgpo", Some("kd"), &[Extra::Arcap, Extra::LearningCurve]),
    row("ppo", None, &[Extra::Arcap, Extra::LearningCurve]),
    row("seqkd", Some("kd"), &[]),
    row("sft", Some("seqkd"), &[]),
    row("sft-ppo", Some("sft"), &[]),
    row("taid", Some("kd"), &[]),
    row("distillm", None, &[]),
    row("gkd", None, &[Extra::LearningCurve]),
    row("dgpo-no-kd", None, &[Extra::LearningCurve]),
    row("dgpo-uniform-kl", Some("kd"), &[]),
    row("dgpo-no-teacher", Some("kd"), &[]),
    row("ppo-kd", Some("ppo"), &[]),
    row("kd-gkd", Some("kd"), &[Extra::LearningCurve]),
    row("grpo", None, &[Extra::LearningCurve]),
    row("dgpo-grpo", Some("kd"), &[Extra::LearningCurve]),
    llama("kd", None),
    llama("dgpo", Some("kd")),
    llama("ppo", None),
];

impl TableRow {
    /// "qwen-kd": its run's folder and its name in the results.
    pub fn name(&self) -> String {
        name(self.pair, self.method)
    }

    /// The row it begins with.
    pub fn source(&self) -> Option<&'static TableRow> {
        let from = self.from?;
        ROWS.iter().find(|row| row.pair == self.pair && row.method == from)
    }

    /// The recipe of its run. `settings` are laid over every row alike. Guards only warn: a row
    /// that collapses is a result of the paper too.
    /// # Errors
    /// If a setting is none of the recipe, or the rules forbid it.
    pub fn recipe(&self, seed: u64, settings: &[String]) -> Result<Recipe, ConfigError> {
        let extra = self.extra.iter().map(|extra| match extra {
            Extra::Arcap => "eval.arcap=true".to_owned(),
            Extra::LearningCurve => format!("eval.every={COURSE_EVERY}"),
        });
        let warn = ["guards.action=warn".to_owned()];
        let overrides: Vec<String> = warn
            .into_iter()
            .chain(extra)
            .chain(settings.iter().cloned())
            .chain([format!("run.seed={seed}")])
            .collect();
        Ok(load(&format!("{}/{}", self.pair.world(), self.method), &overrides)?.recipe)
    }
}

/// Name of a row, or of one of the models that every row starts from ("student", "teacher").
pub fn name(pair: ModelPair, what: &str) -> String {
    format!("{}-{what}", pair.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dgpo_run::config::{Stage, library};
    use std::collections::BTreeSet;

    #[test]
    fn the_main_pair_has_a_row_for_every_method() {
        let rows: BTreeSet<&str> =
            ROWS.iter().filter(|row| row.pair == ModelPair::Qwen).map(|row| row.method).collect();
        assert_eq!(rows, library::methods().collect());
        assert_eq!(ROWS.iter().map(TableRow::name).collect::<BTreeSet<_>>().len(), ROWS.len());
    }

    #[test]
    fn a_row_comes_behind_the_one_it_begins_with() {
        for (at, row) in ROWS.iter().enumerate() {
            if row.from.is_some() {
                let source = row.source().unwrap_or_else(|| {
                    panic!("{} begins with a row that is not there", row.name())
                });
                assert!(ROWS[..at].contains(source), "{}", row.name());
            }
        }
    }

    #[test]
    fn a_rows_recipe_is_that_of_its_method_with_its_measurements_and_the_settings() {
        let dgpo = ROWS[1].recipe(3, &["rl.steps=2".to_owned()]).unwrap();
        assert_eq!(
            (dgpo.stage, dgpo.rl.steps, dgpo.run.seed, dgpo.eval.arcap, dgpo.eval.every),
            (Stage::Pipeline, 2, 3, true, COURSE_EVERY)
        );
        assert!(ROWS[1].recipe(0, &["rl.stepz=2".to_owned()]).is_err());
        // The seed is an argument of its own: a page says which seeds it holds.
        assert_eq!(ROWS[0].recipe(3, &["run.seed=9".to_owned()]).unwrap().run.seed, 3);
    }

    #[test]
    fn a_row_shares_the_training_that_it_begins_with() {
        // Everything but the last training phase of a row that begins with another one's is that
        // one's.
        for (row, source) in ROWS.iter().filter_map(|row| Some((row, row.source()?))) {
            let training = |row: &TableRow| {
                row.recipe(0, &[]).unwrap().stage.training_phases().collect::<Vec<_>>()
            };
            let (own, theirs) = (training(row), training(source));
            assert!(
                own.starts_with(&theirs) || own == theirs,
                "{} from {}",
                row.name(),
                source.name()
            );
        }
    }
}
