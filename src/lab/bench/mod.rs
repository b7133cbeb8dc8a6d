//! Speed of the operations, the training steps and rollouts, beside what they replace: `dgpo
//! bench`.
//!
//! Figures are the best and the median of several runs in one process, the alternatives in turn.
//! They say something on a quiet machine only.
pub mod kernels;
pub mod memory;
pub mod rollout;
pub mod step;
pub mod torch;
