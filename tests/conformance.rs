//! The recorded reference numbers through the command, and fixtures that must not pass.
use crate::support::{Ended, World, repository};
use serde_json::Value;
use std::{collections::BTreeSet, fs};

/// The report: the last line on stdout.
fn report(ended: &Ended) -> Value {
    serde_json::from_str(ended.stdout.lines().last().unwrap()).unwrap()
}

#[test]
fn every_recorded_reference_number_is_reproduced() {
    assert_all_is_reproduced("cpu");
}

/// With the same tolerances on every device.
pub(crate) fn assert_all_is_reproduced(device: &str) {
    let oracles = repository("tests/oracles");
    let ended = World::new().dgpo(&[
        "conformance",
        oracles.to_str().unwrap(),
        "--json",
        "--device",
        device,
    ]);
    let report = report(&ended);
    let families: BTreeSet<&str> =
        report["families"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(families, BTreeSet::from(["ann", "losses", "models", "ppo", "step", "text"]));
    assert!(report["passed"].as_u64().unwrap() > 0);
    assert_eq!((&report["failed"], ended.code), (&0.into(), Some(0)), "{}", failures(&report));
}

/// The failed checks of a report.
fn failures(report: &Value) -> String {
    let cases = report["families"].as_object().unwrap().iter().flat_map(|(family, cases)| {
        cases
            .as_array()
            .unwrap()
            .iter()
            .map(move |case| (family, &case["name"], case["checks"].as_array().unwrap()))
    });
    let failed = cases.flat_map(|(family, name, checks)| {
        checks
            .iter()
            .filter(|check| check["passed"] == false)
            .map(move |check| format!("{family}/{name}: {check}\n"))
    });
    failed.collect()
}

/// A folder with one family of one fixture, changed on the way.
fn world_with(family: &str, file: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> World {
    let world = World::new();
    fs::create_dir_all(world.path("oracles").join(family)).unwrap();
    let original = fs::read(repository("tests/oracles").join(family).join(file)).unwrap();
    fs::write(world.path("oracles").join(family).join(file), change(original)).unwrap();
    world
}

fn run(world: &World) -> (Option<i32>, u64, u64) {
    let ended = world.dgpo(&["conformance", "oracles", "--json"]);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    let report = report(&ended);
    (ended.code, report["passed"].as_u64().unwrap(), report["failed"].as_u64().unwrap())
}

#[test]
fn a_family_alone_can_be_run() {
    let (code, passed, failed) = run(&world_with("losses", "taid_schedule.json", |bytes| bytes));
    assert!(code == Some(0) && passed > 0 && failed == 0);
}

#[test]
fn a_changed_reference_number_fails_with_exit_code_1() {
    let change = |bytes: Vec<u8>| {
        String::from_utf8(bytes).unwrap().replacen("0.403", "0.413", 1).into_bytes()
    };
    let (code, _, failed) = run(&world_with("losses", "taid_schedule.json", change));
    assert!(code == Some(1) && failed > 0);
}

#[test]
fn a_truncated_fixture_fails_with_exit_code_1() {
    for (family, file) in [("losses", "normal.safetensors"), ("losses", "taid_schedule.json")] {
        let (code, _, failed) =
            run(&world_with(family, file, |bytes| bytes[..bytes.len() / 2].to_vec()));
        assert!(code == Some(1) && failed > 0, "{file}");
    }
}

#[test]
fn a_folder_without_fixtures_is_an_error() {
    let world = World::new();
    fs::create_dir(world.path("oracles")).unwrap();
    let ended = world.dgpo(&["conformance", "oracles"]);
    assert!(ended.code == Some(1) && ended.stderr.contains("oracles"), "{ended:?}");
}
