//! The protocol as the reference has it, where this project differs on purpose.
use dgpo_core::env::protocol::STOP_STRINGS;

/// Part of a generation that the reference keeps: everything up to the first `</search>`; without
/// one, up to the first `</answer>`.
///
/// Here generation ends at whichever stop string is complete first, so an answer followed by a
/// search keeps the answer alone.
///
/// # Source
/// method §1, last bullet; PeterGriffinJin/Search-R1:search_r1/llm_agent/generation.py
/// `_postprocess_responses`
pub fn reference_cut(generation: &str) -> &str {
    STOP_STRINGS
        .iter()
        .find_map(|stop| generation.find(stop).map(|at| &generation[..at + stop.len()]))
        .unwrap_or(generation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dgpo_core::env::protocol::{Action, INVALID_ACTION, information_block, reference_action};
    use dgpo_run::episodes::given::cut_at_first_stop;
    use serde_json::Value;

    fn oracle(text: &str) -> Vec<Value> {
        serde_json::from_str(text).expect("a list")
    }

    /// (action's name, its text) as the oracle writes them.
    fn parts(action: &Action) -> (Value, &str) {
        match action {
            Action::Search(query) => ("search".into(), query),
            Action::Answer(prediction) => ("answer".into(), prediction),
            Action::Invalid => (Value::Null, ""),
        }
    }

    #[test]
    fn every_recorded_generation_is_cut_parsed_and_answered_as_the_reference_does() {
        let cases = oracle(include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/oracles/text/actions.json"
        )));
        assert_eq!(cases.len(), 19);
        for case in &cases {
            let raw = case["raw"].as_str().unwrap();
            let truncated = reference_cut(raw);
            assert_eq!(truncated, case["truncated"].as_str().unwrap());
            let action = reference_action(truncated);
            assert_eq!(
                parts(&action),
                (case["action"].clone(), case["content"].as_str().unwrap()),
                "{raw}"
            );
            let untruncated = reference_action(raw);
            assert_eq!(
                parts(&untruncated),
                (case["untruncated_action"].clone(), case["untruncated_content"].as_str().unwrap()),
                "{raw}"
            );
            let observation = match &action {
                Action::Search(query) => information_block(&format!(" R[{query}] ")),
                Action::Answer(_) => String::new(),
                Action::Invalid => INVALID_ACTION.to_owned(),
            };
            assert_eq!(
                observation,
                case["observation_when_search_returns_' R[query] '"].as_str().unwrap(),
                "{raw}"
            );
            assert_eq!(
                u64::from(matches!(action, Action::Answer(_))),
                case["done"].as_u64().unwrap()
            );
            assert_eq!(
                u64::from(action != Action::Invalid),
                case["valid_action"].as_u64().unwrap()
            );
            assert_eq!(
                u64::from(matches!(action, Action::Search(_))),
                case["is_search"].as_u64().unwrap()
            );
        }
    }

    #[test]
    fn our_cut_differs_from_the_references_only_where_an_answers_end_comes_first() {
        let cases = oracle(include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/oracles/text/actions.json"
        )));
        let differing: Vec<&str> = cases
            .iter()
            .map(|case| case["raw"].as_str().unwrap())
            .filter(|raw| cut_at_first_stop(raw) != reference_cut(raw))
            .collect();
        assert_eq!(
            differing,
            ["<answer>a</answer><search>q</search>", "<search>a</answer>b</search>"]
        );
        assert_eq!(cut_at_first_stop(differing[0]), "<answer>a</answer>");
    }
}
