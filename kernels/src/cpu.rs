//! Tools that the loops of the CPU backend share: strided views of its tensors, f32 out of 16 bits,
//! vector instructions, and work split over threads.
//!
//! Loops are plain Rust over fixed-size arrays, compiled once for each instruction set the machine
//! may have ([`simd`]) and left to the compiler to vectorise. Every output element is computed by
//! one thread in a fixed order, so results do not depend on the number of threads.
use burn::{
    backend::Flex,
    tensor::{DType, Shape, TensorData, ops::FloatTensor, ops::FloatTensorOps},
};
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;

/// Lanes of the inner loops: one AVX-512 or two AVX2 registers.
pub(crate) const LANES: usize = 16;
/// Multiply-adds below which waking other threads costs more than it saves (some ten microseconds
/// of one core).
const PARALLEL_WORK: usize = 200_000;

/// A tensor of the CPU backend.
pub(crate) type CpuTensor = FloatTensor<Flex>;

/// The f32 elements of a tensor with its strides, in elements. No stride is negative.
pub(crate) struct View<'a, const D: usize> {
    pub data: &'a [f32],
    pub shape: [usize; D],
    pub strides: [usize; D],
}

impl<'a, const D: usize> View<'a, D> {
    /// # Panics
    /// On a tensor that did not go through [`readable`], or of another rank.
    pub(crate) fn new(tensor: &'a CpuTensor) -> Self {
        let layout = tensor.layout();
        Self {
            data: &tensor.storage::<f32>()[layout.start_offset()..],
            shape: layout.shape().dims(),
            strides: strides(tensor),
        }
    }
}

/// The elements of a tensor in the type they are stored in, from its first one on.
#[derive(Clone, Copy)]
pub(crate) enum Elements<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl<'a> Elements<'a> {
    /// # Panics
    /// On a tensor that did not go through [`stored`].
    pub(crate) fn new(tensor: &'a CpuTensor) -> Self {
        let start = tensor.layout().start_offset();
        match tensor.dtype() {
            DType::F32 => Self::F32(&tensor.storage::<f32>()[start..]),
            DType::F16 => Self::F16(&tensor.storage::<f16>()[start..]),
            _ => Self::Bf16(&tensor.storage::<bf16>()[start..]),
        }
    }

    /// A range in f32, by way of `scratch` where it is not.
    #[inline(always)]
    pub(crate) fn widened<'b>(self, range: Range<usize>, scratch: &'b mut Vec<f32>) -> &'b [f32]
    where
        'a: 'b,
    {
        scratch.clear();
        match self {
            Self::F32(data) => return &data[range],
            Self::F16(data) => scratch.extend(data[range].iter().map(|x| x.widen())),
            Self::Bf16(data) => scratch.extend(data[range].iter().map(|x| x.widen())),
        }
        scratch
    }
}

/// A number that a tensor may hold, as f32: exact, and without branches, so that loops over it
/// vectorise. (The conversion of `half` asks for each f16 what the processor can do.)
pub(crate) trait Widen: Copy {
    fn widen(self) -> f32;
}

impl Widen for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Widen for bf16 {
    /// bf16 is the upper half of an f32.
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Widen for f16 {
    /// Exponent and mantissa in their places in an f32 are 2^112 too small, since f16 counts
    /// exponents from 15 and f32 from 127; a product puts that right and holds for numbers below
    /// the smallest normal one too. The largest exponent means infinity and NaN in both.
    #[inline(always)]
    fn widen(self) -> f32 {
        const TWO_TO_112: f32 = f32::from_bits((127 + 112) << 23);
        const INFINITY: u32 = 0x7c00 << 13;
        let bits = u32::from(self.to_bits());
        let (sign, magnitude) = ((bits & 0x8000) << 16, (bits & 0x7fff) << 13);
        let number = (f32::from_bits(magnitude) * TWO_TO_112).to_bits();
        let number =
            if magnitude >= INFINITY { magnitude | f32::INFINITY.to_bits() } else { number };
        f32::from_bits(number | sign)
    }
}

/// Strides in elements.
/// # Panics
/// On a tensor that did not go through [`stored`], or of another rank.
pub(crate) fn strides<const D: usize>(tensor: &CpuTensor) -> [usize; D] {
    std::array::from_fn(|dim| {
        usize::try_from(tensor.layout().strides()[dim]).expect("stored() leaves no negative stride")
    })
}

/// The tensor in f32, f16 or bf16 with strides >= 0 (a copy only where it is not so already).
pub(crate) fn stored(tensor: CpuTensor) -> CpuTensor {
    let tensor = match tensor.dtype() {
        DType::F32 | DType::F16 | DType::BF16 => tensor,
        _ => Flex::float_cast(tensor, DType::F32.into()),
    };
    match tensor.layout().strides().iter().any(|&stride| stride < 0) {
        true => tensor.to_contiguous(),
        false => tensor,
    }
}

/// The tensor in f32 with strides >= 0 (a copy only where it is not so already).
pub(crate) fn readable(tensor: CpuTensor) -> CpuTensor {
    match tensor.dtype() {
        DType::F32 => stored(tensor),
        _ => stored(Flex::float_cast(tensor, DType::F32.into())),
    }
}

/// `readable` with the elements of the last dimension side by side.
pub(crate) fn with_rows(tensor: CpuTensor) -> CpuTensor {
    let tensor = readable(tensor);
    match tensor.layout().strides().last() {
        Some(&1) | None => tensor,
        Some(_) => tensor.to_contiguous(),
    }
}

/// The tensor in f32, row-major from the first element of its storage and nothing behind it (a copy
/// only where it is not so already).
pub(crate) fn row_major(tensor: CpuTensor) -> CpuTensor {
    let tensor = readable(tensor);
    tensor.to_contiguous()
}

/// A tensor of `dtype` from f32 elements in row-major order.
pub(crate) fn from_vec<const D: usize>(
    data: Vec<f32>,
    shape: [usize; D],
    dtype: DType,
) -> CpuTensor {
    let tensor = Flex::float_from_data(
        TensorData::new(data, Shape::new(shape)),
        &<Flex as burn::tensor::backend::BackendTypes>::Device::default(),
    );
    match dtype {
        DType::F32 => tensor,
        _ => Flex::float_cast(tensor, dtype.into()),
    }
}

/// Evaluates an expression compiled for the widest vector instructions of this machine.
///
/// Whatever it calls must be `#[inline(always)]`: only code inlined here is compiled for those
/// instructions, and elsewhere `mul_add` is a library call (30 times slower). A macro, since the
/// same holds for the closure around the expression.
macro_rules! simd {
    ($body:expr) => {
        crate::cpu::dispatch(
            #[inline(always)]
            || $body,
        )
    };
}
pub(crate) use simd;

/// Only for [`simd!`]. The bound makes the closure one that can be called once, whose body then
/// carries the attribute; of other closures it is a shim without it that is called.
#[inline(always)]
pub(crate) fn dispatch<R>(body: impl FnOnce() -> R) -> R {
    macerator::Arch::new().dispatch(body)
}

/// Runs `task` for every piece, on all threads when `work` (multiply-adds in all) is worth it.
pub(crate) fn for_each_piece<T: Send>(pieces: Vec<T>, work: usize, task: impl Fn(T) + Sync + Send) {
    if work < PARALLEL_WORK || pieces.len() < 2 {
        pieces.into_iter().for_each(task);
    } else {
        pieces.into_par_iter().for_each(task);
    }
}

/// exp(x) within 2 units in the last place for -87 <= x <= 88; 0 below, exp(88) = 1.7e38 above; NaN
/// stays NaN. Branch-free, so that loops over it vectorise.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, exp(x) = 2^n exp(r), exp(r) by the degree-6 polynomial of
/// Cephes.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.0;
    const HIGHEST: f32 = 88.0;
    /// Adding 1.5 2^23 leaves the nearest integer in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // `if` rather than `max` and `min`, which would turn NaN into a number.
    let clamped = if x < LOWEST { LOWEST } else { x };
    let clamped = if clamped > HIGHEST { HIGHEST } else { clamped };
    let rounded = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, clamped));
    let mut p = 1.987_569_1e-4f32;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 5.0e-1] {
        p = p.mul_add(r, c);
    }
    let exp_r = p.mul_add(r * r, r) + 1.0;
    let two_to_n = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    let value = exp_r * two_to_n;
    if x < LOWEST { 0.0 } else { value }
}

/// ln(x) within 2 units in the last place for normal x > 0; NaN stays NaN. Branch-free, so that
/// loops over it vectorise.
///
/// x = 2^n (1 + f) with 1 + f between sqrt(1/2) and sqrt 2, ln(1 + f) by the degree-8 polynomial of
/// Cephes.
#[inline(always)]
pub(crate) fn ln(x: f32) -> f32 {
    const SQRT_HALF_BITS: u32 = 0x3f35_04f3;
    const COEFFICIENTS: [f32; 8] = [
        -1.151_461e-1,
        1.167_699_84e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    let n = (x.to_bits().wrapping_sub(SQRT_HALF_BITS) as i32) >> 23;
    let f = f32::from_bits(x.to_bits().wrapping_sub((n << 23) as u32)) - 1.0;
    let n = n as f32;
    let mut p = 7.037_683_6e-2f32;
    for c in COEFFICIENTS {
        p = p.mul_add(f, c);
    }
    let square = f * f;
    let low = n.mul_add(-2.121_944_4e-4, p * f * square);
    let value = n.mul_add(0.693_359_4, (-0.5f32).mul_add(square, low) + f);
    if x.is_nan() { x } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_16_bits_is_the_same_in_f32() {
        for bits in 0..=u16::MAX {
            let (a, b) = (f16::from_bits(bits), bf16::from_bits(bits));
            for (got, want) in [(a.widen(), a.to_f32()), (b.widen(), b.to_f32())] {
                assert!(
                    got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                    "{bits:04x}: {got:e} instead of {want:e}"
                );
            }
        }
    }

    #[test]
    fn ln_is_within_two_units_in_the_last_place() {
        for i in 1..=1_000_000 {
            let x = (i as f32) * 1e-5;
            let (got, want) = (f64::from(ln(x)), f64::from(x).ln());
            // Near 1 the logarithm is the difference from 1, whose own rounding counts.
            let tolerance = 2.0 * f64::from(f32::EPSILON) * want.abs().max(1e-3);
            assert!((got - want).abs() < tolerance, "ln {x}: {got} instead of {want}");
        }
        assert!(ln(f32::NAN).is_nan() && ln(1.0) == 0.0);
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0f64;
        for i in 0..=2_000_000 {
            let x = -87.0 + 175.0 * f64::from(i) / 2_000_000.0;
            let x = x as f32;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            worst = worst.max((got - want).abs() / want);
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "relative error {worst:e}");
    }

    #[test]
    fn exp_of_very_negative_numbers_is_zero_and_nan_stays() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1.0e30), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }
}
