//! The tiny student on the device and on the CPU backend: forward pass, one KD step, one DGPO step,
//! on the same episodes.
use super::{
    guarded::guarded,
    workload::{Shape, actor_critic, dgpo_step, episodes, kd_step, recipe, student},
};
use burn::tensor::DType;
use dgpo_core::{
    rollout::RolloutBatch,
    trainer::{
        metrics::{
            ACTOR_GRAD_NORM, CRITIC_GRAD_NORM, DISTILL_CE, DISTILL_GRAD_NORM, DISTILL_KL, ENTROPY,
            KL, POLICY_LOSS, VALUE_LOSS,
        },
        score::{self, Pass},
        update::Activations,
    },
};
use dgpo_models::TrainBackend;
use dgpo_run::{
    devices::{Cpu, CpuTrain},
    models,
};
use serde::Serialize;

const STUDENT: &str = "builtin:tiny/student";
const TEACHER: &str = "builtin:tiny/teacher";
const SHAPE: Shape = Shape { n_rows: 4, n_prompt: 24, n_agent: 10, n_observation: 20 };
const MICRO_BATCH_TOKENS: usize = 128;

/// Two layers of f32: products of 64 terms and softmaxes, some hundred roundings of 2^-24 one after
/// the other.
const FORWARD: f64 = 1e-4;
/// Losses and gradient norms are means of such numbers over the batch.
const STEP: f64 = 1e-3;
/// AdamW's first update is the sign of the gradient: a component near 0 may go the other way, two
/// learning rates (1e-4) apart.
const AFTER: f64 = 5e-3;

/// One quantity on the device and on the CPU.
#[derive(Clone, Debug, Serialize)]
pub struct StepComparison {
    pub name: &'static str,
    pub passed: bool,
    /// |device - CPU| / (1 + |CPU|); absent where it is not finite.
    pub worst_error: Option<f64>,
    pub tolerance: f64,
    pub error: Option<String>,
}

/// A quantity, its numbers and how far they may differ.
type Quantity = (&'static str, Vec<f64>, f64);

pub(super) fn run<B: TrainBackend>(device: &B::Device) -> Vec<StepComparison> {
    let here =
        guarded::<B::InnerBackend, _>(device, || trace::<B>(device)).and_then(|traced| traced);
    let cpu_device = Default::default();
    match (
        here,
        guarded::<Cpu, _>(&cpu_device, || trace::<CpuTrain>(&cpu_device)).and_then(|traced| traced),
    ) {
        (Ok(here), Ok(cpu)) => {
            here.iter().zip(&cpu).map(|(here, cpu)| compare(here, cpu)).collect()
        }
        (Err(error), _) | (_, Err(error)) => {
            vec![StepComparison {
                name: "tiny model",
                passed: false,
                worst_error: None,
                tolerance: FORWARD,
                error: Some(error),
            }]
        }
    }
}

fn compare(here: &Quantity, cpu: &Quantity) -> StepComparison {
    let (name, tolerance) = (cpu.0, cpu.2);
    let worst = dgpo_kernels::suite::numbers::worst_error(&here.1, &cpu.1);
    let is_number = cpu.1.iter().all(|x| x.is_finite());
    let error = (!worst.is_finite() || !is_number).then(|| "not a finite number".to_owned());
    StepComparison {
        name,
        passed: error.is_none() && worst <= tolerance,
        worst_error: Some(worst).filter(|w| w.is_finite()),
        tolerance,
        error,
    }
}

/// Everything that is compared, in the order of time.
fn trace<B: TrainBackend>(device: &B::Device) -> Result<Vec<Quantity>, String> {
    let load = |name: &str| {
        models::load::<B::InnerBackend>(name, 0, DType::F32, device)
            .map_err(|error| error.to_string())
    };
    let (model, teacher) = (load(STUDENT)?, load(TEACHER)?);
    let (episodes, recipe) =
        (episodes(SHAPE, model.config().vocab_size, 1), recipe(SHAPE, MICRO_BATCH_TOKENS));
    let batch = RolloutBatch::new(&episodes.iter().collect::<Vec<_>>());
    let rows: Vec<usize> = (0..batch.n_rows).collect();
    let pass = Pass {
        micro_batch_tokens: MICRO_BATCH_TOKENS,
        temperature: recipe.episode.temperature,
        device,
    };
    let f64s = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<_>>();
    let log_probs = |model: &_| f64s(score::log_probs(model, &batch, &rows, &pass));

    let hidden =
        model.hidden(batch.ids_tensor(&rows, device), None, None).into_data().convert::<f32>();
    let hidden = hidden.to_vec::<f32>().map_err(|error| format!("{error:?}"))?;
    let mut quantities = vec![
        ("forward: hidden states", f64s(hidden), FORWARD),
        ("forward: log-probs", log_probs(&model), FORWARD),
    ];

    let mut student = student::<B>(&model, &recipe);
    let metrics = kd_step(&mut student, &teacher, &episodes, &recipe, Activations::Kept, device);
    let of = |name: &str| vec![metrics.get(name).unwrap_or(f64::NAN)];
    quantities.extend([
        ("KD step: cross-entropy", of(DISTILL_CE), STEP),
        ("KD step: KL", of(DISTILL_KL), STEP),
        ("KD step: gradient norm", of(DISTILL_GRAD_NORM), STEP),
        ("KD step: log-probs after", log_probs(&student.model), AFTER),
    ]);

    let mut networks = actor_critic::<B>(&model, &recipe);
    let metrics = dgpo_step(&mut networks, &teacher, &episodes, &recipe, device);
    let critic = &networks.critic.as_ref().expect("the workload's recipe is PPO").network;
    let of = |name: &str| vec![metrics.get(name).unwrap_or(f64::NAN)];
    quantities.extend([
        ("DGPO step: KL to the teacher", of(KL), STEP),
        ("DGPO step: policy loss", of(POLICY_LOSS), STEP),
        ("DGPO step: entropy", of(ENTROPY), STEP),
        ("DGPO step: value loss", of(VALUE_LOSS), STEP),
        ("DGPO step: actor's gradient norm", of(ACTOR_GRAD_NORM), STEP),
        ("DGPO step: critic's gradient norm", of(CRITIC_GRAD_NORM), STEP),
        ("DGPO step: log-probs after", log_probs(&networks.actor), AFTER),
        ("DGPO step: values after", f64s(score::values(critic, &batch, &pass)), AFTER),
    ]);
    Ok(quantities)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_agrees_with_itself_to_the_last_bit_and_the_steps_change_something() {
        let comparisons = run::<CpuTrain>(&Default::default());
        assert_eq!(comparisons.len(), 14);
        assert!(
            comparisons.iter().all(|c| c.passed && c.worst_error == Some(0.0)),
            "{comparisons:?}"
        );
        let trace = trace::<CpuTrain>(&Default::default()).unwrap();
        let of = |name: &str| &trace.iter().find(|quantity| quantity.0 == name).unwrap().1;
        assert_ne!(of("forward: log-probs"), of("KD step: log-probs after"));
        assert_ne!(of("forward: log-probs"), of("DGPO step: log-probs after"));
    }

    #[test]
    fn a_difference_above_the_tolerance_and_a_number_that_is_none_fail() {
        let quantity = |x: f64| ("x", vec![0.0, x], 1e-3);
        assert!(compare(&quantity(1.001), &quantity(1.0)).passed);
        assert!(!compare(&quantity(1.01), &quantity(1.0)).passed);
        assert!(!compare(&quantity(f64::NAN), &quantity(1.0)).passed);
        assert!(!compare(&quantity(f64::NAN), &quantity(f64::NAN)).passed);
    }
}
