//! Family `step`: one whole DGPO update and one distillation step per loss, through the trainer's
//! own accumulation and optimizer.
//!
//! The chain: log-probs under student and teacher, the selective KL in the reward, GAE, whitening,
//! two PPO minibatches for actor and critic. The reference's critic also counts the state behind a
//! row's last token (its mask is the attention mask moved by one column); that layout is rebuilt
//! here, while training counts response tokens alone. `rl_step` runs the trainer's own step over
//! the same batch. Models come from the `models` folder beside the family's.
use super::{
    Case, FixtureError, Tensors, Tolerance,
    fixtures::{count, list, member, number, numbers, object, read_json},
    losses::parse_loss,
    models::{GRADIENT, critic},
    network::{PaddedRows, compare_trained, gradients, norm, parameters, spread},
    one_case,
    ppo::{mask_vector, n_true, vector},
    rl_step,
};
use burn::{optim::GradientsAccumulator, tensor::DType};
use dgpo_core::{
    algo::{
        advantage::{gae_row, whiten},
        distill::kd_rows,
        kl::{SampledKl, estimate, is_penalised, row_mean_kl, row_rewards},
        ppo::{PolicyStats, PolicyTokens, ValueStats, ValueTokens, policy_loss, value_loss},
    },
    rollout::TokenIndex,
    settings::{AdamWRecipe, Decay, KlMode},
    trainer::{
        optimizer::{AdamW, with_gradients},
        update::{Activations, accumulate_critic, accumulate_decoder},
    },
};
use dgpo_kernels::to_host;
use dgpo_models::{
    Backend, TrainBackend,
    decoder::Decoder,
    heads::{Critic, LinearHead, token_log_probs},
    weights::load_decoder,
};
use serde_json::Value;
use std::path::Path;

pub(super) const LOG_PROBS: Tolerance = Tolerance::abs(2e-4);
pub(super) const ADVANTAGES: Tolerance = Tolerance::abs(1e-3);
pub(super) const FIRST_MINIBATCH: Tolerance = Tolerance::rel(1e-3);
pub(super) const LATER_MINIBATCH: Tolerance = Tolerance::rel(5e-3);
/// For means that are exactly 0 in the reference (the KL of the first minibatch).
pub(super) const SCALAR_FLOOR: f64 = 1e-5;
pub(super) const AFTER: Tolerance = Tolerance::abs(2e-2);
const KD_LOSS: Tolerance = Tolerance::rel(2e-5);
const KD_GRAD_NORM: Tolerance = Tolerance::rel(2e-4);

/// Block by block, so that the recorded steps hold the backward pass that recomputes, too; the
/// family `models` runs the other one.
const ACTIVATIONS: Activations = Activations::Recomputed;

const STUDENT: &str = "qwen2_tied";
const TEACHER: &str = "qwen2_teacher";

/// gamma and lambda of GAE where the fixture does not say (the reference's defaults).
const UNDISCOUNTED: f64 = 1.0;

pub(super) fn run<B: TrainBackend>(dir: &Path, device: &B::Device) -> Vec<Case> {
    let models = dir.parent().unwrap_or(dir).join("models");
    vec![one_case("step", |case| {
        let (tensors, json) =
            (Tensors::open(&dir.join("step.safetensors"))?, read_json(&dir.join("step.json"))?);
        let load =
            |name: &str| load_decoder::<B::InnerBackend>(&models.join(name), DType::F32, device);
        let chain = Chain::<B>::new(&tensors, &json, load(STUDENT)?, load(TEACHER)?, device)?;
        chain.update(case)?;
        rl_step::compare(&chain, case)?;
        chain.distil(case)?;
        chain.check_keys(case)?;
        case.fail_unknown(tensors.unused());
        Ok(())
    })]
}

/// The recorded batch, its models and its hyper-parameters.
pub(super) struct Chain<'a, B: TrainBackend> {
    pub(super) tensors: &'a Tensors,
    pub(super) json: &'a Value,
    pub(super) student: Decoder<B::InnerBackend>,
    pub(super) teacher: Decoder<B::InnerBackend>,
    pub(super) device: &'a B::Device,
    pub(super) rows: PaddedRows,
    pub(super) n_prompt: usize,
    pub(super) n_response: usize,
    /// [B, R] agent tokens, real tokens, and the attention mask one column to the left.
    pub(super) info_mask: Vec<bool>,
    pub(super) attention_mask: Vec<bool>,
    value_mask: Vec<bool>,
}

impl<'a, B: TrainBackend> Chain<'a, B> {
    fn new(
        tensors: &'a Tensors,
        json: &'a Value,
        student: Decoder<B::InnerBackend>,
        teacher: Decoder<B::InnerBackend>,
        device: &'a B::Device,
    ) -> Result<Self, FixtureError> {
        let (n_rows, n_prompt, n_response) =
            (count(json, "batch")?, count(json, "prompt")?, count(json, "response")?);
        if n_prompt == 0 {
            return Err(FixtureError::Value {
                key: "prompt".into(),
                found: "0".into(),
                expected: "a prompt of at least one column",
            });
        }
        let shape = [n_rows, n_prompt + n_response];
        let columns = |mask: &[i64], from: usize| -> Vec<bool> {
            mask.chunks(shape[1])
                .flat_map(|row| &row[from..from + n_response])
                .map(|&m| m != 0)
                .collect()
        };
        let attention = tensors.integers_of("attention_mask", &shape)?;
        let info = tensors.integers_of("info_mask", &shape)?;
        Ok(Self {
            rows: PaddedRows::read(tensors, "")?,
            info_mask: columns(&info, n_prompt),
            attention_mask: columns(&attention, n_prompt),
            value_mask: columns(&attention, n_prompt - 1),
            tensors,
            json,
            student,
            teacher,
            device,
            n_prompt,
            n_response,
        })
    }

    pub(super) fn n_rows(&self) -> usize {
        self.rows.n_rows()
    }

    fn response_shape(&self) -> [usize; 2] {
        [self.n_rows(), self.n_response]
    }

    pub(super) fn floats(&self, key: &str) -> Result<Vec<f32>, FixtureError> {
        self.tensors.floats_of(key, &self.response_shape())
    }

    /// Response tokens of some rows where `mask` [B, R] is true: where they are read (the real
    /// token before), and which of [B, R] they are.
    fn response_tokens(&self, mask: &[bool], rows: std::ops::Range<usize>) -> TokenIndex {
        let width = self.rows.width();
        let mut index = TokenIndex::default();
        for row in rows {
            let ids = self.rows.row_ids(row);
            let n_prompt =
                self.rows.columns[row].iter().filter(|&&col| col < self.n_prompt).count();
            for t in (0..self.n_response).filter(|&t| mask[row * self.n_response + t]) {
                index.hidden.push(row * width + n_prompt + t - 1);
                // Behind the last token there is no label: a value is read there, never a log-prob.
                index.labels.push(ids.get(n_prompt + t).map_or(0, |&id| id as u32));
                index.at.push(row * self.n_response + t);
            }
        }
        index
    }

    /// Log-probs of the response [B, R]; 0 at padding.
    pub(super) fn log_probs(&self, model: &Decoder<B::InnerBackend>) -> Vec<f32> {
        let index = self.response_tokens(&self.attention_mask, 0..self.n_rows());
        let hidden = index.gather(self.rows.hidden(model, self.device));
        let read = token_log_probs(model.head(hidden), index.labels_tensor(self.device), 1.0);
        spread(&index, &to_host(read.log_probs), 1, self.attention_mask.len())
    }

    /// Values [B, R], the state behind the last token included; 0 elsewhere.
    pub(super) fn values(&self, critic: &Critic<B::InnerBackend>) -> Vec<f32> {
        let index = self.response_tokens(&self.value_mask, 0..self.n_rows());
        let hidden = index.gather(self.rows.hidden(&critic.trunk, self.device));
        spread(&index, &to_host(critic.values(hidden)), 1, self.value_mask.len())
    }

    fn optimizer<I: Backend>(&self) -> Result<(AdamW<I>, f64), FixtureError> {
        let recipe = self.optimizer_recipe()?;
        let lr = recipe.lr;
        Ok((AdamW::new(recipe), lr))
    }

    pub(super) fn optimizer_recipe(&self) -> Result<AdamWRecipe, FixtureError> {
        let betas = numbers(self.json, "betas")?;
        let [beta1, beta2] = betas[..] else {
            return Err(FixtureError::Shape {
                key: "betas".into(),
                shape: vec![betas.len()],
                expected: "two".into(),
            });
        };
        Ok(AdamWRecipe {
            lr: number(self.json, "lr")?,
            beta1,
            beta2,
            eps: number(self.json, "eps")?,
            weight_decay: number(self.json, "weight_decay")?,
            max_grad_norm: number(self.json, "grad_clip")?,
            warmup: 0.0,
            decay: Decay::Constant,
        })
    }

    /// The whole update, compared link by link.
    fn update(&self, case: &mut Case) -> Result<(), FixtureError> {
        let old = self.log_probs(&self.student);
        case.close("old_log_probs", &old, &self.floats("old_log_probs")?, LOG_PROBS);
        let reference = self.log_probs(&self.teacher);
        case.close("ref_log_prob", &reference, &self.floats("ref_log_prob")?, LOG_PROBS);
        let critic = critic(&self.student, self.tensors, self.device)?;
        let values = self.values(&critic);
        case.close("values", &values, &self.floats("values")?, LOG_PROBS);

        let rewards = self.rewards(&old, &reference, case)?;
        let response = |row: usize| row * self.n_response..(row + 1) * self.n_response;
        let (gamma, lambda) = (self.factor("gamma")?, self.factor("lam")?);
        let mut advantages: Vec<f32> = (0..self.n_rows())
            .flat_map(|row| gae_row(&rewards[response(row)], &values[response(row)], gamma, lambda))
            .collect();
        let returns: Vec<f32> = advantages.iter().zip(&values).map(|(a, v)| a + v).collect();
        whiten(&mut advantages, &self.attention_mask);
        case.close("advantages", &advantages, &self.floats("advantages")?, ADVANTAGES);
        case.close("returns", &returns, &self.floats("returns")?, ADVANTAGES);

        let actor = self.train_actor(&old, &advantages, case)?;
        case.close(
            "actor.after.log_probs",
            &self.log_probs(&actor),
            &self.floats("actor.after.log_probs")?,
            AFTER,
        );
        let critic = self.train_critic(critic, &values, &returns, case)?;
        case.close(
            "critic.after.values",
            &self.values(&critic),
            &self.floats("critic.after.values")?,
            AFTER,
        );
        let initial = parameters(&self.student);
        for (prefix, trained) in
            [("actor.after.", parameters(&actor)), ("critic.after.", parameters(&critic))]
        {
            for (name, after) in trained {
                let key = format!("{prefix}{name}");
                if !self.tensors.has(&key) {
                    continue;
                }
                let expected = self.tensors.floats_of(&key, &after.shape)?;
                // A critic's parameters begin as the student's, except its head.
                let before = initial.get(&name).unwrap_or(&after);
                compare_trained(&key, before, &after, &expected, AFTER, case);
            }
        }
        Ok(())
    }

    /// A discount of GAE.
    pub(super) fn factor(&self, key: &str) -> Result<f64, FixtureError> {
        self.json.get(key).map_or(Ok(UNDISCOUNTED), |_| number(self.json, key))
    }

    fn rewards(
        &self,
        old: &[f32],
        reference: &[f32],
        case: &mut Case,
    ) -> Result<Vec<f32>, FixtureError> {
        let scores = self.floats("token_level_scores")?;
        let kl: Vec<f32> = old
            .iter()
            .zip(reference)
            .map(|(&old, &reference)| estimate(SampledKl::K1, old, reference))
            .collect();
        let coef = number(self.json, "kl_coef")?;
        let (mut rewards, mut selected, mut sum_kl) = (Vec::new(), Vec::new(), 0.0);
        for row in 0..self.n_rows() {
            let range = row * self.n_response..(row + 1) * self.n_response;
            let (scores, kl, mask) =
                (&scores[range.clone()], &kl[range.clone()], &self.info_mask[range]);
            let is_penalised = is_penalised(KlMode::Selective, scores);
            rewards.extend(row_rewards(scores, kl, mask, is_penalised, coef));
            selected.extend(vec![f32::from(is_penalised); self.n_response]);
            sum_kl += row_mean_kl(kl, mask, is_penalised);
        }
        case.close(
            "selective_mask",
            &selected,
            &self.floats("selective_mask")?,
            Tolerance::abs(0.0),
        );
        case.close(
            "token_level_rewards",
            &rewards,
            &self.floats("token_level_rewards")?,
            LOG_PROBS,
        );
        case.scalar(
            "kl_metric",
            sum_kl / self.n_rows() as f64,
            number(self.json, "kl_metric")?,
            FIRST_MINIBATCH,
        );
        Ok(rewards)
    }

    /// Consecutive rows, one optimizer step each.
    pub(super) fn minibatches(&self) -> Result<Vec<std::ops::Range<usize>>, FixtureError> {
        let size = count(self.json, "minibatch")?.max(1);
        Ok((0..self.n_rows())
            .step_by(size)
            .map(|start| start..(start + size).min(self.n_rows()))
            .collect())
    }

    fn train_actor(
        &self,
        old: &[f32],
        advantages: &[f32],
        case: &mut Case,
    ) -> Result<Decoder<B::InnerBackend>, FixtureError> {
        let (mut optimizer, lr) = self.optimizer()?;
        let clip_ratio = number(self.json, "cliprange")?;
        case.equal(
            "actor minibatches",
            &self.minibatches()?.len(),
            &list(self.json, "actor")?.len(),
        );
        let mut actor = self.student.clone();
        for (step, rows) in self.minibatches()?.into_iter().enumerate() {
            let model: Decoder<B> = with_gradients(actor.clone());
            let index = self.response_tokens(&self.info_mask, rows);
            let mut sums = GradientsAccumulator::new();
            let mut stats = PolicyStats::default();
            accumulate_decoder(
                &model,
                self.rows.ids(self.device),
                &index,
                ACTIVATIONS,
                &mut sums,
                |head| {
                    let tokens = PolicyTokens {
                        log_probs: token_log_probs(head, index.labels_tensor(self.device), 1.0)
                            .log_probs,
                        old_log_probs: vector(&index.pick(old), self.device),
                        advantages: vector(&index.pick(advantages), self.device),
                        mask: vector(&vec![1.0; index.len()], self.device),
                    };
                    let (loss, part) = policy_loss(tokens, clip_ratio, index.len() as f64);
                    stats += part;
                    loss
                },
            );
            let grads = sums.grads();
            let norms = gradients(&actor, &grads)
                .into_iter()
                .map(|(name, grad)| (name, norm(&grad.data)))
                .collect::<Vec<_>>();
            let (stepped, applied) = optimizer.step(actor, grads, lr, stats.loss);
            actor = stepped;
            let scalars = [
                ("loss", stats.loss),
                ("clipfrac", stats.clip_fraction),
                ("ppo_kl", stats.old_approx_kl),
                ("grad_norm", applied.grad_norm),
            ];
            self.compare_minibatch("actor", step, &scalars, &norms, case)?;
        }
        Ok(actor)
    }

    fn train_critic(
        &self,
        mut critic: Critic<B::InnerBackend>,
        old_values: &[f32],
        returns: &[f32],
        case: &mut Case,
    ) -> Result<Critic<B::InnerBackend>, FixtureError> {
        let (mut optimizer, lr) = self.optimizer()?;
        let clip_value = number(self.json, "cliprange_value")?;
        case.equal(
            "critic minibatches",
            &self.minibatches()?.len(),
            &list(self.json, "critic")?.len(),
        );
        for (step, rows) in self.minibatches()?.into_iter().enumerate() {
            let model: Critic<B> = with_gradients(critic.clone());
            let index = self.response_tokens(&self.value_mask, rows);
            let mut sums = GradientsAccumulator::new();
            let mut stats = ValueStats::default();
            accumulate_critic(
                &model,
                self.rows.ids(self.device),
                &index,
                ACTIVATIONS,
                &mut sums,
                |values| {
                    let tokens = ValueTokens {
                        values,
                        old_values: vector(&index.pick(old_values), self.device),
                        returns: vector(&index.pick(returns), self.device),
                        mask: vector(&vec![1.0; index.len()], self.device),
                    };
                    let (loss, part) = value_loss(tokens, clip_value, index.len() as f64);
                    stats += part;
                    loss
                },
            );
            let grads = sums.grads();
            let norms = gradients(&critic, &grads)
                .into_iter()
                .map(|(name, grad)| (name, norm(&grad.data)))
                .collect::<Vec<_>>();
            let (stepped, applied) = optimizer.step(critic, grads, lr, stats.loss);
            critic = stepped;
            let scalars = [
                ("loss", stats.loss),
                ("clipfrac", stats.clip_fraction),
                ("grad_norm", applied.grad_norm),
            ];
            self.compare_minibatch("critic", step, &scalars, &norms, case)?;
        }
        Ok(critic)
    }

    fn compare_minibatch(
        &self,
        network: &str,
        step: usize,
        scalars: &[(&str, f64)],
        norms: &[(String, f64)],
        case: &mut Case,
    ) -> Result<(), FixtureError> {
        let steps = list(self.json, network)?;
        let expected =
            steps.get(step).ok_or_else(|| FixtureError::Missing(format!("{network}[{step}]")))?;
        let tolerance = Tolerance {
            abs: SCALAR_FLOOR,
            ..if step == 0 { FIRST_MINIBATCH } else { LATER_MINIBATCH }
        };
        // A step without its loss was not recorded.
        member(expected, "loss")?;
        for (key, value) in object(expected, network)? {
            let label = format!("{network}[{step}].{key}");
            if key == "param_grad_norms" {
                for (name, value) in object(value, key)? {
                    let got = norms
                        .iter()
                        .find(|(known, _)| known == name)
                        .map_or(f64::NAN, |&(_, norm)| norm);
                    case.number(&format!("{label}.{name}"), got, value, tolerance);
                }
            } else if let Some(&(_, got)) = scalars.iter().find(|(known, _)| known == key) {
                case.number(&label, got, value, tolerance);
            } else {
                case.fail_unknown([label]);
            }
        }
        Ok(())
    }

    /// One gradient of each recorded distillation loss at the initial student.
    fn distil(&self, case: &mut Case) -> Result<(), FixtureError> {
        let Some(losses) = self.json.get("kd") else { return Ok(()) };
        let labels = self.tensors.integers_of("kd.labels", &self.response_shape())?;
        let mask: Vec<bool> = labels.iter().map(|&label| label >= 0).collect();
        let mut index = self.response_tokens(&mask, 0..self.n_rows());
        index.labels = index.at.iter().map(|&at| labels[at] as u32).collect();
        let teacher = self.teacher.head(index.gather(self.rows.hidden(&self.teacher, self.device)));
        let normaliser = n_true(&mask).max(1.0);
        for (name, expected) in object(losses, "kd")? {
            let Some(weights) = parse_loss(name) else {
                case.fail(&format!("kd.{name}"), "unknown loss");
                continue;
            };
            let model: Decoder<B> = with_gradients(self.student.clone());
            let mut sums = GradientsAccumulator::new();
            let mut loss = 0.0;
            accumulate_decoder(
                &model,
                self.rows.ids(self.device),
                &index,
                ACTIVATIONS,
                &mut sums,
                |student| {
                    let teacher = LinearHead::from_inner(teacher.clone());
                    let rows = kd_rows(
                        student.into(),
                        Some(teacher.into()),
                        index.labels_tensor(self.device),
                        weights,
                    )
                    .loss;
                    let share = dgpo_core::algo::masked_mean(
                        rows,
                        mask_vector(&vec![true; index.len()], self.device),
                        normaliser,
                    );
                    loss += to_host(share.clone()).into_iter().map(f64::from).sum::<f64>();
                    share
                },
            );
            let grads = gradients(&self.student, &sums.grads());
            member(expected, "loss")?;
            for key in object(expected, name)?.keys() {
                let label = format!("kd.{name}.{key}");
                match key.as_str() {
                    "loss" => case.scalar(&label, loss, number(expected, key)?, KD_LOSS),
                    "grad_norm" => {
                        let got =
                            grads.values().map(|grad| norm(&grad.data).powi(2)).sum::<f64>().sqrt();
                        case.scalar(&label, got, number(expected, key)?, KD_GRAD_NORM);
                    }
                    _ => case.fail_unknown([label]),
                }
            }
            for (parameter, grad) in grads {
                let key = format!("kd.{name}.grad.{parameter}");
                if self.tensors.has(&key) {
                    case.close(
                        &key,
                        &grad.data,
                        &self.tensors.floats_of(&key, &grad.shape)?,
                        GRADIENT,
                    );
                }
            }
        }
        Ok(())
    }

    fn check_keys(&self, case: &mut Case) -> Result<(), FixtureError> {
        let known = [
            "batch",
            "prompt",
            "response",
            "minibatch",
            "kl_coef",
            "kl_metric",
            "cliprange",
            "cliprange_value",
            "lr",
            "weight_decay",
            "betas",
            "eps",
            "grad_clip",
            "gamma",
            "lam",
            "note",
            "actor",
            "critic",
            "kd",
        ];
        case.fail_unknown(
            object(self.json, "step.json")?
                .keys()
                .filter(|key| !known.contains(&key.as_str()))
                .cloned(),
        );
        Ok(())
    }
}
