//! Family `ann`: exact nearest neighbours must be the recorded ones, the graph index must find
//! nearly all of them.
//!
//! Where two distances tie within 1e-6, either neighbour is right.
use super::{
    Case, FixtureError, Tensors, Tolerance, cases_of,
    fixtures::{Array, count, object, read_json},
};
use dgpo_run::{
    config::RetrieverRecipe,
    retriever::{
        exact::{Metric, Neighbour, top_k},
        hnsw::{HnswIndex, HnswParams, Insertion},
        vectors::Vectors,
    },
};
use std::{collections::BTreeSet, ops::ControlFlow, path::Path, sync::Arc};

const TIE: f64 = 1e-6;
/// f32 products and sums of 384 numbers of size 0.05.
const VALUE: Tolerance = Tolerance::abs(2e-6);
/// Share of neighbours the graph index may miss with the recipe's default parameters.
const MISSED: Tolerance = Tolerance::abs(0.05);

/// Describe the data; nothing to compare with.
const METADATA: [&str; 6] = [
    "dtype",
    "min_gap_rank3_4",
    "min_gap_rank10_11",
    "mean_top1_ip",
    "mean_top10_ip",
    "duplicates",
];

pub(super) fn run(dir: &Path) -> Vec<Case> {
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
        return Err(FixtureError::Shape {
            key: "queries".into(),
            shape: queries.shape,
            expected: format!("[queries, {dim}]"),
        });
    }
    for (name, metric) in [("ip", Metric::InnerProduct), ("l2", Metric::SquaredL2)] {
        if !tensors.has(&format!("{name}.ids")) {
            continue;
        }
        let expected = Expected::new(tensors, name, [n_queries, n])?;
        let found = top_k(&base.data, &queries.data, dim, expected.k, metric);
        let scores: Vec<f32> = found.iter().flatten().map(|neighbour| neighbour.score).collect();
        case.close(&format!("{name}.value"), &scores, &expected.values, VALUE);
        let exact = Exact { base: &base.data, queries: &queries.data, dim, metric };
        match expected.wrong_neighbour(&found, &exact) {
            None => case.equal(&format!("{name}.ids, ties aside"), &found.len(), &n_queries),
            Some(message) => case.fail(&format!("{name}.ids, ties aside"), message),
        }
        if metric == Metric::InnerProduct {
            approximate(&base, &exact, &expected, case);
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
    fn new(
        tensors: &Tensors,
        name: &str,
        [n_queries, n]: [usize; 2],
    ) -> Result<Self, FixtureError> {
        let key = format!("{name}.ids");
        let ids = tensors.integers(&key)?;
        let [_, k] = ids.dims::<2>(&key)?;
        if ids.shape[0] != n_queries
            || k == 0
            || ids.data.iter().any(|&id| !(0..n as i64).contains(&id))
        {
            return Err(FixtureError::Shape {
                key,
                shape: ids.shape,
                expected: format!("rows of {n_queries} queries, below {n}"),
            });
        }
        Ok(Self {
            k,
            values: tensors.floats_of(&format!("{name}.value"), &ids.shape)?,
            ids: ids.data,
        })
    }

    /// The first rank at which another vector was found than recorded, unless the two tie: both
    /// must have the recorded value, computed from the vectors themselves. A recorded id that
    /// occurs twice is wrong whatever was found.
    fn wrong_neighbour(&self, found: &[Vec<Neighbour>], exact: &Exact<'_>) -> Option<String> {
        for (query, found) in found.iter().enumerate() {
            let row = query * self.k..(query + 1) * self.k;
            let (ids, values) = (&self.ids[row.clone()], &self.values[row]);
            if found.len() != self.k || ids.iter().collect::<BTreeSet<_>>().len() != self.k {
                return Some(format!(
                    "query {query}: found {} neighbours, recorded {ids:?}",
                    found.len()
                ));
            }
            let ties =
                |id: usize, value: f32| (exact.score(query, id) - f64::from(value)).abs() <= TIE;
            for (rank, neighbour) in found.iter().enumerate() {
                let (recorded, value) = (ids[rank] as usize, values[rank]);
                if neighbour.id != recorded && !(ties(neighbour.id, value) && ties(recorded, value))
                {
                    return Some(format!(
                        "query {query}, rank {rank}: found {}, recorded {recorded} at {value}",
                        neighbour.id
                    ));
                }
            }
        }
        None
    }

    /// Number of the first `k` recorded neighbours of all queries that were found, a tie with the
    /// k-th
    /// counting as a hit.
    fn n_hits(&self, found: &[Vec<Neighbour>], k: usize, exact: &Exact<'_>) -> usize {
        let hits_of = |(query, found): (usize, &Vec<Neighbour>)| {
            let row = query * self.k..query * self.k + k;
            let (ids, border) = (&self.ids[row.clone()], f64::from(self.values[row.end - 1]));
            let is_near = |id: usize| match exact.metric {
                Metric::InnerProduct => exact.score(query, id) >= border - TIE,
                Metric::SquaredL2 => exact.score(query, id) <= border + TIE,
            };
            let found: BTreeSet<usize> =
                found.iter().take(k).map(|neighbour| neighbour.id).collect();
            found.into_iter().filter(|&id| ids.contains(&(id as i64)) || is_near(id)).count()
        };
        found.iter().enumerate().map(hits_of).sum()
    }
}

/// Scores computed from the vectors in f64, whatever a search says of itself.
struct Exact<'a> {
    base: &'a [f32],
    queries: &'a [f32],
    dim: usize,
    metric: Metric,
}

impl Exact<'_> {
    fn score(&self, query: usize, id: usize) -> f64 {
        let of = |at: usize| at * self.dim..(at + 1) * self.dim;
        let pairs = self.queries[of(query)]
            .iter()
            .zip(&self.base[of(id)])
            .map(|(&q, &b)| (f64::from(q), f64::from(b)));
        match self.metric {
            Metric::InnerProduct => pairs.map(|(q, b)| q * b).sum(),
            Metric::SquaredL2 => pairs.map(|(q, b)| (q - b).powi(2)).sum(),
        }
    }
}

/// Recall of the graph index at 3 and 10 (or as many as are recorded).
fn approximate(base: &Array<f32>, exact: &Exact<'_>, expected: &Expected, case: &mut Case) {
    let recipe = RetrieverRecipe::default();
    let params = HnswParams {
        m: recipe.hnsw_m,
        ef_construction: recipe.hnsw_ef_construction,
        ef_search: recipe.hnsw_ef_search,
    };
    let vectors = Arc::new(Vectors::from_rows(base.data.clone(), exact.dim));
    let index = match HnswIndex::build(vectors, params, Insertion::Parallel, &mut |_, _| {
        ControlFlow::Continue(())
    }) {
        Ok(index) => index,
        Err(error) => return case.fail("hnsw", error.to_string()),
    };
    let found = index.search(exact.queries, expected.k);
    for k in [3, 10] {
        let k = k.min(expected.k);
        let recall = expected.n_hits(&found, k, exact) as f64 / (found.len() * k).max(1) as f64;
        case.scalar(&format!("hnsw.recall@{k}"), recall, 1.0, MISSED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_vectors_of_the_recorded_value_may_stand_for_each_other() {
        // Vectors 0 and 1 are the same; 2 is another.
        let (base, queries) = ([1.0, 0.0, 1.0, 0.0, 0.0, 1.0], [1.0, 0.0]);
        let exact = Exact { base: &base, queries: &queries, dim: 2, metric: Metric::InnerProduct };
        let recorded = |ids: [i64; 2]| Expected { k: 2, ids: ids.to_vec(), values: vec![1.0, 1.0] };
        let found = top_k(&base, &queries, 2, 2, Metric::InnerProduct);
        let wrong = |ids| recorded(ids).wrong_neighbour(&found, &exact);
        assert_eq!((wrong([0, 1]), wrong([1, 0])), (None, None));
        for ids in [[0, 2], [2, 1], [0, 0], [1, 1]] {
            assert!(wrong(ids).is_some(), "{ids:?}");
        }
        assert_eq!(recorded([0, 1]).n_hits(&found, 2, &exact), 2);
    }
}
