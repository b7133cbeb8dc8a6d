//! The largest number that each size of a recipe may be.
//!
//! A slip of the hand (or a file that was damaged) must not become an allocation, a loop of
//! centuries or an overflow in the bill. So whatever counts something has an upper bound, far
//! beyond what anybody computes. Keys that are not in the table have the bound of all counts, so
//! that none is forgotten.
use super::{Recipe, Stage, check::Findings};
use toml::Value;

/// Steps, episodes, questions, passages: nothing of a run is counted further.
const MOST: i64 = 1_000_000_000;
/// Tokens of a prompt, an observation, an episode or a passage: the longest contexts that were
/// published have ten million.
const MOST_TOKENS: i64 = 1 << 24;
/// Tokens of a batch.
const MOST_TOKENS_AT_ONCE: i64 = 1 << 30;
/// Sizes held at the same time, and the rows of a batch.
const MOST_AT_ONCE: i64 = 1 << 20;
/// Turns, attempts and epochs.
const MOST_ROUNDS: i64 = 1_000_000;
/// Seconds of one pause or timeout: almost four months.
const MOST_SECONDS: f64 = 1e7;

/// Tokens of a phase, counted as [`super::plan`] counts them; the published runs have some 10^10.
const MOST_TOKENS_OF_A_PHASE: f64 = 1e15;

const BOUNDS: [(&str, i64); 33] = [
    // Every random number derives from it, and every whole number is as good as another.
    ("run.seed", i64::MAX),
    ("data.max_passages", i64::MAX),
    ("episode.max_turns", MOST_ROUNDS),
    ("episode.max_response_length", MOST_TOKENS),
    ("episode.max_obs_length", MOST_TOKENS),
    ("episode.max_start_length", MOST_TOKENS),
    ("episode.max_prompt_length", MOST_TOKENS),
    ("episode.max_rows", MOST_AT_ONCE),
    ("retriever.max_retries", MOST_ROUNDS),
    ("retriever.batch_queries", MOST_AT_ONCE),
    ("retriever.top_k", MOST_AT_ONCE),
    ("retriever.hnsw_m", MOST_AT_ONCE),
    ("retriever.hnsw_ef_construction", MOST_AT_ONCE),
    ("retriever.hnsw_ef_search", MOST_AT_ONCE),
    ("retriever.max_tokens", MOST_TOKENS),
    ("retriever.batch_tokens", MOST_TOKENS_AT_ONCE),
    ("distill.epochs", MOST_ROUNDS),
    ("distill.batch", MOST_AT_ONCE),
    ("distill.micro_batch_tokens", MOST_TOKENS_AT_ONCE),
    ("distill.student_outputs.n_validation", MOST_AT_ONCE),
    ("distill.student_outputs.capacity", MOST_AT_ONCE),
    ("gkd.questions_per_step", MOST_AT_ONCE),
    ("gkd.micro_batch_tokens", MOST_TOKENS_AT_ONCE),
    ("rl.questions_per_step", MOST_AT_ONCE),
    ("rl.episodes_per_question", MOST_AT_ONCE),
    ("rl.mini_batch", MOST_AT_ONCE),
    ("rl.micro_batch_tokens", MOST_TOKENS_AT_ONCE),
    ("rl.epochs", MOST_ROUNDS),
    ("guards.window", MOST_AT_ONCE),
    ("pretrain.batch", MOST_AT_ONCE),
    ("encoder.batch", MOST_AT_ONCE),
    ("run.keep", MOST),
    ("run.save_every", MOST),
];

/// True if a value of the right type is within its bound.
/// # Errors
/// Fault of a value, and a hint.
pub(super) fn check(key: &str, value: &Value) -> Result<(), (String, String)> {
    match value {
        Value::Integer(n) => {
            let most = BOUNDS.iter().find(|(name, _)| *name == key).map_or(MOST, |(_, most)| *most);
            if *n <= most {
                Ok(())
            } else {
                Err((format!("{n} is too large"), format!("at most {most}")))
            }
        }
        Value::Float(seconds) if key.ends_with("_s") && *seconds > MOST_SECONDS => Err((
            format!("{seconds} seconds are too long"),
            format!("at most {MOST_SECONDS} seconds"),
        )),
        _ => Ok(()),
    }
}

/// Sizes that are possible one by one may together be more than anybody computes, or can count.
pub(super) fn check_volume(recipe: &Recipe, found: &mut Findings) {
    let (stage, length) = (recipe.stage, recipe.episode.max_prompt_length);
    let (rl, gkd, distill) = (&recipe.rl, &recipe.gkd, &recipe.distill);
    let distilled = if distill.steps > 0 {
        [distill.steps, distill.batch]
    } else {
        [distill.epochs, recipe.demos.n_episodes]
    };
    let phases: [(bool, &'static str, &[usize]); 5] = [
        (
            stage.has_rl(),
            "rl.steps",
            &[rl.steps, rl.questions_per_step, rl.episodes_per_question, rl.epochs, length],
        ),
        (stage.has_gkd(), "gkd.steps", &[gkd.steps, gkd.questions_per_step, length]),
        (stage.has_distillation(), "distill.steps", &[distilled[0], distilled[1], length]),
        (
            stage == Stage::Pretrain,
            "pretrain.steps",
            &[recipe.pretrain.steps, recipe.pretrain.batch, length],
        ),
        (
            stage == Stage::Encoder,
            "encoder.steps",
            &[recipe.encoder.steps, recipe.encoder.batch, recipe.retriever.max_tokens],
        ),
    ];
    for (is_there, key, factors) in phases {
        let n_tokens: f64 = factors.iter().map(|&n| n as f64).product();
        found.error(
            is_there && n_tokens > MOST_TOKENS_OF_A_PHASE,
            key,
            || {
                format!(
                    "the phase would have up to {n_tokens:.1e} tokens, more than \
                     {MOST_TOKENS_OF_A_PHASE:.0e}"
                )
            },
            || "fewer steps, smaller batches or shorter episodes".into(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{check, load::tests::error_of};

    /// Dotted key -> value.
    fn leaves(prefix: &str, value: Value, out: &mut Vec<(String, Value)>) {
        match value {
            Value::Table(table) => {
                for (key, value) in table {
                    leaves(
                        &if prefix.is_empty() { key } else { format!("{prefix}.{key}") },
                        value,
                        out,
                    );
                }
            }
            value => out.push((prefix.to_owned(), value)),
        }
    }

    fn default_leaves() -> Vec<(String, Value)> {
        let mut found = Vec::new();
        leaves("", Value::try_from(Recipe::default()).unwrap(), &mut found);
        found
    }

    #[test]
    fn every_bound_is_of_a_key_that_exists() {
        let keys: Vec<String> = default_leaves().into_iter().map(|(key, _)| key).collect();
        for (key, _) in BOUNDS {
            assert!(keys.iter().any(|known| known == key), "{key}");
        }
    }

    #[test]
    fn no_size_may_be_the_largest_number_there_is() {
        let sizes: Vec<String> = default_leaves()
            .into_iter()
            .filter(|(_, value)| value.is_integer())
            .map(|(key, _)| key)
            .collect();
        assert!(sizes.len() > 40, "{sizes:?}");
        for key in
            sizes.iter().filter(|key| !["run.seed", "data.max_passages"].contains(&key.as_str()))
        {
            let error = error_of("", &[&format!("{key}={}", i64::MAX)]);
            let place = format!("{key}: {} is too large", i64::MAX);
            assert!(error.contains(&place) && error.contains("hint: at most "), "{error}");
        }
    }

    #[test]
    fn sizes_that_are_possible_one_by_one_are_refused_where_they_are_too_much_together() {
        let found = |change: fn(&mut Recipe)| {
            let mut recipe = Recipe::default();
            change(&mut recipe);
            let too_large = check::check(&recipe)
                .errors
                .into_iter()
                .filter(|problem| problem.message.contains(" tokens, more than "));
            too_large.map(|problem| (problem.key, problem.message)).collect::<Vec<_>>()
        };
        assert_eq!(found(|_| ()), []);
        let rl = found(|r| {
            (r.rl.questions_per_step, r.rl.epochs, r.rl.steps) = (1 << 20, 1 << 10, 1 << 20)
        });
        assert!(
            rl.len() == 1 && rl[0].0 == "rl.steps" && rl[0].1.contains("up to 4.6e18 tokens"),
            "{rl:?}"
        );
        assert_eq!(
            found(|r| (r.distill.epochs, r.demos.n_episodes) = (1 << 20, 1 << 20))[0].0,
            "distill.steps"
        );
    }

    #[test]
    fn a_bound_holds_for_set_and_for_seconds() {
        let error = error_of("", &["rl.questions_per_step=1048577"]);
        assert!(
            error.contains("--set rl.questions_per_step=1048577")
                && error.contains("at most 1048576"),
            "{error}"
        );
        let error = error_of("retriever.timeout_s = 1e300\n", &[]);
        assert!(
            error.contains("r.toml:2: retriever.timeout_s: ")
                && error.contains("at most 10000000 seconds"),
            "{error}"
        );
    }
}
