//! One KD step and one PPO step, forwards, backwards and AdamW, of the tiny shape and of
//! Qwen2.5-0.5B's.
//!
//! Weights are random, the teacher has the student's shape, and the episodes are ids from a seed:
//! what is timed is the arithmetic. Which bodies of the operations run is decided once in a
//! process, so the same steps on the reference bodies are another process's figures, joined to
//! these by [`put_beside`].
use crate::portability::workload::{
    Shape, actor_critic, dgpo_step, episodes, kd_step, recipe, student,
};
use burn::tensor::DType;
use dgpo_core::trainer::update::Activations;
use dgpo_kernels::suite::probes::{Budget, time, wait_for};
use dgpo_models::{TrainBackend, config::DecoderConfig, decoder::Decoder};
use dgpo_run::{hub, models};
use serde::{Deserialize, Serialize};

/// The built-in student, whose shape is the tiny one.
pub(super) const TINY: &str = "builtin:tiny/student";
/// Of weights, prompts and episodes.
pub const SEED: u64 = 1;

/// One network shape and batch.
#[derive(Clone, Debug)]
pub struct Setting {
    pub name: String,
    pub config: DecoderConfig,
    pub shape: Shape,
    pub micro_batch_tokens: usize,
    pub activations: Activations,
}

/// One step of one setting.
#[derive(Clone, Debug, Serialize)]
pub struct StepFigure {
    pub model: String,
    pub step: &'static str,
    pub n_parameters: usize,
    /// Of the whole batch.
    pub n_tokens: usize,
    pub best_ms: f64,
    pub median_ms: f64,
    /// Tokens of the batch over the best time; a PPO step passes each through actor, critic and
    /// teacher.
    pub tokens_per_s: f64,
    pub n_runs: usize,
    /// The same step on the reference bodies, in plain tensor operations.
    pub plain: Option<PlainFigure>,
    /// Best time of the plain step over that of this one.
    pub plain_over_fused: Option<f64>,
}

/// Figures of one step from a process on the reference bodies; other fields of its [`StepFigure`]
/// are left out.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct PlainFigure {
    pub model: String,
    pub step: String,
    pub best_ms: f64,
    pub median_ms: f64,
    pub n_runs: usize,
}

/// Gives each figure the plain one of the same model and step.
pub fn put_beside(figures: &mut [StepFigure], plain: &[PlainFigure]) {
    for figure in figures {
        figure.plain = plain
            .iter()
            .find(|plain| plain.model == figure.model && plain.step == figure.step)
            .cloned();
        figure.plain_over_fused = figure.plain.as_ref().map(|plain| plain.best_ms / figure.best_ms);
    }
}

/// The tiny shape.
/// # Errors
/// If the built-in files cannot be unpacked.
pub fn tiny() -> Result<DecoderConfig, models::SetupError> {
    Ok(DecoderConfig::from_file(&hub::resolve(TINY)?.join("config.json"))?)
}

/// Times both steps. Weights are drawn once; each run continues from the last.
pub fn run<B: TrainBackend>(
    setting: &Setting,
    dtype: DType,
    budget: Budget,
    device: &B::Device,
) -> Vec<StepFigure> {
    let draw = |seed: u64| {
        models::cast(Decoder::<B::InnerBackend>::init(&setting.config, seed, device), dtype)
    };
    let mut recipe = recipe(setting.shape, setting.micro_batch_tokens);
    recipe.model.recompute = setting.activations == Activations::Recomputed;
    let (model, teacher) = (draw(SEED), draw(SEED + 1));
    let episodes = episodes(setting.shape, setting.config.vocab_size, SEED);
    let figure = |step: &'static str, job: &mut dyn FnMut()| {
        let timing = time(job, budget);
        let n_tokens = setting.shape.n_tokens();
        StepFigure {
            model: setting.name.clone(),
            step,
            n_parameters: setting.config.n_parameters(),
            n_tokens,
            best_ms: timing.best_s * 1e3,
            median_ms: timing.median_s * 1e3,
            tokens_per_s: n_tokens as f64 / timing.best_s,
            n_runs: timing.n_runs,
            plain: None,
            plain_over_fused: None,
        }
    };
    let mut student = student::<B>(&model, &recipe);
    let kd = figure("KD", &mut || {
        kd_step(&mut student, &teacher, &episodes, &recipe, setting.activations, device);
        wait_for::<B::InnerBackend>(device);
    });
    drop(student);
    let mut networks = actor_critic::<B>(&model, &recipe);
    let ppo = figure("PPO", &mut || {
        dgpo_step(&mut networks, &teacher, &episodes, &recipe, device);
        wait_for::<B::InnerBackend>(device);
    });
    vec![kd, ppo]
}

#[cfg(test)]
mod tests {
    use super::*;
    use dgpo_run::devices::CpuTrain;
    use std::time::Duration;

    #[test]
    fn both_steps_of_the_tiny_shape_are_timed() {
        let shape = Shape { n_rows: 2, n_prompt: 5, n_agent: 3, n_observation: 4 };
        let setting = Setting {
            name: "tiny".into(),
            config: tiny().unwrap(),
            shape,
            micro_batch_tokens: 64,
            activations: Activations::Kept,
        };
        let figures = run::<CpuTrain>(
            &setting,
            DType::F32,
            Budget { time: Duration::ZERO, most_runs: 1 },
            &Default::default(),
        );
        assert_eq!(
            figures.iter().map(|f| (f.step, f.n_tokens, f.n_runs)).collect::<Vec<_>>(),
            [("KD", 30, 1), ("PPO", 30, 1)]
        );
        assert!(figures.iter().all(|f| f.tokens_per_s > 0.0));
    }

    #[test]
    fn a_figure_gets_the_plain_one_of_its_model_and_step() {
        let figure = |model: &str, step: &'static str, best_ms: f64| StepFigure {
            model: model.into(),
            step,
            n_parameters: 1,
            n_tokens: 1,
            best_ms,
            median_ms: best_ms,
            tokens_per_s: 1.0,
            n_runs: 1,
            plain: None,
            plain_over_fused: None,
        };
        let mut figures =
            [figure("tiny", "KD", 2.0), figure("tiny", "PPO", 4.0), figure("large", "KD", 8.0)];
        // As the other process writes them, in another order.
        let text = serde_json::to_string(&[figure("tiny", "PPO", 12.0), figure("tiny", "KD", 3.0)])
            .unwrap();
        put_beside(&mut figures, &serde_json::from_str::<Vec<PlainFigure>>(&text).unwrap());
        assert_eq!(figures.map(|figure| figure.plain_over_fused), [Some(1.5), Some(3.0), None]);
    }
}
