//! The GKD phase: the student plays, the teacher corrects every token it wrote (method §5). No
//! reward takes part.
use super::{
    Inner, PipelineError,
    distill::{Distillation, distil},
    run::Run,
    source::{EpisodeSource, PlayedSource},
};
use crate::data::sampler::Sampler;
use dgpo_core::{
    env::search::Retriever,
    rng::{Key, Purpose},
    settings::{DistillDivergence, DistillRecipe, Phase},
    tokenizer::Tokenizer,
};
use dgpo_models::{TrainBackend, decoder::Decoder};

/// Distils on the student's own episodes, from `start` or from the newest checkpoint of the phase
/// on.
/// # Errors
/// As [`distil`]; if there is no question.
pub(super) fn gkd_phase<B: TrainBackend>(
    run: &mut Run<'_, B>,
    player: (&Tokenizer, &dyn Retriever),
    start: Decoder<Inner<B>>,
) -> Result<Decoder<Inner<B>>, PipelineError> {
    let (phase, gkd, seed) = (Phase::Gkd, run.setup.recipe.gkd.clone(), run.setup.recipe.run.seed);
    let questions = run.training_questions(phase)?;
    let recipe = DistillRecipe {
        ce_weight: 0.0,
        kl_weight: 1.0,
        divergence: DistillDivergence::Jsd,
        jsd_beta: gkd.jsd_beta,
        temperature: gkd.temperature,
        batch: gkd.questions_per_step,
        micro_batch_tokens: gkd.micro_batch_tokens,
        ..DistillRecipe::default()
    };
    let sampler = Sampler::new(seed, questions.len());
    let key = Key::new(seed, Purpose::Rollout);
    let source = EpisodeSource::Played(PlayedSource { phase, player, questions, sampler, key });
    let teacher = run.setup.load_teacher(player.0)?;
    distil(run, start, Distillation { phase, teacher, source, recipe, total: gkd.steps })
}
