//! Share of observations that will be too long, before anything is played: measured on its
//! corpus with its tokenizer.
use super::PipelineError;
use crate::{
    config::{ModelRecipe, Recipe},
    data::sample::sample_passages,
    hub, models,
};
use dgpo_core::{
    env::{protocol::search_observation, search::Passage},
    rng::{Key, Purpose},
};
use serde::Serialize;
use std::fmt;

/// Observations that are looked at: a share near one half is then known to 0.025 (one standard
/// error).
const N_OBSERVATIONS: usize = 400;

/// Fraction of observations that `episode.max_obs_length` cuts, and their lengths.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CutShare {
    /// Observations of `top_k` passages drawn at random from the corpus.
    pub n_observations: usize,
    pub top_k: usize,
    /// Tokens an observation may have.
    pub max_obs_length: usize,
    /// Share of observations that have more.
    pub share: f64,
    /// Half of the observations have at most so many tokens.
    pub median_tokens: usize,
    /// 99 of 100 observations have at most so many tokens.
    pub p99_tokens: usize,
}

impl fmt::Display for CutShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { top_k, max_obs_length, share, median_tokens, p99_tokens, n_observations } = self;
        write!(
            f,
            "{:.1} % of observations are longer than episode.max_obs_length = {max_obs_length} \
             tokens and will be cut ({n_observations} of {top_k} random passages: median \
             {median_tokens} tokens, 99 % have at most {p99_tokens})",
            100.0 * share
        )
    }
}

/// For the recipe's corpus, where it and the tokenizer can be read. What is wrong with them is said
/// by whoever needs them.
pub fn cut_share_of(recipe: &Recipe) -> Option<CutShare> {
    let corpus = Some(recipe.data.corpus.as_str()).filter(|name| !name.is_empty())?;
    cut_share_in(recipe, corpus, recipe.data.max_passages).ok().flatten()
}

/// For the first passages of another file (0 = all), whatever the recipe's corpus; none if it holds
/// none.
/// # Errors
/// If the file or the recipe's tokenizer cannot be read.
pub fn cut_share_in(
    recipe: &Recipe,
    corpus: &str,
    first: usize,
) -> Result<Option<CutShare>, PipelineError> {
    let ModelRecipe { tokenizer, student, .. } = &recipe.model;
    let tokenizer = models::load_tokenizer(tokenizer, student)?
        .with_special_tokens_in_text(recipe.episode.special_tokens_in_text);
    let passages = sample_passages(&hub::resolve(corpus)?, first)?;
    let (top_k, max_obs_length) =
        (recipe.retriever.top_k.min(passages.len()), recipe.episode.max_obs_length);
    if top_k == 0 {
        return Ok(None);
    }
    let key = Key::new(0, Purpose::Index);
    let mut n_tokens = Vec::with_capacity(N_OBSERVATIONS);
    for i in 0..N_OBSERVATIONS as u64 {
        let drawn: Vec<Passage> = (0..top_k)
            .map(|rank| passages[key.fold(i).below(rank as u64, passages.len())].clone())
            .collect();
        n_tokens.push(tokenizer.encode_text(&search_observation(&drawn))?.len());
    }
    n_tokens.sort_unstable();
    let n_cut = n_tokens.iter().filter(|&&n| n > max_obs_length).count();
    Ok(Some(CutShare {
        n_observations: N_OBSERVATIONS,
        top_k,
        max_obs_length,
        share: n_cut as f64 / N_OBSERVATIONS as f64,
        median_tokens: n_tokens[N_OBSERVATIONS / 2 - 1],
        p99_tokens: n_tokens[N_OBSERVATIONS * 99 / 100 - 1],
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dgpo_core::testing::test_data;

    #[test]
    fn the_share_is_that_of_observations_with_more_tokens_than_the_limit() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let corpus = folder.path().join("corpus.jsonl");
        // One passage in four is long.
        let line = |i: usize| {
            let text = "qx ".repeat(if i.is_multiple_of(4) { 90 } else { 10 });
            format!("{{\"id\": {i}, \"contents\": \"\\\"T\\\"\\n{text}\"}}\n")
        };
        std::fs::write(&corpus, (0..40).map(line).collect::<String>()).expect("written");
        let mut recipe = Recipe::default();
        recipe.model.tokenizer = "builtin:tiny/student".to_owned();
        recipe.data.corpus = corpus.display().to_string();
        (recipe.retriever.top_k, recipe.episode.max_obs_length) = (1, 200);
        let found = cut_share_of(&recipe).expect("there are passages");
        assert!(
            (0.18..0.32).contains(&found.share)
                && found.median_tokens < 100
                && found.p99_tokens > 200,
            "{found:?}"
        );
        recipe.episode.max_obs_length = found.p99_tokens;
        assert_eq!(cut_share_of(&recipe).expect("there are passages").share, 0.0);
        recipe.episode.max_obs_length = 200;
        recipe.retriever.top_k = 3;
        let of_three = cut_share_of(&recipe).expect("there are passages");
        // 1 - 0.75^3 = 0.58
        assert!((0.48..0.68).contains(&of_three.share), "{of_three:?}");
        assert!(
            of_three
                .to_string()
                .contains("% of observations are longer than episode.max_obs_length = 200 tokens"),
            "{of_three}"
        );
    }

    #[test]
    fn without_corpus_or_tokenizer_there_is_nothing_to_measure() {
        let mut recipe = Recipe::default();
        assert_eq!(cut_share_of(&recipe), None);
        recipe.model.tokenizer = "builtin:tiny/student".to_owned();
        recipe.data.corpus = "no/such/corpus.jsonl".to_owned();
        assert_eq!(cut_share_of(&recipe), None);
    }

    #[test]
    fn the_papers_own_lengths_cut_some_real_observations() {
        let (Some(tokenizer), Some(corpus)) =
            (test_data("tokenizers/qwen2.5"), test_data("corpus/wiki_passages.jsonl.gz"))
        else {
            return;
        };
        let mut recipe = Recipe::default();
        recipe.model.tokenizer = tokenizer.display().to_string();
        let found = cut_share_in(&recipe, &corpus.display().to_string(), 0)
            .expect("measured")
            .expect("passages");
        assert_eq!((found.top_k, found.max_obs_length), (3, 500));
        assert!(found.share > 0.02 && found.share < 0.6, "{found}");
    }
}
