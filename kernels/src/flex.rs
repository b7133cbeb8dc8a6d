//! The operations on the CPU backend: loops over its memory.
use crate::{
    KernelOps,
    attention::{self, CausalRows},
    cache_write::{self, CacheSpan},
    divergence::{Divergence, Plan},
    erf_gelu, is_reference_only, linear_kl,
    linear_log_probs::{self, Linear},
    log_probs, log_softmax_kl, rms_norm, rotary, swiglu,
    vocabulary::{budget::CPU_TILE_ELEMENTS, tiles},
};
use burn::{
    backend::Flex,
    tensor::ops::{FloatTensor, IntTensor},
};

impl KernelOps for Flex {
    const KEY_POSITION_DIM: usize = 3;
    const TOKENS_AT_ONCE: usize = 1024;
    const TILE_ELEMENTS: usize = CPU_TILE_ELEMENTS;

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
        match is_reference_only() {
            true => log_probs::reference::forward::<Self>(logits, labels, temperature),
            false => tiles::log_probs::<Self>(logits, labels, temperature),
        }
    }

    fn log_probs_backward(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
        packed: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        temperature: f64,
    ) -> FloatTensor<Self> {
        match is_reference_only() {
            true => log_probs::reference::backward::<Self>(logits, labels, packed, grad, temperature),
            false => tiles::log_probs_backward::<Self>(logits, labels, packed, grad, temperature),
        }
    }

    fn log_softmax_kl(
        student: FloatTensor<Self>,
        teacher: FloatTensor<Self>,
        labels: IntTensor<Self>,
        divergence: Divergence,
        temperature: f64,
    ) -> FloatTensor<Self> {
        let plan = Plan::new(divergence, temperature);
        match is_reference_only() {
            true => log_softmax_kl::reference::forward::<Self>(student, teacher, labels, &plan, temperature),
            false => tiles::log_softmax_kl::<Self>(student, teacher, labels, &plan, temperature),
        }
    }

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
        match is_reference_only() {
            true => log_softmax_kl::reference::backward::<Self>(student, teacher, labels, packed, grad, &plan, temperature),
            false => tiles::log_softmax_kl_backward::<Self>(student, teacher, labels, packed, grad, &plan, temperature),
        }
    }

    fn linear_log_probs(linear: Linear<Self>, labels: IntTensor<Self>, temperature: f64) -> FloatTensor<Self> {
        match is_reference_only() {
            true => linear_log_probs::reference::forward::<Self>(linear, labels, temperature),
            false => tiles::linear_log_probs::<Self>(linear, labels, temperature),
        }
    }

    fn linear_log_probs_backward(
        linear: Linear<Self>,
        labels: IntTensor<Self>,
        packed: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        temperature: f64,
    ) -> [FloatTensor<Self>; 2] {
        match is_reference_only() {
            true => linear_log_probs::reference::backward::<Self>(linear, labels, packed, grad, temperature),
            false => tiles::linear_log_probs_backward::<Self>(linear, labels, packed, grad, temperature),
        }
    }

    fn linear_kl(
        student: Linear<Self>,
        teacher: Linear<Self>,
        labels: IntTensor<Self>,
        divergence: Divergence,
        temperature: f64,
    ) -> FloatTensor<Self> {
        let plan = Plan::new(divergence, temperature);
        match is_reference_only() {
            true => linear_kl::reference::forward::<Self>(student, teacher, labels, &plan, temperature),
            false => tiles::linear_kl::<Self>(student, teacher, labels, &plan, temperature),
        }
    }

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
        match is_reference_only() {
            true => linear_kl::reference::backward::<Self>(student, teacher, labels, packed, grad, &plan, temperature),
            false => tiles::linear_kl_backward::<Self>(student, teacher, labels, packed, grad, &plan, temperature),
        }
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
