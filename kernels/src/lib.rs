//! Operations that plain burn tensors do badly, each with a hand-written backward pass.
//!
//! Contract: [`KernelOps`] is the one trait a backend implements to run this project's models. Every method has a default body in plain tensor
//! operations (the reference, in `*/reference.rs`), so a new backend is one empty `impl`; the CPU backend overrides them with loops over its memory
//! (`*/cpu.rs`), and `Autodiff` wraps them into one graph node each (`autodiff.rs`). Which body runs is decided here and nowhere else.
//!
//! | operation | what it saves |
//! |---|---|
//! | [`attention`] | the [T, T] scores, the repeated key and value heads, the copies of the cache |
//! | [`erf_gelu`] | a call of the scalar error function for each element, and twice that in the backward pass |
//! | [`cache_write`] | copying the whole cache at each token |
//! | [`log_probs`] | ten passes over [N, V] and as many copies of it |
//! | [`rms_norm`] | eight passes over the hidden states in the forward, more in the backward pass |
//! | [`rotary`] | splitting, copying and joining every query and key |
//! | [`swiglu`] | the sigmoid and product kept for the backward pass |
//!
//! Letters of all shapes: B rows, T tokens (Tq queries, Tk keys), H query heads, K key/value heads, hd the size of a head.
#![forbid(unsafe_code)]

pub mod attention;
mod autodiff;
pub mod cache_write;
mod cpu;
pub mod erf_gelu;
pub mod log_probs;
pub mod rms_norm;
pub mod rotary;
pub mod swiglu;

use attention::CausalRows;
use burn::tensor::{
    backend::Backend,
    ops::{FloatTensor, IntTensor},
};
use cache_write::CacheSpan;

/// What a burn backend must offer beyond burn's own operations. Methods work on tensor primitives; models call the functions of the modules.
pub trait KernelOps: Backend {
    /// The dimension of a key cache along which positions run: 2 for [n_slots, K, capacity, hd], 3 for [n_slots, K, hd, capacity].
    const KEY_POSITION_DIM: usize = 2;
    /// Tokens that are best worked on together when more could be: a processor wants a layer's activations to stay in its caches, a GPU wants all.
    const TOKENS_AT_ONCE: usize = usize::MAX;

    /// See [`attention::causal_attention`].
    fn causal_attention(q: FloatTensor<Self>, k: FloatTensor<Self>, v: FloatTensor<Self>, rows: &CausalRows) -> FloatTensor<Self> {
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
    fn cache_write(cache: FloatTensor<Self>, values: FloatTensor<Self>, spans: &[CacheSpan], position_dim: usize) -> FloatTensor<Self> {
        cache_write::reference::<Self>(cache, values, spans, position_dim)
    }

    /// [N, 3]: see [`log_probs::log_probs`]; the third column is the log of the normaliser, a constant.
    fn log_probs(logits: FloatTensor<Self>, labels: IntTensor<Self>, temperature: f64) -> FloatTensor<Self> {
        log_probs::reference::<Self>(logits, labels, temperature)
    }

    /// Gradient of the logits, given the packed result and its gradient.
    fn log_probs_backward(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
        packed: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        temperature: f64,
    ) -> FloatTensor<Self> {
        log_probs::reference_backward::<Self>(logits, labels, packed, grad, temperature)
    }

    /// See [`erf_gelu::erf_gelu`].
    fn erf_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        erf_gelu::reference::<Self>(x)
    }

    /// Gradient of x.
    fn erf_gelu_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        erf_gelu::reference_backward::<Self>(x, grad)
    }

    /// See [`rms_norm::rms_norm`].
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
        rms_norm::reference::<Self>(x, weight, eps)
    }

    /// Gradients of x and the weight.
    fn rms_norm_backward(x: FloatTensor<Self>, weight: FloatTensor<Self>, grad: FloatTensor<Self>, eps: f64) -> [FloatTensor<Self>; 2] {
        rms_norm::reference_backward::<Self>(x, weight, grad, eps)
    }

    /// See [`rotary::rotary`]. Its gradient is the same turn with the sine negated.
    fn rotary(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        rotary::reference::<Self>(x, cos, sin)
    }

    /// See [`swiglu::swiglu`].
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        swiglu::reference::<Self>(gate, up)
    }

    /// Gradients of gate and up.
    fn swiglu_backward(gate: FloatTensor<Self>, up: FloatTensor<Self>, grad: FloatTensor<Self>) -> [FloatTensor<Self>; 2] {
        swiglu::reference_backward::<Self>(gate, up, grad)
    }
}

impl KernelOps for burn::backend::Flex {
    const KEY_POSITION_DIM: usize = 3;
    const TOKENS_AT_ONCE: usize = 1024;

    fn causal_attention(q: FloatTensor<Self>, k: FloatTensor<Self>, v: FloatTensor<Self>, rows: &CausalRows) -> FloatTensor<Self> {
        attention::cpu::forward(q, k, v, rows)
    }

    fn causal_attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        rows: &CausalRows,
    ) -> [FloatTensor<Self>; 3] {
        attention::cpu::backward(q, k, v, grad, rows)
    }

    fn cache_write(cache: FloatTensor<Self>, values: FloatTensor<Self>, spans: &[CacheSpan], position_dim: usize) -> FloatTensor<Self> {
        cache_write::cpu(cache, values, spans, position_dim)
    }

    fn log_probs(logits: FloatTensor<Self>, labels: IntTensor<Self>, temperature: f64) -> FloatTensor<Self> {
        log_probs::cpu(logits, labels, temperature)
    }

    fn log_probs_backward(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
        packed: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        temperature: f64,
    ) -> FloatTensor<Self> {
        log_probs::cpu_backward(logits, labels, packed, grad, temperature)
    }

    fn erf_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        erf_gelu::cpu(x)
    }

    fn erf_gelu_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        erf_gelu::cpu_backward(x, grad)
    }

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
        rms_norm::cpu(x, weight, eps)
    }

    fn rms_norm_backward(x: FloatTensor<Self>, weight: FloatTensor<Self>, grad: FloatTensor<Self>, eps: f64) -> [FloatTensor<Self>; 2] {
        rms_norm::cpu_backward(x, weight, grad, eps)
    }

    fn rotary(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        rotary::cpu(x, cos, sin)
    }

    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        swiglu::cpu(gate, up)
    }

    fn swiglu_backward(gate: FloatTensor<Self>, up: FloatTensor<Self>, grad: FloatTensor<Self>) -> [FloatTensor<Self>; 2] {
        swiglu::cpu_backward(gate, up, grad)
    }
}

/// On the GPU runtimes the reference bodies run; kernels of their own belong here.
#[cfg(feature = "cube")]
mod cube {
    use super::KernelOps;
    use burn_cubecl::{CubeBackend, CubeRuntime, FloatElement, IntElement, element::BoolElement};
    use burn_fusion::{Fusion, FusionBackend};

    impl<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement> KernelOps for CubeBackend<R, F, I, BT> {}
    impl<B: FusionBackend> KernelOps for Fusion<B> {}
}
