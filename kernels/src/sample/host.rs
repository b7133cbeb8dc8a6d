//! Sampling on the host: rows over threads, columns in vector registers.
//!
//! A row is read twice: its largest key, then weights and probabilities in blocks, of which the
//! weights' sums are kept. The draw skips blocks by their sums and computes the weights of one
//! block again. With top-k or top-p, what may lie above the threshold is gathered and sorted.
use super::{plan::SamplePlan, weight};
use crate::{
    cpu::{LANES, simd},
    types::{Draw, RowSampling},
};
use rayon::prelude::*;
use std::cmp::Reverse;
use weight::{HIGHEST_KEY, LOWEST_KEY, Share, key, logit};

/// Columns whose probabilities are added up in f32, lane by lane, before they go into an f64, and
/// whose weights have one sum.
const BLOCK: usize = 64 * LANES;
/// Columns of a block that the draw skips together.
const PART: usize = 4 * LANES;
/// Logits below which handing rows to other threads costs more than it saves (a logit takes about a
/// nanosecond, waking a thread some ten microseconds).
const PARALLEL_LOGITS: usize = 1 << 15;

/// Buffers that a thread reuses from row to row.
#[derive(Default)]
struct Scratch {
    /// Weights of each block of columns.
    blocks: Vec<u64>,
    /// Tokens that may lie above the threshold, by id.
    candidates: Vec<Candidate>,
    /// The same in the order of top-k and top-p.
    ordered: Vec<Candidate>,
}

/// `[R]` -> `[R, 2]` row-major
pub(super) fn pack(draws: &[Option<Draw>]) -> Vec<f32> {
    draws
        .iter()
        .flat_map(|draw| draw.map_or([-1.0, f32::NAN], |draw| [draw.id as f32, draw.log_prob]))
        .collect()
}

/// One draw a row; row r starts at `r * stride`.
pub(super) fn sample_rows(
    logits: &[f32],
    vocab_size: usize,
    stride: usize,
    rows: &[RowSampling],
) -> Vec<Option<Draw>> {
    let draw = |scratch: &mut Scratch, (r, row): (usize, &RowSampling)| {
        simd!(sample_row(
            &logits[r * stride..r * stride + vocab_size],
            &SamplePlan::new(row),
            scratch
        ))
    };
    if rows.len() * vocab_size < PARALLEL_LOGITS {
        let mut scratch = Scratch::default();
        return rows.iter().enumerate().map(|row| draw(&mut scratch, row)).collect();
    }
    let rows_a_task = PARALLEL_LOGITS.div_ceil(vocab_size);
    rows.par_iter().enumerate().with_min_len(rows_a_task).map_init(Scratch::default, draw).collect()
}

#[inline(always)]
fn sample_row(logits: &[f32], plan: &SamplePlan, scratch: &mut Scratch) -> Option<Draw> {
    let top = max_key(logits);
    if top <= LOWEST_KEY || top >= HIGHEST_KEY {
        return None;
    }
    let row = Row { logits, max: logit(top), scale: plan.scale };
    let (mut total, mut sum) = (0, 0.0);
    scratch.blocks.clear();
    for block in logits.chunks(BLOCK) {
        let (weight, value) = row.sums(block);
        scratch.blocks.push(weight);
        total += weight;
        sum += f64::from(value);
    }
    let id = if plan.is_greedy {
        logits.iter().position(|&logit| logit == row.max).expect("the maximum is one of the logits")
    } else if !plan.is_cut(logits.len()) {
        row.locate(&scratch.blocks, fraction(plan.bits, total))
    } else {
        row.narrow(plan, total, scratch);
        let total = scratch.candidates.iter().map(|token| row.weight(token.logit())).sum();
        let mut rest = fraction(plan.bits, total);
        let drawn =
            scratch.candidates.iter().find(|token| is_behind(&mut rest, row.weight(token.logit())));
        drawn.expect("the target is below the total").id()
    };
    let log_prob = -f64::from(row.max - logits[id]) / plan.temperature - sum.ln();
    Some(Draw { id: id as u32, log_prob: log_prob.min(0.0) as f32 })
}

/// floor(total * bits / 2^64)
fn fraction(bits: u64, total: u64) -> u64 {
    ((u128::from(bits) * u128::from(total)) >> 64) as u64
}

/// True if the target lies within the next `weight`; if not, `rest` of it is left behind it.
#[inline(always)]
fn is_behind(rest: &mut u64, weight: u64) -> bool {
    let is_found = *rest < weight;
    if !is_found {
        *rest -= weight;
    }
    is_found
}

#[inline(always)]
fn max_key(logits: &[f32]) -> u32 {
    let (parts, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [0u32; LANES];
    for part in parts {
        for i in 0..LANES {
            let key = key(part[i]);
            lanes[i] = if key > lanes[i] { key } else { lanes[i] };
        }
    }
    rest.iter().map(|&logit| key(logit)).chain(lanes).fold(0, u32::max)
}

/// A token with its logit, ordered as top-k and top-p take them from the end: by key, the lower id
/// later.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate(u64);

impl Candidate {
    fn new(key: u32, id: usize) -> Self {
        Self(u64::from(key) << 32 | u64::from(!(id as u32)))
    }

    fn id(self) -> usize {
        !(self.0 as u32) as usize
    }

    fn logit(self) -> f32 {
        logit((self.0 >> 32) as u32)
    }
}

struct Row<'a> {
    logits: &'a [f32],
    max: f32,
    scale: f32,
}

impl Row<'_> {
    #[inline(always)]
    fn share(&self, logit: f32) -> Share {
        Share::new(self.max - logit, self.scale)
    }

    #[inline(always)]
    fn weight(&self, logit: f32) -> u64 {
        self.share(logit).weight()
    }

    /// The sums of some columns' weights and probabilities relative to the largest.
    #[inline(always)]
    fn sums(&self, logits: &[f32]) -> (u64, f32) {
        let (mut weights, mut values) = ([0u64; LANES], [0.0f32; LANES]);
        let (parts, rest) = logits.as_chunks::<LANES>();
        for part in parts {
            for i in 0..LANES {
                let share = self.share(part[i]);
                weights[i] += share.weight();
                values[i] += share.value();
            }
        }
        for (i, &logit) in rest.iter().enumerate() {
            let share = self.share(logit);
            weights[i] += share.weight();
            values[i] += share.value();
        }
        (weights.iter().sum(), values.iter().sum())
    }

    /// The first id with more than `target` of weight up to it.
    #[inline(always)]
    fn locate(&self, blocks: &[u64], target: u64) -> usize {
        let mut rest = target;
        let block = blocks
            .iter()
            .position(|&weight| is_behind(&mut rest, weight))
            .expect("the target is below the total");
        let mut start = block * BLOCK;
        for part in self.logits[start..].chunks(PART) {
            let mut weights = [0u64; PART];
            for (weight, &logit) in weights.iter_mut().zip(part) {
                *weight = self.weight(logit);
            }
            if is_behind(&mut rest, weights.iter().sum()) {
                let at = weights.iter().position(|&weight| is_behind(&mut rest, weight));
                return start + at.expect("the target is below the part's sum");
            }
            start += PART;
        }
        unreachable!("the target is below the block's sum")
    }

    /// Leaves those candidates that top-k and then top-p let through, by id.
    #[inline(always)]
    fn narrow(&self, plan: &SamplePlan, total: u64, scratch: &mut Scratch) {
        let Scratch { blocks, candidates, ordered } = scratch;
        candidates.clear();
        let mut total = total;
        let k = plan.top_k as usize;
        if k > 0 && k < self.logits.len() {
            self.gather_above_key(self.least_of_the_largest(k, ordered), candidates);
            ordered.clone_from(candidates);
            ordered.select_nth_unstable_by_key(k - 1, |&token| Reverse(token));
            ordered.truncate(k);
            total = ordered.iter().map(|token| self.weight(token.logit())).sum();
        } else {
            // Tokens lighter than (1 - top_p) / V of the total weigh less than 1 - top_p of it
            // together: top-p never reaches them.
            let floor = ((u128::from(total) * ((1 << 32) - u128::from(plan.top_p))) >> 32) as u64
                / self.logits.len() as u64;
            self.gather_above_weight(floor.max(1), blocks, candidates);
            ordered.clone_from(candidates);
        }
        if plan.top_p > 0 {
            ordered.sort_unstable_by_key(|&token| Reverse(token));
            let reach = (u128::from(total) * u128::from(plan.top_p)).div_ceil(1 << 32) as u64;
            let mut cumulated = 0;
            let is_reached = ordered.iter().position(|token| {
                cumulated += self.weight(token.logit());
                cumulated >= reach
            });
            ordered.truncate(is_reached.map_or(ordered.len(), |idx| idx + 1));
        }
        let last = *ordered.iter().min().expect("at least one token stays");
        candidates.retain(|&token| token >= last);
    }

    /// A key that at least `k` tokens reach: the k-th largest of the parts' largest, 0 where there
    /// are not that many parts.
    #[inline(always)]
    fn least_of_the_largest(&self, k: usize, scratch: &mut Vec<Candidate>) -> u32 {
        if k > self.logits.len().div_ceil(PART) {
            return 0;
        }
        scratch.clear();
        for part in self.logits.chunks(PART) {
            scratch.push(Candidate::new(max_key(part), 0));
        }
        let (_, &mut least, _) = scratch.select_nth_unstable_by_key(k - 1, |&token| Reverse(token));
        key(least.logit())
    }

    #[inline(always)]
    fn gather_above_key(&self, lowest: u32, candidates: &mut Vec<Candidate>) {
        for (p, part) in self.logits.chunks(PART).enumerate() {
            if max_key(part) >= lowest {
                let tokens = part
                    .iter()
                    .enumerate()
                    .map(|(i, &logit)| Candidate::new(key(logit), p * PART + i));
                candidates.extend(tokens.filter(|token| key(token.logit()) >= lowest));
            }
        }
    }

    #[inline(always)]
    fn gather_above_weight(&self, floor: u64, blocks: &[u64], candidates: &mut Vec<Candidate>) {
        for (b, block) in self.logits.chunks(BLOCK).enumerate() {
            if blocks[b] < floor {
                continue;
            }
            let mut weights = [0u64; BLOCK];
            for (weight, &logit) in weights.iter_mut().zip(block) {
                *weight = self.weight(logit);
            }
            let tokens =
                block.iter().zip(&weights).enumerate().filter(|(_, (_, weight))| **weight >= floor);
            candidates
                .extend(tokens.map(|(i, (&logit, _))| Candidate::new(key(logit), b * BLOCK + i)));
        }
    }
}
