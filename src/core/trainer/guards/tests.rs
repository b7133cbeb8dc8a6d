use super::*;

/// A window of three steps.
fn recipe() -> GuardsRecipe {
    GuardsRecipe { window: 3, ..GuardsRecipe::default() }
}

/// More steps than any series here has.
const TOTAL: usize = 100;

/// Every alarm of a series of one metric, the first value at step 1.
fn alarms_of(metric: &'static str, values: &[f64], recipe: &GuardsRecipe) -> Vec<Alarm> {
    let mut guards = Guards::default();
    let steps = values.iter().zip(1..);
    steps
        .flat_map(|(&value, step)| {
            guards.observe(recipe, Phase::Rl, (step, TOTAL), &Metrics(vec![(metric, value)]))
        })
        .collect()
}

/// (step, first bad step) of every alarm that a series raises in a run with `action = "warn"`.
fn warned(metric: &'static str, values: &[f64]) -> Vec<(usize, usize)> {
    let recipe = GuardsRecipe { action: GuardAction::Warn, ..recipe() };
    alarms_of(metric, values, &recipe)
        .iter()
        .map(|alarm| (alarm.step, alarm.first_bad_step))
        .collect()
}

#[test]
fn more_skipped_updates_than_allowed_without_a_break_are_seen() {
    // So far 2 in step 2, then one a step: above three at step 4.
    assert_eq!(warned(SKIPPED_UPDATES, &[0.0, 2.0, 3.0, 4.0, 5.0]), [(4, 2)]);
    // Six altogether, with steps between that learned.
    assert_eq!(warned(SKIPPED_UPDATES, &[0.0, 3.0, 3.0, 5.0, 5.0, 6.0]), []);
}

#[test]
fn all_updates_of_the_first_step_count() {
    assert_eq!(warned(SKIPPED_UPDATES, &[4.0]), [(1, 1)]);
}

#[test]
fn behind_the_last_step_no_update_is_left_that_could_learn() {
    let mut guards = Guards::default();
    let mut at = |step, n_skipped| {
        guards.observe(
            &recipe(),
            Phase::Kd,
            (step, 3),
            &Metrics(vec![(SKIPPED_UPDATES, n_skipped)]),
        )
    };
    assert_eq!((at(1, 0.0), at(2, 1.0)), (Vec::new(), Vec::new()));
    assert_eq!(
        at(3, 2.0).iter().map(|alarm| (alarm.sign, alarm.first_bad_step)).collect::<Vec<_>>(),
        [(Symptom::NotFinite, 2)]
    );
}

#[test]
fn a_student_that_cannot_play_is_traced_to_the_first_update_that_was_skipped() {
    let mut guards = Guards::default();
    assert_eq!(guards.unplayable(Phase::Rl, 4, "NaN").first_bad_step, 4);
    for (step, n_skipped) in [(4, 0.0), (5, 1.0), (6, 2.0)] {
        assert_eq!(
            guards.observe(
                &recipe(),
                Phase::Rl,
                (step, TOTAL),
                &Metrics(vec![(SKIPPED_UPDATES, n_skipped)])
            ),
            []
        );
    }
    let told = guards.unplayable(Phase::Rl, 6, "NaN").to_string();
    assert!(
        told.starts_with(
            "rl step 6: numbers that are not finite: the student cannot play: NaN (nor can any \
             checkpoint from the first bad step on); first bad step 5"
        ),
        "{told}"
    );
    assert!(told.contains("lower optim.actor.lr or optim.critic.lr"), "{told}");
}

#[test]
fn updates_skipped_before_there_were_guards_do_not_count() {
    let mut guards = Guards::default();
    let at = |step, total: f64, guards: &mut Guards| {
        guards.observe(
            &recipe(),
            Phase::Rl,
            (step, TOTAL),
            &Metrics(vec![(SKIPPED_UPDATES, total)]),
        )
    };
    assert_eq!(at(51, 9.0, &mut guards), []);
    assert_eq!(at(52, 10.0, &mut guards), []);
}

#[test]
fn entropy_far_below_its_first_mean_is_seen() {
    // First mean 0.6, limit 0.012; the means are 0.603, 0.403, 0.203, 0.003.
    assert_eq!(warned(ENTROPY, &[0.6, 0.6, 0.6, 0.6, 0.6, 0.003, 0.003, 0.003]), [(8, 6)]);
    // To a third of it, as in a healthy run.
    assert_eq!(warned(ENTROPY, &[0.6, 0.6, 0.6, 0.3, 0.2, 0.2, 0.2, 0.2]), []);
}

#[test]
fn searches_that_go_on_being_lost_are_seen() {
    assert_eq!(warned(LOST_SHARE, &[0.0, 0.0, 0.0, 0.2, 0.2, 0.0]), [(5, 4)]);
    assert_eq!(warned(LOST_SHARE, &[0.2, 0.0, 0.0, 0.2, 0.0, 0.0]), []);
}

#[test]
fn loops_are_seen() {
    assert_eq!(warned(REPETITION, &[0.0, 0.0, 0.0, 0.9, 0.9, 0.9]), [(5, 4)]);
    assert_eq!(warned(REPETITION, &[0.5, 0.4, 0.5, 0.4, 0.5, 0.5]), []);
}

#[test]
fn a_burst_of_invalid_actions_is_seen_from_where_the_phase_began() {
    // First mean 2: a weak start may stay as it is.
    assert_eq!(warned(INVALID_ACTIONS, &[2.0, 2.0, 2.0, 2.5, 2.9, 2.8, 2.9]), []);
    assert_eq!(warned(INVALID_ACTIONS, &[0.0, 0.0, 0.0, 0.0, 2.0, 2.0]), [(6, 5)]);
}

#[test]
fn reward_below_half_of_its_best_is_seen() {
    // Means from step 3 on: 0.3, 0.4, 0.4, 0.267, 0.133. The best is 0.4 at step 4.
    let alarms = alarms_of(REWARD, &[0.2, 0.3, 0.4, 0.5, 0.3, 0.0, 0.1], &recipe());
    assert_eq!(alarms.len(), 1);
    assert_eq!(
        (alarms[0].step, alarms[0].first_bad_step, alarms[0].sign),
        (7, 6, Symptom::RewardCollapse)
    );
    assert_eq!(
        alarms[0].seen,
        "mean reward of the last 3 steps is 0.133, below 0.5 of the best (0.400 at step 4)"
    );
    assert_eq!(warned(REWARD, &[0.4, 0.4, 0.4, 0.25, 0.25, 0.25, 0.4]), []);
}

#[test]
fn a_reward_that_was_never_worth_keeping_cannot_collapse() {
    assert_eq!(warned(REWARD, &[0.09, 0.09, 0.09, 0.0, 0.0, 0.0]), []);
    assert_eq!(warned(REWARD, &[0.11, 0.11, 0.11, 0.0, 0.0, 0.0]), [(5, 4)]);
}

#[test]
fn a_sampler_that_is_not_the_trainers_policy_is_seen() {
    assert_eq!(warned(LOGPROB_DIFF_MEAN, &[0.01, 0.01, 0.01, 0.2, 0.2, 0.2]), [(5, 4)]);
    assert_eq!(warned(LOGPROB_DIFF_MEAN, &[0.09; 6]), []);
}

#[test]
fn an_alarm_comes_once_until_the_figure_has_recovered() {
    let series = [0.9, 0.9, 0.9, 0.9, 0.0, 0.0, 0.0, 0.9, 0.9, 0.9];
    assert_eq!(warned(REPETITION, &series), [(3, 1), (9, 8)]);
}

#[test]
fn a_guard_that_stopped_a_run_starts_afresh() {
    // The best is forgotten with the stop at step 5: 0.15 is below half of 0.4, and no collapse any
    // more. Half of 0.15 is.
    let values = [0.4, 0.4, 0.4, 0.05, 0.05, 0.15, 0.15, 0.15, 0.1, 0.1, 0.1, 0.0];
    let alarms = alarms_of(REWARD, &values, &recipe());
    assert_eq!(alarms.iter().map(|alarm| alarm.step).collect::<Vec<_>>(), [5, 12]);
}

#[test]
fn a_stop_leaves_the_other_guards_as_they_were() {
    let mut guards = Guards::default();
    let mut at = |step, reward, entropy| {
        guards.observe(
            &recipe(),
            Phase::Rl,
            (step, TOTAL),
            &Metrics(vec![(REWARD, reward), (ENTROPY, entropy)]),
        )
    };
    for step in 1..=3 {
        assert_eq!(at(step, 0.5, 0.6), []);
    }
    let stops: Vec<_> = (4..=9)
        .flat_map(|step| at(step, 0.0, if step < 7 { 0.6 } else { 0.0 }))
        .map(|a| (a.step, a.sign))
        .collect();
    assert_eq!(stops, [(5, Symptom::RewardCollapse), (9, Symptom::EntropyCollapse)]);
}

#[test]
fn a_threshold_of_zero_and_an_action_of_off_see_nothing() {
    let series = [0.4, 0.4, 0.4, 0.0, 0.0, 0.0];
    assert_eq!(alarms_of(REWARD, &series, &GuardsRecipe { min_reward_share: 0.0, ..recipe() }), []);
    assert_eq!(
        alarms_of(REWARD, &series, &GuardsRecipe { action: GuardAction::Off, ..recipe() }),
        []
    );
    assert_eq!(
        alarms_of(SKIPPED_UPDATES, &[9.0, 18.0], &GuardsRecipe { max_skipped: 0, ..recipe() }),
        []
    );
}

#[test]
fn a_teacher_that_plays_is_not_guarded() {
    let mut guards = Guards::default();
    let observe = |step| {
        guards.observe(&recipe(), Phase::Demos, (step, TOTAL), &Metrics(vec![(REPETITION, 1.0)]))
    };
    assert_eq!((1..9).flat_map(observe).collect::<Vec<_>>(), []);
}

#[test]
fn a_value_that_is_no_number_is_left_out() {
    assert_eq!(warned(REPETITION, &[0.9, f64::NAN, 0.9, f64::INFINITY, 0.9]), [(5, 1)]);
}

#[test]
fn a_state_read_back_from_json_goes_on_bit_for_bit() {
    let value = |step: usize| {
        [
            (SKIPPED_UPDATES, (step / 4) as f64),
            (REWARD, 1.0 / (step as f64 + 2.0)),
            (ENTROPY, 0.1 / step as f64),
        ]
    };
    let mut whole = Guards::default();
    let mut restored = Guards::default();
    for step in 1..=40 {
        let metrics = Metrics(value(step).to_vec());
        let alarms = whole.observe(&recipe(), Phase::Rl, (step, TOTAL), &metrics);
        assert_eq!(restored.observe(&recipe(), Phase::Rl, (step, TOTAL), &metrics), alarms);
        restored = serde_json::from_str(&serde_json::to_string(&restored).unwrap()).unwrap();
        assert_eq!(restored, whole);
    }
}

#[test]
fn an_alarm_says_what_where_since_when_why_and_what_to_change() {
    let alarm = alarms_of(REWARD, &[0.4, 0.4, 0.4, 0.05, 0.05], &recipe()).remove(0);
    let text = alarm.to_string();
    for part in [
        "rl step 5: reward collapse: ",
        "first bad step 4",
        "likely cause: ",
        "hint: lower optim.actor.lr",
        "kl.coef",
        "guards.min_reward_share",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    let in_kd = Alarm { phase: Phase::Kd, ..alarm }.to_string();
    assert!(
        in_kd.contains("optim.distill.lr")
            && !in_kd.contains("kl.coef")
            && !in_kd.contains("optim.actor"),
        "{in_kd}"
    );
}
