//! metrics.jsonl -> charts: which metrics stand together, in which order, under which title.
//!
//! What the paper's Figures 4 and 6 plot comes first. A metric that nobody named here gets a chart
//! of its own at the end, so that a new one shows up without a change of this file. Steps of
//! different phases are different things: each phase is a section of its own.
use dgpo_core::trainer::metrics::*;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Points a curve has at most. Longer ones are cut into stretches of equal length, and a point is a
/// stretch's mean.
pub const MAX_POINTS: usize = 1000;

/// Curves of one phase.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Section {
    pub phase: String,
    pub title: String,
    pub charts: Vec<Chart>,
}

/// Curves that share axes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Chart {
    pub title: String,
    /// Description of the metric, with its unit.
    pub note: String,
    pub curves: Vec<Curve>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Curve {
    pub metric: String,
    pub label: String,
    pub steps: Vec<u64>,
    /// `None` where the metric was not finite.
    pub values: Vec<Option<f64>>,
    /// Steps whose mean a point is.
    pub steps_per_point: usize,
    /// Band of a curve that is a mean of several: the smallest and the largest of each point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub band: Option<Band>,
}

/// Between which values the curves lie whose mean is drawn.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Band {
    pub low: Vec<Option<f64>>,
    pub high: Vec<Option<f64>>,
}

impl Curve {
    /// First value, mean of the last tenth of the steps, smallest and largest; `None` without a
    /// single number.
    pub fn figures(&self) -> Option<[f64; 4]> {
        let known: Vec<f64> = self.values.iter().flatten().copied().collect();
        let tail = &known[known.len() - known.len().div_ceil(10)..];
        let last = tail.iter().sum::<f64>() / tail.len() as f64;
        let (min, max) = known
            .iter()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), &x| (min.min(x), max.max(x)));
        Some([*known.first()?, last, min, max])
    }
}

/// A chart that the page has where its metrics were recorded.
struct CurvePlan {
    title: &'static str,
    note: &'static str,
    /// Metric and the name of its curve.
    metrics: &'static [(&'static str, &'static str)],
}

const fn plan(
    title: &'static str,
    note: &'static str,
    metrics: &'static [(&'static str, &'static str)],
) -> CurvePlan {
    CurvePlan { title, note, metrics }
}

const PLANS: &[CurvePlan] = &[
    plan(
        "Reward",
        "share of correct episodes (exact match)",
        &[
            (REWARD, "training questions"),
            (EVAL_EM, "test questions"),
            (EVAL_AVERAGE_EM, "test questions, mean over data sets"),
        ],
    ),
    plan(
        "KL to the teacher",
        "exact, nats a token, on the test questions",
        &[(EVAL_TEACHER_KL, "KL")],
    ),
    plan(
        "KL to the reference",
        "nats a token, mean over all episodes; those without the penalty count 0",
        &[(KL, "KL")],
    ),
    plan("Entropy of the policy", "nats a token", &[(ENTROPY, "entropy")]),
    plan(
        "Response length",
        "tokens an episode",
        &[(RESPONSE_TOKENS, "after the prompt"), (AGENT_TOKENS, "the agent's own")],
    ),
    plan(
        "Searches",
        "executed searches an episode",
        &[(SEARCHES, "searches"), (NOTHING_FOUND, "that found nothing")],
    ),
    plan(
        "Hit ratio",
        "share of episodes with a passage that holds a gold answer",
        &[(HIT_RATIO, "hit ratio")],
    ),
    plan(
        "Observations that were cut",
        "share of executed searches whose passages were longer than episode.max_obs_length",
        &[(OBSERVATIONS_CUT, "cut")],
    ),
    plan(
        "Invalid actions",
        "turns without an action, an episode",
        &[(INVALID_ACTIONS, "invalid actions")],
    ),
    plan(
        "Repetition",
        "share of a response's 8-grams of tokens that occurred in it before",
        &[(REPETITION, "repetition")],
    ),
    plan(
        "Questions without a direction",
        "share of questions whose episodes all have the same reward",
        &[(FLAT_GROUPS, "questions")],
    ),
    plan(
        "How episodes end",
        "share of episodes",
        &[
            (ANSWERED, "answered"),
            (TRUNCATED, "out of turns or tokens"),
            (RETRIEVER_FAILED, "lost to the retriever"),
        ],
    ),
    plan(
        "Lost searches",
        "share of the episodes that searched",
        &[(LOST_SHARE, "lost to the retriever")],
    ),
    plan(
        "Gold answer inside the prediction",
        "share of episodes; never trained on",
        &[(SUBSTRING_EM, "substring match")],
    ),
    plan(
        "Distillation loss",
        "nats a token",
        &[
            (DISTILL_LOSS, "weighted sum"),
            (DISTILL_CE, "cross-entropy"),
            (
                DISTILL_KL,
                "divergence from the teacher (skew KL and TAID: cross-entropy to the target)",
            ),
        ],
    ),
    plan("Held-out teacher episodes", "cross-entropy, nats a token", &[(VALIDATION_LOSS, "loss")]),
    plan(
        "Share of the student's own episodes",
        "probability that a step learns from them",
        &[(STUDENT_SHARE, "φ")],
    ),
    plan(
        "Whose episodes",
        "0 the teacher's, 1 the student's new ones, 2 its earlier ones",
        &[(EPISODE_SOURCE, "source")],
    ),
    plan(
        "Target between student and teacher",
        "the teacher's share of its logits (TAID)",
        &[(TAID_T, "t")],
    ),
    plan(
        "Clip fraction",
        "share of tokens whose change was clipped",
        &[(CLIP_FRACTION, "policy"), (VALUE_CLIP_FRACTION, "value")],
    ),
    plan(
        "Explained variance",
        "1 − Var(returns − values) / Var(returns)",
        &[(EXPLAINED_VARIANCE, "explained variance")],
    ),
    plan(
        "Gradient norms",
        "before clipping",
        &[(ACTOR_GRAD_NORM, "actor"), (CRITIC_GRAD_NORM, "critic"), (DISTILL_GRAD_NORM, "student")],
    ),
    plan("Policy loss", "clipped surrogate, as minimised", &[(POLICY_LOSS, "policy loss")]),
    plan("Value loss", "clipped squared error", &[(VALUE_LOSS, "value loss")]),
    plan(
        "Movement of the policy",
        "estimates of KL(π_old ‖ π_θ), nats a token",
        &[(APPROX_KL, "mean of (ρ − 1) − log ρ"), (OLD_APPROX_KL, "mean of log π_old − log π_θ")],
    ),
    plan(
        "Penalised episodes",
        "share of episodes that carry the KL penalty",
        &[(KL_SELECTED, "penalised")],
    ),
    plan("KL coefficient", "β", &[(KL_COEF, "β")]),
    plan("Contrastive loss", "nats a pair", &[(ENCODER_LOSS, "loss")]),
    plan("Recall", "share of pairs whose passage is found", &[(ENCODER_RECALL, "recall")]),
    plan(
        "Learning rate",
        "",
        &[(LEARNING_RATE, "actor or student"), (CRITIC_LEARNING_RATE, "critic")],
    ),
    plan(
        "Sampler against trainer",
        "|difference of log-probs| a token",
        &[(LOGPROB_DIFF_MAX, "largest"), (LOGPROB_DIFF_MEAN, "mean")],
    ),
    plan(
        "Skipped updates",
        "so far, because of a number that was not finite",
        &[(SKIPPED_UPDATES, "skipped")],
    ),
    plan(
        "Speed",
        "tokens a second",
        &[(ROLLOUT_TOKENS_PER_SECOND, "rollout"), (UPDATE_TOKENS_PER_SECOND, "update")],
    ),
    plan("Seconds a step", "", &[(STEP_SECONDS, "seconds")]),
];

/// Sections in the order of the page; phases that this list does not know follow in the order of
/// the file.
const PHASES: [(&str, &str); 7] = [
    ("rl", "Reinforcement learning"),
    ("gkd", "Distillation on the student's own episodes"),
    ("kd", "Distillation"),
    ("demos", "Teacher episodes, by block of questions"),
    ("pretrain", "Language modelling"),
    ("encoder", "Retrieval encoder"),
    ("eval", "Evaluation"),
];

/// Everything recorded, as charts.
pub fn sections(lines: &[Map<String, Value>]) -> Vec<Section> {
    let text = |line: &Map<String, Value>| {
        line.get("phase").and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let mut phases: Vec<String> = PHASES.iter().map(|(name, _)| (*name).to_owned()).collect();
    for line in lines {
        if !phases.contains(&text(line)) {
            phases.push(text(line));
        }
    }
    let section = |phase: String| {
        let title = PHASES
            .iter()
            .find(|(name, _)| *name == phase)
            .map_or(phase.clone(), |(_, title)| (*title).to_owned());
        Section { charts: charts(lines.iter().filter(|line| text(line) == phase)), title, phase }
    };
    phases.into_iter().map(section).filter(|section| !section.charts.is_empty()).collect()
}

/// (steps, values) of a metric.
type CurvePoints = (Vec<u64>, Vec<Option<f64>>);

fn charts<'l>(lines: impl Iterator<Item = &'l Map<String, Value>>) -> Vec<Chart> {
    let mut by_metric: BTreeMap<&str, CurvePoints> = BTreeMap::new();
    for line in lines {
        let step = line.get("step").and_then(Value::as_u64).unwrap_or_default();
        for (name, value) in line
            .iter()
            .filter(|(name, value)| *name != "step" && (value.is_number() || value.is_null()))
        {
            let (steps, values) = by_metric.entry(name).or_default();
            steps.push(step);
            values.push(value.as_f64());
        }
    }
    let mut charts = Vec::new();
    for plan in PLANS {
        let recorded = plan
            .metrics
            .iter()
            .filter_map(|&(metric, label)| Some(curve(metric, label, by_metric.remove(metric)?)));
        let curves: Vec<Curve> = recorded.collect();
        if !curves.is_empty() {
            charts.push(Chart { title: plan.title.to_owned(), note: plan.note.to_owned(), curves });
        }
    }
    for (metric, points) in by_metric {
        charts.push(Chart {
            title: metric.to_owned(),
            note: String::new(),
            curves: vec![curve(metric, metric, points)],
        });
    }
    charts
}

fn curve(metric: &str, label: &str, (steps, values): CurvePoints) -> Curve {
    let steps_per_point = steps.len().div_ceil(MAX_POINTS).max(1);
    let mean = |values: &[Option<f64>]| {
        let known: Vec<f64> = values.iter().flatten().copied().collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
    };
    Curve {
        metric: metric.to_owned(),
        label: label.to_owned(),
        steps: steps.chunks(steps_per_point).filter_map(|chunk| chunk.last().copied()).collect(),
        values: values.chunks(steps_per_point).map(mean).collect(),
        steps_per_point,
        band: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line(phase: &str, step: u64, metrics: Value) -> Map<String, Value> {
        let mut line =
            Map::from_iter([("phase".to_owned(), json!(phase)), ("step".to_owned(), json!(step))]);
        line.extend(metrics.as_object().expect("an object").clone());
        line
    }

    #[test]
    fn reinforcement_learning_and_its_reward_come_first() {
        let lines = [
            line("demos", 1, json!({REWARD: 0.7})),
            line("kd", 1, json!({DISTILL_LOSS: 3.0})),
            line("rl", 1, json!({ENTROPY: 0.1, REWARD: 0.25})),
            line("rl", 2, json!({ENTROPY: 0.2, REWARD: 0.5})),
            line("rl", 2, json!({EVAL_EM: 0.375})),
        ];
        let sections = sections(&lines);
        assert_eq!(
            sections.iter().map(|s| s.phase.as_str()).collect::<Vec<_>>(),
            ["rl", "kd", "demos"]
        );
        let reward = &sections[0].charts[0];
        assert_eq!(reward.title, "Reward");
        assert_eq!(
            (&reward.curves[0].steps, &reward.curves[0].values),
            (&vec![1, 2], &vec![Some(0.25), Some(0.5)])
        );
        assert_eq!(
            (reward.curves[1].metric.as_str(), &reward.curves[1].steps),
            (EVAL_EM, &vec![2])
        );
    }

    #[test]
    fn what_the_papers_figures_plot_is_planned_and_a_run_without_a_critic_has_no_empty_charts() {
        let plotted = [
            REWARD,
            EVAL_EM,
            EVAL_TEACHER_KL,
            KL,
            ENTROPY,
            RESPONSE_TOKENS,
            SEARCHES,
            INVALID_ACTIONS,
            REPETITION,
            CLIP_FRACTION,
            ACTOR_GRAD_NORM,
        ];
        let of_the_critic = [EXPLAINED_VARIANCE, VALUE_LOSS, CRITIC_GRAD_NORM];
        let charts_of = |metrics: &[&str]| {
            let line = line(
                "rl",
                1,
                metrics
                    .iter()
                    .map(|name| ((*name).to_owned(), json!(0.5)))
                    .collect::<Map<String, Value>>()
                    .into(),
            );
            sections(&[line])[0].charts.clone()
        };
        let ppo = charts_of(&[&plotted[..], &of_the_critic].concat());
        let grpo = charts_of(&[&plotted[..], &[FLAT_GROUPS]].concat());
        assert!(
            ppo.iter()
                .chain(&grpo)
                .all(|chart| chart.curves.iter().all(|curve| chart.title != curve.metric)),
            "a title for each"
        );
        assert_eq!(
            ppo.iter().flat_map(|chart| &chart.curves).count(),
            plotted.len() + of_the_critic.len()
        );
        assert!(
            grpo.iter()
                .all(|chart| !["Explained variance", "Value loss"].contains(&chart.title.as_str())
                    && !chart.curves.is_empty())
        );
    }

    #[test]
    fn a_metric_that_nobody_planned_for_has_a_chart_of_its_own() {
        let sections = sections(&[line("rl", 1, json!({"new/metric": 2.5, "note": "text"}))]);
        let titles: Vec<&str> =
            sections[0].charts.iter().map(|chart| chart.title.as_str()).collect();
        assert_eq!(titles, ["new/metric"]);
        assert_eq!(sections[0].charts[0].curves[0].values, [Some(2.5)]);
    }

    #[test]
    fn a_phase_that_nobody_planned_for_has_a_section_under_its_name() {
        let sections = sections(&[line("sft", 1, json!({DISTILL_CE: 1.0}))]);
        assert_eq!((sections[0].phase.as_str(), sections[0].title.as_str()), ("sft", "sft"));
    }

    #[test]
    fn a_number_that_was_not_finite_is_a_gap() {
        let sections =
            sections(&[line("rl", 1, json!({KL: null})), line("rl", 2, json!({KL: 0.5}))]);
        let curve = &sections[0].charts[0].curves[0];
        assert_eq!((&curve.values, curve.figures()), (&vec![None, Some(0.5)], Some([0.5; 4])));
    }

    #[test]
    fn long_curves_keep_their_mean_and_their_last_step() {
        let n = 2 * MAX_POINTS as u64 + 1;
        let lines: Vec<_> =
            (1..=n).map(|step| line("rl", step, json!({REWARD: step as f64}))).collect();
        let curve = &sections(&lines)[0].charts[0].curves[0];
        // Stretches of three: 667 points, the last of two steps.
        assert_eq!(
            (curve.steps_per_point, curve.steps.len(), curve.steps.last()),
            (3, 667, Some(&n))
        );
        assert_eq!((curve.values[0], curve.values[1]), (Some(2.0), Some(5.0)));
    }

    #[test]
    fn the_figures_are_first_last_tenth_smallest_and_largest() {
        let lines: Vec<_> = (1..=20u32)
            .map(|step| line("rl", u64::from(step), json!({REWARD: f64::from(step)})))
            .collect();
        assert_eq!(sections(&lines)[0].charts[0].curves[0].figures(), Some([1.0, 19.5, 1.0, 20.0]));
    }
}
