//! All rows of the paper in miniature: interrupted, resumed, with a row that fails, and the page in
//! a browser.
use crate::{
    browser::{Browser, keep_screenshot},
    recipes::{SHRUNK, settings},
    support::{World, at_line, interrupt, names_in, repository},
};
use serde_json::Value;
use std::{fs, path::Path};

fn results(world: &World) -> Value {
    serde_json::from_slice(&fs::read(world.path("pages/reproduction/seed-3.json")).unwrap())
        .unwrap()
}

/// Rows that were not made, with the reason.
fn failed(results: &Value) -> Vec<(String, String)> {
    let rows =
        results["rows"].as_object().unwrap().iter().filter(|(_, row)| row["outcome"] == "failed");
    rows.map(|(name, row)| (name.clone(), row["why"].as_str().unwrap().to_owned())).collect()
}

fn check_in_a_browser(page: &Path) {
    let Some(mut browser) = Browser::start() else { return };
    browser.screen(1280, 900, "light");
    browser.open(page);
    let count = |browser: &mut Browser, selector: &str| {
        browser.evaluate(&format!("document.querySelectorAll({selector:?}).length"))
    };
    // Eight metrics of Figure 4, and of Figure 6 those and two of distillation; so short a run does
    // not evaluate on its way.
    assert_eq!(count(&mut browser, "figure.chart"), 18);
    assert_eq!(
        browser.evaluate(
            "Math.max(...[...document.querySelectorAll('figure.chart')].map((f) => \
             f.querySelectorAll('path.raw').length))"
        ),
        5
    );
    assert!(count(&mut browser, "td.paper").as_u64().unwrap() > 100);
    assert_eq!(browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), true);
    keep_screenshot("reproduction.png", &browser.screenshot());
    browser.screen(390, 800, "dark");
    assert_eq!(browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), true);
    keep_screenshot("reproduction-phone.png", &browser.screenshot());
    assert!(browser.errors().is_empty(), "{:?}", browser.errors());
}

#[test]
fn the_whole_experiment_is_interrupted_resumed_and_told_on_a_page() {
    let world = World::new();
    let arguments =
        [&["reproduce", "--seed", "3", "--out", "pages", "--runs", "made"][..], &settings(&SHRUNK)]
            .concat();

    // Ctrl-C in the second row.
    let line = "rl: 4 steps";
    let stopped = at_line(&mut world.command(&arguments), line, interrupt);
    assert_eq!(stopped.code, Some(130), "{}", stopped.stderr);
    let last = stopped.stderr.lines().last().unwrap();
    assert!(
        last.contains("continue with: cargo xtask reproduce --seed 3 --set data.max_train=64")
            && last.ends_with("--out pages"),
        "{last}"
    );
    assert!(stopped.stderr.contains("[1/19] qwen-kd: exact match"), "{}", stopped.stderr);

    // Something is in the way of one row; another one begins with it.
    fs::create_dir(world.path("made/seed-3/qwen-ppo")).unwrap();
    let ended = world.dgpo(&arguments);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("[1/19] qwen-kd: done before")
            && ended.stderr.contains("left in all"),
        "{}",
        ended.stderr
    );
    assert!(ended.stderr.contains("2 of 19 rows failed"), "{}", ended.stderr);
    let failed_rows = failed(&results(&world));
    assert_eq!(
        failed_rows.iter().map(|(row, _)| row.as_str()).collect::<Vec<_>>(),
        ["qwen-ppo", "qwen-ppo-kd"]
    );
    let page = fs::read_to_string(world.path("pages/reproduction.md")).unwrap();
    assert!(
        page.contains("Failed: qwen-ppo of seed 3: the folder made/seed-3/qwen-ppo exists"),
        "{page}"
    );

    // Nothing is in the way any more.
    fs::remove_dir(world.path("made/seed-3/qwen-ppo")).unwrap();
    world.dgpo(&arguments).done();
    let whole = results(&world);
    assert_eq!(failed(&whole), []);
    // 19 rows, and what the rows of both pairs start from.
    assert_eq!(whole["rows"].as_object().unwrap().len(), 23);
    let dgpo = &whole["rows"]["qwen-dgpo"];
    assert_eq!(dgpo["provenance"]["taken_over"]["phases"], serde_json::json!(["demos", "kd"]));
    assert_eq!(dgpo["courses"]["rollout/reward"]["steps"], serde_json::json!([1, 2, 3, 4]));
    let one_hop = &whole["rows"]["qwen-kd"]["score"]["datasets"]["tiny-1hop"];
    assert_eq!(
        (one_hop["answered"].as_str().unwrap().len(), one_hop["arcap"]["with_thinking"].is_f64()),
        (3, true)
    );
    // SFT is SeqKD by another name, so it has nothing to do of its own.
    assert_eq!(whole["rows"]["qwen-sft"]["score"], whole["rows"]["qwen-seqkd"]["score"]);
    assert_eq!(
        whole["rows"]["qwen-sft"]["provenance"]["taken_over"]["phases"],
        serde_json::json!(["demos", "kd"])
    );

    // The pages come from the results alone.
    let pages = ["pages/reproduction.md", "pages/reproduction.html"].map(|page| world.path(page));
    let first = pages.each_ref().map(|page| fs::read_to_string(page).unwrap());
    assert!(first[0].contains("rl.steps=4") && first[0].contains("paper: Avg."), "{}", first[0]);
    fs::remove_dir_all(world.path("made")).unwrap();
    pages.iter().for_each(|page| fs::remove_file(page).unwrap());
    world.dgpo(&["reproduce", "--render", "--out", "pages"]).done();
    assert_eq!(pages.each_ref().map(|page| fs::read_to_string(page).unwrap()), first);
    assert_eq!(
        names_in(&world.path("pages")),
        ["reproduction", "reproduction.html", "reproduction.md"]
    );
    check_in_a_browser(&pages[1]);
}

#[test]
fn the_page_in_the_repository_is_that_of_the_results_beside_it() {
    let world = World::new();
    let pages = world.path("pages/reproduction");
    fs::create_dir_all(&pages).unwrap();
    for name in names_in(&repository("docs/reproduction")) {
        fs::copy(repository("docs/reproduction").join(&name), pages.join(&name)).unwrap();
    }
    world.dgpo(&["reproduce", "--render", "--out", "pages"]).done();
    for name in ["reproduction.md", "reproduction.html"] {
        let [rendered, kept] = [world.path("pages").join(name), repository("docs").join(name)]
            .map(|page| fs::read_to_string(page).unwrap_or_default());
        assert!(
            rendered == kept,
            "docs/{name} is of other results or of another program; hint: cargo xtask reproduce \
             --render"
        );
    }
}

#[test]
fn the_page_in_the_repository_shows_orderings_seeds_and_that_tables_scroll() {
    let Some(mut browser) = Browser::start() else { return };
    let count = |browser: &mut Browser, selector: &str| {
        browser.evaluate(&format!("document.querySelectorAll({selector:?}).length"))
    };
    browser.screen(1280, 900, "light");
    browser.open(&repository("docs/reproduction.html"));
    let n_orderings = count(&mut browser, "#orderings tbody tr");
    assert_eq!(count(&mut browser, ".forest .theirs"), n_orderings);
    assert_eq!(count(&mut browser, ".forest .dot"), n_orderings);
    // Behind the words, in front of the list.
    assert_eq!(
        browser.evaluate("document.querySelector('.forest').closest('section').id"),
        "short"
    );
    // Every curve of three seeds has its band.
    assert_eq!(count(&mut browser, "path.band"), count(&mut browser, "path.raw"));
    for (width, scheme) in [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")] {
        browser.screen(width, 900, scheme);
        assert_eq!(browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), true);
        for part in ["short", "tables", "figures", "orderings"] {
            browser.evaluate(&format!(
                "document.querySelector('#{part}').scrollIntoView({{behavior: 'instant'}})"
            ));
            keep_screenshot(
                &format!("reproduction-{width}-{scheme}-{part}.png"),
                &browser.screenshot(),
            );
        }
        let hints = browser.evaluate(
            "[...document.querySelectorAll('.scroll')].map((place) => [place.scrollWidth > \
             place.clientWidth + 1, !place.previousElementSibling.hidden, \
             place.classList.contains('more-right')])",
        );
        for hint in hints.as_array().unwrap() {
            assert!(hint[0] == hint[1] && hint[0] == hint[2], "{width}: {hints}");
        }
        assert!(
            width > 390 || hints.as_array().unwrap().iter().any(|hint| hint[0] == true),
            "{hints}"
        );
    }
    assert!(browser.errors().is_empty(), "{:?}", browser.errors());
}

#[test]
fn a_wrong_setting_is_refused_before_anything_is_made() {
    let world = World::new();
    world
        .dgpo(&["reproduce", "--set", "rl.stepz=2"])
        .failed(2, &["unknown key rl.stepz", "the row qwen-kd"]);
    world.dgpo(&["reproduce", "--set", "run.seed=2"]).failed(2, &["--seed"]);
    world.dgpo(&["reproduce", "--render", "--out", "nothing"]).failed(1, &["holds no results"]);
    assert!(!world.path("runs").exists() && !world.path("docs").exists());
}
