//! A question, its gold answers, and the passages that are known to hold them.
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, Visitor},
};
use std::fmt;

/// A question and everything known about its answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// Unique within its data set.
    pub id: String,
    /// The data set's name ("nq", "hotpotqa"); from the row, else from the file name.
    #[serde(default)]
    pub dataset: String,
    /// Ends in exactly one `?`.
    pub question: String,
    /// At least one, none blank.
    pub golden_answers: Vec<String>,
    /// Passages known to hold the answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub supporting: Vec<Supporting>,
    /// "annotated" (the data set's own gold paragraphs) or a weak label.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub supporting_kind: String,
}

impl Question {
    /// A question of no data set, its own id, without gold passages.
    pub fn new(question: &str, golden_answers: &[&str]) -> Self {
        Self {
            id: question.to_owned(),
            question: question.to_owned(),
            golden_answers: golden_answers.iter().map(|&gold| gold.to_owned()).collect(),
            ..Self::default()
        }
    }
}

/// A gold passage of a question, where the data set annotates it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Supporting {
    /// Title of the passage's article.
    pub title: String,
    /// Text of the passage.
    pub text: String,
    /// The passage's id in the corpus, where it is there.
    #[serde(default, deserialize_with = "optional_id")]
    pub pid: Option<String>,
}

/// An id that may be absent, null, a string or a whole number.
fn optional_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    struct Id(String);
    impl<'de> Deserialize<'de> for Id {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Reader;
            impl Visitor<'_> for Reader {
                type Value = Id;
                fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                    formatter.write_str("a string or a whole number")
                }
                fn visit_str<E: de::Error>(self, text: &str) -> Result<Id, E> {
                    Ok(Id(text.to_owned()))
                }
                fn visit_u64<E: de::Error>(self, number: u64) -> Result<Id, E> {
                    Ok(Id(number.to_string()))
                }
                fn visit_i64<E: de::Error>(self, number: i64) -> Result<Id, E> {
                    Ok(Id(number.to_string()))
                }
            }
            deserializer.deserialize_any(Reader)
        }
    }
    Ok(Option::<Id>::deserialize(deserializer)?.map(|Id(id)| id))
}
