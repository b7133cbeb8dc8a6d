//! The weight of a token as an integer, by operations that give the same bits on every backend.
//! `kernel_numbers.rs` has the same in CubeCL.
//!
//! ```text
//! y = (m - z) scale = 2^25 x, cut to an integer
//! n = whole part of x         f = x - n, 32 bits of it
//! p = 2^32 2^-f - 1 = 2^32 - 1 - f (c1 - f (c2 - f (c3 - f (c4 - f (c5 - f c6)))))
//!     each product: the upper 32 of 64 bits
//! w = p / 2^(n + 1), rounded to nearest: 2^31 for x = 0, 0 from x = 32 on
//! ```
//!
//! The polynomial meets (1 - 2^-f) / f at the six Chebyshev nodes of 0..1; with all cuts, p is
//! within 1.1e-8 relative of 2^32 2^-f and never grows with f, nor from the end of one n to the
//! start of the next, so a larger logit never has a smaller weight.

/// Fractional bits of x.
pub(super) const FRACTION_BITS: u32 = 25;
/// The largest f32 below 2^31: x = 64 less a little, whose weight is 0.
pub(super) const MAX_EXPONENT: f32 = 2_147_483_520.0;
/// 2^32 c1, c2, ... c6.
pub(super) const POLYNOMIAL: [u32; 6] =
    [0xb172_17df, 0x3d7f_7506, 0x0e35_3290, 0x0274_f388, 0x0054_a612, 0x0007_8809];

/// 2^25 log2 e / T, kept where neither it nor a product with a subnormal difference can be rounded
/// differently by a backend that has no subnormal numbers.
pub(super) fn scale(temperature: f64) -> f32 {
    let scale = 2f64.powi(FRACTION_BITS as i32) * std::f64::consts::LOG2_E / temperature;
    (scale as f32).clamp(f32::MIN_POSITIVE, 2f32.powi(125))
}

/// Order of logits as integers: -0 = +0, -infinity below all finite ones, what is no logit (NaN,
/// +infinity) above.
#[inline(always)]
pub(super) fn key(logit: f32) -> u32 {
    const INFINITE: u32 = 0x7f80_0000;
    let bits = logit.to_bits();
    let key = if bits >= 0x8000_0000 { 0u32.wrapping_sub(bits) } else { bits + 0x8000_0000 };
    let is_bad = (bits & 0x7fff_ffff) >= INFINITE && bits != 0x8000_0000 + INFINITE;
    if is_bad { u32::MAX } else { key }
}

/// Keys of finite logits are above this one, -infinity's,
pub(super) const LOWEST_KEY: u32 = 0x0080_0000;
/// and below this one, +infinity's.
pub(super) const HIGHEST_KEY: u32 = 0xff80_0000;

/// The logit of a key.
#[inline(always)]
pub(super) fn logit(key: u32) -> f32 {
    f32::from_bits(if key >= 0x8000_0000 { key - 0x8000_0000 } else { 0u32.wrapping_sub(key) })
}

/// A token's share of the distribution, relative to the most probable one.
#[derive(Clone, Copy)]
pub(super) struct Share {
    /// p and n of the formula.
    p: u64,
    n: u64,
}

impl Share {
    /// `below` = m - z, at least 0.
    #[inline(always)]
    pub(super) fn new(below: f32, scale: f32) -> Self {
        let y = below * scale;
        let x = (if y < MAX_EXPONENT { y } else { MAX_EXPONENT }) as i32 as u32;
        // Products of two numbers below 2^32 in 64 bits. The mask says so: a difference of two such
        // numbers is not known to be one.
        let f = u64::from(x << (32 - FRACTION_BITS));
        let [c1, c2, c3, c4, c5, c6] = POLYNOMIAL.map(u64::from);
        let mut t = c6;
        for c in [c5, c4, c3, c2, c1] {
            t = (c.wrapping_sub((f * t) >> 32)) & 0xffff_ffff;
        }
        Self { p: 0xffff_ffff - ((f * t) >> 32), n: u64::from(x >> FRACTION_BITS) }
    }

    #[inline(always)]
    pub(super) fn weight(self) -> u64 {
        let shifted = self.p >> self.n;
        (shifted >> 1) + (shifted & 1)
    }

    /// 2^-x in f32: for the log-prob, which wants tokens whose weight is 0 too.
    #[inline(always)]
    pub(super) fn value(self) -> f32 {
        (self.p >> 1) as i32 as f32 * f32::from_bits((96 - self.n as u32) << 23)
    }
}
