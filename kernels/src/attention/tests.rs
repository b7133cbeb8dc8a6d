use super::{CausalRows, causal_attention, reference};
use burn::{
    backend::{Autodiff, Flex},
    tensor::{Tensor, TensorData, TensorPrimitive, ops::FloatTensor},
};

type Train = Autodiff<Flex>;

/// Numbers in (-1, 1) without a generator: fractional parts of multiples of an irrational.
fn numbers(n: usize, salt: f64) -> Vec<f64> {
    (0..n)
        .map(|i| 2.0 * ((i as f64 + 1.0) * (0.618_033_988_749_894_9 + salt)).fract() - 1.0)
        .collect()
}

#[derive(Clone)]
struct Case {
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    head_dim: usize,
    starts: Vec<usize>,
    /// [B] keys of each row; `None`: all.
    lengths: Option<Vec<usize>>,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
}

impl Case {
    fn new(
        heads: usize,
        kv_heads: usize,
        queries: usize,
        keys: usize,
        head_dim: usize,
        starts: &[usize],
    ) -> Self {
        let b = starts.len();
        let q = numbers(b * heads * queries * head_dim, 0.1).iter().map(|x| 3.0 * x).collect();
        let kv = |salt| numbers(b * kv_heads * keys * head_dim, salt);
        Self {
            heads,
            kv_heads,
            queries,
            keys,
            head_dim,
            starts: starts.to_vec(),
            lengths: None,
            q,
            k: kv(0.2),
            v: kv(0.3),
        }
    }

    /// Every query sees every key of its row; rows are `lengths` long, padded to the longest.
    fn bidirectional(heads: usize, head_dim: usize, lengths: &[usize]) -> Self {
        let n = lengths.iter().copied().max().unwrap();
        Self { lengths: Some(lengths.to_vec()), ..Self::new(heads, heads, n, n, head_dim, lengths) }
    }

    /// The definition, element by element, in f64.
    fn literal(&self) -> Vec<f64> {
        let Self { heads, kv_heads, queries, keys, head_dim, .. } = *self;
        let mut out = Vec::new();
        for (b, &start) in self.starts.iter().enumerate() {
            for h in 0..heads {
                let j = h / (heads / kv_heads);
                for t in 0..queries {
                    let q = &self.q[((b * heads + h) * queries + t) * head_dim..][..head_dim];
                    let row = |x: &[f64], s: usize| {
                        x[((b * kv_heads + j) * keys + s) * head_dim..][..head_dim].to_vec()
                    };
                    let n_seen = match &self.lengths {
                        Some(lengths) => lengths[b],
                        None => (start + t + 1).min(keys),
                    };
                    let score = |s: usize| {
                        q.iter().zip(row(&self.k, s)).map(|(a, b)| a * b).sum::<f64>()
                            / (head_dim as f64).sqrt()
                    };
                    let weights: Vec<f64> = (0..n_seen).map(|s| score(s).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    out.extend((0..head_dim).map(|d| {
                        weights
                            .iter()
                            .enumerate()
                            .map(|(s, w)| w / total * row(&self.v, s)[d])
                            .sum::<f64>()
                    }));
                }
            }
        }
        out
    }

    fn tensors<B: burn::tensor::backend::Backend>(&self) -> [Tensor<B, 4>; 3] {
        let b = self.starts.len();
        let tensor = |x: &[f64], shape: [usize; 4]| {
            let x: Vec<f32> = x.iter().map(|&x| x as f32).collect();
            Tensor::<B, 4>::from_data(TensorData::new(x, shape), &Default::default())
        };
        [
            tensor(&self.q, [b, self.heads, self.queries, self.head_dim]),
            tensor(&self.k, [b, self.kv_heads, self.keys, self.head_dim]),
            tensor(&self.v, [b, self.kv_heads, self.keys, self.head_dim]),
        ]
    }

    fn rows(&self) -> CausalRows {
        match &self.lengths {
            Some(lengths) => CausalRows::bidirectional(lengths.clone()),
            None => CausalRows { starts: self.starts.clone(), slots: None, lengths: None },
        }
    }
}

fn values(tensor: Tensor<Flex, 4>) -> Vec<f32> {
    tensor.into_data().to_vec().unwrap()
}

fn primitive(tensor: Tensor<Flex, 4>) -> FloatTensor<Flex> {
    tensor.into_primitive().tensor()
}

fn from_primitive(tensor: FloatTensor<Flex>) -> Tensor<Flex, 4> {
    Tensor::from_primitive(TensorPrimitive::Float(tensor))
}

fn assert_close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(
            (f64::from(*got) - want).abs() <= tolerance,
            "{what}[{i}]: {got} instead of {want}"
        );
    }
}

/// Groups of 1, 2, 4 and 5 heads, head sizes that fill vectors or not, one and many queries, chunks
/// cut in the middle, ragged starts.
fn cases() -> Vec<Case> {
    vec![
        Case::new(2, 2, 5, 5, 4, &[0, 0]),
        Case::new(4, 2, 7, 7, 8, &[0, 0]),
        Case::new(4, 1, 70, 70, 16, &[0]),
        Case::new(5, 1, 3, 9, 24, &[6, 1]),
        Case::new(4, 2, 1, 33, 16, &[32, 0, 15, 16]),
        Case::new(8, 2, 1, 20, 12, &[7, 7]),
        Case::new(2, 1, 140, 150, 20, &[10, 0]),
        // The last queries of row 0 are padding behind the last key.
        Case::new(2, 1, 4, 6, 8, &[4, 0]),
        Case::bidirectional(3, 8, &[5, 5]),
        Case::bidirectional(2, 32, &[1, 140, 17]),
    ]
}

#[test]
fn forward_is_the_literal_loop() {
    for case in cases() {
        let want = case.literal();
        let [q, k, v] = case.tensors::<Flex>();
        let cpu = causal_attention(q.clone(), k.clone(), v.clone(), &case.rows());
        assert_close(&values(cpu), &want, 2e-6, "cpu");
        let plain =
            reference::forward::<Flex>(primitive(q), primitive(k), primitive(v), &case.rows());
        assert_close(&values(from_primitive(plain)), &want, 2e-6, "reference");
    }
}

#[test]
fn strides_do_not_matter() {
    let case = Case::new(4, 2, 7, 7, 8, &[0, 0]);
    let [q, k, v] = case.tensors::<Flex>();
    // Token-major storage, as projections leave it, and keys as [hd, Tk].
    let token_major = |x: Tensor<Flex, 4>| {
        from_primitive(primitive(x.swap_dims(1, 2)).to_contiguous()).swap_dims(1, 2)
    };
    let transposed = |x: Tensor<Flex, 4>| {
        from_primitive(primitive(x.swap_dims(2, 3)).to_contiguous()).swap_dims(2, 3)
    };
    let got = causal_attention(token_major(q), transposed(k), token_major(v), &case.rows());
    assert_close(&values(got), &case.literal(), 2e-6, "strided");
}

#[test]
fn slots_name_the_rows_of_the_keys() {
    let case = Case::new(4, 2, 1, 33, 16, &[32, 0, 15]);
    let [q, k, v] = case.tensors::<Flex>();
    // The keys of row b lie in slot slots[b] of five; the other slots hold NaN, as do positions the
    // row must not see.
    let slots = [3usize, 0, 4];
    let mut keys = Tensor::<Flex, 4>::full([5, 2, 48, 16], f32::NAN, &Default::default());
    let mut vals = keys.clone();
    for (b, &slot) in slots.iter().enumerate() {
        let n = case.starts[b] + 1;
        let place = burn::tensor::s![slot..slot + 1, .., 0..n, ..];
        let part = |x: &Tensor<Flex, 4>| x.clone().slice(burn::tensor::s![b..b + 1, .., 0..n, ..]);
        keys = keys.slice_assign(place, part(&k));
        vals = vals.slice_assign(place, part(&v));
    }
    let rows =
        CausalRows { starts: case.starts.clone(), slots: Some(slots.to_vec()), lengths: None };
    let transposed =
        from_primitive(primitive(keys.clone().swap_dims(2, 3)).to_contiguous()).swap_dims(2, 3);
    for keys in [keys.clone(), transposed] {
        assert_close(
            &values(causal_attention(q.clone(), keys, vals.clone(), &rows)),
            &case.literal(),
            2e-6,
            "cpu",
        );
    }
    let plain = reference::forward::<Flex>(primitive(q), primitive(keys), primitive(vals), &rows);
    assert_close(&values(from_primitive(plain)), &case.literal(), 2e-6, "reference");
}

#[test]
fn gradients_are_the_finite_differences_of_the_literal_loop() {
    for case in [
        Case::new(2, 2, 5, 5, 4, &[0, 0]),
        Case::new(4, 2, 6, 6, 8, &[0]),
        Case::new(4, 1, 5, 5, 16, &[0]),
        Case::new(5, 1, 3, 8, 6, &[5, 1]),
        Case::bidirectional(2, 4, &[5, 3]),
    ] {
        let weights = numbers(case.q.len(), 0.4);
        let loss =
            |case: &Case| case.literal().iter().zip(&weights).map(|(a, b)| a * b).sum::<f64>();
        let step = 1e-5;
        let differences = |edit: fn(&mut Case) -> &mut Vec<f64>| -> Vec<f64> {
            let n = edit(&mut case.clone()).len();
            (0..n)
                .map(|i| {
                    let at = |delta: f64| {
                        let mut moved = case.clone();
                        edit(&mut moved)[i] += delta;
                        loss(&moved)
                    };
                    (at(step) - at(-step)) / (2.0 * step)
                })
                .collect()
        };
        let want = [
            differences(|case| &mut case.q),
            differences(|case| &mut case.k),
            differences(|case| &mut case.v),
        ];

        let [q, k, v] = case.tensors::<Train>().map(Tensor::require_grad);
        let shape = q.dims();
        let grad = Tensor::<Flex, 4>::from_data(
            TensorData::new(weights.iter().map(|&x| x as f32).collect(), shape),
            &Default::default(),
        );
        let out = causal_attention(q.clone(), k.clone(), v.clone(), &case.rows());
        let grads = (out * Tensor::from_inner(grad.clone())).sum().backward();
        for (tensor, want) in [&q, &k, &v].into_iter().zip(&want) {
            assert_close(&values(tensor.grad(&grads).unwrap()), want, 5e-6, "cpu");
        }
        let [q, k, v] = case.tensors::<Flex>().map(primitive);
        for (got, want) in reference::backward::<Flex>(q, k, v, primitive(grad), &case.rows())
            .into_iter()
            .zip(&want)
        {
            assert_close(&values(from_primitive(got)), want, 5e-6, "reference");
        }
    }
}

#[test]
fn cpu_and_reference_gradients_agree_over_several_chunks() {
    let case = Case::new(4, 2, 140, 140, 16, &[0, 0]);
    let [q, k, v] = case.tensors::<Flex>().map(primitive);
    let grad = numbers(case.q.len(), 0.4).iter().map(|&x| x as f32).collect::<Vec<_>>();
    let grad = primitive(Tensor::<Flex, 4>::from_data(
        TensorData::new(grad, [2, 4, 140, 16]),
        &Default::default(),
    ));
    let plain =
        reference::backward::<Flex>(q.clone(), k.clone(), v.clone(), grad.clone(), &case.rows());
    for (cpu, plain) in super::cpu::backward(q, k, v, grad, &case.rows()).into_iter().zip(plain) {
        let plain: Vec<f64> = values(from_primitive(plain)).into_iter().map(f64::from).collect();
        assert_close(&values(from_primitive(cpu)), &plain, 2e-5, "cpu");
    }
}

#[test]
fn nan_in_a_visible_value_surfaces() {
    let case = Case::new(2, 1, 3, 3, 8, &[0]);
    let [q, k, v] = case.tensors::<Flex>();
    let k = k.slice_assign(
        burn::tensor::s![0..1, 0..1, 1..2, 0..1],
        Tensor::full([1, 1, 1, 1], f32::NAN, &Default::default()),
    );
    let out = values(causal_attention(q, k, v, &case.rows()));
    // Query 0 sees key 0 only; queries 1 and 2 see the broken key.
    let is_nan = |h: usize, t: usize| out[(h * 3 + t) * 8].is_nan();
    assert!((0..2).all(|h| !is_nan(h, 0) && is_nan(h, 1) && is_nan(h, 2)));
}

/// 80,000 rows of queries (two heads of 40,000) all see four keys alike: dv is the sum of a quarter
/// of all gradients from above. Equal numbers round the same way for long: one line of f32 is off
/// by 8e-4 of the sum, blocks of 4,096 rows by 4e-5.
#[test]
fn the_gradient_of_values_that_many_queries_see_keeps_its_digits() {
    const N: usize = 40_000;
    let leaf =
        |shape: [usize; 4]| Tensor::<Train, 4>::zeros(shape, &Default::default()).require_grad();
    let (q, k, v) = (leaf([1, 2, N, 4]), leaf([1, 1, 4, 4]), leaf([1, 1, 4, 4]));
    let rows = CausalRows { starts: vec![3], slots: None, lengths: Some(vec![4]) };
    let from_above = Tensor::<Train, 4>::full([1, 2, N, 4], 0.9f32, &Default::default());
    let grads = (causal_attention(q, k, v.clone(), &rows) * from_above).sum().backward();
    let got: Vec<f32> = v.grad(&grads).unwrap().into_data().to_vec().unwrap();
    let want = f64::from(0.9f32) / 4.0 * (2 * N) as f64;
    assert!(
        got.iter().all(|&got| (f64::from(got) - want).abs() <= 1e-4 * want),
        "{got:?} instead of {want}"
    );
}
