//! The episodes of ARCap: each annotated question twice with its gold passages given, each
//! question once as a query.
use super::{
    PipelineError,
    served::{Losses, Waiting},
    setup::Setup,
};
use crate::{
    data::DataError,
    devices,
    episodes::write_episodes,
    eval::arcap::{Arcap, Played, gold_opening, has_gold_passages, tag_prefix},
};
use dgpo_core::{
    env::{
        protocol::{ANSWER_OPEN, THINK_OPEN},
        search::{Hit, Retriever, SearchError},
    },
    question::Question,
    rng::{Key, Purpose},
    rollout::Episode,
    settings::{EpisodeRecipe, Sampling},
    tokenizer::Tokenizer,
    trainer::player::Player,
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
    /// Writes `STEM-arcap-without-thinking.jsonl` and `STEM-arcap-with-thinking.jsonl` into a
    /// folder; returns their names.
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
        (tokenizer, retriever): (&Tokenizer, &dyn Retriever),
        model: &Decoder<I>,
        episodes: &[Episode],
        waiting: &mut Waiting<'_>,
    ) -> Result<(ArcapEpisodes, Arcap), PipelineError> {
        let questions = episodes.iter().map(|episode| &episode.question);
        let annotated: Vec<Question> =
            questions.clone().filter(|question| has_gold_passages(question)).cloned().collect();
        let sampling = Sampling { temperature: self.recipe.eval.temperature, ..Sampling::GREEDY };
        let key = Key::new(self.recipe.run.seed, Purpose::Arcap);
        let [answer, think] = [ANSWER_OPEN, THINK_OPEN].map(|tag| tag_prefix(tokenizer, tag));
        let (answer, think) = (answer?, think?);
        let one_turn = EpisodeRecipe { max_turns: 0, ..self.recipe.episode.clone() };
        let stop = waiting.stop;
        let mut play = |what: &str, opening: &str, limits: &EpisodeRecipe, key: Key| {
            let served = waiting.until_served(what, retriever, annotated.len(), |watched| {
                let is_over = || watched.has_lost_too_much() || stop.is_requested();
                let ordinary = self.player(tokenizer, watched, &is_over);
                let player = Player {
                    opening: &|question| gold_opening(question, opening),
                    limits: limits.clone(),
                    ..ordinary
                };
                let episodes = player.play(model, &annotated, sampling, key, &self.device)?;
                let losses = Losses::of_episodes(&episodes);
                Ok((episodes, losses))
            });
            served.map(|served| served.value)
        };
        let played = ArcapEpisodes {
            with_thinking: play(
                "source referencing with thinking",
                &think,
                &self.recipe.episode,
                key.fold(0),
            )?,
            without_thinking: play(
                "source referencing without thinking",
                &answer,
                &one_turn,
                key.fold(1),
            )?,
        };
        devices::check::<I>(&self.device)?;
        let searched = search_all(questions, retriever, self.recipe.retriever.top_k, waiting)?;
        let ArcapEpisodes { without_thinking, with_thinking } = &played;
        let arcap = Arcap::of(
            Played { ordinary: episodes, searched: &searched, without_thinking, with_thinking },
            self.recipe.run.seed,
        );
        Ok((played, arcap))
    }
}

/// Passages that the retriever has for each question as it stands.
fn search_all<'q>(
    questions: impl Iterator<Item = &'q Question>,
    retriever: &dyn Retriever,
    top_k: usize,
    waiting: &mut Waiting<'_>,
) -> Result<Vec<Result<Vec<Hit>, SearchError>>, PipelineError> {
    let queries: Vec<String> = questions.map(|question| question.question.clone()).collect();
    let stop = waiting.stop;
    let served =
        waiting.until_served("the questions as queries", retriever, queries.len(), |watched| {
            let mut found = Vec::with_capacity(queries.len());
            for batch in queries.chunks(SEARCH_BATCH) {
                if stop.is_requested() {
                    return Err(PipelineError::Stopped);
                }
                found.extend(watched.search(batch, top_k));
            }
            let losses = Losses::of_results(&found);
            Ok((found, losses))
        });
    served.map(|served| served.value)
}
