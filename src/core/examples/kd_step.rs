//! Knowledge distillation on a teacher's correct episode: the first phase of DGPO (docs/method.md,
//! §3.2), without recipe, tokenizer or files. Twenty steps pull a random student towards a random
//! teacher: cross-entropy on the teacher's tokens and KL(teacher ‖ student) at each of them.
//!
//! `cargo run --release -p dgpo-core --example kd_step`
#![allow(clippy::print_stdout)]
use burn::backend::{Autodiff, Flex};
use dgpo_core::{
    algo::distill::KdWeights,
    engine::StopReason,
    question::Question,
    rollout::{Episode, ObservationKind, RolloutBatch, Segment, Status},
    settings::AdamWRecipe,
    trainer::{
        distill::{DistillLoss, Student, distill_step},
        metrics::{DISTILL_CE, DISTILL_KL, DISTILL_LOSS},
        optimizer::AdamW,
        update::Activations,
    },
};
use dgpo_models::{config::DecoderConfig, decoder::Decoder, heads::Divergence};

/// An episode of ids: the teacher searches, reads and answers. Losses count its own tokens alone.
fn episode(reward: f32) -> Episode {
    let turn = |ids: &[u32]| Segment::Agent {
        ids: ids.to_vec(),
        sample_log_probs: Vec::new(),
        stop: StopReason::StopString(0),
    };
    Episode {
        question: Question::new("who directed nolmar?", &["Vex"]),
        segments: vec![
            Segment::Prompt { ids: vec![2, 41, 42, 3] },
            turn(&[5, 31, 6]),
            Segment::Observation { ids: vec![7, 40, 8], kind: ObservationKind::Information },
            turn(&[9, 51, 10]),
        ],
        status: Status::Answered,
        prediction: Some("Vex".into()),
        reward,
        searches: Vec::new(),
        n_invalid_actions: 0,
    }
}

fn main() {
    let (config, device) = (DecoderConfig::small(64, 32, 2), Default::default());
    let teacher = Decoder::<Flex>::init(&config, 1, &device);
    let mut student = Student::<Autodiff<Flex>> {
        model: Decoder::init(&config, 2, &device),
        optimizer: AdamW::new(AdamWRecipe::default()),
        n_skipped: 0,
    };
    let played = [episode(1.0), episode(0.0)];
    let correct: Vec<&Episode> = played.iter().filter(|episode| episode.reward == 1.0).collect();
    let batch = RolloutBatch::new(&correct);
    let divergence = Divergence::ForwardKl;
    let loss = DistillLoss {
        weights: KdWeights { ce_weight: 1.0, kl_weight: 1.0, divergence, temperature: 1.0 },
        micro_batch_tokens: 1024,
        activations: Activations::Kept,
    };
    println!("{} correct episode, {} trained tokens", batch.n_rows, batch.n_agent_tokens(&[0]));
    let mut losses = Vec::new();
    for step in 0..20 {
        let result = distill_step(&mut student, Some(&teacher), &batch, &loss, 1e-2, &device);
        let [loss, ce, kl] = [DISTILL_LOSS, DISTILL_CE, DISTILL_KL]
            .map(|name| result.metrics.get(name).expect("every step has it"));
        println!("step {step:2}: loss {loss:.4} = cross-entropy {ce:.4} + KL {kl:.4}");
        losses.push(loss);
    }
    assert!(losses[19] < losses[0], "the student has not come nearer to the teacher");
}

#[test]
fn the_example_runs() {
    main();
}
