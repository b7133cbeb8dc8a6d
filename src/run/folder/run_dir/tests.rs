use super::*;

fn create(root: &Path) -> RunDir {
    RunDir::create(root, "first", &Recipe::default(), &json!({"version": "0"})).unwrap()
}

/// The default recipe; it lacks questions, which only a loaded recipe must have.
fn runnable() -> Recipe {
    let mut recipe = Recipe::default();
    recipe.data.train = vec!["train.jsonl".into()];
    recipe.data.test = vec!["test.jsonl".into()];
    recipe.data.corpus = "corpus.jsonl".into();
    recipe
}

#[test]
fn a_run_is_never_overwritten_and_the_hint_says_how_to_go_on() {
    let root = tempfile::tempdir().unwrap();
    create(root.path());
    let error = RunDir::create(root.path(), "first", &Recipe::default(), &json!({}))
        .unwrap_err()
        .to_string();
    assert!(error.contains("--resume") && error.contains("--name"), "{error}");
}

#[test]
fn a_folder_that_is_no_run_is_neither_overwritten_nor_to_be_resumed() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("first")).unwrap();
    let error = RunDir::create(root.path(), "first", &Recipe::default(), &json!({}))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("holds no recipe.toml")
            && error.contains("remove it")
            && !error.contains("--resume"),
        "{error}"
    );
}

#[test]
fn a_run_is_locked_once_and_free_again_when_the_lock_is_dropped() {
    let root = tempfile::tempdir().unwrap();
    let run = create(root.path());
    let lock = run.lock().unwrap();
    let error = run.lock().unwrap_err().to_string();
    let process = format!("another process ({}) works on the run", std::process::id());
    assert!(
        error.contains(&process) && error.contains("first") && error.contains("hint: "),
        "{error}"
    );
    drop(lock);
    run.lock().unwrap();
}

#[test]
fn the_recipe_of_a_run_is_the_resolved_one_with_its_name() {
    let root = tempfile::tempdir().unwrap();
    let run = RunDir::create(root.path(), "mine", &runnable(), &json!({})).unwrap();
    let mut expected = runnable();
    expected.run.name = "mine".into();
    assert_eq!(RunDir::open(run.path()).unwrap().recipe().unwrap(), expected);
}

#[test]
fn a_folder_without_a_recipe_is_not_a_run() {
    let root = tempfile::tempdir().unwrap();
    assert!(matches!(RunDir::open(root.path()), Err(RunDirError::NotARun(_))));
    assert_eq!(list_runs(root.path()).unwrap(), []);
}

#[test]
fn resuming_cuts_the_metrics_back_to_the_checkpoint() {
    let root = tempfile::tempdir().unwrap();
    let run = create(root.path());
    let mut log = run.metrics(None).unwrap();
    for (phase, step) in
        [(Phase::Kd, 1), (Phase::Kd, 2), (Phase::Rl, 1), (Phase::Rl, 2), (Phase::Rl, 3)]
    {
        log.append(phase, step, &[("loss", step as f64)]).unwrap();
    }
    drop(log);
    let mut log = run.metrics(Some((Stage::Pipeline, Phase::Rl, 2))).unwrap();
    log.append(Phase::Rl, 3, &[("loss", 30.0)]).unwrap();
    let losses: Vec<f64> =
        run.read_metrics().unwrap().iter().filter_map(|line| line["loss"].as_f64()).collect();
    assert_eq!(losses, [1.0, 2.0, 1.0, 2.0, 30.0]);
}

#[test]
fn what_is_cut_follows_the_order_of_the_stage() {
    let root = tempfile::tempdir().unwrap();
    let run = create(root.path());
    let mut log = run.metrics(None).unwrap();
    for (phase, step) in [(Phase::Rl, 8), (Phase::Demos, 1), (Phase::Kd, 1), (Phase::Kd, 2)] {
        log.append(phase, step, &[]).unwrap();
    }
    drop(run.metrics(Some((Stage::RlDistill, Phase::Kd, 1))).unwrap());
    assert_eq!(run.read_metrics().unwrap().len(), 3);
    drop(run.metrics(Some((Stage::RlDistill, Phase::Rl, 8))).unwrap());
    assert_eq!(run.read_metrics().unwrap().len(), 1);
}

#[test]
fn a_line_torn_by_a_kill_is_cut_off() {
    let root = tempfile::tempdir().unwrap();
    let run = create(root.path());
    run.metrics(None).unwrap().append(Phase::Kd, 1, &[]).unwrap();
    let path = run.path().join(METRICS_FILE);
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{whole}{{\"phase\":\"kd\",\"st")).unwrap();
    run.metrics(Some((Stage::Pipeline, Phase::Kd, 1))).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), whole);
}

#[test]
fn a_metric_that_is_not_a_number_is_null() {
    let root = tempfile::tempdir().unwrap();
    let run = create(root.path());
    run.metrics(None).unwrap().append(Phase::Rl, 1, &[("kl", f64::NAN)]).unwrap();
    assert_eq!(run.read_metrics().unwrap()[0]["kl"], Value::Null);
}

#[test]
fn the_approximate_kl_of_an_older_run_gets_the_name_of_what_it_is() {
    let root = tempfile::tempdir().unwrap();
    let run = create(root.path());
    let mut log = run.metrics(None).unwrap();
    log.append(Phase::Rl, 1, &[("losses/approx_kl", -0.25)]).unwrap();
    log.append(Phase::Rl, 2, &[("losses/old_approx_kl", -0.5), ("losses/approx_kl", 0.125)])
        .unwrap();
    let lines = run.read_metrics().unwrap();
    assert_eq!(
        (lines[0].get("losses/approx_kl"), &lines[0]["losses/old_approx_kl"]),
        (None, &json!(-0.25))
    );
    assert_eq!(
        (&lines[1]["losses/approx_kl"], &lines[1]["losses/old_approx_kl"]),
        (&json!(0.125), &json!(-0.5))
    );
}

#[test]
fn a_summary_is_read_back_and_absent_before_it_is_written() {
    let root = tempfile::tempdir().unwrap();
    let run = create(root.path());
    assert_eq!(run.summary::<Value>().unwrap(), None);
    let summary = json!({"kd": {"em": 0.5}, "seed": 3});
    run.write_summary(&summary).unwrap();
    assert_eq!(run.summary::<Value>().unwrap(), Some(summary));
}

#[test]
#[cfg(unix)]
fn a_link_beside_a_file_is_not_written_through() {
    let root = tempfile::tempdir().unwrap();
    let run = create(root.path());
    let precious = root.path().join("precious");
    fs::write(&precious, "mine").unwrap();
    std::os::unix::fs::symlink(&precious, run.path().join(".tmp-summary.json")).unwrap();
    run.write_summary(&json!({})).unwrap();
    assert_eq!(fs::read_to_string(&precious).unwrap(), "mine");
}
