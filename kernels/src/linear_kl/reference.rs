//! The whole [N, V] logits of both models, and then what `log_softmax_kl` does.
use crate::{
    divergence::Plan,
    linear_log_probs::{
        Linear,
        reference::{logits, pull_back},
    },
    log_softmax_kl,
};
use burn::tensor::{
    backend::Backend,
    ops::{FloatTensor, IntTensor},
};

pub(crate) fn forward<B: Backend>(
    student: Linear<B>,
    teacher: Linear<B>,
    labels: IntTensor<B>,
    plan: &Plan,
    temperature: f64,
) -> FloatTensor<B> {
    log_softmax_kl::reference::forward::<B>(
        logits(&student),
        logits(&teacher),
        labels,
        plan,
        temperature,
    )
}

pub(crate) fn backward<B: Backend>(
    student: Linear<B>,
    teacher: Linear<B>,
    labels: IntTensor<B>,
    packed: FloatTensor<B>,
    grad: FloatTensor<B>,
    plan: &Plan,
    temperature: f64,
) -> [FloatTensor<B>; 2] {
    let grad = log_softmax_kl::reference::backward::<B>(
        logits(&student),
        logits(&teacher),
        labels,
        packed,
        grad,
        plan,
        temperature,
    );
    pull_back(student, grad)
}
