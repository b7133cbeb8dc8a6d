use super::*;
use crate::config::load::load_part;

/// The recipe of a user who has nothing yet.
fn paper() -> Recipe {
    load_part(
        "paper/qwen2.5-3b-0.5b",
        &["model.student=nobody/student".into(), "model.teacher=nobody/teacher".into()],
    )
    .unwrap()
    .recipe
}

fn told(work: PlannedWork<'_>, recipe: &Recipe) -> Vec<String> {
    missing(work, recipe, DeviceChoice::Cpu).iter().map(ToString::to_string).collect()
}

#[test]
fn everything_that_is_missing_is_told_at_once_each_with_its_command() {
    let mut recipe = paper();
    recipe.retriever.encoder = "nobody/encoder".into();
    for name in recipe.data.train.iter_mut().chain(&mut recipe.data.test) {
        *name = name.replace("RUC-NLPIR/FlashRAG_datasets", "nobody/data");
    }
    (recipe.data.corpus, recipe.retriever.index) =
        ("${DGPO_TEST_UNSET}/wiki-18.jsonl".into(), "${DGPO_TEST_UNSET}/index".into());
    let told = told(PlannedWork::Train(None), &recipe).join("\n");
    for part in [
        "export DGPO_TEST_UNSET=\"$HOME/dgpo_test_unset\"",
        "hf download nobody/student\n",
        "hf download nobody/teacher\n",
        "hf download nobody/encoder\n",
        "looked at nobody/student, ",
        "nq/train.jsonl",
        "hotpotqa/train.jsonl",
        "bamboogle/test.jsonl",
        "--local-dir \"${DGPO_TEST_UNSET}\" && gunzip \"${DGPO_TEST_UNSET}/wiki-18.jsonl.gz\"",
        "index build --out \"${DGPO_TEST_UNSET}/index\" --corpus \
         \"${DGPO_TEST_UNSET}/wiki-18.jsonl\"",
    ] {
        assert!(told.contains(part), "no {part:?} in\n{told}");
    }
    // Two models, an encoder, nine question files, a variable, the corpus, the index.
    assert!(told.matches("; hint: ").count() >= 15, "{told}");
}

#[test]
fn the_built_in_world_lacks_nothing() {
    for name in ["tiny", "tiny/gkd", "tiny/distillm", "tiny/ppo", "smoke"] {
        let recipe = load_part(name, &[]).unwrap().recipe;
        // The shapes of the smoke recipe lie in the repository.
        if name != "smoke" {
            assert_eq!(told(PlannedWork::Train(None), &recipe), Vec::<String>::new(), "{name}");
        }
    }
}

#[test]
fn a_teacher_that_takes_no_part_is_not_looked_for() {
    let recipe = |settings: &[&str]| {
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        load_part("tiny", &[&settings[..], &["model.teacher=nobody/teacher".to_owned()]].concat())
            .unwrap()
            .recipe
    };
    let is_told = |work, recipe: &Recipe| {
        told(work, recipe).iter().any(|problem| problem.contains("nobody/teacher"))
    };
    assert!(is_told(PlannedWork::Train(None), &recipe(&[])));
    assert!(is_told(PlannedWork::Demos, &recipe(&[])));
    let alone = recipe(&["stage=rl", "kl.mode=none", "data.test=[]"]);
    assert!(!is_told(PlannedWork::Train(None), &alone));
    assert!(is_told(
        PlannedWork::Train(None),
        &recipe(&["stage=rl", "kl.mode=none", "data.test=[]", "eval.every=5"])
    ));
    for work in
        [PlannedWork::Evaluate, PlannedWork::Ask, PlannedWork::Index(Path::new("indexes/x"))]
    {
        assert_eq!(told(work, &recipe(&[])), Vec::<String>::new());
    }
}

#[test]
fn an_episode_longer_than_the_models_positions_and_an_unfit_tokenizer_are_told() {
    let settings =
        ["episode.max_prompt_length=100000", "model.chat_template=llama3"].map(str::to_owned);
    let recipe = load_part("tiny", &settings).unwrap().recipe;
    let told = told(PlannedWork::Ask, &recipe).join("\n");
    assert!(told.contains("max_position_embeddings") && told.contains("chat template"), "{told}");
}

#[test]
fn a_run_that_goes_on_needs_what_is_left_to_do() {
    let root = tempfile::tempdir().unwrap();
    let mut recipe = load_part("tiny", &[]).unwrap().recipe;
    recipe.data.trajectories = vec!["gone.jsonl".into()];
    let run = RunDir::create(root.path(), "a", &recipe, &serde_json::json!({})).unwrap();
    let is_told = || {
        told(PlannedWork::Train(Some(&run)), &recipe)
            .iter()
            .any(|problem| problem.contains("gone.jsonl"))
    };
    assert!(is_told());
    checkpoint::save(run.path(), Phase::Rl, 1, 0, |_| Ok(())).unwrap();
    assert!(!is_told(), "KD is done, and its episodes are not read again");
}
