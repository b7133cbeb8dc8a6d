//! Courses of training, as the paper's Figures 4 and 6 show them: what several rows recorded, in
//! the same chart.
use super::{
    results::{LearningCurve, SeedResults},
    rows::{ModelPair, name},
};
use dgpo_core::trainer::metrics::*;
use dgpo_run::report::curves::{Band, Chart, Curve, Section};

/// A figure: charts of the same rows.
struct Figure {
    phase: &'static str,
    title: &'static str,
    /// Methods and their labels.
    rows: &'static [(&'static str, &'static str)],
}

const FIGURES: [Figure; 2] = [
    Figure {
        phase: "figure-4",
        title: "Figure 4: PPO and GRPO from the student",
        rows: &[("ppo", "PPO"), ("grpo", "GRPO")],
    },
    Figure {
        phase: "figure-6",
        title: "Figure 6: DGPO and its variants",
        rows: &[
            ("dgpo", "DGPO"),
            ("dgpo-grpo", "DGPO with GRPO"),
            ("dgpo-no-kd", "DGPO without KD"),
            ("gkd", "GKD"),
            ("kd-gkd", "KD → GKD"),
        ],
    },
];

/// Metric, title, unit.
const CHARTS: [(&str, &str, &str); 12] = [
    (REWARD, "Training reward", "exact match of the sampled episodes"),
    (EVAL_AVERAGE_EM, "Exact match", "greedy, on the test questions, mean over data sets"),
    (EVAL_TEACHER_KL, "KL to the teacher", "exact, nats a token, on the test questions"),
    (ENTROPY, "Entropy", "nats a token"),
    (RESPONSE_TOKENS, "Response length", "tokens"),
    (SEARCHES, "Searches", "an episode"),
    (INVALID_ACTIONS, "Invalid actions", "an episode"),
    (CLIP_FRACTION, "Clip fraction", "share of tokens whose change was clipped"),
    (EXPLAINED_VARIANCE, "Explained variance", "of the returns, by the critic"),
    (ACTOR_GRAD_NORM, "Gradient norm of the policy", "before clipping"),
    (DISTILL_LOSS, "Distillation loss", "nats a token"),
    (DISTILL_GRAD_NORM, "Gradient norm of distillation", "before clipping"),
];

/// Both figures, as the report's charts. A chart without a single course is left out.
pub fn all(seeds: &[&SeedResults]) -> Vec<Section> {
    let section = |figure: &Figure| {
        let chart = |&(metric, title, note): &(&str, &str, &str)| {
            let curves: Vec<Curve> = figure
                .rows
                .iter()
                .filter_map(|(row, label)| curve(seeds, row, label, metric))
                .collect();
            (!curves.is_empty()).then(|| Chart {
                title: title.to_owned(),
                note: note.to_owned(),
                curves,
            })
        };
        Section {
            phase: figure.phase.to_owned(),
            title: figure.title.to_owned(),
            charts: CHARTS.iter().filter_map(chart).collect(),
        }
    };
    FIGURES.iter().map(section).collect()
}

/// The mean over the seeds that recorded the metric at the same steps as the first one, and between
/// which values they lie.
fn curve(seeds: &[&SeedResults], row: &str, label: &str, metric: &str) -> Option<Curve> {
    let courses: Vec<&LearningCurve> = seeds
        .iter()
        .filter_map(|results| {
            results.rows.get(&name(ModelPair::Qwen, row))?.done()?.courses.get(metric)
        })
        .collect();
    let first = *courses.first()?;
    let alike: Vec<&LearningCurve> =
        courses.into_iter().filter(|course| course.steps == first.steps).collect();
    // A file of results may have been edited: what it lacks is unknown.
    let known = |at: usize| {
        alike
            .iter()
            .filter_map(|course| course.values.get(at).copied().flatten())
            .collect::<Vec<f64>>()
    };
    let mean = |at: usize| {
        let known = known(at);
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
    };
    let points = 0..first.steps.len();
    let band = (alike.len() > 1).then(|| Band {
        low: points.clone().map(|at| known(at).into_iter().reduce(f64::min)).collect(),
        high: points.clone().map(|at| known(at).into_iter().reduce(f64::max)).collect(),
    });
    Some(Curve {
        metric: metric.to_owned(),
        label: label.to_owned(),
        steps: first.steps.clone(),
        values: points.map(mean).collect(),
        steps_per_point: first.steps_per_point,
        band,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reproduce::{
        orderings::tests::{answering, seed},
        results::Outcome,
    };

    fn with_course(seed_number: u64, row: &str, values: &[f64]) -> SeedResults {
        let Outcome::Done(mut done) = answering(1, 1) else { unreachable!("made above") };
        let steps = (1..=values.len() as u64).collect();
        let course = LearningCurve {
            steps,
            values: values.iter().copied().map(Some).collect(),
            steps_per_point: 1,
        };
        done.courses.insert(REWARD.to_owned(), course);
        seed(seed_number, &[(row, Outcome::Done(done))])
    }

    #[test]
    fn a_curve_is_the_mean_over_seeds() {
        let seeds = [with_course(0, "ppo", &[0.25, 0.5]), with_course(1, "ppo", &[0.75, 1.0])];
        let sections = all(&seeds.iter().collect::<Vec<_>>());
        let chart = &sections[0].charts[0];
        assert_eq!((chart.curves.len(), chart.curves[0].label.as_str()), (1, "PPO"));
        assert_eq!(chart.curves[0].values, [Some(0.5), Some(0.75)]);
        let band = chart.curves[0].band.as_ref().unwrap();
        assert_eq!(
            (&band.low[..], &band.high[..]),
            (&[Some(0.25), Some(0.5)][..], &[Some(0.75), Some(1.0)][..])
        );
        assert!(sections[1].charts.is_empty());
    }

    #[test]
    fn values_that_a_file_lacks_are_unknown() {
        let mut one = with_course(0, "ppo", &[0.25, 0.5]);
        let Some(Outcome::Done(done)) = one.rows.values_mut().next() else {
            unreachable!("made above")
        };
        done.courses.get_mut(REWARD).unwrap().values.truncate(1);
        assert_eq!(all(&[&one])[0].charts[0].curves[0].values, [Some(0.25), None]);
    }

    #[test]
    fn a_seed_of_another_length_is_left_out_of_the_mean() {
        let seeds = [with_course(0, "dgpo", &[0.25, 0.5]), with_course(1, "dgpo", &[1.0])];
        let sections = all(&seeds.iter().collect::<Vec<_>>());
        assert_eq!(sections[1].charts[0].curves[0].values, [Some(0.25), Some(0.5)]);
    }
}
