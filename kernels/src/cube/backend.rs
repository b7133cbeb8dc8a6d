//! The operations on a CubeCL runtime without fusion: launches of kernels.
use crate::{
    KernelOps,
    divergence::{Divergence, Plan},
    erf_gelu, is_reference_only, linear_kl,
    linear_log_probs::{self, Linear},
    log_probs, log_softmax_kl, rms_norm, rotary, swiglu,
    vocabulary::tiles,
};
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn_cubecl::{CubeBackend, CubeRuntime, FloatElement, IntElement, element::BoolElement};

impl<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement> KernelOps for CubeBackend<R, F, I, BT> {
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
        if is_reference_only() { erf_gelu::reference::<Self>(x) } else { erf_gelu::kernel::forward(x) }
    }

    fn erf_gelu_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        if is_reference_only() { erf_gelu::reference_backward::<Self>(x, grad) } else { erf_gelu::kernel::backward(x, grad) }
    }

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
        if is_reference_only() { rms_norm::reference::<Self>(x, weight, eps) } else { rms_norm::kernel::forward(x, weight, eps) }
    }

    fn rms_norm_backward(x: FloatTensor<Self>, weight: FloatTensor<Self>, grad: FloatTensor<Self>, eps: f64) -> [FloatTensor<Self>; 2] {
        match is_reference_only() {
            true => rms_norm::reference_backward::<Self>(x, weight, grad, eps),
            false => rms_norm::kernel::backward(x, weight, grad, eps),
        }
    }

    fn rotary(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        if is_reference_only() { rotary::reference::<Self>(x, cos, sin) } else { rotary::kernel::forward(x, cos, sin) }
    }

    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        if is_reference_only() { swiglu::reference::<Self>(gate, up) } else { swiglu::kernel::forward(gate, up) }
    }

    fn swiglu_backward(gate: FloatTensor<Self>, up: FloatTensor<Self>, grad: FloatTensor<Self>) -> [FloatTensor<Self>; 2] {
        match is_reference_only() {
            true => swiglu::reference_backward::<Self>(gate, up, grad),
            false => swiglu::kernel::backward(gate, up, grad),
        }
    }
}
