//! Divergences between teacher and student, row by row, with gradients to the student; the KD loss; TAID's schedule.
//!
//! A row is one trained position: logits `[V]` of both models for the same prefix. Everything is computed in f32 from log-probabilities and their
//! differences, mixtures by log-add-exp, so huge shifts cost nothing and probabilities that underflow keep their logarithm. A logit of -inf is a
//! probability of exactly 0: it contributes nothing where both models have it, and a very large finite number where only the right-hand side of a
//! KL has it (instead of inf, whose gradient is NaN). Autodiff keeps about ten `[N, V]` buffers a call: chunk the rows when V is large.
use super::masked_mean;
use burn::tensor::{DType, Int, Tensor};
use dgpo_models::Backend;
use serde::{Deserialize, Serialize};

/// Stands for log 0.
const LOG_ZERO: f64 = -1e30;

/// A per-row distance between p_t (teacher) and p_s (student), both softmax(logits / temperature).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Divergence {
    /// KL(p_t || p_s)
    ForwardKl,
    /// -sum p_t log p_s: forward KL plus the teacher's entropy, so the same gradient.
    ForwardCrossEntropy,
    /// KL(p_s || p_t)
    ReverseKl,
    /// -sum p_t log(alpha p_t + (1 - alpha) p_s), the cross-entropy form. DistiLLM: alpha = 0.1.
    SkewForward { alpha: f64 },
    /// KL(p_s || (1 - alpha) p_t + alpha p_s)
    SkewReverse { alpha: f64 },
    /// lambda KL(p_s || m) + (1 - lambda) KL(p_t || m), m = lambda p_s + (1 - lambda) p_t. DistiLLM: lambda = 0.9.
    JsDistance { lambda: f64 },
    /// 1/2 sum |p_s - p_t|
    TotalVariation,
    /// (1 - lambda) (-sum p_t log p_s) + lambda KL(p_s || p_t). DistiLLM: lambda = 0.9.
    SymmetricKl { lambda: f64 },
    /// beta KL(p_t || m) + (1 - beta) KL(p_s || m), m = (1 - beta) p_s + beta p_t; beta = 0 is forward KL, beta = 1 reverse KL (GKD).
    GeneralisedJsd { beta: f64 },
    /// T^2 KL(p_t || p_s): the factor keeps the gradient's size over temperatures (Hinton et al.).
    Hinton,
    /// -sum q log p_s with q = softmax of (1 - t) · student logits (detached) + t · teacher logits.
    Taid { t: f64 },
}

/// Cuts both vocabularies to their shared prefix: padded vocabularies may differ in size although the tokenizer is the same.
/// # Shapes
/// `[N, V_s]`, `[N, V_t]` -> both `[N, min(V_s, V_t)]`
/// # Source
/// `method §3`
pub fn cut_to_shared<B: Backend>(student: Tensor<B, 2>, teacher: Tensor<B, 2>) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let vocab = student.dims()[1].min(teacher.dims()[1]);
    (cut(student, vocab), cut(teacher, vocab))
}

fn cut<B: Backend>(logits: Tensor<B, 2>, vocab: usize) -> Tensor<B, 2> {
    if logits.dims()[1] == vocab { logits } else { logits.narrow(1, 0, vocab) }
}

/// One model's rows: log p = shifted - log_sum, kept apart so that the difference of two models is not taken between two large numbers.
struct Rows<B: Backend> {
    /// [N, V] logits / temperature - their maximum.
    shifted: Tensor<B, 2>,
    /// [N, 1] log sum exp(shifted)
    log_sum: Tensor<B, 2>,
}

impl<B: Backend> Rows<B> {
    fn new(logits: Tensor<B, 2>, temperature: f64) -> Self {
        let logits = if logits.dtype() == DType::F32 { logits } else { logits.cast(DType::F32) };
        let logits = if temperature == 1.0 { logits } else { logits / temperature };
        let shifted = (logits.clone() - logits.detach().max_dim(1)).clamp_min(LOG_ZERO);
        let log_sum = shifted.clone().exp().sum_dim(1).log();
        Self { shifted, log_sum }
    }

    /// [N, V]
    fn log_probs(&self) -> Tensor<B, 2> {
        self.shifted.clone() - self.log_sum.clone()
    }

    /// [N, V]
    fn probs(&self) -> Tensor<B, 2> {
        self.log_probs().exp()
    }

    /// log p - log q, `[N, V]`
    fn log_ratio(&self, other: &Self) -> Tensor<B, 2> {
        (self.shifted.clone() - other.shifted.clone()) - (self.log_sum.clone() - other.log_sum.clone())
    }
}

/// log softmax(logits / temperature) in f32, never below -1e30. `[N, V]` -> `[N, V]`
pub fn log_softmax<B: Backend>(logits: Tensor<B, 2>, temperature: f64) -> Tensor<B, 2> {
    Rows::new(logits, temperature).log_probs()
}

/// One divergence a row. The teacher is a constant; gradients flow into the student's logits.
/// # Shapes
/// student `[N, V_s]`, teacher `[N, V_t]` (cut to the shared prefix) -> `[N]`
/// # Source
/// `method §3, §5`
pub fn row_divergence<B: Backend>(student: Tensor<B, 2>, teacher: Tensor<B, 2>, divergence: Divergence, temperature: f64) -> Tensor<B, 1> {
    let (student, teacher) = cut_to_shared(student, teacher.detach());
    let target = match divergence {
        Divergence::Taid { t } => interpolate(student.clone().detach(), teacher, t),
        _ => teacher,
    };
    let s = &Rows::new(student, temperature);
    let t = &Rows::new(target, temperature);
    let rows = match divergence {
        Divergence::ForwardKl => kl(t, s),
        Divergence::ForwardCrossEntropy | Divergence::Taid { .. } => cross_entropy(t, s),
        Divergence::ReverseKl => kl(s, t),
        Divergence::SkewForward { alpha } => cross_entropy(t, t) + kl_to_mixture(t, s, alpha),
        Divergence::SkewReverse { alpha } => kl_to_mixture(s, t, alpha),
        Divergence::JsDistance { lambda } => jensen_shannon(s, t, lambda),
        Divergence::TotalVariation => (s.probs() - t.probs()).abs().sum_dim(1) * 0.5,
        Divergence::SymmetricKl { lambda } => cross_entropy(t, s) * (1.0 - lambda) + kl(s, t) * lambda,
        Divergence::GeneralisedJsd { beta } if beta <= 0.0 => kl(t, s),
        Divergence::GeneralisedJsd { beta } if beta >= 1.0 => kl(s, t),
        Divergence::GeneralisedJsd { beta } => jensen_shannon(s, t, 1.0 - beta),
        Divergence::Hinton => kl(t, s) * (temperature * temperature),
    };
    rows.squeeze_dim(1)
}

/// (1 - t) a + t b; the ends are exact, so that -inf entries of the unused side (0 · inf) do not matter.
fn interpolate<B: Backend>(a: Tensor<B, 2>, b: Tensor<B, 2>, t: f64) -> Tensor<B, 2> {
    if t <= 0.0 {
        a
    } else if t >= 1.0 {
        b
    } else {
        a * (1.0 - t) + b * t
    }
}

/// -sum p log q, `[N, 1]`
fn cross_entropy<B: Backend>(p: &Rows<B>, q: &Rows<B>) -> Tensor<B, 2> {
    (p.probs() * q.log_probs()).sum_dim(1).neg()
}

/// sum p (log p - log q), `[N, 1]`
fn kl<B: Backend>(p: &Rows<B>, q: &Rows<B>) -> Tensor<B, 2> {
    (p.probs() * p.log_ratio(q)).sum_dim(1)
}

/// weight KL(p || m) + (1 - weight) KL(q || m) with m = weight p + (1 - weight) q, `[N, 1]`
fn jensen_shannon<B: Backend>(p: &Rows<B>, q: &Rows<B>, weight: f64) -> Tensor<B, 2> {
    kl_to_mixture(p, q, weight) * weight + kl_to_mixture(q, p, 1.0 - weight) * (1.0 - weight)
}

/// KL(p || m) with m = weight p + (1 - weight) q, `[N, 1]`.
///
/// log(p/m) = -log(weight + (1 - weight) q/p) = -log(e^a + e^b) with a = log weight and b = log(1 - weight) - log(p/q): never a difference of two
/// large logarithms.
fn kl_to_mixture<B: Backend>(p: &Rows<B>, q: &Rows<B>, weight: f64) -> Tensor<B, 2> {
    if weight <= 0.0 {
        return kl(p, q);
    }
    if weight >= 1.0 {
        // m = p. Times 0 and not a constant: the result stays a function of the logits, with gradient 0.
        return p.log_sum.clone() * 0.0;
    }
    let a = weight.ln();
    let b = p.log_ratio(q).neg() + (1.0 - weight).ln();
    // A constant of the gradient: its two contributions cancel.
    let max = b.clone().detach().clamp_min(a);
    let log_sum = ((max.clone().neg() + a).exp() + (b - max.clone()).exp()).log() + max;
    (p.probs() * log_sum).sum_dim(1).neg()
}

/// -log p_s(label) of each row. Every label must lie in the vocabulary; rows without one are the caller's mask.
/// # Shapes
/// logits `[N, V]`, labels `[N]` -> `[N]`
pub fn row_cross_entropy<B: Backend>(logits: Tensor<B, 2>, labels: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    log_softmax(logits, 1.0).gather(1, labels.unsqueeze_dim(1)).squeeze_dim::<1>(1).neg()
}

/// What the KD loss is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KdWeights {
    pub ce_weight: f64,
    /// The paper's lambda. 0 = the teacher is not needed.
    pub kl_weight: f64,
    pub divergence: Divergence,
    /// Of the divergence; the cross-entropy is always at 1.
    pub temperature: f64,
}

/// ce_weight · CE + kl_weight · D(p_t, p_s) of each row. A weight of 0 leaves its term out altogether.
/// # Shapes
/// student `[N, V_s]`, teacher `[N, V_t]`, labels `[N]` -> `[N]`
/// # Panics
/// If `kl_weight` is not 0 and there is no teacher.
/// # Source
/// `method §3`
pub fn kd_rows<B: Backend>(
    student: Tensor<B, 2>,
    teacher: Option<Tensor<B, 2>>,
    labels: Tensor<B, 1, Int>,
    weights: KdWeights,
) -> Tensor<B, 1> {
    let divergence = (weights.kl_weight != 0.0).then(|| {
        let teacher = teacher.expect("a KD loss with a divergence term is given the teacher's logits");
        row_divergence(student.clone(), teacher, weights.divergence, weights.temperature) * weights.kl_weight
    });
    match divergence {
        Some(rows) if weights.ce_weight == 0.0 => rows,
        Some(rows) => rows + row_cross_entropy(student, labels) * weights.ce_weight,
        None => row_cross_entropy(student, labels) * weights.ce_weight,
    }
}

/// The masked mean of [`kd_rows`] over the step's token count.
/// # Shapes
/// mask `[N]` -> `[1]`
pub fn kd_loss<B: Backend>(
    student: Tensor<B, 2>,
    teacher: Option<Tensor<B, 2>>,
    labels: Tensor<B, 1, Int>,
    mask: Tensor<B, 1>,
    weights: KdWeights,
    normaliser: f64,
) -> Tensor<B, 1> {
    masked_mean(kd_rows(student, teacher, labels, weights), mask, normaliser)
}

/// TAID's interpolation parameter t over training: never below a straight line from `t_start` to `t_end`, faster while the loss falls.
///
/// m <- beta m + (1 - beta) (l_prev - l)/l_prev,  t <- min(t_end, max(line(step), t + alpha sigmoid(m) (1 - t))). Part of a checkpoint.
/// # Source
/// `method §5`
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaidSchedule {
    pub t_start: f64,
    pub t_end: f64,
    pub alpha: f64,
    pub beta: f64,
    pub t: f64,
    pub momentum: f64,
    /// The last loss; `None` before the first update.
    pub prev_loss: Option<f64>,
}

/// Keeps the relative change finite where the previous loss was 0.
const TAID_EPS: f64 = 1e-15;

impl TaidSchedule {
    /// Published values: t_start 0.4, t_end 1.0, alpha 5e-4, beta 0.99.
    pub fn new(t_start: f64, t_end: f64, alpha: f64, beta: f64) -> Self {
        Self { t_start, t_end, alpha, beta, t: t_start, momentum: 0.0, prev_loss: None }
    }

    /// After step `step` (from 0) of `n_steps` had loss `loss`. Returns the adaptive increment; the first call only remembers the loss.
    pub fn update(&mut self, loss: f64, step: usize, n_steps: usize) -> Option<f64> {
        let prev_loss = self.prev_loss.replace(loss)?;
        self.momentum = self.beta * self.momentum + (1.0 - self.beta) * (prev_loss - loss) / (prev_loss + TAID_EPS);
        let sigmoid = 1.0 / (1.0 + (-self.momentum).exp());
        let increment = self.alpha * sigmoid * (1.0 - self.t);
        let line = self.t_start + (self.t_end - self.t_start) * step as f64 / n_steps as f64;
        self.t = (self.t + increment).max(line).min(self.t_end);
        Some(increment)
    }
}

#[cfg(test)]
mod tests;
