//! Attention of many queries on a CubeCL runtime: burn's matrix products, a chunk of queries at a
//! time, with the kernels of `softmax.rs` in between.
//!
//! ```text
//! forward    S = Q K'            P = softmax(S)                O = P V
//! backward   S = Q K'            dP = dO V'                    P, dS = gradients(S, dP)
//!            dV += P' dO         dK += dS' Q                   dQ = dS K
//! ```
//!
//! S and dP are f32 whatever the dtype (a product adds in f32 anyway, and half precision would
//! round a score of 100 to 0.06); P and dS have the dtype of q, as the products that take them
//! want. Chunks are taken from the last to the first: the last one sees all keys, so its dK and dV
//! are whole and the others are added to them.
use super::softmax::{self, LENGTH, ROW_NUMBERS, SLOT, START};
use crate::{
    cube::{ElementCubes, addresses, aligned_empty, empty, row_cubes, table, unit_count},
    types::CausalRows,
};
use burn::tensor::{DType, Shape, TensorMetadata, ops::FloatTensorOps};
use burn_cubecl::{
    CubeBackend, CubeRuntime,
    kernel::{
        cast,
        matmul::{MatmulStrategy, matmul},
        slice,
    },
    ops::{numeric::zeros_client, reshape},
    tensor::CubeTensor,
};
use cubecl::CubeDim;
use std::ops::Range;

/// Bytes of the f32 scores of a chunk at most (a chunk has 16 queries at least). The backward pass
/// holds two such matrices and two in the dtype of q.
const SCORE_BYTES: usize = 1 << 26;
/// Queries of a chunk at most: a chunk multiplies every query with the keys up to its last one, so
/// half a chunk of products is wasted on the diagonal.
const MAX_QUERIES: usize = 256;
/// Queries and keys are cut at multiples of this, so that rows stay aligned for vector loads.
const ALIGNMENT: usize = 16;

/// Whose tensors the plain operations here work on; element types are those of the tensors.
type Plain<R> = CubeBackend<R, f32, i32, u8>;

pub(crate) fn forward<R: CubeRuntime>(
    q: CubeTensor<R>,
    k: CubeTensor<R>,
    v: CubeTensor<R>,
    rows: &CausalRows,
) -> CubeTensor<R> {
    if q.shape().num_elements() == 0 {
        return empty(&q, q.shape(), q.dtype);
    }
    let problem = Problem::new(q, k, v, rows);
    let dtype = problem.q.dtype;
    let out: Vec<_> = problem
        .chunks()
        .into_iter()
        .map(|chunk| {
            let scores = product(
                problem.fold(&problem.q, &chunk),
                transposed(prefix(&problem.k, chunk.n_keys)),
                DType::F32,
            );
            let probs = problem.probabilities(scores, &chunk);
            problem.unfold(product(probs, prefix(&problem.v, chunk.n_keys), dtype), &chunk)
        })
        .collect();
    joined(out)
}

pub(crate) fn backward<R: CubeRuntime>(
    q: CubeTensor<R>,
    k: CubeTensor<R>,
    v: CubeTensor<R>,
    grad: CubeTensor<R>,
    rows: &CausalRows,
) -> [CubeTensor<R>; 3] {
    assert!(rows.slots.is_none(), "the gradient of attention over a cache is not defined here");
    if q.shape().num_elements() == 0 {
        return [q, zeros(&k, k.dtype), zeros(&v, v.dtype)];
    }
    let problem = Problem::new(q, k, v, rows);
    let grad = cast(grad, problem.q.dtype);
    let (mut dq, mut dk, mut dv) = (Vec::new(), None, None);
    for chunk in problem.chunks().into_iter().rev() {
        let (queries, go) = (problem.fold(&problem.q, &chunk), problem.fold(&grad, &chunk));
        let (keys, values) = (prefix(&problem.k, chunk.n_keys), prefix(&problem.v, chunk.n_keys));
        let scores = product(queries.clone(), transposed(keys.clone()), DType::F32);
        let d_probs = product(go.clone(), transposed(values), DType::F32);
        let (probs, d_scores) = problem.gradients(scores, d_probs, &chunk);
        dv = Some(problem.accumulate(dv, product(transposed(probs), go, DType::F32)));
        dk = Some(
            problem.accumulate(dk, product(transposed(d_scores.clone()), queries, DType::F32)),
        );
        dq.push(problem.unfold(product(d_scores, keys, problem.q.dtype), &chunk));
    }
    dq.reverse();
    let [dk, dv] = [dk, dv].map(|total| {
        cast(total.expect("there is a chunk where there are queries"), problem.k.dtype)
    });
    [joined(dq), dk, dv]
}

/// The operands with what follows from their shapes. Keys and values are those of the rows.
struct Problem<R: CubeRuntime> {
    /// `[B, H, Tq, hd]`
    q: CubeTensor<R>,
    /// `[B, K, Tk, hd]`
    k: CubeTensor<R>,
    /// `[B, K, Tk, hd]`
    v: CubeTensor<R>,
    /// Slot, start and length of each row.
    table: CubeTensor<R>,
    /// Keys that the first query of the row with the largest start sees before itself.
    last_start: usize,
    scale: f32,
}

struct Chunk {
    queries: Range<usize>,
    n_keys: usize,
}

impl<R: CubeRuntime> Problem<R> {
    fn new(q: CubeTensor<R>, k: CubeTensor<R>, v: CubeTensor<R>, rows: &CausalRows) -> Self {
        let [_, _, n_queries, head_dim] = q.shape().dims();
        let table = row_table(&q, rows, k.shape()[2]);
        let last_start = rows.starts.iter().max().copied().unwrap_or(0);
        let live = |cache: CubeTensor<R>| match rows.slots {
            Some(_) => live_prefix(
                cache,
                &table,
                rows.starts.len(),
                (last_start + n_queries).next_multiple_of(ALIGNMENT),
                n_queries,
            ),
            None => cache,
        };
        Self {
            k: live(k),
            v: live(v),
            q,
            table: table.clone(),
            last_start,
            scale: 1.0 / (head_dim as f32).sqrt(),
        }
    }

    /// From the first query to the last.
    fn chunks(&self) -> Vec<Chunk> {
        let ([n_rows, n_heads, n_queries, _], n_keys) = (self.q.shape().dims(), self.k.shape()[2]);
        let per_query = (n_rows * n_heads * n_keys * DType::F32.size()).max(1);
        let size = (SCORE_BYTES / per_query / ALIGNMENT * ALIGNMENT).clamp(ALIGNMENT, MAX_QUERIES);
        (0..n_queries)
            .step_by(size)
            .map(|start| {
                let end = (start + size).min(n_queries);
                Chunk {
                    queries: start..end,
                    n_keys: (self.last_start + end).next_multiple_of(ALIGNMENT).min(n_keys),
                }
            })
            .collect()
    }

    /// The chunk of a `[B, H, Tq, hd]` tensor with the heads of a kv group as rows: [B, K, (H / K)
    /// c, hd].
    fn fold(&self, x: &CubeTensor<R>, chunk: &Chunk) -> CubeTensor<R> {
        let ([n_rows, n_heads, n_queries, head_dim], n_kv_heads) =
            (x.shape().dims(), self.k.shape()[1]);
        let part = match chunk.queries == (0..n_queries) {
            true => x.clone(),
            false => slice(x.clone(), &[0..n_rows, 0..n_heads, chunk.queries.clone(), 0..head_dim]),
        };
        reshape(
            part,
            Shape::new([n_rows, n_kv_heads, n_heads / n_kv_heads * chunk.queries.len(), head_dim]),
        )
    }

    fn unfold(&self, x: CubeTensor<R>, chunk: &Chunk) -> CubeTensor<R> {
        let [n_rows, n_heads, _, head_dim] = self.q.shape().dims();
        reshape(x, Shape::new([n_rows, n_heads, chunk.queries.len(), head_dim]))
    }

    fn probabilities(&self, scores: CubeTensor<R>, chunk: &Chunk) -> CubeTensor<R> {
        let [n_rows, n_kv_heads, n_score_rows, n_keys] = scores.shape().dims();
        let probs = aligned_empty(&scores, scores.shape(), self.q.dtype);
        let units = unit_count(&scores, n_keys);
        let n = n_rows * n_kv_heads * n_score_rows;
        softmax::masked_softmax::launch::<R>(
            &probs.client,
            row_cubes(n),
            CubeDim::new_1d(units as u32),
            scores.into_tensor_arg(),
            self.table.clone().into_tensor_arg(),
            probs.clone().into_tensor_arg(),
            n,
            n_kv_heads * n_score_rows,
            chunk.queries.start,
            chunk.queries.len(),
            n_keys,
            self.scale,
            units,
            self.q.dtype.into(),
        );
        probs
    }

    fn gradients(
        &self,
        scores: CubeTensor<R>,
        d_probs: CubeTensor<R>,
        chunk: &Chunk,
    ) -> (CubeTensor<R>, CubeTensor<R>) {
        let [n_rows, n_kv_heads, n_score_rows, n_keys] = scores.shape().dims();
        let probs = aligned_empty(&scores, scores.shape(), self.q.dtype);
        let d_scores = aligned_empty(&scores, scores.shape(), self.q.dtype);
        let units = unit_count(&scores, n_keys);
        let n = n_rows * n_kv_heads * n_score_rows;
        softmax::softmax_gradients::launch::<R>(
            &probs.client,
            row_cubes(n),
            CubeDim::new_1d(units as u32),
            scores.into_tensor_arg(),
            d_probs.into_tensor_arg(),
            self.table.clone().into_tensor_arg(),
            probs.clone().into_tensor_arg(),
            d_scores.clone().into_tensor_arg(),
            n,
            n_kv_heads * n_score_rows,
            chunk.queries.start,
            chunk.queries.len(),
            n_keys,
            self.scale,
            units,
            self.q.dtype.into(),
        );
        (probs, d_scores)
    }

    /// total\[:, :, ..n\] + part, where part has n keys and nobody else holds the total.
    fn accumulate(&self, total: Option<CubeTensor<R>>, part: CubeTensor<R>) -> CubeTensor<R> {
        let [_, _, n_keys, head_dim] = part.shape().dims();
        let total = match total {
            None if n_keys == self.k.shape()[2] => return part,
            None => zeros(&self.k, DType::F32),
            Some(total) => total,
        };
        let n = part.shape().num_elements();
        let cubes = ElementCubes::new(&part, n);
        let (into, part) = (total.clone().into_tensor_arg(), part.into_tensor_arg());
        softmax::add_prefix::launch::<R>(
            &total.client,
            cubes.count,
            cubes.dim,
            into,
            part,
            n,
            n_keys,
            head_dim,
        );
        total
    }
}

fn zeros<R: CubeRuntime>(like: &CubeTensor<R>, dtype: DType) -> CubeTensor<R> {
    zeros_client(like.client.clone(), like.device.clone(), like.shape(), dtype)
}

/// (slot, start, length) of each row, for the kernels. A row without a length has all `n_keys`.
pub(super) fn row_table<R: CubeRuntime>(
    like: &CubeTensor<R>,
    rows: &CausalRows,
    n_keys: usize,
) -> CubeTensor<R> {
    let mut numbers = vec![0u32; ROW_NUMBERS * rows.starts.len()];
    for (b, row) in numbers.chunks_exact_mut(ROW_NUMBERS).enumerate() {
        row[SLOT] = rows.slot(b) as u32;
        row[START] = rows.starts[b] as u32;
        row[LENGTH] = rows.n_keys(b, n_keys) as u32;
    }
    table(like, &numbers)
}

/// The first `n_keys` positions of the rows' slots, 0 behind each row's last visible key: [B, K,
/// n_keys, hd] in the cache's order of memory.
fn live_prefix<R: CubeRuntime>(
    cache: CubeTensor<R>,
    table: &CubeTensor<R>,
    n_rows: usize,
    n_keys: usize,
    n_queries: usize,
) -> CubeTensor<R> {
    let [_, n_kv_heads, _, head_dim] = cache.shape().dims();
    let is_position_inner = cache.meta.strides()[2] == 1;
    let out = match is_position_inner {
        true => transposed(empty(
            &cache,
            Shape::new([n_rows, n_kv_heads, head_dim, n_keys]),
            cache.dtype,
        )),
        false => empty(&cache, Shape::new([n_rows, n_kv_heads, n_keys, head_dim]), cache.dtype),
    };
    let n = out.shape().num_elements();
    if n > 0 {
        let (cubes, dtype) = (ElementCubes::new(&cache, n), cache.dtype.into());
        softmax::gather_live::launch::<R>(
            &out.client,
            cubes.count,
            cubes.dim,
            addresses(&[&cache, &out]),
            cache.into_tensor_arg(),
            table.clone().into_tensor_arg(),
            out.clone().into_tensor_arg(),
            n,
            n_kv_heads,
            n_keys,
            head_dim,
            n_queries,
            is_position_inner,
            dtype,
        );
    }
    out
}

fn product<R: CubeRuntime>(lhs: CubeTensor<R>, rhs: CubeTensor<R>, dtype: DType) -> CubeTensor<R> {
    matmul(lhs, rhs, None, MatmulStrategy::default(), dtype)
        .expect("a matrix product of matrices that fit can be launched")
}

/// The last two dimensions exchanged, without a copy.
fn transposed<R: CubeRuntime>(mut x: CubeTensor<R>) -> CubeTensor<R> {
    x.meta.swap(2, 3);
    x
}

/// The first `n` positions of `[B, K, Tk, hd]`, where they lie.
fn prefix<R: CubeRuntime>(x: &CubeTensor<R>, n: usize) -> CubeTensor<R> {
    let mut x = x.clone();
    x.meta.shape_mut()[2] = n;
    x
}

fn joined<R: CubeRuntime>(mut chunks: Vec<CubeTensor<R>>) -> CubeTensor<R> {
    match chunks.len() {
        1 => chunks.remove(0),
        _ => Plain::<R>::float_cat(chunks, 2),
    }
}
