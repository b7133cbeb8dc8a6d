use super::*;
use crate::retriever::{exact::tests::unit_vectors, index::Index};
use dgpo_core::env::search::Passage;
use std::ops::ControlFlow;

const DIM: usize = 16;
const HNSW: HnswParams = HnswParams { m: 8, ef_construction: 50, ef_search: 50 };

fn corpus(n: usize) -> Corpus {
    Corpus::from_passages(
        (0..n)
            .map(|i| Passage { id: i.to_string(), contents: format!("\"{i}\"\ntext {i}") })
            .collect(),
    )
}

fn identity(name: &str) -> EncoderIdentity {
    EncoderIdentity {
        name: name.to_owned(),
        fingerprint: format!("fingerprint of {name}"),
        dim: DIM,
        query_prefix: "query: ".to_owned(),
        passage_prefix: "passage: ".to_owned(),
        max_tokens: 256,
        head: dgpo_models::bert::SentenceHead::default(),
    }
}

fn options(search: Search) -> BuildOptions {
    BuildOptions { corpus_name: "corpus.jsonl".to_owned(), search, hnsw: HNSW, replace: false }
}

/// An "encoder" whose embedding is a function of the text.
fn embed(texts: &[String], tick: &mut Tick) -> Result<Vec<f32>, RetrieverError> {
    let mut embeddings = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        let seed = text.bytes().fold(0u64, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
        embeddings.extend(unit_vectors(1, DIM, seed));
        if tick(i + 1, texts.len()).is_break() {
            return Err(RetrieverError::Interrupted {
                stage: "encode",
                done: i + 1,
                total: texts.len(),
            });
        }
    }
    Ok(embeddings)
}

fn go_on(_: StageProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn read(dir: &Path, name: &str) -> Vec<u8> {
    std::fs::read(dir.join(name)).expect("the file is there")
}

#[test]
fn an_interrupted_build_resumed_has_the_bytes_of_an_uninterrupted_one() {
    let (corpus, encoder) = (corpus(2 * BLOCK_PASSAGES + 100), identity("a"));
    let (whole, resumed) =
        (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    build(whole.path(), &options(Search::Hnsw), &encoder, &corpus, &mut embed, &mut go_on)
        .expect("built");

    // Once in the middle of the second block, once in the graph.
    let stop_at = |stage: &'static str, done: usize| {
        move |progress: StageProgress| match progress.stage == stage && progress.done >= done {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    for mut stop in [stop_at("encode", BLOCK_PASSAGES + 7), stop_at("graph", 1)] {
        let error =
            build(resumed.path(), &options(Search::Hnsw), &encoder, &corpus, &mut embed, &mut stop)
                .expect_err("stopped");
        assert!(matches!(error, RetrieverError::Interrupted { .. }), "{error}");
        assert!(matches!(IndexMeta::read(resumed.path()), Err(RetrieverError::NoIndex { .. })));
    }
    // What a process killed between two writes leaves behind does no harm either.
    std::fs::write(resumed.path().join(".tmp-killed"), "{").expect("written");
    let report =
        build(resumed.path(), &options(Search::Hnsw), &encoder, &corpus, &mut embed, &mut go_on)
            .expect("built");

    assert_eq!(report.n_reused, corpus.len());
    assert_eq!(read(resumed.path(), VECTORS_FILE), read(whole.path(), VECTORS_FILE));
    assert_eq!(read(resumed.path(), "links.hnsw.graph"), read(whole.path(), "links.hnsw.graph"));
}

#[test]
fn the_block_under_way_is_finished_and_counted_when_a_stop_is_asked_for() {
    let (corpus, encoder, folder) =
        (corpus(3 * BLOCK_PASSAGES), identity("a"), tempfile::tempdir().expect("a folder"));
    let mut last = 0;
    let mut stop = |progress: StageProgress| {
        last = progress.done;
        // Asked for once, as by one Ctrl-C, in the middle of the second block.
        if progress.done == BLOCK_PASSAGES + 7 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let error =
        build(folder.path(), &options(Search::Exact), &encoder, &corpus, &mut embed, &mut stop)
            .expect_err("stopped");
    assert!(
        matches!(error, RetrieverError::Interrupted { done, .. } if done == 2 * BLOCK_PASSAGES),
        "{error}"
    );
    assert_eq!(last, 2 * BLOCK_PASSAGES, "the third block was not begun");
    let report =
        build(folder.path(), &options(Search::Exact), &encoder, &corpus, &mut embed, &mut go_on)
            .expect("built");
    assert_eq!(report.n_reused, 2 * BLOCK_PASSAGES);
}

#[test]
fn a_damaged_state_of_a_build_starts_it_again() {
    let (corpus, encoder, folder) =
        (corpus(2 * BLOCK_PASSAGES), identity("a"), tempfile::tempdir().expect("a folder"));
    let stop = |_: StageProgress| ControlFlow::Break(());
    for damage in [
        ("n_encoded", "18446744073709551615"),
        ("n_encoded", "1025"),
        ("encode_s", "-1"),
        ("n_encoded", "\"512\""),
    ] {
        build(folder.path(), &options(Search::Exact), &encoder, &corpus, &mut embed, &mut { stop })
            .expect_err("stopped");
        let path = folder.path().join(PROGRESS_FILE);
        let mut state: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).expect("written")).expect("JSON");
        state[damage.0] = serde_json::from_str(damage.1).expect("JSON");
        std::fs::write(&path, state.to_string()).expect("written");
        let mut first = None;
        let mut listen = |progress: StageProgress| {
            first.get_or_insert(progress.done);
            ControlFlow::Break(())
        };
        build(folder.path(), &options(Search::Exact), &encoder, &corpus, &mut embed, &mut listen)
            .expect_err("stopped");
        assert_eq!(first, Some(1), "{damage:?}: it begins with the first passage");
        std::fs::remove_file(path).expect("removed");
    }
}

#[test]
fn a_half_written_block_is_written_again() {
    let (corpus, encoder, folder) =
        (corpus(2 * BLOCK_PASSAGES), identity("a"), tempfile::tempdir().expect("a folder"));
    let mut stop = |_: StageProgress| ControlFlow::Break(());
    build(folder.path(), &options(Search::Exact), &encoder, &corpus, &mut embed, &mut stop)
        .expect_err("stopped");
    let part = folder.path().join(PART_FILE);
    let mut bytes = std::fs::read(&part).expect("one block is there");
    bytes.extend([7; 33]);
    std::fs::write(&part, bytes).expect("written");
    let report =
        build(folder.path(), &options(Search::Exact), &encoder, &corpus, &mut embed, &mut go_on)
            .expect("built");
    assert_eq!(report.n_reused, BLOCK_PASSAGES);
    let texts = passage_texts(&corpus, 0..corpus.len()).expect("texts");
    let expected = embed(&texts, &mut |_, _| ControlFlow::Continue(())).expect("embedded");
    assert_eq!(read(folder.path(), VECTORS_FILE), bytemuck::cast_slice::<f32, u8>(&expected));
}

#[test]
fn a_finished_index_answers_and_is_not_built_twice() {
    let (corpus, encoder, folder) =
        (corpus(300), identity("a"), tempfile::tempdir().expect("a folder"));
    let run = |search| {
        build(folder.path(), &options(search), &encoder, &corpus, &mut embed, &mut go_on)
            .expect("built")
    };
    run(Search::Exact);
    assert_eq!(run(Search::Exact).n_reused, 300);
    // A graph is added to the vectors that are there.
    let report = run(Search::Hnsw);
    assert!(report.n_reused == 300 && report.graph_s > 0.0, "{report:?}");
    assert_eq!(run(Search::Hnsw).graph_s, 0.0);

    let meta = IndexMeta::read(folder.path()).expect("finished");
    let texts = passage_texts(&corpus, 40..43).expect("texts");
    let queries = embed(&texts, &mut |_, _| ControlFlow::Continue(())).expect("embedded");
    for search in [Search::Exact, Search::Hnsw] {
        let index = Index::open(folder.path(), &meta, search, 50).expect("opened");
        let nearest: Vec<usize> = index.search(&queries, 3).iter().map(|list| list[0].id).collect();
        assert_eq!(nearest, [40, 41, 42], "{search:?}");
    }
}

#[test]
fn an_index_of_something_else_is_replaced_only_if_asked() {
    let (first, folder) = (corpus(20), tempfile::tempdir().expect("a folder"));
    build(folder.path(), &options(Search::Exact), &identity("a"), &first, &mut embed, &mut go_on)
        .expect("built");
    for (encoder, corpus) in [(identity("b"), corpus(20)), (identity("a"), corpus(21))] {
        let error = build(
            folder.path(),
            &options(Search::Exact),
            &encoder,
            &corpus,
            &mut embed,
            &mut go_on,
        )
        .expect_err("refused");
        assert!(
            error.to_string().contains("encoder a and corpus \"corpus.jsonl\"")
                && error.to_string().contains("--force"),
            "{error}"
        );
    }
    let replace = BuildOptions { replace: true, ..options(Search::Exact) };
    build(folder.path(), &replace, &identity("b"), &corpus(21), &mut embed, &mut go_on)
        .expect("replaced");
    assert_eq!(IndexMeta::read(folder.path()).expect("finished").encoder.name, "b");
}

#[test]
fn another_encoder_or_corpus_is_refused_with_both_names() {
    let (corpus_a, folder) = (corpus(20), tempfile::tempdir().expect("a folder"));
    build(
        folder.path(),
        &options(Search::Exact),
        &identity("a"),
        &corpus_a,
        &mut embed,
        &mut go_on,
    )
    .expect("built");
    let meta = IndexMeta::read(folder.path()).expect("finished");
    let message =
        meta.check_encoder(folder.path(), &identity("b")).expect_err("another encoder").to_string();
    assert!(
        message.contains("encoder a with")
            && message.contains("with b with")
            && message.contains("hint: "),
        "{message}"
    );
    let message =
        meta.check_corpus(folder.path(), &corpus(19)).expect_err("another corpus").to_string();
    assert!(
        message.contains("\"corpus.jsonl\" of 20 passages") && message.contains("19 passages"),
        "{message}"
    );
}

#[test]
fn truncated_vectors_are_refused_and_rebuilt() {
    let (corpus, encoder, folder) =
        (corpus(20), identity("a"), tempfile::tempdir().expect("a folder"));
    let run = || {
        build(folder.path(), &options(Search::Exact), &encoder, &corpus, &mut embed, &mut go_on)
            .expect("built")
    };
    run();
    let path = folder.path().join(VECTORS_FILE);
    let whole = std::fs::read(&path).expect("vectors");
    std::fs::write(&path, &whole[..whole.len() - 5]).expect("written");
    let meta = IndexMeta::read(folder.path()).expect("index.json is whole");
    let message =
        Index::open(folder.path(), &meta, Search::Auto, 50).err().expect("truncated").to_string();
    assert!(message.contains("bytes instead of") && message.contains("hint: rebuild"), "{message}");
    run();
    assert_eq!(std::fs::read(&path).expect("vectors"), whole);
}

#[test]
fn an_empty_corpus_and_an_unwritable_folder_are_errors() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |dir: &Path, n| {
        build(dir, &options(Search::Exact), &identity("a"), &corpus(n), &mut embed, &mut go_on)
            .expect_err("refused")
    };
    assert!(matches!(run(folder.path(), 0), RetrieverError::EmptyCorpus));
    let file = folder.path().join("a file");
    std::fs::write(&file, "").expect("written");
    assert!(matches!(run(&file, 3), RetrieverError::Io { .. }));
}

#[test]
fn asking_for_a_graph_that_is_not_there_is_an_error() {
    let (corpus, folder) = (corpus(20), tempfile::tempdir().expect("a folder"));
    build(folder.path(), &options(Search::Exact), &identity("a"), &corpus, &mut embed, &mut go_on)
        .expect("built");
    let meta = IndexMeta::read(folder.path()).expect("finished");
    let message =
        Index::open(folder.path(), &meta, Search::Hnsw, 50).err().expect("no graph").to_string();
    assert!(
        message.contains("has no graph") && message.contains("retriever.search=hnsw"),
        "{message}"
    );
}
