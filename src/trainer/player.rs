//! A model, an environment and a tokenizer put together: questions in, episodes out.
use crate::{
    config::{EpisodeRecipe, Sampling},
    data::questions::Question,
    engine::{Engine, EngineOptions},
    env::{Env, protocol::STOP_STRINGS},
    rng::Key,
    rollout::{
        Episode,
        play::{RolloutError, Rules, play},
    },
    tokenizer::Tokenizer,
};
use dgpo_models::{Backend, decoder::Decoder};

/// Everything an episode needs besides the model.
pub struct Player<'a> {
    pub tokenizer: &'a Tokenizer,
    pub env: Env<'a>,
    pub limits: EpisodeRecipe,
}

impl Player<'_> {
    /// Plays every question once. Episode i draws from `key` folded by i: neither its neighbours nor the batch size matter.
    /// # Errors
    /// If logits are not finite or a text cannot be encoded.
    pub fn play<B: Backend>(
        &self,
        model: &Decoder<B>,
        questions: &[Question],
        sampling: Sampling,
        key: Key,
        device: &B::Device,
    ) -> Result<Vec<Episode>, RolloutError> {
        let options = EngineOptions {
            // The KV cache is allocated for so many rows.
            max_rows: self.limits.max_rows.min(questions.len()).max(1),
            capacity: self.limits.max_prompt_length,
            stop_strings: STOP_STRINGS.map(str::to_owned).to_vec(),
            eos_ids: self.eos_ids(model),
        };
        let Sampling { temperature, top_p, top_k } = sampling;
        let limits = EpisodeRecipe { temperature, top_p, top_k, ..self.limits.clone() };
        let rules = Rules { env: &self.env, encode: &|text| self.tokenizer.encode(text), limits: &limits };
        let keys: Vec<Key> = (0..questions.len()).map(|i| key.fold(i as u64)).collect();
        play(&mut Engine::new(model, self.tokenizer, options, device), rules, questions, &keys)
    }

    /// The model's own end-of-sequence tokens and the template's end of turn.
    pub fn eos_ids<B: Backend>(&self, model: &Decoder<B>) -> Vec<u32> {
        let mut ids = model.config().eos_token_ids;
        ids.extend(self.env.template.end_of_turn().and_then(|token| self.tokenizer.token_id(token)));
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}
