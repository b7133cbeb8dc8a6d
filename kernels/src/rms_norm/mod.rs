//! RMSNorm with f32 inside: y = w * cast(x r), r = 1 / sqrt(mean_d(x_d^2) + eps), the weight
//! multiplied in the dtype of x (as Hugging Face does).
//!
//! ```text
//! n = x r     g = dy w     dx = r (g - n mean_d(g_d n_d))     dw = sum over rows of dy n
//! ```
//!
//! One pass over x forwards, one over x and dy backwards; nothing but x and w is kept. Bytes (f32):
//! 8 N D forwards, 12 N D backwards; 4 N D and 10 N D flops. Memory-bound.
mod autodiff;
mod cpu;
#[cfg(feature = "cube")]
mod kernel;
pub(crate) mod reference;

use crate::operation::*;
use burn::tensor::{Tensor, TensorPrimitive};

operation! {
    /// RMSNorm on a backend's own tensors.
    RmsNormOps: Backend, own;

    /// See [`rms_norm`].
    forward rms_norm([x, weight], [], eps: f64) -> (like(&x));
    /// Gradients of x and the weight.
    backward rms_norm_backward([x, weight, grad], [], eps: f64) -> [like(&x), like(&weight)];
}

/// y = w * x / sqrt(mean(x^2) + eps), differentiable in x and w.
/// # Shapes
/// x `[N, D]`, weight `[D]` -> `[N, D]` in the dtype of x.
pub fn rms_norm<B: RmsNormOps>(x: Tensor<B, 2>, weight: Tensor<B, 1>, eps: f64) -> Tensor<B, 2> {
    assert_eq!(x.dims()[1], weight.dims()[0], "one weight a feature");
    let (x, weight) = (x.into_primitive().tensor(), weight.into_primitive().tensor());
    Tensor::from_primitive(TensorPrimitive::Float(B::rms_norm(x, weight, eps)))
}
