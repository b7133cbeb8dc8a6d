use super::*;
use crate::weights::load_bert;
use burn::{
    backend::{Autodiff, Flex},
    module::AutodiffModule,
    optim::{GradientsParams, Optimizer, SgdConfig},
    tensor::{TensorData, activation},
};
use safetensors::SafeTensors;
use std::path::Path;

const ORACLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/oracles/models/bert_e5");
type Train = Autodiff<Flex>;

struct Oracle {
    bytes: Vec<u8>,
}

impl Oracle {
    fn open() -> Self {
        Self { bytes: std::fs::read(Path::new(ORACLE).join("reference.safetensors")).unwrap() }
    }
    fn raw<const N: usize>(&self, name: &str) -> (Vec<[u8; N]>, Vec<usize>) {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = file.tensor(name).unwrap();
        (tensor.data().as_chunks::<N>().0.to_vec(), tensor.shape().to_vec())
    }
    fn floats(&self, name: &str) -> Vec<f32> {
        self.raw(name).0.into_iter().map(f32::from_le_bytes).collect()
    }
    fn ints<B: Backend>(&self, name: &str) -> Tensor<B, 2, Int> {
        let (bytes, shape) = self.raw(name);
        let values: Vec<i64> = bytes.into_iter().map(i64::from_le_bytes).collect();
        Tensor::from_data(TensorData::new(values, shape), &Default::default())
    }
}

fn load<B: Backend>(dtype: DType) -> BertEncoder<B> {
    load_bert(Path::new(ORACLE), dtype, &Default::default()).unwrap()
}

fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().to_vec().unwrap()
}

fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    // NaN is the largest of all in this order; `f32::max` would pass over it.
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).max_by(f32::total_cmp).expect("not empty")
}

/// Hidden states are compared on real tokens: what padding computes for itself reaches nobody.
fn check_hidden_states<B: Backend>() {
    let oracle = Oracle::open();
    let (ids, mask) = (oracle.ints::<B>("input_ids"), oracle.ints::<B>("attention_mask"));
    let is_real: Vec<bool> = mask.to_data().iter::<i64>().map(|m| m == 1).collect();
    assert!(is_real.contains(&false), "the oracle's batch is ragged");
    let expected = oracle.floats("hidden_states");
    let states = load::<B>(DType::F32).all_hidden(ids, mask);
    assert_eq!(states.len(), 4);
    let n = expected.len() / states.len();
    for (state, expected) in states.into_iter().zip(expected.chunks(n)) {
        let d = n / is_real.len();
        for ((found, expected), _) in values(state)
            .chunks(d)
            .zip(expected.chunks(d))
            .zip(&is_real)
            .filter(|(_, is_real)| **is_real)
        {
            assert!(max_difference(found, expected) < 1e-4);
        }
    }
}

#[test]
fn hidden_states_of_every_layer_are_transformers() {
    check_hidden_states::<Flex>();
}

#[test]
fn hidden_states_with_gradients_are_the_same() {
    check_hidden_states::<Train>();
}

#[test]
fn cls_pooling_takes_the_first_token_of_the_recorded_last_layer() {
    let oracle = Oracle::open();
    let (ids, mask) = (oracle.ints::<Flex>("input_ids"), oracle.ints::<Flex>("attention_mask"));
    let [n_rows, n_tokens] = ids.dims();
    let hidden = oracle.floats("hidden_states");
    let last = &hidden[hidden.len() / 4 * 3..];
    let d = last.len() / (n_rows * n_tokens);
    let model = load::<Flex>(DType::F32);
    for is_unit_length in [false, true] {
        let head = SentenceHead { pooling: Pooling::Cls, is_unit_length };
        let found = values(model.embed_with(head, ids.clone(), mask.clone()));
        for (row, found) in found.chunks(d).enumerate() {
            let first = &last[row * n_tokens * d..][..d];
            let length = if is_unit_length {
                first.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
            } else {
                1.0
            };
            let expected: Vec<f32> =
                first.iter().map(|&x| (f64::from(x) / length) as f32).collect();
            // The hidden states themselves agree to 1e-4.
            assert!(
                max_difference(found, &expected) < 1e-4,
                "row {row}, unit length {is_unit_length}"
            );
        }
    }
}

#[test]
fn embeddings_cosines_and_pooling_are_transformers() {
    let oracle = Oracle::open();
    let (ids, mask) = (oracle.ints::<Flex>("input_ids"), oracle.ints::<Flex>("attention_mask"));
    let model = load::<Flex>(DType::F32);
    let hidden = model.all_hidden(ids.clone(), mask.clone()).pop().unwrap();
    let [n_rows, _, d] = hidden.dims();
    let cls = hidden.clone().slice([0..n_rows, 0..1]).reshape([n_rows, d]);
    // The oracle's pooled CLS state is of unit length.
    let cls = cls.clone() / cls.square().sum_dim(1).sqrt();
    assert!(max_difference(&values(cls), &oracle.floats("cls_pooled")) < 1e-5);
    assert!(
        max_difference(&values(mean_pooled(hidden, mask.clone())), &oracle.floats("mean_pooled"))
            < 1e-4
    );
    let embedding = model.embed(ids, mask);
    assert!(max_difference(&values(embedding.clone()), &oracle.floats("embedding")) < 2e-6);
    let cosine = embedding.clone().matmul(embedding.transpose());
    assert!(max_difference(&values(cosine), &oracle.floats("cosine")) < 4e-6);
}

#[test]
fn padding_does_not_change_an_embedding() {
    let model = load::<Flex>(DType::F32);
    let ids = |ids: &[i64]| {
        Tensor::<Flex, 2, Int>::from_data(
            TensorData::new(ids.to_vec(), [1, ids.len()]),
            &Default::default(),
        )
    };
    let alone = model.embed(ids(&[5, 17, 80, 3]), ids(&[1, 1, 1, 1]));
    let padded = model.embed(ids(&[5, 17, 80, 3, 0, 0, 99]), ids(&[1, 1, 1, 1, 0, 0, 0]));
    assert!(max_difference(&values(alone), &values(padded)) < 1e-6);
}

#[test]
fn rows_taken_a_few_at_a_time_give_the_embeddings_of_one_batch() {
    let model = load::<Flex>(DType::F32);
    let n_rows = 2 * <Flex as dgpo_kernels::Hardware>::TOKENS_AT_ONCE / 16 + 3;
    let ids: Vec<i64> = (0..n_rows as i64 * 16).map(|i| i * 31 % 120).collect();
    let ids =
        Tensor::<Flex, 2, Int>::from_data(TensorData::new(ids, [n_rows, 16]), &Default::default());
    let mask = ids.ones_like();
    let (parts, whole) = (
        model.embed(ids.clone(), mask.clone()),
        model.embed_rows(SentenceHead::default(), ids, mask),
    );
    assert!(max_difference(&values(parts), &values(whole)) < 1e-6);
}

#[test]
fn half_precision_weights_give_nearly_the_same_embedding() {
    let oracle = Oracle::open();
    let embed =
        |dtype| load::<Flex>(dtype).embed(oracle.ints("input_ids"), oracle.ints("attention_mask"));
    let found = embed(DType::BF16);
    assert_eq!(found.dtype(), DType::F32);
    // bf16 keeps 8 bits: entries of about 0.14 through three layers may move by some 2^-8 of
    // that a layer.
    assert!(max_difference(&values(found), &oracle.floats("embedding")) < 0.02);
}

#[test]
fn the_same_seed_gives_the_same_encoder() {
    let config = load::<Flex>(DType::F32).config();
    let oracle = Oracle::open();
    let embed = |seed| {
        values(
            BertEncoder::<Flex>::init(&config, seed, &Default::default())
                .embed(oracle.ints("input_ids"), oracle.ints("attention_mask")),
        )
    };
    assert_eq!(embed(3), embed(3));
    assert_ne!(embed(3), embed(4));
}

/// Pulls each query's embedding to its passage's and away from the others' (InfoNCE), as
/// encoders are trained.
#[test]
fn an_encoder_learns_to_match_pairs() {
    let config = BertConfig {
        vocab_size: 40,
        hidden_size: 16,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        ..load::<Flex>(DType::F32).config()
    };
    let device = Default::default();
    let mut model = BertEncoder::<Train>::init(
        &BertConfig { intermediate_size: 32, initializer_range: 0.2, ..config },
        0,
        &device,
    );
    let rows = |rows: [[i64; 3]; 4]| Tensor::<Train, 2, Int>::from_data(rows, &device);
    let (queries, passages) = (
        rows([[1, 2, 0], [3, 4, 5], [6, 7, 0], [8, 9, 9]]),
        rows([[21, 22, 23], [24, 25, 0], [26, 27, 28], [29, 30, 0]]),
    );
    let (query_mask, passage_mask) =
        (queries.clone().not_equal_elem(0).int(), passages.clone().not_equal_elem(0).int());
    let mut optimizer = SgdConfig::new().init();
    let mut losses = Vec::new();
    for _ in 0..40 {
        let q = model.embed(queries.clone(), query_mask.clone());
        let p = model.embed(passages.clone(), passage_mask.clone());
        let log_probs = activation::log_softmax(q.matmul(p.transpose()).mul_scalar(10.0), 1);
        let diagonal = Tensor::<Train, 2>::eye(4, &device);
        let loss = (log_probs * diagonal).sum().neg().div_scalar(4.0);
        losses.push(values(loss.clone())[0]);
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(0.1, model, grads);
    }
    assert!(losses[39] < 0.1 * losses[0], "{losses:?}");
    let found = values(model.valid().embed(queries.clone().inner(), query_mask.inner()));
    assert!(
        max_difference(
            &found,
            &values(model.embed(queries, rows([[1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 1, 1]])))
        ) < 1e-5
    );
}
