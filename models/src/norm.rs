//! RMSNorm as Hugging Face computes it: everything in f32, the weight multiplied after casting
//! back.
//!
//! burn's own `RmsNorm` divides in the dtype of the input, which rounds the root mean square to
//! bf16, and calls its parameter `gamma`.
use crate::Backend;
use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use dgpo_kernels::rms_norm::rms_norm;

/// y = x / sqrt(mean(x^2) + eps) * weight.
#[derive(Module, Debug)]
pub struct RmsNorm<B: Backend> {
    /// `[D]`
    pub weight: Param<Tensor<B, 1>>,
    /// Added to the mean square before the root.
    pub eps: f64,
}

impl<B: Backend> RmsNorm<B> {
    /// x `[N, D]` -> `[N, D]`, in the dtype of x.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        rms_norm(x, self.weight.val(), self.eps)
    }
}
