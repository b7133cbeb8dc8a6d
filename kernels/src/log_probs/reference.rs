//! Plain tensor operations on the whole [N, V]: what every backend can run, and what the kernels
//! are tested against.
use crate::{
    nan::LOG_ZERO,
    vocabulary::{ENTROPY, LOG_PROB, MAX, ONE_COLUMNS, SUM},
};
use burn::tensor::{
    DType, IndexingUpdateOp, Int, Tensor, TensorPrimitive,
    backend::Backend,
    ops::{FloatTensor, IntTensor},
    s,
};

/// A row's softmax in parts: log p = shifted - log_sum.
pub(crate) struct Softmax<B: Backend> {
    /// `[N, 1]`
    pub max: Tensor<B, 2>,
    /// `[N, V]` (logit - max) / temperature
    pub shifted: Tensor<B, 2>,
    /// `[N, 1]` sum e^shifted, NaN where no logit is finite.
    pub sum: Tensor<B, 2>,
    /// `[N, V]`
    pub is_impossible: Tensor<B, 2, burn::tensor::Bool>,
}

impl<B: Backend> Softmax<B> {
    /// Of logits `[N, V]` from [`finite`]. The temperature divides differences: far logits divided
    /// first would round their digits away.
    pub(crate) fn new(z: Tensor<B, 2>, temperature: f64) -> Self {
        let is_impossible = z.clone().lower_equal_elem(LOG_ZERO);
        let max = z.clone().max_dim(1);
        let shifted = (z - max.clone()) / temperature;
        let sum = shifted.clone().exp().mask_fill(is_impossible.clone(), 0.0).sum_dim(1);
        let is_empty = max.clone().lower_equal_elem(LOG_ZERO);
        Self { max, shifted, sum: sum.mask_fill(is_empty, f32::NAN), is_impossible }
    }

    /// `[N, V]`
    pub(crate) fn log_p(&self) -> Tensor<B, 2> {
        self.shifted.clone() - self.sum.clone().log()
    }

    /// `[N, V]`
    pub(crate) fn p(&self) -> Tensor<B, 2> {
        self.log_p().exp().mask_fill(self.is_impossible.clone(), 0.0)
    }

    /// `[N, 1]`
    pub(crate) fn entropy(&self) -> Tensor<B, 2> {
        (self.p() * self.log_p()).sum_dim(1).neg()
    }
}

/// Logits in f32, -1e30 for -inf.
pub(crate) fn finite<B: Backend>(logits: FloatTensor<B>) -> Tensor<B, 2> {
    let z = tensor::<B>(logits).cast(DType::F32);
    let is_impossible = z.clone().lower_elem(LOG_ZERO);
    z.mask_fill(is_impossible, LOG_ZERO)
}

pub(crate) fn tensor<B: Backend>(primitive: FloatTensor<B>) -> Tensor<B, 2> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// `[N, 7]`, of which the backward pass below reads the maximum and the sum.
pub(crate) fn forward<B: Backend>(
    logits: FloatTensor<B>,
    labels: IntTensor<B>,
    temperature: f64,
) -> FloatTensor<B> {
    let softmax = Softmax::new(finite::<B>(logits), temperature);
    let n_rows = softmax.max.dims()[0];
    let labels = Tensor::<B, 1, Int>::from_primitive(labels).reshape([n_rows, 1]);
    let log_p = softmax.shifted.clone().gather(1, labels) - softmax.sum.clone().log();
    let zero = softmax.max.zeros_like();
    let entropy = softmax.entropy();
    let packed = Tensor::cat(
        vec![log_p, entropy, zero.clone(), softmax.max, softmax.sum, zero.clone(), zero],
        1,
    );
    debug_assert_eq!(packed.dims()[1], ONE_COLUMNS);
    packed.into_primitive().tensor()
}

/// d logits `[N, V]` in their dtype, given the packed result and its gradient, `[N, 7]` both.
pub(crate) fn backward<B: Backend>(
    logits: FloatTensor<B>,
    packed: FloatTensor<B>,
    grad: FloatTensor<B>,
    labels: IntTensor<B>,
    temperature: f64,
) -> FloatTensor<B> {
    let dtype = tensor::<B>(logits.clone()).dtype();
    let (z, packed, grad) = (finite::<B>(logits), tensor::<B>(packed), tensor::<B>(grad));
    let n_rows = z.dims()[0];
    let column = |x: &Tensor<B, 2>, column: usize| x.clone().slice(s![.., column..column + 1]);
    let (d_log_prob, d_entropy) = (column(&grad, LOG_PROB), column(&grad, ENTROPY));
    let is_impossible = z.clone().lower_equal_elem(LOG_ZERO);
    let log_p = (z - column(&packed, MAX)) / temperature - column(&packed, SUM).log();
    let p = log_p.clone().exp().mask_fill(is_impossible.clone(), 0.0);
    let log_p = log_p.mask_fill(is_impossible, 0.0);
    let dz = p * ((log_p + column(&packed, ENTROPY)) * d_entropy + d_log_prob.clone()).neg();
    let labels = Tensor::<B, 1, Int>::from_primitive(labels).reshape([n_rows, 1]);
    let dz = dz.scatter(1, labels, d_log_prob, IndexingUpdateOp::Add);
    (dz / temperature).cast(dtype).into_primitive().tensor()
}
