//! Attention in plain tensor operations: what every backend can run, and what the loops of `cpu.rs`
//! are compared with.
//!
//! Queries are taken `CHUNK` at a time, so scores are [B, K, (H / K) CHUNK, Tk]; a chunk sees only
//! the keys up to its last query.
use crate::types::CausalRows;
use burn::tensor::{
    DType, Int, Tensor, TensorData, TensorPrimitive, activation::softmax, backend::Backend,
    ops::FloatTensor, s,
};
use std::ops::Range;

/// Queries of one chunk. At 1,024 tokens and 8 layers 64, 128 and 256 need the same memory and time
/// within noise, 1,024 needs twice of both.
const CHUNK: usize = 128;
/// Score of a key that must not be seen: exp(MASKED - max) is 0 without an infinity, which not
/// every GPU runtime has as a literal.
const MASKED: f32 = -1.0e30;

pub(crate) fn forward<B: Backend>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    rows: &CausalRows,
) -> FloatTensor<B> {
    let problem = Problem::<B>::new(q, k, v, rows);
    let mut out: Vec<Tensor<B, 4>> = problem
        .chunks()
        .map(|chunk| {
            problem.unfold(
                problem
                    .probabilities(&chunk)
                    .cast(problem.q.dtype())
                    .matmul(problem.keys(&problem.v, &chunk)),
                &chunk,
            )
        })
        .collect();
    let out = if out.len() == 1 { out.remove(0) } else { Tensor::cat(out, 2) };
    out.into_primitive().tensor()
}

pub(crate) fn backward<B: Backend>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    grad: FloatTensor<B>,
    rows: &CausalRows,
) -> [FloatTensor<B>; 3] {
    assert!(rows.slots.is_none(), "the gradient of attention over a cache is not defined here");
    let problem = Problem::<B>::new(q, k, v, rows);
    let grad = tensor::<B>(grad);
    let dtype = problem.q.dtype();
    let zeros = || Tensor::<B, 4>::zeros(problem.k.shape(), (&problem.k.device(), DType::F32));
    let (mut dq, mut dk, mut dv) = (Vec::new(), zeros(), zeros());
    for chunk in problem.chunks() {
        let (queries, go) = (problem.fold(&problem.q, &chunk), problem.fold(&grad, &chunk));
        let (keys, values) = (problem.keys(&problem.k, &chunk), problem.keys(&problem.v, &chunk));
        let p = problem.probabilities(&chunk);
        let dp = go.clone().matmul(values.transpose()).cast(DType::F32);
        let ds = (dp.clone() - (dp * p.clone()).sum_dim(3)) * p.clone() * problem.scale;
        let (p, ds) = (p.cast(dtype), ds.cast(dtype));
        dv = add_prefix(dv, p.transpose().matmul(go).cast(DType::F32));
        dk = add_prefix(dk, ds.clone().transpose().matmul(queries).cast(DType::F32));
        dq.push(problem.unfold(ds.matmul(keys), &chunk));
    }
    [Tensor::cat(dq, 2), dk.cast(dtype), dv.cast(dtype)]
        .map(|tensor| tensor.into_primitive().tensor())
}

/// The operands with what follows from their shapes. Keys and values are those of the rows, cut
/// behind the last key any query sees.
struct Problem<B: Backend> {
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    rows: CausalRows,
    scale: f32,
}

impl<B: Backend> Problem<B> {
    fn new(q: FloatTensor<B>, k: FloatTensor<B>, v: FloatTensor<B>, rows: &CausalRows) -> Self {
        let (q, k, v) = (tensor::<B>(q), tensor::<B>(k), tensor::<B>(v));
        let [_, _, n_queries, head_dim] = q.dims();
        let last = rows.starts.iter().max().map_or(0, |start| start + n_queries);
        let select = |keys: Tensor<B, 4>| match &rows.slots {
            None => keys,
            Some(slots) => {
                let n_keys = last.min(keys.dims()[2]);
                let keys = keys.slice(s![.., .., 0..n_keys, ..]);
                let in_order = slots.iter().enumerate().all(|(row, &slot)| row == slot);
                let keys = match in_order {
                    true => keys.slice(s![0..slots.len(), .., .., ..]),
                    false => {
                        let ids: Vec<i32> = slots.iter().map(|&slot| slot as i32).collect();
                        let n_rows = ids.len();
                        let ids = Tensor::<B, 1, Int>::from_data(
                            TensorData::new(ids, [n_rows]),
                            &keys.device(),
                        );
                        keys.select(0, ids)
                    }
                };
                without_dead(keys, rows, n_queries)
            }
        };
        Self {
            q,
            k: select(k),
            v: select(v),
            rows: rows.clone(),
            scale: 1.0 / (head_dim as f32).sqrt(),
        }
    }

    fn chunks(&self) -> impl Iterator<Item = Chunk> {
        let (n_queries, n_keys) = (self.q.dims()[2], self.k.dims()[2]);
        let last_start = self.rows.starts.iter().max().copied().unwrap_or(0);
        (0..n_queries).step_by(CHUNK).map(move |start| {
            let end = (start + CHUNK).min(n_queries);
            Chunk { queries: start..end, n_keys: (last_start + end).min(n_keys) }
        })
    }

    /// The chunk of a `[B, H, Tq, hd]` tensor with the heads of a kv group as rows: [B, K, (H / K)
    /// c, hd].
    fn fold(&self, x: &Tensor<B, 4>, chunk: &Chunk) -> Tensor<B, 4> {
        let ([n_rows, n_heads, _, head_dim], n_kv_heads) = (x.dims(), self.k.dims()[1]);
        x.clone().slice(s![.., .., chunk.queries.clone(), ..]).reshape([
            n_rows,
            n_kv_heads,
            n_heads / n_kv_heads * chunk.queries.len(),
            head_dim,
        ])
    }

    fn unfold(&self, x: Tensor<B, 4>, chunk: &Chunk) -> Tensor<B, 4> {
        let [n_rows, n_heads, _, head_dim] = self.q.dims();
        x.reshape([n_rows, n_heads, chunk.queries.len(), head_dim])
    }

    /// The keys (or values) that the chunk sees: [B, K, n_keys, hd].
    fn keys(&self, x: &Tensor<B, 4>, chunk: &Chunk) -> Tensor<B, 4> {
        x.clone().slice(s![.., .., 0..chunk.n_keys, ..])
    }

    /// softmax(q k' / sqrt(hd)) in f32: [B, K, (H / K) c, n_keys].
    fn probabilities(&self, chunk: &Chunk) -> Tensor<B, 4> {
        // In f32 from the start: a product in half precision rounds a score of 100 to 0.06, and
        // beyond 65,504 it is infinite.
        let (queries, keys) = (
            self.fold(&self.q, chunk).cast(DType::F32),
            self.keys(&self.k, chunk).cast(DType::F32),
        );
        let scores = queries.matmul(keys.transpose()) * self.scale;
        let scores = match self.hidden_keys(chunk) {
            Some(hidden) => {
                let shape = scores.shape();
                scores.mask_fill(hidden.expand(shape), MASKED)
            }
            None => scores,
        };
        softmax(scores, 3)
    }

    /// True where a query must not see a key: [B or 1, 1, (H / K) c, n_keys]. `None` when every
    /// query of the chunk sees every key.
    fn hidden_keys(&self, chunk: &Chunk) -> Option<Tensor<B, 4, burn::tensor::Bool>> {
        // The last key that query t of a row sees.
        let last_seen = |b: usize, t: usize| {
            (self.rows.starts[b] + t).min(self.rows.n_keys(b, chunk.n_keys) - 1)
        };
        let n_rows = self.rows.starts.len();
        if (0..n_rows).all(|b| last_seen(b, chunk.queries.start) + 1 >= chunk.n_keys) {
            return None;
        }
        let is_uniform = (1..n_rows).all(|b| {
            self.rows.starts[b] == self.rows.starts[0]
                && self.rows.n_keys(b, chunk.n_keys) == self.rows.n_keys(0, chunk.n_keys)
        });
        let n_masks = if is_uniform { 1 } else { n_rows };
        let group = self.q.dims()[1] / self.k.dims()[1];
        let last_seen: Vec<i32> = (0..n_masks)
            .flat_map(|b| {
                (0..group)
                    .flat_map(move |_| chunk.queries.clone().map(move |t| last_seen(b, t) as i32))
            })
            .collect();
        let device = self.q.device();
        let shape = [n_masks, 1, group * chunk.queries.len(), 1];
        let last_seen = Tensor::<B, 4, Int>::from_data(TensorData::new(last_seen, shape), &device);
        let keys = Tensor::<B, 1, Int>::arange(0..chunk.n_keys as i64, &device).reshape([
            1,
            1,
            1,
            chunk.n_keys,
        ]);
        Some(keys.greater(last_seen))
    }
}

struct Chunk {
    queries: Range<usize>,
    n_keys: usize,
}

/// Keys (or values) of a cache with 0 where a row has no position, whatever its slot held there
/// before: hidden values are multiplied by 0, and a NaN would survive that.
fn without_dead<B: Backend>(
    keys: Tensor<B, 4>,
    rows: &CausalRows,
    n_queries: usize,
) -> Tensor<B, 4> {
    let [n_rows, _, n_keys, _] = keys.dims();
    let live: Vec<i32> = (0..n_rows)
        .map(|b| (rows.starts[b] + n_queries).min(rows.n_keys(b, n_keys)) as i32)
        .collect();
    let live =
        Tensor::<B, 4, Int>::from_data(TensorData::new(live, [n_rows, 1, 1, 1]), &keys.device());
    let positions =
        Tensor::<B, 1, Int>::arange(0..n_keys as i64, &keys.device()).reshape([1, 1, n_keys, 1]);
    let dead = positions.greater_equal(live).expand(keys.shape());
    keys.mask_fill(dead, 0.0)
}

/// total\[:, :, ..n\] += part, where part has n keys.
fn add_prefix<B: Backend>(total: Tensor<B, 4>, part: Tensor<B, 4>) -> Tensor<B, 4> {
    let prefix = s![.., .., 0..part.dims()[2], ..];
    let sum = total.clone().slice(prefix) + part;
    total.slice_assign(prefix, sum)
}

fn tensor<B: Backend>(primitive: FloatTensor<B>) -> Tensor<B, 4> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}
