//! The rules of the guards: each threshold in the range of what it is compared with.
use super::{Findings, IN_UNIT_INTERVAL, NOT_NEGATIVE, in_unit_interval, not_negative};
use dgpo_core::settings::{GuardAction, GuardsRecipe};

pub(super) fn check_guards(guards: &GuardsRecipe, found: &mut Findings) {
    if guards.action == GuardAction::Off {
        return;
    }
    found.positive("guards.window", guards.window);
    for (key, share) in [
        ("guards.min_entropy_share", guards.min_entropy_share),
        ("guards.max_repetition", guards.max_repetition),
        ("guards.min_reward_share", guards.min_reward_share),
        ("guards.max_lost_share", guards.max_lost_share),
    ] {
        found.number(key, share, in_unit_interval, IN_UNIT_INTERVAL);
    }
    for (key, most) in [
        ("guards.max_invalid_actions", guards.max_invalid_actions),
        ("guards.max_logprob_diff", guards.max_logprob_diff),
    ] {
        found.number(key, most, not_negative, NOT_NEGATIVE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::check::tests::{n_problems, problem};

    #[test]
    fn thresholds_stay_in_their_range() {
        assert_eq!(problem(|r| r.guards.window = 0).key, "guards.window");
        assert_eq!(problem(|r| r.guards.min_entropy_share = 1.5).key, "guards.min_entropy_share");
        assert_eq!(problem(|r| r.guards.max_repetition = -0.1).key, "guards.max_repetition");
        assert_eq!(problem(|r| r.guards.max_lost_share = 1.5).key, "guards.max_lost_share");
        assert_eq!(
            problem(|r| r.guards.min_reward_share = f64::NAN).key,
            "guards.min_reward_share"
        );
        assert_eq!(
            problem(|r| r.guards.max_invalid_actions = -1.0).key,
            "guards.max_invalid_actions"
        );
        assert_eq!(
            problem(|r| r.guards.max_logprob_diff = f64::INFINITY).key,
            "guards.max_logprob_diff"
        );
    }

    #[test]
    fn guards_that_are_off_have_no_rules() {
        assert_eq!(n_problems(|r| (r.guards.action, r.guards.window) = (GuardAction::Off, 0)), 0);
    }
}
