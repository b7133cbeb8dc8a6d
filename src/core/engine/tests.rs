use super::*;
use crate::{
    rng::Purpose,
    testing::{Cpu, byte_level_tokenizer},
};
use dgpo_models::config::{DecoderConfig, Family, RopeScaling};

const SAMPLED: Sampling = Sampling { temperature: 0.7, top_p: 1.0, top_k: 0 };

/// A small decoder whose random weights are large enough for distributions that are far from
/// uniform.
fn config(initializer_range: f64) -> DecoderConfig {
    DecoderConfig {
        family: Family::Qwen2,
        vocab_size: 336,
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        max_position_embeddings: 512,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        is_tied: true,
        has_qkv_bias: true,
        initializer_range,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    }
}

pub(crate) fn random_model() -> Decoder<Cpu> {
    Decoder::init(&config(0.4), 3, &Default::default())
}

fn options(max_rows: usize) -> EngineOptions {
    EngineOptions { max_rows, capacity: 128, stop_strings: Vec::new(), eos_ids: Vec::new() }
}

fn engine<'a>(
    model: &'a Decoder<Cpu>,
    tokenizer: &'a Tokenizer,
    options: EngineOptions,
) -> Engine<'a, Cpu> {
    Engine::new(model, tokenizer, options, &Default::default())
}

/// Tokens of a row: those in the cache and those drawn or appended behind them.
fn row_len(engine: &Engine<'_, Cpu>, row: usize) -> usize {
    let row = &engine.rows[&row];
    engine.cache.len(row.slot) + row.unfed.len()
}

/// A prompt of `n` tokens that belongs to row `row` alone.
fn request(row: usize, n: usize) -> Request {
    let key = Key::new(4, Purpose::Rollout).fold(row as u64);
    let ids = (0..n as u64).map(|i| key.fold(1).below(i, 330) as u32).collect();
    Request { row, ids, key, max_new_tokens: 24, sampling: SAMPLED }
}

/// Eight rows of very different lengths.
fn ragged() -> Vec<Request> {
    [1, 40, 7, 2, 33, 19, 5, 11].iter().enumerate().map(|(row, &n)| request(row, n)).collect()
}

/// log_softmax(logits / temperature)[id] of one context, by a full forward pass without a cache, in
/// f64.
fn log_probs_of_full_pass(
    model: &Decoder<Cpu>,
    ids: &[u32],
    n_prompt: usize,
    temperature: f64,
) -> Vec<f64> {
    let columns: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let hidden = model.hidden(
        Tensor::from_data(TensorData::new(columns, [1, ids.len()]), &Default::default()),
        None,
        None,
    );
    let [_, n, width] = hidden.dims();
    let logits = model.logits(hidden.reshape([n, width])).into_data().to_vec::<f32>().expect("f32");
    let rows: Vec<&[f32]> = logits.chunks(logits.len() / n).collect();
    let log_prob = |at: usize| {
        let scaled: Vec<f64> = rows[at - 1].iter().map(|&l| f64::from(l) / temperature).collect();
        let max = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        scaled[ids[at] as usize] - max - scaled.iter().map(|s| (s - max).exp()).sum::<f64>().ln()
    };
    (n_prompt..n).map(log_prob).collect()
}

#[test]
fn a_rows_tokens_depend_on_neither_batch_size_nor_order() {
    let (model, tokenizer) = (random_model(), byte_level_tokenizer());
    let alone = engine(&model, &tokenizer, options(1)).generate(ragged()).expect("generates");
    for max_rows in [3, 8] {
        for order in [[0, 1, 2, 3, 4, 5, 6, 7], [6, 1, 7, 0, 3, 5, 2, 4]] {
            let requests = ragged();
            let permuted = order.iter().map(|&row| requests[row].clone()).collect();
            for completion in
                engine(&model, &tokenizer, options(max_rows)).generate(permuted).expect("generates")
            {
                assert_eq!(
                    completion.ids, alone[completion.row].ids,
                    "{max_rows} rows, order {order:?}, row {}",
                    completion.row
                );
            }
        }
    }
}

#[test]
fn reported_log_probs_are_those_of_a_full_forward_pass() {
    let (model, tokenizer) = (random_model(), byte_level_tokenizer());
    let requests = ragged();
    for (request, completion) in requests
        .iter()
        .zip(engine(&model, &tokenizer, options(5)).generate(ragged()).expect("generates"))
    {
        let context = [request.ids.as_slice(), &completion.ids].concat();
        let expected =
            log_probs_of_full_pass(&model, &context, request.ids.len(), SAMPLED.temperature);
        assert_eq!(expected.len(), completion.log_probs.len());
        for (got, expected) in completion.log_probs.iter().zip(expected) {
            // The oracles' tolerance for logits with a cache against the full pass (5e-5), over a
            // temperature of 0.7.
            assert!(
                (f64::from(*got) - expected).abs() < 1e-4,
                "row {}: {got} {expected}",
                request.row
            );
        }
    }
}

#[test]
fn a_later_request_continues_behind_the_token_that_was_never_fed() {
    let (model, tokenizer) = (random_model(), byte_level_tokenizer());
    let (first, observation) = (request(0, 9), vec![17, 4, 301]);
    let mut engine_a = engine(&model, &tokenizer, options(2));
    engine_a.submit(first.clone());
    engine_a.submit(request(1, 30));
    let mut turns = Vec::new();
    while engine_a.is_busy() {
        for completion in engine_a.step().expect("steps") {
            if completion.row == 0 && turns.is_empty() {
                assert_eq!(row_len(&engine_a, 0), 9 + 24);
                engine_a.submit(Request {
                    ids: observation.clone(),
                    key: first.key.fold(1),
                    ..first.clone()
                });
            }
            turns.extend((completion.row == 0).then_some(completion.ids));
        }
    }
    assert_eq!((turns.len(), row_len(&engine_a, 0)), (2, 9 + 24 + 3 + 24));
    let whole = [first.ids.clone(), turns[0].clone(), observation].concat();
    let fresh = Request { ids: whole, key: first.key.fold(1), ..first };
    assert_eq!(
        engine(&model, &tokenizer, options(1)).generate(vec![fresh]).expect("generates")[0].ids,
        turns[1]
    );
}

#[test]
fn a_stop_string_ends_a_row_at_the_token_that_completes_it() {
    let (model, tokenizer) = (random_model(), byte_level_tokenizer());
    let long = Request { max_new_tokens: 100, ..request(0, 4) };
    let free = engine(&model, &tokenizer, options(1))
        .generate(vec![long.clone()])
        .expect("generates")
        .remove(0);
    // Three letters of the text, taken from after its first third.
    let text: Vec<char> = free.text.chars().collect();
    let words = text
        .windows(3)
        .skip(text.len() / 3)
        .find(|w| w.iter().all(char::is_ascii_alphabetic))
        .expect("three letters in a row");
    let stop: String = words.iter().collect();
    let expected = (1..)
        .find(|&n| tokenizer.decode(&free.ids[..n]).contains(&stop))
        .expect("it is in the text");
    let stopping =
        EngineOptions { stop_strings: vec!["never written".to_owned(), stop], ..options(1) };
    let stopped =
        engine(&model, &tokenizer, stopping).generate(vec![long]).expect("generates").remove(0);
    assert_eq!(
        (&stopped.ids[..], stopped.stop),
        (&free.ids[..expected], StopReason::StopString(1))
    );
    assert_eq!(
        (stopped.text, stopped.log_probs.len()),
        (tokenizer.decode(&free.ids[..expected]), expected)
    );
}

#[test]
fn an_eos_token_is_kept_as_the_last_id() {
    let (model, tokenizer) = (random_model(), byte_level_tokenizer());
    let free = engine(&model, &tokenizer, options(1))
        .generate(vec![request(0, 4)])
        .expect("generates")
        .remove(0);
    let eos = free.ids[10];
    let n = free.ids.iter().position(|&id| id == eos).expect("it was drawn") + 1;
    let with_eos = EngineOptions { eos_ids: vec![eos], ..options(1) };
    let stopped = engine(&model, &tokenizer, with_eos)
        .generate(vec![request(0, 4)])
        .expect("generates")
        .remove(0);
    assert_eq!((&stopped.ids[..], stopped.stop), (&free.ids[..n], StopReason::Eos));
}

#[test]
fn a_row_ends_at_its_token_limit_and_at_its_capacity() {
    let (model, tokenizer) = (random_model(), byte_level_tokenizer());
    let mut engine = engine(&model, &tokenizer, EngineOptions { capacity: 16, ..options(3) });
    let short = Request { max_new_tokens: 3, ..request(0, 10) };
    let requests =
        vec![short, request(1, 10), request(2, 16), Request { max_new_tokens: 0, ..request(3, 4) }];
    let ends: Vec<_> = engine
        .generate(requests)
        .expect("generates")
        .into_iter()
        .map(|c| (c.ids.len(), c.stop))
        .collect();
    assert_eq!(
        ends,
        [
            (3, StopReason::Length),
            (6, StopReason::Capacity),
            (0, StopReason::Capacity),
            (0, StopReason::Length)
        ]
    );
}

#[test]
fn a_queued_row_waits_until_a_slot_is_released() {
    let (model, tokenizer) = (random_model(), byte_level_tokenizer());
    let mut engine = engine(&model, &tokenizer, options(1));
    engine.submit(request(0, 3));
    engine.submit(request(1, 3));
    let mut ended = Vec::new();
    while engine.is_busy() {
        ended.extend(engine.step().expect("steps").into_iter().map(|c| c.row));
    }
    assert_eq!(ended, [0], "row 0 keeps the only slot");
    engine.release(0);
    while engine.is_busy() {
        ended.extend(engine.step().expect("steps").into_iter().map(|c| c.row));
    }
    assert_eq!(ended, [0, 1]);
}

#[test]
fn logits_that_are_not_finite_are_an_error_that_names_row_and_position() {
    let tokenizer = byte_level_tokenizer();
    let model: Decoder<Cpu> = Decoder::init(&config(f64::NAN), 3, &Default::default());
    let error = engine(&model, &tokenizer, options(2))
        .generate(vec![request(5, 7)])
        .expect_err("NaN weights");
    assert!(matches!(error, EngineError::NotFinite { row: 5, position: 6 }), "{error}");
}

#[test]
fn a_prompt_without_tokens_is_refused() {
    let (model, tokenizer) = (random_model(), byte_level_tokenizer());
    let error = engine(&model, &tokenizer, options(2))
        .generate(vec![request(2, 0)])
        .expect_err("nothing to condition on");
    assert!(matches!(error, EngineError::EmptyPrompt { row: 2 }), "{error}");
}

#[test]
fn prefill_batches_pad_at_most_half_and_hold_every_row_once() {
    let (model, tokenizer) = (random_model(), byte_level_tokenizer());
    let mut engine = engine(&model, &tokenizer, EngineOptions { capacity: 5000, ..options(40) });
    let length = |row: usize| [1, 3000, 1, 2, 90, 700][row % 6] + row / 6;
    (0..40).for_each(|row| engine.submit(request(row, length(row))));
    engine.admit().expect("no empty prompt");
    let batches = engine.plan();
    for batch in &batches {
        let longest = batch.iter().map(|&row| length(row)).max().expect("not empty");
        let n_real: usize = batch.iter().map(|&row| length(row)).sum();
        assert!(2 * n_real >= longest * batch.len(), "{batch:?}");
        assert!(batch.len() == 1 || longest * batch.len() <= MAX_PREFILL_TOKENS, "{batch:?}");
    }
    let mut rows = batches.concat();
    rows.sort_unstable();
    assert_eq!(rows, (0..40).collect::<Vec<_>>());
}
