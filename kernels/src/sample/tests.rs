use super::{Draw, RowSampling, plan::SamplePlan, read, sample, weight};
use crate::{
    KernelOps,
    testing::{dtypes, on_every_backend},
};
use burn::tensor::{DType, Tensor, TensorData};

on_every_backend!(
    tokens_are_those_of_the_integer_definition,
    f16_and_bf16_logits_are_sampled_as_their_f32_values,
    top_k_and_top_p_let_through_exactly_the_set_of_their_definition,
    frequencies_follow_the_temperature_scaled_softmax,
    the_log_prob_is_that_of_the_full_temperature_scaled_softmax,
    rows_drawn_together_equal_rows_drawn_alone,
    logits_that_are_no_distribution_are_refused,
    equal_logits_go_to_the_lower_id,
    masked_tokens_are_never_drawn,
    huge_logits_do_not_overflow,
    views_are_sampled_as_what_they_show,
);

const PLAIN: RowSampling = RowSampling { temperature: 1.0, top_k: 0, top_p: 1.0, bits: 0 };
const GREEDY: RowSampling = RowSampling { temperature: 0.0, ..PLAIN };

/// 64 bits of SplitMix64.
fn bits(counter: u64) -> u64 {
    let mut z = counter.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn uniform(counter: u64) -> f64 {
    (bits(counter) >> 11) as f64 / 2f64.powi(53)
}

/// Normal numbers (Box-Muller) of the given scale.
fn random_logits(n: usize, scale: f64, salt: u64) -> Vec<f32> {
    let normal = |i: u64| {
        (-2.0 * (1.0 - uniform(2 * i)).ln()).sqrt()
            * (std::f64::consts::TAU * uniform(2 * i + 1)).cos()
    };
    (0..n as u64).map(|i| (scale * normal(i + (salt << 32))) as f32).collect()
}

/// All kinds of sampling, one after the other, each with its own bits.
fn sampling(r: usize) -> RowSampling {
    let kinds = [
        PLAIN,
        RowSampling { temperature: 0.7, ..PLAIN },
        GREEDY,
        RowSampling { temperature: 1.3, top_k: 30, top_p: 0.8, ..PLAIN },
        RowSampling { top_p: 0.9, ..PLAIN },
        RowSampling { top_k: 1, ..PLAIN },
        RowSampling { temperature: 0.05, top_k: 5, ..PLAIN },
        RowSampling { temperature: 20.0, top_p: 0.35, ..PLAIN },
        RowSampling { top_k: 1 << 40, top_p: 0.0, ..PLAIN },
    ];
    RowSampling { bits: bits(r as u64 ^ 0xabcd), ..kinds[r % kinds.len()] }
}

/// The same, all of them; and with nothing left out, which a backend may draw in another way.
fn samplings(n_rows: usize) -> [Vec<RowSampling>; 2] {
    let all: Vec<RowSampling> = (0..n_rows).map(sampling).collect();
    let whole = all.iter().map(|row| RowSampling { top_k: 0, top_p: 1.0, ..*row }).collect();
    [all, whole]
}

fn draws<B: KernelOps>(logits: &[f32], rows: &[RowSampling]) -> Vec<Option<Draw>> {
    let data = TensorData::new(logits.to_vec(), [rows.len(), logits.len() / rows.len()]);
    read(sample(Tensor::<B, 2>::from_data(data, (&Default::default(), DType::F32)), rows))
}

fn draw<B: KernelOps>(logits: &[f32], row: RowSampling) -> Draw {
    draws::<B>(logits, &[row])[0].expect("finite logits")
}

fn id_of<B: KernelOps>(logits: &[f32], row: RowSampling) -> u32 {
    draw::<B>(logits, row).id
}

fn ids(draws: &[Option<Draw>]) -> Vec<Option<u32>> {
    draws.iter().map(|draw| draw.map(|draw| draw.id)).collect()
}

/// log_softmax(logits / t)[id] as a literal f64 loop.
fn log_softmax(logits: &[f32], temperature: f64, id: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| (f64::from(l - max) / temperature).exp()).sum();
    f64::from(logits[id as usize] - max) / temperature - sum.ln()
}

/// The token by the definition in `mod.rs`: everything sorted, sums and products in 128 bits. Only
/// the weights are the module's.
fn by_definition(logits: &[f32], row: &RowSampling) -> u32 {
    let plan = SamplePlan::new(row);
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<u128> = logits
        .iter()
        .map(|&logit| u128::from(weight::Share::new(max - logit, plan.scale).weight()))
        .collect();
    let mut kept: Vec<usize> = (0..logits.len()).collect();
    kept.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
    if row.temperature == 0.0 {
        return kept[0] as u32;
    }
    let total = |kept: &[usize]| kept.iter().map(|&id| weights[id]).sum::<u128>();
    if row.top_k > 0 {
        kept.truncate(row.top_k);
    }
    if row.top_p < 1.0 {
        let reach = total(&kept) * u128::from((row.top_p * 2f64.powi(32)) as u64);
        let mut cumulated = 0;
        let last = kept.iter().position(|&id| {
            cumulated += weights[id];
            cumulated << 32 >= reach
        });
        kept.truncate(last.unwrap() + 1);
    }
    kept.sort_unstable();
    let target = (total(&kept) * u128::from(row.bits)) >> 64;
    let mut cumulated = 0;
    let found = kept.iter().find(|&&id| {
        cumulated += weights[id];
        cumulated > target
    });
    *found.unwrap() as u32
}

fn tokens_are_those_of_the_integer_definition<B: KernelOps>() {
    for (vocab_size, n_rows) in
        [(1, 20), (2, 100), (127, 900), (128, 900), (1000, 450), (151_936, 9)]
    {
        // A software driver takes seconds for a whole vocabulary.
        let n_scales = if vocab_size > 1000 { 1 } else { 4 };
        for (scale, shift) in
            [(2.0, 0.0), (5.0, 1e4), (0.01, -1e4), (0.0, 3.0)].into_iter().take(n_scales)
        {
            let mut logits = random_logits(n_rows * vocab_size, scale, vocab_size as u64);
            logits.iter_mut().enumerate().for_each(|(i, logit)| match bits(i as u64) % 5 {
                0 if i % vocab_size > 0 => *logit = f32::NEG_INFINITY,
                _ => *logit += shift,
            });
            for rows in samplings(n_rows) {
                let got = ids(&draws::<B>(&logits, &rows));
                let want: Vec<_> = rows
                    .iter()
                    .zip(logits.chunks(vocab_size))
                    .map(|(row, logits)| Some(by_definition(logits, row)))
                    .collect();
                assert_eq!(got, want, "V = {vocab_size}, shift {shift}");
            }
        }
    }
}

fn f16_and_bf16_logits_are_sampled_as_their_f32_values<B: KernelOps>() {
    for dtype in dtypes::<B>() {
        let (n_rows, vocab_size) = (180, 1000);
        let data =
            TensorData::new(random_logits(n_rows * vocab_size, 3.0, 8), [n_rows, vocab_size])
                .convert_dtype(dtype);
        let values = data.clone().convert::<f32>().to_vec::<f32>().unwrap();
        let tensor = Tensor::<B, 2>::from_data(data, (&Default::default(), dtype));
        for rows in samplings(n_rows) {
            let want: Vec<_> = rows
                .iter()
                .zip(values.chunks(vocab_size))
                .map(|(row, logits)| Some(by_definition(logits, row)))
                .collect();
            assert_eq!(ids(&read(sample(tensor.clone(), &rows))), want, "{dtype:?}");
        }
    }
}

/// The kept set by its definition, in f64: sort everything, cut at k, renormalise, cut at the mass.
fn kept_by_definition(logits: &[f32], row: &RowSampling) -> Vec<u32> {
    let weight = |id: &u32| (f64::from(logits[*id as usize]) / row.temperature).exp();
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.sort_by(|a, b| weight(b).total_cmp(&weight(a)).then(a.cmp(b)));
    ids.truncate(if row.top_k == 0 { ids.len() } else { row.top_k });
    let total: f64 = ids.iter().map(weight).sum();
    let mut cumulated = 0.0;
    let n = ids.iter().position(|id| {
        cumulated += weight(id);
        cumulated >= row.top_p * total
    });
    ids.truncate(n.map_or(ids.len(), |n| n + 1));
    ids.sort_unstable();
    ids
}

fn top_k_and_top_p_let_through_exactly_the_set_of_their_definition<B: KernelOps>() {
    let logits = random_logits(997, 2.5, 0);
    for (top_p, top_k) in
        [(0.9, 0), (0.1, 0), (1e-9, 0), (0.999, 0), (1.0, 7), (0.5, 50), (0.95, 2000)]
    {
        let row = RowSampling { temperature: 0.8, top_p, top_k, bits: 0 };
        let want = kept_by_definition(&logits, &row);
        let weights: Vec<f64> =
            want.iter().map(|&id| (f64::from(logits[id as usize]) / 0.8).exp()).collect();
        let total: f64 = weights.iter().sum();
        // The midpoint of every interval of the cumulative distribution hits every kept id once, in
        // order.
        let mut cumulated = 0.0;
        let rows: Vec<RowSampling> = weights
            .iter()
            .map(|weight| {
                let middle = (cumulated + weight / 2.0) / total;
                cumulated += weight;
                RowSampling { bits: (middle * 2f64.powi(64)) as u64, ..row }
            })
            .collect();
        let got = ids(&draws::<B>(&logits.repeat(rows.len()), &rows));
        assert_eq!(
            got,
            want.into_iter().map(Some).collect::<Vec<_>>(),
            "top_p {top_p} top_k {top_k}"
        );
    }
}

fn frequencies_follow_the_temperature_scaled_softmax<B: KernelOps>() {
    let (logits, temperature, n) = ([1.0f32, 0.0, -1.0, 2.0, -3.0], 1.5, 20_000usize);
    let rows: Vec<RowSampling> =
        (0..n as u64).map(|i| RowSampling { temperature, bits: bits(i), ..PLAIN }).collect();
    let mut counts = [0u32; 5];
    for draw in draws::<B>(&logits.repeat(n), &rows) {
        counts[draw.expect("finite logits").id as usize] += 1;
    }
    let expected = |id: usize| n as f64 * log_softmax(&logits, temperature, id as u32).exp();
    let chi_square: f64 = counts
        .iter()
        .enumerate()
        .map(|(id, &count)| (f64::from(count) - expected(id)).powi(2) / expected(id))
        .sum();
    // Four degrees of freedom: exceeded with probability 1e-4 by draws that do follow it. The bits
    // are the same in every run.
    assert!(chi_square < 23.5, "chi-square {chi_square}, {counts:?}");
}

fn the_log_prob_is_that_of_the_full_temperature_scaled_softmax<B: KernelOps>() {
    for (vocab_size, scale, shift) in
        [(1000, 3.0, 0.0), (1000, 3.0, 1e4), (151_936, 2.0, -20.0), (151_936, 0.1, 0.0)]
    {
        let logits: Vec<f32> =
            random_logits(vocab_size, scale, 1).iter().map(|logit| logit + shift).collect();
        let rows = samplings(9).concat();
        let draws = samplings(9).map(|rows| draws::<B>(&logits.repeat(9), &rows)).concat();
        for (row, draw) in rows.iter().zip(draws) {
            let draw = draw.expect("finite logits");
            let temperature = if row.temperature == 0.0 { 1.0 } else { row.temperature };
            let want = log_softmax(&logits, temperature, draw.id);
            // x is rounded twice (1.2e-7 of it, e^-x being the average), the result once (6e-8 of
            // it), and a unit adds 600 terms with compensation.
            let tolerance = 1e-6 + 4e-7 * want.abs();
            assert!(
                (f64::from(draw.log_prob) - want).abs() < tolerance,
                "V = {vocab_size}, {row:?}: {} {want}",
                draw.log_prob
            );
        }
    }
}

fn rows_drawn_together_equal_rows_drawn_alone<B: KernelOps>() {
    let (n_rows, vocab_size) = (60, 700);
    let logits = random_logits(n_rows * vocab_size, 2.0, 3);
    let [all, whole] = samplings(n_rows).map(|rows| {
        let alone: Vec<_> = rows
            .iter()
            .zip(logits.chunks(vocab_size))
            .map(|(row, logits)| draws::<B>(logits, &[*row])[0])
            .collect();
        (draws::<B>(&logits, &rows), alone)
    });
    // Beside a row that leaves tokens out, another may come by another way than alone: to the same
    // token, with a log-prob that may differ in its last digit.
    assert_eq!(ids(&all.0), ids(&all.1));
    assert_eq!(whole.0, whole.1);
}

fn logits_that_are_no_distribution_are_refused<B: KernelOps>() {
    const INF: f32 = f32::INFINITY;
    let logits = [0.0, f32::NAN, INF, 0.0, -INF, -INF, -f32::NAN, -INF, 1.0, -INF];
    for row in
        [PLAIN, GREEDY, RowSampling { top_k: 1, ..PLAIN }, RowSampling { top_p: 0.5, ..PLAIN }]
    {
        assert_eq!(ids(&draws::<B>(&logits, &[row; 5])), [None, None, None, None, Some(0)]);
    }
}

fn equal_logits_go_to_the_lower_id<B: KernelOps>() {
    let one = RowSampling { top_k: 1, bits: u64::MAX, ..PLAIN };
    for logits in [[0.5, 2.0, -1.0, 2.0], [-1.0, -0.0, -1.0, 0.0]] {
        assert_eq!([id_of::<B>(&logits, GREEDY), id_of::<B>(&logits, one)], [1, 1]);
    }
    // Ten equal tokens: seven of them reach 0.7, the first seven, of which the last bits draw the
    // last.
    let seven = RowSampling { top_p: 0.7, bits: u64::MAX, ..PLAIN };
    let both = RowSampling { top_k: 8, ..seven };
    assert_eq!([id_of::<B>(&[4.0; 10], seven), id_of::<B>(&[4.0; 10], both)], [6, 5]);
}

fn masked_tokens_are_never_drawn<B: KernelOps>() {
    let logits = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
    for row in
        [PLAIN, RowSampling { temperature: 1e30, ..PLAIN }, RowSampling { top_k: 4, ..PLAIN }]
    {
        assert_eq!(id_of::<B>(&logits, RowSampling { bits: 0, ..row }), 1);
        assert_eq!(id_of::<B>(&logits, RowSampling { bits: u64::MAX, ..row }), 3);
    }
}

fn huge_logits_do_not_overflow<B: KernelOps>() {
    for temperature in [1.0, 1e-40, 1e-10] {
        let got =
            draw::<B>(&[3e38, -3e38, 2.9e38], RowSampling { temperature, bits: u64::MAX, ..PLAIN });
        assert_eq!((got.id, got.log_prob), (0, 0.0));
    }
}

fn views_are_sampled_as_what_they_show<B: KernelOps>() {
    let (n_rows, vocab_size) = (9, 130);
    let logits = random_logits(n_rows * vocab_size, 2.0, 4);
    let whole = Tensor::<B, 2>::from_data(
        TensorData::new(logits.clone(), [n_rows, vocab_size]),
        (&Default::default(), DType::F32),
    );
    let columns: Vec<f32> =
        logits.chunks(vocab_size).flat_map(|row| row[3..120].to_vec()).collect();
    let turned: Vec<f32> =
        (0..vocab_size).flat_map(|v| logits.iter().skip(v).step_by(vocab_size).copied()).collect();
    for rows in samplings(n_rows) {
        assert_eq!(
            ids(&read(sample(whole.clone().slice([0..n_rows, 3..120]), &rows))),
            ids(&draws::<B>(&columns, &rows))
        );
    }
    for rows in samplings(vocab_size) {
        let got = read(sample(whole.clone().transpose(), &rows));
        assert_eq!(ids(&got), ids(&draws::<B>(&turned, &rows)));
    }
}

#[test]
fn no_rows_are_no_draws() {
    assert_eq!(
        read(sample(Tensor::<burn::backend::Flex, 2>::zeros([0, 4], &Default::default()), &[])),
        []
    );
}

#[test]
fn the_integer_weight_is_the_exponential() {
    let mut last = u64::MAX;
    for i in 0..=2_000_000 {
        let x = 40.0 * f64::from(i) / 2_000_000.0;
        let below = (x / std::f64::consts::LOG2_E) as f32;
        let share = weight::Share::new(below, weight::scale(1.0));
        let (got, want) = (share.weight() as f64, 2f64.powi(31) * (-f64::from(below)).exp());
        // Relative: the polynomial 1.1e-8, the cut of x 2.1e-8, its factor and product 1.2e-7 ln 2
        // x; absolute: rounding to an integer.
        let relative = 3.2e-8 + 8.3e-8 * x;
        assert!((got - want).abs() <= 0.5 + relative * want, "2^-{x}: {got} instead of {want}");
        assert!(
            (f64::from(share.value()) * 2f64.powi(31) / want - 1.0).abs() < relative + 6e-8,
            "2^-{x}: {}",
            share.value()
        );
        assert!(share.weight() <= last, "2^-{x} is larger than the one before");
        last = share.weight();
    }
    assert_eq!(
        [0.0, f32::INFINITY, 3e38]
            .map(|below| weight::Share::new(below, weight::scale(1.0)).weight()),
        [1 << 31, 0, 0]
    );
}

#[test]
fn keys_are_ordered_as_logits_are() {
    let logits = [f32::NEG_INFINITY, -3e38, -1.0, -1e-40, -0.0, 1e-40, 1.0, 3e38];
    let keys = logits.map(weight::key);
    assert!(keys.is_sorted_by(|a, b| a < b) && keys[0] == weight::LOWEST_KEY, "{keys:x?}");
    assert_eq!(keys.map(weight::logit), logits);
    assert_eq!(weight::key(0.0), weight::key(-0.0));
    assert!(
        [f32::INFINITY, f32::NAN, -f32::NAN]
            .map(weight::key)
            .iter()
            .all(|&key| key >= weight::HIGHEST_KEY)
    );
}
