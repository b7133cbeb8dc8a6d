//! Attention on the CPU backend: one pass over keys and values where they lie, four rows of scores
//! at a time.
//!
//! A row is one query of one head. Rows of a kv group are taken together (`R` = 4, then 2, then 1),
//! so a key is read once for four of them. Keys are used as `[hd, Tk]`, which makes scores a
//! product over whole vectors of keys: a key cache is stored that way, other keys are packed once a
//! task. Keys and values of 16 bits are widened on the way, a head at a time and only the positions
//! that are seen: never a whole cache. Tasks are (row of the batch, block of queries) in the
//! forward pass and rows of the batch in the backward pass, which adds into dk and dv.
#![expect(
    clippy::needless_range_loop,
    reason = "one index moves through several arrays; the plain form is the one that vectorises"
)]
use super::{
    cpu_heads::{Heads, Transposed, Values},
    cpu_products::{add_outer, products, softmax_numerators, sum, weighted_sums},
};
use crate::{
    cpu::{CpuTensor, LANES, View, for_each_piece, from_vec, simd, stored, with_rows},
    rows::{BLOCK, WHOLE_ROWS},
    types::CausalRows,
};
use burn::{backend::Flex, tensor::ops::FloatTensorOps};

/// Queries of one task of the forward pass: many enough to repay packing the keys.
const QUERIES_PER_TASK: usize = 64;
/// Rows taken together: with four, two AVX2 registers of sums each keep both multipliers busy.
const MAX_ROWS: usize = 4;

pub(super) fn forward(q: CpuTensor, k: CpuTensor, v: CpuTensor, rows: &CausalRows) -> CpuTensor {
    let dtype = q.dtype();
    let (q, k, v) = (with_rows(q), stored(k), stored(v));
    let (q, k, v) = (View::<4>::new(&q), Heads::new(&k), Heads::new(&v));
    let [n_rows, n_heads, n_queries, head_dim] = q.shape;
    let row_size = n_heads * head_dim;
    let mut out = vec![0.0f32; n_rows * n_queries * row_size];
    let tasks: Vec<_> = out
        .chunks_mut((n_queries * row_size).max(1))
        .enumerate()
        .flat_map(|(b, row)| {
            row.chunks_mut(QUERIES_PER_TASK * row_size)
                .enumerate()
                .map(move |(block, out)| (b, block * QUERIES_PER_TASK, out))
        })
        .collect();
    for_each_piece(tasks, work(&q, &k, rows), |(b, first, out)| {
        simd!(forward_block(&q, &k, &v, rows, b, first, out))
    });
    Flex::float_permute(from_vec(out, [n_rows, n_queries, n_heads, head_dim], dtype), &[0, 2, 1, 3])
}

pub(super) fn backward(
    q: CpuTensor,
    k: CpuTensor,
    v: CpuTensor,
    grad: CpuTensor,
    rows: &CausalRows,
) -> [CpuTensor; 3] {
    assert!(rows.slots.is_none(), "the gradient of attention over a cache is not defined here");
    let dtype = q.dtype();
    let (q, k, v, grad) = (with_rows(q), stored(k), stored(v), with_rows(grad));
    let ([q, grad], [k, v]) = ([&q, &grad].map(View::<4>::new), [&k, &v].map(Heads::new));
    let ([n_rows, n_heads, n_queries, head_dim], [_, n_kv_heads, n_keys, _]) = (q.shape, k.shape);
    let (q_size, k_size) = (n_queries * n_heads * head_dim, n_keys * n_kv_heads * head_dim);
    let (mut dq, mut dk, mut dv) = (
        vec![0.0f32; n_rows * q_size],
        vec![0.0f32; n_rows * k_size],
        vec![0.0f32; n_rows * k_size],
    );
    let tasks: Vec<_> = dq
        .chunks_mut(q_size.max(1))
        .zip(dk.chunks_mut(k_size.max(1)))
        .zip(dv.chunks_mut(k_size.max(1)))
        .enumerate()
        .collect();
    for_each_piece(tasks, 3 * work(&q, &k, rows), |(b, ((dq, dk), dv))| {
        simd!(backward_row(&q, &k, &v, &grad, rows, b, Gradients { dq, dk, dv }))
    });
    let heads_first = |x, len, heads| {
        Flex::float_permute(from_vec(x, [n_rows, len, heads, head_dim], dtype), &[0, 2, 1, 3])
    };
    [
        heads_first(dq, n_queries, n_heads),
        heads_first(dk, n_keys, n_kv_heads),
        heads_first(dv, n_keys, n_kv_heads),
    ]
}

/// Multiply-adds of the forward pass, from above.
fn work(q: &View<4>, k: &Heads, rows: &CausalRows) -> usize {
    let [_, n_heads, n_queries, head_dim] = q.shape;
    let keys: usize = rows.starts.iter().map(|start| (start + n_queries).min(k.shape[2])).sum();
    2 * keys * n_queries * n_heads * head_dim
}

/// One task of the forward pass: the queries first.. of row b, into `out` [queries, H, hd].
#[inline(always)]
fn forward_block(
    q: &View<4>,
    k: &Heads,
    v: &Heads,
    rows: &CausalRows,
    b: usize,
    first: usize,
    out: &mut [f32],
) {
    let ([_, n_heads, _, head_dim], [_, n_kv_heads, n_keys, _]) = (q.shape, k.shape);
    let (group, n_keys) = (n_heads / n_kv_heads, rows.n_keys(b, n_keys));
    let n_queries = out.len() / (n_heads * head_dim);
    let seen = |t: usize| (rows.starts[b] + t + 1).min(n_keys);
    let n_seen = seen(first + n_queries - 1);
    let (mut packed_k, mut packed_v, mut scores) =
        (Vec::new(), Vec::new(), vec![0.0f32; MAX_ROWS * n_seen.next_multiple_of(LANES)]);
    for j in 0..n_kv_heads {
        let keys = k.transposed(rows.slot(b), j, n_seen, &mut packed_k);
        let values = v.vectors(rows.slot(b), j, n_seen, &mut packed_v);
        let task = GroupRows { q, b, first_query: first, first_head: j * group, group };
        let mut row = 0;
        while row < n_queries * group {
            row += match n_queries * group - row {
                4.. => forward_rows::<4>(
                    &task,
                    row,
                    &keys,
                    &values,
                    seen,
                    head_dim,
                    &mut scores,
                    out,
                    n_heads,
                ),
                2 | 3 => forward_rows::<2>(
                    &task,
                    row,
                    &keys,
                    &values,
                    seen,
                    head_dim,
                    &mut scores,
                    out,
                    n_heads,
                ),
                _ => forward_rows::<1>(
                    &task,
                    row,
                    &keys,
                    &values,
                    seen,
                    head_dim,
                    &mut scores,
                    out,
                    n_heads,
                ),
            };
        }
    }
}

/// R rows of one kv head; returns R.
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "an inner loop: a struct of borrows would hide which are written"
)]
fn forward_rows<const R: usize>(
    task: &GroupRows,
    row: usize,
    keys: &Transposed,
    values: &Values,
    seen: impl Fn(usize) -> usize,
    head_dim: usize,
    scores: &mut [f32],
    out: &mut [f32],
    n_heads: usize,
) -> usize {
    let at: [(usize, usize); R] = std::array::from_fn(|r| task.query_and_head(row + r));
    let n_seen = seen(at[R - 1].0);
    let width = n_seen.next_multiple_of(LANES);
    let queries: [&[f32]; R] = std::array::from_fn(|r| task.row(task.q, at[r], head_dim));
    products(&queries, keys, width, scores);
    let scale = 1.0 / (head_dim as f32).sqrt();
    let mut inverse = [0.0f32; R];
    for r in 0..R {
        let total =
            softmax_numerators(&mut scores[r * width..(r + 1) * width], seen(at[r].0), scale);
        inverse[r] = 1.0 / total;
    }
    let mut write = |r: usize, d: usize, sums: &[f32]| {
        let (t, h) = at[r];
        let start = ((t - task.first_query) * n_heads + h) * head_dim + d;
        for (o, sum) in out[start..start + sums.len()].iter_mut().zip(sums) {
            *o = sum * inverse[r];
        }
    };
    weighted_sums::<R>(scores, width, n_seen, values, head_dim, &mut write);
    R
}

struct Gradients<'a> {
    dq: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
}

/// One task of the backward pass: row b, whole. dq `[Tq, H, hd]`, dk and dv `[Tk, K, hd]`.
#[inline(always)]
fn backward_row(
    q: &View<4>,
    k: &Heads,
    v: &Heads,
    grad: &View<4>,
    rows: &CausalRows,
    b: usize,
    out: Gradients,
) {
    let ([_, n_heads, n_queries, head_dim], [_, n_kv_heads, n_keys, _]) = (q.shape, k.shape);
    let (group, n_keys) = (n_heads / n_kv_heads, rows.n_keys(b, n_keys));
    let seen = |t: usize| (rows.starts[b] + t + 1).min(n_keys);
    let n_seen = seen(n_queries - 1);
    let (mut packed_k, mut packed_v, mut packed_rows) = (Vec::new(), Vec::new(), Vec::new());
    let mut p = vec![0.0f32; MAX_ROWS * n_seen.next_multiple_of(LANES)];
    let mut ds = p.clone();
    let (mut dk, mut dv) = (vec![0.0f32; n_seen * head_dim], vec![0.0f32; n_seen * head_dim]);
    for j in 0..n_kv_heads {
        let keys = k.transposed(b, j, n_seen, &mut packed_k);
        let values = v.transposed(b, j, n_seen, &mut packed_v);
        let key_rows = k.vectors(b, j, n_seen, &mut packed_rows);
        let task = GroupRows { q, b, first_query: 0, first_head: j * group, group };
        let n_rows = n_queries * group;
        let n_at_once = if n_rows <= WHOLE_ROWS { n_rows } else { BLOCK };
        for first in (0..n_rows).step_by(n_at_once) {
            dk.fill(0.0);
            dv.fill(0.0);
            let (mut row, end) = (first, (first + n_at_once).min(n_rows));
            while row < end {
                let mut pass = BackwardRows {
                    task: &task,
                    grad,
                    keys: &keys,
                    values: &values,
                    key_rows: &key_rows,
                    head_dim,
                    n_heads,
                    p: &mut p,
                    ds: &mut ds,
                    dq: out.dq,
                    dk: &mut dk,
                    dv: &mut dv,
                };
                row += match end - row {
                    4.. => pass.run::<4>(row, seen),
                    2 | 3 => pass.run::<2>(row, seen),
                    _ => pass.run::<1>(row, seen),
                };
            }
            for s in 0..n_seen {
                let (from, to) = (s * head_dim, (s * n_kv_heads + j) * head_dim);
                for (sums, part) in [(&mut *out.dk, &dk), (&mut *out.dv, &dv)] {
                    let (sums, part) = (&mut sums[to..to + head_dim], &part[from..from + head_dim]);
                    if first == 0 {
                        sums.copy_from_slice(part);
                    } else {
                        sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
                    }
                }
            }
        }
    }
}

/// The operands of R rows of one kv head in the backward pass.
struct BackwardRows<'a> {
    task: &'a GroupRows<'a>,
    grad: &'a View<'a, 4>,
    keys: &'a Transposed<'a>,
    values: &'a Transposed<'a>,
    key_rows: &'a Values<'a>,
    head_dim: usize,
    n_heads: usize,
    p: &'a mut [f32],
    ds: &'a mut [f32],
    dq: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
}

impl BackwardRows<'_> {
    #[inline(always)]
    fn run<const R: usize>(&mut self, row: usize, seen: impl Fn(usize) -> usize) -> usize {
        let head_dim = self.head_dim;
        let at: [(usize, usize); R] = std::array::from_fn(|r| self.task.query_and_head(row + r));
        let n_seen = seen(at[R - 1].0);
        let width = n_seen.next_multiple_of(LANES);
        let queries: [&[f32]; R] =
            std::array::from_fn(|r| self.task.row(self.task.q, at[r], head_dim));
        let grads: [&[f32]; R] = std::array::from_fn(|r| self.task.row(self.grad, at[r], head_dim));
        products(&queries, self.keys, width, self.p);
        products(&grads, self.values, width, self.ds);
        let scale = 1.0 / (head_dim as f32).sqrt();
        for r in 0..R {
            let (p, ds) =
                (&mut self.p[r * width..(r + 1) * width], &mut self.ds[r * width..(r + 1) * width]);
            let inverse = 1.0 / softmax_numerators(p, seen(at[r].0), scale);
            let mut dot = [0.0f32; LANES];
            for (p, ds) in p.chunks_exact_mut(LANES).zip(ds.chunks_exact(LANES)) {
                for i in 0..LANES {
                    p[i] *= inverse;
                    dot[i] = p[i].mul_add(ds[i], dot[i]);
                }
            }
            let dot = sum(&dot);
            for (p, ds) in p.chunks_exact(LANES).zip(ds.chunks_exact_mut(LANES)) {
                for i in 0..LANES {
                    ds[i] = p[i] * (ds[i] - dot) * scale;
                }
            }
        }
        let dq = &mut *self.dq;
        let n_heads = self.n_heads;
        weighted_sums::<R>(self.ds, width, n_seen, self.key_rows, head_dim, &mut |r, d, sums| {
            let (t, h) = at[r];
            let start = (t * n_heads + h) * head_dim + d;
            dq[start..start + sums.len()].copy_from_slice(sums);
        });
        add_outer(self.p, width, n_seen, &grads, head_dim, self.dv);
        add_outer(self.ds, width, n_seen, &queries, head_dim, self.dk);
        R
    }
}

/// Rows (query, head) of one kv head, numbered query by query.
struct GroupRows<'a> {
    q: &'a View<'a, 4>,
    b: usize,
    first_query: usize,
    first_head: usize,
    group: usize,
}

impl GroupRows<'_> {
    #[inline(always)]
    fn query_and_head(&self, row: usize) -> (usize, usize) {
        (self.first_query + row / self.group, self.first_head + row % self.group)
    }

    /// The vector of a (query, head) in a `[B, H, Tq, hd]` tensor.
    #[inline(always)]
    fn row<'v>(&self, x: &View<'v, 4>, (t, h): (usize, usize), head_dim: usize) -> &'v [f32] {
        let start = self.b * x.strides[0] + h * x.strides[1] + t * x.strides[2];
        &x.data[start..start + head_dim]
    }
}
