//! Family `ppo`: the selective token reward, GAE, GRPO, whitening, policy and value losses with
//! gradients, on recorded episodes; and the pieces.
//!
//! The fixtures' arrays are [B, P+R] masks and [B, R] response columns; the reference lets GAE run
//! over padding too. The row functions of `algo` are used on exactly those columns.
use super::{
    Case, FixtureError, Tensors, Tolerance, cases_of,
    fixtures::{count, member, number, numbers, object, read_json, strings, text},
};
use crate::reference::advantage::whiten_keep_mean;
use burn::tensor::{Tensor, TensorData};
use dgpo_core::{
    algo::{
        advantage,
        kl::{self, TokenKl},
        masked_mean, ppo,
    },
    settings::{KlEstimator, KlMode},
};
use dgpo_kernels::to_host;
use dgpo_models::{
    TrainBackend,
    heads::{row_divergence, token_log_probs},
};
use serde_json::Value;
use std::path::Path;

const TENSOR: Tolerance = Tolerance::abs(2e-5);
/// The floor is the rounding of the reference's own f32 mean of terms of size 1 where the mean
/// nearly cancels (1.4e-7 seen at -0.006).
const SCALAR: Tolerance = Tolerance::abs(1e-6).or_rel(2e-5);
const ADAPTIVE: Tolerance = Tolerance::rel(1e-9);

/// What the reference's adaptive controller was built with (its defaults); only its inputs and
/// outputs are recorded.
const ADAPTIVE_START: kl::KlController =
    kl::KlController { coef: 0.2, target: 6.0, horizon: 10_000.0 };
const ADAPTIVE_EPISODES: usize = 256;

pub(super) fn run<B: TrainBackend>(dir: &Path, device: &B::Device) -> Vec<Case> {
    cases_of(dir, |name, path, case| {
        if name == "values.json" {
            for name in object(&read_json(path)?, "values.json")?.keys() {
                case.equal(
                    &format!("{name}.safetensors exists"),
                    &dir.join(format!("{name}.safetensors")).is_file(),
                    &true,
                );
            }
            return Ok(());
        }
        let Some(stem) = name.strip_suffix(".safetensors") else {
            case.fail_unknown([name.to_owned()]);
            return Ok(());
        };
        let values = read_json(&dir.join("values.json"))?;
        let (tensors, values) = (Tensors::open(path)?, member(&values, stem)?);
        if stem.starts_with("pieces") {
            pieces::<B>(&tensors, values, device, case)?;
        } else {
            episode::<B>(&tensors, values, device, case)?;
        }
        case.fail_unknown(tensors.unused());
        Ok(())
    })
}

/// The reference's names of the estimators.
fn parse_estimator(name: &str) -> Option<KlEstimator> {
    match name {
        "kl" | "k1" => Some(KlEstimator::K1),
        "rkl" => Some(KlEstimator::K1Reversed),
        "abs" => Some(KlEstimator::Abs),
        "mse" | "k2" => Some(KlEstimator::Mse),
        "low_var_kl" | "k3" => Some(KlEstimator::K3),
        "low_var_rkl" => Some(KlEstimator::K3Reversed),
        _ => None,
    }
}

/// The columns of one recorded batch.
struct RecordedEpisode {
    n_rows: usize,
    n_cols: usize,
    /// [B, R] agent tokens; valid response tokens; the attention mask one column to the left (value
    /// mask).
    info_mask: Vec<bool>,
    attention_mask: Vec<bool>,
    value_mask: Vec<bool>,
    scores: Vec<f32>,
    old_log_probs: Vec<f32>,
    ref_log_probs: Vec<f32>,
    log_probs: Vec<f32>,
    values: Vec<f32>,
    vpreds: Vec<f32>,
}

impl RecordedEpisode {
    fn new(tensors: &Tensors, shape: &Value) -> Result<Self, FixtureError> {
        let (n_rows, n_prompt, n_cols) =
            (count(shape, "batch")?, count(shape, "prompt")?, count(shape, "response")?);
        if n_prompt == 0 {
            return Err(FixtureError::Value {
                key: "shape.prompt".into(),
                found: "0".into(),
                expected: "a prompt of at least one column",
            });
        }
        let n_total = n_prompt + n_cols;
        // The ids themselves play no role in any of the equations.
        tensors.integers_of("in.responses", &[n_rows, n_cols])?;
        let columns = |mask: &[i64], from: usize| -> Vec<bool> {
            mask.chunks(n_total)
                .flat_map(|row| &row[from..from + n_cols])
                .map(|&m| m != 0)
                .collect()
        };
        let attention = tensors.integers_of("in.attention_mask", &[n_rows, n_total])?;
        let info = tensors.integers_of("in.info_mask", &[n_rows, n_total])?;
        let floats = |key: &str| tensors.floats_of(key, &[n_rows, n_cols]);
        Ok(Self {
            n_rows,
            n_cols,
            info_mask: columns(&info, n_prompt),
            attention_mask: columns(&attention, n_prompt),
            value_mask: columns(&attention, n_prompt - 1),
            scores: floats("in.token_level_scores")?,
            old_log_probs: floats("in.old_log_probs")?,
            ref_log_probs: floats("in.ref_log_prob")?,
            log_probs: floats("in.log_prob")?,
            values: floats("in.values")?,
            vpreds: floats("in.vpreds")?,
        })
    }

    fn rows(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        (0..self.n_rows).map(|row| row * self.n_cols..(row + 1) * self.n_cols)
    }

    /// Token rewards [B, R] and the KL metric.
    fn rewards(&self, estimator: KlEstimator, mode: KlMode, coef: f64) -> (Vec<f32>, f64) {
        let kl: Vec<f32> = self
            .old_log_probs
            .iter()
            .zip(&self.ref_log_probs)
            .filter_map(|(&old, &reference)| sampled(estimator, old, reference))
            .collect();
        let (mut rewards, mut sum_kl) = (Vec::new(), 0.0);
        for row in self.rows() {
            let (scores, kl, mask) =
                (&self.scores[row.clone()], &kl[row.clone()], &self.info_mask[row]);
            let is_penalised = kl::is_penalised(mode, scores);
            rewards.extend(kl::row_rewards(scores, kl, mask, is_penalised, coef));
            sum_kl += kl::row_mean_kl(kl, mask, is_penalised);
        }
        (rewards, sum_kl / self.n_rows.max(1) as f64)
    }
}

fn episode<B: TrainBackend>(
    tensors: &Tensors,
    values: &Value,
    device: &B::Device,
    case: &mut Case,
) -> Result<(), FixtureError> {
    let episode = RecordedEpisode::new(tensors, member(values, "shape")?)?;
    for (group, expected) in
        object(values, "values.json")?.iter().filter(|(group, _)| *group != "shape")
    {
        let mode = match group.split('.').next() {
            Some("dgpo" | "grpo") => KlMode::Selective,
            Some("searchr1") => KlMode::Uniform,
            _ => {
                case.fail(group, "unknown group: dgpo.N, searchr1.N and grpo are known");
                continue;
            }
        };
        one_group::<B>(&episode, group, mode, (tensors, expected), device, case)?;
    }
    Ok(())
}

fn one_group<B: TrainBackend>(
    episode: &RecordedEpisode,
    group: &str,
    mode: KlMode,
    (tensors, expected): (&Tensors, &Value),
    device: &B::Device,
    case: &mut Case,
) -> Result<(), FixtureError> {
    let params = member(expected, "params")?;
    let known = [
        "kl_penalty",
        "kl_coef",
        "gamma",
        "lam",
        "cliprange",
        "cliprange_value",
        "advantage",
        "uid",
    ];
    case.fail_unknown(
        object(params, "params")?
            .keys()
            .filter(|key| !known.contains(&key.as_str()))
            .map(|key| format!("{group}.params.{key}")),
    );
    let penalty = text(params, "kl_penalty")?;
    let Some(estimator) = parse_estimator(penalty) else {
        case.fail(group, format!("unknown kl_penalty \"{penalty}\""));
        return Ok(());
    };
    let shape = [episode.n_rows, episode.n_cols];
    let key = |name: &str| format!("{group}.{name}");
    let tensor = |name: &str| tensors.floats_of(&key(name), &shape);

    let (rewards, kl_metric) = episode.rewards(estimator, mode, number(params, "kl_coef")?);
    case.close(&key("token_level_rewards"), &rewards, &tensor("token_level_rewards")?, TENSOR);
    case.scalar(&key("kl_metric"), kl_metric, number(expected, "kl_metric")?, SCALAR);

    let (advantages, returns) = match text(params, "advantage")? {
        "gae" => gae(episode, &rewards, number(params, "gamma")?, number(params, "lam")?),
        "grpo" => grpo(episode, &rewards, &strings(params, "uid")?)?,
        other => {
            case.fail(group, format!("unknown advantage \"{other}\""));
            return Ok(());
        }
    };
    case.close(&key("advantages"), &advantages, &tensor("advantages")?, TENSOR);
    case.close(&key("returns"), &returns, &tensor("returns")?, TENSOR);

    for (part, result) in object(expected, group)? {
        let (loss, grad_key, stats) = match part.as_str() {
            "params" | "kl_metric" => continue,
            "state_masked" | "unmasked" => {
                let mask =
                    if part == "unmasked" { &episode.attention_mask } else { &episode.info_mask };
                policy::<B>(episode, &advantages, mask, number(params, "cliprange")?, device)
            }
            "value" => value::<B>(episode, &returns, number(params, "cliprange_value")?, device),
            _ => {
                case.fail_unknown([key(part)]);
                continue;
            }
        };
        for (name, expected) in object(result, part)? {
            let key = key(&format!("{part}.{name}"));
            match stats.iter().find(|(known, _)| known == name) {
                Some(&(_, got)) => case.number(&key, got, expected, SCALAR),
                // Says in words which mask the numbers were made with.
                None if name == "mask" => {}
                None => case.fail_unknown([key]),
            }
        }
        let grad_key = key(&format!("{part}.{grad_key}"));
        case.close(&grad_key, &loss, &tensors.floats_of(&grad_key, &shape)?, TENSOR);
    }
    Ok(())
}

/// GAE over every column, padding included; whitened over the valid response tokens.
fn gae(
    episode: &RecordedEpisode,
    rewards: &[f32],
    gamma: f64,
    lambda: f64,
) -> (Vec<f32>, Vec<f32>) {
    let mut advantages: Vec<f32> = episode
        .rows()
        .flat_map(|row| {
            advantage::gae_row(&rewards[row.clone()], &episode.values[row], gamma, lambda)
        })
        .collect();
    let returns = advantages.iter().zip(&episode.values).map(|(a, v)| a + v).collect();
    advantage::whiten(&mut advantages, &episode.attention_mask);
    (advantages, returns)
}

fn grpo(
    episode: &RecordedEpisode,
    rewards: &[f32],
    groups: &[String],
) -> Result<(Vec<f32>, Vec<f32>), FixtureError> {
    if groups.len() != episode.n_rows {
        return Err(FixtureError::Shape {
            key: "uid".into(),
            shape: vec![groups.len()],
            expected: format!("{} rows", episode.n_rows),
        });
    }
    let scores: Vec<f32> = episode.rows().map(|row| rewards[row].iter().sum()).collect();
    let rows = advantage::group_advantages(&scores, groups);
    let advantages: Vec<f32> = episode
        .attention_mask
        .iter()
        .enumerate()
        .map(|(i, &valid)| if valid { rows[i / episode.n_cols] } else { 0.0 })
        .collect();
    Ok((advantages.clone(), advantages))
}

/// Gradient, the gradient's key, and scalars by their keys.
type LossResult = (Vec<f32>, &'static str, Vec<(&'static str, f64)>);

fn policy<B: TrainBackend>(
    episode: &RecordedEpisode,
    advantages: &[f32],
    mask: &[bool],
    clip_ratio: f64,
    device: &B::Device,
) -> LossResult {
    let log_probs = vector::<B>(&episode.log_probs, device).require_grad();
    let tokens = ppo::PolicyTokens {
        log_probs: log_probs.clone(),
        old_log_probs: vector(&episode.old_log_probs, device),
        advantages: vector(advantages, device),
        mask: mask_vector(mask, device),
    };
    let (loss, stats) = ppo::policy_loss(tokens, clip_ratio, n_true(mask));
    let scalars = vec![
        ("pg_loss", stats.loss),
        ("pg_clipfrac", stats.clip_fraction),
        ("ppo_kl", stats.old_approx_kl),
    ];
    (gradient(loss, log_probs), "grad_log_prob", scalars)
}

fn value<B: TrainBackend>(
    episode: &RecordedEpisode,
    returns: &[f32],
    clip_value: f64,
    device: &B::Device,
) -> LossResult {
    let values = vector::<B>(&episode.vpreds, device).require_grad();
    let tokens = ppo::ValueTokens {
        values: values.clone(),
        old_values: vector(&episode.values, device),
        returns: vector(returns, device),
        mask: mask_vector(&episode.value_mask, device),
    };
    let (loss, stats) = ppo::value_loss(tokens, clip_value, n_true(&episode.value_mask));
    (
        gradient(loss, values),
        "grad_vpreds",
        vec![("vf_loss", stats.loss), ("vf_clipfrac", stats.clip_fraction)],
    )
}

fn gradient<B: TrainBackend>(loss: Tensor<B, 1>, of: Tensor<B, 1>) -> Vec<f32> {
    let mut grads = loss.backward();
    of.grad_remove(&mut grads).map(to_host).unwrap_or_default()
}

pub(super) fn vector<B: TrainBackend>(values: &[f32], device: &B::Device) -> Tensor<B, 1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

pub(super) fn mask_vector<B: TrainBackend>(mask: &[bool], device: &B::Device) -> Tensor<B, 1> {
    vector(&mask.iter().map(|&m| f32::from(m)).collect::<Vec<_>>(), device)
}

pub(super) fn n_true(mask: &[bool]) -> f64 {
    mask.iter().filter(|&&m| m).count() as f64
}

/// Log-probs, entropies, estimators, exact KL, masked statistics, the adaptive controller: each on
/// its own.
fn pieces<B: TrainBackend>(
    tensors: &Tensors,
    values: &Value,
    device: &B::Device,
    case: &mut Case,
) -> Result<(), FixtureError> {
    let logits = tensors.floats("logits")?;
    let [rows, cols, vocab] = logits.dims::<3>("logits")?;
    let shape = [rows, cols];
    let n = rows * cols;
    let labels = tensors.integers_of("labels", &shape)?;
    if labels.iter().any(|label| !(0..vocab as i64).contains(label)) {
        return Err(FixtureError::Value {
            key: "labels".into(),
            found: format!("{labels:?}"),
            expected: "ids of the vocabulary",
        });
    }
    let mask: Vec<bool> =
        tensors.integers_of("mask", &shape)?.into_iter().map(|m| m != 0).collect();
    let x = tensors.floats_of("x", &shape)?;
    let matrix =
        |data: Vec<f32>| Tensor::<B, 2>::from_data(TensorData::new(data, [n, vocab]), device);
    let (logits, ref_logits) =
        (matrix(logits.data), matrix(tensors.floats_of("ref_logits", &[rows, cols, vocab])?));
    let labels = Tensor::from_data(TensorData::new(labels, [n]), device);
    let log_probs = to_host(token_log_probs(logits.clone(), labels.clone(), 1.0).log_probs);
    let ref_log_probs = to_host(token_log_probs(ref_logits.clone(), labels.clone(), 1.0).log_probs);
    let entropy = token_log_probs(logits.clone(), labels.clone(), 1.0).entropy;

    let keys: Vec<String> = tensors.keys().map(str::to_owned).collect();
    for key in &keys {
        let temperature = |prefix: &str| key.strip_prefix(prefix)?.parse::<f64>().ok();
        let got = if let Some(temperature) = temperature("logprobs_T") {
            to_host(token_log_probs(logits.clone(), labels.clone(), temperature).log_probs)
        } else if let Some(temperature) = temperature("entropy_T") {
            to_host(token_log_probs(logits.clone(), labels.clone(), temperature).entropy)
        } else if let Some(estimator) = key.strip_prefix("kl_penalty.").and_then(parse_estimator) {
            estimates(estimator, &log_probs, &ref_log_probs)
        } else if let Some(estimator) = key
            .strip_prefix("kl_penalty.")
            .and_then(|name| name.split_once("_clamped"))
            .and_then(|(name, _)| parse_estimator(name))
        {
            let (log_probs, reference) =
                (tensors.floats("clamp.logprob")?, tensors.floats("clamp.ref_logprob")?);
            estimates(estimator, &log_probs.data, &reference.data)
        } else if let Some(eos) =
            key.strip_prefix("eos.mask_for_eos").and_then(|id| id.parse::<i64>().ok())
        {
            let response = tensors.integers("eos.response")?;
            let mask = tensors.integers_of(key, &response.shape)?;
            case.equal(
                key,
                &eos_mask(&response.data, response.shape.last().copied().unwrap_or(1), eos),
                &mask,
            );
            continue;
        } else {
            match key.as_str() {
                "full_kl_policy_ref" => full_kl(KlEstimator::Full, &logits, &ref_logits),
                "full_kl_ref_policy" => full_kl(KlEstimator::FullReversed, &logits, &ref_logits),
                "masked_whiten" => in_place(&x, |x| advantage::whiten(x, &mask)),
                "masked_whiten_keep_mean" => in_place(&x, |x| whiten_keep_mean(x, &mask)),
                _ => continue,
            }
        };
        case.close(key, &got, &tensors.floats(key)?.data, TENSOR);
    }
    let (x, mask_tensor) = (vector::<B>(&x, device), mask_vector::<B>(&mask, device));
    for (key, expected) in object(values, "pieces")? {
        let mean = |values: Tensor<B, 1>| {
            f64::from(to_host(masked_mean(values, mask_tensor.clone(), n_true(&mask)))[0])
        };
        match key.as_str() {
            "masked_mean" => case.number(key, mean(x.clone()), expected, SCALAR),
            "masked_var_unbiased" => {
                let variance = advantage::masked_mean_and_variance(&to_host(x.clone()), &mask)
                    .map_or(f64::NAN, |(_, variance)| variance);
                case.number(key, variance, expected, SCALAR);
            }
            "entropy_loss" => {
                let bonus = ppo::entropy_bonus(entropy.clone(), mask_tensor.clone(), n_true(&mask));
                case.number(key, f64::from(to_host(bonus)[0]), expected, SCALAR);
            }
            "adaptive_kl" => adaptive_kl(expected, key, case)?,
            _ => case.fail_unknown([key.clone()]),
        }
    }
    Ok(())
}

/// Estimate of an estimator that needs no distribution.
fn sampled(estimator: KlEstimator, log_prob: f32, ref_log_prob: f32) -> Option<f32> {
    match estimator.into() {
        TokenKl::Sampled(estimator) => Some(kl::estimate(estimator, log_prob, ref_log_prob)),
        TokenKl::Exact(_) => None,
    }
}

fn estimates(estimator: KlEstimator, log_probs: &[f32], ref_log_probs: &[f32]) -> Vec<f32> {
    log_probs.iter().zip(ref_log_probs).filter_map(|(&p, &r)| sampled(estimator, p, r)).collect()
}

fn full_kl<B: TrainBackend>(
    estimator: KlEstimator,
    logits: &Tensor<B, 2>,
    ref_logits: &Tensor<B, 2>,
) -> Vec<f32> {
    let exact =
        |divergence| to_host(row_divergence(logits.clone(), ref_logits.clone(), divergence, 1.0));
    match estimator.into() {
        TokenKl::Exact(divergence) => exact(divergence),
        TokenKl::Sampled(_) => Vec::new(),
    }
}

fn in_place(values: &[f32], change: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let mut values = values.to_vec();
    change(&mut values);
    values
}

/// A response ends with its first EOS, which is kept: what `Segment::Agent` holds, as a mask.
fn eos_mask(ids: &[i64], n_cols: usize, eos: i64) -> Vec<i64> {
    let row_mask = |row: &[i64]| -> Vec<i64> {
        let length = row.iter().position(|&id| id == eos).map_or(row.len(), |at| at + 1);
        (0..row.len()).map(|t| i64::from(t < length)).collect()
    };
    ids.chunks(n_cols.max(1)).flat_map(row_mask).collect()
}

/// Pairs (KL, coefficient after the update).
fn adaptive_kl(expected: &Value, key: &str, case: &mut Case) -> Result<(), FixtureError> {
    let pairs = expected.as_array().ok_or_else(|| FixtureError::Missing(key.to_owned()))?;
    let mut controller = ADAPTIVE_START;
    let (mut got, mut want) = (Vec::new(), Vec::new());
    for pair in pairs {
        let pair = numbers(&serde_json::json!({ "pair": pair }), "pair")?;
        let [mean_kl, coef] = pair[..] else {
            return Err(FixtureError::Shape {
                key: key.to_owned(),
                shape: vec![pair.len()],
                expected: "pairs".into(),
            });
        };
        controller.update(mean_kl, ADAPTIVE_EPISODES);
        got.push(controller.coef);
        want.push(coef);
    }
    case.close_f64(key, &got, &want, ADAPTIVE);
    Ok(())
}
