//! Operations that plain burn tensors do badly, each with a hand-written backward pass.
use burn::tensor::backend::Backend;

/// What a burn backend must offer beyond burn's own operations.
pub trait KernelOps: Backend {}
impl<B: Backend> KernelOps for B {}
