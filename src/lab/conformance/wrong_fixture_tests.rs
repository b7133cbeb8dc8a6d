//! Fixtures that are wrong must fail: each test changes a copy of a recorded one.
use super::{
    tests::{failures, oracles, write_integers},
    *,
};
use dgpo_run::devices::CpuTrain;
use safetensors::{SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use std::fs;

/// A folder with copies of some families (or folders inside one).
struct Copy(tempfile::TempDir);

impl Copy {
    fn of(parts: &[&str]) -> Self {
        let copy = Self(tempfile::tempdir().unwrap());
        for part in parts {
            fs::create_dir_all(copy.path(part)).unwrap();
            for (name, path) in
                entries(&oracles(part)).unwrap().into_iter().filter(|(_, path)| path.is_file())
            {
                fs::copy(path, copy.path(part).join(name)).unwrap();
            }
        }
        copy
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn json(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = fixtures::read_json(&self.path(name)).unwrap();
        change(&mut value);
        fs::write(self.path(name), value.to_string()).unwrap();
    }

    /// Rewrites a safetensors file: tensors for which `change` is false are left out.
    fn tensors(&self, name: &str, mut change: impl FnMut(&str, &mut Vec<u8>) -> bool) {
        let bytes = fs::read(self.path(name)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let all = file
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec()));
        let kept: Vec<_> = all
            .filter_map(|(name, dtype, shape, mut data)| {
                change(&name, &mut data).then_some((name, dtype, shape, data))
            })
            .collect();
        let views = kept.iter().map(|(name, dtype, shape, data)| {
            (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        safetensors::serialize_to_file(views, None, &self.path(name)).unwrap();
    }

    /// Overwrites every value of an f32 tensor.
    fn fill(&self, name: &str, key: &str, value: f32) {
        self.tensors(name, |found, data| {
            if found == key {
                data.as_chunks_mut::<4>().0.fill(value.to_le_bytes());
            }
            true
        });
    }

    fn failures(&self) -> Vec<String> {
        failures(&run::<CpuTrain>(self.0.path(), &Default::default()).unwrap())
    }
}

fn has(failures: &[String], text: &str) -> bool {
    failures.iter().any(|failure| failure.contains(text))
}

#[test]
fn recorded_logits_that_are_not_finite_fail() {
    for value in [f32::NAN, f32::INFINITY] {
        let copy = Copy::of(&["models/llama3_tied"]);
        copy.fill("models/llama3_tied/reference.safetensors", "left.logits", value);
        assert!(has(&copy.failures(), "left.logits"), "{value}");
    }
}

/// The losses without the one of real vocabulary size, which takes most of the time.
fn losses() -> Copy {
    let copy = Copy::of(&["losses"]);
    fs::remove_file(copy.path("losses/large_vocab.json")).unwrap();
    copy
}

#[test]
fn losses_without_values_fail() {
    for (change, n_failed) in [(Value::Null, 1), (json!("7.0"), 1), (json!({}), 1)] {
        let copy = losses();
        copy.json("losses/values.json", |values| {
            values["normal"]["reverse_kl"]["value"] = change.clone()
        });
        let failed = copy.failures();
        assert!(
            failed.len() == n_failed && failed[0].contains("normal/reverse_kl"),
            "{change}: {failed:?}"
        );
    }
    let copy = losses();
    copy.json("losses/values.json", |values| {
        for case in values.as_object_mut().unwrap().values_mut() {
            case.as_object_mut()
                .unwrap()
                .values_mut()
                .for_each(|loss| _ = loss.as_object_mut().unwrap().remove("value"));
        }
    });
    let failed = copy.failures();
    for case in ["normal", "peaked", "near_equal", "extreme_shift", "one_valid_row"] {
        assert!(has(&failed, &format!("{case}/")), "{case}: {failed:?}");
    }
}

#[test]
fn only_a_loss_recorded_as_not_finite_may_lack_numbers() {
    let without_numbers = |is_finite: bool| {
        let copy = losses();
        copy.json("losses/values.json", |values| {
            values["normal"]["reverse_kl"] =
                json!({ "value": null, "value_f32": null, "finite": is_finite });
        });
        copy.fill("losses/normal.safetensors", "grad.reverse_kl", f32::NAN);
        copy.failures()
    };
    assert_eq!(without_numbers(false), Vec::<String>::new());
    let failed = without_numbers(true);
    assert!(
        failed.len() == 2
            && has(&failed, "normal/reverse_kl")
            && has(&failed, "normal/grad.reverse_kl"),
        "{failed:?}"
    );
}

#[test]
fn ppo_scalars_without_numbers_fail() {
    let copy = Copy::of(&["ppo"]);
    copy.json("ppo/values.json", |values| {
        values["episode0a"]["dgpo.0"]["state_masked"]["pg_loss"] = Value::Null;
        values["pieces"]["masked_mean"] = json!("0.5");
    });
    let failed = copy.failures();
    assert!(
        failed.len() == 2 && has(&failed, "pg_loss") && has(&failed, "masked_mean"),
        "{failed:?}"
    );
}

fn step() -> Copy {
    Copy::of(&["step", "models/qwen2_tied", "models/qwen2_teacher"])
}

/// The failures of the family `step` alone.
fn step_failures(copy: &Copy) -> Vec<String> {
    failures(&run::<CpuTrain>(&copy.path("step"), &Default::default()).unwrap())
}

#[test]
fn update_scalars_without_numbers_fail() {
    let copy = step();
    copy.json("step/step.json", |step| {
        step["actor"][0]["clipfrac"] = Value::Null;
        step["critic"][1]["grad_norm"] = Value::Null;
        step["gamma"] = json!("1");
    });
    assert!(has(&step_failures(&copy), "gamma"));
    copy.json("step/step.json", |step| _ = step.as_object_mut().unwrap().remove("gamma"));
    let failed = step_failures(&copy);
    assert!(has(&failed, "\"clipfrac\"") || has(&failed, "actor[0].clipfrac"), "{failed:?}");
    copy.json("step/step.json", |step| step["actor"][0]["clipfrac"] = json!(0.0));
    let failed = step_failures(&copy);
    assert!(
        failed.len() == 2 && failed.iter().all(|failure| failure.contains("critic[1].grad_norm")),
        "{failed:?}"
    );
}

#[test]
fn a_minibatch_beyond_the_rows_fails() {
    for network in ["actor", "critic"] {
        let copy = step();
        copy.json("step/step.json", |step| {
            step[network].as_array_mut().unwrap().push(json!({ "loss": 5.0 }))
        });
        assert!(has(&step_failures(&copy), &format!("{network} minibatches")), "{network}");
    }
}

#[test]
fn the_trainers_own_step_is_held_to_the_recorded_one() {
    // (what is changed, the check of the trainer's own code that must notice)
    let changes = [
        ("old_log_probs", "step/score::log_probs, actor"),
        ("values", "step/score::values"),
        ("token_level_rewards", "step/token_rewards"),
        ("advantages", "step/gae, advantages"),
        ("returns", "step/Update::critic, critic[0].loss"),
        ("actor.after.log_probs", "step/rl_step, actor.after.log_probs"),
    ];
    let copy = step();
    for (key, _) in changes {
        copy.fill("step/step.safetensors", key, 0.25);
    }
    copy.json("step/step.json", |step| step["actor"][0]["loss"] = json!(0.35));
    let failed = step_failures(&copy);
    for (key, check) in changes {
        assert!(has(&failed, check), "{key}: {failed:?}");
    }
    assert!(has(&failed, "step/rl_step, losses/policy_loss"), "{failed:?}");
}

#[test]
fn generated_tokens_are_the_engines() {
    let copy = Copy::of(&["models/llama3_tied"]);
    copy.tensors("models/llama3_tied/reference.safetensors", |key, data| {
        if key == "gen.tokens" || key == "gen_eos.tokens" {
            data[0] ^= 1;
        }
        true
    });
    let failed = copy.failures();
    for check in [
        "gen.tokens, 3 rows at a time",
        "gen.tokens, 2 rows at a time",
        "gen_eos.tokens, 3 rows at a time",
    ] {
        assert!(has(&failed, check), "{check}: {failed:?}");
    }
}

#[test]
fn a_reference_of_inputs_alone_fails() {
    let copy = Copy::of(&["models/llama3_tied", "models/bert_e5"]);
    for model in ["llama3_tied", "bert_e5"] {
        let inputs = ["input_ids", "attention_mask", "position_ids"];
        copy.tensors(&format!("models/{model}/reference.safetensors"), |key, _| {
            inputs.iter().any(|input| key.ends_with(input))
        });
        copy.json(&format!("models/{model}/reference.json"), |reference| *reference = json!({}));
    }
    let failed = copy.failures();
    assert!(
        has(&failed, "llama3_tied/reference") && has(&failed, "bert_e5/reference"),
        "{failed:?}"
    );
}

#[test]
fn recorded_numbers_without_their_tensors_fail() {
    let copy = Copy::of(&["models/llama3_tied"]);
    copy.tensors("models/llama3_tied/reference.safetensors", |key, _| {
        !key.starts_with("grad.") && !key.starts_with("adamw.")
    });
    let failed = copy.failures();
    assert!(
        has(&failed, "llama3_tied/grad.loss") && has(&failed, "llama3_tied/grad.norms"),
        "{failed:?}"
    );
}

#[test]
fn a_bound_wider_than_the_recorded_deviation_fails() {
    let copy = Copy::of(&["models/qwen2_tied_bf16"]);
    copy.json("models/qwen2_tied_bf16/reference.json", |reference| {
        reference["left.bf16_compute_max_abs_dev"] = json!(1e9)
    });
    assert!(has(&copy.failures(), "left.bf16_compute_max_abs_dev"));
}

#[test]
fn wrong_neighbours_fail() {
    for name in ["ip", "l2"] {
        let copy = Copy::of(&["ann"]);
        copy.tensors("ann/ann.safetensors", |key, data| {
            if key == format!("{name}.ids") {
                data.fill(0);
            }
            true
        });
        let failed = copy.failures();
        assert!(has(&failed, &format!("{name}.ids")), "{failed:?}");
    }
    // Two neighbours of a query swapped: the same set in the wrong order.
    let copy = Copy::of(&["ann"]);
    copy.tensors("ann/ann.safetensors", |key, data| {
        if key == "ip.ids" {
            data[..16].rotate_left(8);
        }
        true
    });
    assert!(has(&copy.failures(), "query 0, rank 0"));
}

#[test]
fn a_limit_that_the_recorded_rollouts_do_not_keep_excuses_nothing() {
    for limit in [1, 40] {
        let copy = Copy::of(&["text"]);
        copy.json("text/rollouts.json", |rollouts| {
            for case in rollouts["cases"].as_array_mut().unwrap() {
                case["config"]["max_prompt_length"] = limit.into();
            }
        });
        let failed = copy.failures();
        for case in
            ["two_searches_then_answer", "invalid_then_budget_runs_out", "observation_truncated"]
        {
            assert!(has(&failed, &format!("rollouts/{case}")), "{limit}, {case}: {failed:?}");
        }
    }
}

/// A rollout whose second context the reference cut to `max_prompt_length`, recorded with
/// `recorded_limit` and declared with `declared_limit`.
fn truncated_rollout(recorded_limit: usize, declared_limit: usize) -> FixtureReport {
    let dir = tempfile::tempdir().unwrap();
    let family = dir.path().join("text");
    fs::create_dir(&family).unwrap();
    let (prompt, search, answer) = ("#0# p", "<search>q</search>", "<answer>A</answer>");
    let page = dgpo_core::env::search::Passage {
        id: String::new(),
        contents: format!("T\n{}", "long text ".repeat(12)),
    };
    let observation = dgpo_core::env::protocol::information_block(
        &dgpo_core::env::protocol::format_documents(std::slice::from_ref(&page)),
    );
    let context = format!("{prompt}{search}{observation}");
    let response: String =
        format!("{search}{observation}{answer}").chars().take(recorded_limit).collect();
    let rollout = json!({
        "corpus": [["T", "long text ".repeat(12)]],
        "search_rule": "document i for query q is corpus[(len(q) + i) % 1], i < topk; len counts \
                        characters",
        "tokeniser": "byte + 3, pad id 0",
        "cases": [{
            "name": "c",
            "config": {
                "max_turns": 2, "max_start_length": 64, "max_prompt_length": declared_limit,
                "max_response_length": 100, "max_obs_length": 400, "topk": 1,
            },
            "prompts": [prompt],
            "scripts": { "0": [search, answer] },
            "queries_per_turn": [["q"]],
            "meta": { "turns_stats": [2], "active_mask": [false], "valid_action_stats": [2], "valid_search_stats": [1] },
            "contexts_seen_by_actor": [[prompt], [&context[context.len().saturating_sub(recorded_limit)..]]],
            "responses_text": [response],
            "trained_text": [search],
        }],
    });
    fs::write(family.join("rollouts.json"), rollout.to_string()).unwrap();
    let ids = |text: &str| text.bytes().map(|byte| i64::from(byte) + 3).collect::<Vec<_>>();
    let (p, r, all) = (ids(prompt), ids(&response), ids(&format!("{prompt}{response}")));
    let info = (0..all.len()).map(|col| i64::from(col < prompt.len() + search.len())).collect();
    let (np, nr, n) = ([1, p.len()], [1, r.len()], [1, all.len()]);
    let tensors = [
        ("c.prompts", np, p.clone()),
        ("c.initial_input_ids", np, p),
        ("c.responses", nr, r),
        ("c.attention_mask", n, vec![1; all.len()]),
        ("c.info_mask", n, info),
        ("c.position_ids", n, (0..all.len() as i64).collect()),
        ("c.input_ids", n, all),
    ];
    write_integers(&family.join("rollouts.safetensors"), &tensors);
    run::<CpuTrain>(dir.path(), &Default::default()).unwrap()
}

#[test]
fn a_rollout_that_really_met_the_limit_is_compared_up_to_there() {
    let report = truncated_rollout(60, 60);
    assert_eq!(failures(&report), Vec::<String>::new());
    let notes = report.families["text"]
        .iter()
        .flat_map(|case| &case.checks)
        .filter_map(|check| check.message.as_ref());
    assert!(
        notes
            .into_iter()
            .any(|note| note.contains("an episode that would pass max_prompt_length is closed"))
    );
    assert!(
        !failures(&truncated_rollout(500, 60)).is_empty(),
        "the recorded rollout is longer than its limit"
    );
}

#[test]
fn text_records_of_another_type_fail() {
    let copy = Copy::of(&["text"]);
    copy.json("text/actions.json", |actions| {
        let invalid = actions
            .as_array_mut()
            .unwrap()
            .iter_mut()
            .find(|action| action["action"].is_null())
            .unwrap();
        invalid["action"] = json!(5);
    });
    assert!(has(&copy.failures(), "is 5, expected a string"));
}
