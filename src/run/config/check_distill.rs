//! The rules between fields of distillation, on the teacher's episodes and on the student's own.
use super::{
    Recipe,
    check::{
        Findings, IN_UNIT_INTERVAL, NOT_NEGATIVE, POSITIVE, in_unit_interval, not_negative,
        positive,
    },
};
use dgpo_core::settings::DistillDivergence;

const BELOW_ONE: &str = "from 0 to below 1";
fn below_one(x: f64) -> bool {
    (0.0..1.0).contains(&x)
}

/// The rules of distillation on given episodes.
pub(super) fn check_distill(recipe: &Recipe, found: &mut Findings) {
    let (distill, has_teacher) = (&recipe.distill, !recipe.model.teacher.is_empty());
    found.number("distill.ce_weight", distill.ce_weight, not_negative, NOT_NEGATIVE);
    found.number("distill.kl_weight", distill.kl_weight, not_negative, NOT_NEGATIVE);
    found.number("distill.temperature", distill.temperature, positive, POSITIVE);
    found.error(
        distill.ce_weight == 0.0 && distill.kl_weight == 0.0,
        "distill.ce_weight",
        || "ce_weight and kl_weight are both 0, so there is nothing to learn".into(),
        || "the paper has 1 and 1".into(),
    );
    found.error(
        distill.kl_weight > 0.0 && !has_teacher,
        "distill.kl_weight",
        || {
            format!(
                "the KL (weight {}) needs the distribution of a teacher, and model.teacher is \
                 empty",
                distill.kl_weight
            )
        },
        || "name a teacher, or set kl_weight = 0 to learn from the episodes' tokens alone".into(),
    );
    found.error(
        !has_teacher && recipe.data.trajectories.is_empty(),
        "model.teacher",
        || "is empty, and data.trajectories is too, so there are no episodes to learn from".into(),
        || "name a teacher that plays them, or files that hold them".into(),
    );
    found.positive("distill.batch", distill.batch);
    found.positive("distill.micro_batch_tokens", distill.micro_batch_tokens);
    let has_no_length = distill.steps == 0 && distill.epochs == 0;
    found.error(
        has_no_length,
        "distill.epochs",
        || "epochs and steps are both 0".into(),
        || "the paper has 5 epochs".into(),
    );
    if recipe.data.trajectories.is_empty() {
        found.positive("demos.n_episodes", recipe.demos.n_episodes);
        found.number("demos.temperature", recipe.demos.temperature, not_negative, NOT_NEGATIVE);
    }
    check_divergence(recipe, found);
    if distill.student_outputs.is_adaptive {
        check_student_outputs(recipe, found);
    }
}

fn check_divergence(recipe: &Recipe, found: &mut Findings) {
    let distill = &recipe.distill;
    match distill.divergence {
        DistillDivergence::ForwardKl
        | DistillDivergence::ReverseKl
        | DistillDivergence::TotalVariation => {}
        DistillDivergence::Jsd | DistillDivergence::SymmetricKl => {
            found.number("distill.jsd_beta", distill.jsd_beta, in_unit_interval, IN_UNIT_INTERVAL)
        }
        // With alpha = 1 only one model would be in the mixture.
        DistillDivergence::SkewKl | DistillDivergence::SkewReverseKl => {
            found.number("distill.skew_alpha", distill.skew_alpha, below_one, BELOW_ONE)
        }
        DistillDivergence::Taid => {
            let taid = &distill.taid;
            found.number("distill.taid.t_start", taid.t_start, in_unit_interval, IN_UNIT_INTERVAL);
            found.number("distill.taid.t_end", taid.t_end, in_unit_interval, IN_UNIT_INTERVAL);
            found.number("distill.taid.alpha", taid.alpha, not_negative, NOT_NEGATIVE);
            found.number("distill.taid.beta", taid.beta, below_one, BELOW_ONE);
            found.error(
                taid.t_end < taid.t_start,
                "distill.taid.t_end",
                || {
                    format!(
                        "{} lies before t_start ({}): the target would move away from the teacher",
                        taid.t_end, taid.t_start
                    )
                },
                || "the paper goes from 0.4 to 1".into(),
            );
        }
    }
    found.warn(
        distill.kl_weight == 0.0 && distill.divergence != DistillDivergence::ForwardKl,
        "distill.divergence",
        || "has no effect, because distill.kl_weight is 0".into(),
        || "raise kl_weight, or leave the divergence out".into(),
    );
}

fn check_student_outputs(recipe: &Recipe, found: &mut Findings) {
    let (distill, outputs) = (&recipe.distill, &recipe.distill.student_outputs);
    found.number(
        "distill.student_outputs.initial_share",
        outputs.initial_share,
        in_unit_interval,
        IN_UNIT_INTERVAL,
    );
    found.number(
        "distill.student_outputs.increment",
        outputs.increment,
        in_unit_interval,
        IN_UNIT_INTERVAL,
    );
    found.number("distill.student_outputs.loss_eps", outputs.loss_eps, not_negative, NOT_NEGATIVE);
    found.positive("distill.student_outputs.validate_every", outputs.validate_every);
    found.positive("distill.student_outputs.n_validation", outputs.n_validation);
    found.error(
        outputs.capacity < distill.batch,
        "distill.student_outputs.capacity",
        || {
            format!(
                "a replay buffer of {} episodes cannot fill a batch of {}",
                outputs.capacity, distill.batch
            )
        },
        || format!("at least {}; 1000 is the published script's", distill.batch),
    );
    found.error(
        distill.kl_weight == 0.0,
        "distill.kl_weight",
        || "is 0, so the student would learn its own episodes' tokens from itself".into(),
        || {
            "DistiLLM has kl_weight = 1 and ce_weight = 0; or set student_outputs.is_adaptive = \
             false"
                .into()
        },
    );
    found.warn(
        distill.ce_weight > 0.0,
        "distill.ce_weight",
        || {
            format!(
                "the cross-entropy (weight {}) falls on the student's own episodes too, right or \
                 wrong",
                distill.ce_weight
            )
        },
        || "DistiLLM has ce_weight = 0".into(),
    );
}

/// The rules of on-policy distillation.
pub(super) fn check_gkd(recipe: &Recipe, found: &mut Findings) {
    let gkd = &recipe.gkd;
    found.positive("gkd.steps", gkd.steps);
    found.positive("gkd.questions_per_step", gkd.questions_per_step);
    found.positive("gkd.micro_batch_tokens", gkd.micro_batch_tokens);
    found.number("gkd.jsd_beta", gkd.jsd_beta, in_unit_interval, IN_UNIT_INTERVAL);
    found.number("gkd.temperature", gkd.temperature, positive, POSITIVE);
    found.error(
        recipe.model.teacher.is_empty(),
        "model.teacher",
        || "is empty, and in GKD nobody else corrects the student".into(),
        || "name a teacher".into(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Problem, Stage, check::check};

    fn recipe(stage: Stage) -> Recipe {
        let mut recipe = Recipe { stage, ..Recipe::default() };
        (recipe.data.train, recipe.data.test) =
            (vec!["train.jsonl".into()], vec!["test.jsonl".into()]);
        recipe.data.corpus = "corpus.jsonl".into();
        recipe
    }

    /// The one problem that `change` makes, and the keys of the warnings.
    fn found(stage: Stage, change: impl FnOnce(&mut Recipe)) -> (Vec<Problem>, Vec<&'static str>) {
        let mut recipe = recipe(stage);
        change(&mut recipe);
        let found = check(&recipe);
        (found.errors, found.warnings.iter().map(|warning| warning.key).collect())
    }

    fn problem(stage: Stage, change: impl FnOnce(&mut Recipe)) -> Problem {
        let mut errors = found(stage, change).0;
        assert_eq!(errors.len(), 1, "{errors:?}");
        errors.remove(0)
    }

    fn distillm(recipe: &mut Recipe) {
        recipe.distill.student_outputs.is_adaptive = true;
        (recipe.distill.ce_weight, recipe.distill.divergence) = (0.0, DistillDivergence::SkewKl);
        recipe.demos.only_correct = false;
    }

    #[test]
    fn every_stage_that_distils_passes_with_the_defaults() {
        for stage in [Stage::Distill, Stage::Gkd, Stage::DistillGkd, Stage::RlDistill] {
            assert_eq!(found(stage, |_| ()), (Vec::new(), Vec::new()), "{stage:?}");
        }
        assert_eq!(found(Stage::Distill, distillm), (Vec::new(), Vec::new()));
    }

    #[test]
    fn gkd_needs_a_teacher_questions_and_sizes() {
        assert_eq!(problem(Stage::Gkd, |r| r.model.teacher.clear()).key, "model.teacher");
        assert_eq!(problem(Stage::Gkd, |r| r.data.train.clear()).key, "data.train");
        assert_eq!(problem(Stage::Gkd, |r| r.gkd.steps = 0).key, "gkd.steps");
        assert_eq!(
            problem(Stage::Gkd, |r| r.gkd.questions_per_step = 0).key,
            "gkd.questions_per_step"
        );
        assert_eq!(problem(Stage::Gkd, |r| r.gkd.jsd_beta = 1.5).key, "gkd.jsd_beta");
        assert_eq!(problem(Stage::Gkd, |r| r.gkd.temperature = 0.0).key, "gkd.temperature");
        assert_eq!(problem(Stage::Gkd, |r| r.optim.distill.lr = -1.0).key, "optim.distill.lr");
        assert_eq!(
            problem(Stage::DistillGkd, |r| r.optim.distill.lr = -1.0).key,
            "optim.distill.lr"
        );
    }

    #[test]
    fn only_the_keys_of_the_chosen_divergence_are_looked_at() {
        let with = |divergence: DistillDivergence| {
            found(Stage::Distill, |r| {
                r.distill.divergence = divergence;
                (r.distill.jsd_beta, r.distill.skew_alpha, r.distill.taid.beta) = (2.0, 1.0, 1.0);
            })
        };
        let keys =
            |divergence| with(divergence).0.iter().map(|problem| problem.key).collect::<Vec<_>>();
        assert!(keys(DistillDivergence::ReverseKl).is_empty());
        assert_eq!(keys(DistillDivergence::Jsd), ["distill.jsd_beta"]);
        assert_eq!(keys(DistillDivergence::SymmetricKl), ["distill.jsd_beta"]);
        assert_eq!(keys(DistillDivergence::SkewKl), ["distill.skew_alpha"]);
        assert_eq!(keys(DistillDivergence::SkewReverseKl), ["distill.skew_alpha"]);
        assert_eq!(keys(DistillDivergence::Taid), ["distill.taid.beta"]);
    }

    #[test]
    fn taids_target_moves_towards_the_teacher() {
        let backwards = problem(Stage::Distill, |r| {
            r.distill.divergence = DistillDivergence::Taid;
            (r.distill.taid.t_start, r.distill.taid.t_end) = (0.8, 0.4);
        });
        assert!(
            backwards.key == "distill.taid.t_end" && backwards.message.contains("t_start (0.8)"),
            "{backwards}"
        );
    }

    #[test]
    fn a_divergence_without_weight_is_warned_about() {
        let (errors, warnings) = found(Stage::Distill, |r| {
            (r.distill.kl_weight, r.distill.divergence) = (0.0, DistillDivergence::Taid)
        });
        assert_eq!((errors.len(), warnings), (0, vec!["distill.divergence"]));
    }

    #[test]
    fn a_replay_buffer_holds_at_least_a_batch() {
        let small = problem(Stage::Distill, |r| {
            distillm(r);
            r.distill.student_outputs.capacity = 63;
        });
        assert!(
            small.key == "distill.student_outputs.capacity"
                && small.hint.starts_with("at least 64"),
            "{small}"
        );
    }

    #[test]
    fn a_student_does_not_learn_its_own_tokens_from_itself() {
        let alone = |r: &mut Recipe| {
            distillm(r);
            (r.distill.ce_weight, r.distill.kl_weight, r.distill.divergence) =
                (1.0, 0.0, DistillDivergence::ForwardKl);
        };
        assert_eq!(problem(Stage::Distill, alone).key, "distill.kl_weight");
        let both = |r: &mut Recipe| {
            distillm(r);
            r.distill.ce_weight = 1.0;
        };
        assert_eq!(found(Stage::Distill, both).1, ["distill.ce_weight"]);
    }

    #[test]
    fn distillm_on_ready_made_episodes_still_needs_questions() {
        let on_trajectories = |r: &mut Recipe| {
            distillm(r);
            r.data.trajectories = vec!["t.jsonl".into()];
            r.data.train.clear();
        };
        assert_eq!(problem(Stage::Distill, on_trajectories).key, "data.train");
    }
}
