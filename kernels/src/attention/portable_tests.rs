//! Attention and its gradients by their definitions in f64, on every backend and for every float
//! type it has.
use super::{CausalRows, causal_attention};
use crate::{
    KernelOps,
    cache_write::{CacheSpan, cache_write},
    testing::{assert_close, dtypes, epsilon, numbers, on_every_backend, rounded, tensor, values},
};
use burn::{
    backend::Autodiff,
    tensor::{DType, Tensor, s},
};

on_every_backend!(
    whole_sequences_are_the_definition,
    ragged_rows_are_the_definition,
    encoder_rows_are_the_definition,
    decoding_gives_what_whole_sequences_give,
    prefill_of_slots_in_any_order_reads_live_positions_only,
    nan_in_a_visible_key_surfaces,
    queries_behind_the_last_key_are_harmless,
    large_scores_do_not_overflow,
);

#[derive(Clone)]
pub struct Case {
    n_kv_heads: usize,
    group: usize,
    n_queries: usize,
    n_keys: usize,
    head_dim: usize,
    pub rows: CausalRows,
    pub q: Vec<f64>,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
    go: Vec<f64>,
}

impl Case {
    /// Numbers that the type holds; scores of about +-2.
    pub fn new(
        [n_kv_heads, group, n_queries, n_keys, head_dim]: [usize; 5],
        rows: CausalRows,
        dtype: DType,
    ) -> Self {
        let b = rows.starts.len();
        let scaled = |n: usize, salt, by: f64| {
            rounded(&numbers(n, salt).iter().map(|x| by * x).collect::<Vec<_>>(), dtype)
        };
        let (n_q, n_k) =
            (b * n_kv_heads * group * n_queries * head_dim, b * n_kv_heads * n_keys * head_dim);
        let (q, k, v, go) = (
            scaled(n_q, 0.1, 6.0),
            scaled(n_k, 0.2, 2.0),
            scaled(n_k, 0.3, 2.0),
            scaled(n_q, 0.4, 2.0),
        );
        Self { n_kv_heads, group, n_queries, n_keys, head_dim, rows, q, k, v, go }
    }

    fn whole(
        b: usize,
        n_kv_heads: usize,
        group: usize,
        n_tokens: usize,
        head_dim: usize,
        dtype: DType,
    ) -> Self {
        Self::new([n_kv_heads, group, n_tokens, n_tokens, head_dim], CausalRows::whole(b), dtype)
    }

    pub fn q_shape(&self) -> [usize; 4] {
        [self.rows.starts.len(), self.n_kv_heads * self.group, self.n_queries, self.head_dim]
    }

    pub fn k_shape(&self) -> [usize; 4] {
        [self.rows.starts.len(), self.n_kv_heads, self.n_keys, self.head_dim]
    }

    /// For each query row (b, h, t): where its vector and its keys begin, and how many keys it
    /// sees.
    fn query_rows(&self) -> Vec<(usize, usize, usize)> {
        let mut out = Vec::new();
        for (b, start) in self.rows.starts.iter().enumerate() {
            let n_row_keys = self.rows.lengths.as_ref().map_or(self.n_keys, |lengths| lengths[b]);
            for h in 0..self.n_kv_heads * self.group {
                let keys = (b * self.n_kv_heads + h / self.group) * self.n_keys * self.head_dim;
                for t in 0..self.n_queries {
                    out.push((out.len() * self.head_dim, keys, (start + t + 1).min(n_row_keys)));
                }
            }
        }
        out
    }

    /// The probabilities of one query row.
    fn probabilities(&self, (q, keys, n_seen): (usize, usize, usize)) -> Vec<f64> {
        let q = &self.q[q..q + self.head_dim];
        let score = |key: &[f64]| {
            q.iter().zip(key).map(|(a, b)| a * b).sum::<f64>() / (self.head_dim as f64).sqrt()
        };
        let scores: Vec<f64> =
            self.k[keys..].chunks(self.head_dim).take(n_seen).map(score).collect();
        crate::suite::vocabulary_definitions::softmax(&scores, 1.0)
    }

    pub fn forward(&self) -> Vec<f64> {
        let mut out = Vec::new();
        for row in self.query_rows() {
            let p = self.probabilities(row);
            let mut o = vec![0.0; self.head_dim];
            for (p, value) in p.iter().zip(self.v[row.1..].chunks(self.head_dim)) {
                o.iter_mut().zip(value).for_each(|(o, v)| *o += p * v);
            }
            out.extend(o);
        }
        out
    }

    /// dq, dk, dv of sum(out go), by the chain rule.
    fn gradients(&self) -> [Vec<f64>; 3] {
        let hd = self.head_dim;
        let (mut dq, mut dk, mut dv) =
            (vec![0.0; self.q.len()], vec![0.0; self.k.len()], vec![0.0; self.v.len()]);
        for row in self.query_rows() {
            let (q, keys, n_seen) = row;
            let p = self.probabilities(row);
            let go = &self.go[q..q + hd];
            let dp: Vec<f64> = (0..n_seen)
                .map(|s| (0..hd).map(|d| go[d] * self.v[keys + s * hd + d]).sum())
                .collect();
            let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            for s in 0..n_seen {
                let ds = p[s] * (dp[s] - mean) / (hd as f64).sqrt();
                for d in 0..hd {
                    dq[q + d] += ds * self.k[keys + s * hd + d];
                    dk[keys + s * hd + d] += ds * self.q[q + d];
                    dv[keys + s * hd + d] += p[s] * go[d];
                }
            }
        }
        [dq, dk, dv]
    }

    /// Values and gradients of the backend against the definition.
    fn check<B: KernelOps>(&self, dtype: DType, what: &str) {
        let leaf = |x: &[f64], shape| tensor::<Autodiff<B>, 4>(x, shape, dtype).require_grad();
        let (q, k, v) = (
            leaf(&self.q, self.q_shape()),
            leaf(&self.k, self.k_shape()),
            leaf(&self.v, self.k_shape()),
        );
        let out = causal_attention(q.clone(), k.clone(), v.clone(), &self.rows);
        let what = format!("{what}, {dtype:?}");
        assert_close(&values(out.clone().detach()), &self.forward(), tolerance(dtype), &what);
        let grads =
            (out.cast(DType::F32) * tensor(&self.go, self.q_shape(), DType::F32)).sum().backward();
        for ((leaf, want), name) in [q, k, v].iter().zip(self.gradients()).zip(["dq", "dk", "dv"]) {
            assert_close(
                &values(leaf.grad(&grads).unwrap()),
                &want,
                tolerance(dtype),
                &format!("{name}, {what}"),
            );
        }
    }
}

/// Results, probabilities and dS are each rounded to the type once; sums over keys and queries
/// average the roundings out.
pub fn tolerance(dtype: DType) -> f64 {
    3e-5 + if dtype == DType::F32 { 0.0 } else { 4.0 * epsilon(dtype) }
}

#[test]
fn closed_form_gradients_are_finite_differences() {
    let case = Case::new(
        [2, 2, 3, 4, 5],
        CausalRows { starts: vec![1, 0], slots: None, lengths: None },
        DType::F32,
    );
    let loss = |case: &Case| case.forward().iter().zip(&case.go).map(|(o, g)| o * g).sum::<f64>();
    let edits: [fn(&mut Case) -> &mut Vec<f64>; 3] =
        [|case| &mut case.q, |case| &mut case.k, |case| &mut case.v];
    for (edit, gradient) in edits.into_iter().zip(case.gradients()) {
        let differences = (0..gradient.len()).map(|i| {
            let at = |delta: f64| {
                let mut moved = case.clone();
                edit(&mut moved)[i] += delta;
                loss(&moved)
            };
            (at(1e-5) - at(-1e-5)) / 2e-5
        });
        assert_close(&gradient, &differences.collect::<Vec<_>>(), 1e-8, "gradient");
    }
}

fn whole_sequences_are_the_definition<B: KernelOps>() {
    for dtype in dtypes::<B>() {
        // One token; no size that fills a vector; borders of chunks at 128 (CPU) and 256 (CubeCL).
        for [b, n_kv_heads, group, n_tokens, head_dim] in [
            [1, 1, 1, 1, 6],
            [2, 2, 1, 5, 16],
            [1, 2, 7, 33, 64],
            [2, 1, 2, 129, 128],
            [1, 1, 2, 300, 16],
        ] {
            let case = Case::whole(b, n_kv_heads, group, n_tokens, head_dim, dtype);
            case.check::<B>(
                dtype,
                &format!("{b} rows, {n_kv_heads} x {group} heads, {n_tokens} tokens of {head_dim}"),
            );
        }
    }
}

fn ragged_rows_are_the_definition<B: KernelOps>() {
    for dtype in dtypes::<B>() {
        // Keys that nobody sees, rows that start in the middle, rows shorter than their queries.
        let rows =
            CausalRows { starts: vec![0, 30, 7], slots: None, lengths: Some(vec![3, 40, 25]) };
        Case::new([2, 2, 19, 60, 16], rows, dtype).check::<B>(dtype, "ragged");
    }
}

fn encoder_rows_are_the_definition<B: KernelOps>() {
    for dtype in dtypes::<B>() {
        Case::new([2, 1, 40, 40, 32], CausalRows::bidirectional(vec![40, 1, 17]), dtype)
            .check::<B>(dtype, "encoder");
    }
}

/// A cache in which nothing was written yet: NaN, so that reading what is not live shows.
fn empty_cache<B: KernelOps>(
    n_slots: usize,
    case: &Case,
    capacity: usize,
    position_dim: usize,
    dtype: DType,
) -> Tensor<B, 4> {
    let mut shape = [n_slots, case.n_kv_heads, capacity, case.head_dim];
    shape.swap(2, position_dim);
    Tensor::full(shape, f32::NAN, (&Default::default(), dtype))
}

/// Feeds columns `from..to` of the case's rows to the cache, row b at its own position `at[b]` and
/// into slot `slots[b]`, and attends. What position p of row b holds is column p of the case.
struct Decoder<'c, B: KernelOps> {
    case: &'c Case,
    slots: &'c [usize],
    /// Keys and values; taken out while a call writes them, so that the buffers have one holder.
    cache: Option<(Tensor<B, 4>, Tensor<B, 4>)>,
    dtype: DType,
}

impl<'c, B: KernelOps> Decoder<'c, B> {
    fn new(case: &'c Case, slots: &'c [usize], capacity: usize, dtype: DType) -> Self {
        let n_slots = slots.iter().max().unwrap() + 1;
        let cache = |position_dim| empty_cache::<B>(n_slots, case, capacity, position_dim, dtype);
        Self { case, slots, cache: Some((cache(B::KEY_POSITION_DIM), cache(2))), dtype }
    }

    fn write(&mut self, k: Tensor<B, 4>, v: Tensor<B, 4>, spans: &[CacheSpan]) {
        let (keys, values) = self.cache.take().unwrap();
        self.cache = Some((
            cache_write(keys, k, spans, B::KEY_POSITION_DIM),
            cache_write(values, v, spans, 2),
        ));
    }

    /// The first `n` tokens of row `b`, without attention.
    fn fill(&mut self, b: usize, n: usize) {
        let part = |x: &[f64]| {
            tensor::<B, 4>(x, self.case.k_shape(), self.dtype).slice(s![b..b + 1, .., 0..n, ..])
        };
        let (k, v) = (part(&self.case.k), part(&self.case.v));
        self.write(k, v, &[CacheSpan { slot: self.slots[b], start: 0, n }]);
    }

    /// `n` new tokens of each row at positions starts[b]..; queries are those columns too.
    fn step(&mut self, starts: &[usize], n: usize) -> Tensor<B, 4> {
        let part = |x: &[f64], shape: [usize; 4]| {
            let whole = tensor::<B, 4>(x, shape, self.dtype);
            let rows = starts
                .iter()
                .enumerate()
                .map(|(b, &start)| whole.clone().slice(s![b..b + 1, .., start..start + n, ..]));
            Tensor::cat(rows.collect(), 0)
        };
        let (q, k, v) = (
            part(&self.case.q, self.case.q_shape()),
            part(&self.case.k, self.case.k_shape()),
            part(&self.case.v, self.case.k_shape()),
        );
        let spans: Vec<CacheSpan> = self
            .slots
            .iter()
            .zip(starts)
            .map(|(&slot, &start)| CacheSpan { slot, start, n })
            .collect();
        self.write(k, v, &spans);
        let rows =
            CausalRows { starts: starts.to_vec(), slots: Some(self.slots.to_vec()), lengths: None };
        let (keys, values) = self.cache.clone().unwrap();
        causal_attention(q, keys.swap_dims(2, B::KEY_POSITION_DIM), values, &rows)
    }
}

/// Columns starts[b]..starts[b] + n of the definition's result for whole sequences.
fn columns(case: &Case, whole: &[f64], starts: &[usize], n: usize) -> Vec<f64> {
    let heads = case.n_kv_heads * case.group;
    let mut out = Vec::new();
    for (b, start) in starts.iter().enumerate() {
        for h in 0..heads {
            let at = ((b * heads + h) * case.n_queries + start) * case.head_dim;
            out.extend(&whole[at..at + n * case.head_dim]);
        }
    }
    out
}

fn decoding_gives_what_whole_sequences_give<B: KernelOps>() {
    for dtype in dtypes::<B>() {
        // Several tiles and several cubes a row; queries of one and of three tokens; head sizes
        // from 16 to 256, the largest with no vector of eight.
        for ([n_kv_heads, group, n_tokens, head_dim], capacity) in [
            ([2, 7, 150, 64], 160),
            ([1, 2, 40, 128], 48),
            ([2, 1, 30, 16], 48),
            ([1, 1, 20, 256], 32),
        ] {
            let case = Case::whole(3, n_kv_heads, group, n_tokens, head_dim, dtype);
            let want = case.forward();
            let slots = [4usize, 0, 2];
            let mut decoder = Decoder::<B>::new(&case, &slots, capacity, dtype);
            let mut starts = [n_tokens - 5, 3, n_tokens / 2];
            for (b, n) in starts.into_iter().enumerate() {
                decoder.fill(b, n);
            }
            for n in [1, 1, 3] {
                let got = decoder.step(&starts, n);
                let what = format!(
                    "{n_kv_heads} x {group} heads, {n} tokens of {head_dim} at {starts:?}, \
                     {dtype:?}"
                );
                assert_close(
                    &values(got),
                    &columns(&case, &want, &starts, n),
                    tolerance(dtype),
                    &what,
                );
                starts.iter_mut().for_each(|start| *start += n);
            }
        }
    }
}

fn prefill_of_slots_in_any_order_reads_live_positions_only<B: KernelOps>() {
    for dtype in dtypes::<B>() {
        let case = Case::whole(2, 2, 2, 70, 16, dtype);
        let want = case.forward();
        let slots = [2usize, 1];
        let mut decoder = Decoder::<B>::new(&case, &slots, 80, dtype);
        for (starts, n) in [([0, 0], 20), ([20, 20], 50)] {
            let got = decoder.step(&starts, n);
            assert_close(
                &values(got),
                &columns(&case, &want, &starts, n),
                tolerance(dtype),
                &format!("{starts:?}, {dtype:?}"),
            );
        }
    }
}

/// Which of the [B, H, Tq, hd] vectors hold NaN.
fn nan_rows<B: KernelOps>(out: Tensor<B, 4>) -> Vec<bool> {
    let head_dim = out.dims()[3];
    values(out).chunks(head_dim).map(|row| row.iter().any(|x| x.is_nan())).collect()
}

fn nan_in_a_visible_key_surfaces<B: KernelOps>() {
    // The key of position 40 of the only row is broken; queries are positions 39, 40, 41.
    let case = Case::whole(1, 1, 2, 50, 16, DType::F32);
    let mut broken = case.clone();
    broken.k[40 * 16 + 3] = f64::NAN;
    let make = |x: &[f64], shape| tensor::<B, 4>(x, shape, DType::F32);
    let (q, k, v) = (
        make(&case.q, case.q_shape()),
        make(&broken.k, case.k_shape()),
        make(&case.v, case.k_shape()),
    );
    let want = [false, true, true, false, true, true];
    let few = q.clone().slice(s![.., .., 39..42, ..]);
    let rows = |slots| CausalRows { starts: vec![39], slots, lengths: None };
    assert_eq!(
        nan_rows(causal_attention(few.clone(), k.clone(), v.clone(), &rows(None))),
        want,
        "without a cache"
    );
    let cache = |position_dim: usize, values: Tensor<B, 4>| {
        let spans = [CacheSpan { slot: 0, start: 0, n: 50 }];
        cache_write(
            empty_cache::<B>(2, &case, 64, position_dim, DType::F32),
            values,
            &spans,
            position_dim,
        )
    };
    let keys = cache(B::KEY_POSITION_DIM, k).swap_dims(2, B::KEY_POSITION_DIM);
    assert_eq!(
        nan_rows(causal_attention(few, keys.clone(), cache(2, v.clone()), &rows(Some(vec![0])))),
        want,
        "few queries"
    );
    let rows = CausalRows { starts: vec![0], slots: Some(vec![0]), lengths: None };
    let got = nan_rows(causal_attention(q, keys, cache(2, v), &rows));
    assert_eq!(got, (0..100).map(|row| row % 50 >= 40).collect::<Vec<_>>(), "many queries");
}

fn queries_behind_the_last_key_are_harmless<B: KernelOps>() {
    // Padding columns of a right-padded pass over a cache: queries at positions that were never
    // written.
    let case = Case::whole(2, 1, 2, 24, 16, DType::F32);
    let cache = |position_dim: usize, x: &[f64]| {
        let spans = [CacheSpan { slot: 1, start: 0, n: 24 }, CacheSpan { slot: 0, start: 0, n: 6 }];
        let zeros = empty_cache::<B>(2, &case, 32, position_dim, DType::F32).zeros_like();
        cache_write(zeros, tensor(x, case.k_shape(), DType::F32), &spans, position_dim)
    };
    let rows = CausalRows { starts: vec![0, 0], slots: Some(vec![1, 0]), lengths: None };
    let keys = cache(B::KEY_POSITION_DIM, &case.k).swap_dims(2, B::KEY_POSITION_DIM);
    let got = values(causal_attention(
        tensor(&case.q, case.q_shape(), DType::F32),
        keys,
        cache(2, &case.v),
        &rows,
    ));
    let want = case.forward();
    assert_close(&got[..2 * 24 * 16], &want[..2 * 24 * 16], tolerance(DType::F32), "the whole row");
    assert_close(
        &got[2 * 24 * 16..][..6 * 16],
        &want[2 * 24 * 16..][..6 * 16],
        tolerance(DType::F32),
        "real queries of the short row",
    );
    assert!(got.iter().all(|x| x.is_finite()));
}

fn large_scores_do_not_overflow<B: KernelOps>() {
    // Scores of +-2e4: exp of any of them alone is infinite or 0. Each query then takes the value
    // of its best key.
    for dtype in dtypes::<B>() {
        let mut case = Case::whole(1, 1, 1, 12, 16, dtype);
        case.q = rounded(&case.q.iter().map(|x| x * 100.0).collect::<Vec<_>>(), dtype);
        case.k = rounded(&case.k.iter().map(|x| x * 60.0).collect::<Vec<_>>(), dtype);
        let make = |x: &[f64], shape| tensor::<B, 4>(x, shape, dtype);
        let got = causal_attention(
            make(&case.q, case.q_shape()),
            make(&case.k, case.k_shape()),
            make(&case.v, case.k_shape()),
            &CausalRows::whole(1),
        );
        assert_close(&values(got), &case.forward(), tolerance(dtype), &format!("{dtype:?}"));
    }
}
