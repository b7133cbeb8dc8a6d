use super::*;
use crate::config::Stage;
use dgpo_core::settings::{Decay, KlMode, RlRecipe};
use std::path::Path;

/// Settings that every runnable recipe needs, so that a test can state only its own point.
const RUNNABLE: &str =
    "data = { train = [\"a.jsonl\"], test = [\"b.jsonl\"], corpus = \"c.jsonl\" }\n";

/// Writes recipe files into a folder of their own.
struct Recipes(tempfile::TempDir);
impl Recipes {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        Self(dir)
    }
    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_string_lossy().into_owned()
    }
    fn load(&self, name: &str, overrides: &[&str]) -> Result<Loaded, ConfigError> {
        load(&self.path(name), &overrides.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
    }
}

fn recipe_of(text: &str, overrides: &[&str]) -> Recipe {
    Recipes::new(&[("r.toml", &format!("{RUNNABLE}{text}"))])
        .load("r.toml", overrides)
        .unwrap()
        .recipe
}

pub(in crate::config) fn error_of(text: &str, overrides: &[&str]) -> String {
    Recipes::new(&[("r.toml", &format!("{RUNNABLE}{text}"))])
        .load("r.toml", overrides)
        .unwrap_err()
        .to_string()
}

#[test]
fn a_recipe_that_extends_base_alone_is_the_default_recipe() {
    let files = Recipes::new(&[("r.toml", "extends = \"base\"\n")]);
    let loaded = load_part(&files.path("r.toml"), &[]).unwrap().recipe;
    assert_eq!(loaded, Recipe::default());
    // Tables that are defaults of their own types are those of the whole.
    assert_eq!(loaded.distill.taid, Default::default());
    assert_eq!(loaded.optim, Default::default());
}

#[test]
fn every_recipe_of_the_repository_passes_its_checks() {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let mut n_recipes = 0;
    for folder in [configs.clone(), configs.join("tiny"), configs.join("paper")] {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "toml")
                && !path.ends_with("base.toml")
            {
                load(&path.to_string_lossy(), &[])
                    .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                n_recipes += 1;
            }
        }
    }
    assert!(n_recipes > 0);
}

#[test]
fn settings_of_a_few_names_are_refused_with_the_nearest_or_all_of_them() {
    for (text, hint) in [
        ("model.dtype = \"bf61\"\n", "did you mean \"bf16\"?"),
        ("retriever.kind = \"elastic\"\n", "one of dense, bm25, remote"),
        ("retriever.search = \"hsnw\"\n", "did you mean \"hnsw\"?"),
    ] {
        let error = error_of(text, &[]);
        assert!(error.contains("r.toml:2") && error.contains(hint), "{error}");
    }
}

#[test]
fn a_recorded_recipe_has_the_numbers_that_a_recipe_file_may_have() {
    #[derive(serde::Deserialize)]
    struct Record {
        #[serde(deserialize_with = "recorded_recipe")]
        recipe: Option<Recipe>,
    }
    let read = |seed: u64| {
        let recipe = Recipe {
            run: crate::config::RunRecipe { seed, ..Default::default() },
            ..Recipe::default()
        };
        serde_json::from_value::<Record>(serde_json::json!({ "recipe": recipe }))
            .map(|record| record.recipe.unwrap())
    };
    assert!(differences(&Recipe::default(), &read(3).unwrap()).len() == 1);
    // A record from before a key existed has its default; a key that nobody knows is damage.
    let older = |json| serde_json::from_value::<Record>(serde_json::json!({ "recipe": json }));
    let rl = serde_json::json!({ "rl": { "steps": 7 } });
    assert_eq!(older(rl).unwrap().recipe.unwrap().rl, RlRecipe { steps: 7, ..Default::default() });
    assert!(older(serde_json::json!({ "rl": { "stepz": 7 } })).is_err());
    assert!(
        read(u64::MAX).is_err(),
        "TOML has no such number, and a comparison of recipes writes them as TOML"
    );
}

#[test]
fn a_written_recipe_loads_back_unchanged() {
    let recipe = recipe_of("rl.steps = 7\n", &["episode.instruction=a \"{question}\" b"]);
    let files = Recipes::new(&[("again.toml", &to_toml(&recipe))]);
    assert_eq!(files.load("again.toml", &[]).unwrap().recipe, recipe);
}

#[test]
fn a_recipe_overrides_what_it_extends_and_set_overrides_both() {
    let files = Recipes::new(&[
        ("base.toml", &format!("{RUNNABLE}rl.steps = 10\nrl.epochs = 2\nrun.seed = 1\n")),
        ("mid.toml", "extends = \"base.toml\"\nrl.steps = 20\nrun.seed = 2\n"),
        ("top.toml", "extends = \"mid.toml\"\nrun.seed = 3\n"),
    ]);
    let loaded = files.load("top.toml", &["run.seed=4", "run.seed=5"]).unwrap();
    assert_eq!(
        (loaded.recipe.rl.epochs, loaded.recipe.rl.steps, loaded.recipe.run.seed),
        (2, 20, 5)
    );
    assert_eq!(
        loaded.sources,
        [files.path("top.toml"), files.path("mid.toml"), files.path("base.toml")]
    );
    assert_eq!(loaded.run_name(), "top-seed5");
}

#[test]
fn of_several_recipes_extended_the_later_win_and_what_they_share_lies_below_both() {
    let files = Recipes::new(&[
        ("base.toml", &format!("{RUNNABLE}rl.steps = 10\nrl.epochs = 2\nrun.seed = 1\n")),
        ("left.toml", "extends = \"base.toml\"\nrl.steps = 20\nrl.epochs = 3\n"),
        ("right.toml", "extends = \"base.toml\"\nrl.epochs = 4\n"),
        ("top.toml", "extends = [\"left.toml\", \"right.toml\"]\nrun.seed = 3\n"),
    ]);
    let loaded = files.load("top.toml", &[]).unwrap();
    assert_eq!(
        (loaded.recipe.rl.steps, loaded.recipe.rl.epochs, loaded.recipe.run.seed),
        (20, 4, 3)
    );
    assert_eq!(
        loaded.sources,
        ["top.toml", "right.toml", "left.toml", "base.toml"].map(|name| files.path(name))
    );
}

#[test]
fn a_file_may_extend_a_built_in_recipe_by_its_bare_name() {
    let loaded = Recipes::new(&[("r.toml", &format!("extends = \"base\"\n{RUNNABLE}"))])
        .load("r.toml", &[])
        .unwrap();
    assert_eq!(loaded.sources[1], "built-in base");
}

#[test]
fn a_built_in_recipe_is_found_by_its_file_name_unless_a_file_of_that_name_lies_there() {
    let recipe = format!("extends = \"base.toml\"\n{RUNNABLE}");
    assert_eq!(
        Recipes::new(&[("r.toml", &recipe)]).load("r.toml", &[]).unwrap().sources[1],
        "built-in base"
    );
    let files = Recipes::new(&[("r.toml", &recipe), ("base.toml", "rl.steps = 3\n")]);
    assert_eq!(files.load("r.toml", &[]).unwrap().sources[1], files.path("base.toml"));
    // The tests run in the repository's root, where there is no tiny.toml.
    let loaded = load("tiny.toml", &[]).unwrap();
    assert_eq!((loaded.sources[0].as_str(), loaded.name.as_str()), ("built-in tiny", "tiny"));
}

#[test]
fn a_bad_extends_gets_a_hint_that_works() {
    for wrong in ["3", "[\"base\", 3]"] {
        let error = error_of(&format!("extends = {wrong}\n"), &[]);
        let expected = "expected the name of a recipe or a list of names, found integer";
        assert!(error.contains(expected) && error.contains("write extends = \"base\""), "{error}");
    }
    let error = error_of("extends = \"bases/mine.toml\"\n", &[]);
    assert!(
        error.contains("mine.toml") && error.contains("the folder of the recipe that extends"),
        "{error}"
    );
    let error = error_of("extends = \"configs/base.toml\"\n", &[]);
    assert!(error.contains("hint: the recipe is built in: extends = \"base\""), "{error}");
}

#[test]
fn a_byte_order_mark_is_skipped() {
    let files = Recipes::new(&[("r.toml", &format!("\u{feff}{RUNNABLE}rl.steps = 3\n"))]);
    assert_eq!(files.load("r.toml", &[]).unwrap().recipe.rl.steps, 3);
}

#[test]
fn the_default_name_of_a_run_is_one_that_the_rules_allow() {
    for file in ["my recipe.toml", ".hidden.toml", "größe (2).toml"] {
        let mut loaded = Recipes::new(&[(file, RUNNABLE)]).load(file, &[]).unwrap();
        loaded.recipe.run.name = loaded.run_name();
        assert!(
            check::check(&loaded.recipe).errors.iter().all(|problem| problem.key != "run.name"),
            "{}",
            loaded.recipe.run.name
        );
    }
}

#[test]
fn recipes_that_extend_each_other_are_an_error_that_shows_the_circle() {
    let files =
        Recipes::new(&[("a.toml", "extends = \"b.toml\""), ("b.toml", "extends = \"./a.toml\"")]);
    let error = files.load("a.toml", &[]).unwrap_err();
    assert!(matches!(&error, ConfigError::Cycle { chain } if chain.len() == 3), "{error}");
}

#[test]
fn a_partial_optimizer_table_keeps_the_other_defaults_of_its_phase() {
    let optim = recipe_of("optim.actor.lr = 0.5\noptim.distill.lr = 0.25\n", &[]).optim;
    assert_eq!(
        (optim.actor.lr, optim.actor.warmup, optim.actor.decay),
        (0.5, 0.285, Decay::Constant)
    );
    assert_eq!(
        (optim.distill.lr, optim.distill.warmup, optim.distill.decay),
        (0.25, 0.0, Decay::Cosine)
    );
}

#[test]
fn set_takes_toml_values_and_bare_text() {
    let overrides = [
        "kl.mode=none",
        "data.test=[\"x\", \"y\"]",
        "run.name=17",
        "rl.clip_ratio=1",
        "stage = \"rl\"",
        "gae={lambda=0.5}",
    ];
    let recipe = recipe_of("", &overrides);
    assert_eq!((recipe.kl.mode, recipe.stage, recipe.gae.lambda), (KlMode::None, Stage::Rl, 0.5));
    assert_eq!(
        (recipe.data.test, recipe.run.name.as_str(), recipe.rl.clip_ratio),
        (vec!["x".into(), "y".into()], "17", 1.0)
    );
}

#[test]
fn an_unknown_key_is_shown_with_file_line_and_the_key_it_resembles() {
    let error = error_of("[rl]\nstepz = 4\n", &[]);
    assert!(error.contains("r.toml:3: unknown key rl.stepz"), "{error}");
    assert!(error.contains("3 | stepz = 4") && error.contains("did you mean rl.steps?"), "{error}");
}

#[test]
fn a_key_in_the_wrong_table_is_pointed_to_the_right_one() {
    let error = error_of("[rl]\nwhiten = true\n", &[]);
    assert!(error.contains("did you mean gae.whiten?"), "{error}");
}

#[test]
fn an_unknown_key_on_the_command_line_is_an_error_too() {
    let error = error_of("", &["rl.step=4"]);
    assert!(
        error.starts_with("--set rl.step=4: unknown key rl.step") && error.contains("rl.steps"),
        "{error}"
    );
}

#[test]
fn an_unknown_key_in_the_extended_file_names_that_file() {
    let files =
        Recipes::new(&[("base.toml", "\nx = 1\n"), ("r.toml", "extends = \"base.toml\"\n")]);
    let error = files.load("r.toml", &[]).unwrap_err().to_string();
    assert!(error.contains("base.toml:2: unknown key x"), "{error}");
}

#[test]
fn a_value_where_a_table_belongs_says_so() {
    let error = error_of("rl = 3\n", &[]);
    assert!(error.contains("rl is a table: [rl]"), "{error}");
}

#[test]
fn a_wrong_type_is_shown_with_its_line_and_an_example() {
    let error = error_of("[rl]\nsteps = 10\nmini_batch = \"big\"\n", &[]);
    assert!(error.contains("r.toml:4: rl.mini_batch") && error.contains("such as 256"), "{error}");
    let error = error_of("", &["data.trajectories=one.jsonl"]);
    assert!(error.contains("data.trajectories") && error.contains("a list such as"), "{error}");
    assert!(error_of("rl.steps = -1\n", &[]).contains("rl.steps"));
}

#[test]
fn a_misspelt_choice_gets_the_nearest_one() {
    let error = error_of("kl.mode = \"selectiv\"\n", &[]);
    assert!(error.contains("did you mean \"selective\"?"), "{error}");
}

#[test]
fn broken_toml_is_shown_with_its_line() {
    let error = error_of("[rl]\nsteps = = 3\n", &[]);
    assert!(error.contains("r.toml:3: not TOML"), "{error}");
}

#[test]
fn a_broken_override_says_how_to_write_one() {
    assert!(error_of("", &["rl.steps"]).contains("there is no `=`"));
    assert!(error_of("", &["data.test=[\"x\""]).starts_with("--set data.test"));
}

#[test]
fn a_missing_file_and_an_unknown_name_are_told_apart() {
    let error = load("no/such/base.toml", &[]).unwrap_err().to_string();
    assert!(error.contains("no/such/base.toml") && error.contains("--config base"), "{error}");
    let error = load("bose", &[]).unwrap_err().to_string();
    assert!(error.contains("did you mean base?"), "{error}");
}

#[test]
fn differences_name_the_changed_keys_alone() {
    let mut changed = Recipe::default();
    changed.rl.steps = 3;
    changed.kl.mode = KlMode::None;
    let keys: Vec<String> =
        differences(&Recipe::default(), &changed).into_iter().map(|(key, ..)| key).collect();
    assert_eq!(keys, ["kl.mode", "rl.steps"]);
}
