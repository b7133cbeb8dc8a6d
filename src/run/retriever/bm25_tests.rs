use super::*;
use dgpo_core::env::search::Passage;

fn retriever(contents: &[&str]) -> Bm25Retriever {
    let passage =
        |(i, text): (usize, &&str)| Passage { id: i.to_string(), contents: (*text).to_owned() };
    Bm25Retriever::new(Arc::new(Corpus::from_passages(
        contents.iter().enumerate().map(passage).collect(),
    )))
    .expect("indexed")
}

fn search(retriever: &Bm25Retriever, query: &str, k: usize) -> Vec<(String, f32)> {
    let hits = retriever.search(&[query.to_owned()], k).remove(0).expect("found");
    hits.into_iter().map(|hit| (hit.passage.id, hit.score)).collect()
}

const PASSAGES: [&str; 5] = [
    "castle river river",
    "castle castle garden tower",
    "banana",
    "river garden banana orange apple tower",
    "tower",
];

#[test]
fn scores_are_those_of_the_formula() {
    // Words here have no stop words and stem to distinct stems, so the bags can be written down
    // literally.
    let bags: Vec<Vec<&str>> = PASSAGES.iter().map(|text| text.split(' ').collect()).collect();
    let mean = bags.iter().map(Vec::len).sum::<usize>() as f64 / 5.0;
    let query = ["river", "castle", "castle"];
    let score = |bag: &[&str]| -> f64 {
        query
            .iter()
            .map(|word| {
                let df = bags.iter().filter(|bag| bag.contains(word)).count() as f64;
                let tf = bag.iter().filter(|other| other == &word).count() as f64;
                let idf = (1.0 + (5.0 - df + 0.5) / (df + 0.5)).ln();
                idf * tf * 1.9 / (tf + 0.9 * (0.6 + 0.4 * bag.len() as f64 / mean))
            })
            .sum()
    };
    let mut expected: Vec<(String, f64)> =
        bags.iter().enumerate().map(|(i, bag)| (i.to_string(), score(bag))).collect();
    expected.sort_by(|a, b| b.1.total_cmp(&a.1));
    let found = search(&retriever(&PASSAGES), "River, castle CASTLE!", 3);
    for ((id, score), (expected_id, expected)) in found.iter().zip(&expected) {
        assert_eq!(id, expected_id);
        assert!((f64::from(*score) - expected).abs() < 1e-5, "{id}: {score} against {expected}");
    }
}

#[test]
fn ties_come_in_the_order_of_the_corpus_and_unrelated_passages_do_not() {
    let retriever = retriever(&["tower", "banana", "tower", "tower"]);
    let ids =
        |query, k| search(&retriever, query, k).into_iter().map(|(id, _)| id).collect::<Vec<_>>();
    assert_eq!(ids("tower", 2), ["0", "2"]);
    assert_eq!(ids("tower", 4), ["0", "2", "3"]);
    assert!(ids("nothing of this", 2).is_empty() && ids("", 9).is_empty());
}

#[test]
fn words_are_compared_by_their_stem_without_accents_or_case() {
    let found = search(&retriever(&["A café near rivers", "The bank"]), "CAFE river", 1);
    assert_eq!(found[0].0, "0");
}

#[test]
fn a_query_finds_the_same_alone_and_in_a_batch() {
    let retriever = retriever(&PASSAGES);
    let queries: Vec<String> =
        ["castle garden", "river", "banana apple", "castle garden"].map(str::to_owned).to_vec();
    let together: Vec<_> =
        retriever.search(&queries, 3).into_iter().map(|hits| hits.expect("found")).collect();
    for (query, hits) in queries.iter().zip(together) {
        assert_eq!(
            retriever.search(std::slice::from_ref(query), 3).remove(0).expect("found"),
            hits
        );
    }
}

#[test]
fn an_empty_corpus_is_an_error() {
    assert!(matches!(
        Bm25Retriever::new(Arc::new(Corpus::from_passages(Vec::new()))),
        Err(RetrieverError::EmptyCorpus)
    ));
}
