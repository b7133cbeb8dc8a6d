//! Rotary position embedding of all heads of all tokens, half-split layout.
//!
//! ```text
//! y_i        = x_i cos_i - x_{i + hd/2} sin_i
//! y_{i+hd/2} = x_{i + hd/2} cos_i + x_i sin_i          i < hd/2
//! ```
//!
//! A rotation, so the gradient is the same operation with -sin. In f32 whatever the dtype of x.
//! Bytes (f32): 8 N H hd; in place on the CPU backend when x has no other owner.
mod autodiff;
mod cpu;
#[cfg(feature = "cube")]
mod kernel;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use crate::operation::*;
use burn::tensor::{Tensor, TensorPrimitive};

operation! {
    /// The rotary embedding on a backend's own tensors.
    RotaryOps: Backend, own;

    /// See [`rotary`]. Its gradient is the same rotation with the sine negated.
    forward rotary([x, cos, sin], []) -> (like(&x));
}

/// Turns each head of token n by the angles of row n mod P of the tables. Differentiable in x; the
/// tables are constants.
/// # Shapes
/// x [N, heads * hd]; cos, sin [P, hd/2] with N a multiple of P -> [N, heads * hd] in the dtype of
/// x.
pub fn rotary<B: RotaryOps>(x: Tensor<B, 2>, cos: Tensor<B, 2>, sin: Tensor<B, 2>) -> Tensor<B, 2> {
    let ([n_tokens, width], [n_positions, half]) = (x.dims(), cos.dims());
    assert_eq!(cos.dims(), sin.dims(), "one sine a cosine");
    assert!(
        n_tokens.is_multiple_of(n_positions.max(1)) && width.is_multiple_of(2 * half),
        "tables {:?} do not fit {:?}",
        cos.dims(),
        x.dims()
    );
    let float = |tensor: Tensor<B, 2>| tensor.into_primitive().tensor();
    Tensor::from_primitive(TensorPrimitive::Float(B::rotary(float(x), float(cos), float(sin))))
}
