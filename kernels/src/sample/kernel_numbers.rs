//! Pieces of the sampling kernel: keys and weights of `weight.rs`, numbers of two u32 limbs, and
//! sums over a cube.
//!
//! A wide number is (low, high): not every runtime has u64. Wide numbers of all units lie in shared
//! memory as [low of each unit, high of each unit].
use super::weight::{FRACTION_BITS, MAX_EXPONENT, POLYNOMIAL};
use cubecl::prelude::*;

const C1: u32 = POLYNOMIAL[0];
const C2: u32 = POLYNOMIAL[1];
const C3: u32 = POLYNOMIAL[2];
const C4: u32 = POLYNOMIAL[3];
const C5: u32 = POLYNOMIAL[4];
const C6: u32 = POLYNOMIAL[5];
const WHOLE_BITS: u32 = 32 - FRACTION_BITS;

#[cube]
pub(super) fn key<F: Float>(logit: F) -> u32 {
    let bits = u32::reinterpret(f32::cast_from(logit));
    let key = select(bits >= 0x8000_0000u32, 0u32 - bits, bits + 0x8000_0000u32);
    let is_infinite_or_nan = (bits & 0x7fff_ffffu32) >= 0x7f80_0000u32;
    select(is_infinite_or_nan && bits != 0xff80_0000u32, 0xffff_ffffu32, key)
}

#[cube]
pub(super) fn logit(key: u32) -> f32 {
    f32::reinterpret(select(key >= 0x8000_0000u32, key - 0x8000_0000u32, 0u32 - key))
}

/// x in units of 2^-25.
#[cube]
pub(super) fn exponent(below: f32, scale: f32) -> u32 {
    u32::cast_from(min(below * scale, f32::new(MAX_EXPONENT)))
}

/// p
#[cube]
pub(super) fn power(exponent: u32) -> u32 {
    let f = exponent << WHOLE_BITS;
    let t = C5 - f.mul_hi(u32::new(C6 as i64));
    let t = C4 - f.mul_hi(t);
    let t = C3 - f.mul_hi(t);
    let t = C2 - f.mul_hi(t);
    let t = C1 - f.mul_hi(t);
    0xffff_ffffu32 - f.mul_hi(t)
}

/// w
#[cube]
pub(super) fn weight(exponent: u32) -> u32 {
    let n = exponent >> FRACTION_BITS;
    let shifted = select(n < 32u32, power(exponent) >> (n & 31u32), 0u32);
    (shifted >> 1u32) + (shifted & 1u32)
}

/// 2^-x
#[cube]
pub(super) fn value(exponent: u32) -> f32 {
    let n = exponent >> FRACTION_BITS;
    f32::cast_from(power(exponent) >> 1u32) * f32::reinterpret((96u32 - n) << 23u32)
}

#[cube]
pub(super) fn add_wide(low: u32, high: u32, other_low: u32, other_high: u32) -> (u32, u32) {
    let sum = low + other_low;
    let carry = select(sum < low, 1u32, 0u32);
    (sum, high + other_high + carry)
}

#[cube]
pub(super) fn subtract_wide(low: u32, high: u32, other_low: u32, other_high: u32) -> (u32, u32) {
    let borrow = select(low < other_low, 1u32, 0u32);
    (low - other_low, high - other_high - borrow)
}

#[cube]
pub(super) fn is_less_wide(low: u32, high: u32, other_low: u32, other_high: u32) -> bool {
    high < other_high || (high == other_high && low < other_low)
}

/// floor(total * bits / 2^64)
#[cube]
pub(super) fn fraction(bits_low: u32, bits_high: u32, low: u32, high: u32) -> (u32, u32) {
    // The middle limb's carry is what the two cross products and the low product send up.
    let (middle, carry) = add_wide(bits_low.mul_hi(low), 0u32, bits_low * high, 0u32);
    let (_middle, carry) = add_wide(middle, carry, bits_high * low, 0u32);
    let (low_sum, high_sum) = add_wide(bits_high * high, bits_high.mul_hi(high), carry, 0u32);
    let (low_sum, high_sum) = add_wide(low_sum, high_sum, bits_low.mul_hi(high), 0u32);
    add_wide(low_sum, high_sum, bits_high.mul_hi(low), 0u32)
}

/// Adds up the wide numbers of each group of `group` units, left at the group's first unit.
#[cube]
pub(super) fn sum_groups(
    shared: &mut SharedMemory<u32>,
    #[comptime] units: usize,
    #[comptime] group: usize,
) {
    let unit = UNIT_POS_X as usize;
    sync_cube();
    let half = RuntimeCell::<usize>::new(group / 2);
    while half.read() > 0 {
        let h = half.read();
        if unit % group < h {
            let (low, high) = add_wide(
                shared[unit],
                shared[units + unit],
                shared[unit + h],
                shared[units + unit + h],
            );
            shared[unit] = low;
            shared[units + unit] = high;
        }
        sync_cube();
        half.store(h / 2);
    }
}

/// The sum of all units' numbers, known to all of them.
#[cube]
pub(super) fn sum(shared: &mut SharedMemory<f32>, #[comptime] units: usize) -> f32 {
    let unit = UNIT_POS_X as usize;
    sync_cube();
    let half = RuntimeCell::<usize>::new(units / 2);
    while half.read() > 0 {
        let h = half.read();
        if unit < h {
            shared[unit] = shared[unit] + shared[unit + h];
        }
        sync_cube();
        half.store(h / 2);
    }
    shared[0]
}

/// The largest key of a row and the lowest id that has it, known to all units.
#[cube]
pub(super) fn largest<F: Float>(
    logits: &Tensor<F>,
    base: usize,
    vocab_size: usize,
    shared: &mut SharedMemory<u32>,
    #[comptime] units: usize,
) -> (u32, u32) {
    let unit = UNIT_POS_X as usize;
    let mut best = 0u32;
    let mut best_id = 0u32;
    let mut i = unit;
    while i < vocab_size {
        let key = key::<F>(logits[base + i]);
        if key > best {
            best = key;
            best_id = i as u32;
        }
        i += units;
    }
    shared[unit] = best;
    shared[units + unit] = best_id;
    sync_cube();
    let half = RuntimeCell::<usize>::new(units / 2);
    while half.read() > 0 {
        let h = half.read();
        if unit < h {
            let (key_a, key_b) = (shared[unit], shared[unit + h]);
            let (id_a, id_b) = (shared[units + unit], shared[units + unit + h]);
            if key_b > key_a || (key_b == key_a && id_b < id_a) {
                shared[unit] = key_b;
                shared[units + unit] = id_b;
            }
        }
        sync_cube();
        half.store(h / 2);
    }
    let (key, id) = (shared[0], shared[units]);
    sync_cube();
    (key, id)
}
