//! Answer of a `/retrieve` server, read within bounds.
//!
//! A server is not trusted with memory. The bytes of an answer are limited by what was asked for
//! ([`max_bytes`]), and reading them keeps no more than the texts of the passages that were asked
//! for: a tree of everything an answer holds would be up to thirty times its size. Everything else
//! (unknown fields, passages beyond `top_k`, whatever stands where it does not belong) is skipped
//! without being kept, at any depth. What is wrong with one query's list is told about that query
//! alone.
use dgpo_core::env::search::{Hit, Passage};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// Bytes a passage may take of an answer on average, JSON around it included: ten thousand words,
/// more than an observation can show.
const PASSAGE_BYTES: u64 = 64 << 10;
/// Bytes an answer may take beside its passages.
const REST_BYTES: u64 = 1 << 20;
/// No answer is larger: 512 queries with ten passages of 1 kB are 5 MB.
const MAX_ANSWER_BYTES: u64 = 64 << 20;
/// Characters of a wrong answer that an error quotes.
const QUOTED_CHARS: usize = 120;

/// The largest answer that is read for this many queries.
pub fn max_bytes(n_queries: usize, top_k: usize) -> u64 {
    let n_passages = (n_queries as u64).saturating_mul(top_k as u64);
    n_passages.saturating_mul(PASSAGE_BYTES).saturating_add(REST_BYTES).min(MAX_ANSWER_BYTES)
}

/// The passages of each query, at most `top_k` of each, in the order of the queries.
/// # Errors
/// If the whole answer is of another form; the inner error is of one query.
pub fn read(
    text: &str,
    n_queries: usize,
    top_k: usize,
) -> Result<Vec<Result<Vec<Hit>, String>>, String> {
    let mut parser = serde_json::Deserializer::from_str(text);
    let reader = AnswerReader { place: AnswerPlace::Answer, n_queries, top_k };
    let answer = reader.deserialize(&mut parser).and_then(|answer| parser.end().map(|()| answer));
    match answer.map_err(|error| format!("the answer is not JSON ({error}): {}", quote(text)))? {
        AnswerNode::Object(mut fields) => match fields.take("result") {
            Some(AnswerNode::List { kept, n }) if n == n_queries => {
                Ok(kept.into_iter().map(hits).collect())
            }
            Some(AnswerNode::List { n, .. }) => Err(format!("{n} results for {n_queries} queries")),
            Some(_) => Err("`result` is not a list".to_owned()),
            None => Err(format!("the answer has no `result`: {}", quote(text))),
        },
        _ => Err(format!("the answer is not an object: {}", quote(text))),
    }
}

/// The beginning of a text, for messages.
pub fn quote(text: &str) -> String {
    let start: String = text.trim().chars().take(QUOTED_CHARS).collect();
    format!("\"{start}{}\"", if text.trim().chars().nth(QUOTED_CHARS).is_some() { "…" } else { "" })
}

/// The passages of one query.
fn hits(result: AnswerNode) -> Result<Vec<Hit>, String> {
    let AnswerNode::List { kept, .. } = result else {
        return Err("the result of a query is not a list".to_owned());
    };
    kept.into_iter()
        .enumerate()
        .map(|(rank, passage)| hit(passage).map_err(|why| format!("passage {rank}: {why}")))
        .collect()
}

fn hit(passage: AnswerNode) -> Result<Hit, String> {
    let AnswerNode::Object(mut fields) = passage else {
        return Err("it is not an object".to_owned());
    };
    // An episode never sees the score, so one that is missing or no number is no reason to lose the
    // passage.
    let score = match fields.take("score") {
        Some(AnswerNode::Number { value, .. }) => value as f32,
        _ => 0.0,
    };
    let (mut document, score) = match fields.take("document") {
        Some(AnswerNode::Object(document)) => (document, score),
        Some(_) => return Err("`document` is not an object".to_owned()),
        None => (fields, 0.0),
    };
    let Some(AnswerNode::Text(contents)) = document.take("contents") else {
        return Err("`contents` is missing or not a text".to_owned());
    };
    if contents.trim().is_empty() {
        return Err("`contents` is empty".to_owned());
    }
    // Servers disagree whether an id is a number or a text.
    let id = match document.take("id") {
        Some(AnswerNode::Text(id) | AnswerNode::Number { text: id, .. }) => id,
        _ => return Err("`id` is missing or neither text nor number".to_owned()),
    };
    Ok(Hit { passage: Passage { id, contents }, score })
}

/// The part of a JSON value that is kept.
enum AnswerNode {
    Text(String),
    Number {
        value: f64,
        text: String,
    },
    /// The first elements, and how many there were.
    List {
        kept: Vec<AnswerNode>,
        n: usize,
    },
    Object(AnswerFields),
    /// Something that has no business there.
    Other,
}

/// The known fields of an object; of a field that occurs twice, the last.
#[derive(Default)]
struct AnswerFields(Vec<(&'static str, AnswerNode)>);

impl AnswerFields {
    fn take(&mut self, name: &str) -> Option<AnswerNode> {
        let at = self.0.iter().rposition(|(field, _)| *field == name)?;
        Some(self.0.swap_remove(at).1)
    }
}

/// Position of a value in an answer: it decides what of the value is kept.
#[derive(Clone, Copy)]
enum AnswerPlace {
    Answer,
    Results,
    Passages,
    Passage,
    Document,
    Scalar,
}

impl AnswerPlace {
    /// The fields an object at this place may have, and where their values stand.
    fn fields(self) -> &'static [(&'static str, AnswerPlace)] {
        match self {
            Self::Answer => &[("result", Self::Results)],
            Self::Passage => &[
                ("document", Self::Document),
                ("score", Self::Scalar),
                ("id", Self::Scalar),
                ("contents", Self::Scalar),
            ],
            Self::Document => &[("id", Self::Scalar), ("contents", Self::Scalar)],
            Self::Results | Self::Passages | Self::Scalar => &[],
        }
    }
}

#[derive(Clone, Copy)]
struct AnswerReader {
    place: AnswerPlace,
    n_queries: usize,
    top_k: usize,
}

impl<'de> DeserializeSeed<'de> for AnswerReader {
    type Value = AnswerNode;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<AnswerNode, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnswerReader {
    type Value = AnswerNode;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<AnswerNode, E> {
        Ok(AnswerNode::Other)
    }

    fn visit_unit<E>(self) -> Result<AnswerNode, E> {
        Ok(AnswerNode::Other)
    }

    fn visit_i64<E>(self, number: i64) -> Result<AnswerNode, E> {
        Ok(AnswerNode::Number { value: number as f64, text: number.to_string() })
    }

    fn visit_u64<E>(self, number: u64) -> Result<AnswerNode, E> {
        Ok(AnswerNode::Number { value: number as f64, text: number.to_string() })
    }

    fn visit_f64<E>(self, number: f64) -> Result<AnswerNode, E> {
        Ok(AnswerNode::Number { value: number, text: format!("{number:?}") })
    }

    fn visit_str<E>(self, text: &str) -> Result<AnswerNode, E> {
        Ok(match self.place {
            AnswerPlace::Scalar => AnswerNode::Text(text.to_owned()),
            _ => AnswerNode::Other,
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<AnswerNode, A::Error> {
        let (place, n_kept) = match self.place {
            AnswerPlace::Results => (AnswerPlace::Passages, self.n_queries),
            AnswerPlace::Passages => (AnswerPlace::Passage, self.top_k),
            _ => {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(AnswerNode::Other);
            }
        };
        let mut kept = Vec::new();
        while kept.len() < n_kept {
            match list.next_element_seed(Self { place, ..self })? {
                Some(element) => kept.push(element),
                None => return Ok(AnswerNode::List { n: kept.len(), kept }),
            }
        }
        let mut n = kept.len();
        while list.next_element::<IgnoredAny>()?.is_some() {
            n += 1;
        }
        Ok(AnswerNode::List { kept, n })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<AnswerNode, A::Error> {
        let known = self.place.fields();
        let mut fields = AnswerFields::default();
        while let Some(name) = map.next_key::<String>()? {
            match known.iter().find(|(field, _)| *field == name) {
                Some(&(field, place)) => {
                    let value = map.next_value_seed(Self { place, ..self })?;
                    fields.0.retain(|(other, _)| *other != field);
                    fields.0.push((field, value));
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(if known.is_empty() { AnswerNode::Other } else { AnswerNode::Object(fields) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_texts_of_the_passages_that_were_asked_for_are_kept() {
        // A hundred thousand small values in every place that nobody reads.
        let junk = format!("[{}]", vec!["[0]"; 100_000].join(","));
        let passage = |id: usize| {
            format!("{{\"id\": {id}, \"contents\": \"x\", \"score\": {junk}, \"junk\": {junk}}}")
        };
        let list = format!("[{}]", (0..5).map(passage).collect::<Vec<_>>().join(","));
        let text = format!("{{\"junk\": {junk}, \"result\": [{list}, {junk}, 7]}}");
        let mut parser = serde_json::Deserializer::from_str(&text);
        let Ok(AnswerNode::Object(mut fields)) =
            (AnswerReader { place: AnswerPlace::Answer, n_queries: 2, top_k: 3 })
                .deserialize(&mut parser)
        else {
            panic!("an object")
        };
        let Some(AnswerNode::List { kept, n }) = fields.take("result") else { panic!("a list") };
        // The third result has no query: it is counted, never kept.
        assert_eq!((kept.len(), n), (2, 3));
        for (result, expected) in kept.iter().zip([[2; 3], [0; 3]]) {
            let AnswerNode::List { kept, .. } = result else { panic!("a list") };
            let n_text_fields = |passage: &AnswerNode| match passage {
                AnswerNode::Object(fields) => {
                    fields.0.iter().filter(|(_, node)| !matches!(node, AnswerNode::Other)).count()
                }
                _ => 0,
            };
            assert_eq!(kept.iter().map(n_text_fields).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn nesting_of_any_depth_neither_overflows_the_stack_nor_hides_the_passages() {
        let deep = "[".repeat(1 << 20) + &"]".repeat(1 << 20);
        let passage = format!("{{\"id\": 1, \"contents\": \"x\", \"extra\": {deep}}}");
        let found = read(&format!("{{\"extra\": {deep}, \"result\": [[{passage}]]}}"), 1, 3)
            .expect("an answer");
        assert_eq!(found[0].as_ref().expect("found")[0].passage.contents, "x");
        // In the places that are read it is something that does not belong there.
        let results = format!(
            "{{\"result\": [[{{\"document\": {deep}}}], [{{\"id\": {deep}, \"contents\": \"x\"}}], \
             {deep}]}}"
        );
        assert!(read(&results, 3, 3).expect("an answer").iter().all(Result::is_err));
        let message = read(&deep[..1 << 20], 1, 3).expect_err("never closed");
        assert!(message.contains("not JSON") && message.chars().count() < 300, "{message}");
    }

    #[test]
    fn the_size_of_an_answer_is_limited_by_what_was_asked_for() {
        assert_eq!(max_bytes(1, 3), (1 << 20) + 3 * (64 << 10));
        assert_eq!(max_bytes(usize::MAX, usize::MAX), 64 << 20);
    }
}
