//! Family `models`: the decoder against recorded forward passes, caches, generations, gradients and
//! optimizer steps.
//!
//! Fixtures pad on either side; the project pads on the right alone, so real tokens are moved to
//! the front and results moved back.
use super::{
    Case, FixtureError, Tensors, Tolerance, bert, entries,
    fixtures::{count, member, number, numbers, object, read_json},
    generation,
    network::{PaddedRows, compare_trained, gradients, norm, parameters, spread},
    one_case,
};
use burn::{
    module::{Module, Param},
    optim::{GradientsAccumulator, GradientsParams},
    tensor::{DType, Tensor, TensorData},
};
use dgpo_core::{
    algo::distill::row_cross_entropy,
    rollout::TokenIndex,
    settings::AdamWRecipe,
    trainer::{
        optimizer::{AdamW, with_gradients},
        update::{Activations, accumulate_decoder},
    },
};
use dgpo_kernels::to_host;
use dgpo_models::{
    Backend, TrainBackend,
    cache::{CacheRows, KvCache},
    decoder::Decoder,
    heads::{Critic, token_log_probs},
    rope,
    weights::load_decoder,
};
use serde_json::Value;
use std::path::Path;

pub(super) const HIDDEN: Tolerance = Tolerance::abs(1e-4);
/// Cached decoding against the project's own whole forward pass.
const CACHED: Tolerance = Tolerance::abs(5e-5);
const FAR: Tolerance = Tolerance::abs(2e-3);
const INV_FREQ: Tolerance = Tolerance::rel(1e-6);
/// cos and sin up to `FAR_POSITION`, and beyond (angles are products in f32).
const ROTATION: Tolerance = Tolerance::abs(1e-4);
const FAR_ROTATION: Tolerance = Tolerance::abs(3e-3);
const FAR_POSITION: usize = 2047;
pub(super) const GRADIENT: Tolerance = Tolerance::abs(0.0).or_rel_of_max(1e-3);
const GRADIENT_NORM: Tolerance = Tolerance::rel(1e-4);
const ADAMW_SCALAR: Tolerance = Tolerance::rel(2e-3);
const ADAMW_TENSOR: Tolerance = Tolerance::abs(1e-3);
/// In bf16 the deviation from f32 may be this many times the reference's own.
const BF16_FACTOR: f64 = 2.0;

/// A reference of inputs alone.
pub(super) const NO_RESULTS: &str = "the fixture holds inputs, but no result to compare";

/// The optimizer of the recorded steps.
const ADAMW_LR: f64 = 1e-3;

/// Recorded about the reference itself: margins, its own noise, descriptions.
fn is_metadata(key: &str) -> bool {
    key.contains("max_abs_dev")
        || ["gen.min_margin", "logit_abs_max", "activation", "gen_eos.pad_token_id", "note"]
            .contains(&key)
}

/// Every model folder of a family folder, or the one model that `dir` is.
pub(super) fn run<B: TrainBackend>(dir: &Path, device: &B::Device) -> Vec<Case> {
    let name_of = |dir: &Path| {
        dir.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    };
    if dir.join("config.json").is_file() {
        return vec![one_case(&name_of(dir), |case| model::<B>(dir, device, case))];
    }
    match entries(dir) {
        Ok(entries) => entries
            .iter()
            .map(|(name, path)| one_case(name, |case| model::<B>(path, device, case)))
            .collect(),
        Err(error) => vec![one_case("folder", |case| {
            case.fail("folder", error.to_string());
            Ok(())
        })],
    }
}

fn model<B: TrainBackend>(
    dir: &Path,
    device: &B::Device,
    case: &mut Case,
) -> Result<(), FixtureError> {
    let config = read_json(&dir.join("config.json"))?;
    if config.get("model_type").and_then(Value::as_str) == Some("bert") {
        return bert::compare::<B::InnerBackend>(dir, device, case);
    }
    let model = load_decoder::<B::InnerBackend>(dir, DType::F32, device)?;
    case.equal("number of parameters", &model.num_params(), &model.config().n_parameters());
    if !dir.join("reference.json").is_file() && !dir.join("reference.safetensors").is_file() {
        case.note(
            "reference",
            "weights alone, for another family's chain: nothing but their loading is checked",
        );
        return Ok(());
    }
    let n_checks = case.checks.len();
    let (tensors, json) = (
        Tensors::open(&dir.join("reference.safetensors"))?,
        read_json(&dir.join("reference.json"))?,
    );
    let fixture = Fixture { dir, model: &model, tensors: &tensors, json: &json, device };
    for prefix in ["left.", "right.", "far."] {
        if tensors.has(&format!("{prefix}input_ids")) {
            fixture.forward(prefix, case)?;
        }
    }
    if tensors.has("kv.step_logits") {
        fixture.cached(case)?;
    }
    if tensors.has("gen.tokens") || tensors.has("gen_eos.tokens") {
        generation::compare(&fixture, case)?;
    }
    if tensors.has("rope.positions") {
        fixture.rotations(case)?;
    }
    if tensors.has("grad.labels") {
        training::<B>(&fixture, case)?;
    }
    // The number of parameters says nothing about what they compute.
    if case.checks.len() == n_checks {
        case.fail("reference", NO_RESULTS);
    }
    for key in object(&json, "reference.json")?.keys() {
        match key.as_str() {
            "params" => case.equal(key, &model.num_params(), &count(&json, key)?),
            "kv.n_layers_cached" => {
                case.equal(key, &model.config().num_hidden_layers, &count(&json, key)?)
            }
            // Angles are scaled, never amplitudes: no other kind of RoPE is accepted.
            "rope.attention_scaling" => case.scalar(key, 1.0, number(&json, key)?, INV_FREQ),
            // Read with the tensors they belong to; without those, nobody has looked at them.
            "kv.steps" if tensors.has("kv.step_logits") => {}
            "gen.max_new_tokens" if tensors.has("gen.tokens") || tensors.has("gen_eos.tokens") => {}
            "gen_eos.eos_token_id" if tensors.has("gen_eos.tokens") => {}
            "grad.loss" | "grad.norms" | "grad.total_norm" | "adamw.losses"
                if tensors.has("grad.labels") => {}
            "adamw.grad_norms"
                if tensors.has("grad.labels") && json.get("adamw.losses").is_some() => {}
            key if is_metadata(key) => {}
            _ => case.fail_unknown([key.clone()]),
        }
    }
    case.fail_unknown(tensors.unused());
    Ok(())
}

/// A model with its reference.
pub(super) struct Fixture<'a, B: Backend> {
    dir: &'a Path,
    pub(super) model: &'a Decoder<B>,
    pub(super) tensors: &'a Tensors,
    pub(super) json: &'a Value,
    pub(super) device: &'a B::Device,
}

impl<B: Backend> Fixture<'_, B> {
    /// Logits of all real tokens of a batch, in the fixture's [B, T, V].
    fn logits(&self, model: &Decoder<B>, rows: &PaddedRows) -> Vec<f32> {
        let real = rows.real();
        let logits = model.logits(real.gather(rows.hidden(model, self.device)));
        let vocab = logits.dims()[1];
        spread(&real, &to_host(logits), vocab, rows.n_rows() * rows.n_cols)
    }

    /// Everything read off one forward pass over a padded batch.
    fn forward(&self, prefix: &str, case: &mut Case) -> Result<(), FixtureError> {
        let rows = PaddedRows::read(self.tensors, prefix)?;
        let (n_rows, n_cols, vocab, width) = (
            rows.n_rows(),
            rows.n_cols,
            self.model.config().vocab_size,
            self.model.config().hidden_size,
        );
        let real = rows.real();
        let is_real = |entry: usize| real.at.contains(&entry);
        let keys: Vec<String> =
            self.tensors.keys().filter(|key| key.starts_with(prefix)).map(str::to_owned).collect();
        for key in keys {
            let name = &key[prefix.len()..];
            let temperature = |prefix: &str| name.strip_prefix(prefix)?.parse::<f64>().ok();
            if name == "logits" {
                let tolerance = if prefix == "far." { FAR } else { HIDDEN };
                let expected = self.tensors.floats_of(&key, &[n_rows, n_cols, vocab])?;
                case.close_where(
                    &key,
                    &self.logits(self.model, &rows),
                    &expected,
                    |i| is_real(i / vocab),
                    tolerance,
                );
            } else if name == "hidden_states" {
                let states =
                    self.model.all_hidden(rows.ids(self.device), Some(rows.positions(self.device)));
                let n_entries = n_rows * n_cols;
                let expected =
                    self.tensors.floats_of(&key, &[states.len(), n_rows, n_cols, width])?;
                let got: Vec<f32> = states
                    .into_iter()
                    .flat_map(|state| spread(&real, &to_host(real.gather(state)), width, n_entries))
                    .collect();
                case.close_where(&key, &got, &expected, |i| is_real(i / width % n_entries), HIDDEN);
            } else if name == "logits_bf16_compute" {
                self.bf16(&rows, prefix, case)?;
            } else if let Some(temperature) = temperature("token_logprobs_T") {
                self.token_log_probs(&rows, &key, temperature, false, case)?;
            } else if let Some(temperature) = temperature("entropy_T") {
                self.token_log_probs(&rows, &key, temperature, true, case)?;
            }
        }
        Ok(())
    }

    /// log p of each next token, or the entropy there, stored at the column before it: [B, T-1].
    fn token_log_probs(
        &self,
        rows: &PaddedRows,
        key: &str,
        temperature: f64,
        is_entropy: bool,
        case: &mut Case,
    ) -> Result<(), FixtureError> {
        let shape = [rows.n_rows(), rows.n_cols - 1];
        let index = rows.next_tokens();
        let hidden = index.gather(rows.hidden(self.model, self.device));
        let read =
            token_log_probs(self.model.head(hidden), index.labels_tensor(self.device), temperature);
        let got = to_host(if is_entropy { read.entropy } else { read.log_probs });
        let got = spread(&index, &got, 1, shape[0] * shape[1]);
        // Entropies are recorded at the last real column too where it is followed by padding; they
        // are 0 by definition only for log-probs.
        let is_next = |i: usize| index.at.contains(&i);
        let expected = self.tensors.floats_of(key, &shape)?;
        case.close_where(key, &got, &expected, |i| is_next(i) || !is_entropy, HIDDEN);
        Ok(())
    }

    /// Everything in bf16: only a sanity bound, relative to how far the reference itself is from
    /// its f32 logits.
    fn bf16(&self, rows: &PaddedRows, prefix: &str, case: &mut Case) -> Result<(), FixtureError> {
        let key = format!("{prefix}logits_bf16_compute");
        let vocab = self.model.config().vocab_size;
        let shape = [rows.n_rows(), rows.n_cols, vocab];
        let recorded = self.tensors.floats_of(&key, &shape)?;
        let real = rows.real();
        let expected = self.tensors.floats_of(&format!("{prefix}logits"), &shape)?;
        // The bound is the reference's own deviation as its logits show it; the number beside them
        // must be that one.
        let deviation = (0..expected.len())
            .filter(|i| real.at.contains(&(i / vocab)))
            .map(|i| f64::from((recorded[i] - expected[i]).abs()))
            .fold(0.0, |max, x| if x > max || x.is_nan() { x } else { max });
        let dev_key = format!("{prefix}bf16_compute_max_abs_dev");
        case.scalar(&dev_key, deviation, number(self.json, &dev_key)?, Tolerance::rel(1e-3));
        if !B::supports_dtype(self.device, DType::BF16) {
            case.note(&key, "not compared: the device does not compute in bf16");
            return Ok(());
        }
        let model = load_decoder::<B>(self.dir, DType::BF16, self.device)?;
        let allowed = Tolerance::abs(BF16_FACTOR * deviation);
        case.close_where(
            &key,
            &self.logits(&model, rows),
            &expected,
            |i| real.at.contains(&(i / vocab)),
            allowed,
        );
        Ok(())
    }

    /// Prefill on all but the last columns of the left batch, then one token a step with the cache.
    fn cached(&self, case: &mut Case) -> Result<(), FixtureError> {
        let rows = PaddedRows::read(self.tensors, "left.")?;
        let n_steps = count(self.json, "kv.steps")?;
        let vocab = self.model.config().vocab_size;
        let expected =
            self.tensors.floats_of("kv.step_logits", &[rows.n_rows(), n_steps + 1, vocab])?;
        let whole = self.logits(self.model, &rows);
        let n_prefill = rows.n_cols.saturating_sub(n_steps);
        let mut cache = KvCache::new(&self.model.config(), rows.n_rows(), rows.n_cols, self.device);
        let (mut got, mut uncached) = (vec![0.0; expected.len()], vec![0.0; expected.len()]);
        for step in 0..=n_steps {
            let columns =
                if step == 0 { 0..n_prefill } else { n_prefill + step - 1..n_prefill + step };
            let new_ids = |row: usize| -> Vec<i64> {
                let is_new = rows.columns[row].iter().map(|col| columns.contains(col));
                rows.row_ids(row)
                    .into_iter()
                    .zip(is_new)
                    .filter(|(_, is_new)| *is_new)
                    .map(|(id, _)| id)
                    .collect()
            };
            // A row whose real tokens have not begun takes no part.
            let active: Vec<(usize, Vec<i64>)> = (0..rows.n_rows())
                .map(|row| (row, new_ids(row)))
                .filter(|(_, ids)| !ids.is_empty())
                .collect();
            for (row, logits) in self.append(&mut cache, &active) {
                let entry = (row * (n_steps + 1) + step) * vocab;
                got[entry..entry + vocab].copy_from_slice(&logits);
                let at = (row * rows.n_cols + columns.end - 1) * vocab;
                uncached[entry..entry + vocab].copy_from_slice(&whole[at..at + vocab]);
            }
        }
        case.close("kv.step_logits", &got, &expected, HIDDEN);
        case.close("kv.step_logits = whole forward", &got, &uncached, CACHED);
        Ok(())
    }

    /// Appends ids to cached rows; the logits behind each row's last id.
    pub(super) fn append(
        &self,
        cache: &mut KvCache<B>,
        rows: &[(usize, Vec<i64>)],
    ) -> Vec<(usize, Vec<f32>)> {
        if rows.is_empty() {
            return Vec::new();
        }
        let width = rows.iter().map(|(_, ids)| ids.len()).max().unwrap_or(0);
        let data: Vec<i64> = rows
            .iter()
            .flat_map(|(_, ids)| (0..width).map(|t| ids.get(t).copied().unwrap_or(0)))
            .collect();
        let ids = Tensor::from_data(TensorData::new(data, [rows.len(), width]), self.device);
        let slots: Vec<usize> = rows.iter().map(|&(row, _)| row).collect();
        let n_new: Vec<usize> = rows.iter().map(|(_, ids)| ids.len()).collect();
        let hidden =
            self.model.hidden(ids, None, Some(CacheRows { cache, slots: &slots, n_new: &n_new }));
        let last = TokenIndex {
            hidden: n_new.iter().enumerate().map(|(i, n)| i * width + n - 1).collect(),
            labels: vec![0; rows.len()],
            at: Vec::new(),
        };
        let logits = to_host(self.model.logits(last.gather(hidden)));
        slots
            .into_iter()
            .zip(logits.chunks(logits.len() / rows.len()).map(<[f32]>::to_vec))
            .collect()
    }

    fn rotations(&self, case: &mut Case) -> Result<(), FixtureError> {
        let config = self.model.config();
        case.close(
            "rope.inv_freq",
            &rope::inv_freq(&config),
            &self.tensors.floats("rope.inv_freq")?.data,
            INV_FREQ,
        );
        let positions: Vec<usize> = self
            .tensors
            .integers("rope.positions")?
            .data
            .into_iter()
            .map(|p| p.max(0) as usize)
            .collect();
        let (cos, sin) = rope::tables(&config, &positions);
        let half = config.head_dim / 2;
        for (key, table) in [("rope.cos", cos), ("rope.sin", sin)] {
            // The reference stores both halves of the rotate-half layout, which are equal.
            let both: Vec<f32> =
                table.chunks(half.max(1)).flat_map(|row| row.iter().chain(row).copied()).collect();
            let expected = self.tensors.floats_of(key, &[positions.len(), 2 * half])?;
            let is_near = |i: usize| positions[i / (2 * half)] <= FAR_POSITION;
            if (0..both.len()).any(is_near) {
                case.close_where(key, &both, &expected, is_near, ROTATION);
            }
            if (0..both.len()).any(|i| !is_near(i)) {
                case.close_where(
                    &format!("{key}, far"),
                    &both,
                    &expected,
                    |i| !is_near(i),
                    FAR_ROTATION,
                );
            }
        }
        Ok(())
    }
}

/// Loss and gradients of the mean next-token cross-entropy over the labelled tokens of the right
/// batch.
fn cross_entropy<B: TrainBackend>(
    model: &Decoder<B::InnerBackend>,
    rows: &PaddedRows,
    index: &TokenIndex,
    device: &B::Device,
) -> (f64, GradientsParams) {
    let recording: Decoder<B> = with_gradients(model.clone());
    let mut sums = GradientsAccumulator::new();
    let mut loss = 0.0;
    let normaliser = index.len().max(1) as f64;
    accumulate_decoder(&recording, rows.ids(device), index, Activations::Kept, &mut sums, |head| {
        let share = row_cross_entropy(head, index.labels_tensor(device)).sum() / normaliser;
        loss += to_host(share.clone()).into_iter().map(f64::from).sum::<f64>();
        share
    });
    (loss, sums.grads())
}

/// Gradients, optimizer steps and the critic's values.
fn training<B: TrainBackend>(
    fixture: &Fixture<'_, B::InnerBackend>,
    case: &mut Case,
) -> Result<(), FixtureError> {
    let Fixture { model, tensors, json, device, .. } = *fixture;
    let rows = PaddedRows::read(tensors, "right.")?;
    let index = rows.labelled(&tensors.integers_of("grad.labels", &[rows.n_rows(), rows.n_cols])?);
    let (loss, grads) = cross_entropy::<B>(model, &rows, &index, device);
    let grads = gradients(model, &grads);
    case.scalar("grad.loss", loss, number(json, "grad.loss")?, GRADIENT_NORM);
    let norms = object(member(json, "grad.norms")?, "grad.norms")?;
    case.equal("grad.norms names", &grads.keys().collect::<Vec<_>>(), &{
        let mut names: Vec<&String> = norms.keys().collect();
        names.sort();
        names
    });
    for (name, expected) in norms {
        let got = grads.get(name).map_or(f64::NAN, |grad| norm(&grad.data));
        case.number(&format!("grad.norms.{name}"), got, expected, GRADIENT_NORM);
    }
    let total = grads.values().map(|grad| norm(&grad.data).powi(2)).sum::<f64>().sqrt();
    case.scalar("grad.total_norm", total, number(json, "grad.total_norm")?, GRADIENT_NORM);
    let keys = |prefix: &'static str| {
        tensors
            .keys()
            .filter(move |key| key.starts_with(prefix))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    for key in keys("grad.").into_iter().filter(|key| key != "grad.labels") {
        match grads.get(&key["grad.".len()..]) {
            Some(grad) => {
                case.close(&key, &grad.data, &tensors.floats_of(&key, &grad.shape)?, GRADIENT)
            }
            None => case.fail_unknown([key]),
        }
    }
    if json.get("adamw.losses").is_some() {
        let mut optimizer = AdamW::new(AdamWRecipe { lr: ADAMW_LR, ..AdamWRecipe::default() });
        let mut trained = model.clone();
        let (mut losses, mut grad_norms) = (Vec::new(), Vec::new());
        for _ in 0..numbers(json, "adamw.losses")?.len() {
            let (loss, grads) = cross_entropy::<B>(&trained, &rows, &index, device);
            let (stepped, stats) = optimizer.step(trained, grads, ADAMW_LR, loss);
            trained = stepped;
            losses.push(loss);
            grad_norms.push(stats.grad_norm);
        }
        case.close_f64("adamw.losses", &losses, &numbers(json, "adamw.losses")?, ADAMW_SCALAR);
        if json.get("adamw.grad_norms").is_some() {
            case.close_f64(
                "adamw.grad_norms",
                &grad_norms,
                &numbers(json, "adamw.grad_norms")?,
                ADAMW_SCALAR,
            );
        }
        let (initial, trained) = (parameters(model), parameters(&trained));
        for key in keys("adamw.final.") {
            let name = &key["adamw.final.".len()..];
            let (Some(before), Some(after)) = (initial.get(name), trained.get(name)) else {
                case.fail_unknown([key]);
                continue;
            };
            let expected = tensors.floats_of(&key, &after.shape)?;
            compare_trained(&key, before, after, &expected, ADAMW_TENSOR, case);
        }
    }
    if tensors.has("critic.score.weight") {
        let critic = critic(model, tensors, device)?;
        for key in keys("critic.").into_iter().filter(|key| !key.starts_with("critic.score.")) {
            let prefix = key["critic.".len()..].strip_suffix("values").unwrap_or_default();
            if !tensors.has(&format!("{prefix}input_ids")) {
                case.fail_unknown([key]);
                continue;
            }
            let rows = PaddedRows::read(tensors, prefix)?;
            let real = rows.real();
            let values = to_host(critic.values(real.gather(rows.hidden(&critic.trunk, device))));
            let expected = tensors.floats_of(&key, &[rows.n_rows(), rows.n_cols])?;
            let got = spread(&real, &values, 1, expected.len());
            case.close_where(&key, &got, &expected, |i| real.at.contains(&i), HIDDEN);
        }
    }
    Ok(())
}

/// The model's trunk under a recorded scalar head.
pub(super) fn critic<B: Backend>(
    model: &Decoder<B>,
    tensors: &Tensors,
    device: &B::Device,
) -> Result<Critic<B>, FixtureError> {
    let width = model.config().hidden_size;
    let weight = tensors.floats_of("critic.score.weight", &[1, width])?;
    let bias = tensors.floats_of("critic.score.bias", &[1])?;
    let mut critic = Critic::from_decoder(model, 0);
    critic.score.weight =
        Param::from_tensor(Tensor::from_data(TensorData::new(weight, [width, 1]), device));
    critic.score.bias =
        Some(Param::from_tensor(Tensor::from_data(TensorData::new(bias, [1]), device)));
    Ok(critic)
}
