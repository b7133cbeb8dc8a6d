//! Searches within a row, by all units of a cube: sums over sections of the columns, the token at a
//! target, the threshold of top-k and top-p.
//!
//! Whatever depends on order is found by cutting: the columns are cut into as many sections as
//! there are groups of units, each group adds up its section (neighbouring units read neighbouring
//! columns), all units see in which section the target lies, and the section is cut again. The
//! threshold of top-k and top-p is searched for the same way among keys, eight parts at a time.
#![allow(
    clippy::too_many_arguments,
    reason = "inlined into one kernel, whose units share everything"
)]
use super::kernel_numbers::{
    add_wide, exponent, is_less_wide, key, least_multiple, logit, subtract_wide, sum, sum_groups,
    value, weight,
};
use cubecl::prelude::*;

/// What a token counts for in a sum: its weight, 1, or 1 if its key is the threshold's; the first
/// two only where it may be drawn.
pub const WEIGHT: u32 = 0;
pub const ONE: u32 = 1;
pub const TIE: u32 = 2;

/// Thresholds tried in one pass; they cut what is left of the range into one part more.
const THRESHOLDS: usize = 7;
const PARTS: u32 = 8;
pub const NO_BOUND: u32 = u32::MAX;

/// A row of logits: where it starts, how long it is, its maximum, 2^25 log2 e / T.
#[derive(CubeType, Clone, Copy)]
pub struct Row {
    pub base: usize,
    pub vocab_size: usize,
    pub max: f32,
    pub scale: f32,
}

/// What may be drawn: keys above the threshold, and at the threshold ids up to the bound.
#[derive(CubeType, Clone, Copy)]
pub struct Kept {
    pub threshold: u32,
    pub bound: u32,
}

#[cube]
fn is_kept(kept: Kept, key: u32, id: usize) -> bool {
    key > kept.threshold || (key == kept.threshold && id as u32 <= kept.bound)
}

#[cube]
fn measure(row: Row, kept: Kept, key: u32, id: usize, #[comptime] what: u32) -> u32 {
    if comptime![what == TIE] {
        select(key == kept.threshold, 1u32, 0u32)
    } else if comptime![what == ONE] {
        select(is_kept(kept, key, id), 1u32, 0u32)
    } else {
        select(is_kept(kept, key, id), weight(exponent(row.max - logit(key), row.scale)), 0u32)
    }
}

#[cube]
#[allow(clippy::manual_div_ceil, reason = "CubeCL's `div_ceil` takes no compile-time divisor")]
fn section_length(n: usize, #[comptime] sections: usize) -> usize {
    (n + (sections - 1)) / sections
}

/// Cuts `start..end` into a section a group and leaves each section's sum at its group's first
/// unit.
#[cube]
pub fn sum_sections<F: Float>(
    logits: &Tensor<F>,
    row: Row,
    kept: Kept,
    start: usize,
    end: usize,
    shared: &mut SharedMemory<u32>,
    #[comptime] units: usize,
    #[comptime] group: usize,
    #[comptime] what: u32,
) {
    let unit = UNIT_POS_X as usize;
    let length = section_length(end - start, units / group);
    let from = start + unit / group * length;
    let to = min(from + length, end);
    let mut low = 0u32;
    let mut high = 0u32;
    let mut i = from + unit % group;
    while i < to {
        let (l, h) =
            add_wide(low, high, measure(row, kept, key::<F>(logits[row.base + i]), i, what), 0u32);
        low = l;
        high = h;
        i += group;
    }
    sync_cube();
    shared[unit] = low;
    shared[units + unit] = high;
    sum_groups(shared, units, group);
}

/// `sum_sections` of all weights of a row, and the sum of all probabilities relative to the
/// largest, known to all units.
#[cube]
pub fn sum_row<F: Float>(
    logits: &Tensor<F>,
    row: Row,
    shared: &mut SharedMemory<u32>,
    values: &mut SharedMemory<f32>,
    #[comptime] units: usize,
    #[comptime] group: usize,
) -> f32 {
    let unit = UNIT_POS_X as usize;
    let length = section_length(row.vocab_size, units / group);
    let from = unit / group * length;
    let to = min(from + length, row.vocab_size);
    let mut low = 0u32;
    let mut high = 0u32;
    // Compensated: `lost` is what the last addition rounded away.
    let mut total = f32::new(0.0);
    let mut lost = f32::new(0.0);
    let mut i = from + unit % group;
    while i < to {
        let x = exponent(row.max - logit(key::<F>(logits[row.base + i])), row.scale);
        let (l, h) = add_wide(low, high, weight(x), 0u32);
        low = l;
        high = h;
        let term = value(x) - lost;
        let more = total + term;
        lost = (more - total) - term;
        total = more;
        i += group;
    }
    shared[unit] = low;
    shared[units + unit] = high;
    values[unit] = total;
    sum_groups(shared, units, group);
    sum(values, units)
}

/// The sum of the sections that lie in shared memory.
#[cube]
pub fn sum_of_sections(
    shared: &SharedMemory<u32>,
    #[comptime] units: usize,
    #[comptime] group: usize,
) -> (u32, u32) {
    let mut low = 0u32;
    let mut high = 0u32;
    let mut first = 0usize;
    while first < units {
        let (l, h) = add_wide(low, high, shared[first], shared[units + first]);
        low = l;
        high = h;
        first += group;
    }
    (low, high)
}

/// The first id up to which the sum exceeds the target. The sections of the whole row lie in shared
/// memory, and the target is below their sum.
#[cube]
pub fn locate<F: Float>(
    logits: &Tensor<F>,
    row: Row,
    kept: Kept,
    target_low: u32,
    target_high: u32,
    shared: &mut SharedMemory<u32>,
    #[comptime] units: usize,
    #[comptime] group: usize,
    #[comptime] what: u32,
) -> usize {
    let mut start = 0usize;
    let mut end = row.vocab_size;
    let mut low = target_low;
    let mut high = target_high;
    let mut is_found = false;
    while !is_found {
        let length = section_length(end - start, units / group);
        let mut first = 0usize;
        while first + group < units
            && !is_less_wide(low, high, shared[first], shared[units + first])
        {
            let (l, h) = subtract_wide(low, high, shared[first], shared[units + first]);
            low = l;
            high = h;
            first += group;
        }
        start += first / group * length;
        end = min(start + length, end);
        is_found = length == 1;
        if !is_found {
            sum_sections::<F>(logits, row, kept, start, end, shared, units, group, what);
        }
    }
    sync_cube();
    start
}

/// Narrows what may be drawn to the fewest tokens of largest logits that together count for
/// `target` (at least 1); now they count for `total`.
#[cube]
pub fn narrow<F: Float>(
    logits: &Tensor<F>,
    row: Row,
    kept: Kept,
    top: u32,
    target_low: u32,
    target_high: u32,
    total_low: u32,
    total_high: u32,
    shared: &mut SharedMemory<u32>,
    #[comptime] units: usize,
    #[comptime] group: usize,
    #[comptime] what: u32,
) -> Kept {
    let unit = UNIT_POS_X as usize;
    // The keys from `reaching` on count for `at` >= target, those from `failing` on for `above` <
    // target.
    let mut at_low = total_low;
    let mut at_high = total_high;
    let mut above_low = 0u32;
    let mut above_high = 0u32;
    let reaching = RuntimeCell::<u32>::new(kept.threshold);
    let mut failing = top + 1u32;
    let mut lows = Array::<u32>::new(THRESHOLDS);
    let mut highs = Array::<u32>::new(THRESHOLDS);
    while failing - reaching.read() > 1u32 {
        let from = reaching.read();
        let step = max((failing - from) / PARTS, 1u32);
        #[unroll]
        for t in 0..THRESHOLDS {
            lows[t] = 0u32;
            highs[t] = 0u32;
        }
        let mut i = unit;
        while i < row.vocab_size {
            let key = key::<F>(logits[row.base + i]);
            if key > from {
                let one = measure(row, kept, key, i, what);
                #[unroll]
                for t in 0..THRESHOLDS {
                    let counts = select(key >= from + step * (t as u32 + 1u32), one, 0u32);
                    let (l, h) = add_wide(lows[t], highs[t], counts, 0u32);
                    lows[t] = l;
                    highs[t] = h;
                }
            }
            i += units;
        }
        #[unroll]
        for t in 0..THRESHOLDS {
            let threshold = from + step * (t as u32 + 1u32);
            sync_cube();
            shared[unit] = lows[t];
            shared[units + unit] = highs[t];
            sum_groups(shared, units, units);
            let (low, high) = (shared[0], shared[units]);
            if is_less_wide(low, high, target_low, target_high) {
                if threshold < failing {
                    failing = threshold;
                    above_low = low;
                    above_high = high;
                }
            } else {
                reaching.store(threshold);
                at_low = low;
                at_high = high;
            }
        }
    }
    // Of the tokens at the threshold, the first few by id.
    let threshold = reaching.read();
    let each = if comptime![what == ONE] {
        1u32.runtime()
    } else {
        weight(exponent(row.max - logit(threshold), row.scale))
    };
    let (need_low, need_high) = subtract_wide(target_low, target_high, above_low, above_high);
    let n_ties = least_multiple(need_low, need_high, each);
    let (with_low, with_high) = add_wide(above_low, above_high, n_ties * each, n_ties.mul_hi(each));
    let mut bound = select(threshold == kept.threshold, kept.bound, NO_BOUND.runtime());
    let ties = Kept { threshold, bound };
    if is_less_wide(with_low, with_high, at_low, at_high) {
        sum_sections::<F>(logits, row, ties, 0usize, row.vocab_size, shared, units, group, TIE);
        bound =
            locate::<F>(logits, row, ties, n_ties - 1u32, 0u32, shared, units, group, TIE) as u32;
    }
    Kept { threshold, bound }
}
