//! Operations that plain burn tensors do badly, each with a hand-written backward pass.
//!
//! Contract: [`KernelOps`] is the one trait a backend implements to run this project's models.
//! Every method has a default body in plain tensor operations (`*/reference.rs`), so a new backend
//! is one empty `impl`. The CPU backend overrides them with loops over its memory (`*/cpu.rs`), the
//! GPU runtimes with CubeCL kernels (`*/kernel.rs`): which body runs is decided in `select.rs` and
//! nowhere else. `Fusion` makes each method a node of its stream (`cube/fusion.rs`), `Autodiff` a
//! node of its graph (`autodiff.rs`). With `DGPO_KERNELS=reference` in the environment (for tests)
//! the reference bodies run everywhere.
//!
//! | operation | what it saves |
//! |---|---|
//! | [`attention`] | the [T, T] scores, the repeated key and value heads, the copies of the cache |
//! | [`erf_gelu`] | a call of the scalar error function for each element, and twice that in the backward pass |
//! | [`cache_write`] | copying the whole cache at each token |
//! | [`linear_kl`] | the [N, V] logits of student and teacher, in both passes |
//! | [`linear_log_probs`] | the [N, V] logits, in both passes |
//! | [`log_probs`] | ten passes over [N, V] and as many copies of it |
//! | [`log_softmax_kl`] | the same for two models, and twice as often |
//! | [`rms_norm`] | eight passes over the hidden states in the forward, more in the backward pass |
//! | [`rotary`] | splitting, copying and joining every query and key |
//! | [`rows`] | digits of sums over many rows, and loops that a driver would cut |
//! | [`sample`] | the way of the [R, V] logits to the host; and the same draw everywhere |
//! | [`swiglu`] | the sigmoid and product kept for the backward pass |
//!
//! Letters of all shapes: B rows, T tokens (Tq queries, Tk keys), H query heads, K key/value heads,
//! hd the size of a head.
#![forbid(unsafe_code)]

pub mod attention;
mod autodiff;
pub mod cache_write;
mod cpu;
#[cfg(feature = "cube")]
mod cube;
mod device;
mod divergence;
pub mod erf_gelu;
mod flex;
pub mod linear_kl;
pub mod linear_log_probs;
pub mod log_probs;
pub mod log_softmax_kl;
pub mod nan;
#[cfg(test)]
mod portable_tests;
pub mod rms_norm;
pub mod rotary;
pub mod rows;
pub mod sample;
mod select;
pub mod suite;
pub mod swiglu;
#[cfg(test)]
mod testing;
mod vocabulary;

pub use device::DeviceFacts;
pub use divergence::Divergence;
pub use select::{bodies, is_reference_only};

use attention::CausalRows;
use burn::tensor::{
    Device,
    backend::Backend,
    ops::{FloatTensor, IntTensor},
};
use cache_write::CacheSpan;
use divergence::Plan;
use linear_log_probs::Linear;
use sample::RowSampling;

/// What a burn backend must offer beyond burn's own operations. Methods work on tensor primitives;
/// models call the functions of the modules.
pub trait KernelOps: Backend {
    /// The dimension of a key cache along which positions run: 2 for [n_slots, K, capacity, hd], 3
    /// for [n_slots, K, hd, capacity].
    const KEY_POSITION_DIM: usize = 2;
    /// Tokens that are best worked on together when more could be: a processor wants a layer's
    /// activations to stay in its caches, a GPU wants all.
    const TOKENS_AT_ONCE: usize = usize::MAX;
    /// Elements of a tile of logits (`vocabulary/budget.rs`).
    const TILE_ELEMENTS: usize = vocabulary::budget::GPU_TILE_ELEMENTS;

    /// The largest tensor that the device can hold, in bytes; `None` where memory alone is the
    /// limit. (A tensor is one buffer, and graphics APIs limit buffers.)
    fn max_tensor_bytes(_device: &Self::Device) -> Option<u64> {
        None
    }

    /// What the device says of itself.
    fn device_facts(device: &Device<Self>) -> DeviceFacts {
        DeviceFacts { runtime: Self::name(device), ..DeviceFacts::default() }
    }

    /// Bytes that the backend holds on the device, its free pages included unless they are given
    /// back first. `None` where nobody counts.
    fn reserved_bytes(_device: &Device<Self>, _give_back_first: bool) -> Option<u64> {
        None
    }

    /// See [`attention::causal_attention`].
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        rows: &CausalRows,
    ) -> FloatTensor<Self> {
        attention::reference::forward::<Self>(q, k, v, rows)
    }

    /// Gradients of q, k and v, given the gradient of the output. Not for rows that name slots.
    fn causal_attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        rows: &CausalRows,
    ) -> [FloatTensor<Self>; 3] {
        attention::reference::backward::<Self>(q, k, v, grad, rows)
    }

    /// See [`cache_write::cache_write`].
    fn cache_write(
        cache: FloatTensor<Self>,
        values: FloatTensor<Self>,
        spans: &[CacheSpan],
        position_dim: usize,
    ) -> FloatTensor<Self> {
        cache_write::reference::forward::<Self>(cache, values, spans, position_dim)
    }

    /// See [`log_probs::log_probs`]: [N, 7], log p(label) and entropy first.
    fn log_probs(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
        temperature: f64,
    ) -> FloatTensor<Self> {
        log_probs::reference::forward::<Self>(logits, labels, temperature)
    }

    /// Gradient of the logits, given the packed result and its gradient.
    fn log_probs_backward(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
        packed: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        temperature: f64,
    ) -> FloatTensor<Self> {
        log_probs::reference::backward::<Self>(logits, labels, packed, grad, temperature)
    }

    /// See [`log_softmax_kl::log_softmax_kl`]: [N, 14], log p(label), entropy and divergence first.
    fn log_softmax_kl(
        student: FloatTensor<Self>,
        teacher: FloatTensor<Self>,
        labels: IntTensor<Self>,
        divergence: Divergence,
        temperature: f64,
    ) -> FloatTensor<Self> {
        log_softmax_kl::reference::forward::<Self>(
            student,
            teacher,
            labels,
            &Plan::new(divergence, temperature),
            temperature,
        )
    }

    /// Gradient of the student's logits, given the packed result and its gradient.
    fn log_softmax_kl_backward(
        student: FloatTensor<Self>,
        teacher: FloatTensor<Self>,
        labels: IntTensor<Self>,
        packed: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        divergence: Divergence,
        temperature: f64,
    ) -> FloatTensor<Self> {
        let plan = Plan::new(divergence, temperature);
        log_softmax_kl::reference::backward::<Self>(
            student,
            teacher,
            labels,
            packed,
            grad,
            &plan,
            temperature,
        )
    }

    /// See [`linear_log_probs::linear_log_probs`]: [N, 7], as `log_probs`.
    fn linear_log_probs(
        linear: Linear<Self>,
        labels: IntTensor<Self>,
        temperature: f64,
    ) -> FloatTensor<Self> {
        linear_log_probs::reference::forward::<Self>(linear, labels, temperature)
    }

    /// Gradients of the hidden states and the head.
    fn linear_log_probs_backward(
        linear: Linear<Self>,
        labels: IntTensor<Self>,
        packed: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        temperature: f64,
    ) -> [FloatTensor<Self>; 2] {
        linear_log_probs::reference::backward::<Self>(linear, labels, packed, grad, temperature)
    }

    /// See [`linear_kl::linear_kl`]: [N, 14], as `log_softmax_kl`.
    fn linear_kl(
        student: Linear<Self>,
        teacher: Linear<Self>,
        labels: IntTensor<Self>,
        divergence: Divergence,
        temperature: f64,
    ) -> FloatTensor<Self> {
        linear_kl::reference::forward::<Self>(
            student,
            teacher,
            labels,
            &Plan::new(divergence, temperature),
            temperature,
        )
    }

    /// Gradients of the student's hidden states and head.
    fn linear_kl_backward(
        student: Linear<Self>,
        teacher: Linear<Self>,
        labels: IntTensor<Self>,
        packed: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        divergence: Divergence,
        temperature: f64,
    ) -> [FloatTensor<Self>; 2] {
        let plan = Plan::new(divergence, temperature);
        linear_kl::reference::backward::<Self>(
            student,
            teacher,
            labels,
            packed,
            grad,
            &plan,
            temperature,
        )
    }

    /// See [`erf_gelu::erf_gelu`].
    fn erf_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        erf_gelu::reference::forward::<Self>(x)
    }

    /// Gradient of x.
    fn erf_gelu_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        erf_gelu::reference::backward::<Self>(x, grad)
    }

    /// See [`rms_norm::rms_norm`].
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
        rms_norm::reference::forward::<Self>(x, weight, eps)
    }

    /// Gradients of x and the weight.
    fn rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f64,
    ) -> [FloatTensor<Self>; 2] {
        rms_norm::reference::backward::<Self>(x, weight, grad, eps)
    }

    /// See [`rotary::rotary`]. Its gradient is the same turn with the sine negated.
    fn rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        rotary::reference::forward::<Self>(x, cos, sin)
    }

    /// See [`rows::expand_rows`].
    fn expand_rows(row: FloatTensor<Self>, n_rows: usize) -> FloatTensor<Self> {
        rows::expand::<Self>(row, n_rows)
    }

    /// See [`sample::sample`]: [R, 2] f32.
    fn sample(logits: FloatTensor<Self>, rows: &[RowSampling]) -> FloatTensor<Self> {
        sample::reference::forward::<Self>(logits, rows)
    }

    /// See [`swiglu::swiglu`].
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        swiglu::reference::forward::<Self>(gate, up)
    }

    /// Gradients of gate and up.
    fn swiglu_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        swiglu::reference::backward::<Self>(gate, up, grad)
    }
}
