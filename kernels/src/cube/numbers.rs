//! NaN and infinities in kernels. The shading languages below may assume that no NaN occurs, so NaN
//! is looked for in the bits and carried to the results as bits.
use crate::nan::LOG_ZERO;
use cubecl::prelude::*;

/// 1 for NaN and +inf.
#[cube]
pub(crate) fn is_bad(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    let is_not_finite = (bits & 0x7fff_ffffu32) >= 0x7f80_0000u32;
    select(is_not_finite && bits != 0xff80_0000u32, 1u32, 0u32)
}

/// NaN if `bad` is 1, 0 if it is 0.
#[cube]
pub(crate) fn poison(bad: u32) -> f32 {
    f32::reinterpret(bad * 0x7fc0_0000u32)
}

/// A logit in f32, -inf as -1e30.
#[cube]
pub(crate) fn finite(x: f32) -> f32 {
    select(x > LOG_ZERO, x, f32::new(LOG_ZERO))
}
