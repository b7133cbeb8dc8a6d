//! Cases of attention that the suite does not have: caches filled and read step by step, memory in
//! any order, and numbers that break.
use super::{CausalRows, causal_attention};
use crate::{
    KernelOps,
    cache_write::{CacheSpan, cache_write},
    suite::hidden_definitions::{self as definitions, AttentionShape},
    testing::{assert_close, dtypes, epsilon, on_every_backend, rounded, scaled, tensor, values},
};
use burn::{
    backend::{Autodiff, Flex},
    tensor::{DType, Tensor, s},
};

on_every_backend!(
    decoding_gives_what_whole_sequences_give,
    prefill_of_slots_in_any_order_reads_live_positions_only,
    strides_do_not_matter,
    nan_in_a_visible_key_surfaces,
    queries_behind_the_last_key_are_harmless,
    large_scores_do_not_overflow,
);

/// Queries, keys and values on the host.
#[derive(Clone)]
pub(super) struct Case {
    shape: AttentionShape,
    pub q: Vec<f64>,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
}

impl Case {
    /// Numbers that the type holds; scores of about +-2.
    pub(super) fn new(shape: AttentionShape, dtype: DType) -> Self {
        let (n_q, n_k) = (shape.queries().iter().product(), shape.keys().iter().product());
        let (q, k, v) = (
            scaled(n_q, 0.1, 6.0, dtype),
            scaled(n_k, 0.2, 2.0, dtype),
            scaled(n_k, 0.3, 2.0, dtype),
        );
        Self { shape, q, k, v }
    }

    /// Whole causal sequences.
    fn whole(
        n_rows: usize,
        n_kv_heads: usize,
        group: usize,
        n_tokens: usize,
        head_dim: usize,
        dtype: DType,
    ) -> Self {
        let shape = AttentionShape {
            starts: vec![0; n_rows],
            lengths: None,
            n_heads: n_kv_heads * group,
            n_kv_heads,
            n_queries: n_tokens,
            n_keys: n_tokens,
            head_dim,
        };
        Self::new(shape, dtype)
    }

    pub(super) fn q_shape(&self) -> [usize; 4] {
        self.shape.queries()
    }

    pub(super) fn k_shape(&self) -> [usize; 4] {
        self.shape.keys()
    }

    pub(super) fn forward(&self) -> Vec<f64> {
        definitions::attention(&self.shape, &self.q, &self.k, &self.v)
    }

    fn tensors<B: KernelOps>(&self) -> [Tensor<B, 4>; 3] {
        [(&self.q, self.q_shape()), (&self.k, self.k_shape()), (&self.v, self.k_shape())]
            .map(|(x, shape)| tensor(x, shape, DType::F32))
    }
}

/// Results and probabilities are each rounded to the type once; sums over keys average the
/// roundings out.
pub(super) fn tolerance(dtype: DType) -> f64 {
    3e-5 + if dtype == DType::F32 { 0.0 } else { 4.0 * epsilon(dtype) }
}

/// A cache in which nothing was written yet: NaN, so that reading what is not live shows.
fn empty_cache<B: KernelOps>(
    n_slots: usize,
    case: &Case,
    capacity: usize,
    position_dim: usize,
    dtype: DType,
) -> Tensor<B, 4> {
    let mut shape = [n_slots, case.shape.n_kv_heads, capacity, case.shape.head_dim];
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
    let AttentionShape { n_heads, n_queries, head_dim, .. } = case.shape;
    let mut out = Vec::new();
    for (b, start) in starts.iter().enumerate() {
        for h in 0..n_heads {
            let at = ((b * n_heads + h) * n_queries + start) * head_dim;
            out.extend(&whole[at..at + n * head_dim]);
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

/// Which of the `[B, H, Tq, hd]` vectors hold NaN.
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

fn strides_do_not_matter<B: KernelOps>() {
    let case = Case::whole(2, 2, 2, 7, 8, DType::F32);
    let [q, k, v] = case.tensors::<B>();
    // Token-major storage, as projections leave it, and keys as [hd, Tk].
    let stored_swapped = |x: Tensor<B, 4>, a: usize, b: usize| {
        let swapped = x.swap_dims(a, b);
        tensor::<B, 4>(&values(swapped.clone()), swapped.dims(), DType::F32).swap_dims(a, b)
    };
    let (q, k, v) = (stored_swapped(q, 1, 2), stored_swapped(k, 2, 3), stored_swapped(v, 1, 2));
    let got = causal_attention(q, k, v, &CausalRows::whole(2));
    assert_close(&values(got), &case.forward(), tolerance(DType::F32), "strided");
}

/// 80,000 rows of queries (two heads of 40,000) all see four keys alike: dv is the sum of a quarter
/// of all gradients from above. Equal numbers round the same way for long: one line of f32 is off
/// by 8e-4 of the sum, blocks of 4,096 rows by 4e-5.
#[test]
fn the_gradient_of_values_that_many_queries_see_keeps_its_digits() {
    const N: usize = 40_000;
    let leaf = |shape: [usize; 4]| {
        Tensor::<Autodiff<Flex>, 4>::zeros(shape, &Default::default()).require_grad()
    };
    let (q, k, v) = (leaf([1, 2, N, 4]), leaf([1, 1, 4, 4]), leaf([1, 1, 4, 4]));
    let rows = CausalRows { starts: vec![3], slots: None, lengths: Some(vec![4]) };
    let from_above = Tensor::<Autodiff<Flex>, 4>::full([1, 2, N, 4], 0.9f32, &Default::default());
    let grads = (causal_attention(q, k, v.clone(), &rows) * from_above).sum().backward();
    let got: Vec<f32> = v.grad(&grads).unwrap().into_data().to_vec().unwrap();
    let want = f64::from(0.9f32) / 4.0 * (2 * N) as f64;
    assert!(
        got.iter().all(|&got| (f64::from(got) - want).abs() <= 1e-4 * want),
        "{got:?} instead of {want}"
    );
}
