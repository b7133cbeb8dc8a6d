use super::*;
use crate::{
    eval::{Figures, bootstrap::Interval, intervals::Intervals},
    report::{
        episodes::{Kind, Set},
        facts::Facts,
    },
};
use dgpo_core::rollout::EpisodeStats;
use std::collections::BTreeMap;

/// Text that breaks out of everything that forgets to escape.
const HOSTILE: &str =
    "</script><script>alert(1)</script><!--<img src=x onerror='alert(2)'>\"&{{data}}";

fn hostile_report() -> Report {
    let set = Set {
        file: HOSTILE.to_owned(),
        kind: Kind::Other,
        label: HOSTILE.to_owned(),
        n_all: 1,
        episodes: vec![json!({"question": HOSTILE})],
    };
    let facts = Facts {
        name: HOSTILE.to_owned(),
        subtitle: HOSTILE.to_owned(),
        settings: vec![(HOSTILE.to_owned(), HOSTILE.to_owned())],
        changed: vec![[(); 3].map(|()| HOSTILE.to_owned())],
        recipe: HOSTILE.to_owned(),
        provenance: vec![(HOSTILE.to_owned(), HOSTILE.to_owned())],
        inputs: vec![(HOSTILE.to_owned(), HOSTILE.to_owned())],
        reference: HOSTILE,
        kl: Some(KlMode::Selective),
        models: vec![Model {
            name: HOSTILE.to_owned(),
            weights: HOSTILE.to_owned(),
            ..Model::default()
        }],
    };
    let pieces = [(1, HOSTILE.to_owned())].into();
    let episodes = Episodes { sets: vec![set], pieces, n_files_left_out: 0 };
    Report {
        facts,
        sections: Vec::new(),
        episodes,
        alarms: vec![HOSTILE.to_owned()],
        warnings: vec![HOSTILE.to_owned()],
    }
}

/// The JSON that the scripts will read: what stands between its tag and the first end of a
/// script behind it.
fn data_of(page: &str) -> serde_json::Value {
    let (_, behind) = page
        .split_once("<script type=\"application/json\" id=\"data\">")
        .expect("the data's element");
    serde_json::from_str(behind.split_once("</script>").expect("closed").0).expect("JSON")
}

#[test]
fn no_text_of_the_data_becomes_part_of_the_page() {
    let page = page(&hostile_report());
    let tags = ["<script", "</script", "<!--", "<img"].map(|tag| page.matches(tag).count());
    // Two scripts of the page's own; nothing else.
    assert_eq!(tags, [2, 2, 0, 0]);
}

#[test]
fn the_data_reaches_the_scripts_unchanged() {
    let data = data_of(&page(&hostile_report()));
    let set = &data["episodes"]["sets"][0];
    assert_eq!(
        [&set["label"], &set["episodes"][0]["question"], &data["episodes"]["pieces"]["1"]],
        [HOSTILE; 3]
    );
}

#[test]
fn every_em_has_its_interval_beside_it() {
    let of = |low, high| BTreeMap::from([("em".to_owned(), Interval { low, high })]);
    let datasets = BTreeMap::from([("tiny".to_owned(), of(0.25, 0.75))]);
    let intervals = Intervals { all: of(0.125, 0.875), average: of(0.375, 0.625), datasets };
    let stats = EpisodeStats { em: 0.5, ..EpisodeStats::default() };
    let datasets = BTreeMap::from([("tiny".to_owned(), stats)]);
    let figures =
        Figures { all: stats, average_em: 0.5, datasets, intervals: Some(intervals), arcap: None };
    let models = vec![Model { name: "kd".to_owned(), figures, ..Model::default() }];
    let facts = Facts { models, ..Facts::default() };
    let html = page(&Report { facts, ..Report::default() });
    // Card, average, the data set in two tables, all questions.
    for (interval, n) in [("[0.375, 0.625]", 2), ("[0.250, 0.750]", 2), ("[0.125, 0.875]", 1)] {
        assert_eq!(html.matches(interval).count(), n, "{interval} in {html}");
    }
    assert_eq!(
        html.matches("0.500").count()
            - html.matches("0.500 <span").count()
            - html.matches("0.500</strong> <span").count(),
        0
    );
}

#[test]
fn the_page_names_no_address_to_load_from() {
    let page = page(&Report::default());
    for forbidden in ["http://", "https://", "@import", "url(", " src="] {
        assert!(!page.replace("http://www.w3.org/2000/svg", "").contains(forbidden), "{forbidden}");
    }
}

#[test]
fn numbers_have_four_digits() {
    let shown = [0.0, 123_456.0, 44_910.2, 105.19, 12.345, 1.2345, 0.58333, 0.00001].map(number);
    assert_eq!(shown, ["0", "1.235e5", "44910", "105.2", "12.35", "1.234", "0.5833", "1.00e-5"]);
}

#[test]
fn the_page_says_how_much_of_the_run_it_shows() {
    let set = |n_all| Set {
        file: String::new(),
        kind: Kind::Training,
        label: String::new(),
        n_all,
        episodes: vec![json!({})],
    };
    let whole = Episodes { sets: vec![set(1)], ..Episodes::default() };
    assert_eq!(what_is_shown(&whole), "All 1 episode of 1 file, token by token.");
    let part = Episodes { sets: vec![set(5)], n_files_left_out: 3, ..Episodes::default() };
    assert!(
        what_is_shown(&part)
            .starts_with("1 of 5 episodes of 1 file spread over the run, 3 more being left out")
    );
}
