//! Greedy generation through the engine that rollouts use: the recorded tokens must come out of it,
//! whatever number of rows it decodes at a time.
use super::{
    Case, FixtureError,
    fixtures::count,
    models::{Fixture, HIDDEN},
    network::PaddedRows,
};
use dgpo_core::{
    engine::{Completion, Engine, EngineError, EngineOptions, Request},
    rng::{Key, Purpose},
    settings::Sampling,
    tokenizer::Tokenizer,
};
use dgpo_models::{Backend, cache::KvCache};

/// The fixtures' models have no tokenizer. The engine needs one to look for stop strings, and here
/// there are none: no id has a text.
const TOKENIZER_WITHOUT_TEXT: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
"pre_tokenizer": null, "post_processor": null, "decoder": null, "model": {"type": "WordLevel", "vocab": {"": 0}, "unk_token": ""}}"#;

/// Without an end-of-sequence token, and with one.
pub(super) fn compare<B: Backend>(
    fixture: &Fixture<'_, B>,
    case: &mut Case,
) -> Result<(), FixtureError> {
    let prompts = PaddedRows::read(fixture.tensors, "gen.")?;
    let generation = RecordedGeneration {
        fixture,
        prompts,
        n_new: count(fixture.json, "gen.max_new_tokens")?,
        tokenizer: tokenizer()?,
    };
    if fixture.tensors.has("gen.tokens") {
        generation.endless(case)?;
    }
    if fixture.tensors.has("gen_eos.tokens") {
        generation.ended(case)?;
    }
    Ok(())
}

fn tokenizer() -> Result<Tokenizer, FixtureError> {
    let file = tempfile::Builder::new().suffix(".json").tempfile().and_then(|file| {
        std::fs::write(file.path(), TOKENIZER_WITHOUT_TEXT)?;
        Ok(file)
    });
    let file = file.map_err(|source| FixtureError::Read { path: std::env::temp_dir(), source })?;
    Ok(Tokenizer::from_path(file.path())?)
}

struct RecordedGeneration<'a, B: Backend> {
    fixture: &'a Fixture<'a, B>,
    prompts: PaddedRows,
    n_new: usize,
    tokenizer: Tokenizer,
}

impl<B: Backend> RecordedGeneration<'_, B> {
    /// One greedy generation a prompt, at most `max_rows` of them at a time.
    fn generate(&self, max_rows: usize, eos_ids: Vec<u32>) -> Result<Vec<Completion>, EngineError> {
        let capacity = self.prompts.width() + self.n_new;
        let options = EngineOptions { max_rows, capacity, stop_strings: Vec::new(), eos_ids };
        let request = |row: usize| Request {
            row,
            ids: self.prompts.row_ids(row).into_iter().map(|id| id as u32).collect(),
            key: Key::new(0, Purpose::Rollout).fold(row as u64),
            max_new_tokens: self.n_new,
            sampling: Sampling::GREEDY,
        };
        let mut engine =
            Engine::new(self.fixture.model, &self.tokenizer, options, self.fixture.device);
        engine.generate((0..self.prompts.n_rows()).map(request).collect())
    }

    /// All rows together; and half of them, so that the others take the slots of those that have
    /// left.
    fn for_each_batch(
        &self,
        key: &str,
        eos_ids: &[u32],
        case: &mut Case,
        mut compare: impl FnMut(&str, Vec<Completion>, &mut Case) -> Result<(), FixtureError>,
    ) -> Result<(), FixtureError> {
        let n_rows = self.prompts.n_rows();
        for max_rows in [n_rows, n_rows.div_ceil(2)] {
            let label = format!("{key}, {max_rows} rows at a time");
            match self.generate(max_rows, eos_ids.to_vec()) {
                Ok(completions) => compare(&label, completions, case)?,
                Err(error) => case.fail(&label, error.to_string()),
            }
        }
        Ok(())
    }

    fn endless(&self, case: &mut Case) -> Result<(), FixtureError> {
        let tensors = self.fixture.tensors;
        let expected = tensors.integers_of("gen.tokens", &[self.prompts.n_rows(), self.n_new])?;
        let logits_key =
            tensors.keys().find(|key| key.starts_with("gen.step_logits_first")).map(str::to_owned);
        self.for_each_batch("gen.tokens", &[], case, |label, completions, case| {
            case.equal(label, &padded(&completions, self.n_new, -1), &expected);
            match &logits_key {
                Some(key) => self.first_logits(key, &completions, case),
                None => Ok(()),
            }
        })
    }

    /// The logits in front of the first tokens, along the engine's own tokens, and the log-probs
    /// that the engine reports of them.
    fn first_logits(
        &self,
        key: &str,
        completions: &[Completion],
        case: &mut Case,
    ) -> Result<(), FixtureError> {
        let recorded = self.fixture.tensors.floats(key)?;
        let [n_rows, n_steps, vocab] = recorded.dims::<3>(key)?;
        if n_rows != completions.len()
            || completions.iter().any(|completion| completion.ids.len() < n_steps)
        {
            let expected = format!("{} rows of at most {} steps", completions.len(), self.n_new);
            return Err(FixtureError::Shape {
                key: key.to_owned(),
                shape: recorded.shape,
                expected,
            });
        }
        let mut cache = KvCache::new(
            &self.fixture.model.config(),
            n_rows,
            self.prompts.width() + n_steps,
            self.fixture.device,
        );
        let mut got = vec![0.0; n_rows * n_steps * vocab];
        for step in 0..n_steps {
            let ids = |row: usize| match step {
                0 => self.prompts.row_ids(row),
                _ => vec![i64::from(completions[row].ids[step - 1])],
            };
            let rows: Vec<(usize, Vec<i64>)> = (0..n_rows).map(|row| (row, ids(row))).collect();
            for (row, logits) in self.fixture.append(&mut cache, &rows) {
                let start = (row * n_steps + step) * vocab;
                got[start..start + vocab].copy_from_slice(&logits);
            }
        }
        case.close(key, &got, &recorded.data, HIDDEN);
        let log_probs: Vec<f32> = completions
            .iter()
            .flat_map(|completion| completion.log_probs[..n_steps].iter().copied())
            .collect();
        let ids = completions.iter().flat_map(|completion| &completion.ids[..n_steps]);
        let expected: Vec<f32> = recorded
            .data
            .chunks(vocab)
            .zip(ids)
            .map(|(logits, &id)| log_softmax_at(logits, id as usize))
            .collect();
        case.close("the engine's log-probs", &log_probs, &expected, HIDDEN);
        Ok(())
    }

    fn ended(&self, case: &mut Case) -> Result<(), FixtureError> {
        let (eos, pad) = (
            count(self.fixture.json, "gen_eos.eos_token_id")?,
            count(self.fixture.json, "gen_eos.pad_token_id")?,
        );
        let expected = self.fixture.tensors.integers("gen_eos.tokens")?;
        self.for_each_batch("gen_eos.tokens", &[eos as u32], case, |label, completions, case| {
            let longest =
                completions.iter().map(|completion| completion.ids.len()).max().unwrap_or(0);
            let got = (vec![completions.len(), longest], padded(&completions, longest, pad as i64));
            case.equal(label, &got, &(expected.shape.clone(), expected.data.clone()));
            Ok(())
        })
    }
}

/// The ids of all rows, each filled up to `width`.
fn padded(completions: &[Completion], width: usize, pad: i64) -> Vec<i64> {
    let row = |completion: &Completion| -> Vec<i64> {
        let ids = completion.ids.iter().map(|&id| i64::from(id));
        ids.chain(std::iter::repeat(pad)).take(width.max(completion.ids.len())).collect()
    };
    completions.iter().flat_map(row).collect()
}

/// log softmax(logits)[id], from recorded logits in f64.
fn log_softmax_at(logits: &[f32], id: usize) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    (f64::from(logits[id] - max) - total.ln()) as f32
}
