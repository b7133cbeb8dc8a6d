//! The episodes behind ARCap: each annotated question twice with its gold passages given, each question once as a query.
use super::{PipelineError, setup::Setup, setup::check_retriever};
use crate::{
    config::{EpisodeRecipe, Sampling},
    data::{DataError, questions::Question},
    env::protocol::{ANSWER_OPEN, THINK_OPEN},
    eval::{
        arcap::{Arcap, Played, gold_opening, has_gold_passages, tag_prefix},
        intervals::by_dataset,
    },
    retriever::{Hit, Retriever, RetrieverError},
    rng::{Key, Purpose},
    rollout::{Episode, episode::write_episodes},
    tokenizer::Tokenizer,
    trainer::{devices, events::Stop, player::Player},
};
use dgpo_models::{Backend, decoder::Decoder};
use std::path::Path;

/// Questions searched in one call: a stop request waits for it at most.
const SEARCH_BATCH: usize = 256;

/// Source referencing, episode by episode.
#[derive(Clone, Debug, Default)]
pub struct ArcapEpisodes {
    /// The gold passages given and `<answer>` forced.
    pub without_thinking: Vec<Episode>,
    /// The gold passages given and `<think>` forced, then the ordinary episode.
    pub with_thinking: Vec<Episode>,
}

impl ArcapEpisodes {
    /// Writes `STEM-arcap-without-thinking.jsonl` and `STEM-arcap-with-thinking.jsonl` into a folder; returns their names.
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, dir: &Path, stem: &str) -> Result<[String; 2], DataError> {
        let names = ["without", "with"].map(|how| format!("{stem}-arcap-{how}-thinking.jsonl"));
        write_episodes(&dir.join(&names[0]), &self.without_thinking)?;
        write_episodes(&dir.join(&names[1]), &self.with_thinking)?;
        Ok(names)
    }
}

impl<I: Backend> Setup<I> {
    /// Measures the capabilities of a model whose ordinary evaluation is `episodes`.
    /// # Errors
    /// As [`Setup::play_test`].
    pub fn play_arcap(
        &self,
        tokenizer: &Tokenizer,
        retriever: &dyn Retriever,
        model: &Decoder<I>,
        episodes: &[Episode],
        stop: &Stop,
    ) -> Result<(ArcapEpisodes, Arcap), PipelineError> {
        let questions = episodes.iter().map(|episode| &episode.question);
        let annotated: Vec<Question> = questions.clone().filter(|question| has_gold_passages(question)).cloned().collect();
        let sampling = Sampling { temperature: self.recipe.eval.temperature, ..Sampling::GREEDY };
        let key = Key::new(self.recipe.run.seed, Purpose::Arcap);
        let [answer, think] = [ANSWER_OPEN, THINK_OPEN].map(|tag| tag_prefix(tokenizer, tag));
        let (answer, think) = (answer?, think?);
        let one_turn = EpisodeRecipe { max_turns: 0, ..self.recipe.episode.clone() };
        let ordinary = self.player(tokenizer, retriever, Some(stop));
        let with = Player { opening: &|question| gold_opening(question, &think), ..ordinary };
        let played = ArcapEpisodes {
            with_thinking: with.play(model, &annotated, sampling, key.fold(0), &self.device)?,
            without_thinking: Player { opening: &|question| gold_opening(question, &answer), limits: one_turn, ..with }.play(
                model,
                &annotated,
                sampling,
                key.fold(1),
                &self.device,
            )?,
        };
        devices::check::<I>(&self.device)?;
        for (dataset, episodes) in by_dataset(&played.with_thinking) {
            check_retriever(episodes, &format!("{dataset} with gold passages"))?;
        }
        let searched = search_all(questions, retriever, self.recipe.retriever.top_k, stop)?;
        let ArcapEpisodes { without_thinking, with_thinking } = &played;
        let arcap = Arcap::of(Played { ordinary: episodes, searched: &searched, without_thinking, with_thinking }, self.recipe.run.seed);
        Ok((played, arcap))
    }
}

/// What the retriever has for each question as it stands.
fn search_all<'q>(
    questions: impl Iterator<Item = &'q Question>,
    retriever: &dyn Retriever,
    top_k: usize,
    stop: &Stop,
) -> Result<Vec<Result<Vec<Hit>, RetrieverError>>, PipelineError> {
    let queries: Vec<String> = questions.map(|question| question.question.clone()).collect();
    let mut found = Vec::with_capacity(queries.len());
    for batch in queries.chunks(SEARCH_BATCH) {
        if stop.is_requested() {
            return Err(PipelineError::Stopped);
        }
        let results = retriever.search(batch, top_k);
        if results.len() != batch.len() {
            let why = format!("{} results for {} queries", results.len(), batch.len());
            return Err(PipelineError::RetrieverDown { what: "the questions as queries".to_owned(), n: batch.len(), why });
        }
        found.extend(results);
    }
    Ok(found)
}
