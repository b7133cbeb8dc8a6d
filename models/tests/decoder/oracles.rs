//! The decoder against tensors that transformers computed (tests/oracles/models).
use crate::common::{Oracle, assert_close, f32s};
use burn::{
    backend::{Autodiff, Flex},
    tensor::{Int, Tensor, TensorData},
};
use dgpo_models::{
    cache::{CacheRows, KvCache},
    decoder::Decoder,
    heads::{Critic, token_log_probs},
    rope,
};

type Train = Autodiff<Flex>;

const MODELS: [&str; 5] =
    ["qwen2_tied", "llama3_tied", "llama3_untied_v5cfg", "qwen2_untied_sharded", "qwen2_tied_bf16"];

/// A batch in our layout: real tokens first, padding (id 0) behind them.
struct Batch {
    rows: Vec<Vec<i64>>,
    /// For each row, the columns of the oracle's tensors that its tokens came from.
    columns: Vec<Vec<usize>>,
}

impl Batch {
    fn new(oracle: &Oracle, name: &str) -> Self {
        let ids = oracle.ints(&format!("{name}.input_ids"));
        let mask = oracle.ints(&format!("{name}.attention_mask"));
        let width = oracle.shape(&format!("{name}.input_ids"))[1];
        let columns: Vec<Vec<usize>> = mask
            .chunks(width)
            .map(|row| (0..width).filter(|&column| row[column] == 1).collect())
            .collect();
        let rows = columns
            .iter()
            .enumerate()
            .map(|(b, columns)| columns.iter().map(|&column| ids[b * width + column]).collect())
            .collect();
        Self { rows, columns }
    }

    fn ids<B: dgpo_models::Backend>(&self) -> Tensor<B, 2, Int> {
        padded(&self.rows)
    }
}

fn padded<B: dgpo_models::Backend>(rows: &[Vec<i64>]) -> Tensor<B, 2, Int> {
    let width = rows.iter().map(Vec::len).max().unwrap();
    let ids: Vec<i64> = rows
        .iter()
        .flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0, width - row.len())))
        .collect();
    Tensor::from_data(TensorData::new(ids, [rows.len(), width]), &Default::default())
}

/// `[B, T, D]` -> logits `[B, T, V]` as plain numbers and V.
fn logits<B: dgpo_models::Backend>(model: &Decoder<B>, hidden: Tensor<B, 3>) -> (Vec<f32>, usize) {
    let [b, t, d] = hidden.dims();
    let logits = model.logits(hidden.reshape([b * t, d]));
    let n_vocab = logits.dims()[1];
    (f32s(logits), n_vocab)
}

/// Compares row by row at the real columns: `got` [B, columns, n] right-padded, `want` [B, columns,
/// n] in the oracle's layout; (values, columns) each.
fn assert_real_columns(
    batch: &Batch,
    got: (&[f32], usize),
    want: (&[f32], usize),
    n: usize,
    tolerance: f32,
    what: &str,
) {
    for (b, columns) in batch.columns.iter().enumerate() {
        for (t, column) in columns.iter().enumerate() {
            let got = &got.0[(b * got.1 + t) * n..][..n];
            let want = &want.0[(b * want.1 + column) * n..][..n];
            assert_close(got, want, tolerance, &format!("{what}, row {b}, token {t}"));
        }
    }
}

#[test]
fn logits_of_padded_batches_match() {
    for name in MODELS {
        let oracle = Oracle::open(name);
        let model = oracle.decoder::<Flex>();
        for side in ["left", "right"] {
            let batch = Batch::new(&oracle, side);
            let ids = batch.ids::<Flex>();
            let width = ids.dims()[1];
            let (got, n_vocab) = logits(&model, model.hidden(ids, None, None));
            let want_width = oracle.shape(&format!("{side}.logits"))[1];
            assert_real_columns(
                &batch,
                (&got, width),
                (&oracle.floats(&format!("{side}.logits")), want_width),
                n_vocab,
                1e-4,
                name,
            );
        }
    }
}

#[test]
fn hidden_states_of_every_layer_match() {
    for name in MODELS {
        let oracle = Oracle::open(name);
        let model = oracle.decoder::<Flex>();
        let batch = Batch::new(&oracle, "left");
        let states = model.all_hidden(batch.ids(), None);
        let shape = oracle.shape("left.hidden_states");
        let want = oracle.floats("left.hidden_states");
        assert_eq!(states.len(), shape[0], "{name}");
        let layer_size = shape[1] * shape[2] * shape[3];
        for (layer, state) in states.into_iter().enumerate() {
            let [_, width, n] = state.dims();
            let want = &want[layer * layer_size..(layer + 1) * layer_size];
            assert_real_columns(
                &batch,
                (&f32s(state), width),
                (want, shape[2]),
                n,
                1e-4,
                &format!("{name}, layer {layer}"),
            );
        }
    }
}

#[test]
fn log_probs_and_entropies_match() {
    for name in MODELS {
        let oracle = Oracle::open(name);
        let model = oracle.decoder::<Flex>();
        let batch = Batch::new(&oracle, "left");
        let hidden = model.hidden(batch.ids(), None, None);
        let [_, width, d_model] = hidden.dims();
        let hidden = hidden.reshape([-1, d_model as i32]);
        let (mut rows, mut labels, mut places) = (vec![], vec![], vec![]);
        for (b, ids) in batch.rows.iter().enumerate() {
            for t in 0..ids.len() - 1 {
                rows.push((b * width + t) as i64);
                labels.push(ids[t + 1]);
                places.push((b, batch.columns[b][t]));
            }
        }
        let ints = |x: Vec<i64>| {
            Tensor::<Flex, 1, Int>::from_data(
                TensorData::new(x.clone(), [x.len()]),
                &Default::default(),
            )
        };
        let hidden = hidden.select(0, ints(rows));
        for temperature in ["1.0", "0.7"] {
            let got = token_log_probs(
                model.head(hidden.clone()),
                ints(labels.clone()),
                temperature.parse().unwrap(),
            );
            let want_width = oracle.shape("left.entropy_T1.0")[1];
            for (key, got) in [("token_logprobs", got.log_probs), ("entropy", got.entropy)] {
                let want = oracle.floats(&format!("left.{key}_T{temperature}"));
                let want: Vec<f32> =
                    places.iter().map(|(b, column)| want[b * want_width + column]).collect();
                assert_close(&f32s(got), &want, 1e-4, &format!("{name} {key} at {temperature}"));
            }
        }
    }
}

#[test]
fn nan_logits_give_nan_log_probs_and_entropy() {
    let logits =
        Tensor::<Flex, 2>::from_data([[1.0, f32::NAN, 0.0], [1.0, 2.0, 3.0]], &Default::default());
    let labels = Tensor::<Flex, 1, Int>::from_data([0, 0], &Default::default());
    let got = token_log_probs(logits, labels, 1.0);
    for values in [f32s(got.log_probs), f32s(got.entropy)] {
        assert!(values[0].is_nan() && values[1].is_finite(), "{values:?}");
    }
}

#[test]
fn cached_steps_match_the_reference_and_the_full_pass() {
    const STEPS: usize = 5;
    for name in MODELS {
        let oracle = Oracle::open(name);
        let model = oracle.decoder::<Flex>();
        let batch = Batch::new(&oracle, "left");
        let n_rows = batch.rows.len();
        let (full, n_vocab) = logits(&model, model.hidden(batch.ids(), None, None));
        let full_width = batch.rows.iter().map(Vec::len).max().unwrap();
        let want = oracle.floats("kv.step_logits");

        // Slots in another order than the rows, one slot too many. The oracle fed all rows all
        // columns but the last STEPS, then column by column; here a row takes part from its first
        // real column on.
        let slots: Vec<usize> = (0..n_rows).rev().collect();
        let mut cache = KvCache::new(&model.config(), n_rows + 1, full_width, &Default::default());
        let n_columns = oracle.shape("left.input_ids")[1];
        for step in 0..=STEPS {
            let columns = if step == 0 {
                0..n_columns - STEPS
            } else {
                n_columns - STEPS + step - 1..n_columns - STEPS + step
            };
            let new_tokens = |b: usize| -> Vec<i64> {
                batch.rows[b]
                    .iter()
                    .zip(&batch.columns[b])
                    .filter(|(_, column)| columns.contains(column))
                    .map(|(id, _)| *id)
                    .collect()
            };
            let live: Vec<usize> = (0..n_rows).filter(|&b| !new_tokens(b).is_empty()).collect();
            let input: Vec<Vec<i64>> = live.iter().map(|&b| new_tokens(b)).collect();
            let n_new: Vec<usize> = input.iter().map(Vec::len).collect();
            let live_slots: Vec<usize> = live.iter().map(|&b| slots[b]).collect();
            let hidden = model.hidden(
                padded(&input),
                None,
                Some(CacheRows { cache: &mut cache, slots: &live_slots, n_new: &n_new }),
            );
            let width = hidden.dims()[1];
            let (got, _) = logits(&model, hidden);
            for (i, &b) in live.iter().enumerate() {
                let got = &got[(i * width + n_new[i] - 1) * n_vocab..][..n_vocab];
                assert_close(
                    got,
                    &want[(b * (STEPS + 1) + step) * n_vocab..][..n_vocab],
                    1e-4,
                    &format!("{name}, row {b}, step {step}"),
                );
                let t = cache.len(slots[b]) - 1;
                let full = &full[(b * full_width + t) * n_vocab..][..n_vocab];
                assert_close(got, full, 5e-5, &format!("{name}, full pass, row {b}, step {step}"));
            }
        }
        (0..n_rows).for_each(|b| assert_eq!(cache.len(slots[b]), batch.rows[b].len()));
    }
}

#[test]
fn greedy_generation_matches() {
    for name in MODELS {
        let oracle = Oracle::open(name);
        let model = oracle.decoder::<Flex>();
        let batch = Batch::new(&oracle, "gen");
        let want = oracle.ints("gen.tokens");
        let n_tokens = oracle.shape("gen.tokens")[1];
        let n_rows = batch.rows.len();
        let slots: Vec<usize> = (0..n_rows).collect();
        let mut cache = KvCache::new(&model.config(), n_rows, 64, &Default::default());
        let mut input = batch.rows.clone();
        for step in 0..n_tokens {
            let n_new: Vec<usize> = input.iter().map(Vec::len).collect();
            let hidden = model.hidden(
                padded(&input),
                None,
                Some(CacheRows { cache: &mut cache, slots: &slots, n_new: &n_new }),
            );
            let width = hidden.dims()[1];
            let (logits, n_vocab) = logits(&model, hidden);
            input = (0..n_rows)
                .map(|b| {
                    let row = &logits[(b * width + n_new[b] - 1) * n_vocab..][..n_vocab];
                    let best = (0..n_vocab).max_by(|&i, &j| row[i].total_cmp(&row[j])).unwrap();
                    assert_eq!(
                        best as i64,
                        want[b * n_tokens + step],
                        "{name}, row {b}, token {step}"
                    );
                    vec![best as i64]
                })
                .collect();
        }
    }
}

#[test]
fn rope_tables_match() {
    for name in MODELS {
        let oracle = Oracle::open(name);
        let want = oracle.floats("rope.inv_freq");
        for (got, want) in rope::inv_freq(&oracle.config).iter().zip(&want) {
            assert!((got - want).abs() <= 1e-6 * want, "{name}: {got} instead of {want}");
        }
        let positions: Vec<usize> =
            oracle.ints("rope.positions").into_iter().map(|p| p as usize).collect();
        let (cos, sin) = rope::tables(&oracle.config, &positions);
        let half = oracle.config.head_dim / 2;
        for (key, table) in [("rope.cos", cos), ("rope.sin", sin)] {
            let want = oracle.floats(key);
            for (row, position) in positions.iter().enumerate() {
                let tolerance = if *position <= 2047 { 1e-4 } else { 3e-3 };
                for copy in [0, half] {
                    let want = &want[row * 2 * half + copy..][..half];
                    assert_close(
                        &table[row * half..][..half],
                        want,
                        tolerance,
                        &format!("{name} {key} at {position}"),
                    );
                }
            }
        }
    }
}

#[test]
fn far_positions_match() {
    for name in MODELS {
        let oracle = Oracle::open(name);
        let model = oracle.decoder::<Flex>();
        let tensor = |key: &str| {
            Tensor::<Flex, 2, Int>::from_data(
                TensorData::new(oracle.ints(key), [1, oracle.shape(key)[1]]),
                &Default::default(),
            )
        };
        let (got, _) = logits(
            &model,
            model.hidden(tensor("far.input_ids"), Some(tensor("far.position_ids")), None),
        );
        assert_close(&got, &oracle.floats("far.logits"), 2e-3, name);
    }
}

#[test]
fn gradients_match() {
    for name in MODELS {
        let oracle = Oracle::open(name);
        let model = oracle.decoder::<Train>();
        let batch = Batch::new(&oracle, "right");
        let hidden = model.hidden(batch.ids(), None, None);
        let [_, width, d_model] = hidden.dims();
        let labels = oracle.ints("grad.labels");
        let labels_width = oracle.shape("grad.labels")[1];
        // Mean cross-entropy of label[t + 1] at column t, labels of -100 ignored.
        let (mut rows, mut targets) = (vec![], vec![]);
        for b in 0..batch.rows.len() {
            for t in 0..labels_width - 1 {
                let label = labels[b * labels_width + t + 1];
                if label != -100 {
                    rows.push((b * width + t) as i64);
                    targets.push(label);
                }
            }
        }
        let n = rows.len();
        let ints = |x: Vec<i64>| {
            Tensor::<Train, 1, Int>::from_data(TensorData::new(x, [n]), &Default::default())
        };
        let hidden = hidden.reshape([-1, d_model as i32]).select(0, ints(rows));
        let loss = token_log_probs(model.head(hidden), ints(targets), 1.0).log_probs.sum().neg()
            / n as f64;
        let want_loss = oracle.json["grad.loss"].as_f64().unwrap() as f32;
        assert_close(&f32s(loss.clone()), &[want_loss], 1e-4 * want_loss, name);

        let grads = crate::common::gradients(&model, &loss.backward());
        let norms = oracle.json["grad.norms"].as_object().unwrap();
        assert_eq!(grads.len(), norms.len(), "{name}: number of parameters");
        for (key, norm) in norms {
            let grad = &grads[key];
            let got = grad.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            let want = norm.as_f64().unwrap();
            assert!((got - want).abs() <= 1e-4 * want, "{name} |d {key}|: {got} instead of {want}");
        }
        let is_parameter = |key: &String| key.ends_with("weight") || key.ends_with("bias");
        for key in oracle
            .keys()
            .filter(is_parameter)
            .filter_map(|key| key.strip_prefix("grad.").map(str::to_owned))
        {
            let want = oracle.floats(&format!("grad.{key}"));
            let largest = want.iter().fold(0.0f32, |max, x| max.max(x.abs()));
            assert_close(&grads[&key], &want, 1e-3 * largest, &format!("{name} d {key}"));
        }
    }
}

#[test]
fn critic_values_match() {
    for name in ["qwen2_tied", "qwen2_untied_sharded"] {
        let oracle = Oracle::open(name);
        let mut critic = Critic::from_decoder(&oracle.decoder::<Flex>(), 1);
        let weight = oracle.floats("critic.score.weight");
        let n = weight.len();
        critic.score.weight = critic
            .score
            .weight
            .map(|_| Tensor::from_data(TensorData::new(weight, [n, 1]), &Default::default()));
        let bias = oracle.floats("critic.score.bias");
        critic.score.bias = critic
            .score
            .bias
            .map(|p| p.map(|_| Tensor::from_data(TensorData::new(bias, [1]), &Default::default())));
        let batch = Batch::new(&oracle, "left");
        let hidden = critic.trunk.hidden(batch.ids(), None, None);
        let [b, width, d] = hidden.dims();
        let values = f32s(critic.values(hidden.reshape([b * width, d])));
        let want_width = oracle.shape("critic.left.values")[1];
        assert_real_columns(
            &batch,
            (&values, width),
            (&oracle.floats("critic.left.values"), want_width),
            1,
            1e-4,
            name,
        );
    }
}

#[test]
fn bf16_compute_is_no_further_from_f32_than_the_reference_is() {
    let oracle = Oracle::open("qwen2_tied_bf16");
    let model = crate::common::cast(oracle.decoder::<Flex>(), burn::tensor::DType::BF16);
    let batch = Batch::new(&oracle, "left");
    let ids = batch.ids::<Flex>();
    let width = ids.dims()[1];
    let (got, n_vocab) = logits(&model, model.hidden(ids, None, None));
    let shape = oracle.shape("left.logits");
    let (exact, reference) =
        (oracle.floats("left.logits"), oracle.floats("left.logits_bf16_compute"));
    let (mut ours, mut theirs) = (0.0f32, 0.0f32);
    for (b, columns) in batch.columns.iter().enumerate() {
        for (t, column) in columns.iter().enumerate() {
            for v in 0..n_vocab {
                let place = (b * shape[1] + column) * n_vocab + v;
                let difference = (got[(b * width + t) * n_vocab + v] - exact[place]).abs();
                ours = if difference <= ours { ours } else { difference };
                assert!(!ours.is_nan());
                theirs = theirs.max((reference[place] - exact[place]).abs());
            }
        }
    }
    assert!(ours <= 2.0 * theirs, "{ours} against {theirs}");
}
