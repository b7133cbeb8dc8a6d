//! The whole `[N, V]` logits of both models, and then what `log_softmax_kl` does.
#![allow(clippy::too_many_arguments, reason = "two models, their results and what to do with them")]
use crate::{
    linear_log_probs::reference::{logits, pull_back},
    log_softmax_kl,
    types::{Divergence, HeadShape, Linear},
};
use burn::tensor::{
    backend::Backend,
    ops::{FloatTensor, IntTensor},
};

pub(crate) fn forward<B: Backend>(
    hidden: FloatTensor<B>,
    weight: FloatTensor<B>,
    teacher_hidden: FloatTensor<B>,
    teacher_weight: FloatTensor<B>,
    labels: IntTensor<B>,
    [head, teacher_head]: [HeadShape; 2],
    divergence: Divergence,
    temperature: f64,
) -> FloatTensor<B> {
    let student = Linear::<B> { hidden, weight, shape: head };
    let teacher =
        Linear::<B> { hidden: teacher_hidden, weight: teacher_weight, shape: teacher_head };
    let (student, teacher) = (logits(&student), logits(&teacher));
    log_softmax_kl::reference::forward::<B>(student, teacher, labels, divergence, temperature)
}

pub(crate) fn backward<B: Backend>(
    hidden: FloatTensor<B>,
    weight: FloatTensor<B>,
    teacher_hidden: FloatTensor<B>,
    teacher_weight: FloatTensor<B>,
    packed: FloatTensor<B>,
    grad: FloatTensor<B>,
    labels: IntTensor<B>,
    [head, teacher_head]: [HeadShape; 2],
    divergence: Divergence,
    temperature: f64,
) -> [FloatTensor<B>; 2] {
    let student = Linear::<B> { hidden, weight, shape: head };
    let teacher =
        Linear::<B> { hidden: teacher_hidden, weight: teacher_weight, shape: teacher_head };
    let grad = log_softmax_kl::reference::backward::<B>(
        logits(&student),
        logits(&teacher),
        packed,
        grad,
        labels,
        divergence,
        temperature,
    );
    pull_back(student, grad)
}
