//! Approximate nearest neighbours: the HNSW graph of the `hnsw_rs` crate over vectors that stay
//! where they are.
//!
//! Malkov, Yashunin 2018: a search walks a layered proximity graph and looks at some hundred
//! vectors instead of all. `hnsw_rs` wants to own a copy of every vector and to write a second copy
//! into its dump. Here a point of the graph holds only its row number and the distance
//! ([`StoredDot`]) looks the vector up in the shared [`Vectors`]: the vectors exist once, in memory
//! or in a mapped file, and a dump is links alone.
//!
//! The graph proposes candidates; their order and scores come from f64 inner products
//! ([`exact::rescore`]), so a found passage has the same score here as in exact search, and ties go
//! to the lowest id. Parallel insertion depends on thread timing, so the graph (hence which true
//! neighbours are missed) differs between builds; serial insertion is reproducible. A given graph
//! always answers alike.
use super::{
    RetrieverError, Tick,
    exact::{self, Metric, Neighbour},
    graph_files::{ExpectedGraph, GraphFiles, MAX_LAYER, file_paths},
    vectors::Vectors,
};
use dgpo_core::contained::contained;
use hnsw_rs::prelude::{AnnT, Distance, Hnsw, HnswIo};
use macerator::{Scalar, Simd, Vector};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::{fmt, path::Path, sync::Arc};

/// Parameters of the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HnswParams {
    /// Links a node keeps in the upper layers (twice as many in the lowest): more = better recall,
    /// more memory.
    pub m: usize,
    /// Candidates looked at when a node is inserted: more = better graph, slower build.
    pub ef_construction: usize,
    /// Candidates looked at in a search: more = better recall, slower search. Applies to a finished
    /// graph too.
    pub ef_search: usize,
}

impl fmt::Display for HnswParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { m, ef_construction, ef_search } = self;
        write!(f, "M {m}, ef {ef_construction}/{ef_search}")
    }
}

/// Order and threads of the insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Insertion {
    /// One thread, in row order: the graph is a function of the vectors.
    Serial,
    /// All threads: as many times faster, another graph every time.
    Parallel,
}

impl Insertion {
    /// Serial below this many vectors (some seconds), parallel above.
    pub const SERIAL_BELOW: usize = 5_000;

    /// The insertion that suits `n` vectors: small worlds are reproducible, large ones fast.
    pub fn for_size(n: usize) -> Self {
        if n < Self::SERIAL_BELOW { Self::Serial } else { Self::Parallel }
    }
}

/// A searchable graph.
pub struct HnswIndex {
    graph: Hnsw<'static, u32, StoredDot>,
    vectors: Arc<Vectors>,
    params: HnswParams,
}

/// More candidates than this are looked at by nobody; searches allocate by it.
pub const MAX_EF: usize = 65_536;
/// Vectors inserted between two reports of progress.
const INSERT_BLOCK: usize = 2_048;
/// Candidates scored again beyond k.
const RESCORE_MARGIN: usize = 8;

impl HnswParams {
    /// # Errors
    /// If a value is outside what the graph and its file format allow.
    pub fn check(&self) -> Result<(), RetrieverError> {
        let ef_search_hint = "at least top_k and at most 65536; 64 to 256 are usual";
        let values = [
            ("hnsw_m", self.m, 2..=255, "2 to 255; 16 to 64 are usual"),
            ("hnsw_ef_construction", self.ef_construction, 1..=MAX_EF, "1 to 65536; 200 is usual"),
            ("hnsw_ef_search", self.ef_search, 1..=MAX_EF, ef_search_hint),
        ];
        match values.into_iter().find(|(_, value, range, _)| !range.contains(value)) {
            Some((key, value, _, hint)) => Err(RetrieverError::option(key, value, hint)),
            None => Ok(()),
        }
    }
}

impl HnswIndex {
    /// Builds the graph over unit-length vectors. `tick` hears (done, total) and may stop the
    /// build.
    /// # Errors
    /// Parameters out of range, more than 2^32 vectors, vectors of one number, or `tick` said stop.
    pub fn build(
        vectors: Arc<Vectors>,
        params: HnswParams,
        insertion: Insertion,
        tick: &mut Tick,
    ) -> Result<Self, RetrieverError> {
        params.check()?;
        let n = vectors.len();
        let Ok(n_ids) = u32::try_from(n) else {
            let hint = "a graph holds at most 2^32 passages; split the corpus";
            return Err(RetrieverError::option("corpus", n, hint));
        };
        // A slice of one number is a row number, any other length a query: see `StoredDot`.
        if vectors.dim() < 2 {
            let hint = "a graph needs vectors of at least two numbers";
            return Err(RetrieverError::option("embedding size", vectors.dim(), hint));
        }
        let distance = StoredDot { vectors: vectors.clone() };
        let graph = Hnsw::new(params.m, n, MAX_LAYER, params.ef_construction, distance);
        let ids: Vec<u32> = (0..n_ids).collect();
        let points: Vec<(&[u32], usize)> = ids.chunks(1).zip(0..).collect();
        for (block, points) in points.chunks(INSERT_BLOCK).enumerate() {
            match insertion {
                Insertion::Serial => points.iter().for_each(|&point| graph.insert_slice(point)),
                Insertion::Parallel => {
                    points.par_iter().for_each(|&point| graph.insert_slice(point))
                }
            }
            let done = block * INSERT_BLOCK + points.len();
            if tick(done, n).is_break() {
                return Err(RetrieverError::Interrupted { stage: "graph", done, total: n });
            }
        }
        Ok(Self { graph, vectors, params })
    }

    /// The parameters it was built and is searched with.
    pub fn params(&self) -> HnswParams {
        self.params
    }

    /// Writes the links as `BASENAME.hnsw.graph` and `BASENAME.hnsw.data` into `dir`, which must
    /// not hold them yet.
    /// # Errors
    /// If the files cannot be written.
    pub fn save(&self, dir: &Path, basename: &str) -> Result<GraphFiles, RetrieverError> {
        let paths = file_paths(dir, basename);
        // hnsw_rs panics if it cannot create its files, and writes through a link that lies at
        // their names.
        for path in &paths {
            new_file(path).map_err(|source| RetrieverError::io(path, "create", source))?;
        }
        let damaged = |why| RetrieverError::damaged(&paths[0], why);
        match self.graph.file_dump(dir, basename) {
            Ok(written) if written == basename => {}
            Ok(written) => return Err(damaged(format!("hnsw_rs wrote \"{written}\" instead"))),
            Err(error) => return Err(damaged(error.to_string())),
        }
        for path in &paths {
            let synced = std::fs::File::open(path).and_then(|file| file.sync_all());
            synced.map_err(|source| RetrieverError::io(path, "write", source))?;
        }
        GraphFiles::of(dir, basename)
    }

    /// The graph that files with these parameters over `n` vectors must hold.
    pub fn expected(n: usize, params: HnswParams) -> ExpectedGraph<'static> {
        let distance = std::any::type_name::<StoredDot>();
        ExpectedGraph {
            n_points: n,
            m: params.m,
            ef_construction: params.ef_construction,
            distance,
        }
    }

    /// Reads a saved graph over the same vectors.
    /// # Errors
    /// If a file is missing, damaged, or of another version of this program.
    pub fn load(
        dir: &Path,
        files: &GraphFiles,
        vectors: Arc<Vectors>,
        params: HnswParams,
    ) -> Result<Self, RetrieverError> {
        params.check()?;
        files.check(dir, Self::expected(vectors.len(), params))?;
        let paths = file_paths(dir, &files.basename);
        // The loaded graph borrows its reader for the sake of vectors mapped by the reader. Points
        // here are owned row numbers, so the reader is a path and some flags: leaking those hundred
        // bytes for each opened index gives the graph a lifetime it can be stored with.
        let reader: &'static HnswIo = Box::leak(Box::new(HnswIo::new(dir, &files.basename)));
        let distance = StoredDot { vectors: vectors.clone() };
        // The files were checked for everything hnsw_rs insists on; should it insist on more one
        // day, that is an error too.
        let read = contained(|| reader.load_hnsw_with_dist::<u32, StoredDot>(distance))
            .and_then(|read| read.map_err(|error| error.to_string()));
        let damaged = |why| RetrieverError::damaged(&paths[0], why);
        let graph = read.map_err(|why| damaged(format!("hnsw_rs cannot read it: {why}")))?;
        match (graph.get_nb_point(), vectors.len()) {
            (n_points, n) if n_points == n => Ok(Self { graph, vectors, params }),
            (n_points, n) => Err(damaged(format!("a graph of {n_points} points over {n} vectors"))),
        }
    }

    /// About `k` nearest rows for each query, nearest first; queries are spread over the threads.
    /// # Shapes
    /// queries `[n_queries, dim]`, unit length
    pub fn search(&self, queries: &[f32], k: usize) -> Vec<Vec<Neighbour>> {
        let dim = self.vectors.dim();
        let k = k.min(self.vectors.len());
        if k == 0 {
            return vec![Vec::new(); queries.len() / dim];
        }
        let n_candidates = k + RESCORE_MARGIN;
        let search_one = |query: &[f32]| {
            let candidates =
                self.graph.search(bytemuck::cast_slice(query), n_candidates, self.params.ef_search);
            if candidates.len() < k {
                // Many equal vectors can cut the graph into islands: every link but one of a node
                // is pruned as redundant.
                return exact::top_k(self.vectors.as_slice(), query, dim, k, Metric::InnerProduct)
                    .swap_remove(0);
            }
            exact::rescore(
                self.vectors.as_slice(),
                query,
                candidates.iter().map(|found| found.d_id),
                k,
                Metric::InnerProduct,
            )
        };
        queries.par_chunks_exact(dim).map(search_one).collect()
    }
}

/// Makes an empty file where nothing, an old one or a link may lie.
fn new_file(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::OpenOptions::new().write(true).create_new(true).open(path).map(drop)
}

/// `1 - a b`, half the squared distance of unit vectors.
///
/// `hnsw_rs` hands over two slices of `u32`. A stored point is a slice of one: its row number. A
/// query is a slice of `dim` >= 2: the bits of its f32 numbers. The length tells them apart.
struct StoredDot {
    vectors: Arc<Vectors>,
}

impl StoredDot {
    fn resolve<'a>(&'a self, point: &'a [u32]) -> &'a [f32] {
        match *point {
            [id] => self.vectors.row(id as usize),
            _ => bytemuck::cast_slice(point),
        }
    }
}

impl Distance<u32> for StoredDot {
    fn eval(&self, a: &[u32], b: &[u32]) -> f32 {
        // Rounding may lift the product of a vector with itself above 1; the graph asserts
        // distances >= 0.
        (1.0 - dot(self.resolve(a), self.resolve(b))).max(0.0)
    }
}

/// Inner product in f32, four vector accumulators.
#[macerator::with_simd]
fn dot<S: Simd>(a: &[f32], b: &[f32]) -> f32 {
    const WAYS: usize = 4;
    let lanes = S::lanes32();
    let load = |numbers: &[f32]| -> Vector<S, f32> {
        bytemuck::pod_read_unaligned(bytemuck::cast_slice(numbers))
    };
    let mut sums = [0.0f32.splat::<S>(); WAYS];
    let (blocks_a, blocks_b) = (a.chunks_exact(WAYS * lanes), b.chunks_exact(WAYS * lanes));
    let (rest_a, rest_b) = (blocks_a.remainder(), blocks_b.remainder());
    for (x, y) in blocks_a.zip(blocks_b) {
        for way in 0..WAYS {
            sums[way] = load(&x[way * lanes..][..lanes])
                .mul_add(load(&y[way * lanes..][..lanes]), sums[way]);
        }
    }
    let rest: f32 = rest_a.iter().zip(rest_b).map(|(x, y)| x * y).sum();
    rest + ((sums[0] + sums[1]) + (sums[2] + sums[3])).reduce_add()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retriever::exact::tests::{ann_oracle, unit_vectors};
    use std::{collections::HashSet, ops::ControlFlow};

    const PARAMS: HnswParams = HnswParams { m: 16, ef_construction: 100, ef_search: 256 };

    fn build(vectors: &Arc<Vectors>, insertion: Insertion) -> HnswIndex {
        HnswIndex::build(vectors.clone(), PARAMS, insertion, &mut |_, _| ControlFlow::Continue(()))
            .expect("the graph is built")
    }

    /// Share of the first `k` recorded ids among the first `k` found.
    fn recall(found: &[Vec<Neighbour>], recorded: &[Vec<usize>], k: usize) -> f64 {
        let hits: usize = found
            .iter()
            .zip(recorded)
            .map(|(found, recorded)| {
                let recorded: HashSet<usize> = recorded[..k].iter().copied().collect();
                found[..k].iter().filter(|neighbour| recorded.contains(&neighbour.id)).count()
            })
            .sum();
        hits as f64 / (k * recorded.len()) as f64
    }

    #[test]
    fn a_parallel_graph_recalls_the_recorded_neighbours() {
        let oracle = ann_oracle();
        let vectors = Arc::new(Vectors::from_rows(oracle.base, oracle.dim));
        let found = build(&vectors, Insertion::Parallel).search(&oracle.queries, 10);
        let (at_3, at_10) = (recall(&found, &oracle.ip_ids, 3), recall(&found, &oracle.ip_ids, 10));
        // The reference figures for clustered vectors of this size are above 0.99 from ef 40 on.
        assert!(at_3 >= 0.97 && at_10 >= 0.95, "recall@3 {at_3}, recall@10 {at_10}");
    }

    #[test]
    fn serial_insertion_builds_the_same_graph_twice() {
        let vectors = Arc::new(Vectors::from_rows(unit_vectors(700, 32, 1), 32));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [first, second] = ["a", "b"].map(|name| {
            build(&vectors, Insertion::Serial).save(folder.path(), name).expect("saved")
        });
        assert_eq!(first.graph_sha256, second.graph_sha256);
    }

    #[test]
    fn a_reloaded_graph_answers_as_the_built_one() {
        let vectors = Arc::new(Vectors::from_rows(unit_vectors(500, 32, 2), 32));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let built = build(&vectors, Insertion::Parallel);
        let files = built.save(folder.path(), "links").expect("saved");
        let loaded = HnswIndex::load(folder.path(), &files, vectors, PARAMS).expect("loaded");
        let queries = unit_vectors(20, 32, 3);
        assert_eq!(loaded.search(&queries, 5), built.search(&queries, 5));
    }

    #[test]
    fn a_damaged_graph_file_is_refused() {
        let vectors = Arc::new(Vectors::from_rows(unit_vectors(50, 8, 2), 8));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let files = build(&vectors, Insertion::Serial).save(folder.path(), "links").expect("saved");
        let path = folder.path().join("links.hnsw.graph");
        let bytes = std::fs::read(&path).expect("readable");
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 1;
        for (content, expected) in
            [(&bytes[..bytes.len() - 3], "bytes instead of"), (&flipped[..], "checksum")]
        {
            std::fs::write(&path, content).expect("written");
            let error = HnswIndex::load(folder.path(), &files, vectors.clone(), PARAMS)
                .err()
                .expect("damage is found")
                .to_string();
            assert!(error.contains(expected) && error.contains("hint:"), "{error}");
        }
    }

    #[test]
    fn equal_vectors_do_not_break_the_graph() {
        let row = unit_vectors(1, 8, 4);
        let vectors =
            Arc::new(Vectors::from_rows(row.iter().copied().cycle().take(8 * 300).collect(), 8));
        let found = build(&vectors, Insertion::Parallel).search(&row, 3);
        assert_eq!(found[0].len(), 3);
        assert!(found[0].iter().all(|neighbour| (neighbour.score - 1.0).abs() < 1e-6));
    }

    #[test]
    fn the_vectorised_product_is_the_sum_of_products() {
        for dim in [2, 15, 16, 63, 64, 65, 384] {
            let (a, b) = (unit_vectors(1, dim, 5), unit_vectors(1, dim, 6));
            let expected: f64 = a.iter().zip(&b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
            assert!((f64::from(dot(&a, &b)) - expected).abs() < 1e-6, "{dim} numbers");
        }
    }

    #[test]
    fn parameters_out_of_range_are_refused_before_hnsw_rs_ends_the_process() {
        for params in [
            HnswParams { m: 1, ..PARAMS },
            HnswParams { m: 256, ..PARAMS },
            HnswParams { ef_search: 0, ..PARAMS },
            HnswParams { ef_construction: 1 << 40, ..PARAMS },
        ] {
            assert!(
                params.check().is_err_and(|error| error.to_string().contains("hint:")),
                "{params:?}"
            );
        }
    }
}
