//! Episodes and networks for one training step, from a seed: what `portability` compares and `bench
//! step` times.
use dgpo_core::{
    engine::StopReason,
    question::Question,
    rng::{Key, Purpose},
    rollout::{Episode, ObservationKind, RolloutBatch, Segment, Status},
    settings::{AdamWRecipe, Decay, DistillRecipe, KlRecipe, OptimRecipe, RlRecipe},
    trainer::{
        distill::{DistillLoss, Student, distill_step},
        metrics::Metrics,
        optimizer::AdamW,
        rl::{ActorCritic, Penalty, rl_step},
        update::Activations,
    },
};
use dgpo_models::{TrainBackend, decoder::Decoder};
use dgpo_run::config::Recipe;

/// Large enough to be seen after one step, small enough that the step is no jump.
const LEARNING_RATE: f64 = 1e-4;
const CRITIC_SEED: u64 = 7;

/// Tokens of each episode: a prompt, a turn of the agent, an observation, another turn. All rows
/// have one length, so nothing is padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub n_rows: usize,
    pub n_prompt: usize,
    /// Of each of the two turns.
    pub n_agent: usize,
    pub n_observation: usize,
}

impl Shape {
    pub fn n_tokens(&self) -> usize {
        self.n_rows * (self.n_prompt + 2 * self.n_agent + self.n_observation)
    }
}

/// Episodes with ids below `n_vocab`; every second one is right.
pub fn episodes(shape: Shape, n_vocab: usize, seed: u64) -> Vec<Episode> {
    let key = Key::new(seed, Purpose::World);
    let mut counter = 0;
    let mut ids = |n: usize| -> Vec<u32> {
        (0..n)
            .map(|_| {
                counter += 1;
                key.below(counter, n_vocab) as u32
            })
            .collect()
    };
    (0..shape.n_rows)
        .map(|row| {
            let agent = |ids: Vec<u32>| Segment::Agent {
                ids,
                sample_log_probs: Vec::new(),
                stop: StopReason::Length,
            };
            let segments = vec![
                Segment::Prompt { ids: ids(shape.n_prompt) },
                agent(ids(shape.n_agent)),
                Segment::Observation {
                    ids: ids(shape.n_observation),
                    kind: ObservationKind::Information,
                },
                agent(ids(shape.n_agent)),
            ];
            let question = Question {
                id: row.to_string(),
                dataset: String::new(),
                question: format!("{row}?"),
                golden_answers: vec![row.to_string()],
                supporting: Vec::new(),
                supporting_kind: String::new(),
            };
            Episode {
                question,
                segments,
                status: Status::Answered,
                prediction: None,
                reward: (row % 2) as f32,
                searches: Vec::new(),
                n_invalid_actions: 0,
            }
        })
        .collect()
}

/// The method's step in one optimizer update, with a KL penalty that is seen in the rewards.
pub fn recipe(shape: Shape, micro_batch_tokens: usize) -> Recipe {
    let decay = Decay::Constant;
    let adamw = AdamWRecipe { lr: LEARNING_RATE, decay, ..AdamWRecipe::default() };
    Recipe {
        distill: DistillRecipe { micro_batch_tokens, ..DistillRecipe::default() },
        rl: RlRecipe {
            steps: 1,
            mini_batch: shape.n_rows,
            micro_batch_tokens,
            ..RlRecipe::default()
        },
        kl: KlRecipe { coef: 0.1, ..KlRecipe::default() },
        optim: OptimRecipe { distill: adamw.clone(), actor: adamw.clone(), critic: adamw },
        ..Recipe::default()
    }
}

/// A student in front of its first KD step.
pub fn student<B: TrainBackend>(model: &Decoder<B::InnerBackend>, recipe: &Recipe) -> Student<B> {
    Student {
        model: model.clone(),
        optimizer: AdamW::new(recipe.optim.distill.clone()),
        n_skipped: 0,
    }
}

/// One KD step on all episodes.
pub fn kd_step<B: TrainBackend>(
    student: &mut Student<B>,
    teacher: &Decoder<B::InnerBackend>,
    episodes: &[Episode],
    recipe: &Recipe,
    activations: Activations,
    device: &B::Device,
) -> Metrics {
    let batch = RolloutBatch::new(&episodes.iter().collect::<Vec<_>>());
    let loss = DistillLoss::of(&recipe.distill, recipe.distill.taid.t_start, activations);
    distill_step(student, Some(teacher), &batch, &loss, LEARNING_RATE, device).metrics
}

/// Actor and critic in front of their first step, both from one model.
pub fn actor_critic<B: TrainBackend>(
    model: &Decoder<B::InnerBackend>,
    recipe: &Recipe,
) -> ActorCritic<B> {
    ActorCritic::new(model.clone(), CRITIC_SEED, recipe.rl_settings())
}

/// One DGPO step on all episodes: scores, rewards, advantages, one update of actor and critic.
pub fn dgpo_step<B: TrainBackend>(
    networks: &mut ActorCritic<B>,
    teacher: &Decoder<B::InnerBackend>,
    episodes: &[Episode],
    recipe: &Recipe,
    device: &B::Device,
) -> Metrics {
    let penalty = Penalty::new(teacher, &recipe.kl);
    rl_step(networks, penalty, episodes, recipe.rl_settings(), 0, device).metrics
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn episodes_have_the_shape_and_both_outcomes() {
        let shape = Shape { n_rows: 3, n_prompt: 4, n_agent: 2, n_observation: 5 };
        let episodes = episodes(shape, 50, 1);
        assert_eq!(episodes.iter().map(|e| e.ids().len()).sum::<usize>(), shape.n_tokens());
        assert_eq!(episodes.iter().map(Episode::n_agent_tokens).collect::<Vec<_>>(), [4, 4, 4]);
        assert_eq!(
            episodes.iter().map(Episode::is_correct).collect::<Vec<_>>(),
            [false, true, false]
        );
        assert!(episodes.iter().all(|e| e.ids().iter().all(|&id| id < 50)));
    }
}
