//! The GKD phase: the student plays, the teacher corrects every token it wrote (method §5). No
//! reward takes part.
use super::{
    Inner, Pipeline, PipelineError,
    distill::Distillation,
    source::{Played, Source},
};
use crate::data::sampler::Sampler;
use dgpo_core::{
    env::search::Retriever,
    rng::{Key, Purpose},
    settings::{DistillDivergence, DistillRecipe, Phase},
    tokenizer::Tokenizer,
};
use dgpo_models::{TrainBackend, decoder::Decoder};

impl<B: TrainBackend> Pipeline<'_, B> {
    /// On-policy distillation from `start`, or behind the newest checkpoint of the phase.
    pub(super) fn gkd_phase(
        &mut self,
        tokenizer: &Tokenizer,
        retriever: &dyn Retriever,
        start: Decoder<Inner<B>>,
    ) -> Result<Decoder<Inner<B>>, PipelineError> {
        let (gkd, seed) = (self.setup.recipe.gkd.clone(), self.setup.recipe.run.seed);
        let questions = self.training_questions(Phase::Gkd)?;
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
        let (sampler, key) =
            (Sampler::new(seed, questions.len()), Key::new(seed, Purpose::Rollout));
        let source = Source::Played(Played {
            phase: Phase::Gkd,
            tokenizer,
            retriever,
            questions,
            sampler,
            key,
        });
        let teacher = self.setup.load_teacher(tokenizer)?;
        self.distil(
            start,
            Distillation { phase: Phase::Gkd, teacher, source, recipe, total: gkd.steps },
        )
    }
}
