use super::*;
use crate::retriever::{
    build::{BuildOptions, build},
    encoder::tests::{options, random_encoder},
};
use burn::backend::Flex;
use dgpo_core::env::search::Passage;
use std::ops::ControlFlow;

const HNSW: HnswParams = HnswParams { m: 8, ef_construction: 64, ef_search: 64 };

fn corpus() -> Arc<Corpus> {
    let words = ["film", "river", "book", "firm", "city", "painter", "director"];
    let contents = |i: usize| {
        format!(
            "\"{}\"\nThe {} of {} number {i}",
            words[i % 7],
            words[i / 7 % 7],
            words[i / 49 % 7]
        )
    };
    Arc::new(Corpus::from_passages(
        (0..200).map(|i| Passage { id: format!("p{i}"), contents: contents(i) }).collect(),
    ))
}

fn in_memory(search: Search) -> DenseRetriever<Flex> {
    let progress = &mut |_: StageProgress| ControlFlow::Continue(());
    DenseRetriever::build_in_memory(random_encoder(1, options()), corpus(), search, HNSW, progress)
        .expect("built")
}

fn queries() -> Vec<String> {
    (0..30).map(|i| format!("who is the director number {}", i % 20)).collect()
}

fn found(retriever: &dyn Retriever, queries: &[String]) -> Vec<Vec<(String, f32)>> {
    let results = retriever.search(queries, 3);
    results
        .into_iter()
        .map(|hits| {
            hits.expect("found").into_iter().map(|hit| (hit.passage.id, hit.score)).collect()
        })
        .collect()
}

#[test]
fn passages_are_those_with_the_largest_inner_product() {
    let retriever = in_memory(Search::Exact);
    let texts = passage_texts(&retriever.corpus, 0..200).expect("texts");
    let passages = retriever
        .encoder
        .encode_passages(&texts, &mut |_, _| ControlFlow::Continue(()))
        .expect("encoded");
    let query = ["the river of a painter".to_owned()];
    let embedding = retriever.encoder.encode_queries(&query).expect("encoded");
    let mut scored: Vec<(f64, usize)> = passages
        .chunks_exact(32)
        .enumerate()
        .map(|(id, passage)| {
            (passage.iter().zip(&embedding).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum(), id)
        })
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let expected: Vec<String> = scored[..3].iter().map(|(_, id)| format!("p{id}")).collect();
    let ids: Vec<String> = found(&retriever, &query)[0].iter().map(|(id, _)| id.clone()).collect();
    assert_eq!(ids, expected);
}

#[test]
fn two_graphs_of_a_small_world_answer_alike() {
    assert_eq!(
        found(&in_memory(Search::Hnsw), &queries()),
        found(&in_memory(Search::Hnsw), &queries())
    );
}

#[test]
fn a_recent_query_gets_what_a_new_one_gets() {
    let (queries, retriever) = (queries(), in_memory(Search::Exact));
    let first = found(&retriever, &queries[..7]);
    assert_eq!(found(&retriever, &queries)[..7], first);
    assert_eq!(found(&in_memory(Search::Exact), &queries), found(&retriever, &queries));
}

#[test]
fn the_oldest_query_is_forgotten_first() {
    let mut recent = Recent::default();
    for i in 0..=Recent::CAPACITY {
        recent.insert((i.to_string(), 3), Vec::new());
    }
    assert_eq!(recent.results.len(), Recent::CAPACITY);
    assert!(
        !recent.results.contains_key(&("0".to_owned(), 3))
            && recent.results.contains_key(&("1".to_owned(), 3))
    );
}

#[test]
fn a_folder_answers_as_memory_does_and_refuses_another_encoder() {
    let (folder, encoder, corpus) =
        (tempfile::tempdir().expect("a folder"), random_encoder(1, options()), corpus());
    let build_options = BuildOptions {
        corpus_name: "c".to_owned(),
        search: Search::Hnsw,
        hnsw: HNSW,
        replace: false,
    };
    let embed = &mut |texts: &[String], tick: &mut crate::retriever::Tick| {
        encoder.encode_passages(texts, tick)
    };
    let progress = &mut |_: StageProgress| ControlFlow::Continue(());
    build(folder.path(), &build_options, encoder.identity(), &corpus, embed, progress)
        .expect("built");
    let open = |seed| {
        DenseRetriever::open(
            folder.path(),
            random_encoder(seed, options()),
            corpus.clone(),
            Search::Hnsw,
            64,
        )
    };
    assert_eq!(
        found(&open(1).expect("the same encoder"), &queries()),
        found(&in_memory(Search::Hnsw), &queries())
    );
    assert!(matches!(open(2), Err(RetrieverError::WrongEncoder { .. })));
}

#[test]
fn zero_passages_cannot_be_asked_for() {
    assert!(in_memory(Search::Exact).search(&queries(), 0).iter().all(Result::is_err));
}
