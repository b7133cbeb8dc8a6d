//! Which body of an operation runs: the backend's own, or the reference.
use std::sync::OnceLock;

/// Which bodies run in this process: "fused", or "reference" where `DGPO_KERNELS=reference` was set
/// when the first operation ran. For reports: a variable that a test left behind must not go
/// unseen.
pub fn bodies() -> &'static str {
    if is_reference_only() { "reference" } else { "fused" }
}

/// Whether the environment asks for the reference bodies, looked at once.
pub fn is_reference_only() -> bool {
    static REFERENCE: OnceLock<bool> = OnceLock::new();
    *REFERENCE
        .get_or_init(|| std::env::var_os("DGPO_KERNELS").is_some_and(|value| value == "reference"))
}

/// What the expansion of [`fused_ops`] names.
pub(crate) mod names {
    pub(crate) use super::is_reference_only;
    pub(crate) use crate::{
        Divergence, KernelOps, attention,
        attention::CausalRows,
        cache_write,
        cache_write::CacheSpan,
        divergence::Plan,
        erf_gelu, linear_kl, linear_log_probs,
        linear_log_probs::Linear,
        log_probs, log_softmax_kl, rms_norm, rotary,
        sample::{self, RowSampling},
        swiglu,
        vocabulary::tiles,
    };
    pub(crate) use burn::tensor::ops::{FloatTensor, IntTensor};
}

/// The methods of [`crate::KernelOps`] for a backend that has bodies of its own, in the modules
/// `$fused` of the operations (`cpu` or `kernel`), and that can fold tiles of a vocabulary. The
/// place of expansion imports [`names`].
macro_rules! fused_ops {
    ($fused:ident) => {
        fn causal_attention(
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            rows: &CausalRows,
        ) -> FloatTensor<Self> {
            if is_reference_only() {
                attention::reference::forward::<Self>(q, k, v, rows)
            } else {
                attention::$fused::forward(q, k, v, rows)
            }
        }

        fn causal_attention_backward(
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            grad: FloatTensor<Self>,
            rows: &CausalRows,
        ) -> [FloatTensor<Self>; 3] {
            if is_reference_only() {
                attention::reference::backward::<Self>(q, k, v, grad, rows)
            } else {
                attention::$fused::backward(q, k, v, grad, rows)
            }
        }

        fn cache_write(
            cache: FloatTensor<Self>,
            values: FloatTensor<Self>,
            spans: &[CacheSpan],
            position_dim: usize,
        ) -> FloatTensor<Self> {
            if is_reference_only() {
                cache_write::reference::forward::<Self>(cache, values, spans, position_dim)
            } else {
                cache_write::$fused::forward(cache, values, spans, position_dim)
            }
        }

        fn log_probs(
            logits: FloatTensor<Self>,
            labels: IntTensor<Self>,
            temperature: f64,
        ) -> FloatTensor<Self> {
            if is_reference_only() {
                log_probs::reference::forward::<Self>(logits, labels, temperature)
            } else {
                tiles::log_probs::<Self>(logits, labels, temperature)
            }
        }

        fn log_probs_backward(
            logits: FloatTensor<Self>,
            labels: IntTensor<Self>,
            packed: FloatTensor<Self>,
            grad: FloatTensor<Self>,
            temperature: f64,
        ) -> FloatTensor<Self> {
            if is_reference_only() {
                log_probs::reference::backward::<Self>(logits, labels, packed, grad, temperature)
            } else {
                tiles::log_probs_backward::<Self>(logits, labels, packed, grad, temperature)
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
            if is_reference_only() {
                log_softmax_kl::reference::forward::<Self>(
                    student,
                    teacher,
                    labels,
                    &plan,
                    temperature,
                )
            } else {
                tiles::log_softmax_kl::<Self>(student, teacher, labels, &plan, temperature)
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
            if is_reference_only() {
                log_softmax_kl::reference::backward::<Self>(
                    student,
                    teacher,
                    labels,
                    packed,
                    grad,
                    &plan,
                    temperature,
                )
            } else {
                tiles::log_softmax_kl_backward::<Self>(
                    student,
                    teacher,
                    labels,
                    packed,
                    grad,
                    &plan,
                    temperature,
                )
            }
        }

        fn linear_log_probs(
            linear: Linear<Self>,
            labels: IntTensor<Self>,
            temperature: f64,
        ) -> FloatTensor<Self> {
            if is_reference_only() {
                linear_log_probs::reference::forward::<Self>(linear, labels, temperature)
            } else {
                tiles::linear_log_probs::<Self>(linear, labels, temperature)
            }
        }

        fn linear_log_probs_backward(
            linear: Linear<Self>,
            labels: IntTensor<Self>,
            packed: FloatTensor<Self>,
            grad: FloatTensor<Self>,
            temperature: f64,
        ) -> [FloatTensor<Self>; 2] {
            if is_reference_only() {
                linear_log_probs::reference::backward::<Self>(
                    linear,
                    labels,
                    packed,
                    grad,
                    temperature,
                )
            } else {
                tiles::linear_log_probs_backward::<Self>(linear, labels, packed, grad, temperature)
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
            if is_reference_only() {
                linear_kl::reference::forward::<Self>(student, teacher, labels, &plan, temperature)
            } else {
                tiles::linear_kl::<Self>(student, teacher, labels, &plan, temperature)
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
            if is_reference_only() {
                linear_kl::reference::backward::<Self>(
                    student,
                    teacher,
                    labels,
                    packed,
                    grad,
                    &plan,
                    temperature,
                )
            } else {
                tiles::linear_kl_backward::<Self>(
                    student,
                    teacher,
                    labels,
                    packed,
                    grad,
                    &plan,
                    temperature,
                )
            }
        }

        fn erf_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
            if is_reference_only() {
                erf_gelu::reference::forward::<Self>(x)
            } else {
                erf_gelu::$fused::forward(x)
            }
        }

        fn erf_gelu_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
            if is_reference_only() {
                erf_gelu::reference::backward::<Self>(x, grad)
            } else {
                erf_gelu::$fused::backward(x, grad)
            }
        }

        fn rms_norm(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            eps: f64,
        ) -> FloatTensor<Self> {
            if is_reference_only() {
                rms_norm::reference::forward::<Self>(x, weight, eps)
            } else {
                rms_norm::$fused::forward(x, weight, eps)
            }
        }

        fn rms_norm_backward(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            grad: FloatTensor<Self>,
            eps: f64,
        ) -> [FloatTensor<Self>; 2] {
            if is_reference_only() {
                rms_norm::reference::backward::<Self>(x, weight, grad, eps)
            } else {
                rms_norm::$fused::backward(x, weight, grad, eps)
            }
        }

        fn rotary(
            x: FloatTensor<Self>,
            cos: FloatTensor<Self>,
            sin: FloatTensor<Self>,
        ) -> FloatTensor<Self> {
            if is_reference_only() {
                rotary::reference::forward::<Self>(x, cos, sin)
            } else {
                rotary::$fused::forward(x, cos, sin)
            }
        }

        fn sample(logits: FloatTensor<Self>, rows: &[RowSampling]) -> FloatTensor<Self> {
            if is_reference_only() {
                sample::reference::forward::<Self>(logits, rows)
            } else {
                sample::$fused::forward(logits, rows)
            }
        }

        fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
            if is_reference_only() {
                swiglu::reference::forward::<Self>(gate, up)
            } else {
                swiglu::$fused::forward(gate, up)
            }
        }

        fn swiglu_backward(
            gate: FloatTensor<Self>,
            up: FloatTensor<Self>,
            grad: FloatTensor<Self>,
        ) -> [FloatTensor<Self>; 2] {
            if is_reference_only() {
                swiglu::reference::backward::<Self>(gate, up, grad)
            } else {
                swiglu::$fused::backward(gate, up, grad)
            }
        }
    };
}
pub(crate) use fused_ops;
