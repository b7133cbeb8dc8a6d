//! A generator that plays given turns through the same loop, limits and environment as the engine.
//!
//! Used by the conformance runner and by tests: so the episode loop can be compared token by token
//! with a reference on given texts. As a model's output would be, a turn is cut at its first
//! completed stop string and at the turn's token limit.
use super::play::Generator;
use crate::{
    engine::{Completion, EngineError, Request, StopReason},
    tokenizer::TokenizerError,
};
use std::collections::VecDeque;

/// Row i plays `scripts[i]`, one text a turn. A text without a stop string ends its turn like an
/// EOS, but without an EOS token; so does an empty turn when the script has run out.
pub struct ScriptedGenerator<'a> {
    scripts: Vec<VecDeque<String>>,
    stop_strings: Vec<String>,
    encode: &'a dyn Fn(&str) -> Result<Vec<u32>, TokenizerError>,
    decode: &'a dyn Fn(&[u32]) -> String,
    queue: Vec<Request>,
}

impl<'a> ScriptedGenerator<'a> {
    /// A generator of these texts; `encode` and `decode` stand for the tokenizer.
    pub fn new(
        scripts: Vec<Vec<String>>,
        stop_strings: &[&str],
        encode: &'a dyn Fn(&str) -> Result<Vec<u32>, TokenizerError>,
        decode: &'a dyn Fn(&[u32]) -> String,
    ) -> Self {
        let scripts = scripts.into_iter().map(VecDeque::from).collect();
        Self {
            scripts,
            stop_strings: stop_strings.iter().map(|&s| s.to_owned()).collect(),
            encode,
            decode,
            queue: Vec::new(),
        }
    }

    fn recite(&mut self, request: &Request) -> Completion {
        let script =
            self.scripts.get_mut(request.row).and_then(VecDeque::pop_front).unwrap_or_default();
        let ends = self
            .stop_strings
            .iter()
            .enumerate()
            .filter_map(|(idx, stop)| Some((script.find(stop.as_str())? + stop.len(), idx)));
        let (end, mut stop) = ends.min().map_or((script.len(), StopReason::Eos), |(end, idx)| {
            (end, StopReason::StopString(idx))
        });
        let mut ids = (self.encode)(&script[..end]).unwrap_or_default();
        if ids.len() > request.max_new_tokens {
            ids.truncate(request.max_new_tokens);
            stop = StopReason::Length;
        }
        Completion {
            row: request.row,
            text: (self.decode)(&ids),
            log_probs: vec![0.0; ids.len()],
            ids,
            stop,
        }
    }
}

impl Generator for ScriptedGenerator<'_> {
    fn submit(&mut self, request: Request) {
        self.queue.push(request);
    }
    fn step(&mut self) -> Result<Vec<Completion>, EngineError> {
        Ok(std::mem::take(&mut self.queue).iter().map(|request| self.recite(request)).collect())
    }
    fn is_busy(&self) -> bool {
        !self.queue.is_empty()
    }
    fn release(&mut self, _row: usize) {}
}
