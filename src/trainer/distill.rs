//! One KD step: cross-entropy and KL to the teacher on the agent's tokens of correct teacher episodes (method §3).
//!
//! L = ce_weight · CE + kl_weight · KL(pi_g || pi_theta), both averaged over the agent tokens of the whole step.
use super::{
    metrics::{DISTILL_CE, DISTILL_GRAD_NORM, DISTILL_KL, DISTILL_LOSS, Metrics},
    optimizer::{AdamW, with_gradients},
    update::{Activations, accumulate_decoder},
};
use crate::{
    algo::{
        distill::{Divergence, kd_terms, row_cross_entropy},
        total,
    },
    config::DistillRecipe,
    rollout::RolloutBatch,
};
use burn::{
    optim::GradientsAccumulator,
    tensor::{ElementConversion, Tensor},
};
use dgpo_models::{TrainBackend, decoder::Decoder, heads::LinearHead};

/// The student and everything that changes with it.
#[derive(Clone, Debug)]
pub struct Student<B: TrainBackend> {
    pub model: Decoder<B::InnerBackend>,
    pub optimizer: AdamW<B::InnerBackend>,
    /// Updates skipped because the loss or the gradient was not finite.
    pub n_skipped: usize,
}

/// Updates the student on one batch of episodes at learning rate `lr`.
///
/// The teacher is run only where its distribution has an effect (`kl_weight` > 0), on the gathered agent positions only.
/// # Panics
/// If `kl_weight` is not 0 and there is no teacher (the recipe check refuses that).
pub fn distill_step<B: TrainBackend>(
    student: &mut Student<B>,
    teacher: Option<&Decoder<B::InnerBackend>>,
    batch: &RolloutBatch,
    recipe: &DistillRecipe,
    activations: Activations,
    lr: f64,
    device: &B::Device,
) -> Metrics {
    let model: Decoder<B> = with_gradients(student.model.clone());
    let mut sums = GradientsAccumulator::new();
    let rows: Vec<usize> = (0..batch.n_rows).collect();
    let normaliser = batch.n_agent_tokens(&rows).max(1) as f64;
    let (mut ce, mut kl) = (0.0, 0.0);
    for rows in batch.micro_batches(&rows, recipe.micro_batch_tokens) {
        let tokens = batch.agent_tokens(&rows);
        if tokens.is_empty() {
            continue;
        }
        let teacher = (recipe.kl_weight != 0.0).then(|| {
            let teacher = teacher.expect("a recipe with kl_weight > 0 has a teacher");
            LinearHead::from_inner(teacher.head(tokens.gather(teacher.hidden(batch.ids_tensor(&rows, device), None, None))))
        });
        accumulate_decoder(&model, batch.ids_tensor(&rows, device), &tokens, activations, &mut sums, |student| {
            let labels = tokens.labels_tensor(device);
            let share = |rows: Tensor<B, 1>| total(rows) / normaliser;
            let Some(teacher) = teacher else {
                let ce_share = share(row_cross_entropy(student, labels));
                ce += scalar(&ce_share);
                return ce_share * recipe.ce_weight;
            };
            let (ce_rows, kl_rows) = kd_terms(student.into(), teacher.into(), labels, Divergence::ForwardKl, recipe.temperature);
            let (ce_share, kl_share) = (share(ce_rows), share(kl_rows));
            ce += scalar(&ce_share);
            kl += scalar(&kl_share);
            ce_share * recipe.ce_weight + kl_share * recipe.kl_weight
        });
    }
    drop(model);
    let (model, stats) = student.optimizer.step(student.model.clone(), sums.grads(), lr);
    student.model = model;
    student.n_skipped += usize::from(!stats.is_applied);
    let mut metrics = Metrics::default();
    metrics.set(DISTILL_LOSS, recipe.ce_weight * ce + recipe.kl_weight * kl);
    metrics.set(DISTILL_CE, ce);
    metrics.set(DISTILL_KL, kl);
    metrics.set(DISTILL_GRAD_NORM, stats.grad_norm);
    metrics
}

/// The value of a one-element tensor.
pub(super) fn scalar<B: dgpo_models::Backend>(tensor: &Tensor<B, 1>) -> f64 {
    tensor.clone().into_scalar().elem::<f64>()
}
