//! SwiGLU: y = silu(gate) * up, silu(x) = x s(x) with s the logistic function.
//!
//! ```text
//! dup = dy silu(gate)         dgate = dy up s (1 + gate (1 - s))
//! ```
//!
//! One pass each way; only gate and up are kept. In f32 whatever the dtype. Bytes (f32): 12 N I
//! forwards, 20 N I backwards, one exponential an element.
mod autodiff;
mod cpu;
#[cfg(feature = "cube")]
mod kernel;
pub(crate) mod reference;

use crate::operation::*;
use burn::tensor::{Tensor, TensorPrimitive};

operation! {
    /// SwiGLU on a backend's own tensors.
    SwigluOps: Backend, own;

    /// See [`swiglu`].
    forward swiglu([gate, up], []) -> (like(&gate));
    /// Gradients of gate and up.
    backward swiglu_backward([gate, up, grad], []) -> [like(&gate), like(&gate)];
}

/// silu(gate) * up, differentiable in both. Any equal shapes `[N, I]` -> `[N, I]` in the dtype of
/// gate.
///
/// ```
/// use burn::{backend::Flex, tensor::Tensor};
///
/// let one = Tensor::<Flex, 2>::ones([1, 1], &Default::default());
/// // silu(1) = 1 / (1 + 1/e)
/// let y = dgpo_kernels::swiglu::swiglu(one.clone(), one).into_scalar();
/// assert!((y - 0.731_058_6).abs() < 1e-6);
/// ```
pub fn swiglu<B: SwigluOps>(gate: Tensor<B, 2>, up: Tensor<B, 2>) -> Tensor<B, 2> {
    assert_eq!(gate.dims(), up.dims(), "gate and up must have one shape");
    let (gate, up) = (gate.into_primitive().tensor(), up.into_primitive().tensor());
    Tensor::from_primitive(TensorPrimitive::Float(B::swiglu(gate, up)))
}
