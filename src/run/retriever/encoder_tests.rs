use super::*;
use burn::backend::Flex;
use dgpo_core::testing::repository;
use dgpo_models::config::BertConfig;
use std::ops::ControlFlow;

const TOKENIZER: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/tiny/encoder/tokenizer.json");

pub fn options() -> EncoderOptions {
    EncoderOptions {
        query_prefix: "query: ".to_owned(),
        passage_prefix: "passage: ".to_owned(),
        max_tokens: 24,
        batch_tokens: 64,
    }
}

/// A small BERT with random weights over the built-in world's tokenizer.
pub fn random_encoder(seed: u64, options: EncoderOptions) -> Encoder<Flex> {
    random_encoder_with(SentenceHead::default(), seed, options)
}

/// As [`random_encoder`], with another pooling.
pub fn random_encoder_with(
    head: SentenceHead,
    seed: u64,
    options: EncoderOptions,
) -> Encoder<Flex> {
    let tokenizer = Tokenizer::from_path(Path::new(TOKENIZER)).expect("the built-in tokenizer");
    let config = BertConfig {
        vocab_size: tokenizer.n_tokens(),
        hidden_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        intermediate_size: 64,
        max_position_embeddings: 32,
        type_vocab_size: 2,
        layer_norm_eps: 1e-12,
        // Large enough that attention differs between texts.
        initializer_range: 0.3,
        pad_token_id: 0,
    };
    let device = Default::default();
    let model = BertEncoder::init(&config, seed, &device);
    let parts = EncoderParts {
        model,
        tokenizer,
        declared: EncoderDeclaration { head, ..EncoderDeclaration::default() },
    };
    Encoder::from_parts(parts, "random", format!("seed {seed}, {head:?}"), options, &device)
        .expect("the parts fit")
}

fn texts() -> Vec<String> {
    let words =
        ["river", "the film", "a book of", "born in", "who", "director of the long film", "x"];
    (0..40)
        .map(|i| {
            (0..1 + i * 7 % 11)
                .map(|j| words[(i + j * j) % words.len()])
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect()
}

fn encode(encoder: &Encoder<Flex>, texts: &[String]) -> Vec<f32> {
    encoder.encode_passages(texts, &mut |_, _| ControlFlow::Continue(())).expect("encoded")
}

#[test]
fn passages_come_in_input_order_whatever_the_batches() {
    let texts = texts();
    let small = random_encoder(1, options());
    let large = random_encoder(1, EncoderOptions { batch_tokens: 100_000, ..options() });
    let together = encode(&large, &texts);
    // f32 sums of some hundred terms of order 1, normalised: 1e-5 is far above rounding and far
    // below any real difference.
    let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-5);
    assert!(close(&encode(&small, &texts), &together));
    for (text, embedding) in texts.iter().zip(together.chunks_exact(32)) {
        assert!(close(&encode(&small, std::slice::from_ref(text)), embedding), "{text}");
        assert!((embedding.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
    }
}

#[test]
fn a_query_has_the_same_embedding_to_the_last_bit_alone_and_in_a_batch() {
    let encoder = random_encoder(2, options());
    let texts = texts();
    let together = encoder.encode_queries(&texts).expect("encoded");
    for (text, embedding) in texts.iter().zip(together.chunks_exact(32)) {
        assert_eq!(
            encoder.encode_queries(std::slice::from_ref(text)).expect("encoded"),
            embedding,
            "{text}"
        );
    }
}

#[test]
fn queries_and_passages_have_their_own_prefixes() {
    let text = ["the film".to_owned()];
    let encoder = random_encoder(3, options());
    let swapped = random_encoder(
        3,
        EncoderOptions {
            query_prefix: "passage: ".to_owned(),
            passage_prefix: "query: ".to_owned(),
            ..options()
        },
    );
    let query = encoder.encode_queries(&text).expect("encoded");
    assert_ne!(encode(&encoder, &text), query);
    let same = encode(&swapped, &text);
    assert!(same.iter().zip(&query).all(|(x, y)| (x - y).abs() < 1e-5));
}

#[test]
fn a_long_text_is_cut_and_keeps_its_closing_token() {
    let cut = |mut ids: Vec<u32>, closing| {
        truncate(&mut ids, 4, closing);
        ids
    };
    assert_eq!(cut(vec![101, 1, 2, 3, 102], Some(102)), [101, 1, 2, 102]);
    assert_eq!(cut(vec![101, 1, 102], Some(102)), [101, 1, 102]);
    assert_eq!(cut(vec![1, 2, 3, 4, 5], None), [1, 2, 3, 4]);
}

#[test]
fn an_empty_query_has_an_embedding() {
    let encoder = random_encoder(1, EncoderOptions { query_prefix: String::new(), ..options() });
    let embedding = encoder.encode_queries(&[String::new()]).expect("encoded");
    assert!((embedding.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
}

#[test]
fn batches_hold_every_text_once_and_keep_to_the_budget() {
    let lengths = [3, 9, 1, 30, 4, 4, 9];
    let batches = length_sorted_batches(&lengths, 20);
    let mut all: Vec<usize> = batches.concat();
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2, 3, 4, 5, 6]);
    // The text of 30 tokens exceeds the budget and has a batch of its own.
    assert_eq!(batches, [vec![3], vec![1, 6], vec![4, 5, 0, 2]]);
}

#[test]
fn encoding_stops_where_it_is_told() {
    let error = random_encoder(1, options())
        .encode_passages(&texts(), &mut |_, _| ControlFlow::Break(()))
        .expect_err("stopped");
    assert!(matches!(error, RetrieverError::Interrupted { total: 40, .. }), "{error}");
}

#[test]
fn the_fingerprint_changes_with_everything_that_changes_an_embedding() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, content) in [
        ("config.json", "{}"),
        ("model.safetensors", "weights"),
        ("tokenizer.json", "words"),
        ("README.md", "text"),
    ] {
        std::fs::write(folder.path().join(name), content).expect("written");
    }
    let e5 = EncoderDeclaration::default();
    let of = |options: &EncoderOptions| fingerprint(folder.path(), options, &e5).expect("readable");
    let original = of(&options());
    assert_ne!(of(&EncoderOptions { query_prefix: "q: ".to_owned(), ..options() }), original);
    assert_ne!(of(&EncoderOptions { passage_prefix: "p: ".to_owned(), ..options() }), original);
    assert_ne!(of(&EncoderOptions { max_tokens: 23, ..options() }), original);
    assert_eq!(of(&EncoderOptions { batch_tokens: 1, ..options() }), original);
    std::fs::write(folder.path().join("README.md"), "other text").expect("written");
    assert_eq!(of(&options()), original);
    std::fs::write(folder.path().join("model.safetensors"), "other weights").expect("written");
    assert_ne!(of(&options()), original);
}

#[test]
fn more_tokens_than_positions_are_refused() {
    let tokenizer = Tokenizer::from_path(Path::new(TOKENIZER)).expect("the built-in tokenizer");
    let encoder = random_encoder(1, options());
    let options = EncoderOptions { max_tokens: 33, ..options() };
    let parts = EncoderParts {
        model: encoder.parts.model,
        tokenizer,
        declared: EncoderDeclaration::default(),
    };
    let error = Encoder::from_parts(parts, "random", String::new(), options, &encoder.device).err();
    let message = error.expect("33 tokens do not fit 32 positions").to_string();
    assert!(message.contains("max_tokens = 33") && message.contains("32 positions"), "{message}");
}

#[test]
fn the_fingerprint_tells_other_poolings_apart_and_leaves_that_of_e5_as_it_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, content) in
        [("config.json", "{}"), ("model.safetensors", "weights"), ("tokenizer.json", "words")]
    {
        std::fs::write(folder.path().join(name), content).expect("written");
    }
    let of = |pooling, is_unit_length| {
        let head = SentenceHead { pooling, is_unit_length };
        fingerprint(
            folder.path(),
            &options(),
            &EncoderDeclaration { head, ..EncoderDeclaration::default() },
        )
        .expect("readable")
    };
    // Of every part: eight bytes of the name's length, the name, eight bytes of the content's
    // length, the content.
    let mut hasher = Sha256::new();
    let max_tokens = 24u64.to_le_bytes();
    let files: [(&str, &[u8]); 3] =
        [("config.json", b"{}"), ("model.safetensors", b"weights"), ("tokenizer.json", b"words")];
    let texts: [(&str, &[u8]); 3] = [
        ("query_prefix", b"query: "),
        ("passage_prefix", b"passage: "),
        ("max_tokens", &max_tokens),
    ];
    for (name, content) in files.into_iter().chain(texts) {
        for part in [name.as_bytes(), content] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    assert_eq!(of(Pooling::Mean, true), format!("{:x}", hasher.finalize()));
    let all = [
        of(Pooling::Mean, true),
        of(Pooling::Mean, false),
        of(Pooling::Cls, true),
        of(Pooling::Cls, false),
    ];
    assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), 4);
}

#[test]
fn an_encoder_that_declares_cls_pooling_is_pooled_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (tiny, inside) = (repository("configs/tiny/encoder"), folder.path().join("1_Pooling"));
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(tiny.join(name), folder.path().join(name)).expect("copied");
    }
    let open = |folder: &Path| {
        let options = EncoderOptions {
            query_prefix: "q ".to_owned(),
            passage_prefix: "p ".to_owned(),
            ..options()
        };
        Encoder::<Flex>::open(folder, "tiny", options, &Default::default()).expect("opened")
    };
    let mean = open(folder.path());
    std::fs::create_dir(&inside).expect("made");
    let pooling = r#"{"word_embedding_dimension": 32, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#;
    std::fs::write(inside.join("config.json"), pooling).expect("written");
    let cls = open(folder.path());
    assert_ne!(cls.identity().fingerprint, mean.identity().fingerprint);
    let texts = ["Duva Vatir was born in Tobsa Port.".to_owned(), "Who?".to_owned()];
    for (text, embedding) in texts.iter().zip(encode(&cls, &texts).chunks_exact(32)) {
        let ids = cls.parts.tokenizer.encode_with_special(&format!("p {text}")).expect("tokens");
        let n = ids.len();
        let ids = TensorData::new(ids.into_iter().map(i64::from).collect::<Vec<_>>(), [1, n]);
        let tensor = |data| Tensor::<Flex, 2, Int>::from_data(data, &Default::default());
        let states =
            cls.parts.model.all_hidden(tensor(ids), tensor(TensorData::new(vec![1i64; n], [1, n])));
        let first: Vec<f32> =
            states[states.len() - 1].clone().into_data().to_vec::<f32>().expect("f32")[..32]
                .to_vec();
        let length = first.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        for (found, expected) in embedding.iter().zip(&first) {
            // One text alone and in a padded batch: f32 rounding of sums of some hundred terms.
            assert!((f64::from(*found) - f64::from(*expected) / length).abs() < 1e-5, "{text}");
        }
    }
}

#[test]
fn vectors_of_any_length_are_searched_exactly_and_by_their_inner_product() {
    let head = |is_unit_length| SentenceHead { pooling: Pooling::Mean, is_unit_length };
    let (unit, any) = (
        random_encoder_with(head(true), 1, options()),
        random_encoder_with(head(false), 1, options()),
    );
    assert_eq!(any.identity().search(Search::Auto).expect("auto"), Search::Exact);
    assert_eq!(unit.identity().search(Search::Hnsw).expect("hnsw"), Search::Hnsw);
    let message = any.identity().search(Search::Hnsw).expect_err("no unit length").to_string();
    assert!(
        message.contains("retriever.search = \"hnsw\"") && message.contains("use exact"),
        "{message}"
    );
    let texts = texts();
    for (any, unit) in
        encode(&any, &texts).chunks_exact(32).zip(encode(&unit, &texts).chunks_exact(32))
    {
        let length = any.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        assert!((length - 1.0).abs() > 0.1, "a layer norm gives other lengths than 1");
        assert!(
            any.iter()
                .zip(unit)
                .all(|(x, y)| (f64::from(*x) / length - f64::from(*y)).abs() < 1e-5)
        );
    }
}
