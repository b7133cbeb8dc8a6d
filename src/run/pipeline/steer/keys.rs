//! Which settings a run that has begun may be given anew, and why not the others.
use crate::pipeline::reuse::is_in;
use dgpo_core::settings::Phase;

/// Settings that change nothing but what is still to come, with the phases that read them; without
/// a phase, the whole run does.
///
/// A name stands for a key, or for a table of keys. docs: configs/README.md.
pub const STEERABLE: [(&[Phase], &[&str]); 8] = [
    (&[Phase::Pretrain], &["pretrain.steps"]),
    (&[Phase::Kd], &["distill.steps", "distill.epochs"]),
    (&[Phase::Gkd], &["gkd.steps", "gkd.micro_batch_tokens"]),
    (&[Phase::Pretrain, Phase::Kd], &["distill.micro_batch_tokens"]),
    (
        &[Phase::Pretrain, Phase::Kd, Phase::Gkd],
        &["optim.distill.lr", "optim.distill.warmup", "optim.distill.decay"],
    ),
    (
        &[Phase::Rl],
        &[
            "rl.steps",
            "rl.entropy_coef",
            "rl.micro_batch_tokens",
            "kl.coef",
            "optim.actor.lr",
            "optim.actor.warmup",
            "optim.actor.decay",
            "optim.critic.lr",
            "optim.critic.warmup",
            "optim.critic.decay",
        ],
    ),
    // The episodes of RL and GKD are played anew at every step; those that KD learns from were kept
    // by these lengths.
    (
        &[Phase::Gkd, Phase::Rl],
        &[
            "episode.max_turns",
            "episode.max_response_length",
            "episode.max_obs_length",
            "episode.max_start_length",
            "episode.max_prompt_length",
        ],
    ),
    (
        &[],
        &[
            "guards",
            "eval",
            "data.test",
            "data.max_test",
            "run.keep",
            "run.save_every",
            "model.recompute",
            "episode.max_rows",
            "retriever.url",
            "retriever.timeout_s",
            "retriever.max_retries",
            "retriever.first_pause_s",
            "retriever.batch_queries",
            "retriever.max_lost_share",
            "retriever.max_outage_s",
            "retriever.batch_tokens",
        ],
    ),
];

/// Why the settings of a table stay, longest name first.
const FIXED: [(&str, &str); 11] = [
    ("run.seed", "the questions and the random numbers so far were drawn with it"),
    ("run.name", "it is the name of the folder"),
    ("stage", "the checkpoints stand in the order of its phases"),
    (
        "model",
        "the checkpoints are that model, with that tokenizer, and their optimizer's state belongs \
         to it",
    ),
    ("data", "the place in the data is counted in these files"),
    ("retriever", "what was learned so far was learned from its passages"),
    ("episode", "what was learned so far was learned from episodes played by it"),
    ("demos", "the teacher's episodes were played and kept by it"),
    ("encoder", "the training of an encoder does not resume"),
    ("optim", "the optimizer's state was gathered with it"),
    ("", "the steps so far were computed with it"),
];

/// The phases that read a key which may change; None of one that may not.
pub(super) fn readers(key: &str) -> Option<&'static [Phase]> {
    STEERABLE
        .iter()
        .find(|(_, names)| names.iter().any(|name| is_in(key, name)))
        .map(|(phases, _)| *phases)
}

/// Why a key that no phase may read anew stays as it is.
pub(super) fn why_fixed(key: &str) -> &'static str {
    FIXED
        .iter()
        .find(|(table, _)| table.is_empty() || is_in(key, table))
        .expect("the last entry is of every key")
        .1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Recipe, load::to_toml};

    #[test]
    fn every_name_is_one_of_a_recipe() {
        let recipe: toml::Table = to_toml(&Recipe::default()).parse().unwrap();
        let is_there = |name: &str| {
            let mut parts = name.split('.');
            let first = recipe.get(parts.next().unwrap_or_default());
            parts.fold(first, |table, part| table?.get(part)).is_some()
        };
        for name in
            STEERABLE.iter().flat_map(|(_, names)| *names).chain(FIXED.iter().map(|(name, _)| name))
        {
            assert!(name.is_empty() || is_there(name), "{name}");
        }
    }

    #[test]
    fn the_documented_list_is_this_one() {
        let text = std::fs::read_to_string(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../configs/README.md"
        ))
        .unwrap();
        let section = text.split("## Going on longer").nth(1).unwrap();
        let cells =
            section.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
        // Every second part between backticks, and what `kl.coef` is bound to is no entry.
        let keys = cells
            .flat_map(|cell| cell.split('`').step_by(2))
            .filter(|key| !key.contains(' ') && !key.starts_with(','));
        let mut documented: Vec<&str> = keys.filter(|key| !key.is_empty()).collect();
        let mut known: Vec<&str> =
            STEERABLE.iter().flat_map(|(_, names)| *names).copied().collect();
        documented.sort_unstable();
        known.sort_unstable();
        assert_eq!(documented, known);
    }

    #[test]
    fn a_table_stands_for_its_keys_and_for_no_others() {
        assert_eq!(readers("guards.window"), Some(&[][..]));
        assert_eq!(readers("optim.actor.lr"), Some(&[Phase::Rl][..]));
        assert_eq!(
            (readers("guardsman"), readers("data.train"), readers("rl.clip_ratio")),
            (None, None, None)
        );
        assert!(why_fixed("data.train").starts_with("the place in the data"));
        assert_eq!(why_fixed("gae.lambda"), "the steps so far were computed with it");
    }
}
