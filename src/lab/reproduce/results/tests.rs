use super::*;

#[test]
fn results_are_read_back_as_they_were_written() {
    let set = SetScore {
        em: 0.5,
        n_questions: 2,
        answered: "10".into(),
        arcap: Some(SetArcap { with_thinking: Some(0.25), ..SetArcap::default() }),
    };
    let score = Score {
        average_em: 0.5,
        interval: Some(Interval { low: 0.25, high: 0.75 }),
        datasets: [("a".to_owned(), set)].into(),
        ..Score::default()
    };
    let course =
        LearningCurve { steps: vec![2, 4], values: vec![Some(0.125), None], steps_per_point: 2 };
    let done = Done {
        recipe: "ab".into(),
        wall_s: 3.5,
        score,
        courses: [(REWARD.to_owned(), course)].into(),
        ..Done::default()
    };
    let rows = [
        ("qwen-kd".to_owned(), Outcome::Done(Box::new(done))),
        ("qwen-ppo".to_owned(), Outcome::Failed { why: "a \"guard\"".into() }),
    ];
    let results = SeedResults { seed: 3, settings: vec!["rl.steps=2".into()], rows: rows.into() };
    let folder = tempfile::tempdir().unwrap();
    fs::write(path_of(folder.path(), 3), results.to_json()).unwrap();
    assert_eq!(read_all(folder.path()).unwrap(), std::slice::from_ref(&results));
    assert_eq!(results.failed().collect::<Vec<_>>(), [("qwen-ppo", "a \"guard\"")]);
}

#[test]
fn a_copy_is_no_other_seed() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(path_of(folder.path(), 7), SeedResults::default().to_json()).unwrap();
    let error = read_all(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("seed-7.json holds the results of seed 0") && error.contains("hint: "),
        "{error}"
    );
}

#[test]
fn what_was_taken_over_is_told_without_the_machines_folders() {
    let taken = json!({"taken_over": {"run": "/home/somebody/runs/seed-0/qwen-kd", "phases": ["demos", "kd"], "wall_s": 2.5}});
    let told = json!({"run": "qwen-kd", "phases": ["demos", "kd"], "wall_s": 2.5});
    assert_eq!(taken_over(&taken), Some(("taken_over".to_owned(), told)));
    assert_eq!((taken_over(&json!({})), taken_over(&json!({"taken_over": null}))), (None, None));
}

#[test]
fn a_damaged_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(path_of(folder.path(), 1), "{\"seed\": 1").unwrap();
    let error = read_all(folder.path()).unwrap_err().to_string();
    assert!(error.contains("seed-1.json is damaged") && error.contains("hint: "), "{error}");
}

#[test]
fn a_long_course_keeps_the_means_of_its_stretches_and_its_last_step() {
    let n = 2 * MAX_POINTS as u64 + 1;
    let points: Vec<_> = (1..=n).map(|step| (step, Some(step as f64))).collect();
    let course = thinned(&points);
    // Stretches of three, the last of two: 99 to 101 is 34 stretches.
    assert_eq!(
        (course.steps_per_point, course.steps.len(), course.steps.last()),
        (3, 34, Some(&n))
    );
    assert_eq!((course.values[0], course.values[33]), (Some(2.0), Some(100.5)));
    assert_eq!(thinned(&[(1, None), (2, Some(1.0 / 3.0))]).values, [None, Some(0.33333)]);
}

#[test]
fn the_course_is_that_of_the_phase_in_which_the_student_played() {
    let line = |phase: &str, step: u64, reward: f64| {
        json!({"phase": phase, "step": step, REWARD: reward}).as_object().unwrap().clone()
    };
    let lines =
        [line("demos", 1, 0.9), line("kd", 1, 0.8), line("rl", 1, 0.25), line("rl", 2, 0.5)];
    let course = &courses(&lines, &Recipe::default())[REWARD];
    assert_eq!((&course.steps, &course.values), (&vec![1, 2], &vec![Some(0.25), Some(0.5)]));
}

#[test]
fn the_last_tenth_of_the_rewards_is_averaged_where_the_student_played_last() {
    let line = |phase: &str, step: u64, reward: f64| {
        json!({"phase": phase, "step": step, REWARD: reward}).as_object().unwrap().clone()
    };
    let mut lines: Vec<_> = (1..=20)
        .map(|step| line("rl", step, if step > 18 { 0.5 + step as f64 / 100.0 } else { 0.0 }))
        .collect();
    lines.push(
        json!({"phase": "rl", "step": 20, EVAL_AVERAGE_EM: 1.0}).as_object().unwrap().clone(),
    );
    assert_eq!(train_reward(&lines, "rl"), Some(0.695));
    assert_eq!(
        (train_reward(&lines, "gkd"), train_reward(&[line("kd", 1, 1.0)], "kd")),
        (None, None)
    );
}

#[test]
fn a_recipe_has_the_same_fingerprint_whatever_its_name_and_seed() {
    let mut other = Recipe::default();
    (other.run.seed, other.run.name) = (4, "x".into());
    assert_eq!(digest(&other), digest(&Recipe::default()));
    other.rl.steps += 1;
    assert_ne!(digest(&other), digest(&Recipe::default()));
}
