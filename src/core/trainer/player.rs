//! A model, an environment and a tokenizer put together: questions in, episodes out.
use crate::{
    engine::{Completion, Engine, EngineError, EngineOptions, Request},
    env::{Env, protocol::STOP_STRINGS},
    question::Question,
    rng::Key,
    rollout::{
        Episode,
        play::{Generator, Opening, RolloutError, Rules, play_from},
    },
    settings::{EpisodeRecipe, Sampling},
    tokenizer::Tokenizer,
};
use dgpo_models::{Backend, decoder::Decoder};

/// Everything an episode needs besides the model.
pub struct Player<'a> {
    /// Text to ids and back.
    pub tokenizer: &'a Tokenizer,
    /// Prompt, protocol and retriever.
    pub env: Env<'a>,
    /// Lengths, turns and sampling.
    pub limits: EpisodeRecipe,
    /// The text of each episode after its prompt: [`Opening::none`], except in ARCap.
    pub opening: &'a dyn Fn(&Question) -> Opening,
    /// Called before each step of the engine; where it returns true, the play ends with
    /// [`EngineError::Interrupted`].
    pub is_over: &'a dyn Fn() -> bool,
}

impl Player<'_> {
    /// Plays every question once. Episode i draws from `key` folded by i: neither its neighbours
    /// nor the batch size matter.
    /// # Errors
    /// If logits are not finite, a text cannot be encoded, or `is_over` ended the play.
    pub fn play<B: Backend>(
        &self,
        model: &Decoder<B>,
        questions: &[Question],
        sampling: Sampling,
        key: Key,
        device: &B::Device,
    ) -> Result<Vec<Episode>, RolloutError> {
        let options = EngineOptions {
            // The KV cache is allocated for this many rows.
            max_rows: self.limits.max_rows.min(questions.len()).max(1),
            capacity: self.limits.max_prompt_length,
            stop_strings: STOP_STRINGS.map(str::to_owned).to_vec(),
            eos_ids: self.eos_ids(model),
        };
        let Sampling { temperature, top_p, top_k } = sampling;
        let limits = EpisodeRecipe { temperature, top_p, top_k, ..self.limits.clone() };
        let rules = Rules {
            env: &self.env,
            encode: &|text, outside| self.tokenizer.encode_outside(text, outside),
            limits: &limits,
        };
        let keys: Vec<Key> = (0..questions.len()).map(|i| key.fold(i as u64)).collect();
        let engine = Engine::new(model, self.tokenizer, options, device);
        play_from(
            &mut Interruptible { engine, is_over: self.is_over },
            rules,
            self.opening,
            questions,
            &keys,
        )
    }

    /// Ids that end a turn: the model's own end-of-sequence tokens and those of the chat format.
    pub fn eos_ids<B: Backend>(&self, model: &Decoder<B>) -> Vec<u32> {
        let mut ids = model.config().eos_token_ids;
        ids.extend(self.env.chat.eos_ids());
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// An engine that checks before each step whether the play is over.
struct Interruptible<'a, B: Backend> {
    engine: Engine<'a, B>,
    is_over: &'a dyn Fn() -> bool,
}

impl<B: Backend> Generator for Interruptible<'_, B> {
    fn submit(&mut self, request: Request) {
        self.engine.submit(request);
    }
    fn step(&mut self) -> Result<Vec<Completion>, EngineError> {
        if (self.is_over)() { Err(EngineError::Interrupted) } else { self.engine.step() }
    }
    fn is_busy(&self) -> bool {
        self.engine.is_busy()
    }
    fn release(&mut self, row: usize) {
        self.engine.release(row);
    }
}
