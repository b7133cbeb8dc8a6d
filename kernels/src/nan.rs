//! Numbers that are none: a stand-in for -inf, and asking for NaN before an operation that may turn
//! it into a number.
//!
//! Which operations do depends on the backend: burn-flex has the bound for NaN in `clamp_min` and
//! `clamp_max` and 0 in `relu`, `max_pair` drops a NaN on its right, and shading languages promise
//! nothing of comparisons (a software Vulkan driver makes `x != x` false). [`nan_of`] asks burn's
//! `is_nan`, which on GPUs looks at the bits.
use burn::tensor::{Tensor, backend::Backend};

/// Stands for log 0: what a logit of -inf is read as.
pub(crate) const LOG_ZERO: f32 = -1e30;

/// NaN where an input is NaN and 0 elsewhere; a constant, to be added to what is made of the
/// inputs.
/// # Shapes
/// at least one input, each `[N]` -> `[N]`
pub fn nan_of<B: Backend, const N: usize>(inputs: [&Tensor<B, 1>; N]) -> Tensor<B, 1> {
    let zeros = Tensor::zeros_like(&inputs[0].clone().detach());
    inputs
        .into_iter()
        .fold(zeros, |nan, input| nan.mask_fill(input.clone().detach().is_nan(), f32::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        KernelOps,
        testing::{on_every_backend, tensor, values},
    };
    use burn::{backend::Autodiff, tensor::DType};

    on_every_backend!(
        nan_is_nan_and_everything_else_is_0,
        what_a_clamp_or_a_maximum_drops_comes_back
    );

    const X: [f64; 6] = [1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 3.0];
    const Y: [f64; 6] = [0.5, 1.0, 2.0, 3.0, 4.0, f64::NAN];

    fn vector<B: Backend>(x: [f64; 6]) -> Tensor<B, 1> {
        tensor(&x, [6], DType::F32)
    }

    fn nan_is_nan_and_everything_else_is_0<B: KernelOps>() {
        let bits = |x: Vec<f64>| {
            x.into_iter().map(|x| if x.is_nan() { None } else { Some(x) }).collect::<Vec<_>>()
        };
        let zero = Some(0.0);
        assert_eq!(bits(values(nan_of([&vector::<B>(X)]))), [zero, None, zero, zero, zero, zero]);
        let of_both = nan_of([&vector::<Autodiff<B>>(X), &vector(Y)]);
        assert_eq!(bits(values(of_both)), [zero, None, zero, zero, zero, None]);
    }

    fn what_a_clamp_or_a_maximum_drops_comes_back<B: KernelOps>() {
        let is_nan = |x: Tensor<B, 1>| values(x).into_iter().map(f64::is_nan).collect::<Vec<_>>();
        let (x, y) = (vector::<B>(X), vector::<B>(Y));
        let nan = nan_of([&x, &y]);
        for bounded in [
            x.clone().clamp_min(-20.0).clamp(-10.0, 10.0),
            x.clone().max_pair(y.clone()),
            y.max_pair(x),
        ] {
            assert_eq!(is_nan(bounded + nan.clone()), [false, true, false, false, false, true]);
        }
    }
}
