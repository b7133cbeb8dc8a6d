//! The rules of PPO, GRPO and the KL penalty.
use super::{
    ACTOR_KEYS, CRITIC_KEYS, Findings, IN_UNIT_INTERVAL, NOT_NEGATIVE, POSITIVE, check_adamw,
    in_unit_interval, not_negative, positive,
};
use crate::config::Recipe;
use dgpo_core::settings::{
    ADAPTIVE_ERROR_LIMIT, Algorithm, KlMode, KlPlacement, KlReference, RlRecipe,
};

pub(super) fn check_rl(recipe: &Recipe, found: &mut Findings) {
    let rl = &recipe.rl;
    for (key, value) in [
        ("rl.steps", rl.steps),
        ("rl.questions_per_step", rl.questions_per_step),
        ("rl.episodes_per_question", rl.episodes_per_question),
        ("rl.mini_batch", rl.mini_batch),
        ("rl.micro_batch_tokens", rl.micro_batch_tokens),
        ("rl.epochs", rl.epochs),
    ] {
        found.positive(key, value);
    }
    check_mini_batches(rl, found);
    found.error(
        rl.algorithm == Algorithm::Grpo && rl.episodes_per_question == 1,
        "rl.episodes_per_question",
        || {
            "is 1, and algorithm = \"grpo\" compares the episodes of a question with each other"
                .into()
        },
        || "at least 2; the paper has 5".into(),
    );
    found.number("rl.clip_ratio", rl.clip_ratio, positive, POSITIVE);
    found.number("rl.entropy_coef", rl.entropy_coef, not_negative, NOT_NEGATIVE);
    if rl.algorithm == Algorithm::Ppo {
        found.number("rl.clip_value", rl.clip_value, positive, POSITIVE);
        found.number("gae.gamma", recipe.gae.gamma, in_unit_interval, IN_UNIT_INTERVAL);
        found.number("gae.lambda", recipe.gae.lambda, in_unit_interval, IN_UNIT_INTERVAL);
        check_adamw(&recipe.optim.critic, CRITIC_KEYS, found);
    }
    found.error(
        recipe.episode.temperature == 0.0,
        "episode.temperature",
        || "is 0 (greedy): training episodes would explore nothing".into(),
        || "the paper has 1; eval.temperature = 0 makes the evaluation greedy".into(),
    );
    let is_cut = recipe.episode.top_p < 1.0 || recipe.episode.top_k > 0;
    found.warn(
        is_cut,
        "episode.top_p",
        || {
            "top_p or top_k leave tokens out, while the update uses the whole distribution's \
             probabilities"
                .into()
        },
        || "top_p = 1 and top_k = 0 sample from what is trained".into(),
    );
    found.warn(
        rl.micro_batch_tokens < recipe.episode.max_prompt_length,
        "rl.micro_batch_tokens",
        || {
            format!(
                "{} tokens are fewer than one episode may have ({})",
                rl.micro_batch_tokens, recipe.episode.max_prompt_length
            )
        },
        || "a longer episode becomes a micro-batch of its own, and memory is sized by it".into(),
    );
    check_adamw(&recipe.optim.actor, ACTOR_KEYS, found);
}

/// A step's episodes are cut into mini-batches without a remainder.
fn check_mini_batches(rl: &RlRecipe, found: &mut Findings) {
    if rl.mini_batch == 0 || rl.episodes_per_question == 0 {
        return;
    }
    let (episodes, played) = match rl.episodes_per_question {
        1 => ("questions_per_step".to_owned(), rl.questions_per_step.to_string()),
        n => (
            "questions_per_step * episodes_per_question".to_owned(),
            format!("{} * {n}", rl.questions_per_step),
        ),
    };
    // So many questions make whole mini-batches.
    let step = rl.mini_batch / greatest_common_divisor(rl.mini_batch, rl.episodes_per_question);
    found.error(
        !rl.episodes_per_step().is_multiple_of(rl.mini_batch),
        "rl.questions_per_step",
        || format!("{episodes} ({played}) is not a multiple of mini_batch ({})", rl.mini_batch),
        || format!("{} is the nearest", nearest_multiple(rl.questions_per_step, step)),
    );
}

/// The multiple of `step` (at least one) that lies nearest to `n`; the larger of two.
fn nearest_multiple(n: usize, step: usize) -> usize {
    ((n + step / 2) / step).max(1) * step
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

pub(super) fn check_kl(recipe: &Recipe, found: &mut Findings) {
    let kl = &recipe.kl;
    found.number("kl.coef", kl.coef, not_negative, NOT_NEGATIVE);
    found.number("kl.target", kl.target, not_negative, NOT_NEGATIVE);
    found.error(
        kl.target > 0.0 && kl.horizon.partial_cmp(&0.0) != Some(std::cmp::Ordering::Greater),
        "kl.horizon",
        || {
            format!(
                "{} episodes, while kl.target = {} makes the coefficient adaptive",
                kl.horizon, kl.target
            )
        },
        || "10000 is the published script's".into(),
    );
    // The largest correction is -20 % an `horizon` of episodes; one step must not take the
    // coefficient to 0 or below.
    let n_episodes = recipe.rl.episodes_per_step();
    let smallest = ADAPTIVE_ERROR_LIMIT * n_episodes as f64;
    found.error(
        kl.target > 0.0 && kl.horizon > 0.0 && kl.horizon <= smallest,
        "kl.horizon",
        || {
            format!(
                "{} is too short for {n_episodes} episodes a step: one step could make the \
                 coefficient negative",
                kl.horizon
            )
        },
        || format!("at least {n_episodes}, the number of episodes of a step"),
    );
    let needs_teacher = kl.mode != KlMode::None && kl.reference == KlReference::Teacher;
    found.error(
        needs_teacher && recipe.model.teacher.is_empty(),
        "kl.reference",
        || "is \"teacher\", and model.teacher is empty".into(),
        || "name a teacher, or set kl.reference = \"initial\" or kl.mode = \"none\"".into(),
    );
    found.error(
        recipe.rl.algorithm == Algorithm::Grpo
            && kl.mode != KlMode::None
            && kl.coef != 0.0
            && kl.placement == KlPlacement::Reward,
        "kl.in",
        || {
            "is \"reward\" with rl.algorithm = \"grpo\", which divides rewards by their spread \
             within a group: where all episodes of a question have the same outcome, that spread \
             is the penalty's own, and kl.coef has no effect"
                .into()
        },
        || "kl.in = \"loss\", as the paper's GRPO has it, or kl.mode = \"none\"".into(),
    );
    found.warn(
        kl.mode == KlMode::Selective && kl.reference == KlReference::Initial,
        "kl.reference",
        || "wrong episodes are pulled towards the initial student, which wrote such episodes itself".into(),
        || "the paper's selective penalty pulls towards the teacher".into(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::check::tests::{n_problems, problem};

    fn grpo(recipe: &mut Recipe, n_questions: usize, n_episodes: usize, mini_batch: usize) {
        (recipe.rl.algorithm, recipe.kl.placement) = (Algorithm::Grpo, KlPlacement::Loss);
        (recipe.rl.questions_per_step, recipe.rl.episodes_per_question, recipe.rl.mini_batch) =
            (n_questions, n_episodes, mini_batch);
    }

    #[test]
    fn questions_that_are_no_multiple_of_the_mini_batch_get_the_nearest_legal_number() {
        let found = problem(|r| r.rl.questions_per_step = 500);
        assert_eq!(
            found.to_string(),
            "rl.questions_per_step: questions_per_step (500) is not a multiple of mini_batch \
             (256); hint: 512 is the nearest"
        );
        assert!(problem(|r| r.rl.questions_per_step = 300).hint.starts_with("256"));
        assert!(problem(|r| r.rl.questions_per_step = 3).hint.starts_with("256"));
    }

    #[test]
    fn mini_batches_are_counted_in_episodes() {
        assert_eq!(n_problems(|r| grpo(r, 48, 5, 40)), 0);
        let found = problem(|r| grpo(r, 19, 5, 50));
        // 20 questions of 5 episodes are two mini-batches of 50.
        assert!(found.message.contains("(19 * 5)") && found.hint.starts_with("20 "), "{found}");
    }

    #[test]
    fn the_nearest_multiple_is_never_zero_and_rounds_a_tie_up() {
        assert_eq!(
            [(1, 256), (384, 256), (383, 256), (7, 2)].map(|(n, step)| nearest_multiple(n, step)),
            [256, 512, 256, 8]
        );
    }

    #[test]
    fn a_group_of_one_episode_compares_nothing() {
        assert_eq!(problem(|r| grpo(r, 512, 1, 256)).key, "rl.episodes_per_question");
        assert_eq!(n_problems(|r| grpo(r, 512, 2, 256)), 0);
        assert_eq!(problem(|r| r.rl.episodes_per_question = 0).key, "rl.episodes_per_question");
        assert_eq!(
            n_problems(|r| r.rl.episodes_per_question = 3),
            0,
            "PPO may play a question more than once"
        );
    }

    #[test]
    fn grpo_is_not_held_to_the_rules_of_a_critic() {
        let critic = |r: &mut Recipe| (r.optim.critic.lr, r.gae.lambda) = (-1.0, 2.0);
        assert_eq!(n_problems(critic), 2);
        assert_eq!(
            n_problems(|r| {
                critic(r);
                grpo(r, 512, 5, 256);
            }),
            0
        );
    }

    #[test]
    fn a_penalty_in_the_reward_is_refused_where_groups_set_the_unit() {
        let in_reward = |r: &mut Recipe| {
            grpo(r, 512, 5, 256);
            r.kl.placement = KlPlacement::Reward;
        };
        let found = problem(in_reward);
        assert!(
            found.key == "kl.in"
                && found.message.contains("kl.coef has no effect")
                && found.hint.starts_with("kl.in = \"loss\""),
            "{found}"
        );
        let without = |r: &mut Recipe| {
            in_reward(r);
            r.kl.mode = KlMode::None;
        };
        assert_eq!(n_problems(without), 0, "there is no penalty to place");
    }

    #[test]
    fn an_adaptive_coefficient_needs_a_horizon_above_a_steps_episodes() {
        assert_eq!(n_problems(|r| r.kl.horizon = 0.0), 0);
        assert_eq!(problem(|r| (r.kl.target, r.kl.horizon) = (0.1, 0.0)).key, "kl.horizon");
        // 20 % of 512 episodes are 102, of 5 times as many 512.
        assert_eq!(n_problems(|r| (r.kl.target, r.kl.horizon) = (0.1, 500.0)), 0);
        let found = problem(|r| {
            (r.kl.target, r.kl.horizon) = (0.1, 500.0);
            grpo(r, 512, 5, 256);
        });
        assert!(found.key == "kl.horizon" && found.message.contains("2560 episodes"), "{found}");
    }
}
