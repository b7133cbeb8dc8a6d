//! `dgpo index build|search|info` on thirty passages with the built-in encoder.
use crate::support::{Ended, World, copy_folder, files_below, repository};
use serde_json::{Value, json};
use std::fs;

fn build(world: &World, more: &[&str]) -> Ended {
    let encoder = repository("configs/tiny/encoder");
    let arguments = [
        "index",
        "build",
        "--config",
        "tiny",
        "--corpus",
        "corpus.jsonl",
        "--out",
        "indexes/a",
        "--json",
        "--encoder",
    ];
    world.dgpo(&[&arguments[..], &[encoder.to_str().unwrap()], more].concat())
}

#[test]
fn an_index_finds_the_passage_that_names_the_entity() {
    let world = World::new();
    let report = build(&world, &[]).json();
    assert_eq!((&report["n_passages"], &report["dim"]), (&30.into(), &32.into()));
    for search in ["exact", "hnsw"] {
        // Passage 0 is the one about Duva Vatir, passage 1 that about Tuse Mevin.
        let queries = ["Where was Duva Vatir born?", "What is the job of Tuse Mevin?"];
        let arguments =
            [&["index", "search", "indexes/a", "--json", "--search", search][..], &queries]
                .concat();
        let found = world.dgpo(&arguments).json();
        for (at, id) in ["0", "1"].into_iter().enumerate() {
            let hits = found[at]["hits"].as_array().unwrap();
            assert_eq!((hits.len(), &found[at]["query"]), (3, &Value::from(queries[at])));
            assert!(hits.iter().any(|hit| hit["id"] == id), "{search}: {hits:?}");
            let scores: Vec<f64> = hits.iter().map(|hit| hit["score"].as_f64().unwrap()).collect();
            assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
        }
    }
}

#[test]
fn info_measures_recall_against_exact_search() {
    let world = World::new();
    build(&world, &[]).done();
    let info = world
        .dgpo(&["index", "info", "indexes/a", "--questions", "questions.jsonl", "--json"])
        .json();
    assert_eq!((&info["n_passages"], &info["measured"]["n_queries"]), (&30.into(), &40.into()));
    // The graph of thirty passages with ef_search 64 sees all of them.
    assert_eq!(
        (&info["measured"]["recall_at_3"], &info["measured"]["recall_at_10"]),
        (&1.0.into(), &1.0.into())
    );
    assert_eq!(info["vectors_bytes"], 30 * 32 * 4);
}

#[test]
fn plan_and_info_say_how_many_observations_will_be_cut() {
    let world = World::new();
    build(&world, &[]).done();
    // Three passages of the world are some fifty tokens.
    for (limit, share, said) in [
        (8, 1.0, "100.0 % of observations are longer"),
        (400, 0.0, "0.0 % of observations are longer"),
    ] {
        world.write(
            "mine.toml",
            &format!("extends = \"rl.toml\"\n[episode]\nmax_obs_length = {limit}\n"),
        );
        let planned = world.dgpo(&["plan", "--config", "mine.toml", "--json"]).json();
        assert_eq!(planned["observations"]["share"], share);
        let info = ["index", "info", "indexes/a", "--config", "mine.toml"];
        assert_eq!(
            world.dgpo(&[&info[..], &["--json"]].concat()).json()["observations"],
            planned["observations"]
        );
        for arguments in [&["plan", "--config", "mine.toml"][..], &info] {
            let text = world.dgpo(arguments).done().stdout;
            assert!(text.contains(said), "{text}");
        }
    }
    let unknown = world.dgpo(&["index", "info", "indexes/a"]).done().stdout;
    assert!(unknown.contains("--config RECIPE says how many"), "{unknown}");
    world
        .dgpo(&["index", "info", "indexes/a", "--config", "no-such-recipe"])
        .failed(2, &["no-such-recipe"]);
}

#[test]
fn info_reports_how_often_each_search_finds_the_answer() {
    let world = World::new();
    build(&world, &[]).done();
    let corpus = std::fs::read_to_string(world.path("corpus.jsonl")).unwrap();
    let passages: Vec<Value> =
        corpus.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // Half of the questions quote the passage that is their gold one and whose text is their
    // answer; the others ask for what is nowhere.
    let row = |at: usize, (question, answer, pid): (&str, &str, &str)| {
        let supporting = json!([{"title": "", "text": "", "pid": pid}]);
        json!({"id": at.to_string(), "question": question, "golden_answers": [answer], "supporting": supporting, "supporting_kind": "annotated"})
    };
    let rows = passages.iter().take(10).enumerate().map(|(at, passage)| {
        let text = passage["contents"].as_str().unwrap().lines().last().unwrap();
        let row = if at < 5 {
            row(at, (text, text, passage["id"].as_str().unwrap()))
        } else {
            row(at, (text, "nowhere", "no-such-passage"))
        };
        row.to_string() + "\n"
    });
    world.write("asked.jsonl", &rows.collect::<String>());
    // A gold passage that is not in the corpus annotates nothing: with --annotated only the first
    // half is asked.
    for (more, n_questions, answer) in [(&[][..], 10, 0.5), (&["--annotated"], 5, 1.0)] {
        let arguments =
            [&["index", "info", "indexes/a", "--questions", "asked.jsonl", "--json"][..], more]
                .concat();
        let info = world.dgpo(&arguments).json();
        let ratios = info["hit_ratios"].as_array().unwrap();
        assert_eq!(
            ratios.iter().map(|row| row["search"].as_str().unwrap()).collect::<Vec<_>>(),
            ["exact", "hnsw", "bm25"]
        );
        for row in ratios {
            assert_eq!(
                (&row["dataset"], &row["n_questions"], &row["top_k"]),
                (&"asked".into(), &n_questions.into(), &3.into())
            );
            assert_eq!((&row["answer"], &row["n_annotated"]), (&answer.into(), &5.into()), "{row}");
            assert_eq!(
                (&row["any_gold_passage"], &row["all_gold_passages"]),
                (&1.0.into(), &1.0.into()),
                "{row}"
            );
        }
    }
    let two = world
        .dgpo(&["index", "info", "indexes/a", "--questions", "asked.jsonl", "--n-queries", "2"])
        .done();
    assert!(two.stdout.contains("| asked | 2 | bm25 | 1.000 |"), "{}", two.stdout);
    world.write("plain.jsonl", "{\"id\":\"0\",\"question\":\"who?\",\"golden_answers\":[\"x\"]}\n");
    world
        .dgpo(&["index", "info", "indexes/a", "--questions", "plain.jsonl", "--annotated"])
        .failed(1, &["plain.jsonl", "no question has annotated gold passages"]);
}

#[test]
fn building_again_encodes_nothing_twice() {
    let world = World::new();
    build(&world, &[]).done();
    let before = files_below(&world.path("indexes/a"));
    let again = build(&world, &[]).json();
    assert_eq!(again["n_reused"], 30);
    assert_eq!(files_below(&world.path("indexes/a")), before);
}

#[test]
fn an_index_is_replaced_only_when_told_to() {
    let world = World::new();
    build(&world, &[]).done();
    let corpus = std::fs::read_to_string(world.path("corpus.jsonl")).unwrap();
    world.write(
        "corpus.jsonl",
        &corpus.lines().take(20).map(|line| format!("{line}\n")).collect::<String>(),
    );
    let before = files_below(&world.path("indexes/a"));
    build(&world, &[]).failed(1, &["indexes/a already holds an index", "--force"]);
    assert_eq!(files_below(&world.path("indexes/a")), before);
    assert_eq!(build(&world, &["--force"]).json()["n_passages"], 20);
}

#[test]
fn a_folder_without_an_index_is_named() {
    let world = World::new();
    for command in [&["index", "search", "student", "where?"][..], &["index", "info", "student"]] {
        world.dgpo(command).failed(2, &["student holds no finished index", "dgpo index build"]);
    }
}

#[test]
fn an_encoder_that_declares_cls_pooling_is_another_encoder() {
    let world = World::new();
    copy_folder(&repository("configs/tiny/encoder"), &world.path("encoder"));
    let build = |out: &str| {
        let arguments = [
            "index",
            "build",
            "--corpus",
            "corpus.jsonl",
            "--encoder",
            "encoder",
            "--config",
            "tiny",
            "--out",
            out,
        ];
        world.dgpo(&arguments).done();
        (
            fs::read(world.path(out).join("vectors.f32")).unwrap(),
            world.dgpo(&["index", "info", out, "--json"]).json(),
        )
    };
    let (mean_vectors, mean) = build("mean");
    fs::create_dir(world.path("encoder/1_Pooling")).unwrap();
    let pooling = |cls: bool, max: bool| {
        let flags = json!({"word_embedding_dimension": 32, "pooling_mode_cls_token": cls, "pooling_mode_mean_tokens": false, "pooling_mode_max_tokens": max});
        world.write("encoder/1_Pooling/config.json", &flags.to_string());
    };
    pooling(true, false);
    // What was built with the mean is not searched with the first token.
    world.dgpo(&["index", "search", "mean", "who?"]).failed(
        1,
        &[
            "mean pooling",
            "CLS pooling",
            "dgpo index build --out mean --corpus corpus.jsonl --encoder encoder --set \
             retriever.max_tokens=64",
        ],
    );
    let (cls_vectors, cls) = build("cls");
    assert_ne!(cls_vectors, mean_vectors);
    assert_ne!(cls["encoder_fingerprint"], mean["encoder_fingerprint"]);
    assert_eq!((&mean["pooling"], &cls["pooling"]), (&"mean".into(), &"cls".into()));
    // Inner products of vectors as they are: no graph over those.
    let module = |name: &str, path: &str| json!({"path": path, "type": format!("sentence_transformers.models.{name}")});
    world.write(
        "encoder/modules.json",
        &json!([module("Transformer", ""), module("Pooling", "1_Pooling")]).to_string(),
    );
    world.write("encoder/config_sentence_transformers.json", r#"{"similarity_fn_name": "dot"}"#);
    let corpus =
        ["--corpus", "corpus.jsonl", "--encoder", "encoder", "--config", "tiny", "--out", "any"];
    let arguments =
        [&["index", "build"][..], &corpus, &["--set", "retriever.search=hnsw"]].concat();
    world.dgpo(&arguments).failed(1, &["retriever.search = \"hnsw\"", "unit length"]);
    pooling(false, true);
    world.dgpo(&arguments).failed(2, &["encoder/1_Pooling/config.json", "\"max\""]);
}

#[test]
fn declared_prompts_are_used_unless_the_recipe_says_otherwise() {
    let world = World::new();
    copy_folder(&repository("configs/tiny/encoder"), &world.path("encoder"));
    world.write(
        "encoder/config_sentence_transformers.json",
        r#"{"prompts": {"query": "find: ", "document": ""}}"#,
    );
    let build = |more: &[&str]| {
        let arguments = [
            "index",
            "build",
            "--corpus",
            "corpus.jsonl",
            "--encoder",
            "encoder",
            "--config",
            "tiny",
            "--force",
            "--out",
            "a",
        ];
        let ended = world.dgpo(&[&arguments[..], more].concat()).done();
        let info = world.dgpo(&["index", "info", "a", "--json"]).json();
        (ended.stderr, info["query_prefix"].clone(), info["passage_prefix"].clone())
    };
    let (stderr, query, passage) = build(&[]);
    assert_eq!((query, passage), ("find: ".into(), "".into()), "{stderr}");
    let (stderr, query, passage) = build(&["--set", "retriever.query_prefix=\"query: \""]);
    assert_eq!((query, passage), ("query: ".into(), "".into()));
    assert!(stderr.contains("encoder declares the prompts \"find: \""), "{stderr}");
}

#[test]
fn info_says_how_many_passages_have_equal_vectors() {
    let world = World::new();
    build(&world, &[]).done();
    let info = world.dgpo(&["index", "info", "indexes/a", "--json"]).json();
    assert_eq!(info["equal_vectors"]["n_passages"], 0);
    let corpus = fs::read_to_string(world.path("corpus.jsonl")).unwrap();
    let mut passages: Vec<Value> =
        corpus.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // The second passage of the file five times more, under other ids.
    for copy in 0..5 {
        passages.push(json!({"id": format!("copy-{copy}"), "contents": passages[1]["contents"]}));
    }
    world.write(
        "corpus.jsonl",
        &passages.iter().map(|passage| format!("{passage}\n")).collect::<String>(),
    );
    build(&world, &["--force", "--set", "retriever.search=hnsw"]).done();
    let info = world.dgpo(&["index", "info", "indexes/a", "--json"]).json();
    let expected = json!({"n_passages": 6, "n_groups": 1, "largest": 6, "never_among_3": 3, "never_among_10": 0});
    assert_eq!(info["equal_vectors"], expected);
    assert!(info["measured"]["recall_by_id_at_3"].is_number(), "{info}");
    let text = world.dgpo(&["index", "info", "indexes/a"]).done().stdout;
    assert!(
        text.contains("6 passages share 1, 6 at most one") && text.contains("3 of them among 3"),
        "{text}"
    );
    for search in ["exact", "hnsw"] {
        let query = passages[1]["contents"].as_str().unwrap();
        let found = world
            .dgpo(&["index", "search", "indexes/a", "--json", "--search", search, query])
            .json();
        let ids: Vec<&str> = found[0]["hits"]
            .as_array()
            .unwrap()
            .iter()
            .map(|hit| hit["id"].as_str().unwrap())
            .collect();
        assert_eq!(ids, [passages[1]["id"].as_str().unwrap(), "copy-0", "copy-1"], "{search}");
    }
}

#[test]
fn a_file_given_as_an_index_is_named_as_what_it_is() {
    let world = World::new();
    fs::write(world.path("e5_Flat.index"), b"IxFI\0\0\0\0").unwrap();
    world.write("notes.txt", "Index of things");
    let is_file = "is a file, and an index is a folder";
    let command = "dgpo index build --out e5_Flat.dgpo-index";
    world
        .dgpo(&["index", "search", "e5_Flat.index", "who?"])
        .failed(2, &[is_file, "begins as FAISS indexes do", command]);
    let ended = world.dgpo(&["index", "info", "notes.txt"]).failed(2, &[is_file]);
    assert!(!ended.stderr.contains("FAISS"), "{}", ended.stderr);
    let retriever = [
        "--set",
        "retriever.kind=dense",
        "--set",
        "retriever.index=e5_Flat.index",
        "--set",
        "retriever.encoder=builtin:tiny/encoder",
    ];
    let ended =
        world.dgpo(&[&["train", "--config", "rl.toml", "--name", "a"][..], &retriever].concat());
    assert!(
        ended.code != Some(0) && ended.stderr.contains(is_file) && ended.stderr.contains("FAISS"),
        "{}",
        ended.stderr
    );
}

/// A command of the recipe with the index and the encoder it names.
fn with_index(world: &World, command: &str, index: &str, encoder: &str) -> Ended {
    let [index, encoder] = [("index", index), ("encoder", encoder)]
        .map(|(key, value)| format!("retriever.{key}={value}"));
    let settings = ["retriever.kind=dense", "retriever.max_tokens=64", &index, &encoder];
    let settings = settings.map(|setting| ["--set", setting]).concat();
    world.dgpo(&[&[command, "--config", "rl.toml"][..], &settings].concat())
}

#[test]
fn an_index_that_does_not_fit_the_recipe_is_found_before_the_start() {
    let world = World::new();
    let encoder = repository("configs/tiny/encoder");
    let encoder = encoder.to_str().unwrap();
    build(&world, &[]).done();
    with_index(&world, "plan", "indexes/a", encoder).done();

    copy_folder(&world.path("indexes/a"), &world.path("indexes/cut"));
    let vectors = fs::read(world.path("indexes/cut/vectors.f32")).unwrap();
    fs::write(world.path("indexes/cut/vectors.f32"), &vectors[..1000]).unwrap();
    let told = ["retriever.index", "vectors.f32 has 1000 bytes", "index build --out indexes/cut"];
    with_index(&world, "train", "indexes/cut", encoder).failed(2, &told);

    copy_folder(std::path::Path::new(encoder), &world.path("other"));
    let mut weights = fs::read(world.path("other/model.safetensors")).unwrap();
    *weights.last_mut().unwrap() ^= 1;
    fs::write(world.path("other/model.safetensors"), weights).unwrap();
    let told = ["indexes/a was built with", "whose weights or tokenizer are others", "--force"];
    with_index(&world, "train", "indexes/a", "other").failed(2, &told);

    let corpus = fs::read_to_string(world.path("corpus.jsonl")).unwrap();
    let half: Vec<&str> = corpus.lines().take(15).collect();
    fs::write(world.path("corpus.jsonl"), half.join("\n")).unwrap();
    let told = ["of 30 passages", "not from the one given (15 passages", "nothing was started"];
    with_index(&world, "train", "indexes/a", encoder).failed(2, &told);
    // What is not whole is built by a command that can be pasted.
    fs::remove_file(world.path("indexes/cut/index.json")).unwrap();
    let told = ["index build --out indexes/cut --corpus corpus.jsonl --encoder "];
    with_index(&world, "train", "indexes/cut", encoder).failed(2, &told);
}

#[test]
fn a_tilde_is_the_home_folder_wherever_a_path_is_named() {
    let world = World::new();
    let encoder = repository("configs/tiny/encoder");
    let arguments = [
        &["index", "build", "--config", "tiny", "--corpus", "corpus.jsonl", "--out=~/ix"][..],
        &["--encoder", encoder.to_str().unwrap()],
    ];
    let home = world.path("home");
    Ended::of(world.command(&arguments.concat()).env("HOME", &home)).done();
    assert!(home.join("ix/index.json").is_file() && !world.path("~").exists());
    Ended::of(world.command(&["index", "info", "~/ix"]).env("HOME", &home)).done();
}

#[test]
fn a_damaged_index_is_named_with_the_command_that_makes_it_anew() {
    let world = World::new();
    build(&world, &["--set", "retriever.search=hnsw"]).done();
    let index = |name: &str| world.path("indexes/a").join(name);
    let meta: Value = serde_json::from_slice(&fs::read(index("index.json")).unwrap()).unwrap();
    let with = |pointer: &str, value: Value| {
        let mut meta = meta.clone();
        *meta.pointer_mut(pointer).unwrap() = value;
        fs::write(index("index.json"), meta.to_string()).unwrap();
        world.dgpo(&["index", "info", "indexes/a", "--corpus", "corpus.jsonl"])
    };
    with("/n_passages", 0.into()).failed(1, &["index.json", "an index of 0 vectors"]);
    with("/encoder/dim", (1u64 << 60).into()).failed(1, &["vectors.f32", "bytes instead of"]);
    with("/graph/params/m", 1_000.into()).failed(1, &["index.json", "M 1000"]);
    with("/graph/params/ef_search", (1u64 << 60).into())
        .failed(1, &["index.json", "are no parameters of a graph"]);
    with("/graph/files/basename", "../links".into()).failed(1, &["index.json", "cannot be called"]);
    with("/version", 1.into()).done();
    for (name, at) in [("vectors.f32", 100), ("links.hnsw.graph", 2_000), ("links.hnsw.data", 40)] {
        let whole = fs::read(index(name)).unwrap();
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(index(name), &damaged).unwrap();
        let ended = world
            .dgpo(&["index", "search", "indexes/a", "who?"])
            .failed(1, &[name, "its checksum", "dgpo index build --out indexes/a"]);
        assert!(
            ended.stderr.contains("--corpus corpus.jsonl")
                && ended.stderr.contains("retriever.search=hnsw"),
            "{}",
            ended.stderr
        );
        // The same command again repairs it.
        build(&world, &["--set", "retriever.search=hnsw"]).done();
        assert_eq!(fs::read(index(name)).unwrap(), whole, "{name}");
    }
}

#[test]
fn names_lead_to_revisions_to_the_old_cache_variable_and_to_the_home_folder() {
    let world = World::new();
    let snapshot = world.path("hub/models--owner--encoder/snapshots/0123");
    copy_folder(&repository("configs/tiny/encoder"), &snapshot);
    fs::create_dir_all(world.path("hub/models--owner--encoder/refs")).unwrap();
    world.write("hub/models--owner--encoder/refs/v2", "0123");
    world.write(
        "mine.toml",
        "extends = \"~/tiny-of-mine.toml\"\n[data]\ncorpus = \"~/corpus.jsonl\"\n",
    );
    world.write("tiny-of-mine.toml", "extends = \"tiny\"\n");
    let build = |encoder: &str| {
        let mut command = world.command(&[
            "index",
            "build",
            "--config",
            "mine.toml",
            "--out",
            "a",
            "--force",
            "--encoder",
            encoder,
            "--json",
        ]);
        command
            .env("HOME", world.path(""))
            .env("HUGGINGFACE_HUB_CACHE", "~/hub")
            .env_remove("HF_HUB_CACHE")
            .env_remove("HF_HOME");
        Ended::of(&mut command)
    };
    for encoder in
        ["owner/encoder@v2", "owner/encoder@0123", "~/hub/models--owner--encoder/snapshots/0123"]
    {
        assert_eq!(build(encoder).json()["n_passages"], 30, "{encoder}");
    }
    build("owner/encoder@v3")
        .failed(2, &["snapshots/v3", "hf download owner/encoder --revision v3"]);
}
