use super::*;
use dgpo_core::rng::{Key, Purpose};
use safetensors::SafeTensors;

/// The recorded nearest neighbours (tests/oracles/ann) and the vectors they belong to.
pub struct AnnOracle {
    pub dim: usize,
    pub base: Vec<f32>,
    pub queries: Vec<f32>,
    pub ip_ids: Vec<Vec<usize>>,
    pub l2_ids: Vec<Vec<usize>>,
    l2_values: Vec<Vec<f32>>,
}

pub fn ann_oracle() -> AnnOracle {
    let bytes = std::fs::read(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/oracles/ann/ann.safetensors"
    ))
    .expect("the fixture is there");
    let file = SafeTensors::deserialize(&bytes).expect("the fixture is a safetensors file");
    let tensor = |name: &str| file.tensor(name).expect("the fixture holds this tensor");
    let floats = |name: &str| -> Vec<f32> {
        let tensor = tensor(name);
        match tensor.dtype() {
            safetensors::Dtype::F16 => tensor
                .data()
                .chunks_exact(2)
                .map(|pair| burn::tensor::f16::from_le_bytes([pair[0], pair[1]]).to_f32())
                .collect(),
            safetensors::Dtype::F32 => tensor
                .data()
                .chunks_exact(4)
                .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
                .collect(),
            other => panic!("{name} is {other:?}"),
        }
    };
    let ids = |name: &str| -> Vec<Vec<usize>> {
        let tensor = tensor(name);
        let ids: Vec<usize> = match tensor.dtype() {
            safetensors::Dtype::I64 => tensor
                .data()
                .chunks_exact(8)
                .map(|eight| i64::from_le_bytes(eight.try_into().expect("eight bytes")) as usize)
                .collect(),
            safetensors::Dtype::I32 => tensor
                .data()
                .chunks_exact(4)
                .map(|four| i32::from_le_bytes(four.try_into().expect("four bytes")) as usize)
                .collect(),
            other => panic!("{name} is {other:?}"),
        };
        ids.chunks(tensor.shape()[1]).map(<[usize]>::to_vec).collect()
    };
    let k = tensor("l2.value").shape()[1];
    AnnOracle {
        dim: tensor("base").shape()[1],
        base: floats("base"),
        queries: floats("queries"),
        ip_ids: ids("ip.ids"),
        l2_ids: ids("l2.ids"),
        l2_values: floats("l2.value").chunks(k).map(<[f32]>::to_vec).collect(),
    }
}

/// `n` random vectors of unit length.
pub fn unit_vectors(n: usize, dim: usize, seed: u64) -> Vec<f32> {
    let key = Key::new(seed, Purpose::Index);
    let mut data: Vec<f32> = (0..n * dim).map(|i| key.normal(i as u64) as f32).collect();
    for row in data.chunks_exact_mut(dim) {
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        row.iter_mut().for_each(|x| *x /= norm);
    }
    data
}

/// The literal definition: every score in f64, sorted by (score, id).
fn literal_top_k(base: &[f32], query: &[f32], k: usize, metric: Metric) -> Vec<usize> {
    let mut scored: Vec<(f64, usize)> = Vec::new();
    for (id, row) in base.chunks_exact(query.len()).enumerate() {
        let mut score = 0.0f64;
        for d in 0..query.len() {
            let (x, y) = (f64::from(row[d]), f64::from(query[d]));
            score += match metric {
                Metric::InnerProduct => -x * y,
                Metric::SquaredL2 => (x - y) * (x - y),
            };
        }
        scored.push((score, id));
    }
    scored.sort_by(|a, b| a.partial_cmp(b).expect("no score is NaN"));
    scored.into_iter().take(k).map(|(_, id)| id).collect()
}

fn ids(found: &[Vec<Neighbour>]) -> Vec<Vec<usize>> {
    found.iter().map(|list| list.iter().map(|neighbour| neighbour.id).collect()).collect()
}

#[test]
fn inner_product_neighbours_are_the_recorded_ones() {
    let oracle = ann_oracle();
    let found = top_k(&oracle.base, &oracle.queries, oracle.dim, 10, Metric::InnerProduct);
    assert_eq!(ids(&found), oracle.ip_ids);
}

#[test]
fn l2_neighbours_and_distances_are_the_recorded_ones() {
    let oracle = ann_oracle();
    let found = top_k(&oracle.base, &oracle.queries, oracle.dim, 10, Metric::SquaredL2);
    assert_eq!(ids(&found), oracle.l2_ids);
    for (list, values) in found.iter().zip(&oracle.l2_values) {
        for (neighbour, value) in list.iter().zip(values) {
            assert!((neighbour.score - value).abs() < 1e-6, "{} against {value}", neighbour.score);
        }
    }
}

#[test]
fn odd_shapes_agree_with_the_literal_definition() {
    for (n, dim, n_queries, k) in
        [(1, 1, 1, 1), (5, 123, 3, 10), (13, 2, 17, 4), (2500, 7, 33, 5), (3100, 20, 65, 3)]
    {
        let (base, queries) = (unit_vectors(n, dim, 1), unit_vectors(n_queries, dim, 2));
        for metric in [Metric::InnerProduct, Metric::SquaredL2] {
            let found = ids(&top_k(&base, &queries, dim, k, metric));
            let expected: Vec<_> = queries
                .chunks_exact(dim)
                .map(|query| literal_top_k(&base, query, k, metric))
                .collect();
            assert_eq!(found, expected, "{n} x {dim}, {n_queries} queries, {metric:?}");
        }
    }
}

#[test]
fn equal_vectors_come_in_the_order_of_their_ids() {
    let row = unit_vectors(1, 16, 3);
    let base: Vec<f32> = row.iter().copied().cycle().take(16 * 5000).collect();
    let found = top_k(&base, &row, 16, 4, Metric::InnerProduct);
    assert_eq!(ids(&found), [[0, 1, 2, 3]]);
}

#[test]
fn a_query_finds_the_same_alone_in_a_batch_and_with_any_number_of_threads() {
    let (base, queries) = (unit_vectors(5000, 24, 4), unit_vectors(40, 24, 5));
    let run = |n_threads: usize, queries: &[f32]| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().expect("a pool");
        pool.install(|| top_k(&base, queries, 24, 6, Metric::InnerProduct))
    };
    let together = run(1, &queries);
    assert_eq!(run(3, &queries), together);
    for (query, expected) in queries.chunks_exact(24).zip(&together) {
        assert_eq!(run(2, query), std::slice::from_ref(expected));
    }
}

#[test]
fn nothing_is_found_in_nothing() {
    assert_eq!(top_k(&[], &[1.0, 0.0], 2, 3, Metric::InnerProduct), vec![Vec::new()]);
    assert!(top_k(&[1.0, 0.0], &[], 2, 3, Metric::InnerProduct).is_empty());
}
