//! Damage to a valid file: what a broken disk, a cut download, a slip in an editor or ill will may
//! make of it.
//!
//! Bytes alone would nearly always end at the first check (not JSON, not gzip), so formats are
//! changed from within as well: a value of a JSON tree, the header of a safetensors file with its
//! length put right, what a gzip file unpacks to, a number in a text.
use super::dice::Dice;
use serde_json::{Map, Value, json};
use std::io::{Read, Write};

/// Numbers at which code goes wrong.
const NUMBERS: [&str; 22] = [
    "0",
    "1",
    "-1",
    "2",
    "3",
    "7",
    "255",
    "256",
    "65535",
    "65536",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "18446744073709551615",
    "1e308",
    "-1e308",
    "1e-320",
    "0.5",
    "1e999",
];
/// Texts of the same kind; an empty one, control characters, half of nothing.
const TEXTS: [&str; 14] = [
    "",
    " ",
    "\u{0}",
    "\u{feff}",
    "a",
    "\u{301}",
    "🙂",
    "</answer>",
    "<information>",
    "</information>",
    "<|im_end|>",
    "../../x",
    "[\"a\"]",
    "NaN",
];
/// Deepest nesting that is made.
const MOST_DEPTH: usize = 3000;
/// A changed file is at most this much larger than a valid one.
const MOST_ADDED: usize = 1 << 16;

/// Changes the contents of the file called `name` in one to four places.
pub(super) fn changed(name: &str, valid: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    for _ in 0..=dice.below(4) {
        bytes = changed_once(name, &bytes, dice);
        bytes.truncate(valid.len() + MOST_ADDED);
    }
    bytes
}

fn changed_once(name: &str, bytes: &[u8], dice: &mut Dice) -> Vec<u8> {
    let within = match name.rsplit_once('.').map_or("", |(_, extension)| extension) {
        _ if dice.once_in(3) => None,
        "json" => in_json(bytes, dice),
        "jsonl" => in_lines(bytes, dice),
        "toml" | "jinja" => in_text(bytes, dice),
        "safetensors" => in_safetensors(bytes, dice),
        "gz" => in_gzip(name, bytes, dice),
        _ => None,
    };
    within.unwrap_or_else(|| in_bytes(bytes, dice))
}

/// Without any knowledge of what they mean.
fn in_bytes(bytes: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let n = bytes.len();
    let at = dice.below(n);
    if n == 0 {
        return vec![dice.byte()];
    }
    match dice.below(9) {
        0 => bytes[at] ^= 1 << dice.below(8),
        1 => bytes[at] = dice.byte(),
        2 => {
            bytes[at] = *dice.one_of(&[0, 1, 0x7f, 0x80, 0xff, b'"', b'\n', b'{', b'[', b'9', b'-'])
        }
        3 => bytes.truncate(at),
        4 => bytes.insert(at, dice.byte()),
        5 => _ = bytes.remove(at),
        6 => {
            let end = n.min(at + 1 + dice.below(64));
            let piece = bytes[at..end].to_vec();
            let to = dice.below(n);
            bytes.splice(to..to, piece);
        }
        7 => {
            let width = *dice.one_of(&[2usize, 4, 8]);
            let number = dice.one_of(&NUMBERS).parse::<f64>().unwrap_or(0.0) as i128 as u64;
            let number = number.wrapping_add(dice.below(3) as u64).wrapping_sub(1);
            let end = n.min(at + width);
            bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
        }
        _ => {
            let end = n.min(at + 1 + dice.below(32));
            bytes.drain(at..end);
        }
    }
    bytes
}

/// Words and lines.
fn in_text(bytes: &[u8], dice: &mut Dice) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if lines.is_empty() {
        return None;
    }
    let (at, to) = (dice.below(lines.len()), dice.below(lines.len()));
    match dice.below(8) {
        0 => _ = lines.remove(at),
        1 => lines.insert(to, lines[at].clone()),
        2 => lines.swap(at, to),
        3..5 => lines[at] = with_another_number(&lines[at], dice),
        _ => lines[at] = with_another_value(&lines[at], dice),
    }
    Some((lines.join("\n") + "\n").into_bytes())
}

/// The first whole number of the line replaced.
fn with_another_number(line: &str, dice: &mut Dice) -> String {
    let Some(start) = line.find(|c: char| c.is_ascii_digit()) else {
        return format!("{line}{}", dice.one_of(&TEXTS));
    };
    let end = line[start..].find(|c: char| !c.is_ascii_digit()).map_or(line.len(), |n| start + n);
    format!("{}{}{}", &line[..start], dice.one_of(&NUMBERS), &line[end..])
}

/// `key = value` with another value, or another word of the line.
fn with_another_value(line: &str, dice: &mut Dice) -> String {
    let value = match dice.below(4) {
        0..2 => (*dice.one_of(&NUMBERS)).to_owned(),
        2 => format!("{:?}", dice.one_of(&TEXTS)),
        _ => {
            let depth = 1 << dice.below(10);
            (*dice.one_of(&["true", "[]", "{}", "inf", "nan", "-inf", "1979-05-27", "'''"]))
                .to_owned()
                + &"[".repeat(depth)
        }
    };
    match line.split_once('=') {
        Some((key, _)) => format!("{key}= {value}"),
        None => line.replacen(line.split(' ').next_back().unwrap_or_default(), &value, 1),
    }
}

fn in_lines(bytes: &[u8], dice: &mut Dice) -> Option<Vec<u8>> {
    let mut lines: Vec<Vec<u8>> = bytes.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
    let (at, to) = (dice.below(lines.len()), dice.below(lines.len()));
    match dice.below(8) {
        0 => _ = lines.remove(at),
        1 => lines.insert(to, lines[at].clone()),
        2 => lines.swap(at, to),
        _ => lines[at] = in_json(&lines[at], dice)?,
    }
    Some(lines.join(&b'\n'))
}

fn in_json(bytes: &[u8], dice: &mut Dice) -> Option<Vec<u8>> {
    let mut tree: Value = serde_json::from_slice(bytes).ok()?;
    let mut left = dice.below(n_values(&tree));
    change_value(&mut tree, &mut left, dice);
    let text = tree.to_string();
    // serde_json writes no number that it could not read; these may be larger.
    Some(text.replacen("\"1e999 as a number\"", "1e999", 1).into_bytes())
}

fn n_values(tree: &Value) -> usize {
    1 + match tree {
        Value::Array(items) => items.iter().map(n_values).sum(),
        Value::Object(members) => members.values().map(n_values).sum(),
        _ => 0,
    }
}

/// Changes value number `left`, counted depth first.
fn change_value(tree: &mut Value, left: &mut usize, dice: &mut Dice) {
    if *left == 0 {
        // Nothing behind it is changed.
        *left = usize::MAX;
        return change_here(tree, dice);
    }
    *left -= 1;
    match tree {
        Value::Array(items) => items.iter_mut().for_each(|item| step_into(item, left, dice)),
        Value::Object(members) => {
            members.values_mut().for_each(|member| step_into(member, left, dice))
        }
        _ => {}
    }
}

fn step_into(tree: &mut Value, left: &mut usize, dice: &mut Dice) {
    if *left < usize::MAX / 2 {
        change_value(tree, left, dice);
    }
}

fn change_here(value: &mut Value, dice: &mut Dice) {
    match value {
        Value::Array(items) if !items.is_empty() && !dice.once_in(3) => change_list(items, dice),
        Value::Object(members) if !members.is_empty() && !dice.once_in(3) => {
            change_members(members, dice)
        }
        Value::String(text) if dice.once_in(2) => {
            let at = text.floor_char_boundary(dice.below(text.len() + 1));
            match dice.below(3) {
                0 => text.truncate(at),
                1 => text.insert_str(at, dice.one_of::<&str>(&TEXTS)),
                _ => *text = text.repeat(1 + dice.below(64)),
            }
        }
        Value::Number(number) if dice.once_in(3) => {
            let nearby = number.as_i64().map(|n| json!(n.saturating_add(dice.below(5) as i64 - 2)));
            *value = nearby.unwrap_or(Value::Null);
        }
        _ => *value = another_value(dice),
    }
}

fn change_list(items: &mut Vec<Value>, dice: &mut Dice) {
    let (at, to) = (dice.below(items.len()), dice.below(items.len()));
    match dice.below(4) {
        0 => _ = items.remove(at),
        1 => items.insert(to, items[at].clone()),
        2 => items.swap(at, to),
        _ => items[at] = another_value(dice),
    }
}

fn change_members(members: &mut Map<String, Value>, dice: &mut Dice) {
    let names: Vec<String> = members.keys().cloned().collect();
    let (name, other) = (dice.one_of(&names).clone(), dice.one_of(&names).clone());
    match dice.below(5) {
        0 => _ = members.remove(&name),
        1 => _ = members.insert((*dice.one_of(&TEXTS)).to_owned(), another_value(dice)),
        2 => {
            let moved = members.get(&name).cloned().unwrap_or_default();
            _ = members.insert(other, moved);
        }
        3 => {
            let moved = members.remove(&name).unwrap_or_default();
            _ = members.insert(name + "_", moved);
        }
        _ => _ = members.insert(name, another_value(dice)),
    }
}

fn another_value(dice: &mut Dice) -> Value {
    match dice.below(8) {
        0 => Value::Null,
        1 => Value::Bool(dice.once_in(2)),
        2..5 => number(dice.one_of::<&str>(&NUMBERS)),
        5 => Value::from(*dice.one_of(&TEXTS)),
        6 => json!({}),
        _ => {
            let depth = if dice.once_in(4) { 1 + dice.below(100) } else { 1 + dice.below(3) };
            let is_list = dice.once_in(2);
            (0..depth).fold(
                Value::Null,
                |inner, _| if is_list { json!([inner]) } else { json!({"a": inner}) },
            )
        }
    }
}

fn number(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::from(format!("{text} as a number")))
}

/// The header, its length put right.
fn in_safetensors(bytes: &[u8], dice: &mut Dice) -> Option<Vec<u8>> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let n = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let header = in_json(rest.get(..n)?, dice)?;
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header);
    out.extend(rest.get(n..)?);
    Some(out)
}

/// Its unpacked content, packed again.
fn in_gzip(name: &str, bytes: &[u8], dice: &mut Dice) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes)
        .take(MOST_ADDED as u64 * 4)
        .read_to_end(&mut plain)
        .ok()?;
    let plain = match dice.below(8) {
        // Far more than it takes.
        0 => plain.repeat(1 + dice.below(64)),
        1 => b"[".repeat(1 + dice.below(MOST_DEPTH)),
        _ => changed_once(name.trim_end_matches(".gz"), &plain, dice),
    };
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(&plain).ok()?;
    packer.finish().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_a_function_of_its_number_and_changes_something() {
        let valid = br#"{"id": "1", "question": "who?", "golden_answers": ["a", "b"], "n": 3}"#;
        let case = |case: u64| changed("q.json", valid, &mut Dice::new(0, 1, case));
        assert_eq!(case(7), case(7));
        let n_same = (0..200).filter(|&n| case(n) == valid).count();
        let different: std::collections::BTreeSet<Vec<u8>> = (0..200).map(case).collect();
        assert!(
            n_same < 20 && different.len() > 150,
            "{n_same} unchanged, {} different",
            different.len()
        );
    }

    #[test]
    fn many_cases_of_a_format_still_are_of_that_format() {
        let valid = br#"{"a": [1, 2, {"b": "c"}], "d": 5.5}"#;
        let is_json = |case| {
            serde_json::from_slice::<Value>(&changed("x.json", valid, &mut Dice::new(0, 2, case)))
                .is_ok()
        };
        assert!((0..300).filter(|&case| is_json(case)).count() > 60);
        let header = br#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let file = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat();
        let has_header = |case| {
            let bytes = changed("w.safetensors", &file, &mut Dice::new(0, 3, case));
            let n = bytes.first_chunk::<8>().map_or(u64::MAX, |n| u64::from_le_bytes(*n));
            usize::try_from(n)
                .ok()
                .and_then(|n| bytes.get(8..)?.get(..n))
                .is_some_and(|h| serde_json::from_slice::<Value>(h).is_ok())
        };
        assert!((0..300).filter(|&case| has_header(case)).count() > 60);
    }

    #[test]
    fn every_value_of_a_tree_is_reached() {
        let tree = json!({"a": 1, "b": [2, {"c": 3}]});
        assert_eq!(n_values(&tree), 6);
        let mut seen = std::collections::BTreeSet::new();
        for number in 0..6 {
            let mut copy = tree.clone();
            let mut left = number;
            change_value(&mut copy, &mut left, &mut Dice::new(1, 1, number as u64));
            assert_eq!(left, usize::MAX, "value {number}");
            _ = seen.insert(copy.to_string());
        }
        assert!(seen.len() > 3, "{seen:?}");
    }
}
