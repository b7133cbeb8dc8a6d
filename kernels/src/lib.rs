//! Operations that plain burn tensors do badly, each with a hand-written backward pass.
//!
//! [`KernelOps`] is the one trait a backend implements to run this project's models: the sum of one
//! small trait an operation. Each operation has a folder, read from below:
//!
//! ```text
//! types/                what operations are told: rows, spans, heads, sampling, divergences
//! OP/reference.rs       the operation in plain tensor operations, for any backend
//! OP/cpu.rs, kernel.rs  loops for the CPU backend, CubeCL kernels for GPU runtimes
//!   (or OP/tiles.rs     over the vocabulary: both at once, by way of vocabulary/)
//! OP/mod.rs             its page; one row that names the trait's methods; the function for models
//! OP/autodiff.rs        its backward pass
//! lib.rs                the sum of all traits
//! suite/                every operation as a case: its definition in f64, and to be timed
//! ```
//!
//! The row (`operation.rs`) writes the trait with the reference as default body, so that a new
//! backend is an empty `impl` an operation, and the implementations for burn's CPU backend, for the
//! GPU runtimes and for `Fusion`, which makes each method a node of its stream. With
//! `DGPO_KERNELS=reference` in the environment (for tests) the reference bodies run everywhere.
//! Imports run downwards alone; `cargo xtask tidy` checks it.
//!
//! | operation | what it saves |
//! |---|---|
//! | [`attention`] | the `[T, T]` scores, the repeated key and value heads, the copies of the cache |
//! | [`erf_gelu`] | a call of the scalar error function for each element, twice in the backward pass |
//! | [`cache_write`] | copying the whole cache at each token |
//! | [`linear_kl`] | the `[N, V]` logits of student and teacher, in both passes |
//! | [`linear_log_probs`] | the `[N, V]` logits, in both passes |
//! | [`log_probs`] | ten passes over `[N, V]` and as many copies of it |
//! | [`log_softmax_kl`] | the same for two models, and twice as often |
//! | [`rms_norm`] | eight passes over the hidden states in the forward, more in the backward pass |
//! | [`rotary`] | splitting, copying and joining every query and key |
//! | [`rows`] | digits of sums over many rows, and loops that a driver would cut |
//! | [`sample`] | the way of the `[R, V]` logits to the host; and the same draw everywhere |
//! | [`swiglu`] | the sigmoid and product kept for the backward pass |
//!
//! Letters of all shapes: B rows, T tokens (Tq queries, Tk keys), H query heads, K key/value heads,
//! hd the size of a head.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod attention;
pub mod cache_write;
mod cpu;
#[cfg(feature = "cube")]
mod cube;
mod device;
pub mod erf_gelu;
pub mod graph;
mod host;
pub mod linear_kl;
pub mod linear_log_probs;
pub mod log_probs;
pub mod log_softmax_kl;
pub mod nan;
mod operation;
pub mod rms_norm;
pub mod rotary;
pub mod rows;
pub mod sample;
mod select;
pub mod suite;
pub mod swiglu;
#[cfg(test)]
mod testing;
mod types;
mod vocabulary;

pub use device::{DeviceFacts, Hardware};
pub use host::to_host;
pub use select::{bodies, is_reference_only};
pub use types::Divergence;

use burn::backend::{
    Flex,
    autodiff::{Autodiff, checkpoint::strategy::CheckpointStrategy},
};

/// Operations that a burn backend must offer beyond burn's own operations: every operation of this
/// crate. The traits' methods work on tensor primitives; models call the functions of the modules.
pub trait KernelOps:
    Hardware
    + attention::AttentionOps
    + cache_write::CacheWriteOps
    + erf_gelu::ErfGeluOps
    + linear_kl::LinearKlOps
    + linear_log_probs::LinearLogProbsOps
    + log_probs::LogProbsOps
    + log_softmax_kl::LogSoftmaxKlOps
    + rms_norm::RmsNormOps
    + rotary::RotaryOps
    + rows::ExpandRowsOps
    + sample::SampleOps
    + swiglu::SwigluOps
{
}

impl KernelOps for Flex {}

impl<B: KernelOps, C: CheckpointStrategy> KernelOps for Autodiff<B, C> {}

#[cfg(feature = "cube")]
mod on_cube {
    use super::KernelOps;
    use burn_cubecl::{CubeBackend, CubeRuntime, FloatElement, IntElement, element::BoolElement};
    use burn_fusion::{Fusion, FusionBackend};

    impl<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement> KernelOps
        for CubeBackend<R, F, I, BT>
    {
    }

    impl<B: FusionBackend + KernelOps> KernelOps for Fusion<B> {}
}
