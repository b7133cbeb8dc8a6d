//! The token at a target of the cumulative weights of a row, found by all units of a cube.
//!
//! The columns are cut into as many sections as there are groups of units, each group adds up its
//! section (neighbouring units read neighbouring columns), all units see in which section the
//! target lies, and the section is cut again.
#![allow(
    clippy::too_many_arguments,
    reason = "inlined into one kernel, whose units share everything"
)]
use super::kernel_numbers::{
    add_wide, exponent, is_less_wide, key, logit, subtract_wide, sum, sum_groups, value, weight,
};
use cubecl::prelude::*;

/// A row of logits: where it starts, how long it is, its maximum, 2^25 log2 e / T.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Row {
    pub base: usize,
    pub vocab_size: usize,
    pub max: f32,
    pub scale: f32,
}

#[cube]
#[allow(clippy::manual_div_ceil, reason = "CubeCL's `div_ceil` takes no compile-time divisor")]
fn section_length(n: usize, #[comptime] sections: usize) -> usize {
    (n + (sections - 1)) / sections
}

/// Cuts `start..end` into a section a group and leaves the sum of each section's weights at its
/// group's first unit.
#[cube]
fn sum_sections<F: Float>(
    logits: &Tensor<F>,
    row: Row,
    start: usize,
    end: usize,
    shared: &mut SharedMemory<u32>,
    #[comptime] units: usize,
    #[comptime] group: usize,
) {
    let unit = UNIT_POS_X as usize;
    let length = section_length(end - start, units / group);
    let from = start + unit / group * length;
    let to = min(from + length, end);
    let mut low = 0u32;
    let mut high = 0u32;
    let mut i = from + unit % group;
    while i < to {
        let x = exponent(row.max - logit(key::<F>(logits[row.base + i])), row.scale);
        let (l, h) = add_wide(low, high, weight(x), 0u32);
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
pub(super) fn sum_row<F: Float>(
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
pub(super) fn sum_of_sections(
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

/// The first id up to which the sum of weights exceeds the target. The sections of the whole row
/// lie in shared memory, and the target is below their sum.
#[cube]
pub(super) fn locate<F: Float>(
    logits: &Tensor<F>,
    row: Row,
    target_low: u32,
    target_high: u32,
    shared: &mut SharedMemory<u32>,
    #[comptime] units: usize,
    #[comptime] group: usize,
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
            sum_sections::<F>(logits, row, start, end, shared, units, group);
        }
    }
    sync_cube();
    start
}
