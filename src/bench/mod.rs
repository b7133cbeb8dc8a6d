//! How fast the operations and the training steps are, beside what they replace: `dgpo bench`.
//!
//! Figures are the best and the median of several runs in one process, the alternatives in turn. They say something on a quiet machine only.
pub mod kernels;
pub mod memory;
pub mod step;
pub mod torch;
