//! The operations in plain tensor operations, as one writes them without this crate: what the fused
//! bodies are timed against.
//!
//! Everything over the vocabulary is computed in f32, as the fused bodies do; the rest in the
//! inputs' type.
use super::Turns;
use crate::{
    Divergence, KernelOps,
    attention::CausalRows,
    cache_write::CacheSpan,
    linear_log_probs::{HeadLayout, LinearHead},
    sample::RowSampling,
};
use burn::tensor::{
    Bool, DType, Int, Tensor, TensorData,
    activation::{log_softmax, softmax},
    s,
};

/// Score of a key that is not seen.
const MASKED: f32 = -1.0e30;

/// [N, V] in the type of the head.
pub(super) fn logits<B: KernelOps>(head: &LinearHead<B>) -> Tensor<B, 2> {
    match head.layout {
        HeadLayout::VocabRows => head.hidden.clone().matmul(head.weight.clone().transpose()),
        HeadLayout::VocabColumns => head.hidden.clone().matmul(head.weight.clone()),
    }
}

/// (d hidden, d weight) given d logits.
pub(super) fn head_gradients<B: KernelOps>(
    head: &LinearHead<B>,
    grad: Tensor<B, 2>,
) -> [Tensor<B, 2>; 2] {
    let (hidden, weight) = (head.hidden.clone(), head.weight.clone());
    match head.layout {
        HeadLayout::VocabRows => [grad.clone().matmul(weight), grad.transpose().matmul(hidden)],
        HeadLayout::VocabColumns => {
            [grad.clone().matmul(weight.transpose()), hidden.transpose().matmul(grad)]
        }
    }
}

/// log p(label) + H, and + D where there is a teacher.
pub(super) fn rows<B: KernelOps>(
    student: Tensor<B, 2>,
    teacher: Option<(Tensor<B, 2>, Divergence)>,
    labels: Tensor<B, 1, Int>,
    temperature: f64,
) -> Tensor<B, 1> {
    let n_rows = student.dims()[0];
    let log_of = |logits: Tensor<B, 2>| log_softmax(logits.cast(DType::F32) / temperature, 1);
    let log_s = log_of(student.clone());
    let log_p = log_s.clone().gather(1, labels.reshape([n_rows, 1])).squeeze_dim(1);
    let entropy = (log_s.clone().exp() * log_s.clone()).sum_dim(1).squeeze_dim(1);
    let own = log_p - entropy;
    let Some((teacher, d)) = teacher else { return own };
    let shared = student.dims()[1].min(teacher.dims()[1]);
    let is_shared = student.dims()[1] == shared;
    let log_s = if is_shared { log_s } else { log_of(student.clone().slice(s![.., 0..shared])) };
    let teacher = teacher.slice(s![.., 0..shared]);
    let log_t = log_of(teacher.clone());
    own + distance(log_s, log_t, student.slice(s![.., 0..shared]), teacher, d, temperature)
        .sum_dim(1)
        .squeeze_dim(1)
}

/// The terms of a divergence, [N, V]; logits in front of the softmax for TAID alone.
fn distance<B: KernelOps>(
    log_s: Tensor<B, 2>,
    log_t: Tensor<B, 2>,
    student: Tensor<B, 2>,
    teacher: Tensor<B, 2>,
    d: Divergence,
    temperature: f64,
) -> Tensor<B, 2> {
    let kl = |p: &Tensor<B, 2>, log_p: &Tensor<B, 2>, log_q: Tensor<B, 2>| {
        p.clone() * (log_p.clone() - log_q)
    };
    let (p_s, p_t) = (log_s.clone().exp(), log_t.clone().exp());
    let log_mix = |weight: f64| (p_s.clone() * weight + p_t.clone() * (1.0 - weight)).log();
    let jensen_shannon = |weight: f64| {
        let log_m = log_mix(weight);
        kl(&p_s, &log_s, log_m.clone()) * weight + kl(&p_t, &log_t, log_m) * (1.0 - weight)
    };
    match d {
        Divergence::ForwardKl => kl(&p_t, &log_t, log_s),
        Divergence::ForwardCrossEntropy => (p_t * log_s).neg(),
        Divergence::ReverseKl => kl(&p_s, &log_s, log_t),
        Divergence::SkewForward { alpha } => (p_t.clone() * log_mix(1.0 - alpha)).neg(),
        Divergence::SkewReverse { alpha } => kl(&p_s, &log_s, log_mix(alpha)),
        Divergence::JsDistance { lambda } => jensen_shannon(lambda),
        Divergence::TotalVariation => (p_s - p_t).abs() * 0.5,
        Divergence::SymmetricKl { lambda } => {
            (p_t.clone() * log_s.clone()).neg() * (1.0 - lambda)
                + kl(&p_s, &log_s, log_t.clone()) * lambda
        }
        Divergence::GeneralisedJsd { beta } => jensen_shannon(1.0 - beta),
        Divergence::Hinton => kl(&p_t, &log_t, log_s) * (temperature * temperature),
        Divergence::Taid { t } => {
            let target = student.detach() * (1.0 - t) + teacher * t;
            (softmax(target.cast(DType::F32) / temperature, 1) * log_s).neg()
        }
    }
}

pub(super) fn rms_norm<B: KernelOps>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 1>,
    eps: f64,
) -> Tensor<B, 2> {
    let dtype = x.dtype();
    let x = x.cast(DType::F32);
    let mean = (x.clone() * x.clone()).mean_dim(1);
    ((x / (mean + eps).sqrt()) * weight.cast(DType::F32).unsqueeze()).cast(dtype)
}

pub(super) fn rotary<B: KernelOps>(
    x: Tensor<B, 2>,
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
    turns: Turns,
) -> Tensor<B, 2> {
    let (dtype, [n_rows, width]) = (x.dtype(), x.dims());
    let table = |table: Tensor<B, 2>| {
        table.repeat_dim(0, n_rows / turns.n_positions).reshape([n_rows, 1, turns.half])
    };
    let (cos, sin) = (table(cos), table(sin));
    let x = x.cast(DType::F32).reshape([n_rows, turns.n_heads, 2 * turns.half]);
    let (a, b) = (
        x.clone().slice(s![.., .., 0..turns.half]),
        x.slice(s![.., .., turns.half..2 * turns.half]),
    );
    let turned =
        Tensor::cat(vec![a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin], 2);
    turned.reshape([n_rows, width]).cast(dtype)
}

/// Scores [B, H, Tq, Tk] as a whole, keys and values repeated for every head.
pub(super) fn attention<B: KernelOps>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    starts: &[usize],
) -> Tensor<B, 4> {
    let (dtype, device) = (q.dtype(), q.device());
    let [n_rows, n_heads, n_queries, head_dim] = q.dims();
    let [_, n_kv_heads, n_keys, _] = k.dims();
    let repeated = |x: Tensor<B, 4>| {
        let shape = [n_rows, n_kv_heads, n_heads / n_kv_heads, n_keys, head_dim];
        x.reshape([n_rows, n_kv_heads, 1, n_keys, head_dim])
            .expand(shape)
            .reshape([n_rows, n_heads, n_keys, head_dim])
    };
    let last: Vec<i32> =
        starts.iter().flat_map(|start| (0..n_queries).map(move |t| (start + t) as i32)).collect();
    let last =
        Tensor::<B, 4, Int>::from_data(TensorData::new(last, [n_rows, 1, n_queries, 1]), &device);
    let keys = Tensor::<B, 1, Int>::arange(0..n_keys as i64, &device).reshape([1, 1, 1, n_keys]);
    let is_hidden: Tensor<B, 4, Bool> = keys
        .expand([n_rows, 1, n_queries, n_keys])
        .greater(last.expand([n_rows, 1, n_queries, n_keys]));
    let scores = q.matmul(repeated(k).transpose()).cast(DType::F32) / (head_dim as f64).sqrt();
    let scores = scores.mask_fill(is_hidden.expand([n_rows, n_heads, n_queries, n_keys]), MASKED);
    softmax(scores, 3).cast(dtype).matmul(repeated(v))
}

/// The slots are copied out of the cache first.
pub(super) fn decode<B: KernelOps>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    rows: &CausalRows,
) -> Tensor<B, 4> {
    let slots: Vec<i32> = (0..rows.starts.len()).map(|b| rows.slot(b) as i32).collect();
    let n_rows = slots.len();
    let n_keys = rows.starts.iter().max().copied().unwrap_or_default() + q.dims()[2];
    let slots = Tensor::<B, 1, Int>::from_data(TensorData::new(slots, [n_rows]), &q.device());
    let of_rows = |x: Tensor<B, 4>| x.select(0, slots.clone()).slice(s![.., .., 0..n_keys, ..]);
    attention(q, of_rows(k), of_rows(v), &rows.starts)
}

/// One assignment a row.
pub(super) fn cache_write<B: KernelOps>(
    cache: Tensor<B, 4>,
    new: Tensor<B, 4>,
    spans: &[CacheSpan],
) -> Tensor<B, 4> {
    spans.iter().enumerate().fold(cache, |cache, (b, span)| {
        let values = new.clone().slice(s![b..b + 1, .., 0..span.n, ..]);
        cache.slice_assign(
            s![span.slot..span.slot + 1, .., span.start..span.start + span.n, ..],
            values,
        )
    })
}

/// Ids and log-probs of plain draws, [R, 1] each: as many entries as the cumulated probability
/// leaves below the random number.
pub fn sample<B: KernelOps>(
    logits: Tensor<B, 2>,
    rows: &[RowSampling],
) -> (Tensor<B, 2, Int>, Tensor<B, 2>) {
    let uniform: Vec<f32> =
        rows.iter().map(|row| (row.bits as f64 / 2f64.powi(64)) as f32).collect();
    let uniform = Tensor::<B, 2>::from_data(
        TensorData::new(uniform, [rows.len(), 1]),
        (&logits.device(), DType::F32),
    );
    let log_p = log_softmax(logits.cast(DType::F32), 1);
    let cumulated = log_p.clone().exp().cumsum(1);
    let shape = cumulated.shape();
    let ids = cumulated
        .lower_equal(uniform.expand(shape.clone()))
        .int()
        .sum_dim(1)
        .clamp_max((shape[1] - 1) as i64);
    (ids.clone(), log_p.gather(1, ids))
}
