//! One distillation step: cross-entropy and a divergence from the teacher on the agent's tokens of
//! a batch of episodes (method §3.2, paper Eq. 1; method §5).
//!
//! L = ce_weight · CE + kl_weight · D(pi_g, pi_theta), both averaged over the agent tokens of the
//! whole step. The episodes may be the teacher's or the student's own.
use super::{
    metrics::{DISTILL_CE, DISTILL_GRAD_NORM, DISTILL_KL, DISTILL_LOSS, Metrics},
    optimizer::{AdamW, with_gradients},
    score::head_rows,
    update::{Activations, accumulate_decoder},
};
use crate::{
    algo::{
        distill::{KdWeights, divergence_of, kd_rows},
        total,
    },
    rollout::RolloutBatch,
    settings::DistillRecipe,
};
use burn::{
    optim::GradientsAccumulator,
    tensor::{ElementConversion, Tensor},
};
use dgpo_kernels::to_host;
use dgpo_models::{TrainBackend, decoder::Decoder, heads::LinearHead};

/// The student and everything that changes with it.
#[derive(Clone, Debug)]
pub struct Student<B: TrainBackend> {
    /// The network that learns.
    pub model: Decoder<B::InnerBackend>,
    /// Its moments and master weights.
    pub optimizer: AdamW<B::InnerBackend>,
    /// Updates skipped because the loss or the gradient was not finite.
    pub n_skipped: usize,
}

/// Loss of a distillation step.
#[derive(Clone, Copy, Debug)]
pub struct DistillLoss {
    /// The terms and their weights.
    pub weights: KdWeights,
    /// Padded tokens of a micro-batch.
    pub micro_batch_tokens: usize,
    /// Memory against recomputation in the backward pass.
    pub activations: Activations,
}

impl DistillLoss {
    /// The loss of a recipe; `taid_t` is TAID's interpolation parameter at this step.
    pub fn of(recipe: &DistillRecipe, taid_t: f64, activations: Activations) -> Self {
        let &DistillRecipe { ce_weight, kl_weight, temperature, micro_batch_tokens, .. } = recipe;
        let weights = KdWeights {
            ce_weight,
            kl_weight,
            divergence: divergence_of(recipe, taid_t),
            temperature,
        };
        Self { weights, micro_batch_tokens, activations }
    }
}

/// Result of a step besides the changed student.
#[derive(Clone, Debug)]
pub struct DistillStep {
    /// Loss, its terms and the gradient norm.
    pub metrics: Metrics,
    /// `[B, T]` log pi_theta(y_t) of agent tokens before the update, at temperature 1; 0 elsewhere.
    pub log_probs: Vec<f32>,
    /// `[B, T]` the divergence at agent tokens; 0 elsewhere, and where there is none in the loss.
    pub divergence: Vec<f32>,
    /// Mean entropy of the student at the agent tokens before the update, nats; where
    /// [`crate::algo::distill::KdRows`] has it.
    pub entropy: Option<f64>,
}

/// Updates the student on one batch of episodes at learning rate `lr`.
///
/// The teacher is run only where its distribution has an effect (`kl_weight` > 0), on the gathered
/// agent positions only.
/// # Panics
/// If `kl_weight` is not 0 and there is no teacher (the recipe check refuses that).
pub fn distill_step<B: TrainBackend>(
    student: &mut Student<B>,
    teacher: Option<&Decoder<B::InnerBackend>>,
    batch: &RolloutBatch,
    loss: &DistillLoss,
    lr: f64,
    device: &B::Device,
) -> DistillStep {
    let KdWeights { ce_weight, kl_weight, .. } = loss.weights;
    let model: Decoder<B> = with_gradients(student.model.clone());
    let mut sums = GradientsAccumulator::new();
    let rows: Vec<usize> = (0..batch.n_rows).collect();
    let normaliser = batch.n_agent_tokens(&rows).max(1) as f64;
    let mut cross_entropies = vec![0.0; batch.n_rows * batch.n_cols];
    let mut divergences = cross_entropies.clone();
    let mut entropies: Option<Vec<f32>> = None;
    for rows in batch.micro_batches(&rows, loss.micro_batch_tokens) {
        let tokens = batch.agent_tokens(&rows);
        if tokens.is_empty() {
            continue;
        }
        let teacher = (kl_weight != 0.0).then(|| {
            let teacher = teacher.expect("a recipe with kl_weight > 0 has a teacher");
            LinearHead::from_inner(head_rows(teacher, batch, &rows, &tokens, device))
        });
        accumulate_decoder(
            &model,
            batch.ids_tensor(&rows, device),
            &tokens,
            loss.activations,
            &mut sums,
            |student| {
                let rows = kd_rows(
                    student.into(),
                    teacher.map(Into::into),
                    tokens.labels_tensor(device),
                    loss.weights,
                );
                tokens.scatter(&to_host(rows.cross_entropy.inner()), &mut cross_entropies);
                if let Some(divergence) = rows.divergence {
                    tokens.scatter(&to_host(divergence.inner()), &mut divergences);
                }
                if let Some(entropy) = rows.entropy {
                    let entropies =
                        entropies.get_or_insert_with(|| vec![0.0; batch.n_rows * batch.n_cols]);
                    tokens.scatter(&to_host(entropy.inner()), entropies);
                }
                total(rows.loss) / normaliser
            },
        );
    }
    drop(model);
    let mean = |rows: &[f32]| rows.iter().map(|&x| f64::from(x)).sum::<f64>() / normaliser;
    let (ce, kl) = (mean(&cross_entropies), mean(&divergences));
    let loss = ce_weight * ce + kl_weight * kl;
    let (model, stats) = student.optimizer.step(student.model.clone(), sums.grads(), lr, loss);
    student.model = model;
    student.n_skipped += usize::from(!stats.is_applied);
    let mut metrics = Metrics::default();
    metrics.set(DISTILL_LOSS, loss);
    metrics.set(DISTILL_CE, ce);
    metrics.set(DISTILL_KL, kl);
    metrics.set(DISTILL_GRAD_NORM, stats.grad_norm);
    let log_probs = cross_entropies.into_iter().map(|x| -x).collect();
    DistillStep {
        metrics,
        log_probs,
        divergence: divergences,
        entropy: entropies.map(|rows| mean(&rows)),
    }
}

/// The value of a one-element tensor.
pub(super) fn scalar<B: dgpo_models::Backend>(tensor: &Tensor<B, 1>) -> f64 {
    tensor.clone().into_scalar().elem::<f64>()
}
