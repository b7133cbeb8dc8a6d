//! The rules between fields: what a type cannot say. Each rule names the key to change and what to
//! change it to.
//!
//! All broken rules are reported at once. Only what the stage uses is checked, so an RL recipe need
//! not fill in the encoder stage. The rules of RL and of the guards have files of their own below
//! this one.
mod guards;
mod rl;

use super::{
    Problem, Recipe, RetrieverKind, Stage, bounds,
    check_distill::{check_distill, check_gkd},
};
use dgpo_core::settings::{AdamWRecipe, date::Date};

/// hnsw_rs stores the number of links of a node in one byte.
const MAX_HNSW_LINKS: usize = 255;

/// Findings of [`check`].
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// The run cannot start.
    pub errors: Vec<Problem>,
    /// The run can start, but is probably not what was meant.
    pub warnings: Vec<Problem>,
}

impl Findings {
    pub(super) fn error(
        &mut self,
        is_broken: bool,
        key: &'static str,
        message: impl FnOnce() -> String,
        hint: impl FnOnce() -> String,
    ) {
        if is_broken {
            self.errors.push(Problem { key, message: message(), hint: hint() });
        }
    }

    pub(super) fn warn(
        &mut self,
        is_odd: bool,
        key: &'static str,
        message: impl FnOnce() -> String,
        hint: impl FnOnce() -> String,
    ) {
        if is_odd {
            self.warnings.push(Problem { key, message: message(), hint: hint() });
        }
    }

    pub(super) fn positive(&mut self, key: &'static str, value: usize) {
        self.error(
            value == 0,
            key,
            || "must be at least 1".into(),
            || format!("{key} = 1 is the smallest"),
        );
    }

    /// A finite number with `is_legal`; `range` says in words what that is.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        value: f64,
        is_legal: impl Fn(f64) -> bool,
        range: &str,
    ) {
        self.error(
            !value.is_finite() || !is_legal(value),
            key,
            || format!("{value} is out of range"),
            || format!("{key} must be a number {range}"),
        );
    }

    fn not_empty(&mut self, key: &'static str, is_empty: bool, hint: &str) {
        self.error(is_empty, key, || "is empty".into(), || hint.to_owned());
    }
}

pub(super) const IN_UNIT_INTERVAL: &str = "from 0 to 1";
pub(super) fn in_unit_interval(x: f64) -> bool {
    (0.0..=1.0).contains(&x)
}
pub(super) const NOT_NEGATIVE: &str = "from 0 on";
pub(super) fn not_negative(x: f64) -> bool {
    x >= 0.0
}
pub(super) const POSITIVE: &str = "above 0";
pub(super) fn positive(x: f64) -> bool {
    x > 0.0
}

/// Checks every rule that concerns the recipe's stage.
pub fn check(recipe: &Recipe) -> Findings {
    let mut found = Findings::default();
    bounds::check_volume(recipe, &mut found);
    check_run(recipe, &mut found);
    check_model(recipe, &mut found);
    match recipe.stage {
        Stage::Pretrain => check_pretrain(recipe, &mut found),
        Stage::Encoder => check_encoder(recipe, &mut found),
        _ => {
            check_episode(recipe, &mut found);
            if plays_episodes(recipe) {
                check_retriever(recipe, &mut found);
            }
            check_data(recipe, &mut found);
        }
    }
    if recipe.stage.has_distillation() {
        check_distill(recipe, &mut found);
    }
    if recipe.stage.has_gkd() {
        check_gkd(recipe, &mut found);
    }
    if recipe.stage.has_distillation() || recipe.stage.has_gkd() {
        check_adamw(&recipe.optim.distill, DISTILL_KEYS, &mut found);
    }
    if recipe.stage.has_rl() {
        rl::check_rl(recipe, &mut found);
        rl::check_kl(recipe, &mut found);
    }
    if recipe.stage != Stage::Encoder {
        guards::check_guards(&recipe.guards, &mut found);
    }
    found
}

/// True if the run plays training episodes itself: everything but distillation on ready-made
/// trajectories alone.
pub fn plays_episodes(recipe: &Recipe) -> bool {
    let needs_new =
        recipe.data.trajectories.is_empty() || recipe.distill.student_outputs.is_adaptive;
    recipe.stage.has_rl()
        || recipe.stage.has_gkd()
        || (recipe.stage.has_distillation() && needs_new)
}

/// Checks what an episode of `model.student` takes: for commands that train nothing.
pub fn check_play(recipe: &Recipe) -> Findings {
    let mut found = Findings::default();
    found.not_empty(
        "model.student",
        recipe.model.student.is_empty(),
        "a folder, owner/name, or builtin:tiny/student",
    );
    check_episode(recipe, &mut found);
    check_retriever(recipe, &mut found);
    check_test(recipe, &mut found);
    found
}

/// Checks the retriever and what it searches, for commands that use nothing else of a recipe.
pub fn check_search(recipe: &Recipe) -> Findings {
    let mut found = Findings::default();
    check_retriever(recipe, &mut found);
    found
}

fn check_run(recipe: &Recipe, found: &mut Findings) {
    let name = &recipe.run.name;
    let is_odd = name.starts_with('.')
        || name.contains(|c: char| !(c.is_alphanumeric() || "._-+".contains(c)));
    found.error(
        is_odd,
        "run.name",
        || format!("\"{name}\" is no folder name"),
        || "use letters, digits and . _ - +".into(),
    );
}

fn check_model(recipe: &Recipe, found: &mut Findings) {
    let model = &recipe.model;
    found.error(
        Date::parse(&model.template_date).is_none(),
        "model.template_date",
        || format!("\"{}\" is no date", model.template_date),
        || "write it as \"26 Jul 2024\"".into(),
    );
    if recipe.stage != Stage::Encoder {
        found.not_empty(
            "model.student",
            model.student.is_empty(),
            "a folder, owner/name, or builtin:tiny/student",
        );
    }
}

fn check_episode(recipe: &Recipe, found: &mut Findings) {
    let episode = &recipe.episode;
    found.error(
        !episode.instruction.contains("{question}"),
        "episode.instruction",
        || "does not contain {question}, so every prompt would be the same".into(),
        || "end it with \"Question: {question}\\n\"".into(),
    );
    for (key, value) in [
        ("episode.max_response_length", episode.max_response_length),
        ("episode.max_obs_length", episode.max_obs_length),
        ("episode.max_start_length", episode.max_start_length),
        ("episode.max_prompt_length", episode.max_prompt_length),
        ("episode.max_rows", episode.max_rows),
    ] {
        found.positive(key, value);
    }
    let shortest = episode.max_start_length + episode.max_response_length;
    found.error(
        shortest > episode.max_prompt_length,
        "episode.max_prompt_length",
        || {
            format!(
                "max_start_length ({}) + max_response_length ({}) = {shortest} tokens do not fit \
                 into max_prompt_length ({})",
                episode.max_start_length, episode.max_response_length, episode.max_prompt_length
            )
        },
        || {
            format!(
                "{shortest} is the smallest; {} lets every episode run to its end",
                episode.longest_episode()
            )
        },
    );
    found.number("episode.temperature", episode.temperature, not_negative, NOT_NEGATIVE);
    found.number("episode.top_p", episode.top_p, |p| p > 0.0 && p <= 1.0, "above 0 and up to 1");
    found.number("eval.temperature", recipe.eval.temperature, not_negative, NOT_NEGATIVE);
}

fn check_retriever(recipe: &Recipe, found: &mut Findings) {
    let retriever = &recipe.retriever;
    found.positive("retriever.top_k", retriever.top_k);
    found.number(
        "retriever.max_lost_share",
        retriever.max_lost_share,
        in_unit_interval,
        IN_UNIT_INTERVAL,
    );
    found.number("retriever.max_outage_s", retriever.max_outage_s, not_negative, NOT_NEGATIVE);
    found.number("retriever.first_pause_s", retriever.first_pause_s, not_negative, NOT_NEGATIVE);
    let no_passages = recipe.data.corpus.is_empty();
    match retriever.kind {
        RetrieverKind::Dense => {
            found.not_empty(
                "retriever.encoder",
                retriever.encoder.is_empty(),
                "e.g. \"intfloat/e5-base-v2\" or a folder",
            );
            found.positive("retriever.max_tokens", retriever.max_tokens);
            found.positive("retriever.batch_tokens", retriever.batch_tokens);
            let m = retriever.hnsw_m;
            found.error(
                !(2..=MAX_HNSW_LINKS).contains(&m),
                "retriever.hnsw_m",
                || format!("{m} links a node are not possible"),
                || format!("from 2 to {MAX_HNSW_LINKS}; 16 to 48 is usual"),
            );
            found.positive("retriever.hnsw_ef_construction", retriever.hnsw_ef_construction);
            found.error(
                retriever.hnsw_ef_search < retriever.top_k,
                "retriever.hnsw_ef_search",
                || {
                    format!(
                        "{} candidates cannot yield top_k = {} passages",
                        retriever.hnsw_ef_search, retriever.top_k
                    )
                },
                || format!("at least {}; 128 is usual", retriever.top_k),
            );
            found.not_empty(
                "data.corpus",
                no_passages,
                "name the passages; an index answers with their numbers alone",
            );
        }
        RetrieverKind::Bm25 => {
            found.not_empty("data.corpus", no_passages, "bm25 searches the passages of this file")
        }
        RetrieverKind::Remote => {
            // What a variable holds is seen when the retriever is opened.
            let is_address =
                retriever.url.starts_with("http://") || retriever.url.starts_with("${");
            found.error(
                !is_address,
                "retriever.url",
                || {
                    format!(
                        "\"{}\" is no http:// address (https is not spoken), and kind = \"remote\" \
                         needs one",
                        retriever.url
                    )
                },
                || "e.g. \"http://127.0.0.1:8000/retrieve\"".into(),
            );
            found.number("retriever.timeout_s", retriever.timeout_s, positive, POSITIVE);
            found.positive("retriever.batch_queries", retriever.batch_queries);
        }
    }
}

fn check_data(recipe: &Recipe, found: &mut Findings) {
    let data = &recipe.data;
    found.not_empty(
        "data.train",
        plays_episodes(recipe) && data.train.is_empty(),
        "list question files: [\"nq/train.jsonl\"]",
    );
    let is_untested = recipe.stage == Stage::Pipeline && data.test.is_empty();
    found.not_empty(
        "data.test",
        is_untested,
        "the pipeline ends with an evaluation; list question files",
    );
    check_test(recipe, found);
}

fn check_test(recipe: &Recipe, found: &mut Findings) {
    let data = &recipe.data;
    let twice = (1..data.test.len()).find(|&at| data.test[..at].contains(&data.test[at]));
    found.error(
        twice.is_some(),
        "data.test",
        || {
            format!(
                "names {} twice, and its questions would count twice",
                twice.map_or("", |at| &data.test[at])
            )
        },
        || "name every file once".into(),
    );
    found.warn(
        recipe.eval.arcap && data.test.is_empty(),
        "eval.arcap",
        || "is true, but data.test is empty, so no question is asked".into(),
        || "list question files in data.test".into(),
    );
}

fn check_pretrain(recipe: &Recipe, found: &mut Findings) {
    found.positive("pretrain.steps", recipe.pretrain.steps);
    found.positive("pretrain.batch", recipe.pretrain.batch);
    let is_missing = recipe.data.corpus.is_empty() && recipe.data.trajectories.is_empty();
    found.not_empty(
        "data.corpus",
        is_missing,
        "name passages here, or episodes in data.trajectories",
    );
    check_adamw(&recipe.optim.distill, DISTILL_KEYS, found);
}

fn check_encoder(recipe: &Recipe, found: &mut Findings) {
    found.positive("encoder.steps", recipe.encoder.steps);
    found.error(
        recipe.encoder.batch < 2,
        "encoder.batch",
        || format!("{} leaves no other passage as a negative", recipe.encoder.batch),
        || "2 is the smallest, 64 is usual".into(),
    );
    found.number("encoder.temperature", recipe.encoder.temperature, positive, POSITIVE);
    found.not_empty(
        "retriever.encoder",
        recipe.retriever.encoder.is_empty(),
        "the encoder to train, e.g. random:FOLDER",
    );
    found.not_empty("data.corpus", recipe.data.corpus.is_empty(), "the passages to learn from");
    check_adamw(&recipe.optim.distill, DISTILL_KEYS, found);
}

/// The dotted keys of one optimizer, in the order of [`check_adamw`].
type AdamWKeys = [&'static str; 7];
macro_rules! adamw_keys {
    ($table:literal) => {
        [
            concat!($table, ".lr"),
            concat!($table, ".warmup"),
            concat!($table, ".beta1"),
            concat!($table, ".beta2"),
            concat!($table, ".eps"),
            concat!($table, ".weight_decay"),
            concat!($table, ".max_grad_norm"),
        ]
    };
}
const DISTILL_KEYS: AdamWKeys = adamw_keys!("optim.distill");
const ACTOR_KEYS: AdamWKeys = adamw_keys!("optim.actor");
const CRITIC_KEYS: AdamWKeys = adamw_keys!("optim.critic");

fn check_adamw(
    optim: &AdamWRecipe,
    [lr, warmup, beta1, beta2, eps, weight_decay, max_grad_norm]: AdamWKeys,
    found: &mut Findings,
) {
    let below_one = |x: f64| (0.0..1.0).contains(&x);
    found.number(lr, optim.lr, not_negative, NOT_NEGATIVE);
    found.number(
        warmup,
        optim.warmup,
        in_unit_interval,
        "from 0 to 1 (a share of the steps, not a count)",
    );
    found.number(beta1, optim.beta1, below_one, "from 0 to below 1");
    found.number(beta2, optim.beta2, below_one, "from 0 to below 1");
    found.number(eps, optim.eps, positive, POSITIVE);
    found.number(weight_decay, optim.weight_decay, not_negative, NOT_NEGATIVE);
    found.number(max_grad_norm, optim.max_grad_norm, not_negative, NOT_NEGATIVE);
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
