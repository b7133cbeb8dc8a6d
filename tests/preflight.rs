//! Everything a command will read is looked at before it starts, and all that is missing is told at
//! once.
use crate::support::{Ended, World};
use serde_json::Value;
use std::{
    io::{Read, Write},
    net::TcpListener,
};

/// The main recipe of the paper on a machine that has nothing of it.
fn paper(world: &World, command: &[&str]) -> Ended {
    let mut started =
        world.command(&[command, &["--config", "paper/qwen2.5-3b-0.5b/dgpo"]].concat());
    let nowhere = world.path("no-cache");
    Ended::of(started.env("HF_HUB_CACHE", nowhere).env_remove("DGPO_DATA_DIR"))
}

/// What is told of each of the recipe's inputs.
const PAPER: [&str; 18] = [
    "export DGPO_DATA_DIR=",
    "hf download Qwen/Qwen2.5-0.5B-Instruct\n",
    "hf download omron-sinicx/SearchR1-ppo-qwen2.5-3b-instruct\n",
    "hf download intfloat/e5-base-v2\n",
    "hf download RUC-NLPIR/FlashRAG_datasets nq/train.jsonl --repo-type dataset\n",
    "hf download RUC-NLPIR/FlashRAG_datasets hotpotqa/train.jsonl --repo-type dataset\n",
    "nq/test.jsonl",
    "triviaqa/test.jsonl",
    "popqa/test.jsonl",
    "hotpotqa/dev.jsonl",
    "2wikimultihopqa/dev.jsonl",
    "musique/dev.jsonl",
    "bamboogle/test.jsonl",
    "hf download PeterJinGo/wiki-18-corpus wiki-18.jsonl.gz --repo-type dataset --local-dir \
     \"${DGPO_DATA_DIR}\"",
    "gunzip \"${DGPO_DATA_DIR}/wiki-18.jsonl.gz\"\n",
    "cargo xtask index build --out \"${DGPO_DATA_DIR}/wiki18-e5\" --corpus \
     \"${DGPO_DATA_DIR}/wiki-18.jsonl\" --encoder intfloat/e5-base-v2",
    "nothing was started",
    "pip install -U huggingface_hub",
];

#[test]
fn the_papers_run_says_once_what_it_lacks_and_leaves_nothing() {
    let world = World::new();
    paper(&world, &["train", "--name", "mine"]).failed(2, &PAPER);
    assert!(!world.path("runs").exists(), "the name stays free");
    for command in [&["plan"][..], &["doctor"], &["train", "--dry-run"]] {
        let ended = paper(&world, command);
        assert_eq!(ended.code, Some(2), "{command:?}: {}", ended.stderr);
        for part in PAPER {
            assert!(ended.stderr.contains(part), "{command:?}: no {part:?} in\n{}", ended.stderr);
        }
    }
}

#[test]
fn eval_and_index_build_say_what_they_lack_and_no_more() {
    let world = World::new();
    let played = paper(&world, &["eval"])
        .failed(2, &["hf download Qwen/Qwen2.5-0.5B-Instruct\n", "bamboogle/test.jsonl"]);
    for part in ["train.jsonl", "omron-sinicx"] {
        assert!(!played.stderr.contains(part), "{part} is not used:\n{}", played.stderr);
    }
    let built = paper(&world, &["index", "build", "--out", "indexes/x"])
        .failed(2, &["intfloat/e5-base-v2", "wiki-18.jsonl.gz"]);
    assert!(!built.stderr.contains("Qwen"), "{}", built.stderr);
    assert!(!world.path("indexes").exists());
}

#[test]
fn the_plan_of_the_paper_needs_no_download_and_begins_with_the_bill() {
    let planned = paper(&World::new(), &["plan"]);
    let at = |text: &str| {
        planned.stdout.find(text).unwrap_or_else(|| panic!("no {text:?} in\n{}", planned.stdout))
    };
    assert!(at("rl: 1,000 steps") < at("memory of rl") && at("memory of rl") < at("disk space"));
    // 494,032,768 parameters in f32 with gradients and moments, and the teacher's 3,085,938,688 in
    // bf16.
    assert!(
        planned.stdout.contains("student: Adam moments (f32)")
            && planned.stdout.contains("6.17 GB  teacher: parameters (bf16)")
    );
    assert!(!planned.stdout.contains("unknown"), "{}", planned.stdout);
    let recipe = paper(&World::new(), &["plan", "--recipe"]).done().stdout;
    assert!(
        recipe.starts_with("stage = \"pipeline\"") && !recipe.contains("memory of"),
        "{recipe}"
    );
}

#[test]
fn doctor_looks_at_a_recipe_where_one_is_named() {
    let world = World::new();
    let found = world.dgpo(&["doctor", "--config", "rl.toml", "--json"]).json();
    let checks = found["checks"].as_array().unwrap();
    assert!(
        checks.iter().any(|check| check["name"] == "recipe" && check["status"] == "ok"),
        "{found:#}"
    );
    let missing = world.dgpo(&[
        "doctor",
        "--config",
        "rl.toml",
        "--set",
        "data.train=[\"none.jsonl\"]",
        "--json",
    ]);
    assert_eq!(missing.code, Some(2), "{}", missing.stderr);
    let found: Value = serde_json::from_str(&missing.stdout).unwrap();
    let failed = found["checks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|check| check["status"] == "failed")
        .unwrap();
    assert_eq!(failed["name"], "data.train");
    assert!(failed["found"].as_str().unwrap().contains("none.jsonl"), "{failed}");
}

#[test]
fn a_bad_line_far_after_the_first_records_is_found_before_the_start() {
    let world = World::new();
    let good = std::fs::read_to_string(world.path("questions.jsonl")).unwrap();
    let many: String = std::iter::repeat_n(good.as_str(), 600).collect();
    world.write("questions.jsonl", &format!("{many}not json\n"));
    let train = ["train", "--config", "rl.toml", "--name", "new"];
    world.dgpo(&train).failed(2, &["questions.jsonl:24001: ", "nothing was started"]);
    assert!(!world.path("runs/new").exists());
    world.write("questions.jsonl", &good);
    world.dgpo(&["train", "--config", "rl.toml", "--name", "new", "--set", "rl.steps=1"]).done();
}

#[test]
fn a_run_whose_server_refuses_its_first_queries_leaves_nothing() {
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("retriever.url=http://{}/retrieve", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).unwrap() > 0);
            let answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let remote = ["--set", "retriever.kind=remote", "--set", &url];
    let train = ["train", "--config", "smoke", "--name", "new"];
    let failed = world.dgpo(&[&train[..], &remote].concat());
    let failed = failed.failed(1, &["status 404", "before it did anything"]);
    assert!(!failed.stderr.contains("--resume"), "{}", failed.stderr);
    assert!(!world.path("runs/new").exists());
}

#[test]
fn a_model_with_cut_weights_is_looked_at_to_the_end() {
    let world = World::new();
    let weights = world.copy_of_talker("cut").join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    let settings = ["model.student=cut", "episode.max_prompt_length=2000"];
    let settings = settings.map(|setting| ["--set", setting]).concat();
    let arguments = [&["train", "--config", "rl.toml"][..], &settings].concat();
    let told = ["3 things are missing", "cut/model.safetensors", "was made for 1024 positions"];
    world.dgpo(&arguments).failed(2, &told);
}

#[test]
fn the_address_that_a_variable_holds_is_looked_at() {
    let world = World::new();
    for (value, told) in [
        ("nonsense", "the address of a /retrieve server"),
        ("ftp://host/", "the address of a /retrieve server"),
        ("http://", "name the server's host"),
        ("", "is not set or empty"),
        ("ann:s3cr3t@host/", "***@host/"),
    ] {
        let settings = ["--set", "retriever.kind=remote", "--set", "retriever.url=${RU}"];
        let arguments = [&["train", "--config", "rl.toml"][..], &settings].concat();
        let ended = Ended::of(world.command(&arguments).env("RU", value));
        let ended = ended.failed(2, &["retriever.url", told, "nothing was started"]);
        assert!(!ended.stderr.contains("s3cr3t"), "{}", ended.stderr);
    }
    assert!(!world.path("runs").exists());
}

/// What playing takes and no more: no training questions, no teacher, no test questions.
const PLAY: &str = r#"
extends = "base"
model = { student = "talker", teacher = "", dtype = "f32" }
data = { corpus = "corpus.jsonl" }
retriever = { kind = "bm25" }
episode = { instruction = "{question}", max_start_length = 128, max_response_length = 32, max_obs_length = 64, max_prompt_length = 512 }
"#;

#[test]
fn ask_and_eval_need_a_model_and_passages_alone() {
    let world = World::new();
    world.write("play.toml", PLAY);
    let asked = world.dgpo(&["ask", "Who wrote it?", "--config", "play.toml", "--json"]).json();
    assert!(asked["texts"][0].as_str().unwrap().contains("Who wrote it?"));
    let arguments = ["eval", "--config", "play.toml", "--limit", "3", "--json"];
    let scores = world.dgpo(&[&arguments[..], &["--data", "questions.jsonl"]].concat()).json();
    assert_eq!(scores["n_episodes"], 3);
    world.dgpo(&arguments).failed(2, &["data.test is empty", "--data FILE"]);
    // What is used has to be right.
    let wrong = ["ask", "Who?", "--config", "play.toml", "--set"];
    world
        .dgpo(&[&wrong[..], &["retriever.kind=bm52"]].concat())
        .failed(2, &["retriever.kind", "did you mean \"bm25\"?"]);
    world
        .dgpo(&[&wrong[..], &["model.student="]].concat())
        .failed(2, &["model.student", "is empty"]);
}

/// The example in a command's help text, as words.
fn example(world: &World, command: &str) -> Vec<String> {
    let help = world.dgpo(&[command, "--help"]).done().stdout;
    let line = help
        .lines()
        .find_map(|line| line.trim().strip_prefix(&format!("Example: dgpo {command} ")))
        .expect("an example");
    let mut words = Vec::new();
    for (at, part) in line.split('"').enumerate() {
        match at % 2 {
            1 => words.push(part.to_owned()),
            _ => words.extend(part.split_whitespace().map(str::to_owned)),
        }
    }
    words
}

#[test]
fn the_example_of_ask_is_answered_and_a_question_about_the_world_outside_is_warned_about() {
    let world = World::new();
    let example = example(&world, "ask");
    let words: Vec<&str> =
        std::iter::once("ask").chain(example.iter().map(String::as_str)).collect();
    let asked = world.dgpo(&words).done();
    assert!(asked.stdout.ends_with("--- answer\nTobsa Port\n"), "{}", asked.stdout);
    assert!(!asked.stderr.contains("warning"), "{}", asked.stderr);
    let outside =
        world.dgpo(&["ask", "Who wrote Middlemarch?", "--model", "builtin:tiny/teacher"]).done();
    assert!(
        outside
            .stderr
            .contains("warning: the question names nothing that is in the built-in encyclopaedia"),
        "{}",
        outside.stderr
    );
    let own = world.dgpo(&["ask", &example[0], "--model", "talker"]).done();
    assert!(
        own.stderr.contains("warning: the model is searching the built-in encyclopaedia"),
        "{}",
        own.stderr
    );
    let both = world.dgpo(&["ask", "Who wrote Middlemarch?", "--config", "rl.toml"]).done();
    assert!(!both.stderr.contains("warning"), "its passages are the user's own: {}", both.stderr);
}
