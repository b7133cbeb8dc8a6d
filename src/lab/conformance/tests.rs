//! The recorded fixtures pass, and fixtures that are wrong, broken or not understood fail.
use super::*;
use dgpo_run::devices::CpuTrain;
use std::fs;

pub(super) fn oracles(family: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/oracles")).join(family)
}

pub(super) fn failures(report: &FixtureReport) -> Vec<String> {
    let failed = |case: &Case| {
        case.checks
            .iter()
            .filter(|c| !c.passed)
            .map(|c| format!("{}/{}: {:?}", case.name, c.key, c.message))
            .collect()
    };
    report
        .families
        .values()
        .flatten()
        .flat_map(|case: &Case| -> Vec<String> { failed(case) })
        .collect()
}

fn run_family(family: &str) -> FixtureReport {
    run::<CpuTrain>(&oracles(family), &Default::default()).unwrap()
}

#[test]
fn every_loss_fixture_passes() {
    let report = run_family("losses");
    assert_eq!(failures(&report), Vec::<String>::new());
    assert!(report.passed > 300, "{} checks", report.passed);
}

#[test]
fn every_ppo_fixture_passes() {
    let report = run_family("ppo");
    assert_eq!(failures(&report), Vec::<String>::new());
    assert!(report.passed > 300, "{} checks", report.passed);
}

#[test]
fn every_text_fixture_passes() {
    let report = run_family("text");
    assert_eq!(failures(&report), Vec::<String>::new());
    assert!(report.passed > 400, "{} checks", report.passed);
}

#[test]
fn every_model_fixture_passes() {
    let report = run_family("models");
    assert_eq!(failures(&report), Vec::<String>::new());
    assert!(report.passed > 300, "{} checks", report.passed);
}

#[test]
fn the_whole_update_passes() {
    let report = run_family("step");
    assert_eq!(failures(&report), Vec::<String>::new());
    assert!(report.passed > 150, "{} checks", report.passed);
}

#[test]
fn every_neighbour_fixture_passes() {
    let report = run_family("ann");
    assert_eq!(failures(&report), Vec::<String>::new());
}

#[test]
fn a_single_model_folder_is_a_run_of_its_own() {
    let report = run::<CpuTrain>(&oracles("models/bert_e5"), &Default::default()).unwrap();
    assert_eq!(failures(&report), Vec::<String>::new());
    assert_eq!(report.families["models"][0].name, "bert_e5");
}

/// A copy of one losses case, with its `values.json` changed.
fn changed_losses(change: impl FnOnce(&mut serde_json::Value)) -> FixtureReport {
    let dir = tempfile::tempdir().unwrap();
    let family = dir.path().join("losses");
    fs::create_dir(&family).unwrap();
    let mut values = fixtures::read_json(&oracles("losses/values.json")).unwrap();
    values.as_object_mut().unwrap().retain(|name, _| name == "one_valid_row");
    change(&mut values["one_valid_row"]);
    fs::copy(oracles("losses/one_valid_row.safetensors"), family.join("one_valid_row.safetensors"))
        .unwrap();
    fs::write(family.join("values.json"), values.to_string()).unwrap();
    run::<CpuTrain>(dir.path(), &Default::default()).unwrap()
}

#[test]
fn a_wrong_value_fails_with_its_deviation() {
    let report = changed_losses(|values| values["reverse_kl"]["value"] = 1.0.into());
    let failed = failures(&report);
    assert_eq!((failed.len(), report.failed), (1, 1));
    assert!(
        failed[0].contains("one_valid_row/reverse_kl") && failed[0].contains("off by"),
        "{failed:?}"
    );
}

#[test]
fn an_unknown_loss_fails_by_name() {
    let failed = failures(&changed_losses(|values| {
        values["wasserstein_2"] = serde_json::json!({ "value": 1.0 })
    }));
    assert_eq!(failed.len(), 1);
    assert!(failed[0].contains("wasserstein_2"), "{failed:?}");
}

#[test]
fn a_gradient_without_a_value_fails_as_unknown() {
    let failed =
        failures(&changed_losses(|values| drop(values.as_object_mut().unwrap().remove("ce"))));
    assert_eq!(failed.len(), 1);
    assert!(failed[0].contains("grad.ce") && failed[0].contains("unknown key"), "{failed:?}");
}

#[test]
fn a_truncated_file_is_a_failed_case_and_the_others_still_run() {
    let dir = tempfile::tempdir().unwrap();
    let family = dir.path().join("losses");
    fs::create_dir(&family).unwrap();
    for name in ["values.json", "normal.safetensors"] {
        fs::copy(oracles("losses").join(name), family.join(name)).unwrap();
    }
    let bytes = fs::read(oracles("losses/peaked.safetensors")).unwrap();
    fs::write(family.join("peaked.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    let report = run::<CpuTrain>(dir.path(), &Default::default()).unwrap();
    let cases = &report.families["losses"];
    let passed = |name: &str| cases.iter().find(|case| case.name == name).unwrap().passed();
    assert!(passed("normal") && !passed("peaked"));
}

#[test]
fn a_folder_without_fixtures_is_an_error_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let error = run::<CpuTrain>(dir.path(), &Default::default()).unwrap_err();
    assert!(error.to_string().contains("hint"), "{error}");
}

#[test]
fn loss_names_carry_their_parameters() {
    use dgpo_core::algo::distill::Divergence;
    let loss = losses::parse_loss("gkd_jsd_beta0.25_T3.5").unwrap();
    assert_eq!(
        (loss.divergence, loss.temperature),
        (Divergence::GeneralisedJsd { beta: 0.25 }, 3.5)
    );
    let loss = losses::parse_loss("kd_ratio0.25").unwrap();
    assert_eq!((loss.ce_weight, loss.kl_weight), (0.75, 0.25));
    assert_eq!(losses::parse_loss("taid_tx"), None);
}

#[test]
fn the_json_report_has_counts_and_families() {
    let report = changed_losses(|_| {});
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["failed"], 0);
    assert_eq!(json["passed"], report.passed);
    assert!(json["families"]["losses"][0]["checks"][0]["key"].is_string());
}

/// A safetensors file of i64 tensors, written out.
pub(super) fn write_integers(path: &Path, tensors: &[(&str, [usize; 2], Vec<i64>)]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape, values) in tensors {
        let start = data.len();
        data.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        header.insert((*name).to_owned(), serde_json::json!({ "dtype": "I64", "shape": shape, "data_offsets": [start, data.len()] }));
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend(data);
    fs::write(path, bytes).unwrap();
}

/// A rollout of one row in which the agent answers and then searches, as the reference records it:
/// it cuts at `</search>`.
fn answer_before_search(response: &str) -> FixtureReport {
    let dir = tempfile::tempdir().unwrap();
    let family = dir.path().join("text");
    fs::create_dir(&family).unwrap();
    let prompt = "#0# p";
    let rollout = serde_json::json!({
        "corpus": [["T", "text"]],
        "search_rule": "document i for query q is corpus[(len(q) + i) % 1], i < topk; len counts \
                        characters",
        "tokeniser": "byte + 3, pad id 0",
        "cases": [{
            "name": "c",
            "config": {
                "max_turns": 2, "max_start_length": 64, "max_prompt_length": 600,
                "max_response_length": 100, "max_obs_length": 400, "topk": 1,
            },
            "prompts": [prompt],
            "scripts": { "0": [response] },
            "queries_per_turn": [[]],
            "meta": { "turns_stats": [1], "active_mask": [false], "valid_action_stats": [1], "valid_search_stats": [0] },
            "contexts_seen_by_actor": [[prompt]],
            "responses_text": [response],
            "trained_text": [response],
        }],
    });
    fs::write(family.join("rollouts.json"), rollout.to_string()).unwrap();
    let ids = |text: &str| text.bytes().map(|byte| i64::from(byte) + 3).collect::<Vec<_>>();
    let (p, r, all) = (ids(prompt), ids(response), ids(&format!("{prompt}{response}")));
    let ones = vec![1; all.len()];
    let positions = (0..all.len() as i64).collect();
    let (np, nr, n) = ([1, p.len()], [1, r.len()], [1, all.len()]);
    let tensors = [
        ("c.prompts", np, p.clone()),
        ("c.initial_input_ids", np, p),
        ("c.responses", nr, r),
        ("c.input_ids", n, all),
        ("c.attention_mask", n, ones.clone()),
        ("c.info_mask", n, ones),
        ("c.position_ids", n, positions),
    ];
    write_integers(&family.join("rollouts.safetensors"), &tensors);
    run::<CpuTrain>(dir.path(), &Default::default()).unwrap()
}

#[test]
fn a_turn_that_ends_earlier_on_purpose_is_named_and_compared_up_to_there() {
    let notes = |report: &FixtureReport| {
        let checks = report.families["text"].iter().flat_map(|case| &case.checks);
        checks
            .filter(|c| c.message.as_ref().is_some_and(|m| m.starts_with("differs on purpose")))
            .count()
    };
    let same = answer_before_search("<answer>A</answer>");
    assert_eq!((failures(&same), notes(&same)), (Vec::new(), 0));
    for response in ["<answer>A</answer><search>q</search>", "<search>a</answer>b</search>"] {
        let different = answer_before_search(response);
        assert_eq!((failures(&different), notes(&different)), (Vec::new(), 1), "{response}");
    }
}
