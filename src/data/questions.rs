//! Questions with gold answers: JSON Lines (plain or gzip) and the Parquet form of Search-R1.
use super::DataError;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A gold passage of a question, where the data set annotates it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Supporting {
    pub title: String,
    pub text: String,
    #[serde(default)]
    pub pid: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Question {
    pub id: String,
    /// The data set's name ("nq", "hotpotqa"); from the row, else from the file name.
    #[serde(default)]
    pub dataset: String,
    /// Ends in exactly one `?`.
    pub question: String,
    pub golden_answers: Vec<String>,
    #[serde(default)]
    pub supporting: Vec<Supporting>,
    /// "annotated" (the data set's own gold paragraphs) or a weak label.
    #[serde(default)]
    pub supporting_kind: String,
}

pub fn read_questions(_path: &Path) -> Result<Vec<Question>, DataError> {
    todo!()
}
pub fn write_questions(_path: &Path, _questions: &[Question]) -> Result<(), DataError> {
    todo!()
}
