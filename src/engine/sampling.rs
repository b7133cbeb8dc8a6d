//! From one row of logits to one token: greedy, temperature, top-k, top-p.
//!
//! The draw is the inverse of the cumulative distribution **in vocabulary order** at a number `u` in [0, 1) that the caller takes from its
//! counter-based key: the first id whose cumulated weight exceeds `u` times the total. Vocabulary order, not descending probability,
//! because two tokens whose logits differ by rounding alone never swap places in it: the same `u` gives the same token whatever batch
//! shape the logits were computed in, except within rounding of an interval's border.
//!
//! Top-k and top-p work on the temperature-scaled distribution, top-k first, and top-p on what top-k left (the order of the common
//! libraries). They narrow what may be drawn; the reported log-prob is always the one of the full temperature-scaled softmax,
//! `log_softmax(logits / T)[id]`, which is what training recomputes.
//!
//! Cost: one pass with an exponential for each token and three vectorised ones (maximum, total, half of it for the draw); the
//! exponentials are f32, every sum over them f64. Rows run in parallel; a thread reuses one scratch buffer for its rows.
use crate::config::Sampling;
use rayon::prelude::*;

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    pub id: u32,
    /// `log_softmax(logits / T)[id]` over the whole vocabulary; T = 1 where the choice was greedy.
    pub log_prob: f32,
}

/// One row's part of a batched draw.
#[derive(Clone, Copy, Debug)]
pub struct RowSampling {
    pub sampling: Sampling,
    /// Uniform in [0, 1).
    pub uniform: f64,
}

/// Buffers that a thread reuses from row to row.
#[derive(Default)]
pub struct Scratch {
    /// [V] exp((logit - max) / T); 0 for ids that may not be drawn.
    weights: Vec<f32>,
    /// Ids that top-k and top-p let through, with their weights.
    kept: Vec<(usize, f32)>,
}

/// Logits below which handing rows to other threads costs more than it saves (an exponential takes a few nanoseconds, waking a thread some
/// ten microseconds).
const PARALLEL_LOGITS: usize = 1 << 15;

/// Draws one token for each row, in parallel. `None` where a row's logits hold NaN, +infinity, or nothing finite.
/// # Shapes
/// logits [R, V] row-major, rows [R] -> [R]
pub fn sample_rows(logits: &[f32], rows: &[RowSampling]) -> Vec<Option<Draw>> {
    if rows.is_empty() {
        return Vec::new();
    }
    let vocab_size = logits.len() / rows.len();
    let draw = |scratch: &mut Scratch, (logits, row): (&[f32], &RowSampling)| sample(logits, row.sampling, row.uniform, scratch);
    if logits.len() < PARALLEL_LOGITS {
        let mut scratch = Scratch::default();
        return logits.chunks_exact(vocab_size).zip(rows).map(|row| draw(&mut scratch, row)).collect();
    }
    let rows_a_task = PARALLEL_LOGITS.div_ceil(vocab_size);
    logits.par_chunks_exact(vocab_size).zip(rows).with_min_len(rows_a_task).map_init(Scratch::default, draw).collect()
}

/// Draws one token. `None` where the logits hold NaN, +infinity, or nothing finite: there is no distribution to draw from.
/// # Shapes
/// logits [V]
pub fn sample(logits: &[f32], sampling: Sampling, uniform: f64, scratch: &mut Scratch) -> Option<Draw> {
    let max = max(logits);
    let temperature = if sampling.is_greedy() { 1.0 } else { sampling.temperature as f32 };
    scratch.weights.clear();
    scratch.weights.extend(logits.iter().map(|&logit| ((logit - max) / temperature).exp()));
    let total = mass(&scratch.weights);
    // One NaN makes the total NaN, and so does a maximum that is not finite.
    if !total.is_finite() {
        return None;
    }
    let id = if sampling.is_greedy() {
        logits.iter().position(|&logit| logit == max).expect("the maximum is one of the logits")
    } else if sampling.top_k == 0 && sampling.top_p >= 1.0 {
        invert(&scratch.weights, uniform * total)
    } else {
        narrow(logits, sampling, total, scratch);
        invert(&scratch.weights, uniform * mass(&scratch.weights))
    };
    let log_prob = f64::from((logits[id] - max) / temperature) - total.ln();
    Some(Draw { id: id as u32, log_prob: log_prob as f32 })
}

/// Independent partial results of a reduction over the vocabulary: one chain of additions would wait four cycles for each.
const LANES: usize = 16;

/// The largest logit that is a number; -infinity if there is none.
fn max(logits: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// The sum of some weights.
fn mass(weights: &[f32]) -> f64 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = weights.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &weight) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(weight);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&weight| f64::from(weight)).sum::<f64>()
}

/// The first id whose cumulated weight exceeds `target`; the last id with any weight where rounding lets none exceed it.
fn invert(weights: &[f32], target: f64) -> usize {
    /// Ids that are skipped together while the target lies behind them.
    const BLOCK: usize = 128;
    let (mut start, mut cumulated) = (0, 0.0);
    for block in weights.chunks(BLOCK) {
        let behind = cumulated + mass(block);
        if behind > target {
            break;
        }
        (start, cumulated) = (start + block.len(), behind);
    }
    let found = weights[start..].iter().position(|&weight| {
        cumulated += f64::from(weight);
        weight > 0.0 && cumulated > target
    });
    match found {
        Some(idx) => start + idx,
        None => weights.iter().rposition(|&weight| weight > 0.0).unwrap_or(0),
    }
}

/// Sets the weights of all ids to 0 that top-k and then top-p do not let through.
///
/// Top-p keeps the smallest set of most probable tokens whose mass reaches `top_p`; at least one token stays. Equal logits: the lower id first.
fn narrow(logits: &[f32], sampling: Sampling, total: f64, scratch: &mut Scratch) {
    let Scratch { weights, kept } = scratch;
    // Sorting 152k tokens would cost more than everything else. Tokens lighter than (1 - top_p) / V of the mass weigh less than 1 - top_p
    // together, so top-p never reaches them; half of that leaves room for rounding.
    let floor = if sampling.top_k == 0 { 0.5 * (1.0 - sampling.top_p) * total / logits.len() as f64 } else { 0.0 };
    kept.clear();
    let candidates = weights.iter().enumerate().filter(|&(_, &weight)| weight > 0.0 && f64::from(weight) >= floor);
    kept.extend(candidates.map(|(id, &weight)| (id, weight)));
    let heavier_first =
        |&(a, _): &(usize, f32), &(b, _): &(usize, f32)| logits[b].partial_cmp(&logits[a]).expect("NaN was refused").then(a.cmp(&b));
    if sampling.top_k > 0 && sampling.top_k < kept.len() {
        kept.select_nth_unstable_by(sampling.top_k - 1, heavier_first);
        kept.truncate(sampling.top_k);
    }
    if sampling.top_p < 1.0 {
        kept.sort_unstable_by(heavier_first);
        let reach = sampling.top_p * if sampling.top_k == 0 { total } else { kept.iter().map(|&(_, weight)| f64::from(weight)).sum() };
        let mut cumulated = 0.0;
        let is_reached = kept.iter().position(|&(_, weight)| {
            cumulated += f64::from(weight);
            cumulated >= reach
        });
        kept.truncate(is_reached.map_or(kept.len(), |idx| idx + 1));
    }
    weights.fill(0.0);
    for &(id, weight) in kept.iter() {
        weights[id] = weight;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Key, Purpose};

    const PLAIN: Sampling = Sampling { temperature: 1.0, top_p: 1.0, top_k: 0 };

    fn draw(logits: &[f32], sampling: Sampling, uniform: f64) -> Draw {
        sample(logits, sampling, uniform, &mut Scratch::default()).expect("finite logits")
    }

    /// log_softmax(logits / t)[id] as a literal f64 loop.
    fn log_softmax(logits: &[f32], temperature: f64, id: u32) -> f64 {
        let sum: f64 = logits.iter().map(|&l| (f64::from(l) / temperature).exp()).sum();
        f64::from(logits[id as usize]) / temperature - sum.ln()
    }

    fn random_logits(n: usize, scale: f64) -> Vec<f32> {
        let key = Key::new(5, Purpose::World);
        (0..n).map(|i| (scale * key.normal(i as u64)) as f32).collect()
    }

    #[test]
    fn greedy_takes_the_largest_logit_and_the_lowest_id_among_equals() {
        assert_eq!(draw(&[0.5, 2.0, -1.0, 2.0], Sampling::GREEDY, 0.99).id, 1);
    }

    #[test]
    fn the_log_prob_is_that_of_the_full_temperature_scaled_softmax() {
        let logits = random_logits(1000, 3.0);
        let narrow = Sampling { temperature: 0.7, top_p: 0.5, top_k: 20 };
        for (sampling, temperature) in [(PLAIN, 1.0), (narrow, 0.7), (Sampling::GREEDY, 1.0)] {
            for u in [0.0, 0.3, 0.9] {
                let got = draw(&logits, sampling, u);
                let expected = log_softmax(&logits, temperature, got.id);
                // The exponentials are f32 (relative 1e-7 each) and so is the result of about 5 (5e-7).
                assert!((f64::from(got.log_prob) - expected).abs() < 2e-6, "{} {expected}", got.log_prob);
            }
        }
    }

    #[test]
    fn a_draw_inverts_the_cumulative_distribution_in_vocabulary_order() {
        let logits: Vec<f32> = [0.1f64, 0.2, 0.3, 0.4].iter().map(|p| p.ln() as f32).collect();
        for (u, id) in [(0.0, 0), (0.0999, 0), (0.1001, 1), (0.2999, 1), (0.3001, 2), (0.5999, 2), (0.6001, 3), (0.99999, 3)] {
            assert_eq!(draw(&logits, PLAIN, u).id, id, "u = {u}");
        }
    }

    #[test]
    fn frequencies_follow_the_temperature_scaled_softmax() {
        let (logits, temperature, n) = ([1.0f32, 0.0, -1.0, 2.0], 1.5, 20_000u64);
        let sampling = Sampling { temperature, ..PLAIN };
        let key = Key::new(0, Purpose::Rollout);
        let mut counts = [0u32; 4];
        for i in 0..n {
            counts[draw(&logits, sampling, key.uniform(i)).id as usize] += 1;
        }
        for (id, &count) in counts.iter().enumerate() {
            let p = log_softmax(&logits, temperature, id as u32).exp();
            // Five standard errors of a binomial share.
            assert!((f64::from(count) / n as f64 - p).abs() < 5.0 * (p * (1.0 - p) / n as f64).sqrt(), "{id}: {count}");
        }
    }

    #[test]
    fn top_k_one_is_greedy_even_among_equals() {
        let one = Sampling { temperature: 1.0, top_p: 1.0, top_k: 1 };
        assert_eq!(draw(&[0.5, 2.0, -1.0, 2.0], one, 0.999).id, 1);
    }

    /// The kept set by its definition: sort everything, cut at k, renormalise, cut at the mass.
    fn kept_by_definition(logits: &[f32], sampling: Sampling) -> Vec<u32> {
        let weight = |id: &u32| (f64::from(logits[*id as usize]) / sampling.temperature).exp();
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        ids.sort_by(|a, b| weight(b).total_cmp(&weight(a)).then(a.cmp(b)));
        ids.truncate(if sampling.top_k == 0 { ids.len() } else { sampling.top_k });
        let total: f64 = ids.iter().map(weight).sum();
        let mut cumulated = 0.0;
        let n = ids.iter().position(|id| {
            cumulated += weight(id);
            cumulated >= sampling.top_p * total
        });
        ids.truncate(n.map_or(ids.len(), |n| n + 1));
        ids.sort_unstable();
        ids
    }

    #[test]
    fn top_k_and_top_p_let_through_exactly_the_set_of_their_definition() {
        let logits = random_logits(997, 2.5);
        for (top_p, top_k) in [(0.9, 0), (0.1, 0), (1e-9, 0), (0.999, 0), (1.0, 7), (0.5, 50), (0.95, 2000)] {
            let sampling = Sampling { temperature: 0.8, top_p, top_k };
            let expected = kept_by_definition(&logits, sampling);
            let total: f64 = expected.iter().map(|&id| (f64::from(logits[id as usize]) / 0.8).exp()).sum();
            // The midpoint of every interval of the cumulative distribution hits every kept id once, in order.
            let mut cumulated = 0.0;
            for &id in &expected {
                let share = (f64::from(logits[id as usize]) / 0.8).exp() / total;
                assert_eq!(draw(&logits, sampling, cumulated + share / 2.0).id, id, "top_p {top_p} top_k {top_k}");
                cumulated += share;
            }
        }
    }

    #[test]
    fn masked_tokens_are_never_drawn() {
        let logits = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
        assert_eq!(draw(&logits, PLAIN, 0.0).id, 1);
        assert_eq!(draw(&logits, PLAIN, 1.0 - f64::EPSILON / 2.0).id, 3);
    }

    #[test]
    fn logits_that_are_no_distribution_are_refused() {
        for logits in [[0.0, f32::NAN], [f32::INFINITY, 0.0], [f32::NEG_INFINITY; 2]] {
            for sampling in [PLAIN, Sampling::GREEDY] {
                assert_eq!(sample(&logits, sampling, 0.5, &mut Scratch::default()), None);
            }
        }
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        let got = draw(&[3e38, -3e38, 2.9e38], PLAIN, 0.9);
        assert_eq!((got.id, got.log_prob), (0, 0.0));
    }

    #[test]
    fn rows_drawn_together_equal_rows_drawn_alone() {
        // Enough rows for several threads, then few enough for one.
        rows_equal_rows_drawn_alone(500, 123);
        rows_equal_rows_drawn_alone(8, 123);
    }

    fn rows_equal_rows_drawn_alone(n_rows: usize, vocab_size: usize) {
        let logits = random_logits(n_rows * vocab_size, 2.0);
        let key = Key::new(9, Purpose::Rollout);
        let narrow = Sampling { temperature: 1.3, top_p: 0.8, top_k: 30 };
        let rows: Vec<_> = (0..n_rows)
            .map(|r| RowSampling { sampling: [PLAIN, narrow, Sampling::GREEDY][r % 3], uniform: key.uniform(r as u64) })
            .collect();
        let alone: Vec<_> =
            rows.iter().zip(logits.chunks(vocab_size)).map(|(r, l)| sample(l, r.sampling, r.uniform, &mut Scratch::default())).collect();
        assert_eq!(sample_rows(&logits, &rows), alone);
    }
}
