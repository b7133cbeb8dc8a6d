//! `dgpo index build|search|info` on thirty passages with the built-in encoder.
use crate::support::{Ended, World, files_below, repository};
use serde_json::{Value, json};

fn build(world: &World, more: &[&str]) -> Ended {
    let encoder = repository("configs/tiny/encoder");
    let arguments = ["index", "build", "--config", "tiny", "--corpus", "corpus.jsonl", "--out", "indexes/a", "--json", "--encoder"];
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
        let arguments = [&["index", "search", "indexes/a", "--json", "--search", search][..], &queries].concat();
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
    let info = world.dgpo(&["index", "info", "indexes/a", "--questions", "questions.jsonl", "--json"]).json();
    assert_eq!((&info["n_passages"], &info["measured"]["n_queries"]), (&30.into(), &40.into()));
    // The graph of thirty passages with ef_search 64 sees all of them.
    assert_eq!((&info["measured"]["recall_at_3"], &info["measured"]["recall_at_10"]), (&1.0.into(), &1.0.into()));
    assert_eq!(info["vectors_bytes"], 30 * 32 * 4);
}

#[test]
fn info_reports_how_often_each_search_finds_the_answer() {
    let world = World::new();
    build(&world, &[]).done();
    let corpus = std::fs::read_to_string(world.path("corpus.jsonl")).unwrap();
    let passages: Vec<Value> = corpus.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // Half of the questions quote the passage that is their gold one and whose text is their answer; the others ask for what is nowhere.
    let row = |at: usize, (question, answer, pid): (&str, &str, &str)| {
        let supporting = json!([{"title": "", "text": "", "pid": pid}]);
        json!({"id": at.to_string(), "question": question, "golden_answers": [answer], "supporting": supporting, "supporting_kind": "annotated"})
    };
    let rows = passages.iter().take(10).enumerate().map(|(at, passage)| {
        let text = passage["contents"].as_str().unwrap().lines().last().unwrap();
        let row =
            if at < 5 { row(at, (text, text, passage["id"].as_str().unwrap())) } else { row(at, (text, "nowhere", "no-such-passage")) };
        row.to_string() + "\n"
    });
    world.write("asked.jsonl", &rows.collect::<String>());
    // A gold passage that is not in the corpus annotates nothing: with --annotated only the first half is asked.
    for (more, n_questions, answer) in [(&[][..], 10, 0.5), (&["--annotated"], 5, 1.0)] {
        let arguments = [&["index", "info", "indexes/a", "--questions", "asked.jsonl", "--json"][..], more].concat();
        let info = world.dgpo(&arguments).json();
        let ratios = info["hit_ratios"].as_array().unwrap();
        assert_eq!(ratios.iter().map(|row| row["search"].as_str().unwrap()).collect::<Vec<_>>(), ["exact", "hnsw", "bm25"]);
        for row in ratios {
            assert_eq!((&row["dataset"], &row["n_questions"], &row["top_k"]), (&"asked".into(), &n_questions.into(), &3.into()));
            assert_eq!((&row["answer"], &row["n_annotated"]), (&answer.into(), &5.into()), "{row}");
            assert_eq!((&row["any_gold_passage"], &row["all_gold_passages"]), (&1.0.into(), &1.0.into()), "{row}");
        }
    }
    let two = world.dgpo(&["index", "info", "indexes/a", "--questions", "asked.jsonl", "--n-queries", "2"]).done();
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
    world.write("corpus.jsonl", &corpus.lines().take(20).map(|line| format!("{line}\n")).collect::<String>());
    let before = files_below(&world.path("indexes/a"));
    build(&world, &[]).failed(1, &["indexes/a already holds an index", "--force"]);
    assert_eq!(files_below(&world.path("indexes/a")), before);
    assert_eq!(build(&world, &["--force"]).json()["n_passages"], 20);
}

#[test]
fn a_folder_without_an_index_is_named() {
    let world = World::new();
    world.dgpo(&["index", "search", "student", "where?"]).failed(1, &["student holds no finished index", "dgpo index build"]);
}
