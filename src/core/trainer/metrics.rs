//! Names of the metrics of a run, and the reduction of a step's figures.
//!
//! One line of `metrics.jsonl` a step: `{"phase", "step", NAME: value, ...}`. Names follow
//! CleanRL's PPO where it has one.

use serde_json::{Map, Value};

/// Contrastive loss of a retrieval encoder, and its recall: the fraction of pairs whose passage is
/// found.
pub const ENCODER_LOSS: &str = "losses/encoder_loss";
/// Fraction of pairs whose passage the encoder finds.
pub const ENCODER_RECALL: &str = "encoder/recall";
/// Distillation: cross-entropy and divergence from the teacher a token, nats, and their weighted
/// sum. Skew KL and TAID are cross-entropies, whose minimum is not 0 but the entropy of the target
/// (see `algo::distill::divergence_of`).
pub const DISTILL_LOSS: &str = "losses/distill_loss";
/// Cross-entropy of a distillation step.
pub const DISTILL_CE: &str = "losses/distill_ce";
/// Divergence of a distillation step; see [`DISTILL_LOSS`].
pub const DISTILL_KL: &str = "losses/distill_kl";
/// TAID: the weight of the teacher's logits in the target.
pub const TAID_T: &str = "distill/taid_t";
/// DistiLLM: the probability φ that a step learns from the student's episodes; the source of the
/// step's episodes: 0 the teacher's, 1 new ones, 2 the replay buffer.
pub const STUDENT_SHARE: &str = "distill/student_share";
/// DistiLLM: source of the step's episodes; see [`STUDENT_SHARE`].
pub const EPISODE_SOURCE: &str = "distill/source";
/// DistiLLM: cross-entropy on the held-out teacher episodes, nats a token; it rises when the
/// student forgets them.
pub const VALIDATION_LOSS: &str = "distill/validation_loss";
/// PPO's losses, as minimised (means over the step's optimizer updates).
pub const POLICY_LOSS: &str = "losses/policy_loss";
/// The critic's loss; see [`POLICY_LOSS`].
pub const VALUE_LOSS: &str = "losses/value_loss";
/// Mean entropy of the policy over agent tokens, nats.
pub const ENTROPY: &str = "losses/entropy";
/// Distance of the updated policy from the old one, over agent tokens: mean of log pi_old - log
/// pi_theta (k1, signed), and of (rho - 1) - log rho (k3, never negative). Runs recorded before the
/// second one was introduced have the first one under its name ([`rename_old`]).
pub const OLD_APPROX_KL: &str = "losses/old_approx_kl";
/// k3; see [`OLD_APPROX_KL`].
pub const APPROX_KL: &str = "losses/approx_kl";
/// Fraction of agent tokens whose ratio was clipped.
pub const CLIP_FRACTION: &str = "losses/clipfrac";
/// Fraction of values whose change was clipped.
pub const VALUE_CLIP_FRACTION: &str = "losses/value_clipfrac";
/// 1 - Var(returns - values) / Var(returns): 1 for a perfect critic, 0 for one that predicts
/// nothing.
pub const EXPLAINED_VARIANCE: &str = "losses/explained_variance";
/// Global L2 norm of the actor's gradient before clipping.
pub const ACTOR_GRAD_NORM: &str = "grad_norm/actor";
/// The same of the critic.
pub const CRITIC_GRAD_NORM: &str = "grad_norm/critic";
/// The same of the student in distillation.
pub const DISTILL_GRAD_NORM: &str = "grad_norm/distill";
/// Learning rate of the phase's network, the actor in RL.
pub const LEARNING_RATE: &str = "charts/learning_rate";
/// Learning rate of the critic.
pub const CRITIC_LEARNING_RATE: &str = "charts/critic_learning_rate";
/// Optimizer updates skipped because a loss or a gradient norm was not finite, so far.
pub const SKIPPED_UPDATES: &str = "charts/skipped_updates";
/// Tokens a second: generated in the rollout; passed through the update.
pub const ROLLOUT_TOKENS_PER_SECOND: &str = "perf/rollout_tokens_per_s";
/// Tokens a second through the update; see [`ROLLOUT_TOKENS_PER_SECOND`].
pub const UPDATE_TOKENS_PER_SECOND: &str = "perf/update_tokens_per_s";
/// Seconds of the whole step.
pub const STEP_SECONDS: &str = "perf/step_s";
/// Greedy exact match on the test questions: over all of them together, as the tables' EM, and as
/// the unweighted mean over data sets, as the paper averages. Runs recorded before the first one
/// was introduced have the second one under its name ([`rename_old`]).
pub const EVAL_EM: &str = "eval/em";
/// Unweighted mean over data sets; see [`EVAL_EM`].
pub const EVAL_AVERAGE_EM: &str = "eval/average_em";
/// Exact KL(student || teacher) a token, nats, on the agent tokens of those episodes.
pub const EVAL_TEACHER_KL: &str = "eval/teacher_kl";
/// Mean outcome reward (= exact match) of the step's episodes.
pub const REWARD: &str = "rollout/reward";
/// Fraction of episodes whose answer contains a gold answer.
pub const SUBSTRING_EM: &str = "rollout/substring_em";
/// Mean response length: all tokens after the prompt, and the agent's own.
pub const RESPONSE_TOKENS: &str = "rollout/response_tokens";
/// The agent's own tokens; see [`RESPONSE_TOKENS`].
pub const AGENT_TOKENS: &str = "rollout/agent_tokens";
/// Executed searches an episode.
pub const SEARCHES: &str = "rollout/searches";
/// Searches an episode that found no passage.
pub const NOTHING_FOUND: &str = "rollout/nothing_found";
/// Fraction of episodes one of whose searches brought a gold answer.
pub const HIT_RATIO: &str = "rollout/hit_ratio";
/// Fraction of executed searches whose passages were cut to episode.max_obs_length.
pub const OBSERVATIONS_CUT: &str = "rollout/observations_cut";
/// Invalid actions an episode.
pub const INVALID_ACTIONS: &str = "rollout/invalid_actions";
/// Fraction of a response's agent-token 8-grams that occurred in it before; high where the agent
/// writes in loops.
pub const REPETITION: &str = "rollout/repetition";
/// Fractions of episodes that ended with an answer, ran out of turns or tokens, or were dropped
/// because the retriever failed.
pub const ANSWERED: &str = "rollout/answered";
/// Ran out of turns or tokens; see [`ANSWERED`].
pub const TRUNCATED: &str = "rollout/truncated";
/// Dropped because a search failed; see [`ANSWERED`].
pub const RETRIEVER_FAILED: &str = "rollout/retriever_failed";
/// Fraction of the episodes with a search that were lost to the retriever. At 1 the step learns
/// from episodes without a search alone.
pub const LOST_SHARE: &str = "rollout/lost_share";
/// Mean and maximum over agent tokens of the absolute difference between the sampler's log-prob
/// and the recomputed one. It must stay tiny; otherwise rollout and update run different
/// models.
pub const LOGPROB_DIFF_MEAN: &str = "rollout/logprob_diff_mean";
/// Maximum; see [`LOGPROB_DIFF_MEAN`].
pub const LOGPROB_DIFF_MAX: &str = "rollout/logprob_diff_max";
/// Mean over all episodes of the KL estimate, those without the penalty counting 0, and beta.
pub const KL: &str = "kl/mean";
/// beta of the penalty; see [`KL`].
pub const KL_COEF: &str = "kl/coef";
/// Fraction of episodes that carry the penalty.
pub const KL_SELECTED: &str = "kl/selected_episodes";
/// GRPO: fraction of zero-variance groups, questions whose episodes all had the same reward, which
/// gives the policy no direction.
pub const FLAT_GROUPS: &str = "grpo/flat_groups";

/// The figures of one step, in the order in which they were recorded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(pub Vec<(&'static str, f64)>);

impl Metrics {
    /// Records a figure.
    pub fn set(&mut self, name: &'static str, value: f64) {
        self.0.push((name, value));
    }

    /// Appends another part of the step's figures.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The figure of this name, where the step has one.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(known, _)| *known == name).map(|&(_, value)| value)
    }
}

/// Gives a line of `metrics.jsonl` the present names. In a line with `losses/approx_kl` alone that
/// figure is k1, now `losses/old_approx_kl`; in one with `eval/em` alone it is the mean over data
/// sets, now `eval/average_em`.
pub fn rename_old(line: &mut Map<String, Value>) {
    for (old, new) in [(APPROX_KL, OLD_APPROX_KL), (EVAL_EM, EVAL_AVERAGE_EM)] {
        if !line.contains_key(new)
            && let Some(value) = line.remove(old)
        {
            line.insert(new.to_owned(), value);
        }
    }
}

/// Sum over values divided by their count; 0 without values.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mean {
    sum: f64,
    count: f64,
}

impl Mean {
    /// Counts one value.
    pub fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1.0;
    }

    /// The mean so far.
    pub fn value(&self) -> f64 {
        if self.count == 0.0 { 0.0 } else { self.sum / self.count }
    }
}

/// The rollout part of a step's metrics.
pub fn record_episodes(stats: &crate::rollout::EpisodeStats, metrics: &mut Metrics) {
    metrics.set(REWARD, stats.em);
    metrics.set(SUBSTRING_EM, stats.substring_em);
    metrics.set(RESPONSE_TOKENS, stats.response_tokens);
    metrics.set(AGENT_TOKENS, stats.agent_tokens);
    metrics.set(SEARCHES, stats.searches);
    metrics.set(NOTHING_FOUND, stats.nothing_found);
    metrics.set(HIT_RATIO, stats.hit_ratio);
    metrics.set(OBSERVATIONS_CUT, stats.observations_cut);
    metrics.set(INVALID_ACTIONS, stats.invalid_actions);
    metrics.set(REPETITION, stats.repetition);
    metrics.set(ANSWERED, stats.answered);
    metrics.set(TRUNCATED, stats.truncated);
    metrics.set(RETRIEVER_FAILED, stats.retriever_failed);
    metrics.set(LOST_SHARE, stats.lost_share);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_exact_match_of_an_older_run_gets_the_name_of_what_it_is() {
        for (written, read) in [
            (json!({"eval/em": 0.25}), json!({"eval/average_em": 0.25})),
            (
                json!({"eval/em": 0.5, "eval/average_em": 0.125}),
                json!({"eval/em": 0.5, "eval/average_em": 0.125}),
            ),
        ] {
            let mut line = written.as_object().unwrap().clone();
            rename_old(&mut line);
            assert_eq!(Value::Object(line), read);
        }
    }
}
