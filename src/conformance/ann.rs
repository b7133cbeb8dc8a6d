//! Family `ann`: exact nearest neighbours must be the recorded ones, the graph index must find nearly all of them.
//!
//! Where two distances tie within 1e-6, either neighbour is right.
use super::{
    Case, FixtureError, Tensors, Tolerance, cases_of,
    fixtures::{Array, count, object, read_json},
};
use crate::{
    config::RetrieverRecipe,
    retriever::{
        exact::{Metric, Neighbour, top_k},
        hnsw::{HnswIndex, HnswParams, Insertion},
        vectors::Vectors,
    },
};
use std::{ops::ControlFlow, path::Path, sync::Arc};

const TIE: f32 = 1e-6;
/// f32 products and sums of 384 numbers of size 0.05.
const VALUE: Tolerance = Tolerance::abs(2e-6);
/// Share of neighbours the graph index may miss with the recipe's default parameters.
const MISSED: Tolerance = Tolerance::abs(0.05);

/// Describe the data; nothing to compare with.
const METADATA: [&str; 6] = ["dtype", "min_gap_rank3_4", "min_gap_rank10_11", "mean_top1_ip", "mean_top10_ip", "duplicates"];

pub fn run(dir: &Path) -> Vec<Case> {
    cases_of(dir, |name, path, case| match name {
        "ann.json" => sizes(dir, path, case),
        _ if name.ends_with(".safetensors") => neighbours(&Tensors::open(path)?, case),
        _ => {
            case.fail_unknown([name.to_owned()]);
            Ok(())
        }
    })
}

fn sizes(dir: &Path, path: &Path, case: &mut Case) -> Result<(), FixtureError> {
    let json = read_json(path)?;
    let tensors = Tensors::open(&dir.join("ann.safetensors"))?;
    let [n, dim] = tensors.floats("base")?.dims::<2>("base")?;
    let [n_queries, k] = tensors.integers("ip.ids")?.dims::<2>("ip.ids")?;
    for key in object(&json, "ann.json")?.keys() {
        let size = match key.as_str() {
            "n" => n,
            "dim" => dim,
            "queries" => n_queries,
            "k" => k,
            key if METADATA.contains(&key) => continue,
            _ => {
                case.fail_unknown([key.clone()]);
                continue;
            }
        };
        case.equal(key, &size, &count(&json, key)?);
    }
    Ok(())
}

fn neighbours(tensors: &Tensors, case: &mut Case) -> Result<(), FixtureError> {
    let base = tensors.floats("base")?;
    let [n, dim] = base.dims::<2>("base")?;
    let queries = tensors.floats("queries")?;
    let [n_queries, query_dim] = queries.dims::<2>("queries")?;
    if dim == 0 || query_dim != dim {
        return Err(FixtureError::Shape { key: "queries".into(), shape: queries.shape, expected: format!("[queries, {dim}]") });
    }
    for (name, metric) in [("ip", Metric::InnerProduct), ("l2", Metric::SquaredL2)] {
        if !tensors.has(&format!("{name}.ids")) {
            continue;
        }
        let expected = Expected::new(tensors, name, [n_queries, n])?;
        let found = top_k(&base.data, &queries.data, dim, expected.k, metric);
        let scores: Vec<f32> = found.iter().flatten().map(|neighbour| neighbour.score).collect();
        case.close(&format!("{name}.value"), &scores, &expected.values, VALUE);
        case.equal(&format!("{name}.ids, ties aside"), &expected.n_hits(&found, expected.k, metric), &(n_queries * expected.k));
        if metric == Metric::InnerProduct {
            approximate(&base, &queries.data, dim, &expected, case);
        }
    }
    case.fail_unknown(tensors.unused());
    Ok(())
}

/// Recorded neighbours, nearest first.
struct Expected {
    k: usize,
    /// [queries, k]
    ids: Vec<i64>,
    values: Vec<f32>,
}

impl Expected {
    fn new(tensors: &Tensors, name: &str, [n_queries, n]: [usize; 2]) -> Result<Self, FixtureError> {
        let key = format!("{name}.ids");
        let ids = tensors.integers(&key)?;
        let [_, k] = ids.dims::<2>(&key)?;
        if ids.shape[0] != n_queries || k == 0 || ids.data.iter().any(|&id| !(0..n as i64).contains(&id)) {
            return Err(FixtureError::Shape { key, shape: ids.shape, expected: format!("rows of {n_queries} queries, below {n}") });
        }
        Ok(Self { k, values: tensors.floats_of(&format!("{name}.value"), &ids.shape)?, ids: ids.data })
    }

    /// How many of the first `k` recorded neighbours of all queries were found, a tie with the k-th counting as a hit.
    fn n_hits(&self, found: &[Vec<Neighbour>], k: usize, metric: Metric) -> usize {
        let hits_of = |(query, found): (usize, &Vec<Neighbour>)| {
            let row = query * self.k..query * self.k + k;
            let (ids, border) = (&self.ids[row.clone()], self.values[row.end - 1]);
            let is_near = |score: f32| match metric {
                Metric::InnerProduct => score >= border - TIE,
                Metric::SquaredL2 => score <= border + TIE,
            };
            found.iter().take(k).filter(|neighbour| ids.contains(&(neighbour.id as i64)) || is_near(neighbour.score)).count()
        };
        found.iter().enumerate().map(hits_of).sum()
    }
}

/// Recall of the graph index at 3 and 10 (or as many as are recorded).
fn approximate(base: &Array<f32>, queries: &[f32], dim: usize, expected: &Expected, case: &mut Case) {
    let recipe = RetrieverRecipe::default();
    let params = HnswParams { m: recipe.hnsw_m, ef_construction: recipe.hnsw_ef_construction, ef_search: recipe.hnsw_ef_search };
    let vectors = Arc::new(Vectors::from_rows(base.data.clone(), dim));
    let index = match HnswIndex::build(vectors, params, Insertion::Parallel, &mut |_, _| ControlFlow::Continue(())) {
        Ok(index) => index,
        Err(error) => return case.fail("hnsw", error.to_string()),
    };
    let found = index.search(queries, expected.k);
    for k in [3, 10] {
        let k = k.min(expected.k);
        let recall = expected.n_hits(&found, k, Metric::InnerProduct) as f64 / (found.len() * k).max(1) as f64;
        case.scalar(&format!("hnsw.recall@{k}"), recall, 1.0, MISSED);
    }
}
