//! `dgpo index build|search|info` on thirty passages with the built-in encoder.
use crate::support::{Ended, World, files_below, repository};
use serde_json::Value;

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
