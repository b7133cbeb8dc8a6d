//! SwiGLU: y = silu(gate) * up, silu(x) = x s(x) with s the logistic function.
//!
//! ```text
//! dup = dy silu(gate)         dgate = dy up s (1 + gate (1 - s))
//! ```
//!
//! One pass each way; only gate and up are kept. In f32 whatever the dtype. Bytes (f32): 12 N I
//! forwards, 20 N I backwards, one exponential an element.
pub(crate) mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod kernel;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use crate::KernelOps;
use burn::tensor::{Tensor, TensorPrimitive};

/// silu(gate) * up, differentiable in both. Any equal shapes [N, I] -> [N, I] in the dtype of gate.
pub fn swiglu<B: KernelOps>(gate: Tensor<B, 2>, up: Tensor<B, 2>) -> Tensor<B, 2> {
    assert_eq!(gate.dims(), up.dims(), "gate and up must have one shape");
    let (gate, up) = (gate.into_primitive().tensor(), up.into_primitive().tensor());
    Tensor::from_primitive(TensorPrimitive::Float(B::swiglu(gate, up)))
}
