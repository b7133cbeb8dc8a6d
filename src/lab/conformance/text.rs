//! Family `text`: normalisation and scores, actions and observations, documents, format reward,
//! chat templates; rollouts are in `rollouts`.
use super::{
    Case, FixtureError, cases_of,
    fixtures::{self, list, member, object, optional_text, read_json, strings, text},
    rollouts,
};
use crate::reference::{
    format::{FormatWeights, check_sequence, format_score, information_blocks},
    protocol::reference_cut,
    reward::{
        reference_exact_match, reference_extract_answer, reference_score, reference_substring_match,
    },
};
use dgpo_core::{
    env::{
        protocol::{
            Action, INVALID_ACTION, format_documents, information_block, parse_action,
            reference_action,
        },
        reward::{exact_match, substring_match},
        search::Passage,
    },
    settings::{ChatTemplate, EpisodeRecipe},
    text::normalise_answer,
    tokenizer::chat::{Chat, Message},
};
use dgpo_run::episodes::given::cut_at_first_stop;
use serde_json::Value;
use std::path::Path;

/// Why an action differs from the reference's.
pub(super) const BLANK_SEARCH: &str = "a search without a query is no action";
/// Message of the reference about a valid tag sequence.
const VALID_SEQUENCE: &str = "Valid sequence format";
/// The gold answer of the format fixtures, which do not name it.
const FORMAT_GOLD: &str = "Paris";

pub(super) fn run(dir: &Path) -> Vec<Case> {
    cases_of(dir, |name, path, case| match name {
        "rollouts.safetensors" => {
            case.equal("rollouts.json exists", &dir.join("rollouts.json").is_file(), &true);
            Ok(())
        }
        "rollouts.json" => {
            rollouts::compare(&read_json(path)?, &dir.join("rollouts.safetensors"), case)
        }
        "scoring.json" => scoring(&read_json(path)?, case),
        "actions.json" => each(&read_json(path)?, case, action),
        "documents.json" => each(&read_json(path)?, case, documents),
        "format_reward.json" => each(&read_json(path)?, case, format_reward),
        "chat_templates.json" => chat_templates(&read_json(path)?, case),
        _ => {
            case.fail_unknown([name.to_owned()]);
            Ok(())
        }
    })
}

/// Compares every record of a list; the key of a check begins with the record's number.
fn each(
    records: &Value,
    case: &mut Case,
    compare: impl Fn(&Value, &str, &str, &mut Case) -> Result<bool, FixtureError>,
) -> Result<(), FixtureError> {
    let records =
        records.as_array().ok_or_else(|| FixtureError::Missing("a list of records".into()))?;
    for (i, record) in records.iter().enumerate() {
        for key in object(record, "record")?.keys() {
            if !compare(record, key, &format!("{i}.{key}"), case)? {
                case.fail_unknown([format!("{i}.{key}")]);
            }
        }
    }
    Ok(())
}

/// A recorded 0/1, true/false or score as a number.
fn flag(value: &Value) -> f64 {
    value.as_f64().or_else(|| value.as_bool().map(|b| f64::from(u8::from(b)))).unwrap_or(f64::NAN)
}

/// f32 scores such as 0.1 against their decimal form.
fn score_equal(case: &mut Case, key: &str, got: f32, expected: &Value) {
    case.equal(key, &got, &(flag(expected) as f32));
}

fn scoring(json: &Value, case: &mut Case) -> Result<(), FixtureError> {
    for (section, records) in object(json, "scoring.json")? {
        let compare = match section.as_str() {
            "normalize" => normalisation,
            "em" => matches,
            "extract" => extraction,
            _ => {
                case.fail_unknown([section.clone()]);
                continue;
            }
        };
        each(records, case, |record, key, name, case| {
            compare(record, key, &format!("{section}.{name}"), case)
        })?;
    }
    Ok(())
}

fn normalisation(
    record: &Value,
    key: &str,
    name: &str,
    case: &mut Case,
) -> Result<bool, FixtureError> {
    match key {
        "in" => {}
        "out" => {
            case.equal(name, normalise_answer(text(record, "in")?).as_str(), text(record, key)?)
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn matches(record: &Value, key: &str, name: &str, case: &mut Case) -> Result<bool, FixtureError> {
    let golds = match member(record, "golden")? {
        Value::String(gold) => vec![gold.clone()],
        _ => strings(record, "golden")?,
    };
    let prediction = text(record, "prediction")?;
    let (theirs, ours) = match key {
        "prediction" | "golden" => return Ok(true),
        "em" => (reference_exact_match(prediction, &golds), exact_match(prediction, &golds)),
        "subem" => {
            (reference_substring_match(prediction, &golds), substring_match(prediction, &golds))
        }
        _ => return Ok(false),
    };
    score_equal(case, name, f32::from(u8::from(theirs)), &record[key]);
    if ours != theirs {
        case.differs_on_purpose(
            name,
            "a gold answer that normalises to nothing is compared as it is written",
        );
    }
    Ok(true)
}

fn extraction(
    record: &Value,
    key: &str,
    name: &str,
    case: &mut Case,
) -> Result<bool, FixtureError> {
    let whole = text(record, "text")?;
    match key {
        "text" => return Ok(true),
        "answer" => {
            case.equal(name, &reference_extract_answer(whole), &optional_text(record, key)?);
            return Ok(true);
        }
        _ => {}
    }
    let score = if let Some(gold) = key.strip_prefix("em_score_vs_") {
        reference_score(whole, &[gold.to_owned()], 0.0, reference_exact_match)
    } else if let Some(gold) = key.strip_prefix("subem_score_vs_") {
        reference_score(whole, &[gold.to_owned()], 0.0, reference_substring_match)
    } else if let Some(format_score) =
        key.strip_prefix("em_format_score_").and_then(|score| score.parse().ok())
    {
        reference_score(whole, &[FORMAT_GOLD.to_owned()], format_score, reference_exact_match)
    } else {
        return Ok(false);
    };
    score_equal(case, name, score, &record[key]);
    Ok(true)
}

/// (action's name, its text) as the fixtures write them.
fn parts(action: &Action) -> (Option<&str>, &str) {
    match action {
        Action::Search(query) => (Some("search"), query),
        Action::Answer(prediction) => (Some("answer"), prediction),
        Action::Invalid => (None, ""),
    }
}

fn action(record: &Value, key: &str, name: &str, case: &mut Case) -> Result<bool, FixtureError> {
    let raw = text(record, "raw")?;
    let cut = reference_cut(raw);
    let action = reference_action(cut);
    let untruncated = reference_action(raw);
    let flag_equal = |case: &mut Case, got: bool| {
        case.equal(name, &f64::from(u8::from(got)), &flag(&record[key]))
    };
    match key {
        "raw" => {}
        "truncated" => {
            case.equal(name, cut, text(record, key)?);
            if cut_at_first_stop(raw) != cut {
                case.differs_on_purpose(
                    name,
                    "generation ends at whichever stop string is complete first",
                );
            }
        }
        "action" => {
            case.equal(name, &parts(&action).0, &optional_text(record, key)?);
            if parse_action(cut) != action {
                case.differs_on_purpose(name, BLANK_SEARCH);
            }
        }
        "content" => case.equal(name, parts(&action).1, text(record, key)?),
        "untruncated_action" => {
            case.equal(name, &parts(&untruncated).0, &optional_text(record, key)?)
        }
        "untruncated_content" => case.equal(name, parts(&untruncated).1, text(record, key)?),
        "done" | "final_turn_done" => flag_equal(case, matches!(action, Action::Answer(_))),
        "valid_action" => flag_equal(case, action != Action::Invalid),
        "is_search" => flag_equal(case, matches!(action, Action::Search(_))),
        _ => {
            let Some(result) = key
                .strip_prefix("observation_when_search_returns_'")
                .and_then(|key| key.strip_suffix('\''))
            else {
                return Ok(false);
            };
            let observation = match &action {
                Action::Search(query) => information_block(&result.replace("query", query)),
                Action::Answer(_) => String::new(),
                Action::Invalid => INVALID_ACTION.to_owned(),
            };
            case.equal(name, observation.as_str(), text(record, key)?);
        }
    }
    Ok(true)
}

fn documents(record: &Value, key: &str, name: &str, case: &mut Case) -> Result<bool, FixtureError> {
    match key {
        "result" => {}
        "text" => {
            let passage = |hit: &Value| -> Result<Passage, FixtureError> {
                let document = hit.get("document").unwrap_or(hit);
                Ok(Passage { id: String::new(), contents: text(document, "contents")?.to_owned() })
            };
            let passages =
                list(record, "result")?.iter().map(passage).collect::<Result<Vec<_>, _>>()?;
            case.equal(name, format_documents(&passages).as_str(), text(record, key)?);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn format_reward(
    record: &Value,
    key: &str,
    name: &str,
    case: &mut Case,
) -> Result<bool, FixtureError> {
    let whole = text(record, "text")?;
    match key {
        "text" => {}
        "valid" => case.equal(name, &Some(check_sequence(whole).is_ok()), &record[key].as_bool()),
        "reason" => {
            let reason = check_sequence(whole).err().unwrap_or_else(|| VALID_SEQUENCE.to_owned());
            case.equal(name, reason.as_str(), text(record, key)?);
        }
        "information_blocks" => case.equal(
            name,
            &information_blocks(whole),
            &strings(record, key)?.iter().map(String::as_str).collect(),
        ),
        "score_full_weights" => {
            score_equal(
                case,
                name,
                format_score(whole, &[FORMAT_GOLD.to_owned()], FormatWeights::default()),
                &record[key],
            );
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn chat_templates(json: &Value, case: &mut Case) -> Result<(), FixtureError> {
    for key in object(json, "chat_templates.json")?.keys() {
        match key.as_str() {
            "cases" => {}
            "instruction_template" => {
                case.equal(key, EpisodeRecipe::default().instruction.as_str(), text(json, key)?)
            }
            _ => case.fail_unknown([key.clone()]),
        }
    }
    for (i, record) in list(json, "cases")?.iter().enumerate() {
        let family = text(record, "family")?;
        let key = format!("{i}.{family}");
        let known = ["family", "messages", "add_generation_prompt", "date_string", "text"];
        let unknown = object(record, &key)?.keys().filter(|name| !known.contains(&name.as_str()));
        case.fail_unknown(unknown.map(|name| format!("{key}.{name}")));
        let Ok(template) =
            serde_json::from_value::<ChatTemplate>(member(record, "family")?.clone())
        else {
            case.fail(&key, "unknown template family");
            continue;
        };
        let message = |message: &Value| -> Result<Message, FixtureError> {
            Ok(Message {
                role: text(message, "role")?.to_owned(),
                content: text(message, "content")?.to_owned(),
            })
        };
        let messages =
            list(record, "messages")?.iter().map(message).collect::<Result<Vec<_>, _>>()?;
        let date = record
            .get("date_string")
            .map_or(Ok(None), |_| optional_text(record, "date_string"))?
            .unwrap_or("26 Jul 2024");
        let add_generation_prompt = fixtures::flag(record, "add_generation_prompt")?;
        let rendered = Chat::built_in(template, date)
            .and_then(|chat| chat.render(&messages, add_generation_prompt));
        match rendered {
            Ok(rendered) => case.equal(&key, rendered.as_str(), text(record, "text")?),
            Err(error) => case.fail(&key, error.to_string()),
        }
    }
    Ok(())
}
