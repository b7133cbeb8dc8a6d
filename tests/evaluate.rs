//! `dgpo eval` with intervals and capabilities, `dgpo runs compare`, and all seven real question
//! files through both.
use crate::support::{ANSWER, Ended, World, repository};
use dgpo_core::{
    env::search::{Passage, Retriever},
    question::Question,
    rollout::{ObservationKind, Segment, Status},
};
use dgpo_run::{
    data::{
        corpus::Corpus,
        questions::{read_questions, write_questions},
    },
    episodes::read_episodes,
    retriever::bm25::Bm25Retriever,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path, sync::Arc};

/// `dgpo eval` of the talker on the world's questions.
fn evaluate(world: &World, out: &str, more: &[&str]) -> Ended {
    let arguments = ["eval", "--config", "rl.toml", "--data", "questions.jsonl", "--out", out];
    world.dgpo(&[&arguments[..], more].concat()).done()
}

fn value(found: &Value) -> f64 {
    found.as_f64().unwrap_or_else(|| panic!("no number: {found}"))
}

/// Share of questions whose own wording makes BM25 find a gold answer in the first three passages.
fn hit_ratio_of_questions(passages: Vec<Passage>, questions: &[Question]) -> f64 {
    let retriever = Bm25Retriever::new(Arc::new(Corpus::from_passages(passages))).unwrap();
    let queries: Vec<String> = questions.iter().map(|question| question.question.clone()).collect();
    let holds = |passage: &Passage, question: &Question| {
        question.golden_answers.iter().any(|gold| passage.contents.contains(gold))
    };
    let found = retriever.search(&queries, 3);
    let hits = found.iter().zip(questions).filter(|(found, question)| {
        found.as_ref().unwrap().iter().any(|hit| holds(&hit.passage, question))
    });
    hits.count() as f64 / questions.len() as f64
}

fn by_dataset(questions: Vec<Question>) -> BTreeMap<String, Vec<Question>> {
    let mut by_name: BTreeMap<String, Vec<Question>> = BTreeMap::new();
    for question in questions {
        by_name.entry(question.dataset.clone()).or_default().push(question);
    }
    by_name
}

#[test]
fn the_talker_answers_where_the_answer_is_forced() {
    let world = World::new();
    let scores: Value =
        serde_json::from_str(&evaluate(&world, "e.jsonl", &["--arcap", "--json"]).stdout).unwrap();
    let corpus = std::fs::read_to_string(world.path("corpus.jsonl")).unwrap();
    let passages: Vec<Passage> =
        corpus.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let questions = by_dataset(read_questions(&world.path("questions.jsonl")).unwrap());
    assert_eq!(questions.keys().collect::<Vec<_>>(), ["tiny-1hop", "tiny-2hop"]);
    for (dataset, questions) in questions {
        let row = &scores["arcap"]["datasets"][&dataset];
        assert_eq!(
            (&row["n_questions"], &row["n_annotated"]),
            (&questions.len().into(), &questions.len().into())
        );
        // Behind `<answer>` the talker is made to write the word that is gold for every question,
        // and then `</answer>`.
        assert_eq!(row["without_thinking"]["em"], json!({ "value": 1.0, "low": 1.0, "high": 1.0 }));
        let expected = hit_ratio_of_questions(passages.clone(), &questions);
        assert!(
            (value(&row["query_rewriting"]["question_hit_ratio"]["value"]) - expected).abs()
                < 1e-12,
            "{row:#}"
        );
        let ordinary = &scores["datasets"][&dataset];
        assert_eq!(
            (&row["thinking"]["hit_ratio"]["value"], &row["thinking"]["searches"]["value"]),
            (&ordinary["hit_ratio"], &ordinary["searches"])
        );
    }
    for episode in read_episodes(&world.path("e-arcap-without-thinking.jsonl")).unwrap() {
        assert_eq!(
            (&episode.status, episode.prediction.as_deref()),
            (&Status::Answered, Some(ANSWER))
        );
        assert!(
            matches!(&episode.segments[2], Segment::Observation { kind: ObservationKind::ForcedPrefix, ids } if ids.len() == 1)
        );
    }
}

#[test]
fn an_evaluation_is_the_same_every_time() {
    let world = World::new();
    let first = evaluate(&world, "a.jsonl", &["--arcap", "--json"]).stdout;
    assert_eq!(evaluate(&world, "b.jsonl", &["--arcap", "--json"]).stdout, first);
    for ending in [".jsonl", ".toml", "-arcap-with-thinking.jsonl", "-arcap-without-thinking.jsonl"]
    {
        let read = |stem: &str| std::fs::read(world.path(&format!("{stem}{ending}"))).unwrap();
        assert_eq!(read("a"), read("b"), "{ending}");
    }
}

#[test]
fn every_figure_of_a_data_set_lies_in_its_interval() {
    let world = World::new();
    let scores: Value = serde_json::from_str(
        &evaluate(&world, "e.jsonl", &["--set", "eval.temperature=1", "--json"]).stdout,
    )
    .unwrap();
    let within =
        |interval: &Value, x: f64| value(&interval["low"]) <= x && x <= value(&interval["high"]);
    for (dataset, metrics) in scores["intervals"]["datasets"].as_object().unwrap() {
        assert_eq!(metrics.as_object().unwrap().len(), 7);
        for (metric, interval) in metrics.as_object().unwrap() {
            assert!(
                within(interval, value(&scores["datasets"][dataset][metric])),
                "{dataset} {metric} {interval}"
            );
        }
    }
    assert!(within(&scores["intervals"]["average"]["em"], value(&scores["average_em"])));
    assert!(
        value(&scores["intervals"]["average"]["em"]["low"])
            < value(&scores["intervals"]["average"]["em"]["high"])
    );
}

#[test]
fn episodes_go_to_a_new_file_that_is_named() {
    let world = World::new();
    let arguments = ["eval", "--config", "rl.toml", "--data", "questions.jsonl", "--limit", "2"];
    for file in ["evaluations/talker.jsonl", "evaluations/talker-2.jsonl"] {
        let ended = world.dgpo(&arguments).done();
        assert!(ended.stderr.contains(&format!("episodes: {file}")), "{}", ended.stderr);
        assert!(
            ended.stdout.contains("unweighted mean of EM over") && ended.stdout.contains('['),
            "{}",
            ended.stdout
        );
        assert_eq!(read_episodes(&world.path(file)).unwrap().len(), 2);
    }
}

#[test]
fn golds_that_normalise_to_nothing_are_right_for_nobody_and_said_once() {
    let world = World::new();
    world.write(
        "golds.jsonl",
        "{\"id\": \"1\", \"question\": \"where?\", \"golden_answers\": [\"The The\", \"!!!\"]}\n",
    );
    let ended =
        world.dgpo(&["eval", "--config", "rl.toml", "--data", "golds.jsonl", "--json"]).done();
    let figures: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&figures["em"], &figures["substring_em"]), (&0.0.into(), &0.0.into()), "{figures}");
    // The file is looked at before it is read.
    assert_eq!(
        ended.stderr.matches("2 gold answers of 1 questions are nothing but articles").count(),
        1,
        "{}",
        ended.stderr
    );
}

#[test]
fn no_question_is_counted_twice() {
    let world = World::new();
    let recipe = [
        "train",
        "--config",
        "rl.toml",
        "--set",
        "data.test=[\"questions.jsonl\", \"questions.jsonl\"]",
    ];
    world.dgpo(&recipe).failed(2, &["data.test", "names questions.jsonl twice"]);
    assert!(!world.path("runs").exists(), "found out before anything is written");
    // By another name it is found out by its questions.
    let ended = world.dgpo(&[
        "eval",
        "--config",
        "rl.toml",
        "--data",
        "questions.jsonl",
        "--data",
        "./questions.jsonl",
    ]);
    ended.failed(
        2,
        &[
            "is asked twice, by questions.jsonl and by ./questions.jsonl",
            "hint: name every test file once",
        ],
    );
    assert!(!world.path("evaluations").exists(), "nothing was played");
}

#[test]
fn data_sets_without_gold_passages_are_said_to_be_left_out() {
    let world = World::new();
    let line = |id: usize| {
        json!({ "id": id.to_string(), "question": "who?", "golden_answers": ["x"] }).to_string()
            + "\n"
    };
    world.write("plain.jsonl", &(0..3).map(line).collect::<String>());
    let told =
        evaluate(&world, "e.jsonl", &["--data", "plain.jsonl", "--limit", "3", "--arcap"]).stdout;
    assert!(
        told.contains(
            "left out of source referencing, because no question has annotated gold passages: \
             plain"
        ),
        "{told}"
    );
    let row = told
        .lines()
        .rev()
        .find(|line| line.starts_with("| plain "))
        .expect("a row of capabilities");
    let cells: Vec<&str> = row.split('|').map(str::trim).collect();
    assert_eq!(cells[2..7], ["0", "-", "-", "-", "-"]);
}

#[test]
fn two_evaluations_are_compared_question_by_question() {
    let world = World::new();
    let scores = |out: &str, more: &[&str]| -> Value {
        serde_json::from_str(
            &evaluate(
                &world,
                out,
                &[&["--json", "--set", "eval.temperature=1"][..], more].concat(),
            )
            .stdout,
        )
        .unwrap()
    };
    let (left, right) = (scores("a.jsonl", &[]), scores("b.jsonl", &["--set", "run.seed=1"]));
    let compared = world.dgpo(&["runs", "compare", "a.jsonl", "b.jsonl", "--all", "--json"]).json();
    assert_eq!(compared["recipe"], json!([{ "key": "run.seed", "left": 0, "right": 1 }]));
    let found = &compared["models"]["episodes"];
    assert_eq!((&found["n_paired"], &found["n_only_left"]), (&40.into(), &0.into()));
    for metric in ["em", "searches", "response_tokens", "hit_ratio"] {
        for dataset in ["tiny-1hop", "tiny-2hop"] {
            let difference = value(&right["datasets"][dataset][metric])
                - value(&left["datasets"][dataset][metric]);
            assert!(
                (value(&found["datasets"][dataset][metric]["difference"]) - difference).abs()
                    < 1e-9,
                "{dataset} {metric}"
            );
        }
    }
    let difference = value(&right["average_em"]) - value(&left["average_em"]);
    assert!((value(&found["average"]["em"]["difference"]) - difference).abs() < 1e-9);
    // Right answers won minus right answers lost: 40 times the difference of the shares over all
    // questions.
    let (gained, lost) = (found["gained"].as_array().unwrap(), found["lost"].as_array().unwrap());
    let won = 40.0 * (value(&right["em"]) - value(&left["em"]));
    assert!(
        (gained.len() as f64 - lost.len() as f64 - won).abs() < 1e-9
            && gained.len() + lost.len() > 0,
        "{found:#}"
    );
    assert!(gained.iter().all(|changed| changed["right"]["prediction"] == ANSWER
        && changed["left"]["prediction"] != ANSWER));

    let text = world.dgpo(&["runs", "compare", "a.jsonl", "b.jsonl"]).done().stdout;
    let parts = [
        "| run.seed |    0 |     1 |",
        "| mean over data sets: em ",
        "| tiny-2hop: response_tokens ",
        "gained (right alone answers): ",
    ];
    for part in parts {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    let alike = world.dgpo(&["runs", "compare", "a.jsonl", "a.jsonl"]).done().stdout;
    assert!(
        alike.contains("40 questions that both played, 40 of them token by token alike"),
        "{alike}"
    );
}

#[test]
fn a_run_with_capabilities_is_compared_with_another_seed() {
    let world = World::new();
    let settings = [
        "data.test=[\"questions.jsonl\"]",
        "data.max_test=6",
        "retriever.kind=bm25",
        "distill.steps=1",
        "distill.batch=8",
    ];
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", *setting]).collect();
    for (name, seed, arcap) in
        [("a", "run.seed=0", "eval.arcap=false"), ("b", "run.seed=1", "eval.arcap=true")]
    {
        let arguments =
            ["train", "--config", "kd.toml", "--name", name, "--set", seed, "--set", arcap];
        world.dgpo(&[&arguments[..], &settings].concat()).done();
    }
    // An evaluation without capabilities is not enough for a recipe that now asks for them.
    let recipe = std::fs::read_to_string(world.path("runs/a/recipe.toml")).unwrap();
    world.write("runs/a/recipe.toml", &recipe.replace("arcap = false", "arcap = true"));
    world.dgpo(&["train", "--resume", "runs/a"]).done();
    let summary: Value =
        serde_json::from_slice(&std::fs::read(world.path("runs/a/summary.json")).unwrap()).unwrap();
    for model in ["student", "teacher", "kd"] {
        let rows = summary[model]["arcap"]["datasets"].as_object().unwrap();
        assert_eq!(
            rows.values().map(|row| row["n_annotated"].as_u64().unwrap()).sum::<u64>(),
            6,
            "{model}"
        );
        assert!(
            rows.values().all(|row| row["without_thinking"]["em"]["value"].is_f64()),
            "{model}"
        );
        let played = read_episodes(
            &world.path(&format!("runs/a/episodes/eval-{model}-arcap-without-thinking.jsonl")),
        )
        .unwrap();
        assert_eq!(played.len(), 6);
    }
    let compared = world.dgpo(&["runs", "compare", "a", "runs/b", "--json"]).json();
    let keys: Vec<&str> = compared["recipe"]
        .as_array()
        .unwrap()
        .iter()
        .map(|setting| setting["key"].as_str().unwrap())
        .collect();
    assert_eq!(keys, ["run.name", "run.seed"]);
    assert_eq!(
        compared["models"].as_object().unwrap().keys().collect::<Vec<_>>(),
        ["kd", "student", "teacher"]
    );
    assert_eq!(compared["models"]["kd"]["n_paired"], 6);
    let file =
        world.dgpo(&["runs", "compare", "a", "runs/b/episodes/eval-kd.jsonl", "--json"]).json();
    assert_eq!(
        (&file["models"]["kd"], &file["recipe"]),
        (&compared["models"]["kd"], &compared["recipe"])
    );
    world
        .dgpo(&["runs", "compare", "a", "b", "--model", "rl"])
        .failed(2, &["runs/a has no evaluation of rl", "student, teacher, kd"]);
    world.dgpo(&["runs", "compare", "a", "nowhere"]).failed(2, &["there is no run nowhere"]);
    world
        .dgpo(&["runs", "compare", "a", "nowhere.jsonl"])
        .failed(2, &["there is no file nowhere.jsonl", "dgpo eval"]);
    world.write("bad.jsonl", "{}\n");
    world
        .dgpo(&["runs", "compare", "bad.jsonl", "runs/a/episodes/eval-kd.jsonl"])
        .failed(1, &["bad.jsonl:1: not an episode record"]);
}

/// The paper's seven test sets.
const SEVEN: [&str; 7] =
    ["nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle"];

/// `dgpo eval` of a small network with random weights and Qwen2.5's tokenizer over BM25 on
/// `corpus.jsonl`.
fn evaluate_real(world: &World, data: &Path, more: &[&str]) -> Value {
    let recipe = repository("configs/real-smoke.toml");
    let shape =
        std::fs::read_to_string(repository("configs/real-smoke/student/config.json")).unwrap();
    world.write("student/config.json", &shape);
    let mut command = world.command(&[
        "eval",
        "--json",
        "--config",
        recipe.to_str().unwrap(),
        "--model",
        "random:student",
    ]);
    let settings =
        ["data.corpus=\"corpus.jsonl\"", "retriever.kind=\"bm25\"", "episode.max_turns=1"];
    command
        .args(settings.iter().flat_map(|setting| ["--set", *setting]))
        .args(more)
        .env("DGPO_DATA_DIR", data);
    Ended::of(&mut command).json()
}

#[test]
fn all_seven_real_question_files_are_evaluated() {
    let Some(folder) = dgpo_core::testing::test_data("") else { return };
    let world = World::new();
    let files = SEVEN.map(|name| folder.join(format!("questions/{name}.jsonl.gz")));
    let arguments: Vec<&str> = files
        .iter()
        .flat_map(|file| ["--data", file.to_str().unwrap()])
        .chain(["--limit", "2"])
        .collect();
    let scores = evaluate_real(&world, &folder, &arguments);
    assert_eq!(scores["n_episodes"], 14);
    for name in SEVEN {
        assert_eq!(
            (
                &scores["datasets"][name]["n_episodes"],
                &scores["datasets"][name]["retriever_failed"]
            ),
            (&2.into(), &0.0.into()),
            "{name}"
        );
    }
}

#[test]
fn capabilities_of_all_seven_data_sets_are_measured_where_they_are_annotated() {
    let Some(folder) = dgpo_core::testing::test_data("") else { return };
    let world = World::new();
    let (mut files, mut passages, mut asked) = (Vec::new(), Vec::new(), BTreeMap::new());
    for name in SEVEN {
        // Annotated questions first, then those with a guessed passage.
        let mut questions =
            read_questions(&folder.join(format!("questions/{name}.jsonl.gz"))).unwrap();
        questions.retain(|question| !question.supporting.is_empty());
        questions.sort_by_key(|question| question.supporting_kind != "annotated");
        questions.truncate(3);
        let gold = questions.iter().flat_map(|question| &question.supporting);
        passages.extend(gold.map(|gold| Passage {
            id: String::new(),
            contents: format!("\"{}\"\n{}", gold.title, gold.text),
        }));
        let file = world.path(&format!("{name}.jsonl"));
        write_questions(&file, &questions).unwrap();
        files.push(file);
        asked.insert(name, questions);
    }
    for (number, passage) in passages.iter_mut().enumerate() {
        passage.id = number.to_string();
    }
    let lines: Vec<String> =
        passages.iter().map(|passage| serde_json::to_string(passage).unwrap() + "\n").collect();
    world.write("corpus.jsonl", &lines.concat());
    let arguments: Vec<&str> = files
        .iter()
        .flat_map(|file| ["--data", file.to_str().unwrap()])
        .chain(["--arcap", "--limit", "3"])
        .collect();
    let scores = evaluate_real(&world, &folder, &arguments);
    for name in SEVEN {
        let (row, questions) = (&scores["arcap"]["datasets"][name], &asked[name]);
        let n_annotated =
            if ["popqa", "hotpotqa", "2wikimultihopqa", "musique"].contains(&name) { 3 } else { 0 };
        assert_eq!(
            (&row["n_questions"], &row["n_annotated"]),
            (&3.into(), &n_annotated.into()),
            "{name}"
        );
        assert_eq!(row["with_thinking"].is_null(), n_annotated == 0, "{name}");
        let expected = hit_ratio_of_questions(passages.clone(), questions);
        assert!(
            (value(&row["query_rewriting"]["question_hit_ratio"]["value"]) - expected).abs()
                < 1e-12,
            "{name} {expected} {row:#}"
        );
    }
    let ratio = |name: &str| {
        value(&scores["arcap"]["datasets"][name]["query_rewriting"]["question_hit_ratio"]["value"])
    };
    assert!(SEVEN.iter().any(|name| ratio(name) > 0.0), "no question finds its own passages");
}
